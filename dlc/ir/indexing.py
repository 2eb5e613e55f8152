"""``x[key]`` as slice, take and reshape.

Python's indexing has many forms, the graph has three movements; here the one becomes the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dlc.errors import IndexError, TraceError
from dlc.ir.sizes import Dim, Poly, Size, as_size

if TYPE_CHECKING:
    from dlc.ir.node import Node


def index(node: Node, key: tuple[Any, ...]) -> Node:
    """The part of ``node`` that ``key`` names, as PyTorch reads it.

    Parameters
    ----------
    node : Node
    key : tuple of int, size, slice, None, Ellipsis, integer tensor or array
        At most one is a tensor; its dimensions take the place of the one it indexes.

    Raises
    ------
    IndexError
        An integer is outside its dimension, or there are more indices than dimensions.
    TraceError
        The shape of the result would depend on values (a mask), or there are several tensors.
    """
    items = _complete(key, node)
    axes = [item for item in items if item is not None]
    cut = _cut(node, axes)
    tensors = [axis for axis, item in enumerate(axes) if _is_tensor(item)]
    if len(tensors) > 1:
        raise TraceError(
            f"one tensor may index {node.describe()}, got {len(tensors)}; "
            "index one dimension after the other, or use x.gather(dim, index)"
        )
    for axis in tensors:
        cut = _take(cut, axes[axis], axis)
    return _reshaped(cut, items)


def _complete(items: tuple[Any, ...], node: Node) -> list[Any]:
    """``items`` with Ellipsis and missing dimensions written out as full slices."""
    used = sum(item is not None and item is not Ellipsis for item in items)
    if used > node.ndim:
        raise IndexError(f"{used} indices for {node.ndim} dimensions of {node.describe()}")
    rest = [slice(None)] * (node.ndim - used)
    places = [k for k, item in enumerate(items) if item is Ellipsis]
    if len(places) > 1:
        raise IndexError(
            f"one Ellipsis may stand in an index, got {len(places)}, for {node.describe()}"
        )
    if not places:
        return [*items, *rest]
    return [*items[: places[0]], *rest, *items[places[0] + 1 :]]


def _cut(node: Node, axes: list[Any]) -> Node:
    """The slice that integers and slices select; an integer leaves a dimension of size 1."""
    parts = [
        _part(item, size, axis, node)
        for axis, (item, size) in enumerate(zip(axes, node.shape, strict=True))
    ]
    if all(part == slice(None) for part in parts):
        return node
    attrs = {
        "starts": tuple(part.start for part in parts),
        "stops": tuple(part.stop for part in parts),
        "steps": tuple(1 if part.step is None else part.step for part in parts),
    }
    return node.builder.node("slice", (node,), attrs)


def _part(item: Any, size: Size, axis: int, node: Node) -> slice:
    if isinstance(item, slice):
        return item
    return slice(None) if _is_tensor(item) else _one(item, size, axis, node)


def _is_tensor(item: object) -> bool:
    return isinstance(item, (list, np.ndarray)) or hasattr(item, "builder")


def _is_one(item: object) -> bool:
    return not isinstance(item, slice) and not _is_tensor(item)


def _one(item: Any, size: Size, axis: int, node: Node) -> slice:
    if isinstance(item, (bool, np.bool_)) or not (
        isinstance(item, (Poly, Dim)) or hasattr(item, "__index__")
    ):
        raise TraceError(
            "an index is an integer, a slice, None, ... or a tensor of integers; "
            f"got {item!r} for {node.describe()}"
        )
    position = as_size(item)
    if isinstance(position, int) and position < 0:
        position = position + size
    if isinstance(position, int) and isinstance(size, int) and not 0 <= position < size:
        raise IndexError(f"index {item} is outside dimension {axis} of {node.describe()}")
    return slice(position, position + 1)


def _take(node: Node, item: Any, axis: int) -> Node:
    size = node.shape[axis]
    if not hasattr(item, "builder"):
        item = _constant(np.asarray(item), size, axis, node)
    if item.dtype == "bool":
        raise TraceError(
            "a mask of bools gives a shape that depends on values; "
            f"use dlc.where(mask, x, 0) on {node.describe()}"
        )
    if item.dtype not in ("int32", "int64"):
        raise TraceError(
            f"an index has element type int32 or int64, got {item.dtype}, for {node.describe()}"
        )
    length = node.builder.operand(size, item)
    from_end = (item < 0) & (item >= -length)  # others stay as they are, for the error to show
    index = node.builder.node("where", (from_end, item + length, item))
    return node.builder.node("take", (node, index), {"axis": axis})


def _constant(array: Any, size: Size, axis: int, node: Node) -> Node:
    """An array of positions, checked here where the size is known."""
    if not array.size:
        array = array.astype(np.int64)
    if array.dtype.kind == "i" and isinstance(size, int):
        wrong = array[(array < -size) | (array >= size)]
        if wrong.size:
            raise IndexError(f"index {wrong[0]} is outside dimension {axis} of {node.describe()}")
    return node.builder.constant(array)


def _reshaped(node: Node, items: list[Any]) -> Node:
    """New dimensions put in, dimensions of integers taken out."""
    if all(item is not None and not _is_one(item) for item in items):
        return node
    shape: list[Size] = []
    sizes = iter(node.shape)
    for item in items:
        if item is None:
            shape.append(1)
        elif _is_one(item):
            next(sizes)
        else:
            rank = (
                np.ndim(item) if isinstance(item, (list, np.ndarray)) else getattr(item, "ndim", 1)
            )
            shape += [next(sizes) for _ in range(rank)]
    return node.reshape(shape)
