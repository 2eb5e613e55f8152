"""Contractions, pooling and norms: what the generic test of the op table cannot express."""

import itertools

import numpy as np
import pytest
import torch

import dlc.ops  # noqa: F401  (fills the op table)
from dlc.backends.reference import run
from dlc.driver import run_native
from dlc.errors import ShapeError
from dlc.ir.graph import graph_of, topological
from dlc.ir.node import Builder, Node
from dlc.ir.op import OPS
from dlc.ir.sizes import Dim, as_size, evaluate
from dlc.ir.types import tensor

BATCH = Dim("batch", 1, 64)
ROWS = as_size(Dim("rows", 7, 300))


def apply(op: str, *types, **attrs) -> Node:
    builder = Builder()
    return builder.node(op, tuple(builder.input(f"x{i}", t) for i, t in enumerate(types)), attrs)


def f32(*shape):
    return tensor("float32", shape)


def ops_of(outputs) -> list[str]:
    return [node.op.name for node in topological(outputs) if node.inputs]


# Symbolic sizes.


def test_one_convolution_serves_all_sizes_of_a_dim():
    y = apply("conv2d", f32(BATCH, 3, ROWS, 32), f32(8, 3, 7, 3), stride=2, padding=(3, 1))
    assert y.shape[0] == as_size(BATCH)
    for rows in (7, 8, 299, 300):
        expected = torch.nn.functional.conv2d(
            torch.empty(1, 3, rows, 32), torch.empty(8, 3, 7, 3), stride=2, padding=(3, 1)
        )
        sizes = tuple(evaluate(size, {"batch": 1, "rows": rows}) for size in y.shape)
        assert sizes == expected.shape


def test_a_dim_too_small_for_the_kernel_is_refused_with_its_range():
    with pytest.raises(ShapeError, match=r"spans 9 rows .* \(rows is 7 to 300; raise the minimum"):
        apply("conv2d", f32(1, 3, ROWS, 32), f32(8, 3, 9, 3))


@pytest.mark.parametrize(
    ("name", "types", "attrs"),
    [
        ("matmul", [f32(BATCH, 4, ROWS), f32(ROWS, 8)], {}),
        ("matmul", [f32(ROWS), f32(BATCH, ROWS, 3)], {}),
        ("linear", [f32(BATCH, ROWS, 4), f32(3, 4), f32(3)], {}),
        ("conv2d", [f32(BATCH, 4, ROWS, 9), f32(6, 2, 3, 3)], {"groups": 2}),
        ("max_pool2d", [f32(BATCH, 3, ROWS, 9)], {"kernel": 2}),
        (
            "max_pool2d_grad",
            [f32(BATCH, 3, ROWS, 9), f32(BATCH, 3, ROWS - 1, 8)],
            {"kernel": 2, "stride": 1},
        ),
        ("avg_pool2d", [f32(BATCH, 3, ROWS, 9)], {"kernel": 2, "ceil_mode": True}),
        ("adaptive_avg_pool2d", [f32(BATCH, 3, ROWS, 9)], {"output_size": (1, 4)}),
        ("batch_norm", [f32(BATCH, 3, ROWS), f32(3), f32(3), f32(3), f32(3)], {}),
        ("layer_norm", [f32(BATCH, ROWS, 3), f32(ROWS, 3), f32(ROWS, 3)], {}),
    ],
)
def test_gradients_of_symbolic_sizes_have_the_types_of_the_operands(name, types, attrs):
    y = apply(name, *types, **attrs)
    g = y.builder.input("g", y.tensor_type)
    gradients = y.op.grad(g, y, *y.inputs, **y.attrs)
    for gradient, operand in zip(gradients, y.inputs, strict=True):
        assert gradient is None or gradient.type == operand.type


def test_batch_norm_in_training_has_gradients_through_each_output():
    y = apply("batch_norm_train", f32(BATCH, 3, ROWS), f32(3), f32(3))
    outputs = tuple(y.project(i) for i in range(3))
    g = tuple(y.builder.input(f"g{i}", output.tensor_type) for i, output in enumerate(outputs))
    for given in itertools.product((True, False), repeat=3):
        chosen = tuple(node if use else None for node, use in zip(g, given))
        for_x, for_weight, for_bias = y.op.grad(chosen, outputs, *y.inputs, **y.attrs)
        assert (for_x is not None) == any(given)
        assert for_x is None or for_x.type == y.inputs[0].type
        assert (for_weight is not None) == (for_bias is not None) == given[0]


def test_a_symbolic_channel_count_must_be_the_same_dim():
    channels = Dim("channels", 1, 8)
    assert apply("conv2d", f32(1, channels, 8, 8), f32(4, channels, 3, 3)).shape == (1, 4, 6, 6)
    with pytest.raises(ShapeError, match=r"cannot decide whether the sizes channels .* and 4"):
        apply("conv2d", f32(1, channels, 8, 8), f32(4, 4, 3, 3))


def test_matmul_of_a_symbolic_number_of_rows():
    assert str(apply("matmul", f32(BATCH, 512), f32(512, 10)).type) == "float32[batch, 10]"
    y = apply("matmul", f32(BATCH, 8, ROWS, 64), f32(BATCH, 8, 64, ROWS))
    assert str(y.type) == "float32[batch, 8, rows, rows]"


def test_matmul_promotes():
    y = apply("matmul", tensor("int64", (2, 3)), tensor("float64", (3, 4)))
    assert y.dtype == "float64"
    assert ops_of([y]) == ["cast", "matmul"]


def test_pooling_a_symbolic_size_follows_pytorchs_rule_in_both_modes():
    geometries = itertools.product((1, 2, 3, 5), (1, 2, 3, 4, 7), (0, 1, 2), (False, True))
    for kernel, stride, padding, ceil_mode in geometries:
        if padding > kernel // 2:
            continue
        attrs = {"kernel": kernel, "stride": stride, "padding": padding, "ceil_mode": ceil_mode}
        y = apply("max_pool2d", f32(1, 1, ROWS, ROWS), **attrs)
        for rows in (*range(7, 20), 300):
            expected = torch.nn.functional.max_pool2d(
                torch.empty(1, 1, rows, rows), kernel, stride, padding, ceil_mode=ceil_mode
            )
            assert evaluate(y.shape[2], {"rows": rows}) == expected.shape[2], (attrs, rows)


# Values.


def random_pooling(rng):
    kernel = tuple(rng.integers(1, 5, 2).tolist())
    return {
        "kernel": kernel,
        "stride": tuple(rng.integers(1, 5, 2).tolist()),
        "padding": tuple(tuple(rng.integers(0, k // 2 + 1, 2).tolist()) for k in kernel),
        "ceil_mode": bool(rng.integers(2)),
    }


@pytest.mark.parametrize("seed", range(20))
def test_pooling_is_pytorchs_on_random_geometry(seed):
    rng = np.random.default_rng(seed)
    attrs, x = random_pooling(rng), rng.normal(size=(1, 2, *rng.integers(7, 12, 2)))
    for name, extra in (
        ("max_pool2d", {"dilation": tuple(rng.integers(1, 3, 2).tolist())}),
        ("avg_pool2d", {"count_include_pad": True}),
        ("avg_pool2d", {"count_include_pad": False}),
    ):
        y = apply(name, tensor("float64", x.shape), **attrs, **extra)
        expected = y.op.torch(torch, torch.tensor(x), **y.attrs)
        assert y.shape == expected.shape
        np.testing.assert_allclose(y.op.ref(x, **y.attrs), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_convolution_is_pytorchs_on_random_geometry(seed):
    rng = np.random.default_rng(seed)
    groups, c, o = rng.integers(1, 4, 3).tolist()
    attrs = {
        "stride": tuple(rng.integers(1, 4, 2).tolist()),
        "padding": tuple(map(tuple, rng.integers(0, 4, (2, 2)).tolist())),
        "dilation": tuple(rng.integers(1, 4, 2).tolist()),
        "groups": groups,
    }
    x = rng.normal(size=(2, groups * c, *rng.integers(10, 14, 2)))
    w = rng.normal(size=(groups * o, c, *rng.integers(1, 5, 2)))
    y = apply("conv2d", tensor("float64", x.shape), tensor("float64", w.shape), **attrs)
    x_torch, w_torch = torch.tensor(x, requires_grad=True), torch.tensor(w, requires_grad=True)
    expected = y.op.torch(torch, x_torch, w_torch, **y.attrs)
    assert y.shape == expected.shape
    np.testing.assert_allclose(y.op.ref(x, w, **y.attrs), expected.detach(), rtol=1e-9, atol=1e-9)

    g = rng.normal(size=expected.shape)
    expected.backward(torch.tensor(g))
    for_x = OPS["conv2d_input_grad"].ref(g, w, input_shape=x.shape[2:], **y.attrs)
    for_w = OPS["conv2d_weight_grad"].ref(x, g, kernel=w.shape[2:], **y.attrs)
    np.testing.assert_allclose(for_x, x_torch.grad, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(for_w, w_torch.grad, rtol=1e-9, atol=1e-9)


def test_variance_in_training_survives_a_large_mean():
    """The one-pass form E[x²] - E[x]² has no correct digit here."""
    x = np.random.default_rng(0).normal(3000.0, 1.0, (4, 2, 16, 16)).astype("float32")
    ones = np.ones(2, "float32")
    _, _, var = OPS["batch_norm_train"].ref(x, ones, ones, eps=1e-5)
    np.testing.assert_allclose(var, x.astype("float64").var((0, 2, 3)), rtol=1e-3)
    graph = graph_of(
        lambda x, w, b: OPS["batch_norm_train"].expand(x, w, b, eps=1e-5),
        f32(*x.shape),
        f32(2),
        f32(2),
    )
    for found in (
        run(graph, {"x0": x, "x1": ones, "x2": ones}),
        run_native(graph, [x, ones, ones]),
    ):
        np.testing.assert_allclose(found[2], x.astype("float64").var((0, 2, 3)), rtol=1e-3)


# Structure.


def test_equal_geometry_is_one_node():
    builder = Builder()
    x, w = builder.input("x", f32(1, 4, 8, 8)), builder.input("w", f32(4, 4, 3, 3))
    plain = builder.node("conv2d", (x, w))
    written = {"stride": np.int64(1), "padding": (0, 0), "dilation": [1, 1], "groups": 1}
    assert builder.node("conv2d", (x, w), written) is plain
    pool = builder.node("max_pool2d", (x,), {"kernel": 2})
    assert builder.node("max_pool2d", (x,), {"kernel": 2, "stride": (2, 2)}) is pool


@pytest.mark.parametrize(
    ("size", "output_size", "ops"),
    [
        ((7, 7), 1, ["mean"]),
        ((ROWS, ROWS), 1, ["mean"]),
        ((14, 21), 7, ["avg_pool2d"]),
        ((ROWS, 8), (None, 1), ["mean"]),
        ((ROWS, 8), (1, None), ["mean"]),
        ((5, 8), (2, None), ["slice", "mean", "slice", "mean", "concat"]),
    ],
)
def test_adaptive_pooling_expands_into_the_simplest_form(size, output_size, ops):
    y = apply("adaptive_avg_pool2d", f32(BATCH, 3, *size), output_size=output_size)
    made = y.op.expand(*y.inputs, **y.attrs)
    assert made.type == y.type
    assert ops_of([made]) == ops


def test_the_weight_gradient_of_a_batched_linear_is_one_matrix_product():
    builder = Builder()
    x, w = builder.input("x", f32(BATCH, 7, 16)), builder.input("w", f32(8, 16))
    y = builder.node("linear", (x, w))
    for_x, for_w = y.op.grad(builder.input("g", y.tensor_type), y, x, w)
    assert (for_x.type, for_w.type) == (x.type, w.type)
    assert ops_of([for_w]).count("matmul") == 1
    assert "sum" not in ops_of([for_w])


def test_flops_are_two_a_multiply_add():
    y = apply("conv2d", f32(1, 64, 56, 56), f32(64, 64, 3, 3), padding=1)
    types = [node.type for node in y.inputs]
    assert y.op.flops(y.type, *types, **y.attrs) == 2 * 64 * 56 * 56 * 64 * 9
    g = OPS["conv2d_weight_grad"]
    assert g.flops(types[1], types[0], y.type, **y.attrs) == 2 * 64 * 56 * 56 * 64 * 9
    y = apply("matmul", f32(BATCH, 512), f32(512, 10))
    assert y.op.flops(y.type, *[node.type for node in y.inputs]) == as_size(BATCH) * (2 * 512 * 10)
