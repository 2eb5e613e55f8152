"""The schedule: which nodes form one kernel, and the layout of every value that is written to
memory.

It stands between the graph and the plan. Fusion fills the groups, the layout pass the layouts, the
memory pass the buffers; a backend then turns each group into one kernel.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import TopologicalSorter

from dlc.ir.graph import Graph
from dlc.ir.node import Node
from dlc.ir.plan import Buffer, Layout
from dlc.ir.sizes import Size, shape_text


@dataclass(frozen=True, eq=False)
class Group:
    """Nodes that one kernel computes.

    Parameters
    ----------
    anchor : Node
        The node that decides the form of the loops: a contraction, a window, a reduction, or the
        last of a pointwise group.
    inside : tuple of Node
        Every node computed in the kernel, in topological order.
    outputs : tuple of Node
        The nodes of ``inside`` that are written to memory.
    view : bool
        The output is its input's memory under another shape: no kernel at all.
    in_place : tuple of (Node, Node)
        Outputs that are written over parameters or buffers, with these.
    again : bool
        It computes once more what another group has computed, to spare memory in between.
    """

    anchor: Node
    inside: tuple[Node, ...]
    outputs: tuple[Node, ...]
    view: bool = False
    in_place: tuple[tuple[Node, Node], ...] = ()
    again: bool = False

    @property
    def inputs(self) -> list[Node]:
        """Values read from memory (leaves included), in order of first use."""
        own = set(self.inside)
        return list(dict.fromkeys(s for node in self.inside for s in node.inputs if s not in own))

    @property
    def outputs_set(self) -> set[Node]:
        """The outputs as a set, since `in` on a tuple compares by ==, which builds nodes."""
        return set(self.outputs)

    @property
    def flops(self) -> Size:
        """Floating-point operations, one for each op of a scalar expression, two for a multiply-
        add.
        """
        total: Size = 0
        for node in self.inside:
            total = total + flops_of(node)
        return total

    @property
    def label(self) -> str:
        """What the kernel computes, for profiles: ``conv2d_direct+add+relu``."""
        names = [node.op.name for node in self.inside if node.op.kind.value not in ("leaf", "move")]
        return "+".join(names or [self.anchor.op.name])

    def __repr__(self) -> str:
        outs = ", ".join(f"{node.op.name}{shape_text(node.shape)}" for node in self.outputs)
        notes = (", view" if self.view else "") + (", again" if self.again else "")
        return f"Group({self.label} -> {outs}{notes})"


def flops_of(node: Node) -> Size:
    """Floating-point operations of one node by its record."""
    types = [source.type for source in node.inputs]
    if node.op.flops is not None:
        return node.op.flops(node.type, *types, **node.attrs)
    kind = node.op.kind.value
    if kind == "pointwise":
        return node.tensor_type.count
    if kind in ("reduce", "window"):
        return node.inputs[0].tensor_type.count
    return 0


def waits_of(groups: Sequence[Group]) -> list[set[int]]:
    """For each group the numbers of those that write what it reads."""
    maker = {node: i for i, group in enumerate(groups) for node in group.outputs}
    return [{maker[node] for node in group.inputs if node in maker} for group in groups]


def in_order(waits: Mapping[int, Collection[int]]) -> list[int]:
    """Numbers, each behind those that it waits for, and else the least first."""
    sorter = TopologicalSorter(waits)
    sorter.prepare()
    order: list[int] = []
    ready: list[int] = []
    while sorter.is_active():
        ready = sorted([*ready, *sorter.get_ready()])
        order.append(ready.pop(0))
        sorter.done(order[-1])
    return order


@dataclass(frozen=True, eq=False)
class Schedule:
    """Groups in the order in which they run, with the layout and the buffer of each value in
    memory.
    """

    graph: Graph
    groups: tuple[Group, ...]
    layouts: Mapping[Node, Layout] = field(default_factory=dict)
    buffers: Mapping[Node, Buffer] = field(default_factory=dict)
    arena: int = 0
    state: int = 0

    def takes_place(self, group: Group, node: Node) -> bool:
        """Whether an output of a group lies in the arena where one of its inputs does, halo and
        all: what the group reads there must not be overwritten before.
        """
        own = self.buffers[node]
        inputs = (self.buffers[each] for each in group.inputs if each in self.buffers)
        return own.role == "arena" and any(
            each.role == "arena" and each.offset == own.offset for each in inputs
        )
