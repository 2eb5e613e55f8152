"""Average pooling to a given output size, whatever the input's.

Output i of o averages the elements from floor(i n / o) to ceil((i + 1) n / o), along rows and along
columns, so the op expands into what exists: a mean, equal windows, or one axis after the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from operator import add, index
from typing import Any

import numpy as np

from dlc.errors import ArgumentError, ShapeError
from dlc.ir.node import Node, apply
from dlc.ir.op import Array, ErrorSample, Kind, OpDef, Sample
from dlc.ir.sizes import Dim, Size, as_size, bounds
from dlc.ir.types import TensorType, tensor
from dlc.ops.window import Pair, Shape, SizePair, check_image


def _adaptive_attrs(x: TensorType, *, output_size: object) -> dict[str, Any]:
    wanted = output_size if isinstance(output_size, (tuple, list)) else (output_size, output_size)
    if len(wanted) != 2:
        raise ArgumentError(
            f"expects output_size as an int or (rows, columns), got {output_size!r}"
        )
    check_image(x)
    sizes = [old if new is None else as_size(new) for new, old in zip(wanted, x.shape[2:])]
    return {"output_size": tuple(sizes)}


def _adaptive_type(x: TensorType, *, output_size: SizePair) -> TensorType:
    for new, old in zip(output_size, x.shape[2:]):
        if bounds(new)[0] < 1 or bounds(old)[0] < 1:
            raise ShapeError(f"expects sizes of at least 1, got {new} from {old}")
        if new not in (1, old) and not (isinstance(new, int) and isinstance(old, int)):
            raise ShapeError(
                f"expects an input of known size for an output of {new}, got {old}; only an output "
                "of 1, and None for an axis that stays as it is, follow a Dim"
            )
    return x.with_shape((*x.shape[:2], *output_size))


def _adaptive_ref(x: Array, *, output_size: Pair) -> Array:
    y = np.empty((*x.shape[:2], *output_size), x.dtype)
    for i, rows in enumerate(_bins(x.shape[2], output_size[0])):
        for j, columns in enumerate(_bins(x.shape[3], output_size[1])):
            y[:, :, i, j] = x[:, :, slice(*rows), slice(*columns)].mean(axis=(2, 3))
    return y


def _bins(size: Size, count: Size) -> list[Pair]:
    """First element, and the one after the last, of each average along an axis."""
    n, o = index(size), index(count)
    return [(i * n // o, -(-(i + 1) * n // o)) for i in range(o)]


def _adaptive_expand(x: Node, *, output_size: SizePair) -> Node:
    """A mean, equal windows, or else the mean of each row of bins and then of each column."""
    if output_size == (1, 1):
        return x.mean((2, 3), keepdim=True)
    if kernel := _even_kernel(x, output_size):
        return apply("avg_pool2d", x, kernel=kernel)
    for axis, count in zip((2, 3), output_size):
        x = _average_bins(x, axis, count)
    return x


def _even_kernel(x: Node, output_size: SizePair) -> Pair | None:
    """The kernel of `avg_pool2d` with the same result, where bins are all alike."""
    kernel = []
    for size, count in zip(x.shape[2:], output_size):
        if not isinstance(size, int) or not isinstance(count, int) or size % count:
            return None
        kernel.append(size // count)
    return kernel[0], kernel[1]


def _average_bins(x: Node, axis: int, count: Size) -> Node:
    size = x.shape[axis]
    if count == size:
        return x
    if count == 1:
        return x.mean(axis, keepdim=True)
    bins = _bins(size, count)
    parts = [x.narrow(axis, first, end - first).mean(axis, keepdim=True) for first, end in bins]
    return apply("concat", *parts, axis=axis)


def _adaptive_vjp(g: Node, y: Node, x: Node, *, output_size: SizePair) -> tuple[Node]:
    if kernel := _even_kernel(x, output_size):
        return (apply("avg_pool2d_grad", g, input_shape=x.shape[2:], kernel=kernel),)
    for axis in (2, 3):
        g = _spread_bins(g, axis, x.shape[axis])
    return (g,)


def _spread_bins(g: Node, axis: int, size: Size) -> Node:
    """Each element's gradient spread over the bin it is the average of."""
    count = g.shape[axis]
    if count == size:
        return g
    if count == 1:
        return _widen(g / size, axis, size)
    bins = enumerate(_bins(size, count))
    return reduce(add, (_spread_bin(g, axis, i, first, end, size) for i, (first, end) in bins))


def _spread_bin(g: Node, axis: int, i: int, first: int, end: int, size: Size) -> Node:
    width = end - first
    share = _widen(g.narrow(axis, i, 1) / width, axis, width)
    low = tuple(first if k == axis else 0 for k in range(g.ndim))
    high = tuple(index(size) - end if k == axis else 0 for k in range(g.ndim))
    return apply("pad", share, low=low, high=high, value=0.0)


def _widen(x: Node, axis: int, size: Size) -> Node:
    return x.expand(*x.shape[:axis], size, *x.shape[axis + 1 :])


def _adaptive_samples(rng: np.random.Generator) -> Iterator[Sample]:
    cases: tuple[tuple[Shape, object], ...] = (
        ((2, 3, 4, 5), 1),
        ((1, 2, 6, 8), (3, 2)),
        ((1, 2, 7, 5), (3, 2)),
        ((1, 2, 4, 5), (None, 2)),
        ((1, 2, 3, 2), (5, 4)),
        ((1, 2, 4, 4), 4),
        ((1, 2, 5, 7), (1, 3)),
    )
    for shape, output_size in cases:
        yield Sample((rng.normal(size=shape),), {"output_size": output_size})


def _adaptive_errors() -> Iterator[ErrorSample]:
    x = tensor("float32", (1, 3, 8, 8))
    yield ErrorSample((x,), {"output_size": 0}, ShapeError, "expects sizes of at least 1, got 0")
    yield ErrorSample((x,), {"output_size": (1, 2, 3)}, ArgumentError, "(rows, columns)")
    x = tensor("float32", (1, 3, Dim("height", 1, 8), 8))
    match = "expects an input of known size for an output of 7, got height"
    yield ErrorSample((x,), {"output_size": 7}, ShapeError, match)


adaptive_avg_pool2d = OpDef(
    "adaptive_avg_pool2d",
    Kind.COMPOSITE,
    infer=_adaptive_type,
    ref=_adaptive_ref,
    doc="mean over bins chosen so that the output has a given size",
    attrs=_adaptive_attrs,
    grad=_adaptive_vjp,
    expand=_adaptive_expand,
    flops=lambda y, x, **_: x.count,
    samples=_adaptive_samples,
    errors=_adaptive_errors,
    torch=lambda torch, x, output_size: torch.nn.functional.adaptive_avg_pool2d(x, output_size),
)
