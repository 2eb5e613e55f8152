"""Memory: give every value a buffer, and every buffer of the arena an offset, so that dead values
make room.

Offsets are planned at the maximum of every dimension, once; a call with a smaller batch uses part
of each buffer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dlc.ir.graph import Graph
from dlc.ir.node import Node
from dlc.ir.op import Kind
from dlc.ir.plan import SLACK, Buffer, Layout, align
from dlc.ir.schedule import Group, Schedule
from dlc.ir.sizes import bounds


def assign_memory(
    graph: Graph, groups: Sequence[Group], layouts: Mapping[Node, Layout], role: str = "arena"
) -> Schedule:
    """A schedule whose values all have buffers.

    With ``role="prepared"`` the outputs of the graph lie in memory that outlives the call, and are
    never overwritten.
    """
    owner = _owners(groups)
    buffers: dict[Node, Buffer] = {}
    states, state = set(graph.aliases.values()), 0
    for node in graph.nodes:
        if node.op.name in ("input", "parameter"):
            kind = "input" if node.op.name == "input" else "parameter"
            buffers[node] = Buffer(str(node.name), kind, node.tensor_type, Layout.rows(node.ndim))
            if node.name in states:
                own = replace(buffers[node], role="state", layout=layouts[node], offset=state)
                buffers[node] = own
                state += align(bounds(own.nbytes)[1] + SLACK)
        elif node.op.name == "constant":
            name = f"constant_{content_digest(node.attrs['value'])}"
            buffers[node] = Buffer(name, "constant", node.tensor_type, Layout.rows(node.ndim))
    in_place = {value: leaf for group in groups for value, leaf in group.in_place}
    buffers |= {value: buffers[leaf] for value, leaf in in_place.items()}
    ends = {owner.get(n, n) for i, n in enumerate(graph.outputs) if i not in graph.aliases}
    names = {
        owner.get(n, n): name for n, name in zip(graph.outputs, graph.output_names, strict=True)
    }
    arena = _Arena()
    last_use = _last_uses(groups, owner)
    for number, group in enumerate(groups):
        for node in group.outputs:
            if owner[node] is not node or node in in_place:
                continue  # a view lies in its owner's buffer
            if node in ends and role == "arena":
                buffers[node] = Buffer(names[node], "output", node.tensor_type, layouts[node])
                continue
            until = len(groups) if node in ends else last_use.get(node, number)
            spent = (
                None if node in ends else _spent(group, number, buffers, layouts, last_use, owner)
            )
            if spent is not None:
                arena.extend(spent.offset, until)
                buffers[node] = replace(spent, name=f"value{number}")
                continue
            kind = "prepared" if node in ends else "arena"
            made = Buffer(names.get(node, f"value{number}"), kind, node.tensor_type, layouts[node])
            offset = (
                arena.place(bounds(made.nbytes)[1] + SLACK, number, until) if kind == "arena" else 0
            )
            buffers[node] = Buffer(made.name, kind, made.type, made.layout, offset)
    for group in groups:
        for node in group.outputs:
            if owner[node] is not node:
                base = buffers[owner[node]]
                buffers[node] = Buffer(
                    base.name, base.role, node.tensor_type, Layout.rows(node.ndim), base.offset
                )
    return Schedule(graph, tuple(groups), layouts, buffers, arena.size, state)


def content_digest(array: np.ndarray[Any, Any]) -> str:
    """A name for an array's content, element type and shape."""
    head = f"{array.dtype.str}{array.shape}".encode()
    return hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def _owners(groups: Sequence[Group]) -> dict[Node, Node]:
    """For each written value the one whose memory it lies in: itself, or for views the value that
    they show.
    """
    owner: dict[Node, Node] = {}
    for group in groups:
        for node in group.outputs:
            source = node.inputs[0] if group.view else None
            owner[node] = owner.get(source, source) if source is not None else node
    return owner


def _spent(
    group: Group,
    number: int,
    buffers: Mapping[Node, Buffer],
    layouts: Mapping[Node, Layout],
    last_use: Mapping[Node, int],
    owner: Mapping[Node, Node],
) -> Buffer | None:
    """The buffer of a value that a contraction adds as it stores, and that nobody reads later: the
    result takes its place, element by element.
    """
    if group.anchor.op.kind is not Kind.CONTRACT:
        return None
    out, anchored = group.outputs[0], {owner.get(n, n) for n in group.anchor.inputs}
    for node in group.inputs:
        own = node in buffers and owner.get(node) is node and buffers[node].role == "arena"
        alike = own and node.type == out.type and buffers[node].layout == layouts[out]
        if alike and node not in anchored and last_use[node] == number:
            return buffers[node]
    return None


def _last_uses(groups: Sequence[Group], owner: Mapping[Node, Node]) -> dict[Node, int]:
    last: dict[Node, int] = {}
    for number, group in enumerate(groups):
        for source in group.inputs:
            last[owner.get(source, source)] = number
    return last


class _Arena:
    """Offsets by best fit among buffers whose lives overlap."""

    def __init__(self) -> None:
        self.placed: list[tuple[int, int, int, int]] = []  # offset, end, first, last
        self.size = 0

    def extend(self, offset: int, last: int) -> None:
        """Let the buffer that was placed at ``offset`` last live longer."""
        at = max(i for i, place in enumerate(self.placed) if place[0] == offset)
        start, end, first, _ = self.placed[at]
        self.placed[at] = (start, end, first, last)

    def place(self, nbytes: int, first: int, last: int) -> int:
        """Offset of a buffer that lives from step ``first`` to ``last``, both included."""
        nbytes = align(nbytes)
        busy = sorted((o, e) for o, e, f, l in self.placed if f <= last and first <= l)
        best, best_gap, cursor = None, None, 0
        for offset, end in busy:
            gap = offset - cursor
            if gap >= nbytes and (best_gap is None or gap < best_gap):
                best, best_gap = cursor, gap
            cursor = max(cursor, end)
        offset = cursor if best is None else best
        self.placed.append((offset, offset + nbytes, first, last))
        self.size = max(self.size, offset + nbytes)
        return offset
