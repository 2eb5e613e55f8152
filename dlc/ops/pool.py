"""Pooling over windows of an image (N, C, H, W), with the gradients.

A maximum is where its window's winner is, so its gradient and the gradient of that are both
addressed by `max_pool2d_index`; an average is linear, so it and `avg_pool2d_grad` are each other's
gradients.
"""

from __future__ import annotations

from collections.abc import Iterator
from operator import index
from typing import Any

import numpy as np

from dlc.errors import ArgumentError, DTypeError, Error, ShapeError
from dlc.ir.node import Node, apply
from dlc.ir.op import Array, ErrorSample, Kind, OpDef, Reduction, Sample
from dlc.ir.sizes import Size, bounds
from dlc.ir.types import TensorType, tensor
from dlc.ops.window import (
    Pair,
    Shape,
    SizePair,
    Windows,
    check_gradient,
    check_image,
    padding_of,
    pair,
    rows_columns,
    torch_vjp,
)

#: Gradients of pooling: each stores an element once it is final.
POOL_GRADIENTS = ("max_pool2d_grad", "avg_pool2d_grad")


# Canonical attributes.


def _avg_attrs(
    *types: TensorType,
    kernel: object,
    stride: object = None,
    padding: object = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> dict[str, Any]:
    kernel = pair("a kernel", kernel)
    return {
        "kernel": kernel,
        "stride": kernel if stride is None else pair("a stride", stride),
        "padding": padding_of(padding),
        "ceil_mode": bool(ceil_mode),
        "count_include_pad": bool(count_include_pad),
    }


def _max_attrs(*types: TensorType, dilation: object = 1, **attrs: Any) -> dict[str, Any]:
    canonical = _avg_attrs(**attrs)
    del canonical["count_include_pad"]
    return {**canonical, "dilation": pair("a dilation", dilation)}


def _avg_grad_attrs(g: TensorType, *, input_shape: object, **attrs: Any) -> dict[str, Any]:
    return {**_avg_attrs(**attrs), "input_shape": rows_columns("input_shape", input_shape)}


# Type rules.


def _max_pool2d_type(x: TensorType, **attrs: Any) -> TensorType:
    check_image(x)
    windows = _windows(x.shape, **attrs)
    for size, dilation, padding in zip(windows.size, windows.dilation, windows.padding):
        if any(padding) and bounds(size)[0] < dilation:
            raise ShapeError(
                f"expects a dilation no greater than the input where it is padded, got {dilation} "
                f"for a size of {size}: a window would lie in the padding alone"
            )
    return x.with_shape((*x.shape[:2], *windows.out))


def _max_pool2d_index_type(x: TensorType, **attrs: Any) -> TensorType:
    return _max_pool2d_type(x, **attrs).with_dtype("int64")


def _max_pool2d_grad_type(x: TensorType, g: TensorType, **attrs: Any) -> TensorType:
    check_gradient(g, _max_pool2d_type(x, **attrs))
    return x


def _avg_pool2d_type(x: TensorType, *, count_include_pad: bool, **attrs: Any) -> TensorType:
    check_image(x)
    return x.with_shape((*x.shape[:2], *_windows(x.shape, **attrs).out))


def _avg_pool2d_grad_type(g: TensorType, *, input_shape: SizePair, **attrs: Any) -> TensorType:
    check_image(g, "a gradient", "(N, C, OH, OW)")
    x = g.with_shape((*g.shape[:2], *input_shape))
    check_gradient(g, _avg_pool2d_type(x, **attrs))
    return x


def _windows(shape: tuple[Size, ...], **attrs: Any) -> Windows:
    """The windows over an input (N, C, H, W), whose padding is at most half the kernel."""
    windows = Windows((shape[2], shape[3]), **attrs)
    for kernel, padding in zip(windows.kernel, windows.padding):
        if max(padding) > kernel // 2:
            raise ArgumentError(
                f"expects padding of at most half the kernel, {kernel // 2} for a kernel of "
                f"{kernel}, got {max(padding)}"
            )
    return windows


# References.


def _max_pool2d(x: Array, **attrs: Any) -> Array:
    windows = _windows(x.shape, **attrs)
    y = np.full((*x.shape[:2], *windows.out), -np.inf, x.dtype)
    for _, _, tap in windows.taps(windows.pad(x, -np.inf)):
        y = np.where((tap > y) | np.isnan(tap), tap, y)  # ties go to the first, NaN stays
    return y


def _max_pool2d_index(x: Array, **attrs: Any) -> Array:
    windows = _windows(x.shape, **attrs)
    (height, width), (dy, dx) = windows.size, windows.dilation
    best = np.full((*x.shape[:2], *windows.out), -np.inf, x.dtype)
    winner = np.full(best.shape, -1)
    for i, j, tap in windows.taps(windows.pad(x, -np.inf)):
        row = windows.starts(0)[:, None] + i * dy
        column = windows.starts(1) + j * dx
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        wins = inside & ((tap > best) | np.isnan(tap) | (winner < 0))
        best = np.where(wins, tap, best)
        winner = np.where(wins, row * width + column, winner)
    return winner


def _max_pool2d_grad(x: Array, g: Array, **attrs: Any) -> Array:
    n, c, h, w = x.shape
    planes, windows = n * c, g.shape[2] * g.shape[3]
    winner = _max_pool2d_index(x, **attrs).reshape(planes, windows)
    result = np.zeros((planes, h * w), x.dtype)
    np.add.at(result, (np.arange(planes)[:, None], winner), g.reshape(planes, windows))
    return result.reshape(x.shape)


def _avg_pool2d(x: Array, *, count_include_pad: bool, **attrs: Any) -> Array:
    windows = _windows(x.shape, **attrs)
    total = np.zeros((*x.shape[:2], *windows.out), x.dtype)
    for _, _, tap in windows.taps(windows.pad(x)):
        total += tap
    y: Array = total / _counts(windows, count_include_pad).astype(x.dtype)
    return y


def _avg_pool2d_grad(
    g: Array, *, input_shape: Pair, count_include_pad: bool, **attrs: Any
) -> Array:
    x = np.zeros((*g.shape[:2], *input_shape), g.dtype)
    windows = _windows(x.shape, **attrs)
    padded = windows.pad(x)
    share = g / _counts(windows, count_include_pad).astype(g.dtype)
    for _, _, tap in windows.taps(padded):
        tap += share
    return windows.crop(padded)


def _counts(windows: Windows, count_include_pad: bool) -> Array:
    """How many elements each window averages over: those in the input, or in it and its padding.

    What `ceil_mode` lets a window reach beyond the padding never counts.
    """

    def along(axis: int) -> Array:
        (before, after), size = windows.padding[axis], index(windows.size[axis])
        low, high = (-before, size + after) if count_include_pad else (0, size)
        first = windows.starts(axis)
        count: Array = np.minimum(first + windows.kernel[axis], high) - np.maximum(first, low)
        return count

    return along(0)[:, None] * along(1)


# Gradients.


def _max_pool2d_vjp(g: Node, y: Node, x: Node, **attrs: Any) -> tuple[Node]:
    return (apply("max_pool2d_grad", x, g, **attrs),)


def _max_pool2d_grad_vjp(v: Node, y: Node, x: Node, g: Node, **attrs: Any) -> tuple[None, Node]:
    """Each output's gradient came from one winner, so its cotangent is read there."""
    n, c, rows, columns = g.shape
    winner = apply("max_pool2d_index", x, **attrs).reshape((n, c, rows * columns))
    plane = v.reshape((n, c, x.shape[2] * x.shape[3]))
    return None, apply("gather", plane, winner, axis=2).reshape(g.shape)


def _avg_pool2d_vjp(g: Node, y: Node, x: Node, **attrs: Any) -> tuple[Node]:
    return (apply("avg_pool2d_grad", g, input_shape=x.shape[2:], **attrs),)


def _avg_pool2d_grad_vjp(
    v: Node, y: Node, g: Node, *, input_shape: SizePair, **attrs: Any
) -> tuple[Node]:
    return (apply("avg_pool2d", v, **attrs),)


# FLOPs: one for each element of each window.


def _window_flops(y: TensorType, *types: TensorType, kernel: Pair, **_: Any) -> Size:
    return y.count * (kernel[0] * kernel[1])


def _grad_flops(y: TensorType, *types: TensorType, kernel: Pair, **_: Any) -> Size:
    return types[-1].count * (kernel[0] * kernel[1])


# PyTorch twins. PyTorch pads both sides alike; where they differ, the image is padded beforehand.


def _torch_max(torch: Any, x: Any, **attrs: Any) -> Any:
    """Maxima and their positions."""
    windows = _windows(x.shape, **attrs)
    kernel, stride, dilation = windows.kernel, windows.stride, windows.dilation
    pool = torch.nn.functional.max_pool2d_with_indices
    (top, _), (left, _) = windows.padding
    if _is_even(windows):
        return pool(x, kernel, stride, (top, left), dilation, windows.ceil_mode)
    padded = _torch_pad(torch, x, windows, -np.inf)
    values, position = pool(padded, kernel, stride, 0, dilation)
    row, column = position // padded.shape[3] - top, position % padded.shape[3] - left
    return values, row * x.shape[3] + column


def _torch_max_pool2d(torch: Any, x: Any, **attrs: Any) -> Any:
    return _torch_max(torch, x, **attrs)[0]


def _torch_max_pool2d_index(torch: Any, x: Any, **attrs: Any) -> Any:
    return _torch_max(torch, x, **attrs)[1]


def _torch_max_pool2d_grad(torch: Any, x: Any, g: Any, **attrs: Any) -> Any:
    return torch_vjp(torch, lambda x: _torch_max_pool2d(torch, x, **attrs), x, g)


def _torch_avg_pool2d(torch: Any, x: Any, *, count_include_pad: bool, **attrs: Any) -> Any:
    windows = _windows(x.shape, **attrs)
    kernel, stride, ceil_mode = windows.kernel, windows.stride, windows.ceil_mode
    pool = torch.nn.functional.avg_pool2d
    (top, _), (left, _) = windows.padding
    if _is_even(windows):
        return pool(x, kernel, stride, (top, left), ceil_mode, count_include_pad)
    padded = _torch_pad(torch, x, windows, 0.0)
    total = pool(padded, kernel, stride, 0, divisor_override=1)
    return total / torch.tensor(_counts(windows, count_include_pad), dtype=x.dtype)


def _torch_avg_pool2d_grad(torch: Any, g: Any, *, input_shape: Pair, **attrs: Any) -> Any:
    x = g.new_zeros((*g.shape[:2], *input_shape))
    return torch_vjp(torch, lambda x: _torch_avg_pool2d(torch, x, **attrs), x, g)


def _is_even(windows: Windows) -> bool:
    return all(before == after for before, after in windows.padding)


def _torch_pad(torch: Any, x: Any, windows: Windows, value: float) -> Any:
    (top, bottom), (left, right) = windows.frame
    return torch.nn.functional.pad(x, (left, right, top, bottom), value=value)


# Samples.

_CASES: tuple[tuple[Shape, dict[str, Any]], ...] = (
    ((2, 3, 6, 8), {"kernel": 2}),
    ((1, 2, 9, 7), {"kernel": 3, "stride": 2, "padding": 1}),
    ((2, 1, 7, 8), {"kernel": (3, 2), "stride": (2, 1), "padding": (1, 0)}),
    ((1, 2, 5, 5), {"kernel": 1, "stride": 2}),
    ((1, 2, 3, 4), {"kernel": (3, 4)}),
    ((1, 2, 6, 6), {"kernel": 2, "padding": ((0, 1), (1, 0)), "stride": 2}),
    ((1, 2, 7, 6), {"kernel": 4, "padding": ((2, 1), (1, 2)), "stride": 3}),
    ((1, 2, 6, 7), {"kernel": 2, "stride": 2, "ceil_mode": True}),
    ((1, 2, 8, 6), {"kernel": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
    ((1, 1, 5, 4), {"kernel": 2, "stride": 3, "padding": 1, "ceil_mode": True}),
    ((1, 1, 6, 5), {"kernel": 3, "stride": 4, "padding": ((1, 0), (0, 1)), "ceil_mode": True}),
    ((0, 2, 4, 4), {"kernel": 2}),
)
_DILATED: tuple[tuple[Shape, dict[str, Any]], ...] = (
    ((1, 2, 8, 9), {"kernel": 3, "stride": 2, "padding": 1, "dilation": 2}),
    (
        (1, 2, 9, 8),
        {"kernel": (2, 3), "stride": 1, "dilation": (3, 2), "padding": ((1, 0), (0, 1))},
    ),
    ((1, 1, 9, 8), {"kernel": 2, "stride": 3, "dilation": 3, "padding": 1, "ceil_mode": True}),
)


def _max_samples(rng: np.random.Generator) -> Iterator[Sample]:
    for shape, attrs in (*_CASES, *_DILATED):
        yield Sample((_distinct(rng, shape),), attrs)
    yield from _specials()


def _specials() -> Iterator[Sample]:
    """NaN, infinities, signed zeros and ties: which element wins."""
    nan, inf = np.nan, np.inf
    rows = [
        [nan, 1, 2, nan, 3],
        [4, nan, 4, 4, 4],
        [-inf, -inf, 4, 4, inf],
        [-inf, -inf, 0, -0.0, inf],
    ]
    x = np.array(rows)[None, None]
    yield Sample((x,), {"kernel": 2}, differentiable=())
    yield Sample((x,), {"kernel": 3, "stride": 1, "padding": 1}, differentiable=())


def _max_grad_samples(rng: np.random.Generator) -> Iterator[Sample]:
    for sample in _max_samples(rng):
        (x,) = sample.arrays
        y_shape: Shape = _max_pool2d(x, **_max_attrs(**sample.attrs)).shape
        differentiable = (1,) if sample.differentiable is None else ()
        yield Sample((x, rng.normal(size=y_shape)), sample.attrs, differentiable)


def _avg_samples(rng: np.random.Generator) -> Iterator[Sample]:
    for shape, attrs in _CASES:
        for count_include_pad in (True, False):
            attrs = {**attrs, "count_include_pad": count_include_pad}
            yield Sample((rng.normal(size=shape),), attrs)


def _avg_grad_samples(rng: np.random.Generator) -> Iterator[Sample]:
    for sample in _avg_samples(rng):
        (x,) = sample.arrays
        y_shape: Shape = _avg_pool2d(x, **_avg_attrs(**sample.attrs)).shape
        attrs = {**sample.attrs, "input_shape": x.shape[2:]}
        yield Sample((rng.normal(size=y_shape),), attrs)


def _distinct(rng: np.random.Generator, shape: Shape) -> Array:
    """Elements far enough apart for central differences to meet no tie."""
    count = int(np.prod(shape))
    return rng.permutation(count).reshape(shape) / max(count, 1) - 0.5


_ERRORS: tuple[tuple[Shape, dict[str, Any], type[Error], str], ...] = (
    ((3, 8, 8), {"kernel": 2}, ShapeError, "expects an input (N, C, H, W), got (3, 8, 8); add a"),
    ((1, 3, 2, 8), {"kernel": 3}, ShapeError, "spans 3 rows for 2 padded by 0 and 0"),
    ((1, 3, 8, 1), {"kernel": 3, "ceil_mode": True, "stride": 1}, ShapeError, "spans 3 columns"),
    ((1, 3, 8, 8), {"kernel": 0}, ArgumentError, "expects a kernel of at least 1, got 0"),
    (
        (1, 3, 8, 8),
        {"kernel": 2, "stride": (1, 0)},
        ArgumentError,
        "expects a stride of at least 1",
    ),
    ((1, 3, 8, 8), {"kernel": 2, "stride": 1.5}, ArgumentError, "expects a stride as an int or"),
    ((1, 3, 8, 8), {"kernel": 3, "padding": 2}, ArgumentError, "at most half the kernel, 1 for"),
)


def _avg_errors() -> Iterator[ErrorSample]:
    for shape, attrs, error, match in _ERRORS:
        yield ErrorSample((tensor("float32", shape),), attrs, error, match)
    x = tensor("int32", (1, 3, 8, 8))
    yield ErrorSample((x,), {"kernel": 2}, DTypeError, "of float32 or float64, got int32")


def _max_errors() -> Iterator[ErrorSample]:
    yield from _avg_errors()
    x = tensor("float32", (1, 3, 8, 1))
    attrs = {"kernel": 2, "dilation": 2, "padding": 1, "stride": 1}
    yield ErrorSample((x,), attrs, ShapeError, "a window would lie in the padding alone")


def _max_grad_errors() -> Iterator[ErrorSample]:
    x, g = tensor("float32", (1, 3, 8, 8)), tensor("float32", (1, 3, 8, 8))
    match = "expects a gradient of the output's shape (1, 3, 4, 4), got (1, 3, 8, 8)"
    yield ErrorSample((x, g), {"kernel": 2}, ShapeError, match)
    yield ErrorSample((x, g.with_dtype("float64")), {"kernel": 2}, DTypeError, "one element type")


def _avg_grad_errors() -> Iterator[ErrorSample]:
    g = tensor("float32", (1, 3, 4, 4))
    match = "expects a gradient of the output's shape (1, 3, 5, 5), got (1, 3, 4, 4)"
    yield ErrorSample((g,), {"kernel": 2, "input_shape": (10, 10)}, ShapeError, match)


# The records.

max_pool2d = OpDef(
    "max_pool2d",
    Kind.WINDOW,
    infer=_max_pool2d_type,
    ref=_max_pool2d,
    doc="greatest element of each window, NaN if it has one; the padding never wins",
    attrs=_max_attrs,
    grad=_max_pool2d_vjp,
    reduction=Reduction("fmax({a}, {b})", -np.inf),
    flops=_window_flops,
    samples=_max_samples,
    errors=_max_errors,
    torch=_torch_max_pool2d,
)

max_pool2d_index = OpDef(
    "max_pool2d_index",
    Kind.OPAQUE,
    infer=_max_pool2d_index_type,
    ref=_max_pool2d_index,
    doc="where the maximum is, row * W + column: the last NaN, else the first of equals",
    attrs=_max_attrs,
    no_grad="positions are integers",
    flops=_window_flops,
    samples=_max_samples,
    errors=_max_errors,
    torch=_torch_max_pool2d_index,
)

max_pool2d_grad = OpDef(
    "max_pool2d_grad",
    Kind.OPAQUE,
    arity=2,
    infer=_max_pool2d_grad_type,
    ref=_max_pool2d_grad,
    doc="gradient of max_pool2d: each window's share goes to its winner",
    attrs=_max_attrs,
    grad=_max_pool2d_grad_vjp,
    flops=_grad_flops,
    samples=_max_grad_samples,
    errors=_max_grad_errors,
    torch=_torch_max_pool2d_grad,
)

avg_pool2d = OpDef(
    "avg_pool2d",
    Kind.WINDOW,
    infer=_avg_pool2d_type,
    ref=_avg_pool2d,
    doc="mean of each window, over its elements in the image, or in it and the padding",
    attrs=_avg_attrs,
    grad=_avg_pool2d_vjp,
    reduction=Reduction("{a} + {b}", 0.0, "{acc} / {n}"),
    flops=_window_flops,
    samples=_avg_samples,
    errors=_avg_errors,
    torch=_torch_avg_pool2d,
)

avg_pool2d_grad = OpDef(
    "avg_pool2d_grad",
    Kind.OPAQUE,
    infer=_avg_pool2d_grad_type,
    ref=_avg_pool2d_grad,
    doc="gradient of avg_pool2d: each window's share spread evenly over it",
    attrs=_avg_grad_attrs,
    grad=_avg_pool2d_grad_vjp,
    flops=_grad_flops,
    samples=_avg_grad_samples,
    errors=_avg_grad_errors,
    torch=_torch_avg_pool2d_grad,
)
