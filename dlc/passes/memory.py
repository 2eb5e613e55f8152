"""Memory: give every value a buffer, and every buffer of the arena an offset, so that dead values
make room.

Offsets are planned at the maximum of every dimension, once; a call with a smaller batch uses part
of each buffer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dlc.ir.graph import Graph
from dlc.ir.node import Node
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
    for node in graph.nodes:
        if node.op.name in ("input", "parameter"):
            kind = "input" if node.op.name == "input" else "parameter"
            buffers[node] = Buffer(str(node.name), kind, node.tensor_type, Layout.rows(node.ndim))
        elif node.op.name == "constant":
            buffers[node] = Buffer(
                f"constant{len(buffers)}", "constant", node.tensor_type, Layout.rows(node.ndim)
            )
    ends = {owner.get(node, node) for node in graph.outputs}
    names = {
        owner.get(n, n): name for n, name in zip(graph.outputs, graph.output_names, strict=True)
    }
    arena = _Arena()
    last_use = _last_uses(groups, owner)
    for number, group in enumerate(groups):
        for node in group.outputs:
            if owner[node] is not node:
                continue  # a view lies in its owner's buffer
            if node in ends and role == "arena":
                buffers[node] = Buffer(names[node], "output", node.tensor_type, layouts[node])
                continue
            until = len(groups) if node in ends else last_use.get(node, number)
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
    return Schedule(graph, tuple(groups), layouts, buffers, arena.size)


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
