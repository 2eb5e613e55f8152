"""Movement to and from positions that are values: take, gather, scatter_add.

An index out of range is an error that names the op, the index and its place; a negative one is out
of range too (indexing a tensor with ``x[i]`` counts it from the end first).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dlc.errors import DTypeError, IndexError, ShapeError
from dlc.ir.node import Node
from dlc.ir.op import Array, ErrorSample, Kind, OpDef, Sample
from dlc.ir.sizes import bounds, product, shape_text
from dlc.ir.types import TensorType
from dlc.ops.common import filled, normal_axis, plain, require_integer, uniform

VECTOR = TensorType("float32", (4,))
POSITIONS = TensorType("int64", (4,))


def _axis(x: TensorType, *rest: TensorType, axis: int) -> dict[str, Any]:
    return {"axis": normal_axis(axis, x.ndim)}


def _named(x: TensorType, index: TensorType, axis: int, what: str = "") -> dict[str, Any]:
    """``what`` the indices are to a user, such as labels, where they are that."""
    return _axis(x, axis=axis) | ({"what": what} if what else {})


def check_index(op: str, index: Array, size: int, what: str = "indices") -> None:
    """Raise `IndexError` for the first element of ``index`` outside ``0 <= i < size``."""
    wrong = np.argwhere((index < 0) | (index >= size))
    if len(wrong):
        place = tuple(wrong[0].tolist())
        raise IndexError(f"{op} expects {what} from 0 to {size - 1}, got {index[place]} at {place}")


# take


def _take_type(x: TensorType, index: TensorType, axis: int, what: str = "") -> TensorType:
    require_integer(index)
    return TensorType(x.dtype, (*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]))


def _take_ref(x: Array, index: Array, axis: int, what: str = "indices") -> Array:
    check_index("take", index, x.shape[axis], what)
    return np.take(x, index, axis)


def _take_grad(
    g: Node, y: Node, x: Node, index: Node, axis: int, what: str = ""
) -> tuple[Node, None]:
    before, after = x.shape[:axis], x.shape[axis + 1 :]
    rows = product(index.shape)
    flat = g.reshape(*before, rows, *after)
    column = index.reshape(*(1 for _ in before), rows, *(1 for _ in after)).expand(flat.shape)
    return filled(x.builder, x.shape, 0.0, x.dtype).scatter_add(axis, column, flat), None


def _take_torch(torch: Any, x: Any, index: Any, axis: int, what: str = "") -> Any:
    rows = torch.index_select(x, axis, index.reshape(-1))
    return rows.reshape(*x.shape[:axis], *index.shape, *x.shape[axis:][1:])


take = OpDef(
    "take",
    Kind.OPAQUE,
    arity=2,
    infer=_take_type,
    ref=_take_ref,
    doc="the parts of x at positions of one axis, in whose place the dimensions of the index stand",
    attrs=_named,
    grad=_take_grad,
    samples=lambda rng: [
        Sample((*uniform(rng, (5, 3)), rng.integers(0, 5, (2, 4))), {"axis": 0}),
        Sample((*uniform(rng, (2, 5, 3)), rng.integers(0, 5, 4).astype(np.int32)), {"axis": 1}),
        Sample((*uniform(rng, (2, 3)), np.array(2)), {"axis": -1, "what": "labels"}),
        Sample((*uniform(rng, (2, 3)), np.zeros((0,), np.int64)), {"axis": 0}),
        plain([True, False], [1, 1, 0], axis=0),
    ],
    errors=lambda: [
        ErrorSample((VECTOR, VECTOR), {"axis": 0}, DTypeError, "int32 or int64"),
        ErrorSample((VECTOR, POSITIONS), {"axis": 1}, ShapeError, "an axis from"),
        ErrorSample((TensorType("bool"), POSITIONS), {"axis": 0}, ShapeError, "no axis"),
    ],
    checks=True,
    torch=_take_torch,
    ulp=0.0,
)


# gather and scatter_add


def _fits(index: TensorType, other: TensorType, what: str, but: int | None = None) -> None:
    """Refuse an index that is larger than ``other`` along a dimension, except along ``but``."""
    require_integer(index)
    if index.ndim != other.ndim:
        raise ShapeError(
            f"expects an index of {other.ndim} dimensions like {what}, got {index.ndim}"
        )
    for axis, (n, size) in enumerate(zip(index.shape, other.shape, strict=True)):
        if axis != but and bounds(size - n)[0] < 0:
            raise ShapeError(
                f"expects an index no larger than {what} along axis {axis}, got "
                f"{shape_text(index.shape)} for {shape_text(other.shape)}"
            )


def _gather_type(x: TensorType, index: TensorType, axis: int, what: str = "") -> TensorType:
    _fits(index, x, "its input", but=axis)
    return index.with_dtype(x.dtype)


def _mesh(index: Array, axis: int) -> tuple[Array, ...]:
    """Where each element of ``index`` points: its own place, but along ``axis`` what it says."""
    mesh = list(np.ogrid[tuple(slice(n) for n in index.shape)])
    mesh[axis] = index
    return tuple(mesh)


def _gather_ref(x: Array, index: Array, axis: int, what: str = "indices") -> Array:
    check_index("gather", index, x.shape[axis], what)
    return x[_mesh(index, axis)]


gather = OpDef(
    "gather",
    Kind.OPAQUE,
    arity=2,
    infer=_gather_type,
    ref=_gather_ref,
    doc="y[i][j] = x[index[i][j]][j] along axis 0, and so on: an index for every element",
    attrs=_named,
    grad=lambda g, y, x, index, axis, what="": (
        filled(x.builder, x.shape, 0.0, x.dtype).scatter_add(axis, index, g),
        None,
    ),
    samples=lambda rng: [
        Sample((*uniform(rng, (4, 3)), rng.integers(0, 4, (2, 3))), {"axis": 0}),
        Sample((*uniform(rng, (4, 3)), rng.integers(0, 3, (3, 6))), {"axis": 1}),
        Sample((*uniform(rng, (2, 4, 3)), rng.integers(0, 4, (2, 1, 3))), {"axis": -2}),
        Sample((*uniform(rng, (5,)), rng.integers(0, 5, 7)), {"axis": 0, "what": "labels"}),
        Sample((*uniform(rng, (2, 3)), np.zeros((2, 0), np.int64)), {"axis": 1}),
        plain(rng.integers(0, 9, 4), [3, 0], axis=0),
    ],
    errors=lambda: [
        ErrorSample((VECTOR, VECTOR), {"axis": 0}, DTypeError, "int32 or int64"),
        ErrorSample((VECTOR, TensorType("int64")), {"axis": 0}, ShapeError, "of 1 dimensions"),
        ErrorSample(
            (TensorType("float32", (2, 3)), TensorType("int64", (3, 3))),
            {"axis": 1},
            ShapeError,
            "no larger than its input along axis 0",
        ),
    ],
    checks=True,
    torch=lambda torch, x, index, axis, what="": torch.gather(x, axis, index),
    ulp=0.0,
)


def _scatter_type(x: TensorType, index: TensorType, src: TensorType, axis: int) -> TensorType:
    if x.dtype != src.dtype:
        raise DTypeError(f"expects a source of {x.dtype} like its input, got {src.dtype}")
    _fits(index, x, "its input", but=axis)
    _fits(index, src, "its source")
    return x


def _scatter_ref(x: Array, index: Array, src: Array, axis: int) -> Array:
    check_index("scatter_add", index, x.shape[axis])
    result = x.copy()
    np.add.at(result, _mesh(index, axis), src[tuple(slice(n) for n in index.shape)])
    return result


def _scatter_grad(
    g: Node, y: Node, x: Node, index: Node, src: Node, axis: int
) -> tuple[Node, None, Node]:
    part = g.gather(axis, index)
    high = tuple(n - m for n, m in zip(src.shape, index.shape, strict=True))
    if any(width != 0 for width in high):
        attrs = {"low": (0,) * part.ndim, "high": high, "value": 0.0}
        part = part.builder.node("pad", (part,), attrs)
    return g, None, part


def _with_index(
    rng: np.random.Generator,
    x: tuple[int, ...],
    index: tuple[int, ...],
    src: tuple[int, ...],
    axis: int,
) -> tuple[Array, ...]:
    return *uniform(rng, x), rng.integers(0, x[axis], index), *uniform(rng, src)


def _scatter_torch(torch: Any, x: Any, index: Any, src: Any, axis: int) -> Any:
    # PyTorch's own gradient wants a source of the index's shape.
    return torch.scatter_add(x, axis, index, src[tuple(slice(n) for n in index.shape)])


scatter_add = OpDef(
    "scatter_add",
    Kind.OPAQUE,
    arity=3,
    infer=_scatter_type,
    ref=_scatter_ref,
    doc="x with src[i][j] added at [index[i][j]][j] along axis 0, and so on, in the order of src",
    attrs=_axis,
    grad=_scatter_grad,
    flops=lambda y, x, index, src, axis: index.count,
    samples=lambda rng: [
        Sample((*_with_index(rng, (4, 3), (6, 3), (6, 3), 0),), {"axis": 0}),
        Sample((*_with_index(rng, (4, 3), (3, 5), (4, 6), 1),), {"axis": 1}),
        Sample((*_with_index(rng, (2, 4, 3), (2, 1, 3), (2, 1, 3), 1),), {"axis": -2}),
        Sample((*_with_index(rng, (4,), (0,), (0,), 0),), {"axis": 0}),
        plain(np.zeros(3, np.int64), [2, 2, 0], [5, 6, 7], axis=0),
    ],
    errors=lambda: [
        ErrorSample((VECTOR, VECTOR, VECTOR), {"axis": 0}, DTypeError, "int32 or int64"),
        ErrorSample((VECTOR, POSITIONS, POSITIONS), {"axis": 0}, DTypeError, "source of float32"),
        ErrorSample(
            (VECTOR, TensorType("int64", (5,)), VECTOR), {"axis": 0}, ShapeError, "its source along"
        ),
    ],
    checks=True,
    torch=_scatter_torch,
)
