"""Depthwise convolution: every kernel, stride and dilation against float64, edges, threads."""

import itertools

import numpy as np
import pytest
import torch
from helpers.native_kernels import LEVELS, bound, guarded, run

from dlc.backends.native.isa import LEVELS as ALL_LEVELS
from dlc.backends.native.python_twin import run as run_twin
from dlc.backends.numba_cpu.depthwise import ROWS, Depthwise, DepthwiseTile, depthwise_sizes
from dlc.backends.numba_cpu.vectors import Epilogue, Operand

EPILOGUE = Epilogue(
    "relu(acc + bias + shortcut)", (Operand("bias", "column"), Operand("shortcut", "full"))
)
SWISH = Epilogue("acc * sigmoid(acc)")

levels = pytest.mark.parametrize("isa", LEVELS, ids=lambda isa: isa.name)
dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


class Case:
    """One convolution: its arrays, the arguments of its kernel, and what it must give."""

    def __init__(self, rng, isa, dtype, shape, kernel, stride, dilation, epilogue=EPILOGUE):
        tile = DepthwiseTile(isa, dtype, kernel[1], stride[1], dilation[1], epilogue)
        self.isa, self.kernel, self.tile = isa, Depthwise(tile).kernel, tile
        images, _, _, channels = shape
        self.x = rng.standard_normal(shape).astype(dtype)
        self.w = rng.standard_normal((*kernel, channels)).astype(dtype)
        self.bias = rng.standard_normal(channels).astype(dtype)
        options = {"stride": stride, "dilation": dilation, "groups": channels}
        exact, size = (self.reference(convert, options) for convert in (np.asarray, np.abs))
        lines, pixels = exact.shape[1:3]
        self.shortcut = rng.standard_normal(exact.shape).astype(dtype)
        self.acc, self.expected = exact, np.maximum(exact + self.bias + self.shortcut, 0)
        size = size + np.abs(self.bias) + np.abs(self.shortcut)
        self.limit = bound(size, kernel[0] * kernel[1], dtype, roundings=2)
        # The result lies inside a larger image, which stays as it is.
        self.outer, self.check = guarded((images, lines + 1, pixels + 2, channels), dtype)
        self.y = self.outer[:, :lines, 1 : pixels + 1]
        self.values = {"x": self.x, "w": self.w, "y": self.y, "bias": self.bias}
        self.values |= {"shortcut": self.shortcut} | depthwise_sizes(
            epilogue,
            shape=(images, lines, pixels),
            columns=channels,
            lines=kernel[0],
            x_strides=steps(self.x),
            y_strides=steps(self.outer),
            stride=stride[0],
            dilation=dilation[0],
            fulls={"shortcut": steps(self.shortcut)},
        )

    def reference(self, convert, options):
        x, w = (convert(each).astype(np.float64) for each in (self.x, self.w))
        image = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
        weights = torch.from_numpy(np.ascontiguousarray(w.transpose(2, 0, 1))[:, None])
        return torch.nn.functional.conv2d(image, weights, **options).numpy().transpose(0, 2, 3, 1)

    def run(self, threads=1):
        """The result, after checking that nothing else was written."""
        self.outer[...] = np.nan
        run(self.kernel, self.isa, self.values, threads)
        self.check()
        lines, pixels = self.y.shape[1:3]
        outside = np.ones(self.outer.shape, bool)
        outside[:, :lines, 1 : pixels + 1] = False
        assert np.isnan(self.outer[outside]).all()
        return self.y.copy()


def steps(array):
    return tuple(step // array.itemsize for step in array.strides[:3])


@levels
@dtypes
def test_every_width_and_channel_count(rng, isa, dtype):
    lanes = isa.lanes(dtype)
    widths = {*range(1, ROWS + 2), 2 * ROWS, 2 * ROWS + 1}
    counts = (1, lanes - 1, lanes, lanes + 1, 4 * lanes + 3)
    for width, channels in itertools.product(widths, counts):
        shape = (1, 4, width + 2, channels)
        case = Case(rng, isa, dtype, shape, (3, 3), (1, 1), (1, 1))
        assert (np.abs(case.run() - case.expected) <= case.limit).all(), (width, channels)


@levels
@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"),
    [
        ((3, 3), (2, 2), (1, 1)),
        ((5, 5), (1, 1), (1, 1)),
        ((5, 5), (2, 2), (1, 1)),
        ((3, 3), (1, 1), (2, 2)),
        ((1, 7), (1, 3), (1, 1)),
        ((7, 1), (3, 1), (1, 1)),
        ((3, 2), (1, 2), (2, 3)),
    ],
)
def test_kernels_strides_and_dilations(rng, isa, kernel, stride, dilation):
    case = Case(rng, isa, "float32", (2, 13, 21, 150), kernel, stride, dilation)
    results = [case.run(threads) for threads in (1, 2, 3)]
    assert (np.abs(results[0] - case.expected) <= case.limit).all()
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


@levels
def test_long_expression(rng, isa):
    case = Case(rng, isa, "float32", (1, 5, 13, 21), (3, 3), (1, 1), (1, 1), SWISH)
    np.testing.assert_allclose(case.run(), case.acc / (1 + np.exp(-case.acc)), 1e-5, 1e-5)


def test_bits_are_those_of_every_fma_level():
    arguments = ("float32", (1, 5, 12, 37), (3, 3), (1, 1), (1, 1))
    fused = [isa for isa in LEVELS if isa.fma]
    results = [Case(np.random.default_rng(0), isa, *arguments).run() for isa in fused]
    assert all(np.array_equal(results[0], each) for each in results)


def test_source_runs_as_python(rng):
    isa = ALL_LEVELS["x86-64-v3"]
    case = Case(rng, isa, "float64", (2, 5, 12, 3), (3, 3), (1, 1), (1, 1))
    outer = np.full(case.outer.shape, np.nan)
    values = case.values | {"y": outer}
    arguments = [values[param.name] for param in case.kernel.params]
    for thread in range(2):
        twins = {case.tile.name: case.tile.twin()}
        run_twin(case.kernel.source, case.kernel.name, arguments, thread, 2, twins)
    lines, pixels = case.y.shape[1:3]
    np.testing.assert_allclose(outer[:, :lines, :pixels], case.expected, 1e-12)
