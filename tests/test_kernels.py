"""Kernels three ways: the reference, the generated source as plain Python, and compiled.

Sizes stand at the edges of blocks (16 lanes, 64 side by side, 256 in a run, 1024 in a block) and
are known only when a kernel runs, so that a case is compiled once for each level.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import pytest
from helpers.three_ways import Program

import dlc
from dlc.backends.native.isa import host, runnable
from dlc.backends.numba_cpu.reduce import BLOCK, LANES, RUN, SHORT, WIDTH
from dlc.ir.pattern import op

N, M, K = (dlc.Dim(name, 0, 5000) for name in "nmk")
FLAT, MATRIX, CUBE = (N,), (N, M), (N, M, K)
FULL = tuple(dlc.Dim(name, 1, 5000) for name in "nm")  # a maximum needs an element
SMALL = {"n": 2, "m": 3, "k": 5}


def spec(shape, dtype="float32"):
    return dlc.TensorSpec(shape, dtype)


@dataclass(eq=False)
class Case:
    """A function, its arguments, and the sizes at which it is compared; the first in Python too."""

    function: Callable
    specs: tuple
    sizes: tuple = (SMALL,)

    @cached_property
    def program(self):
        return Program(self.function, *self.specs)


def n(*counts):
    return tuple({"n": count} for count in counts)


def nm(*pairs):
    return tuple({"n": n, "m": m} for n, m in pairs)


def reduction(name, axes, shape=MATRIX, sizes=(SMALL,), keepdims=False, **attrs):
    return Case(
        lambda x: getattr(op, name)(x, axes=axes, keepdims=keepdims, **attrs), (spec(shape),), sizes
    )


ALONG = nm(
    (2, LANES + 1), *((3, m) for m in (1, 15, 16, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 1))
)
ACROSS = nm((RUN + 1, 2), *((n, m) for n in (1, RUN, 2 * RUN - 1) for m in (1, WIDTH, WIDTH + 1)))
IMAGE = (N, 3, 5, 7)
PAD = {"padding": ((1, 0), (1, 1))}


def layer_norm(x, w):
    return op.layer_norm(x, w, w, ndim=1, eps=1e-3)


def types(x, i):
    flags = x > 0
    whole = op.cast(x * 3, dtype="int32")
    return flags, whole, op.where(flags, i, op.cast(whole, dtype="int64")), op.maximum(i, 1) * 2


LOOPS = {
    "one loop": Case(
        lambda x, y: op.relu(x) * y + 1, (spec(FLAT), spec(FLAT)), n(65, 0, 1, 63, 64, 129)
    ),
    "rows": Case(
        lambda x, row, column: x * row + op.tanh(column),
        (spec(MATRIX), spec((M,)), spec((N, 1))),
        nm((3, 5), (1, 17), (17, 1), (0, 4), (4, 0)),
    ),
    "transposed": Case(lambda x, y: op.transpose(x, axes=(1, 0)) + y, (spec(MATRIX), spec((M, N)))),
    "moved": Case(
        lambda x, y: (
            op.tanh(
                op.pad(
                    op.concat(op.flip(x, axes=(0,)), y * 2, axis=0),
                    low=(1, 0),
                    high=(0, 2),
                    value=0.5,
                )
            )
            * 2
        ),
        (spec(MATRIX), spec((4, M))),
        nm((3, 4), (1, 1)),
    ),
    "reshaped": Case(
        lambda x: op.transpose(op.reshape(x, shape=(N, 2, 3)), axes=(2, 0, 1)) + 1, (spec((N, 6)),)
    ),
    "types": Case(types, (spec(FLAT), spec(FLAT, "int64")), n(17)),
    "looked up": Case(
        lambda x, i: (op.take(x, i, axis=1) + 1, op.take(x, i, axis=0)),
        (spec((4, 4, M)), spec((K, 2), "int64")),
    ),
    "counted": Case(
        lambda x: (
            x * op.cast(op.iota(size=M, dtype="int64"), dtype="float32")
            + op.iota(size=M, dtype="float32")
        ),
        (spec(MATRIX),),
    ),
}

REDUCTIONS = {
    "sums along": reduction("sum", (1,), sizes=ALONG),
    "maxima along": reduction("amax", (1,), FULL, ALONG[:4]),
    "sums across": reduction("sum", (0,), sizes=ACROSS),
    "minima across": reduction("amin", (0,), FULL, ACROSS[:4]),
    "of the middle": reduction("mean", (1,), CUBE, ({"n": 2, "m": 3, "k": 65},)),
    "of the outer two": reduction("mean", (0, 1), CUBE, ({"n": 2, "m": 257, "k": 3},)),
    "of the inner two": reduction("sum", (1, 2), CUBE, ({"n": 2, "m": 3, "k": 17},)),
    "of both ends": reduction("sum", (0, 2), CUBE, ({"n": 3, "m": 2, "k": 33},)),
    "of everything": reduction("sum", (0, 1), sizes=nm((3, 33), (1, 1), (4, 1025))),
    "of nothing": reduction("sum", (0,), sizes=nm((0, 3))),
    "of flags": Case(
        lambda x: (op.any(x > 1, axes=(0,)), op.all(x > -1, axes=(1,)), op.any(x > 2, axes=(0, 1))),
        (spec(MATRIX),),
        nm((3, 70)),
    ),
    "of integers": Case(
        lambda i: (op.sum(i, axes=(1,)), op.amax(i, axes=(0,)), op.prod(i, axes=(0,))),
        (spec(FULL, "int64"),),
        nm((3, 20)),
    ),
    "in float64": Case(lambda x: op.mean(x, axes=(0,)), (spec(MATRIX, "float64"),), nm((258, 3))),
    "softmax": Case(lambda x: op.softmax(x, axis=1), (spec(FULL),), ALONG[:4]),
    "softmax across": Case(lambda x: op.softmax(x, axis=0), (spec(FULL),), ACROSS[:3]),
    "layer norm": Case(layer_norm, (spec((N, 33)), spec((33,))), n(2, 1, 5)),
    "variance": reduction("var", (0,), sizes=nm((19, 5)), keepdims=True, correction=1),
    "two of one value": Case(
        lambda x: (op.sum(x * x, axes=(1,)), op.amax(op.abs(x), axes=(1,))), (spec(FULL),)
    ),
    "positions": Case(
        lambda i: (op.argmax(i, axis=0), op.argmin(i, axis=1, keepdims=True), op.argmax(i)),
        (spec(FULL, "int64"),),
        nm((4, 18)),
    ),
}

WINDOWS = {
    "greatest": Case(
        lambda x: op.relu(op.max_pool2d(x, kernel=(3, 2), stride=(2, 2), **PAD, ceil_mode=True)),
        (spec(IMAGE),),
    ),
    "averages": Case(
        lambda x: op.avg_pool2d(
            x, kernel=(2, 3), stride=(1, 2), padding=((1, 0), (1, 1)), count_include_pad=False
        ),
        (spec(IMAGE),),
    ),
    "averages with the padding": Case(
        lambda x: op.avg_pool2d(op.tanh(x), kernel=(3, 3), stride=(2, 2), padding=((1, 1), (1, 1))),
        (spec(IMAGE),),
    ),
    "positions": Case(
        lambda x: op.max_pool2d_index(x, kernel=(2, 3), stride=(1, 2), **PAD), (spec(IMAGE),)
    ),
    "gradient of the greatest": Case(
        lambda x, g: op.max_pool2d_grad(x, g, kernel=(2, 2), stride=(2, 3)),
        (spec(IMAGE), spec((N, 3, 2, 2))),
    ),
    "gradient of averages": Case(
        lambda g: op.avg_pool2d_grad(g, input_shape=(5, 7), kernel=(2, 2), stride=(2, 3)),
        (spec((N, 3, 2, 2)),),
    ),
    "scattered sums": Case(
        lambda x, i, s: op.scatter_add(x, i, s, axis=0),
        (spec((4, M)), spec((N, M), "int64"), spec((N, M))),
        nm((6, 3)),
    ),
}


def weights(*shape):
    return np.random.default_rng(1).normal(size=shape).astype("float32")


def conv(x, *shape, residual=None, **attrs):
    """A convolution with a bias and a ReLU, and what is added between."""
    attrs = {"stride": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1), "groups": 1} | attrs
    y = op.conv2d(x, weights(*shape), **attrs) + weights(shape[0], 1, 1)
    return op.relu(y if residual is None else y + residual)


def linear(columns):
    def function(x, y):
        return op.relu(op.linear(x, weights(columns, 5), weights(columns)) + y)

    return Case(function, (spec((N, 5)), spec((N, columns))), n(2, 1, 6, 7, 14, 15, 0))


CONTRACTIONS = {
    **{f"{columns} columns": linear(columns) for columns in (1, 15, 17, 33)},
    "product": Case(lambda x, y: x @ y, (spec((N, M)), spec((M, K))), ({"n": 3, "m": 5, "k": 33},)),
    "products": Case(
        lambda x, y: op.tanh(x @ op.transpose(y, axes=(0, 2, 1))),
        (spec((2, N, 4)), spec((2, M, 4))),
        nm((3, 5), (1, 33)),
    ),
    "strided": Case(
        lambda x: conv(op.tanh(x), 18, 6, 3, 3, stride=(2, 2), padding=((1, 1), (0, 2))),
        (spec((N, 6, 5, 6)),),
    ),
    "grouped": Case(lambda x: conv(x, 12, 3, 3, 3, groups=2), (spec((N, 6, 4, 5)),)),
    "residual": Case(
        lambda x: conv(y := conv(x, 9, 5, 1, 1, padding=((0, 0),) * 2), 9, 9, 3, 3, residual=y),
        (spec((N, 5, 3, 5)),),
    ),
    "depthwise": Case(
        lambda x: conv(x, 17, 1, 3, 3, groups=17, stride=(1, 2), residual=weights(17, 1, 1)),
        (spec((N, 17, 4, 7)),),
    ),
    "planes": Case(lambda x: conv(x, 6, 2, 3, 5), (spec((1, 2, 5, 37)),), ({},)),
    "planes beyond which lie more zeros than the kernel has lines": Case(
        lambda x: conv(x, 6, 2, 3, 5, padding=((5, 4), (1, 2))), (spec((1, 2, 3, 18)),), ({},)
    ),
    "a plane between zeros": Case(
        lambda x: conv(x, 1, 2, 5, 3, padding=((4, 3), (1, 1))), (spec((1, 2, 5, 18)),), ({},)
    ),
    "two tiles of planes between zeros": Case(
        lambda x: conv(x, 8, 1, 4, 3, padding=((2, 3), (1, 1))), (spec((2, 1, 4, 33)),), ({},)
    ),
    "planes and a sum": Case(
        lambda x: conv(y := conv(x, 4, 2, 3, 3), 4, 4, 3, 3, residual=y),
        (spec((1, 2, 3, 19)),),
        ({},),
    ),
    "pooled planes": Case(
        lambda x: op.max_pool2d(conv(x, 3, 1, 3, 3), kernel=(2, 2), stride=(2, 2)),
        (spec((1, 1, 5, 35)),),
        ({},),
    ),
    "pooled channels last": Case(
        lambda x: op.max_pool2d(conv(x, 65, 3, 1, 1), kernel=(3, 3), stride=(2, 2)),
        (spec((N, 3, 4, 5)),),
    ),
}

CASES = {
    f"{kind}: {name}": case
    for kind, cases in {
        "loops": LOOPS,
        "reductions": REDUCTIONS,
        "windows": WINDOWS,
        "contractions": CONTRACTIONS,
    }.items()
    for name, case in cases.items()
}


def arguments(case, sizes):
    rng, found = np.random.default_rng(7), {}
    for node in case.program.graph.inputs:
        shape = tuple(s if isinstance(s, int) else sizes[str(s)] for s in node.shape)
        floats = node.dtype.startswith("float")
        values = rng.normal(size=shape) if floats else rng.integers(0, 4, shape)
        found[node.name] = values.astype(node.dtype)
    return found


def compare(results, expected):
    for got, want in zip(results, expected, strict=True):
        assert (got.dtype, got.shape) == (want.dtype, want.shape)
        tolerance = {"float32": 2e-5, "float64": 1e-12}.get(got.dtype.name, 0)
        np.testing.assert_allclose(got, want, tolerance, tolerance)


@pytest.mark.parametrize("name", CASES)
def test_python_and_native_agree_with_the_reference(name):
    case = CASES[name]
    for number, sizes in enumerate(case.sizes):
        arrays = arguments(case, sizes)
        expected = case.program.reference(arrays)
        results, _ = case.program.run(arrays)
        compare(results, expected)
        for threads in (2, 3):
            for got, want in zip(
                case.program.run(arrays, threads=threads)[0], results, strict=True
            ):
                np.testing.assert_array_equal(got, want)
        if number == 0:
            compare(case.program.run(arrays, "python", threads=2)[0], expected)


#: Of what is vector code by LLVM's making one of each form, of the tiles, which are ours, all.
PORTABLE = [
    *("loops: one loop", "loops: types", "reductions: sums along", "reductions: sums across"),
    *("reductions: softmax", "windows: greatest", "windows: averages"),
    *(name for name in CASES if name.startswith("contractions")),
]


@pytest.mark.parametrize(
    "level", [isa for isa in runnable() if isa is not host()], ids=lambda isa: isa.name
)
@pytest.mark.parametrize("name", PORTABLE)
def test_every_level_agrees_with_the_reference(name, level):
    case = CASES[name]
    arrays = arguments(case, case.sizes[-1])
    compare(case.program.run(arrays, isa=level)[0], case.program.reference(arrays))


@pytest.mark.parametrize("name", ["sums along", "sums across", "of both ends", "of everything"])
def test_bits_of_sums_are_those_of_every_level(name):
    case = REDUCTIONS[name]
    arrays = arguments(case, case.sizes[-1])
    first, *others = (case.program.run(arrays, isa=isa)[0][0] for isa in runnable())
    for other in others:
        np.testing.assert_array_equal(first, other)


@pytest.mark.parametrize("count", [1, 3, 4, 6, SHORT, SHORT + 1])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_few_elements_are_combined_as_an_unknown_number_of_them_is(count, dtype, rng):
    def reductions(x):
        kept = op.sum(x, axes=(0,), keepdims=False)
        return kept * 2.0, op.mean(x, axes=(0,)), op.amax(x, axes=(0,)), op.prod(x, axes=(0,))

    def rounded(x):
        """Sums of float32 in a kernel of float64."""
        return op.cast(op.sum(x, axes=(0,)), dtype="float64") * 3.0, op.mean(x, axes=(0,))

    compute = {"float32": reductions, "float64": rounded}[dtype]
    x = rng.normal(size=(count, WIDTH + 3)).astype("float32")
    x[-1, :2] = np.nan, -0.0
    known, unknown = (Program(compute, spec(shape)) for shape in ((count, M), FULL))
    results, _ = known.run({"x": x})
    for other in (unknown.run({"x": x})[0], known.run({"x": x}, threads=3)[0]):
        for got, want in zip(other, results, strict=True):
            np.testing.assert_array_equal(got, want)
    both = known.run({"x": x}, "python")[0], known.reference({"x": x})
    compare(*([each.astype("float32") for each in found] for found in both))


# Element types.


def test_what_is_float64_in_between_only_keeps_its_digits():
    """Between integers, flags and float32, in one kernel: literals are float64 too."""
    x = np.array([0, 1, 3])
    double, single = (partial(op.cast, dtype=dtype) for dtype in ("float64", "float32"))

    def scaled(x):
        return op.cast(double(x) * 16777217.0, dtype="int64")

    def apart(x):
        return single(double(x) - 0.1), single(double(x) + -0.1)

    def reduced(x):
        found = (getattr(op, name)(double(x), axes=(0,)) for name in ("sum", "amax", "prod"))
        return [single(each * 0.1) for each in found]

    np.testing.assert_array_equal(dlc.jit(scaled)(x), x * 16777217)
    for found in dlc.jit(apart)(np.float32([0.1])):
        np.testing.assert_array_equal(found, np.float32(np.float64(np.float32(0.1)) - 0.1))
    for count in (3, SHORT + 1):
        for dtype in ("bool", "uint8"):
            ones = np.ones((count, 5), dtype)
            for found, total in zip(dlc.jit(reduced)(ones), (count, 1, 1), strict=True):
                np.testing.assert_array_equal(found, np.full(5, total * 0.1, "float32"))


# What is special.


def test_nan_wins_and_the_first_of_equals_is_its_position(rng):
    program = Program(
        lambda x: (op.argmax(x, axis=1), op.argmin(x, axis=0), op.amax(x, axes=(0,))), spec(FULL)
    )
    x = rng.integers(0, 3, (6, 40)).astype("float32")
    x[1, 7] = x[1, 9] = x[4, 0] = np.nan
    expected = program.reference({"x": x})
    assert expected[0][1] == 7
    for way in ("python", "compiled"):
        for got, want in zip(program.run({"x": x}, way)[0], expected, strict=True):
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("way", ["python", "compiled"])
@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64"])
def test_integers_wrap_around_wherever_they_are_read(dtype, way):
    """Also where no memory of their type cuts them to size, and comparisons could be foreseen."""

    def function(x):
        made = op.cast(x * 3 + 1, dtype="float64"), op.amax(x * 2, axes=(0,))
        return x + 1 > x, (x * 5) // 5, x * 2 - 3 > 100, -x, *made

    program = Program(function, spec(FULL[:1], dtype))
    limits = np.iinfo(dtype)
    x = np.array([1, 2, 3, limits.max, limits.max - 1, limits.min, limits.max // 3] * 5, dtype)
    name = program.graph.inputs[0].name
    results, _ = program.run({name: x}, way)
    with np.errstate(over="ignore"):
        exact = program.reference({name: x})
    for got, want in zip(results, exact, strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("way", ["python", "compiled"])
def test_an_index_out_of_range_is_clamped_and_reported(way):
    program = Program(lambda x, i: op.take(x, i, axis=0) * 2, spec((4, 3)), spec((2, M), "int64"))
    x, i = np.ones((4, 3), "float32"), np.array([[0, 3, 1], [2, 4, -1]])
    results, header = program.run({"x": x, "i": i}, way)
    assert (results[0] == 2).all()
    assert header[0] % (1 << 16) == 1
    assert (header[0] >> 16, header[1]) in ((4, 4), (5, -1))


def test_an_index_outside_is_told_where_it_stands():
    """Around it lie elements that take none, whose guarded loads meet the same index."""
    pads = {"low": (2, 0), "high": (1, 0), "value": 7.0}
    program = Program(
        lambda x, i: op.pad(op.take(x, i, axis=0), **pads), spec((4, 3)), spec((3,), "int64")
    )
    x, i = np.ones((4, 3), "float32"), np.array([9, 0, 3])
    for way in ("python", "compiled"):
        (result,), header = program.run({"x": x, "i": i}, way)
        assert (header[0] >> 16, header[1]) == (0, 9)
        assert (result[[0, 1, 5]] == 7).all()
        _, header = program.run({"x": x, "i": np.array([0, 1, 2])}, way)
        assert header[0] == 0


@pytest.mark.parametrize("name", ["i0", "i1", "h", "chunk", "row"])
def test_a_size_that_is_called_like_a_loop(name, rng):
    """The loop over 9 rows has the very range of this size."""
    columns = dlc.Dim(name, 0, 8)
    program = Program(
        lambda x: op.pad(op.square(x), low=(0, 0), high=(0, 2), value=1.0), spec((9, columns))
    )
    for size in (3, 8):
        x = rng.normal(size=(9, size)).astype("float32")
        (result,), _ = program.run({"x": x})
        np.testing.assert_array_equal(result, np.pad(x * x, ((0, 0), (0, 2)), constant_values=1))


# Accuracy.


def worst(program, x, axes):
    """The largest error of a sum, in units of u times the sum of absolute values."""
    (result,), _ = program.run({"x": x})
    exact, size = x.sum(axes, dtype="float64"), np.abs(x).sum(axes, dtype="float64")
    return float(np.max(np.abs(result - exact) / size)) * 2**24


LARGE = {
    "along": ((1,), (1, 1_000_000), BLOCK // LANES + 4 + 10),
    "across": ((0,), (1_000_000, 2), RUN + 12),
    "both": ((0, 1), (1000, 1000), BLOCK // LANES + 4 + 10),
    "many short runs": ((0, 1), (200_000, 5, 2), 5 + 18),
}


@pytest.mark.parametrize("name", LARGE)
def test_a_million_summands_lose_no_more_than_a_tree_of_sums(name, rng):
    """|s - s64| <= gamma_n sum |x|, n the longest way through the tree (Higham, section 4.2)."""
    axes, shape, depth = LARGE[name]
    program = Program(lambda x: op.sum(x, axes=axes), dlc.TensorSpec(shape))
    constant = np.full(shape, 0.1, "float32")  # its error adds up, rather than cancels
    for x in (constant, rng.random(shape, "float32"), rng.normal(size=shape).astype("float32")):
        assert worst(program, x, axes) <= depth
