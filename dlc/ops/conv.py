"""Convolution and its two gradients, over images (N, C, H, W) and weights (O, C / groups, KH, KW).

The three ops are one trilinear form seen from each of its sides, so each is the gradient of the
other two, and gradients of any order need no further op.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from dlc.errors import ArgumentError, DTypeError, Error, ShapeError
from dlc.ir.node import Node, apply
from dlc.ir.op import Array, ErrorSample, Kind, OpDef, Sample
from dlc.ir.sizes import Size, equal, product, shape_text
from dlc.ir.types import TensorType, tensor
from dlc.ops.window import (
    Padding,
    Pair,
    Shape,
    SizePair,
    Windows,
    check_gradient,
    check_image,
    check_one_dtype,
    padding_of,
    pair,
    rows_columns,
    torch_vjp,
    whole,
)

# Canonical attributes.


def _attrs(
    *types: TensorType,
    stride: object = 1,
    padding: object = 0,
    dilation: object = 1,
    groups: object = 1,
) -> dict[str, Any]:
    return {
        "stride": pair("a stride", stride),
        "padding": padding_of(padding),
        "dilation": pair("a dilation", dilation),
        "groups": whole("groups", groups),
    }


def _input_grad_attrs(
    g: TensorType, w: TensorType, *, input_shape: object, **attrs: Any
) -> dict[str, Any]:
    return {**_attrs(g, w, **attrs), "input_shape": rows_columns("input_shape", input_shape)}


def _weight_grad_attrs(
    x: TensorType, g: TensorType, *, kernel: object, **attrs: Any
) -> dict[str, Any]:
    return {**_attrs(x, g, **attrs), "kernel": pair("a kernel", kernel)}


# Type rules.


def _conv2d_type(
    x: TensorType,
    w: TensorType,
    *,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> TensorType:
    check_image(x)
    check_image(w, "a weight", "(O, C / groups, KH, KW)")
    check_one_dtype(input=x, weight=w)
    (n, channels, *size), (out_channels, group_channels, *kernel) = x.shape, w.shape
    _divide(channels, groups, "input channels")
    _divide(out_channels, groups, "output channels")
    if not equal(channels, group_channels * groups):
        split = f" ({groups} groups of {group_channels})" if groups > 1 else ""
        raise ShapeError(f"expects {group_channels * groups} input channels{split}, got {channels}")
    windows = Windows(_two(size), _known(kernel), stride, padding, dilation)
    return x.with_shape((n, out_channels, *windows.out))


def _input_grad_type(
    g: TensorType, w: TensorType, *, input_shape: SizePair, groups: int, **attrs: Any
) -> TensorType:
    check_image(g, "a gradient", "(N, O, OH, OW)")
    check_image(w, "a weight", "(O, C / groups, KH, KW)")
    x = g.with_shape((g.shape[0], w.shape[1] * groups, *input_shape))
    check_gradient(g, _conv2d_type(x, w, groups=groups, **attrs))
    return x


def _weight_grad_type(
    x: TensorType, g: TensorType, *, kernel: Pair, groups: int, **attrs: Any
) -> TensorType:
    check_image(x)
    check_image(g, "a gradient", "(N, O, OH, OW)")
    _divide(x.shape[1], groups, "input channels")
    w = x.with_shape((g.shape[1], x.shape[1] // groups, *kernel))
    check_gradient(g, _conv2d_type(x, w, groups=groups, **attrs))
    return w


def _divide(channels: Size, groups: int, what: str) -> None:
    if not equal(channels % groups, 0):
        raise ShapeError(f"expects groups that divide the {channels} {what}, got {groups} groups")


def _known(kernel: list[Size]) -> Pair:
    rows, columns = kernel
    if not isinstance(rows, int) or not isinstance(columns, int):
        raise ShapeError(f"expects a kernel of known size, got {shape_text(kernel)}; use integers")
    return pair("a kernel", (rows, columns))


def _two(sizes: list[Size]) -> SizePair:
    rows, columns = sizes
    return rows, columns


# References: one matrix product per tap of the kernel, by image and group.


def _conv2d(x: Array, w: Array, *, groups: int, **attrs: Any) -> Array:
    windows = _windows(x.shape, w.shape, attrs)
    y = np.zeros((len(x), len(w), *windows.out), x.dtype)
    for tap, weight in _taps(windows, windows.pad(x), w, groups):
        y += (weight @ _by_group(tap, groups)).reshape(y.shape)
    return y


def _conv2d_input_grad(
    g: Array, w: Array, *, input_shape: Pair, groups: int, **attrs: Any
) -> Array:
    x = np.zeros((len(g), w.shape[1] * groups, *input_shape), g.dtype)
    windows = _windows(x.shape, w.shape, attrs)
    padded, rows = windows.pad(x), _by_group(g, groups)
    for tap, weight in _taps(windows, padded, w, groups):
        tap += (weight.swapaxes(-1, -2) @ rows).reshape(tap.shape)
    return windows.crop(padded)


def _conv2d_weight_grad(x: Array, g: Array, *, kernel: Pair, groups: int, **attrs: Any) -> Array:
    w = np.zeros((g.shape[1], x.shape[1] // groups, *kernel), x.dtype)
    windows = _windows(x.shape, w.shape, attrs)
    rows = _by_group(g, groups)
    for i, j, tap in windows.taps(windows.pad(x)):
        products = rows @ _by_group(tap, groups).swapaxes(-1, -2)
        w[:, :, i, j] = products.sum(axis=0).reshape(w.shape[:2])
    return w


def _windows(x: Shape, w: Shape, attrs: dict[str, Any]) -> Windows:
    return Windows((x[2], x[3]), (w[2], w[3]), **attrs)


def _taps(windows: Windows, padded: Array, w: Array, groups: int) -> Iterator[tuple[Array, Array]]:
    """Each tap (N, C, OH, OW) of the input with its weights (groups, O / groups, C / groups)."""
    o, c, *_ = w.shape
    for i, j, tap in windows.taps(padded):
        yield tap, w[:, :, i, j].reshape(groups, o // groups, c)


def _by_group(x: Array, groups: int) -> Array:
    """(N, C, H, W) as (N, groups, C / groups, H W)."""
    n, c, h, w = x.shape
    return x.reshape(n, groups, c // groups, h * w)


# Gradients.


def _conv2d_vjp(g: Node, y: Node, x: Node, w: Node, **attrs: Any) -> tuple[Node, Node]:
    return (
        apply("conv2d_input_grad", g, w, input_shape=x.shape[2:], **attrs),
        apply("conv2d_weight_grad", x, g, kernel=w.shape[2:], **attrs),
    )


def _input_grad_vjp(
    v: Node, y: Node, g: Node, w: Node, *, input_shape: SizePair, **attrs: Any
) -> tuple[Node, Node]:
    return (
        apply("conv2d", v, w, **attrs),
        apply("conv2d_weight_grad", v, g, kernel=w.shape[2:], **attrs),
    )


def _weight_grad_vjp(
    v: Node, y: Node, x: Node, g: Node, *, kernel: Pair, **attrs: Any
) -> tuple[Node, Node]:
    return (
        apply("conv2d_input_grad", g, v, input_shape=x.shape[2:], **attrs),
        apply("conv2d", x, v, **attrs),
    )


# FLOPs: a multiply and an add for each tap of each output, taps on padding included.


def _conv2d_flops(y: TensorType, x: TensorType, w: TensorType, **_: Any) -> Size:
    return _flops(y, w)


def _input_grad_flops(y: TensorType, g: TensorType, w: TensorType, **_: Any) -> Size:
    return _flops(g, w)


def _weight_grad_flops(y: TensorType, x: TensorType, g: TensorType, **_: Any) -> Size:
    return _flops(g, y)


def _flops(y: TensorType, w: TensorType) -> Size:
    return y.count * product(w.shape[1:]) * 2


# PyTorch twins.


def _torch_conv2d(
    torch: Any,
    x: Any,
    w: Any,
    *,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> Any:
    (top, bottom), (left, right) = padding
    padded = torch.nn.functional.pad(x, (left, right, top, bottom))
    return torch.nn.functional.conv2d(padded, w, None, stride, 0, dilation, groups)


def _torch_input_grad(
    torch: Any, g: Any, w: Any, *, input_shape: Pair, groups: int, **attrs: Any
) -> Any:
    x = g.new_zeros((g.shape[0], w.shape[1] * groups, *input_shape))
    return torch_vjp(torch, lambda x: _torch_conv2d(torch, x, w, groups=groups, **attrs), x, g)


def _torch_weight_grad(
    torch: Any, x: Any, g: Any, *, kernel: Pair, groups: int, **attrs: Any
) -> Any:
    w = g.new_zeros((g.shape[1], x.shape[1] // groups, *kernel))
    return torch_vjp(torch, lambda w: _torch_conv2d(torch, x, w, groups=groups, **attrs), w, g)


# Samples.

_CASES: tuple[tuple[Shape, Shape, dict[str, Any]], ...] = (
    ((2, 3, 6, 7), (4, 3, 3, 3), {}),
    ((1, 3, 5, 5), (4, 3, 3, 3), {"padding": 1}),
    ((2, 3, 9, 8), (4, 3, 3, 3), {"stride": 2, "padding": 1}),
    ((1, 2, 11, 12), (3, 2, 7, 7), {"stride": (2, 3), "padding": 3}),
    ((1, 4, 5, 6), (3, 4, 1, 1), {}),
    ((2, 4, 5, 6), (3, 4, 1, 1), {"stride": 2}),
    ((1, 2, 6, 6), (3, 2, 2, 4), {"padding": (1, 2)}),
    ((1, 2, 5, 7), (3, 2, 2, 2), {"padding": ((0, 1), (2, 0)), "stride": (1, 2)}),
    ((1, 2, 9, 8), (3, 2, 3, 2), {"dilation": (2, 3), "padding": ((2, 1), (0, 3))}),
    ((2, 6, 5, 5), (4, 3, 3, 3), {"groups": 2, "padding": 1}),
    ((2, 5, 6, 6), (5, 1, 3, 3), {"groups": 5, "padding": 1, "stride": 2}),
    ((1, 3, 6, 5), (6, 1, 3, 2), {"groups": 3, "dilation": (1, 2)}),
    ((1, 2, 3, 2), (2, 2, 3, 2), {}),
    ((1, 2, 2, 1), (2, 2, 5, 5), {"padding": 2}),
    ((1, 1, 8, 8), (1, 1, 2, 2), {"stride": 4}),
    ((0, 2, 5, 5), (3, 2, 3, 3), {}),
)


def _cases(rng: np.random.Generator) -> Iterator[tuple[Array, Array, Array, dict[str, Any]]]:
    for x_shape, w_shape, attrs in _CASES:
        x, w = rng.normal(size=x_shape), rng.normal(size=w_shape)
        y_shape: Shape = _conv2d(x, w, **_attrs(**attrs)).shape
        yield x, w, rng.normal(size=y_shape), attrs


def _conv2d_samples(rng: np.random.Generator) -> Iterator[Sample]:
    for x, w, _, attrs in _cases(rng):
        yield Sample((x, w), attrs)


def _input_grad_samples(rng: np.random.Generator) -> Iterator[Sample]:
    for x, w, g, attrs in _cases(rng):
        yield Sample((g, w), {**attrs, "input_shape": x.shape[2:]})


def _weight_grad_samples(rng: np.random.Generator) -> Iterator[Sample]:
    for x, w, g, attrs in _cases(rng):
        yield Sample((x, g), {**attrs, "kernel": w.shape[2:]})


_ERRORS: tuple[tuple[Shape, Shape, dict[str, Any], type[Error], str], ...] = (
    ((1, 3, 8, 8), (8, 64, 3, 3), {}, ShapeError, "expects 64 input channels, got 3"),
    (
        (1, 6, 8, 8),
        (8, 2, 3, 3),
        {"groups": 2},
        ShapeError,
        "expects 4 input channels (2 groups of 2), got 6",
    ),
    (
        (1, 4, 8, 8),
        (6, 1, 3, 3),
        {"groups": 3},
        ShapeError,
        "expects groups that divide the 4 input channels, got 3 groups",
    ),
    (
        (1, 4, 8, 8),
        (6, 1, 3, 3),
        {"groups": 4},
        ShapeError,
        "expects groups that divide the 6 output channels, got 4 groups",
    ),
    ((3, 8, 8), (8, 3, 3, 3), {}, ShapeError, "expects an input (N, C, H, W), got (3, 8, 8); add"),
    ((1, 3, 8, 8), (8, 3, 3), {}, ShapeError, "got (8, 3, 3). Its inputs are"),
    ((1, 3, 8, 8), (8, 3), {}, ShapeError, "expects a weight (O, C / groups, KH, KW), got (8, 3)"),
    (
        (1, 3, 2, 8),
        (8, 3, 5, 5),
        {"padding": 1},
        ShapeError,
        "a kernel that fits the padded input, got one that spans 5 rows for 2 padded by 1 and 1",
    ),
    (
        (1, 3, 8, 4),
        (8, 3, 3, 3),
        {"dilation": 2},
        ShapeError,
        "got one that spans 5 columns for 4 padded by 0 and 0",
    ),
    ((1, 3, 0, 4), (8, 3, 1, 1), {}, ShapeError, "spans 1 rows for 0 padded by 0 and 0"),
    ((1, 3, 8, 8), (8, 3, 3, 3), {"stride": 0}, ArgumentError, "expects a stride of at least 1"),
    ((1, 3, 8, 8), (8, 3, 3, 3), {"padding": -1}, ArgumentError, "expects padding of at least 0"),
    ((1, 3, 8, 8), (8, 3, 3, 3), {"padding": "same"}, ArgumentError, "expects padding as an int,"),
    (
        (1, 3, 8, 8),
        (8, 3, 3, 3),
        {"groups": 0},
        ArgumentError,
        "expects groups of at least 1, got 0",
    ),
    ((1, 3, 8, 8), (8, 3, 3, 3), {"groups": 1.5}, ArgumentError, "expects groups as an int, got"),
)


def _conv2d_errors() -> Iterator[ErrorSample]:
    for x, w, attrs, error, match in _ERRORS:
        yield ErrorSample((tensor("float32", x), tensor("float32", w)), attrs, error, match)
    x_type, w_type = tensor("int64", (1, 3, 8, 8)), tensor("float32", (8, 3, 3, 3))
    yield ErrorSample((x_type, w_type), {}, DTypeError, "expects an input of float32 or float64")
    x_type = x_type.with_dtype("float64")
    yield ErrorSample((x_type, w_type), {}, DTypeError, "got input float64, weight float32; cast")


def _input_grad_errors() -> Iterator[ErrorSample]:
    g, w = tensor("float32", (1, 8, 7, 7)), tensor("float32", (8, 3, 3, 3))
    match = "expects a gradient of the output's shape (1, 8, 6, 6), got (1, 8, 7, 7)"
    yield ErrorSample((g, w), {"input_shape": (8, 8)}, ShapeError, match)
    match = "expects input_shape as (rows, columns), got (8,)"
    yield ErrorSample((g, w), {"input_shape": (8,)}, ArgumentError, match)


def _weight_grad_errors() -> Iterator[ErrorSample]:
    x, g = tensor("float32", (2, 3, 8, 8)), tensor("float32", (1, 8, 6, 6))
    match = "expects a gradient of the output's shape (2, 8, 6, 6), got (1, 8, 6, 6)"
    yield ErrorSample((x, g), {"kernel": 3}, ShapeError, match)
    match = "expects groups that divide the 3 input channels, got 2 groups"
    yield ErrorSample((x, g), {"kernel": 3, "groups": 2}, ShapeError, match)


# The records.

conv2d = OpDef(
    "conv2d",
    Kind.CONTRACT,
    arity=2,
    doc="cross-correlation of images with a bank of kernels, in groups of channels",
    attrs=_attrs,
    infer=_conv2d_type,
    ref=_conv2d,
    grad=_conv2d_vjp,
    flops=_conv2d_flops,
    torch=_torch_conv2d,
    samples=_conv2d_samples,
    errors=_conv2d_errors,
)

conv2d_input_grad = OpDef(
    "conv2d_input_grad",
    Kind.CONTRACT,
    arity=2,
    doc="gradient of conv2d for its input, of rows and columns `input_shape`",
    attrs=_input_grad_attrs,
    infer=_input_grad_type,
    ref=_conv2d_input_grad,
    grad=_input_grad_vjp,
    flops=_input_grad_flops,
    torch=_torch_input_grad,
    samples=_input_grad_samples,
    errors=_input_grad_errors,
)

conv2d_weight_grad = OpDef(
    "conv2d_weight_grad",
    Kind.CONTRACT,
    arity=2,
    doc="gradient of conv2d for its weight, of rows and columns `kernel`",
    attrs=_weight_grad_attrs,
    infer=_weight_grad_type,
    ref=_conv2d_weight_grad,
    grad=_weight_grad_vjp,
    flops=_weight_grad_flops,
    torch=_torch_weight_grad,
    samples=_weight_grad_samples,
    errors=_weight_grad_errors,
)
