"""Updates: the new values of a parameter and of its moments, computed as its gradient is stored.

The gradient itself then never reaches memory: a step reads and writes a parameter and its moments
once, in the kernel of the contraction that makes the gradient. Of a gradient in parts these reach
memory, and the kernel that sums them takes the update.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dlc.ir.graph import Graph
from dlc.ir.node import Node
from dlc.ir.op import Kind
from dlc.ir.plan import Layout
from dlc.ir.schedule import Group, in_order, waits_of
from dlc.ops.across import SCALARS_AT_STORE

#: Nodes of an update that a store still computes: in a longer one, texts would be repeated often.
LONGEST = 32


def join_updates(
    groups: Sequence[Group], graph: Graph, layouts: Mapping[Node, Layout]
) -> tuple[Group, ...]:
    """The groups, each after those that it reads, updates in the kernels of their gradients."""
    updates, ends = {graph.outputs[number] for number in graph.aliases}, set(graph.outputs)
    maker = {node: i for i, group in enumerate(groups) for node in group.outputs}
    readers: dict[Node, list[int]] = {}
    for i, group in enumerate(groups):
        for node in group.inputs:
            readers.setdefault(node, []).append(i)
    joined = dict(enumerate(groups))
    for i, group in enumerate(groups):
        if not updates.issuperset(group.outputs) or group.anchor.op.kind is not Kind.POINTWISE:
            continue
        for value in group.inputs:
            kept = (value,) if value in updates else ()  # itself new, such as a velocity
            alone = readers[value] == [i] and (kept or value not in ends)
            at = maker.get(value)
            if at is not None and alone and _takes(groups[at], group, value, layouts):
                inside = (*groups[at].inside, *group.inside)
                joined[at] = Group(groups[at].anchor, inside, (*kept, *group.outputs))
                del joined[i]
                break
    made = tuple(joined.values())
    return tuple(made[i] for i in in_order(dict(enumerate(waits_of(made)))))


def _takes(made: Group, update: Group, value: Node, layouts: Mapping[Node, Layout]) -> bool:
    """Whether the kernel of a gradient can compute an update of it."""
    if made.anchor.op.name not in SCALARS_AT_STORE or made.outputs != (value,):
        return False
    inside = set(update.inside)
    return len(inside) <= LONGEST and all(
        node.op.kind is Kind.POINTWISE
        and node.shape == value.shape
        and node.dtype in ("bool", value.dtype)
        and all(s in inside or _is_read(s, value, layouts) for s in node.inputs)
        for node in update.inside
    )


def _is_read(node: Node, value: Node, layouts: Mapping[Node, Layout]) -> bool:
    """Whether a store that makes ``value`` can read a node: a scalar, or an element for each."""
    if node.dtype != value.dtype:
        return False
    alike = node.shape == value.shape and layouts[node] == layouts[value]
    return alike or node.tensor_type.count == 1
