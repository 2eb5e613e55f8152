"""Winograd convolution: its mathematics, the kernel against its bound, where it is chosen."""

import itertools

import numpy as np
import pytest
import torch
from helpers.cases import constant, graph_of, param
from helpers.native_kernels import LEVELS, bound, guarded, run

import dlc
from dlc import nn
from dlc.backends import reference
from dlc.backends.native import objects
from dlc.backends.native.isa import LEVELS as ALL_LEVELS
from dlc.backends.native.python_twin import run as run_twin
from dlc.backends.numba_cpu.vectors import Epilogue, Operand
from dlc.backends.numba_cpu.winograd import Winograd, winograd_sizes
from dlc.driver import run_native
from dlc.ir import manager
from dlc.ir.pattern import op
from dlc.ir.sizes import Dim, as_size
from dlc.ir.types import tensor
from dlc.ir.values import Check
from dlc.ops import winograd as math
from dlc.passes.layout import AssignLayouts, layouts
from dlc.passes.select import SelectAlgorithms
from dlc.runtime import elf

BIAS = Epilogue("relu(acc + bias)", (Operand("bias", "column"),))
RESIDUAL = Epilogue(
    "relu(acc + bias + shortcut)", (Operand("bias", "column"), Operand("shortcut", "full"))
)
SWISH = Epilogue("acc * sigmoid(acc) + shortcut", (Operand("shortcut", "full"),))
ONE = ((1, 1), (1, 1))

levels = pytest.mark.parametrize("isa", LEVELS, ids=lambda isa: isa.name)
dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])
sizes_of_tiles = pytest.mark.parametrize("m", [2, 4])


# The mathematics.


@sizes_of_tiles
def test_the_matrices_convolve(rng, m):
    """In one dimension: A^T (G w * B^T d) is the convolution of d and w."""
    at, g, bt = math.matrices(m)
    d, w = rng.standard_normal(m + 2), rng.standard_normal(3)
    np.testing.assert_allclose(at @ ((g @ w) * (bt @ d)), np.correlate(d, w, "valid"), 1e-13)


@sizes_of_tiles
def test_constants_of_the_transforms_are_exact_in_float32(m):
    at, _, bt = math.matrices(m)
    for matrix in (at, bt, *(each.reshape(-1, 1) @ each.reshape(1, -1) for each in (at, bt))):
        np.testing.assert_array_equal(matrix, matrix.astype(np.float32))


@sizes_of_tiles
def test_magnitude_is_at_least_the_direct_sum(rng, m):
    x, w = rng.standard_normal((1, 3, 6, 7)), rng.standard_normal((2, 3, 3, 3))
    direct = exact(np.abs(x), np.abs(w), ONE)
    assert (math.magnitude(x, w, ONE, m) >= direct * (1 - 1e-12)).all()


def exact(x, w, padding):
    """A convolution in float64."""
    pads = (*padding[1], *padding[0])
    padded = torch.nn.functional.pad(torch.from_numpy(np.asarray(x, np.float64)), pads)
    return torch.nn.functional.conv2d(padded, torch.from_numpy(np.asarray(w, np.float64))).numpy()


# The kernel.


class Case:
    """One convolution: its arrays, the arguments of its kernel, and what it must give."""

    def __init__(self, rng, isa, dtype, m, shape, channels, epilogue=RESIDUAL, block=28):
        self.isa, self.winograd = isa, Winograd(isa, dtype, m, epilogue)
        self.kernel = self.winograd.kernel
        images, depth, height, width = shape
        image = rng.standard_normal(shape).astype(dtype)
        weights = rng.standard_normal((channels, depth, 3, 3)).astype(dtype)
        self.acc = exact(image, weights, ONE).transpose(0, 2, 3, 1)
        self.bias = rng.standard_normal(channels).astype(dtype)
        self.shortcut = rng.standard_normal(self.acc.shape).astype(dtype)
        size = math.magnitude(image, weights, ONE, m).transpose(0, 2, 3, 1)
        size = size + np.abs(self.bias) + np.abs(self.shortcut)
        self.limit = bound(size, depth, dtype, roundings=math.ROUNDINGS[m] + 2)
        x = padded(image, m)
        # The result lies inside a larger image, which stays as it is.
        self.outer, self.check = guarded((images, height + 1, width + 2, channels), dtype)
        self.y = self.outer[:, :height, 1 : width + 1]
        sizes = winograd_sizes(
            self.winograd,
            shape=(images, height, width),
            columns=channels,
            depth=depth,
            x_strides=steps(x),
            y_strides=steps(self.outer),
            fulls={"shortcut": steps(self.shortcut)},
            block=block,
        )
        self.values = {"x": x, "y": self.y, "w": math.transformed(weights, m).astype(dtype)}
        self.values |= {"bias": self.bias, "shortcut": self.shortcut, **sizes}

    def run(self, threads=1):
        """The result, after checking that nothing else was written."""
        dtype = self.outer.dtype.name
        self.outer[...] = np.nan
        scratch, check_scratch = guarded((self.values["share"] * threads,), dtype)
        run(self.kernel, self.isa, {**self.values, "scratch": scratch}, threads)
        self.check()
        check_scratch()
        _, height, width, _ = self.y.shape
        outside = np.ones(self.outer.shape, bool)
        outside[:, :height, 1 : width + 1] = False
        assert np.isnan(self.outer[outside]).all()
        return self.y.copy()

    def agree(self, threads=1):
        expected = np.maximum(self.acc + self.bias + self.shortcut, 0)
        assert (np.abs(self.run(threads) - expected) <= self.limit).all()


def padded(image, m):
    """An image NCHW in NHWC, with a ring of zeros and what tiles reach beyond it; then the slack
    that vectors of channels read.
    """
    images, depth, height, width = image.shape
    inner = (height + 2 + math.overhang(height, m), width + 2 + math.overhang(width, m))
    count = images * inner[0] * inner[1] * depth
    memory = np.full(count + 32, np.nan, image.dtype)
    x = memory[:count].reshape(images, *inner, depth)
    x[...] = 0
    x[:, 1 : height + 1, 1 : width + 1] = image.transpose(0, 2, 3, 1)
    return x


def steps(array):
    return tuple(step // array.itemsize for step in array.strides[:3])


@levels
@dtypes
@sizes_of_tiles
def test_every_ragged_edge(rng, isa, dtype, m):
    for height, width in itertools.product((1, m - 1, m, m + 1), (1, 2 * m - 1, 2 * m, 2 * m + 1)):
        Case(rng, isa, dtype, m, (2, 5, height, width), 7).agree()


@levels
@dtypes
@sizes_of_tiles
def test_every_channel_count(rng, isa, dtype, m):
    lanes = isa.lanes(dtype)
    for depth in (1, lanes - 1, lanes + 1, 64, 65, 130):
        Case(rng, isa, dtype, m, (1, depth, m + 1, m), 3).agree()
    for channels in (1, lanes, lanes + 1, 2 * lanes - 1, 32, 33, 70):
        Case(rng, isa, dtype, m, (1, 3, m, m + 1), channels).agree()


@levels
@sizes_of_tiles
def test_blocks_and_threads_do_not_change_bits(isa, m):
    """Parts that threads share evenly, and parts that they do not."""
    for channels, (block, threads) in itertools.product(
        (33, 64), ((1, 1), (3, 2), (28, 1), (28, 2), (28, 3), (200, 16))
    ):
        case = Case(
            np.random.default_rng(2), isa, "float32", m, (2, 70, 15, 13), channels, block=block
        )
        case.agree(threads)
        if (block, threads) == (1, 1):
            expected = case.run()
        np.testing.assert_array_equal(case.run(threads), expected)


@levels
def test_threads_that_share_many_columns_do_not_change_bits(isa):
    """Few tiles and many weights: threads in a row, in a grid, and more of them than parts; and
    parts that they do not share evenly.
    """
    for channels in (70, 128, 130):
        case = Case(np.random.default_rng(3), isa, "float32", 2, (1, 40, 7, 5), channels, block=5)
        expected = case.run()
        for threads in (2, 3, 4, 6, 9, 16):
            case.agree(threads)
            np.testing.assert_array_equal(case.run(threads), expected)


@dtypes
@sizes_of_tiles
@pytest.mark.parametrize("isa", ALL_LEVELS.values(), ids=lambda isa: isa.name)
def test_every_level_builds(isa, dtype, m):
    for transform in Winograd(isa, dtype, m, RESIDUAL).transforms:
        code = objects.build(transform.text(), [transform.name], isa, speed=0)
        assert elf.read(code).defined == {transform.name}
        assert not elf.read(code).undefined


def test_names_tell_functions_apart():
    names = [
        transform.name
        for isa, dtype, m, epilogue in itertools.product(
            ALL_LEVELS.values(), ("float32", "float64"), (2, 4), (BIAS, RESIDUAL)
        )
        for transform in Winograd(isa, dtype, m, epilogue).transforms
    ]
    # The input's has no epilogue.
    assert len(set(names)) == len(names) * 3 // 4


@levels
def test_no_images(rng, isa):
    case = Case(rng, isa, "float32", 4, (0, 3, 5, 5), 4)
    assert case.run(2).size == 0


@levels
@sizes_of_tiles
def test_long_expression(rng, isa, m):
    case = Case(rng, isa, "float32", m, (1, 20, 9, 6), 37, SWISH)
    expected = case.acc / (1 + np.exp(-case.acc)) + case.shortcut
    np.testing.assert_allclose(case.run(), expected, 1e-3, 1e-4)


@sizes_of_tiles
def test_bits_are_those_of_every_fma_level(m):
    fused = [isa for isa in LEVELS if isa.fma]
    results = [
        Case(np.random.default_rng(0), isa, "float32", m, (1, 70, 6, 9), 40).run() for isa in fused
    ]
    assert all(np.array_equal(results[0], each) for each in results)


@sizes_of_tiles
def test_the_result_may_take_the_place_of_what_it_adds(rng, m):
    case = Case(rng, LEVELS[-1], "float32", m, (1, 8, 7, 6), 9)
    expected = case.run()
    case.outer[...] = np.nan
    case.y[...] = case.shortcut
    scratch = np.empty(case.values["share"], np.float32)
    places = {f"shortcut_{unit}": case.values[f"y_{unit}"] for unit in ("image", "row", "pixel")}
    run(case.kernel, case.isa, case.values | places | {"shortcut": case.y, "scratch": scratch})
    np.testing.assert_array_equal(case.y, expected)


@sizes_of_tiles
def test_source_runs_as_python(rng, m):
    isa = ALL_LEVELS["x86-64-v3"]
    case = Case(rng, isa, "float64", m, (1, 3, m + 1, 2), 18, block=1)
    outer = np.full(case.outer.shape, np.nan)
    scratch = np.full(case.values["share"] * 2, np.nan)
    values = case.values | {"y": outer, "scratch": scratch}
    arguments = [values[param.name] for param in case.kernel.params]
    for thread in range(2):
        twins = {tile.name: tile.twin() for tile in case.kernel.tiles}
        run_twin(case.kernel.source, case.kernel.name, arguments, thread, 2, twins)
    _, height, width, _ = case.y.shape
    expected = np.maximum(case.acc + case.bias + case.shortcut, 0)
    np.testing.assert_allclose(outer[:, :height, :width], expected, 1e-11, 1e-11)


# Where it is chosen.

PLAIN = {"stride": (1, 1), "padding": ONE, "dilation": (1, 1), "groups": 1}


def chosen(shape, channels, kernel=(3, 3), **attrs):
    """The graph of a convolution after algorithms are chosen, and the tile of it, or 0."""

    def function(x):
        groups = attrs.get("groups", 1)
        return op.conv2d(x, param("w", channels, shape[1] // groups, *kernel), **{**PLAIN, **attrs})

    graph = SelectAlgorithms()(graph_of((tensor("float32", shape),), function))
    return graph, graph.outputs[0].attrs.get("m", 0)


@pytest.mark.parametrize(
    ("shape", "channels", "m"),
    [
        ((1, 64, 224, 224), 64, 4),
        ((1, 64, 56, 56), 64, 4),
        ((1, 128, 28, 28), 128, 4),
        ((1, 256, 14, 14), 256, 4),
        ((1, 512, 14, 14), 512, 4),
        ((8, 512, 7, 7), 512, 4),
        ((Dim("batch", 8, 64), 512, 7, 7), 512, 4),
        ((1, 512, 6, 6), 512, 2),  # half of a tile of 4 would lie outside
        ((1, 512, 2, 2), 512, 0),  # four times the weights for four pixels
        ((Dim("batch", 1, 64), 512, 2, 2), 512, 0),  # for the least of the range
        ((1, 3, 224, 224), 64, 0),  # too few channels for the transforms to pay
        ((1, 64, 56, 56), 4, 0),
    ],
)
def test_the_choice_follows_from_shapes(shape, channels, m):
    assert chosen(shape, channels)[1] == m


@pytest.mark.parametrize(
    "attrs",
    [
        {"stride": (2, 2)},
        {"stride": (1, 2)},
        {"dilation": (2, 1)},
        {"groups": 2},
        {"kernel": (3, 5)},
        {"kernel": (1, 1)},
    ],
    ids=str,
)
def test_other_convolutions_are_direct(attrs):
    assert chosen((1, 64, 56, 56), 64)[1] == 4
    assert chosen((1, 64, 56, 56), 64, **attrs)[1] == 0


@pytest.mark.parametrize(("size", "m"), [(56, 4), (6, 0)])
def test_the_transform_of_weights_that_are_given_in_a_call_counts(size, m):
    types = (tensor("float32", (1, 64, size, size)), tensor("float32", (64, 64, 3, 3)))
    graph = SelectAlgorithms()(graph_of(types, lambda x, w: op.conv2d(x, w, **PLAIN)))
    assert graph.outputs[0].attrs.get("m", 0) == m
    assert chosen((1, 64, size, size), 64)[1] > 0


def test_tiles_are_small_where_gradients_are_taken():
    types = (tensor("float32", (1, 64, 56, 56)), tensor("float32", (64, 64, 3, 3)))

    def both(x, w):
        y = op.conv2d(x, w, **PLAIN)
        return y, op.conv2d_input_grad(y, w, input_shape=(56, 56), **PLAIN)

    forward, backward = SelectAlgorithms()(graph_of(types, both)).outputs
    assert forward.attrs["m"] == backward.attrs["m"] == 2


def test_the_rewrite_keeps_values():
    def function(x):
        return op.conv2d(x, param("w", 40, 32, 3, 3), **{**PLAIN, "padding": ((0, 2), (1, 0))})

    for size in ((9, 17), (6, 6)):
        graph = graph_of((tensor("float32", (2, 32, *size)),), function)
        after, _ = manager.run(graph, [SelectAlgorithms()], check=Check(reference.run))
        assert after.outputs[0].op.name == "conv2d_winograd"


def test_halos_hold_what_tiles_read():
    """Zeros around the image as wide as the padding, and up to the end of the last tile."""

    def function(x):
        middle = op.relu(op.conv2d(x, param("w", 64, 64, 3, 3), **PLAIN))
        return op.conv2d(middle, param("u", 64, 64, 3, 3), **PLAIN)

    shape = (1, 64, as_size(Dim("rows", 30, 60)), 33)
    graph = graph_of((tensor("float32", shape),), function)
    graph = AssignLayouts()(SelectAlgorithms()(graph))
    places = layouts(graph)
    last = next(n for n in reversed(graph.nodes) if n.op.name == "conv2d_winograd")
    assert places[last.inputs[0]].order == (0, 2, 3, 1)
    assert places[last.inputs[0]].halo == ((0, 0), (0, 0), (1, 4), (1, 4))


# In a program.


class Blocks(nn.Module):
    """Convolutions that each read another halo, a residual sum, and a pooled image."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(16, 48, 3, padding=1), nn.Conv2d(48, 48, 3, padding=1)
        self.c, self.d = nn.Conv2d(48, 40, 3), nn.Conv2d(48, 40, 3, stride=2, padding=1)
        self.e = nn.Conv2d(40, 33, 3, padding=2)

    def forward(self, x):
        y = self.a(x).relu()
        y = (self.b(y) + y).relu()
        return self.c(y).relu(), self.e(self.d(y)).sigmoid()


def blocks():
    dlc.seed(0)
    return Blocks().eval()


@dtypes
@pytest.mark.parametrize("size", [(14, 14), (15, 9)])
def test_a_program(rng, size, dtype):
    """One compilation, several batches and numbers of threads, against float64."""
    model = blocks() if dtype == "float32" else blocks().double()
    spec = dlc.TensorSpec((Dim("batch", 2, 8), 16, *size), dtype)
    programs = [dlc.compile(model, spec, threads=threads) for threads in (1, 2, 3)]
    labels = [kernel.label.split(" ")[0] for kernel in programs[0].kernels]
    assert [label for label in labels if label.startswith("conv2d")] == [
        "conv2d_winograd+add+relu",
        "conv2d_winograd+add+add+relu",
        "conv2d_winograd+add+relu",
        "conv2d_direct+add",
        "conv2d_winograd+add+sigmoid",
    ]
    exact = dlc.compile(
        blocks().double(), dlc.TensorSpec(spec.shape, "float64"), target="reference"
    )
    tolerance = 1e-5 if dtype == "float32" else 1e-12
    for batch in (2, 3, 8):
        x = rng.normal(size=(batch, 16, *size)).astype(dtype)
        results = [program(x) for program in programs]
        for other in results[1:]:
            assert all(map(np.array_equal, other, results[0]))
        for result, expected in zip(results[0], exact(x.astype("float64")), strict=True):
            np.testing.assert_allclose(result, expected, tolerance, tolerance)


def test_its_flops_are_what_it_computes():
    """Fewer than those of the direct sum, so that a share of the peak is one of real work."""
    graph, m = chosen((1, 64, 56, 56), 64)
    node = graph.outputs[0]
    flops = node.op.flops(node.type, *(n.type for n in node.inputs), **node.attrs)
    assert m == 4
    assert flops == 2 * 14 * 14 * 36 * 64 * 64


@pytest.mark.parametrize(("depth", "size"), [(64, 28), (256, 14), (512, 14)])
def test_errors_of_layers(rng, depth, size):
    """On what a network computes with, in the mean: F(2x2, 3x3) rounds at most 1.5 times as much as
    the direct sum, F(4x4, 3x3) at most 5 times.
    """
    x = np.maximum(rng.standard_normal((1, depth, size, size)), 0).astype("float32")
    w = (rng.standard_normal((32, depth, 3, 3)) * (2 / (9 * depth)) ** 0.5).astype("float32")
    expected = exact(x, w, ONE)
    errors = {}
    for m in (0, 2, 4):
        graph = graph_of((tensor("float32", x.shape),), lambda a, m=m: layer(a, constant(w), m))
        errors[m] = np.abs(run_native(graph, [x])[0] - expected).mean()
    assert errors[2] <= 1.5 * errors[0]
    assert errors[4] <= 5 * errors[0]


def layer(x, w, m):
    """A convolution in tiles of m, or direct."""
    if m:
        u = op.pack_winograd(w, m=m, turned=False)
        return op.conv2d_winograd(x, u, channels=32, padding=ONE, m=m)
    packed = op.pack_conv(w, groups=1, planes=False)
    return op.conv2d_direct(x, packed, channels=32, planes=False, **PLAIN)
