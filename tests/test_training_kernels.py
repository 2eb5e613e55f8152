"""Kernels of training that are no contractions, three ways: the reference, Python, and compiled.

Statistics of batches, gradients of pooling, siblings in one kernel; same bits for any number of
threads, errors within bounds, NaN and infinities as in PyTorch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pytest
import torch
from helpers.schedules import labels, main
from helpers.three_ways import Program

import dlc
from dlc import functional as F
from dlc.backends.numba_cpu.reduce import BLOCK, RUN, SHARE, WIDTH
from dlc.ir.pattern import op

N = dlc.Dim("n", 1, 5000)


def spec(*shape, dtype="float32"):
    return dlc.TensorSpec(shape, dtype)


@dataclass(eq=False)
class Case:
    """A function, its arguments, and the batch sizes at which it is compared."""

    function: Callable
    specs: tuple
    sizes: tuple = (2,)

    @cached_property
    def program(self):
        return Program(self.function, *self.specs)


def last(x):
    """A value that lies channels last: what a 1x1 convolution by the identity gives."""
    weight = np.eye(x.shape[1], dtype=x.dtype)[:, :, None, None]
    attrs = {"padding": ((0, 0), (0, 0)), "dilation": (1, 1), "groups": 1}
    return op.conv2d(x, weight, stride=(1, 1), **attrs)


def statistics(axes):
    return lambda x: (op.mean(x, axes=axes), op.variance(x, axes=axes), op.sum(x, axes=axes))


def pooled(layout, masked=True, **attrs):
    def function(x, g):
        x = layout(op.relu(x))
        made = op.max_pool2d_grad(x, g, **attrs)
        return op.where(x <= 0.0, 0.0, made) * 2 if masked else made

    return function


def spread(layout, shape, **attrs):
    def function(g):
        return op.avg_pool2d_grad(layout(g), input_shape=shape, **attrs) + 1

    return function


def scaled(view):
    """A gradient of pooling, multiplied by what is seen of a value that lies channels last."""

    def function(x, g, s):
        return op.max_pool2d_grad(last(x), last(g), **TWO) * view(last(s))

    return function


TWO = {"kernel": (2, 2), "stride": (2, 2)}
THREE = {"kernel": (3, 3), "stride": (2, 2), "padding": ((1, 1), (1, 1))}
EDGES = (1, 2, RUN - 1, RUN, RUN + 1, RUN * SHARE + 3)

CASES = {
    "statistics of columns": Case(statistics((0,)), (spec(N, 17),), EDGES),
    "of many columns": Case(statistics((0,)), (spec(N, WIDTH + 1),), (RUN + 2,)),
    "of columns in float64": Case(statistics((0,)), (spec(N, 3, dtype="float64"),), EDGES[2:]),
    "of rows": Case(statistics((1,)), (spec(3, N),), (1, 17, BLOCK, BLOCK + 1, 3 * BLOCK + 5)),
    "of planes": Case(statistics((0, 2, 3)), (spec(N, 3, 5, 7),), (1, 2, 40)),
    "of channels last": Case(
        lambda x: statistics((0, 2, 3))(last(x)), (spec(N, 18, 5, 7),), (1, 2, 40)
    ),
    "of everything": Case(statistics((0, 1)), (spec(N, 33),), (1, 40)),
    "two sums": Case(
        lambda x, g, m: (
            op.sum(h := op.where(x <= 0.0, 0.0, g), axes=(0,)),
            op.sum(h * (x - m), axes=(0,)) * 2,
        ),
        (spec(N, 19), spec(N, 19), spec(19)),
        (3, RUN * SHARE + 1),
    ),
    "pairs of planes": Case(pooled(lambda x: x, **TWO), (spec(N, 2, 5, 35), spec(N, 2, 2, 17))),
    "pairs of channels": Case(
        pooled(last, **TWO), (spec(N, WIDTH + 3, 4, 5), spec(N, WIDTH + 3, 2, 2))
    ),
    "pairs of few channels": Case(pooled(last, **TWO), (spec(N, 6, 4, 5), spec(N, 6, 2, 2))),
    "overlapping planes": Case(pooled(lambda x: x, **THREE), (spec(N, 2, 6, 5), spec(N, 2, 3, 3))),
    "overlapping channels": Case(
        pooled(last, **THREE), (spec(N, WIDTH + 3, 5, 6), spec(N, WIDTH + 3, 3, 3))
    ),
    "gaps": Case(
        pooled(last, masked=False, kernel=(1, 2), stride=(3, 2)),
        (spec(N, 17, 7, 6), spec(N, 17, 3, 3)),
    ),
    "rounded up": Case(
        pooled(last, kernel=(2, 2), stride=(2, 2), ceil_mode=True),
        (spec(N, 17, 5, 3), spec(N, 17, 3, 2)),
    ),
    "by a number a channel, as large as the gradient": Case(
        scaled(lambda s: s), (spec(N, 17, 2, 2), spec(N, 17, 1, 1), spec(N, 17, 1, 1))
    ),
    "by lines for columns": Case(
        scaled(lambda s: op.transpose(s, axes=(0, 1, 3, 2))),
        (spec(N, 17, 4, 4), spec(N, 17, 2, 2), spec(N, 17, 4, 4)),
    ),
    "by whole numbers": Case(
        scaled(lambda s: op.cast(op.cast(s * 9, dtype="int64"), dtype="float32")),
        (spec(N, 17, 4, 4), spec(N, 17, 2, 2), spec(N, 17, 4, 4)),
    ),
    "shares of channels": Case(spread(last, (4, 5), **TWO), (spec(N, 17, 2, 2),)),
    "shares of overlapping windows": Case(
        spread(last, (6, 5), count_include_pad=False, **THREE), (spec(N, 17, 3, 3),)
    ),
    "windows at every edge": Case(
        lambda x: (op.max_pool2d(x, **THREE), op.max_pool2d(last(x), **THREE)),
        (spec(N, 18, 6, 37),),
    ),
    "averages at every edge": Case(
        lambda x: (op.avg_pool2d(x, **THREE), op.avg_pool2d(last(x), **THREE) * 2),
        (spec(N, 18, 5, 36),),
    ),
}


def arguments(case, size):
    rng = np.random.default_rng(7)
    found = {}
    for node in case.program.graph.inputs:
        shape = tuple(s if isinstance(s, int) else size for s in node.shape)
        found[node.name] = rng.normal(1.0, 2.0, shape).astype(node.dtype)
    return found


@pytest.mark.parametrize("name", CASES)
def test_python_and_native_agree_with_the_reference(name):
    case = CASES[name]
    for number, size in enumerate(case.sizes):
        arrays = arguments(case, size)
        results, _ = case.program.run(arrays)
        for got, want in zip(results, case.program.reference(arrays), strict=True):
            tolerance = 1e-11 if got.dtype == np.float64 else 2e-5
            np.testing.assert_allclose(got, want, tolerance, tolerance)
        for other, _ in (case.program.run(arrays, threads=threads) for threads in (2, 3)):
            for got, want in zip(other, results, strict=True):
                np.testing.assert_array_equal(got, want)
        if number == 0:
            for got, want in zip(case.program.run(arrays, "python")[0], results, strict=True):
                np.testing.assert_allclose(got, want, 2e-5, 2e-5)


# Errors of sums.


def test_column_sums_are_as_near_as_pairwise_ones():
    x = np.full((1 << 20, 2), 0.1, np.float32)
    exact = x.astype(np.float64).sum(0)
    total = dlc.compile(lambda x: op.sum(x, axes=(0,)), spec(*x.shape))(x)
    assert (np.abs(total - exact) <= 16 * np.finfo("float32").eps / 2 * exact).all()


@pytest.mark.parametrize("mean", [0.0, 1e3, -1e5])
def test_a_variance_far_from_zero(mean):
    rng = np.random.default_rng(0)
    x = rng.normal(mean, 1.0, (20000, 7)).astype(np.float32)
    spread = dlc.compile(lambda x: op.variance(x, axes=(0,)), spec(*x.shape))(x)
    exact = x.astype(np.float64).var(0)
    rounding = np.finfo("float32").eps / 2
    # Of the distances themselves, and of the mean that they are taken from.
    bound = 80 * rounding * exact + (40 * rounding * np.abs(mean)) ** 2 + rounding * abs(mean) * 4
    assert (np.abs(spread - exact) <= bound).all()


def test_nan_and_infinity_reach_the_statistics_of_their_channel_only():
    x = np.random.default_rng(0).normal(size=(RUN + 5, 4)).astype(np.float32)
    x[3, 1], x[RUN + 1, 2] = np.nan, np.inf
    mean, spread = dlc.compile(
        lambda x: (op.mean(x, axes=(0,)), op.variance(x, axes=(0,))), spec(*x.shape)
    )(x)
    assert np.isfinite(mean[[0, 3]]).all()
    assert np.isfinite(spread[[0, 3]]).all()
    assert np.isnan(mean[1])
    assert mean[2] == np.inf
    assert np.isnan(spread[[1, 2]]).all()


@pytest.mark.parametrize("attrs", [TWO, THREE], ids=["apart", "overlapping"])
@pytest.mark.parametrize("layout", [lambda x: x, last], ids=["planes", "channels"])
def test_the_winner_of_ties_and_nan_is_pytorch_s(attrs, layout):
    rng = np.random.default_rng(5)
    x = rng.integers(0, 3, (2, 18, 6, 6)).astype(np.float32)
    if layout is not last:  # a convolution spreads NaN to all channels
        x[rng.random(x.shape) < 0.1] = np.nan
        x[rng.random(x.shape) < 0.1] = -np.inf
    g = rng.normal(size=(2, 18, 3, 3)).astype(np.float32)
    made = dlc.compile(
        lambda x, g: op.max_pool2d_grad(layout(x), g, **attrs), spec(*x.shape), spec(*g.shape)
    )(x, g)
    leaf = torch.tensor(x, requires_grad=True)
    size = attrs["kernel"], attrs["stride"], 1 if attrs is THREE else 0
    y = torch.nn.functional.max_pool2d(leaf, *size)
    (expected,) = torch.autograd.grad(y, leaf, torch.tensor(g))
    np.testing.assert_allclose(made, expected.numpy(), 1e-6, 1e-6)


# Which kernels there are.


def test_batch_norm_reads_memory_twice_each_way():
    def step(x, g, w, b):
        y = op.batch_norm_train(x, w, b, eps=1e-5).project(0)
        z = F.relu(y)
        count, away = 8 * 25, x - op.mean(x, axes=(0, 2, 3), keepdims=True)
        h = op.where(z <= 0.0, 0.0, g)
        total = op.sum(h, axes=(0, 2, 3), keepdims=True)
        along = op.sum(h * away, axes=(0, 2, 3), keepdims=True)
        return z, h - total / count - away * along

    image, vector = spec(8, 6, 5, 5), spec(6)
    made = main(step, image, image, vector, vector)
    whole = [g for g in made.groups if any(n.tensor_type.count == 1200 for n in g.inputs)]
    assert len(whole) <= 5, labels(made)  # the mean with kept axes is another node


def test_a_dear_scalar_is_computed_once():
    def step(x, t):
        return x * op.sqrt(1.0 - op.pow(t, 0.5)), x + 1

    assert labels(main(step, spec(1000), spec())) == ["pow+sub+sqrt", "mul+add"]


def test_siblings_need_not_be_neighbours():
    def step(x, y):
        first = op.tanh(x)
        return first, op.exp(y), x * 2, op.sum(op.exp(y), axes=(0,))

    names = labels(main(step, spec(40), spec(40)))
    assert "tanh+mul" in names


def test_a_kernel_between_keeps_siblings_apart():
    def step(x):
        y = op.tanh(x)
        return y, x * op.sum(y, axes=(0,))  # reads x as the first does, and needs it

    assert labels(main(step, spec(40))) == ["tanh", "sum", "mul"]


def test_a_cheap_value_is_computed_where_it_is_read():
    def step(x, g):
        h = op.where(x <= 0.0, 0.0, g)
        return op.sum(h, axes=(0,)), h * 2

    names = labels(main(step, spec(40, 30), spec(40, 30)))
    assert names == ["le+where+sum", "le+where+mul"]


def test_logsumexp_is_one_kernel():
    assert len(labels(main(lambda x: op.logsumexp(x, axes=(1,)), spec(32, 64)))) == 1


def test_the_gradient_of_layer_norm_is_statistics_rows_and_columns():
    def gradient(x, w, b, g):
        loss = dlc.grad(lambda x, w, b: (op.layer_norm(x, w, b, ndim=1) * g).sum(), (0, 1, 2))
        return loss(x, w, b)

    vector = spec(64)
    names = labels(main(gradient, spec(32, 64), vector, vector, spec(32, 64)))
    assert len(names) == 3, names


def test_an_embedding_s_gradient_is_one_kernel_that_owns_its_rows():
    def gradient(table, i, g):
        return dlc.grad(lambda table: (op.take(table, i, axis=0) * g).sum())(table)

    specs = spec(50, 17), spec(40, dtype="int64"), spec(40, 17)
    assert labels(main(gradient, *specs)) == ["scatter_add"]
    rng = np.random.default_rng(2)
    arrays = [rng.normal(size=s.shape).astype("float32") for s in specs]
    arrays[1] = rng.integers(0, 9, 40)
    expected = np.zeros((50, 17))
    np.add.at(expected, arrays[1], arrays[2].astype(np.float64))
    made = [dlc.compile(gradient, *specs, threads=threads)(*arrays) for threads in (1, 2)]
    np.testing.assert_array_equal(*made)
    np.testing.assert_allclose(made[0], expected, 1e-5, 1e-5)
