"""Movement: elements in another place, and no arithmetic.

Each op says which input element an output element is, as sizes over loop variables; a backend folds
that into the address of whatever reads the result, so that most of these never run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from dlc.errors import ArgumentError, DTypeError, ShapeError
from dlc.ir.node import Node, apply
from dlc.ir.op import Access, Array, ErrorSample, Kind, Move, OpDef, Sample
from dlc.ir.sizes import Size, as_size, equal, less, product, quotient, shape_text
from dlc.ir.types import TensorType
from dlc.ops.common import (
    normal_axes,
    normal_axis,
    not_negative,
    number_in,
    plain,
    specials,
    twin,
    unbroadcast,
    uniform,
)

Index = tuple[Size, ...]
MATRIX = TensorType("float32", (2, 3))


def _sizes(shape: Any) -> tuple[Size, ...]:
    return tuple(as_size(size) for size in (shape if isinstance(shape, Iterable) else (shape,)))


# reshape


def _reshape_attrs(x: TensorType, shape: Any) -> dict[str, Any]:
    sizes = _sizes(shape)
    unknown = [axis for axis, size in enumerate(sizes) if size == -1]
    not_negative([size for size in sizes if size != -1], "sizes (or one -1)")
    if not unknown:
        return {"shape": sizes}
    if len(unknown) > 1:
        raise ShapeError(f"expects at most one -1, got {shape_text(sizes)}")
    rest = product(size for size in sizes if size != -1)
    size = None if rest == 0 else quotient(x.count, rest)
    if size is None:
        raise ShapeError(
            f"expects a multiple of {rest} elements to find the -1 of {shape_text(sizes)}, "
            f"got {x.count}"
        )
    return {"shape": tuple(size if s == -1 else s for s in sizes)}


def _reshape_type(x: TensorType, shape: tuple[Size, ...]) -> TensorType:
    result = TensorType(x.dtype, shape)
    if not equal(x.count, result.count):
        raise ShapeError(
            f"expects a shape of {x.count} elements, got {shape_text(shape)}, "
            f"which has {result.count}"
        )
    return result


def _reshape_index(i: Index, types: Sequence[TensorType], shape: tuple[Size, ...]) -> list[Access]:
    source = types[0].shape
    index: list[Size] = [0] * len(source)
    if 0 not in source:
        for inputs, outputs in _groups(source, shape):
            flat = _ravel([i[k] for k in outputs], [shape[k] for k in outputs])
            parts = _unravel(flat, [source[k] for k in inputs])
            for k, part in zip(inputs, parts, strict=True):
                index[k] = part
    return [Access(0, tuple(index))]


def _groups(a: Sequence[Size], b: Sequence[Size]) -> list[tuple[list[int], list[int]]]:
    """The finest split of two shapes into runs of axes with equally many elements, without 1s."""
    left = [k for k, size in enumerate(a) if size != 1]
    right = [k for k, size in enumerate(b) if size != 1]
    groups = []
    while left or right:
        p, q = [left.pop(0)], [right.pop(0)]
        count, other = a[p[0]], b[q[0]]
        while count != other:
            if left and (not right or quotient(other, count) is not None):
                p.append(left.pop(0))
                count = count * a[p[-1]]
            else:
                q.append(right.pop(0))
                other = other * b[q[-1]]
        groups.append((p, q))
    return groups


def _ravel(index: Sequence[Size], shape: Sequence[Size]) -> Size:
    flat: Size = 0
    for i, size in zip(index, shape, strict=True):
        flat = flat * size + i
    return flat


def _unravel(flat: Size, shape: Sequence[Size]) -> list[Size]:
    parts: list[Size] = []
    for size in reversed(shape[1:]):
        if not isinstance(size, int):
            raise ShapeError(
                f"has no index form here, because it divides by the size {size}; copy instead"
            )
        parts.append(flat % size)
        flat = flat // size
    return [flat, *reversed(parts)]


reshape = OpDef(
    "reshape",
    Kind.MOVE,
    infer=_reshape_type,
    ref=lambda x, shape: x.reshape(shape).copy(),
    doc="the same elements in row-major order in another shape; one size may be -1",
    attrs=_reshape_attrs,
    move=Move(_reshape_index),
    grad=lambda g, y, x, shape: (g.reshape(x.shape),),
    samples=lambda rng: [
        Sample(uniform(rng, (4, 6)), {"shape": (2, 2, 3, 2)}),
        Sample(uniform(rng, (2, 3, 4)), {"shape": (2, -1)}),
        Sample(uniform(rng, (2, 3, 4, 5)), {"shape": (6, 1, 20)}),
        Sample(uniform(rng, (5, 6, 7)), {"shape": (5, 3, 14)}),
        Sample(uniform(rng, (5, 4, 6)), {"shape": (5, 8, 3)}),
        Sample(uniform(rng, (3, 4)), {"shape": (2, 6)}),
        Sample(uniform(rng, ()), {"shape": (1, 1)}),
        Sample(uniform(rng, (1,)), {"shape": ()}),
        Sample(uniform(rng, (0, 3)), {"shape": (3, 0, 2)}),
        Sample(uniform(rng, (0, 3)), {"shape": (-1, 3)}),
        plain(specials(), shape=(2, -1)),
        plain(np.array([[True], [False]]), shape=(2,)),
    ],
    errors=lambda: [
        ErrorSample((MATRIX,), {"shape": (4,)}, ShapeError, "a shape of 6 elements"),
        ErrorSample((MATRIX,), {"shape": (-1, 4)}, ShapeError, "a multiple of 4"),
        ErrorSample((MATRIX,), {"shape": (-1, -1)}, ShapeError, "at most one -1"),
        ErrorSample((MATRIX,), {"shape": (-2, -3)}, ShapeError, "not negative"),
        ErrorSample((MATRIX,), {"shape": (0, -1)}, ShapeError, "a multiple of 0"),
        ErrorSample((MATRIX,), {"shape": (1.5,)}, ShapeError, "a size is"),
    ],
    torch=twin("reshape"),
    ulp=0.0,
)


# transpose


def _transpose_attrs(x: TensorType, axes: Any) -> dict[str, Any]:
    order = tuple(normal_axis(axis, x.ndim) for axis in axes)
    if sorted(order) != list(range(x.ndim)):
        raise ShapeError(f"expects each of {x.ndim} axes once, got {tuple(axes)}")
    return {"axes": order}


def inverse(axes: Sequence[int]) -> tuple[int, ...]:
    """The permutation that undoes ``axes``."""
    return tuple(sorted(range(len(axes)), key=lambda axis: axes[axis]))


transpose = OpDef(
    "transpose",
    Kind.MOVE,
    infer=lambda x, axes: TensorType(x.dtype, tuple(x.shape[axis] for axis in axes)),
    ref=lambda x, axes: x.transpose(axes).copy(),
    doc="axes in another order: output axis k is input axis axes[k]",
    attrs=_transpose_attrs,
    move=Move(lambda i, types, axes: [Access(0, tuple(i[k] for k in inverse(axes)))]),
    grad=lambda g, y, x, axes: (g.permute(inverse(axes)),),
    samples=lambda rng: [
        Sample(uniform(rng, (2, 3, 4)), {"axes": (2, 0, 1)}),
        Sample(uniform(rng, (2, 3)), {"axes": (-1, 0)}),
        Sample(uniform(rng, (2, 3)), {"axes": (0, 1)}),
        Sample(uniform(rng, (2, 0, 4)), {"axes": (1, 2, 0)}),
        Sample(uniform(rng, ()), {"axes": ()}),
        plain(rng.integers(0, 9, (2, 3)), axes=(1, 0)),
    ],
    errors=lambda: [
        ErrorSample((MATRIX,), {"axes": (0,)}, ShapeError, "each of 2 axes once"),
        ErrorSample((MATRIX,), {"axes": (0, 0)}, ShapeError, "each of 2 axes once"),
        ErrorSample((MATRIX,), {"axes": (0, 2)}, ShapeError, "an axis from -2 to 1"),
    ],
    torch=twin("permute", axes="dims"),
    ulp=0.0,
)


# expand


def _expand_attrs(x: TensorType, shape: Any) -> dict[str, Any]:
    sizes = _sizes(shape)
    extra = len(sizes) - x.ndim
    if extra < 0 or -1 in sizes[:extra]:
        raise ShapeError(
            f"expects at least the {x.ndim} dimensions of its input (-1 keeps one), "
            f"got {shape_text(sizes)}"
        )
    kept = (x.shape[k - extra] if size == -1 else size for k, size in enumerate(sizes))
    return {"shape": tuple(kept)}


def _expand_type(x: TensorType, shape: tuple[Size, ...]) -> TensorType:
    for size, target in zip(x.shape, shape[len(shape) - x.ndim :], strict=True):
        if size != 1 and not equal(size, target):
            raise ShapeError(
                f"expects a shape that its input broadcasts to, got {shape_text(shape)} "
                f"for {shape_text(x.shape)}"
            )
    return TensorType(x.dtype, not_negative(shape))


def _expand_index(i: Index, types: Sequence[TensorType], shape: tuple[Size, ...]) -> list[Access]:
    source = types[0].shape
    inner = i[len(shape) - len(source) :]
    return [Access(0, tuple(0 if n == 1 else k for n, k in zip(source, inner, strict=True)))]


expand = OpDef(
    "expand",
    Kind.MOVE,
    infer=_expand_type,
    ref=lambda x, shape: np.broadcast_to(x, shape).copy(),
    doc="broadcast to a shape; -1 keeps a size",
    attrs=_expand_attrs,
    move=Move(_expand_index),
    grad=lambda g, y, x, shape: (unbroadcast(g, x),),
    samples=lambda rng: [
        Sample(uniform(rng, (3, 1)), {"shape": (3, 4)}),
        Sample(uniform(rng, (3, 1)), {"shape": (2, -1, 4)}),
        Sample(uniform(rng, ()), {"shape": (2, 3)}),
        Sample(uniform(rng, (1, 3)), {"shape": (0, 3)}),
        Sample(uniform(rng, (2, 3)), {"shape": (2, 3)}),
        Sample(uniform(rng, (0, 1)), {"shape": (2, 0, 3)}),
        plain(np.array(True), shape=(3,)),
    ],
    errors=lambda: [
        ErrorSample((MATRIX,), {"shape": (2, 4)}, ShapeError, "its input broadcasts to"),
        ErrorSample((MATRIX,), {"shape": (3,)}, ShapeError, "at least the 2 dimensions"),
        ErrorSample((MATRIX,), {"shape": (-1, 2, 3)}, ShapeError, "-1 keeps one"),
        ErrorSample((TensorType("bool", (1,)),), {"shape": (-2,)}, ShapeError, "not negative"),
    ],
    torch=lambda torch, x, shape: x.expand(shape),
    ulp=0.0,
)


# slice


def _slice_attrs(x: TensorType, starts: Any, stops: Any, steps: Any = None) -> dict[str, Any]:
    steps = (1,) * x.ndim if steps is None else tuple(steps)
    for given in (starts, stops, steps):
        if len(given) != x.ndim:
            raise ShapeError(f"expects {x.ndim} starts, stops and steps, got {len(given)}")
    for step in steps:
        if isinstance(step, bool) or not isinstance(step, int) or step < 1:
            raise ShapeError(
                f"expects integer steps of at least 1, got {step!r}; reverse with x.flip(axis)"
            )
    begin, end = [], []
    for size, start, stop in zip(x.shape, starts, stops, strict=True):
        first = 0 if start is None else _position(start, size)
        last = size if stop is None else _position(stop, size)
        begin.append(first)
        end.append(first if less(last, first) else last)
    return {"starts": tuple(begin), "stops": tuple(end), "steps": steps}


def _position(value: Any, size: Size) -> Size:
    """``value`` counted from the front and held between 0 and ``size``, as Python's slices are."""
    position = as_size(value)
    if less(position, 0):
        position = position + size
    if less(position, 0):
        return 0
    return size if less(size, position) else position


def _slice_type(x: TensorType, starts: Index, stops: Index, steps: tuple[int, ...]) -> TensorType:
    counts = [(b - a + (s - 1)) // s for a, b, s in zip(starts, stops, steps, strict=True)]
    return TensorType(x.dtype, tuple(counts))


def _slice_index(
    i: Index, types: Sequence[TensorType], starts: Index, stops: Index, steps: tuple[int, ...]
) -> list[Access]:
    return [Access(0, tuple(a + k * s for k, a, s in zip(i, starts, steps, strict=True)))]


def _slice_grad(
    g: Node, y: Node, x: Node, starts: Index, stops: Index, steps: tuple[int, ...]
) -> tuple[Node]:
    for axis, step in enumerate(steps):
        if step > 1:
            g = _spaced(g, axis, step).narrow(axis, 0, stops[axis] - starts[axis])
    high = tuple(size - stop for size, stop in zip(x.shape, stops, strict=True))
    return (apply("pad", g, low=starts, high=high, value=0.0),)


def _spaced(g: Node, axis: int, step: int) -> Node:
    """``step - 1`` zeros after each element along ``axis``."""
    apart = g.unsqueeze(axis + 1)
    high = tuple(step - 1 if k == axis + 1 else 0 for k in range(apart.ndim))
    spaced = apply("pad", apart, low=(0,) * apart.ndim, high=high, value=0.0)
    return spaced.flatten(axis, axis + 1)


def _slice_torch(torch: Any, x: Any, starts: Any, stops: Any, steps: Any) -> Any:
    return x[tuple(slice(a, b, s) for a, b, s in zip(starts, stops, steps, strict=True))]


slice_ = OpDef(
    "slice",
    Kind.MOVE,
    infer=_slice_type,
    ref=lambda x, starts, stops, steps: x[tuple(map(slice, starts, stops, steps))].copy(),
    doc="every steps[k]-th element from starts[k] to before stops[k] along each axis k",
    attrs=_slice_attrs,
    move=Move(_slice_index),
    grad=_slice_grad,
    samples=lambda rng: [
        Sample(uniform(rng, (4, 6)), {"starts": (1, 0), "stops": (3, 6), "steps": (1, 2)}),
        Sample(uniform(rng, (7,)), {"starts": (1,), "stops": (None,), "steps": (3,)}),
        Sample(uniform(rng, (7,)), {"starts": (None,), "stops": (-2,), "steps": (2,)}),
        Sample(uniform(rng, (7,)), {"starts": (-3,), "stops": (99,), "steps": (1,)}),
        Sample(uniform(rng, (7, 2)), {"starts": (5, 0), "stops": (2, 2), "steps": (1, 1)}),
        Sample(uniform(rng, (0, 2)), {"starts": (0, 0), "stops": (0, 1), "steps": (2, 1)}),
        Sample(uniform(rng, ()), {"starts": (), "stops": (), "steps": ()}),
        plain(rng.integers(0, 9, (2, 3)), starts=(0, 1), stops=(2, 3), steps=(1, 1)),
    ],
    errors=lambda: [
        ErrorSample(
            (MATRIX,), {"starts": (0,), "stops": (1,), "steps": (1,)}, ShapeError, "expects 2"
        ),
        ErrorSample(
            (MATRIX,),
            {"starts": (0, 2), "stops": (2, 0), "steps": (1, -1)},
            ShapeError,
            "steps of at least 1",
        ),
    ],
    torch=_slice_torch,
    ulp=0.0,
)


# pad


def _pad_attrs(x: TensorType, low: Any, high: Any, value: float = 0.0) -> dict[str, Any]:
    if len(low) != x.ndim or len(high) != x.ndim:
        raise ShapeError(f"expects {x.ndim} widths on each side, got {len(low)} and {len(high)}")
    before, after = (not_negative(_sizes(w), "widths (crop with a slice)") for w in (low, high))
    return {"low": before, "high": after, "value": number_in(x.dtype, value, "a value")}


def _pad_type(x: TensorType, low: Index, high: Index, value: float) -> TensorType:
    return TensorType(x.dtype, tuple(a + n + b for a, n, b in zip(low, x.shape, high, strict=True)))


def _pad_ref(x: Array, low: Any, high: Any, value: float) -> Array:
    shape = [a + n + b for a, n, b in zip(low, x.shape, high, strict=True)]
    result = np.full(shape, value, x.dtype)
    result[tuple(slice(a, a + n) for a, n in zip(low, x.shape, strict=True))] = x
    return result


def _pad_index(
    i: Index, types: Sequence[TensorType], low: Index, high: Index, value: float
) -> list[Access]:
    inner = tuple(k - a for k, a in zip(i, low, strict=True))
    guards = [
        (0, k, size)
        for k, size, a, b in zip(inner, types[0].shape, low, high, strict=True)
        if a != 0 or b != 0
    ]
    return [Access(0, inner, tuple(guards))]


def _pad_grad(g: Node, y: Node, x: Node, low: Index, high: Index, value: float) -> tuple[Node]:
    stops = tuple(a + size for a, size in zip(low, x.shape, strict=True))
    return (apply("slice", g, starts=low, stops=stops, steps=(1,) * x.ndim),)


def _pad_torch(torch: Any, x: Any, low: Any, high: Any, value: float = 0.0) -> Any:
    widths = [width for pair in zip(reversed(low), reversed(high), strict=True) for width in pair]
    return torch.nn.functional.pad(x, widths, value=value) if widths else x.clone()


pad = OpDef(
    "pad",
    Kind.MOVE,
    infer=_pad_type,
    ref=_pad_ref,
    doc="low[k] elements of a value before, high[k] after, along each axis k",
    attrs=_pad_attrs,
    move=Move(_pad_index, fill="value"),
    grad=_pad_grad,
    samples=lambda rng: [
        Sample(uniform(rng, (2, 3)), {"low": (1, 0), "high": (0, 2)}),
        Sample(uniform(rng, (2, 3)), {"low": (1, 1), "high": (1, 1), "value": -1.5}),
        plain(np.zeros((0, 2)), low=(1, 0), high=(1, 0), value=np.inf),
        Sample(uniform(rng, ()), {"low": (), "high": ()}),
        plain(rng.integers(0, 9, (2, 3)), low=(0, 1), high=(2, 0), value=7),
        plain(specials(), low=(1,), high=(2,), value=np.nan),
    ],
    errors=lambda: [
        ErrorSample((MATRIX,), {"low": (1,), "high": (1,)}, ShapeError, "expects 2 widths"),
        ErrorSample((MATRIX,), {"low": (-1, 0), "high": (0, 0)}, ShapeError, "crop with a slice"),
        ErrorSample(
            (TensorType("int32", (2,)),),
            {"low": (1,), "high": (0,), "value": 0.5},
            DTypeError,
            "a value of type int32",
        ),
    ],
    torch=_pad_torch,
    ulp=0.0,
)


# concat


def _concat_attrs(*types: TensorType, axis: int = 0) -> dict[str, Any]:
    return {"axis": normal_axis(axis, types[0].ndim)}


def _concat_type(*types: TensorType, axis: int) -> TensorType:
    first = types[0]
    for t in types[1:]:
        pairs = zip(first.shape, t.shape, strict=False)
        if t.ndim != first.ndim or any(
            not equal(a, b) for k, (a, b) in enumerate(pairs) if k != axis
        ):
            raise ShapeError(
                f"expects shapes that differ along axis {axis} only, "
                f"got {shape_text(first.shape)} and {shape_text(t.shape)}"
            )
    total: Size = 0
    for t in types:
        total = total + t.shape[axis]
    shape = (*first.shape[:axis], total, *first.shape[axis + 1 :])
    return TensorType(first.dtype, shape)


def _concat_index(i: Index, types: Sequence[TensorType], axis: int) -> list[Access]:
    accesses, start = [], as_size(0)
    for operand, t in enumerate(types):
        inner = i[axis] - start
        index = (*i[:axis], inner, *i[axis + 1 :])
        accesses.append(Access(operand, index, ((0, inner, t.shape[axis]),)))
        start = start + t.shape[axis]
    return accesses


def _concat_grad(g: Node, y: Node, *inputs: Node, axis: int) -> tuple[Node, ...]:
    parts, start = [], as_size(0)
    for x in inputs:
        parts.append(g.narrow(axis, start, x.shape[axis]))
        start = start + x.shape[axis]
    return tuple(parts)


concat = OpDef(
    "concat",
    Kind.MOVE,
    arity=(1, math.inf),
    infer=_concat_type,
    ref=lambda *arrays, axis: np.concatenate(arrays, axis),
    doc="tensors one after the other along an axis",
    attrs=_concat_attrs,
    move=Move(_concat_index),
    grad=_concat_grad,
    promotes=True,
    samples=lambda rng: [
        Sample(uniform(rng, (2, 3), (2, 1), (2, 2)), {"axis": 1}),
        Sample(uniform(rng, (2, 3), (0, 3)), {"axis": 0}),
        Sample(uniform(rng, (2, 3), (2, 3)), {"axis": -1}),
        Sample(uniform(rng, (4,)), {"axis": 0}),
        plain([1, 2], [3], axis=0),
        plain([True], [False], axis=0),
    ],
    errors=lambda: [
        ErrorSample((), {"axis": 0}, ArgumentError, "at least 1 input, got 0"),
        ErrorSample((MATRIX, MATRIX), {"axis": 2}, ShapeError, "an axis from"),
        ErrorSample((TensorType("bool"),) * 2, {"axis": 0}, ShapeError, "no axis of a scalar"),
        ErrorSample(
            (MATRIX, TensorType("float32", (2, 4))), {"axis": 0}, ShapeError, "along axis 0 only"
        ),
        ErrorSample(
            (MATRIX, TensorType("float32", (2,))), {"axis": 0}, ShapeError, "along axis 0 only"
        ),
    ],
    torch=lambda torch, *tensors, axis=0: torch.cat(tensors, axis),
    ulp=0.0,
)


# flip


def _flip_index(i: Index, types: Sequence[TensorType], axes: tuple[int, ...]) -> list[Access]:
    shape = types[0].shape
    return [Access(0, tuple(shape[k] - 1 - n if k in axes else n for k, n in enumerate(i)))]


flip = OpDef(
    "flip",
    Kind.MOVE,
    infer=lambda x, axes: x,
    ref=lambda x, axes: np.flip(x, axes).copy(),
    doc="elements in reverse order along axes",
    attrs=lambda x, axes=None: {"axes": normal_axes(axes, x.ndim)},
    move=Move(_flip_index),
    grad=lambda g, y, x, axes: (g.flip(axes),),
    samples=lambda rng: [
        Sample(uniform(rng, (2, 3)), {"axes": (1,)}),
        Sample(uniform(rng, (2, 3, 2)), {"axes": (0, -1)}),
        Sample(uniform(rng, (0, 3)), {"axes": (0,)}),
        Sample(uniform(rng, (3,)), {"axes": ()}),
        plain(rng.integers(0, 9, (4,)), axes=(0,)),
    ],
    errors=lambda: [ErrorSample((MATRIX,), {"axes": (2,)}, ShapeError, "an axis from")],
    torch=twin("flip", axes="dims"),
    ulp=0.0,
)
