"""What the op families share: type rules, axes, broadcasting, samples, twins.

They are small functions with one meaning each, so that a record reads as a definition.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from dlc.errors import DTypeError, ShapeError
from dlc.ir.arithmetic import where
from dlc.ir.node import Builder, Node
from dlc.ir.op import Array, Sample
from dlc.ir.sizes import Size, bounds, equal, shape_text
from dlc.ir.types import FLOATS, INTEGERS, TensorType, is_float

__all__ = [
    "as_given",
    "broadcast",
    "broadcast_shapes",
    "comparison",
    "filled",
    "normal_axes",
    "normal_axis",
    "not_negative",
    "number_in",
    "only_floats",
    "require_float",
    "require_integer",
    "specials",
    "twin",
    "unbroadcast",
    "uniform",
    "where",
]

# Type rules.


def broadcast(*types: TensorType, **_: object) -> TensorType:
    """The type rule of arithmetic: inputs of one element type, shapes broadcast."""
    if len({t.dtype for t in types}) > 1:
        names = ", ".join(t.dtype for t in types)
        raise DTypeError(f"expects inputs of one element type, got {names}; cast with x.to(dtype)")
    return TensorType(types[0].dtype, broadcast_shapes(*(t.shape for t in types)))


def comparison(*types: TensorType, **_: object) -> TensorType:
    """The type rule of comparisons: shapes broadcast, the result is bool."""
    return broadcast(*types).with_dtype("bool")


def only_floats(*types: TensorType, **_: object) -> TensorType:
    """The type rule of functions of floats alone."""
    require_float(*types)
    return broadcast(*types)


def require_float(*types: TensorType) -> None:
    """Refuse element types that are not floats."""
    for t in types:
        if t.dtype not in FLOATS:
            raise DTypeError(f"expects a tensor of floats, got {t.dtype}; cast with x.float()")


def require_integer(index: TensorType, what: str = "index") -> None:
    """Refuse an index that is not int32 or int64."""
    if index.dtype not in ("int32", "int64"):
        raise DTypeError(f"expects {what} of int32 or int64, got {index.dtype}; cast with x.long()")


# Attributes.


def as_given(*types: TensorType, **attrs: Any) -> dict[str, Any]:
    """Attributes that passes write, in canonical form from the start."""
    return attrs


def number_in(dtype: str, value: float, what: str) -> float | int:
    """``value`` as a number of an element type; refuse what an integer type cannot hold."""
    if is_float(dtype):
        return float(value)
    kind = np.iinfo(dtype) if dtype in INTEGERS else None
    low, high = (int(kind.min), int(kind.max)) if kind else (0, 1)
    if not (float(value).is_integer() and low <= value <= high):
        raise DTypeError(
            f"expects {what} of type {dtype} ({low} to {high}), got {value!r}; cast the tensor, "
            "as in x.float()"
        )
    return int(value)


def not_negative(sizes: Sequence[Size], what: str = "sizes") -> tuple[Size, ...]:
    """``sizes``, none of which may be below zero anywhere in the ranges of its dimensions."""
    if any(bounds(size)[0] < 0 for size in sizes):
        raise ShapeError(f"expects {what} that are not negative, got {shape_text(sizes)}")
    return tuple(sizes)


# Shapes and axes.


def broadcast_shapes(*shapes: Sequence[Size]) -> tuple[Size, ...]:
    """The common shape by NumPy's rule; a symbolic size meets itself or 1, and nothing else."""
    result: tuple[Size, ...] = ()
    for shape in shapes:
        result = _broadcast_pair(result, tuple(shape))
    return result


def _broadcast_pair(a: tuple[Size, ...], b: tuple[Size, ...]) -> tuple[Size, ...]:
    ndim = max(len(a), len(b))
    left = (1,) * (ndim - len(a)) + a
    right = (1,) * (ndim - len(b)) + b
    sizes: list[Size] = []
    for axis, (p, q) in enumerate(zip(left, right, strict=True)):
        if p != 1 and q != 1 and not equal(p, q):
            raise ShapeError(
                f"expects shapes that broadcast, got {shape_text(a)} and {shape_text(b)}: "
                f"{p} and {q} differ on axis {axis - ndim}"
            )
        sizes.append(q if p == 1 else p)
    return tuple(sizes)


def normal_axis(axis: int, ndim: int) -> int:
    """``axis`` counted from the front; raises `ShapeError` outside ``-ndim <= axis < ndim``."""
    if isinstance(axis, bool) or not hasattr(axis, "__index__"):
        raise ShapeError(f"expects an integer axis, got {axis!r}")
    position = axis.__index__()
    if not -ndim <= position < ndim:
        allowed = f"an axis from {-ndim} to {ndim - 1}" if ndim else "no axis of a scalar"
        raise ShapeError(f"expects {allowed}, got {position}")
    return position % ndim


def normal_axes(axes: int | Iterable[int] | None, ndim: int) -> tuple[int, ...]:
    """Axes counted from the front, in order; None means all of them."""
    if axes is None:
        return tuple(range(ndim))
    given = axes if isinstance(axes, Iterable) else (axes,)
    found = [normal_axis(axis, ndim) for axis in given]
    if len(set(found)) != len(found):
        raise ShapeError(f"expects each axis once, got {tuple(given)} on {ndim} dimensions")
    return tuple(sorted(found))


# Pieces of gradient rules and expansions.


def unbroadcast(g: Node, like: Node) -> Node:
    """Sum ``g`` over the axes along which ``like`` was broadcast: the gradient of broadcasting."""
    if g.shape == like.shape:
        return g
    extra = g.ndim - like.ndim
    axes = [k for k in range(g.ndim) if k < extra or (like.shape[k - extra] == 1 != g.shape[k])]
    return g.sum(tuple(axes), keepdim=True).reshape(like.shape)


def filled(builder: Builder, shape: Iterable[Size], value: float, dtype: str) -> Node:
    """A tensor of one value, as a broadcast scalar that takes no memory."""
    scalar = builder.constant(value, dtype)
    sizes = tuple(shape)
    return builder.node("expand", (scalar,), {"shape": sizes}) if sizes else scalar


# Samples and twins.


def uniform(
    rng: np.random.Generator, *shapes: tuple[int, ...], low: float = -2.0, high: float = 2.0
) -> tuple[Array, ...]:
    """Arrays of float64 between ``low`` and ``high``."""
    return tuple(rng.uniform(low, high, shape) for shape in shapes)


def specials() -> Array:
    """NaN, infinities, signed zeros, denormals and large values, for checks without gradient."""
    inf, nan, tiny = math.inf, math.nan, 1e-40
    return np.array(
        [nan, inf, -inf, 0.0, -0.0, 1.0, -1.0, 0.5, -2.5, 3.5, tiny, -tiny, 80.0, -80.0]
    )


def plain(*arrays: Any, **attrs: Any) -> Sample:
    """A sample that takes no part in gradient checks."""
    return Sample(tuple(np.asarray(array) for array in arrays), attrs, differentiable=())


def twin(name: str, **renamed: str) -> Callable[..., Any]:
    """The function ``torch.<name>``, with attributes renamed: ``twin("sum", axes="dim")``."""

    def call(torch: Any, *tensors: Any, **attrs: Any) -> Any:
        function = torch
        for part in name.split("."):
            function = getattr(function, part)
        return function(*tensors, **{renamed.get(key, key): attrs[key] for key in attrs})

    return call
