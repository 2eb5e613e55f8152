"""Elementary functions and expressions: errors, special values, scalars and vectors alike."""

import ctypes
import importlib.util
import itertools
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from llvmlite import ir

from dlc.backends.native import coefficients, objects
from dlc.backends.native.emit import FUNCTIONS, Emitter, emit_expression
from dlc.backends.native.frontend import Param, lower
from dlc.backends.native.isa import LEVELS, runnable
from dlc.backends.native.python_twin import python_namespace
from dlc.errors import CompileError
from dlc.runtime.loader import link

TOOLS = Path(__file__).parents[1] / "tools"
DTYPES = ("float32", "float64")
ULP = {"float32": 2.0, "float64": 3.0}
POINTER, WORD = ir.PointerType(), ir.IntType(64)
ELEMENT = 4  # alignment: an array starts anywhere


def tool(name):
    """A program of `tools/`, imported."""
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


measure = tool("elementary_errors")


def emitted(build, operands, dtype, isa, lanes):
    """LLVM text of `f(x, w, y, blocks)`: rows of y = build(emitter, x, w), vector by vector."""
    element = ir.FloatType() if dtype == "float32" else ir.DoubleType()
    kind = ir.VectorType(element, lanes) if lanes else element
    module = ir.Module()
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [POINTER] * 3 + [WORD]), "f")
    x, w, y, blocks = function.args
    entry, loop, done = map(function.append_basic_block, ("entry", "loop", "done"))
    ir.IRBuilder(entry).branch(loop)
    b = ir.IRBuilder(loop)
    i = b.phi(WORD)
    i.add_incoming(WORD(0), entry)
    addresses = [b.gep(p, [i], source_etype=kind) for p in (x, w)[:operands]]
    values = [b.load(address, typ=kind, align=ELEMENT) for address in addresses]
    place = i
    for value in build(Emitter(b, kind, isa), *values):
        b.store(value, b.gep(y, [place], source_etype=kind), align=ELEMENT)
        place = b.add(place, blocks)
    following = b.add(i, WORD(1))
    i.add_incoming(following, loop)
    b.cbranch(b.icmp_signed("<", following, blocks), loop, done)
    ir.IRBuilder(done).ret_void()
    return str(module)


def run_emitted(build, x, w, isa, lanes, operands=2, rows=1):
    """The rows of `emitted` at x and w, whose length is a multiple of the lanes."""
    text = emitted(build, operands, x.dtype.name, isa, lanes)
    y = np.full((rows, x.size), np.nan, x.dtype)
    with link([objects.build(text, ["f"], isa)], ["f"]) as linked:
        kind = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 3, ctypes.c_int64)
        call = kind(linked.address("f"))
        call(x.ctypes.data, w.ctypes.data, y.ctypes.data, x.size // max(lanes, 1))
    return y


def bits(x):
    """The bits of floats, all NaNs alike: which of them comes out is not ours to say."""
    return np.where(np.isnan(x), np.nan, x).astype(x.dtype).view(f"i{x.itemsize}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", measure.EXACT)
def test_error_is_a_few_units_in_the_last_place(name, dtype):
    x, w = measure.samples(name, dtype, count=60, seed=1)
    for isa in runnable():
        y = measure.evaluate(name, isa, x, w)
        worst = measure.errors(name, x, w, y).max()
        assert worst <= ULP[dtype], f"{isa.name}: {worst} ulp"


def _double_reference(name, x):
    """float32 functions in float64, which is as good as exact for them."""
    if name == "erf":
        return np.array([math.erf(v) for v in x.tolist()])
    if name == "sigmoid":
        return np.where(x < 0, np.exp(x), 1.0) / (1.0 + np.exp(-np.abs(x)))
    if name == "rsqrt":
        return 1.0 / np.sqrt(x)
    return getattr(np, name)(x)


@pytest.mark.parametrize("name", sorted(set(measure.EXACT) - {"pow"}))
def test_float32_error_over_random_bit_patterns(name, rng):
    patterns = rng.integers(0, 2**32, 40_000, dtype=np.uint32).view(np.float32)
    x = np.concatenate([patterns, rng.uniform(-20, 20, 20_000).astype(np.float32)])
    y = measure.evaluate(name, runnable()[-1], x, x)
    with np.errstate(all="ignore"):
        exact = _double_reference(name, x.astype(np.float64))
        nearest = exact.astype(np.float32)
        units = np.abs(y - exact) / np.spacing(np.abs(nearest))
    ordinary = np.isfinite(nearest)
    assert units[ordinary].max() <= ULP["float32"]
    np.testing.assert_array_equal(y[~ordinary], nearest[~ordinary])


def _specials(dtype):
    info = np.finfo(dtype)
    least, most = info.smallest_subnormal, info.max
    positive = [0.0, np.inf, 0.5, 1.0, 2.0, 3.0, 100.0, 1e-10, 1e30, info.eps, info.tiny, least]
    edges = [5 * least, most, 88.7, 87.5, 103.9, 709.7, 710.0, 744.0, 745.1, 2.0**24 + 2]
    both = [sign * value for value in (*positive, *edges) for sign in (1, -1)]
    return np.array([*both, np.nan], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", measure.EXACT)
def test_special_values(name, dtype):
    x = w = _specials(dtype)
    if name == "pow":
        x, w = map(np.array, zip(*itertools.product(x, w)))
    with np.errstate(all="ignore"):
        if name == "pow":
            expected = np.array([_c_pow(*pair) for pair in zip(x.tolist(), w.tolist())])
            expected = expected.astype(dtype)
        else:
            wide = x.astype(np.longdouble if name not in ("sin", "cos", "erf") else np.float64)
            expected = _double_reference(name, wide).astype(dtype)
    for isa in runnable():
        y = measure.evaluate(name, isa, x, w)
        with np.errstate(all="ignore"):
            close = np.abs(y - expected) <= ULP[dtype] * np.spacing(np.abs(expected))
        good = close & (np.signbit(y) == np.signbit(expected))
        good |= (y == expected) & np.isinf(y) | np.isnan(y) & np.isnan(expected)
        wrong = [(x[i], w[i], y[i], expected[i]) for i in np.flatnonzero(~good)]
        assert not wrong, f"{isa.name}: (x, w, got, expected) {wrong[:5]}"


def _c_pow(x, y):
    """C's pow: Python's, with the values that Python raises for."""
    try:
        return math.pow(x, y)
    except OverflowError:
        return math.copysign(math.inf, x) if y % 2 == 1 else math.inf
    except ValueError:
        if x != 0.0:
            return math.nan
        return math.copysign(math.inf, x) if y % 2 == 1 else math.inf


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", runnable(), ids=lambda isa: isa.name)
def test_vectors_scalars_and_kernels_give_the_same_bits(isa, dtype, rng):
    x, w = (rng.normal(0, 3, 512).astype(dtype) for _ in range(2))
    x[:49] = np.resize(_specials(dtype), 49)
    names = [name for name in FUNCTIONS if name != "isnan"]

    def apply(e, a, b):
        return [e.call(n, *(a, b, e.constant(0.75))[: FUNCTIONS[n][0]]) for n in names]

    scalar, vector, pair = (
        run_emitted(apply, x, w, isa, lanes, rows=len(names))
        for lanes in (0, isa.lanes(dtype), 2 * isa.lanes(dtype))
    )
    kernel = np.full_like(scalar, np.nan)
    with link([one_kernel(names, dtype, isa)], ["f"]) as linked:
        words = np.array([x.ctypes.data, w.ctypes.data, kernel.ctypes.data, x.size])
        call = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
        call(linked.address("f"))(words.ctypes.data, 0, 1)
    for k, name in enumerate(names):
        for other in (vector, pair, kernel):
            np.testing.assert_array_equal(bits(scalar[k]), bits(other[k]), err_msg=name)


def one_kernel(names, dtype, isa):
    """An object of a kernel `f(x, w, y, n)` with a row of y for each function."""
    calls = [", ".join(("x[i]", "w[i]", "0.75")[: FUNCTIONS[name][0]]) for name in names]
    rows = [f"y[{k} * n + i] = {name}({calls[k]})" for k, name in enumerate(names)]
    body = "\n        ".join(rows)
    source = f"def f(x, w, y, n, thread, threads):\n    for i in range(n):\n        {body}\n"
    params = [*(Param(p, f"{dtype}*") for p in "xwy"), Param("n", "int64")]
    return objects.build(lower(source, "f", params, isa), ["f"], isa)


RUNNER = r"""
#include <stdint.h>
#include <stdio.h>

void f(int64_t *args, int64_t thread, int64_t threads);
static char x[1 << 16], w[1 << 16], y[1 << 20];

int main(int count, char **sizes) {
    long n, bytes;
    sscanf(sizes[1], "%ld", &n);
    sscanf(sizes[2], "%ld", &bytes);
    fread(x, 1, bytes, stdin);
    fread(w, 1, bytes, stdin);
    int64_t args[] = {(int64_t)x, (int64_t)w, (int64_t)y, n};
    f(args, 0, 1);
    fwrite(y, 1, ROWS * bytes, stdout);
    return count - 3;
}
"""


@pytest.mark.system
@pytest.mark.parametrize("dtype", DTYPES)
def test_error_on_aarch64(dtype, tmp_path):
    names = list(measure.EXACT)
    (tmp_path / "f.o").write_bytes(one_kernel(names, dtype, LEVELS["aarch64"]))
    (tmp_path / "runner.c").write_text(RUNNER.replace("ROWS", str(len(names))))
    parts = [tmp_path / "runner.c", tmp_path / "f.o"]
    command = ["aarch64-linux-gnu-gcc", "-O1", *parts, "-o", tmp_path / "runner"]
    subprocess.run(command, check=True)
    ordinary, powers = (measure.samples(name, dtype, count=60) for name in ("exp", "pow"))
    for each, (x, w) in (("exp", ordinary), ("pow", powers)):
        qemu = ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu", tmp_path / "runner"]
        sizes = [str(x.size), str(x.nbytes)]
        data = x.tobytes() + w.tobytes()
        out = subprocess.run([*qemu, *sizes], input=data, check=True, capture_output=True).stdout
        y = np.frombuffer(out, dtype).reshape(len(names), -1)
        for name, row in zip(names, y):
            if (name == "pow") == (each == "pow"):
                worst = measure.errors(name, x, w, row).max()
                assert worst <= ULP[dtype], f"{name}: {worst} ulp"


@pytest.mark.parametrize("dtype", DTYPES)
def test_maximum_minimum_and_relu_keep_nan_and_zeros(dtype):
    x = np.array([np.nan, 1.0, np.nan, -0.0, -1.0, np.inf, -np.inf, 2.0], dtype)
    w = np.array([1.0, np.nan, np.nan, -0.0, 3.0, np.nan, 0.0, 2.0], dtype)
    for isa in runnable():
        for lanes in (0, 4):
            larger, smaller, positive = run_emitted(
                lambda e, a, b: [e.fmax(a, b), e.fmin(a, b), e.relu(a)], x, w, isa, lanes, rows=3
            )
            np.testing.assert_array_equal(bits(larger), bits(np.maximum(x, w)))
            np.testing.assert_array_equal(bits(smaller), bits(np.minimum(x, w)))
            expected = np.array([np.nan, 1, np.nan, -0.0, 0, np.inf, 0, 2], dtype)
            np.testing.assert_array_equal(bits(positive), bits(expected))


EXPRESSIONS = (
    "a + b * 2 - a / 3.5",
    "-a if a < b else b",
    "relu(a) + fmax(a, b) - fmin(a, 1)",
    "0.5 * a * (1.0 + erf(a * 0.7071067811865476))",
    "a * sigmoid(b) + tanh(a) * exp(-abs(b))",
    "1.0 if a > 0 and b > 0 else (2.0 if not a >= b or isnan(a) else 3.0)",
    "fma(a, b, 1.0) if a != b else inf",
    "-inf if a <= -1 else copysign(sqrt(abs(a)), b)",
)


@pytest.mark.parametrize("dtype", DTYPES)
def test_expressions_are_python(dtype, rng):
    a, b = (rng.normal(size=64).astype(dtype) for _ in range(2))
    a[:8] = b[:8]
    names = python_namespace()

    def build(e, p, q):
        return [emit_expression(e, each, {"a": p, "b": q}) for each in EXPRESSIONS]

    for isa in runnable():
        for lanes in (0, isa.lanes(dtype)):
            rows = run_emitted(build, a, b, isa, lanes, rows=len(EXPRESSIONS))
            for expression, row in zip(EXPRESSIONS, rows):
                expected = [eval(expression, dict(names), {"a": p, "b": q}) for p, q in zip(a, b)]
                tolerance = 64 * np.finfo(dtype).eps
                np.testing.assert_allclose(row, expected, tolerance, tolerance, err_msg=expression)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("a + c", "cannot hold 'c'"),
        ("a ** 2", "cannot hold"),
        ("0 < a < 1", "cannot hold"),
        ("'a'", "cannot hold"),
        ("True", "cannot hold"),
        ("exp(a, a)", "exp takes 1 operand"),
        ("gamma(a)", "no function gamma"),
        ("exp(x=a)", "cannot hold"),
        ("a +", "is no expression"),
    ],
)
def test_expressions_that_are_not_pointwise(expression, message):
    isa = LEVELS["x86-64-v3"]
    with pytest.raises(CompileError, match=message):
        emitted(lambda e, a: [emit_expression(e, expression, {"a": a})], 1, "float32", isa, 0)


def test_a_level_without_fma_multiplies_and_adds():
    isa = LEVELS["x86-64-v2"]
    text = emitted(lambda e, p, q: [e.fma(p, q, e.constant(-1.0))], 2, "float64", isa, 2)
    code = objects.assembly(text, ["f"], isa)
    assert "mulpd" in code
    assert "fma" not in code


@pytest.mark.parametrize("name", ["x86-64-v3", "x86-64-v4", "aarch64"])
def test_products_and_sums_are_fused_only_where_asked(name):
    isa = LEVELS[name]
    fused = re.compile(r"\bvf[n]?m(add|sub)|\bfml[as]|\bfmadd")

    def text(build):
        return objects.assembly(emitted(build, 2, "float32", isa, 4), ["f"], isa)

    assert fused.search(text(lambda e, p, q: [e.fma(p, q, p)]))
    assert not fused.search(text(lambda e, p, q: [e.add(e.mul(p, q), p)]))


def test_the_table_of_coefficients_is_what_its_program_prints(capsys):
    tool("fit_elementary").main()
    assert capsys.readouterr().out == Path(coefficients.__file__).read_text()
