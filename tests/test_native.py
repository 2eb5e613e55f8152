"""Kernel source to running code: levels, lowering, objects and linking."""

import ctypes
import platform
import re
import subprocess
import threading
import time

import numpy as np
import pytest

from dlc import config
from dlc.backends.native import isa as levels
from dlc.backends.native import objects
from dlc.backends.native.emit import FUNCTIONS
from dlc.backends.native.frontend import Extern, Param, lower, lower_function
from dlc.backends.native.isa import LEVELS, host, runnable
from dlc.backends.native.python_twin import Pointer, run
from dlc.errors import CompileError, ExecutionError, TargetError
from dlc.runtime import elf
from dlc.runtime.loader import link

KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)

SAXPY = """
def saxpy(x, y, n, a, thread, threads):
    for i in range(div(n * thread, threads), div(n * (thread + 1), threads)):
        y[i] = fma(a, x[i], y[i])
"""
SAXPY_PARAMS = (
    Param("x", "float32*"),
    Param("y", "float32*"),
    Param("n", "int64"),
    Param("a", "float32"),
)


def params(**types):
    return [Param(name, kind) for name, kind in types.items()]


def words(*arguments):
    """The row of words that a kernel gets: addresses, integers, bits of floats."""
    return np.array([_word(argument) for argument in arguments], np.int64)


def _word(argument):
    if isinstance(argument, np.ndarray):
        return argument.ctypes.data
    if isinstance(argument, np.floating):
        return int(argument.view(f"i{argument.itemsize}"))
    return argument


def execute(source, types, *arguments, level=None, externs=(), also=(), thread=0, threads=1):
    """Lower, build, link and run a kernel on this machine."""
    level = level or host()
    name = re.search(r"def (\w+)", source)[1]
    text = lower(source, name, types, level, externs)
    code = objects.build(text, [name], level, [extern.name for extern in externs])
    with link([code, *also], [name]) as linked:
        row = words(*arguments)
        KERNEL(linked.address(name))(row.ctypes.data, thread, threads)


# Levels.


def test_the_host_runs_its_level():
    assert host() in runnable()
    assert runnable()[-1].name in LEVELS
    with config.override(isa=runnable()[0].name):
        assert host() == runnable()[0]


def test_lanes_follow_the_vectors():
    assert LEVELS["x86-64-v2"].lanes("float32") == 4
    assert LEVELS["x86-64-v3"].lanes("float32") == 8
    assert LEVELS["x86-64-v4"].lanes("float64") == 8
    assert LEVELS["aarch64"].lanes("float64") == 2


def test_a_level_the_machine_lacks_is_an_error(monkeypatch):
    other = "aarch64" if platform.machine() == "x86_64" else "x86-64-v3"
    with config.override(isa=other), pytest.raises(TargetError, match="cannot run that level"):
        host()
    monkeypatch.setattr(levels, "_host_features", lambda: dict.fromkeys(levels._V3, True))
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert [level.name for level in runnable()] == ["x86-64-v2", "x86-64-v3"]
    with config.override(isa="x86-64-v4"), pytest.raises(TargetError, match="no avx512f"):
        host()
    monkeypatch.setattr(levels, "_host_features", dict)
    with pytest.raises(TargetError, match="level x86-64-v2 or better"):
        runnable()


@pytest.mark.parametrize(
    ("system", "machine"), [("Darwin", "arm64"), ("Windows", "AMD64"), ("Linux", "riscv64")]
)
def test_elsewhere_is_a_clear_error(system, machine, monkeypatch):
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    with pytest.raises(TargetError, match=f"this is {system} on {machine}"):
        host()


# From source to results.


@pytest.mark.parametrize("level", runnable(), ids=lambda level: level.name)
@pytest.mark.parametrize("size", [0, 1, 7, 64, 1001])
def test_saxpy_in_shares(level, size, rng):
    x, y = rng.normal(size=(2, size)).astype(np.float32)
    expected = y + np.float32(0.3) * x
    for thread in range(3):
        execute(
            SAXPY, SAXPY_PARAMS, x, y, size, np.float32(0.3), level=level, thread=thread, threads=3
        )
    np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-6)


EVERYTHING = """
def everything(x, d, i8, i4, i1, n, k, s, t, thread, threads):
    scratch = local(4, f64)
    total = 0.0
    row = 0
    while row < n:
        head = at(x, 2 * row)
        scratch[mod(row, 4)] = f64(head[0]) + f64(head[1]) * t
        claim(head, 16)
        if row >= 3:
            total += scratch[mod(row - 3, 4)]
        v = relu(x[row]) + f32(s) if row % 3 != 1 else fmin(x[row], s)
        d[row] = f64(v) + total - floor(d[row]) * t + (1.0 if isnan(v) else -0.5)
        i8[row] = (row - 5) // k + 100 * ((row - 5) % k) + abs(row - 7) + div(row, 3)
        i4[row] = i32(round(x[row] * f32(10.0)))
        i1[row] = row > 4 and x[row] > 0 or row == k
        row += 1
"""
EVERYTHING_TYPES = {
    "x": "float32*",
    "d": "float64*",
    "i8": "int64*",
    "i4": "int32*",
    "i1": "uint8*",
    "n": "int64",
    "k": "int32",
    "s": "float32",
    "t": "float64",
}


@pytest.mark.parametrize("level", runnable(), ids=lambda level: level.name)
def test_compiled_code_does_what_the_source_does_as_python(level, rng):
    def arguments():
        rng = np.random.default_rng(3)
        x, d = rng.normal(size=40).astype(np.float32), rng.normal(size=20)
        integers = (np.zeros(20, kind) for kind in (np.int64, np.int32, np.uint8))
        return [x, d, *integers, 20, 3, np.float32(0.25), np.float64(1.5)]

    compiled, interpreted = arguments(), arguments()
    execute(EVERYTHING, params(**EVERYTHING_TYPES), *compiled, level=level)
    run(EVERYTHING, "everything", interpreted)
    for ours, theirs in zip(compiled[:5], interpreted[:5]):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    assert compiled[4].sum() > 0


def test_division_of_signed_integers_is_pythons(rng):
    source = """
def divide(a, b, q, r, n, thread, threads):
    for i in range(n):
        q[i] = a[i] // b[i]
        r[i] = a[i] % b[i]
"""
    a, b = rng.integers(-50, 50, 200), rng.integers(1, 9, 200) * rng.choice([-1, 1], 200)
    q, r = np.zeros((2, 200), np.int64)
    execute(
        source, params(a="int64*", b="int64*", q="int64*", r="int64*", n="int64"), a, b, q, r, 200
    )
    np.testing.assert_array_equal(q, a // b)
    np.testing.assert_array_equal(r, a % b)


def test_float_literals_have_the_type_of_the_kernel():
    source = """
def scale(x, y, n, thread, threads):
    for i in range(n):
        y[i] = x[i] * 0.1 + 1e-3
"""
    for dtype in ("float32", "float64"):
        x, y = np.linspace(-1, 1, 33).astype(dtype), np.zeros(33, dtype)
        kinds = params(x=f"{dtype}*", y=f"{dtype}*", n="int64")
        execute(source, kinds, x, y, 33, level=runnable()[0])
        np.testing.assert_array_equal(y, x * x.dtype.type(0.1) + x.dtype.type(1e-3))
        text = objects.assembly(lower(source, "scale", kinds, host()), ["scale"], host())
        assert ("cvt" in text) is False


def test_externs_are_called_with_moved_pointers(rng):
    level = host()
    tile = lower_function(
        "def double(x, y, n):\n    for i in range(n):\n        y[i] = x[i] + x[i]\n",
        "double",
        params(x="float32*", y="float32*", n="int64"),
        level,
    )
    source = """
def blocks(x, y, n, thread, threads):
    for i in range(0, n, 8):
        double(at(x, i), at(y, i), 8)
"""
    extern = Extern("double", tuple(params(x="float32*", y="float32*", n="int64")))
    x = rng.normal(size=64).astype(np.float32)
    y = np.full(64, np.nan, np.float32)
    also = [objects.build(tile, ["double"], level)]
    kinds = params(x="float32*", y="float32*", n="int64")
    execute(source, kinds, x, y, 64, externs=[extern], also=also)
    np.testing.assert_array_equal(y, 2 * x)
    y[:] = np.nan
    twin = {"double": lambda x, y, n: [y.__setitem__(i, x[i] + x[i]) for i in range(n)]}
    run(source, "blocks", [x, y, 64], externs=twin)
    np.testing.assert_array_equal(y, 2 * x)


def test_the_first_error_wins():
    source = """
def fail(header, n, thread, threads):
    for i in range(n):
        if mod(i, threads) == thread:
            raise_error(header, thread + 1, 1000 * (thread + 1))
"""
    level = host()
    code = objects.build(
        lower(source, "fail", params(header="int64*", n="int64"), level), ["fail"], level
    )
    with link([code], ["fail"]) as linked:
        kernel = KERNEL(linked.address("fail"))
        for _ in range(20):
            header = np.zeros(16, np.int64)
            row = words(header, 1000)
            workers = [
                threading.Thread(target=kernel, args=(row.ctypes.data, t, 4)) for t in range(4)
            ]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
            assert header[0] in (1, 2, 3, 4)
            assert header[1] == 1000 * header[0]
            assert not header[2:].any()


def test_overlapping_pointers_are_right_without_noalias():
    source = """
def shift(x, y, n, thread, threads):
    for i in range(n):
        y[i] = x[i] + 1.0
"""
    x = np.zeros(100, np.float32)
    kinds = [Param("x", "float32*", False), Param("y", "float32*", False), Param("n", "int64")]
    execute(source, kinds, x, x[1:], 99)
    np.testing.assert_array_equal(x, np.arange(100))


def test_parameters_may_have_any_name():
    source = """
def name(args, status, result, entry, thread, threads):
    args[0] = status + result * entry
"""
    out = np.zeros(1, np.int64)
    kinds = params(args="int64*", status="int64", result="int64", entry="int64")
    execute(source, kinds, out, 1, 2, 3)
    assert out[0] == 7


def test_functions_that_return_a_value():
    text = lower_function(
        "def triple(x):\n    return 3 * x\n", "triple", params(x="int64"), host(), result="int64"
    )
    with link([objects.build(text, ["triple"], host())], ["triple"]) as linked:
        triple = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(linked.address("triple"))
        assert triple(14) == 42


def test_pointers_of_the_python_twin_stay_inside():
    pointer = Pointer(np.arange(6.0), 2)
    assert (pointer + 1)[0] == 3.0
    assert pointer[-2] == 0.0
    with pytest.raises(IndexError, match="element 6 of 6"):
        pointer[4]
    with pytest.raises(IndexError, match="element -1 of 6"):
        pointer[-3]


# What LLVM makes of it.

VECTOR = {
    "x86-64-v2": r"mulps\s.*xmm",
    "x86-64-v3": r"vfmadd\w+ps\s.*ymm",
    "x86-64-v4": r"vfmadd\w+ps\s.*zmm",
    "aarch64": r"fmla\s+v\d+\.4s",
}


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize(
    "value",
    [
        "fma(x[i], 0.5, y[i])",
        "fma(exp(x[i]), 0.5, y[i])",
        "fma(tanh(x[i]), sigmoid(y[i]), 1.0)",
        "fma(erf(x[i]), log(y[i]), 1.0)",
        "fma(x[i], 0.5, relu(y[i]) if x[i] > y[i] else fmax(x[i], 1.0))",
    ],
)
def test_independent_elements_vectorise(name, value):
    level = LEVELS[name]
    source = f"def f(x, y, n, thread, threads):\n    for i in range(n):\n        y[i] = {value}\n"
    text = lower(source, "f", params(x="float32*", y="float32*", n="int64"), level)
    assert re.search(VECTOR[name], objects.assembly(text, ["f"], level))


def test_noalias_spares_the_check_for_overlap():
    source = "def f(x, y, n, thread, threads):\n    for i in range(n):\n        y[i] = x[i] * 2.0\n"

    def body(noalias):
        kinds = [
            Param("x", "float32*", noalias),
            Param("y", "float32*", noalias),
            Param("n", "int64"),
        ]
        return str(objects.optimise(lower(source, "f", kinds, host()), ["f"], host()))

    assert "diff.check" not in body(True)
    assert "diff.check" in body(False)


@pytest.mark.parametrize("name", LEVELS)
def test_sums_keep_their_order(name):
    source = """
def total(x, y, n, thread, threads):
    s = 0.0
    for i in range(n):
        s += x[i]
    y[0] = s
"""
    text = lower(source, "total", params(x="float32*", y="float32*", n="int64"), LEVELS[name])
    module = str(objects.optimise(text, ["total"], LEVELS[name]))
    assert "fast" not in module
    assert "reassoc" not in module
    assert not re.search(r"fadd <\d+ x float>", module)


def test_an_object_for_another_processor():
    text = lower(SAXPY, "saxpy", SAXPY_PARAMS, LEVELS["aarch64"])
    code = objects.build(text, ["saxpy"], LEVELS["aarch64"])
    assert elf.read(code) == elf.Elf("aarch64", frozenset({"saxpy"}), frozenset())
    if platform.machine() != "aarch64":
        with pytest.raises(CompileError, match="of saxpy is for aarch64, and this machine is"):
            link([code], ["saxpy"])


@pytest.mark.parametrize("name", LEVELS)
def test_an_object_shows_its_entry_and_needs_nothing(name):
    source = """
def clear(x, n, thread, threads):
    for i in range(n):
        x[i] = 0.0
"""
    level = LEVELS[name]
    text = lower(source, "clear", params(x="float64*", n="int64"), level)
    code = objects.build(text, ["clear"], level)
    assert elf.read(code).defined == {"clear"}
    assert elf.read(code).undefined == {"memset"}
    code = objects.build(lower(SAXPY, "saxpy", SAXPY_PARAMS, level), ["saxpy"], level)
    assert elf.read(code).defined == {"saxpy"}
    assert not elf.read(code).undefined


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", LEVELS)
def test_no_intrinsic_needs_a_library(name, dtype):
    level = LEVELS[name]
    calls = [f"{f}({', '.join(['x[i]'] * arity)})" for f, (arity, _) in FUNCTIONS.items()]
    body = "\n        ".join(f"x[i] = x[i] + f32({call})" for call in calls)
    source = f"""
def f(x, header, n, thread, threads):
    for i in range(n):
        {body}
        raise_error(header, 1, i)
"""
    kinds = params(x=f"{dtype}*", header="int64*", n="int64")
    code = objects.build(lower(source, "f", kinds, level), ["f"], level)
    assert elf.read(code).undefined <= {"memcpy", "memset"}


def test_texts_and_objects_are_the_same_in_every_process(run_python):
    program = """
    import hashlib, sys
    sys.path.insert(0, sys.argv[1])
    from test_native import *
    text = lower(EVERYTHING, "everything", params(**EVERYTHING_TYPES), host())
    code = objects.build(text, ["everything"], host())
    print(*(hashlib.sha256(each).hexdigest() for each in (text.encode(), code)))
    """
    folder = __file__.rpartition("/")[0]
    first, second = (run_python(program, folder, PYTHONHASHSEED=seed) for seed in "12")
    assert first == second


def test_threads_may_compile_at_once():
    results = [None] * 4

    def work(k):
        text = lower(SAXPY, "saxpy", SAXPY_PARAMS, host())
        results[k] = objects.build(text, ["saxpy"], host())

    workers = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert results[0] is not None
    assert results == [results[0]] * 4


# What is refused.


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("for i in range(0, n, m):\n        x[i] = 0.0", "can raise"),
        ("x[0] = min(x[1], x[2])", "makes Numba compile"),
        ("x[0] = x[1] ** x[2]", "would need powf"),
        ("x[0] = x[1] * n", "in float64"),
        ("v = 1 / n\n    x[0] = v", "computes v in float64"),
        ("x[0] = gamma(x[1])", "'gamma' is not defined"),
        ("x[0] = exp(x[1], x[2])", "2 positional arguments but 3 were given"),
        ("x[0] = fmax(x[1], f64(1.0))", "cannot be lowered"),
        ("x[0] = local(n, f32)[0]", "cannot be lowered"),
        ("x[0] =", "invalid syntax"),
    ],
)
def test_sources_that_are_no_kernels(body, message):
    source = f"def f(x, n, m, thread, threads):\n    {body}\n"
    kinds = params(x="float32*", n="int64", m="int64")
    with pytest.raises(CompileError, match=re.escape(message)):
        objects.build(lower(source, "f", kinds, host()), ["f"], host())


def test_parameters_of_unknown_type():
    with pytest.raises(CompileError, match=r"parameter x expects one of .*float32\*.*, got half"):
        Param("x", "half")
    with pytest.raises(CompileError, match="got uint8"):
        Param("flag", "uint8")


def test_a_source_without_its_function():
    with pytest.raises(CompileError, match="does not define g"):
        lower("def f(thread, threads):\n    pass\n", "g", [], host())


def test_texts_that_do_not_build():
    with pytest.raises(CompileError, match="LLVM refuses"):
        objects.build("define void @f( {", ["f"], host())
    with pytest.raises(CompileError, match=r"defines \['f'\], but no entry g"):
        objects.build("define void @f() {\n  ret void\n}\n", ["g"], host())
    text = "declare void @other()\ndefine void @f() {\n  call void @other()\n  ret void\n}\n"
    with pytest.raises(CompileError, match="f would need other at run time"):
        objects.build(text, ["f"], host())
    assert elf.read(objects.build(text, ["f"], host(), ["other"])).undefined == {"other"}


# Linking.


def _constant(name, value):
    text = f"define i64 @{name}() {{\n  ret i64 {value}\n}}\n"
    return objects.build(text, [name], host())


def test_many_objects_link_in_milliseconds():
    names = [f"kernel_{k}" for k in range(60)]
    codes = [_constant(name, k) for k, name in enumerate(names)]
    times = []
    for _ in range(5):
        start = time.perf_counter()
        linked = link(codes, names)
        times.append(time.perf_counter() - start)
        for k, name in enumerate(names):
            assert ctypes.CFUNCTYPE(ctypes.c_int64)(linked.address(name))() == k
        linked.close()
    assert min(times) < 0.05


def test_linking_tells_what_is_wrong():
    one = _constant("one", 1)
    with pytest.raises(CompileError, match="nor this process, defines two"):
        link([one], ["two"])
    with pytest.raises(CompileError, match="two of the objects define one"):
        link([one, one], ["one"])
    for damaged in (b"", one[:100], one[:-100], b"x" * 300):
        with pytest.raises(CompileError, match=f"{len(damaged)} bytes are no ELF-64 object"):
            link([damaged], ["one"])
    text = "declare void @nowhere()\ndefine void @f() {\n  call void @nowhere()\n  ret void\n}\n"
    with pytest.raises(CompileError, match="nor this process, defines nowhere"):
        link([objects.build(text, ["f"], host(), ["nowhere"])], ["f"])


def test_closed_code_has_no_address():
    linked = link([_constant("one", 1)], ["one"])
    with pytest.raises(CompileError, match="two is not an entry"):
        linked.address("two")
    linked.close()
    linked.close()
    with pytest.raises(ExecutionError, match="closed"):
        linked.address("one")


def test_linking_does_not_load_numba(run_python):
    code = _constant("one", 1).hex()
    program = """
    import ctypes, sys
    from dlc.runtime.loader import link
    linked = link([bytes.fromhex(sys.argv[1])], ["one"])
    print(ctypes.CFUNCTYPE(ctypes.c_int64)(linked.address("one"))(), "numba" in sys.modules)
    """
    assert run_python(program, code) == "1 False\n"


@pytest.mark.system
@pytest.mark.parametrize("level", runnable(), ids=lambda level: level.name)
def test_the_same_bits_from_orc_and_from_a_shared_library(level, tmp_path, rng):
    source = """
def f(x, y, n, thread, threads):
    for i in range(n):
        y[i] = exp(x[i]) * tanh(x[i]) + log1p(abs(x[i])) * sin(x[i])
"""
    x = rng.normal(0, 3, 1003).astype(np.float32)
    y, z = np.full((2, x.size), np.nan, np.float32)
    kinds = params(x="float32*", y="float32*", n="int64")
    code = objects.build(lower(source, "f", kinds, level), ["f"], level)
    (tmp_path / "f.o").write_bytes(code)
    command = ["cc", "-shared", "-o", tmp_path / "f.so", tmp_path / "f.o", "-Wl,--no-undefined"]
    subprocess.run(command, check=True)
    library = KERNEL(("f", ctypes.CDLL(str(tmp_path / "f.so"))))
    rows = words(x, y, x.size), words(x, z, x.size)
    with link([code], ["f"]) as linked:
        KERNEL(linked.address("f"))(rows[0].ctypes.data, 0, 1)
    library(rows[1].ctypes.data, 0, 1)
    assert not np.isnan(y).any()
    assert y.tobytes() == z.tobytes()
