"""Choose the physical layout of every value: channels last around convolutions, with the halo that
its readers need.

Logical shapes never change. Where a value cannot be produced in the layout that a reader needs (a
user's array, or two readers that differ), a `relayout` node copies it, and fusion may compute other
things in that copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from dlc.ir.graph import Graph
from dlc.ir.manager import Pass
from dlc.ir.node import Node, apply
from dlc.ir.op import Kind
from dlc.ir.plan import CHANNELS_LAST, Layout
from dlc.ir.rewrite import Journal
from dlc.ir.types import TensorType
from dlc.ops.across import weight_order
from dlc.ops.phases import reach_of_phases
from dlc.ops.pool import POOL_GRADIENTS
from dlc.ops.winograd import overhang

PLANES = (0, 1, 2, 3)
CONVOLUTIONS = (
    "conv2d_direct",
    "conv2d_planes",
    "conv2d_depthwise",
    "conv2d_winograd",
    "conv2d_phases",
)
WEIGHT_GRADIENT = "conv2d_weight_direct"
NO_HALO = ((0, 0),) * 4

Halo = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class AssignLayouts(Pass):
    """Insert the `relayout` nodes that the choice of layouts calls for."""

    name = "assign-layouts"

    def run(self, graph: Graph, journal: Journal) -> Graph:
        """The graph in which every value can be written in the layout that its readers need."""
        orders = _orders(graph)
        halos, needs = _halos(graph, orders), _needs(graph, orders)
        ends = set(graph.outputs)
        new: dict[Node, Node] = {}
        copies: dict[tuple[Node, tuple[int, ...]], Node] = {}
        for node in graph.nodes:
            inputs = list[Node]()
            for i, source in enumerate(node.inputs):
                need = _need(node, i, orders)
                if need is not None:  # one copy serves all readers in this order
                    need = need[0], needs[source, need[0]]
                made = _as_needed(new[source], source, need, orders, halos, ends)
                if made is not new[source]:
                    copies[source, made.attrs["order"]] = made
                elif node.op.kind is Kind.POINTWISE and source.ndim == 4:
                    made = copies.get(
                        (source, orders[node]), made
                    )  # beside other operands in that order
                inputs.append(made)
            same = all(a is b for a, b in zip(inputs, node.inputs, strict=True))
            new[node] = (
                node
                if same
                else node.builder.node(node.op, tuple(inputs), node.attrs, node.origins)
            )
        outputs = tuple(
            _alone(new[node], node, orders, halos)
            if number in graph.aliases
            else _as_rows(new[node], node, orders, halos)
            for number, node in enumerate(graph.outputs)
        )
        return replace(graph, outputs=outputs, inputs=tuple(new[node] for node in graph.inputs))


def layouts(graph: Graph) -> dict[Node, Layout]:
    """The layout that each node has if it is written to memory, after `AssignLayouts`."""
    orders = _orders(graph)
    halos = _halos(graph, orders)
    return {
        node: Layout(order, halos.get(node, ((0, 0),) * len(order)))
        for node, order in orders.items()
    }


def _orders(graph: Graph) -> dict[Node, tuple[int, ...]]:
    """The physical order of each single-output node. A parameter that has a new value lies as that
    is computed, so that it can take its place.
    """
    orders = _orders_with(graph, {})
    changed = {name: orders[graph.outputs[number]] for number, name in graph.aliases.items()}
    leaves = {node: changed[node.name] for node in graph.parameters if node.name in changed}
    if all(orders[leaf] == order for leaf, order in leaves.items()):
        return orders
    return _orders_with(graph, leaves)


def _orders_with(
    graph: Graph, leaves: Mapping[Node, tuple[int, ...]]
) -> dict[Node, tuple[int, ...]]:
    """The same where the order of some leaves is given."""
    orders: dict[Node, tuple[int, ...]] = {}
    for node in graph.nodes:
        if isinstance(node.type, TensorType):
            orders[node] = leaves[node] if node in leaves else _order(node, orders)
    return orders


def _order(node: Node, orders: Mapping[Node, tuple[int, ...]]) -> tuple[int, ...]:
    rows = tuple(range(node.ndim))
    if node.op.name == WEIGHT_GRADIENT:
        return weight_order(node.attrs["parts"], node.attrs["planes"])
    if node.op.name == "relayout":
        return tuple(node.attrs["order"])
    if node.op.name == "sum" and _is_parted(node.inputs[0]) and node.ndim == 4:
        return tuple(axis - 1 for axis in orders[node.inputs[0]] if axis)
    if node.op.name in CONVOLUTIONS:
        return CHANNELS_LAST
    if node.op.name in POOL_GRADIENTS:
        return orders[node.inputs[0]]
    follows = node.op.kind in (Kind.POINTWISE, Kind.WINDOW) or node.op.name in (
        "pad",
        "slice",
        "concat",
        "flip",
    )
    if node.ndim == 4 and follows:
        for source in node.inputs:
            if source.ndim == 4 and orders[source] != rows:
                return orders[source]
    return rows


def _is_parted(node: Node) -> bool:
    """Whether a node is the gradient of a weight, in parts whose sum it is."""
    return node.op.name == WEIGHT_GRADIENT and bool(node.attrs["parts"] > 1)


def _need(
    node: Node, operand: int, orders: Mapping[Node, tuple[int, ...]]
) -> tuple[tuple[int, ...], Halo] | None:
    """The order and halo in which a node reads an operand, None where any will do."""
    if operand == 1 and node.op.name in POOL_GRADIENTS and orders[node] == CHANNELS_LAST:
        return CHANNELS_LAST, NO_HALO
    if operand == 1 and node.op.name == WEIGHT_GRADIENT:
        return CHANNELS_LAST, NO_HALO
    if operand == 0 and node.op.name in (*CONVOLUTIONS, WEIGHT_GRADIENT):
        planes = node.op.name == "conv2d_planes" or node.attrs.get("planes")
        order = PLANES if planes else CHANNELS_LAST
        reach = node.attrs["padding"]
        if node.op.name == "conv2d_planes":
            reach = _reach_of_planes(node)
        if node.op.name == "conv2d_phases":
            reach = reach_of_phases(node.attrs, node.inputs[0].shape[2:])
        if node.op.name == "conv2d_winograd":  # its tiles reach beyond the padding
            beyond = (overhang(size, node.attrs["m"]) for size in node.shape[2:])
            reach = tuple((low, high + more) for (low, high), more in zip(reach, beyond))
        return order, ((0, 0), (0, 0), *reach)
    return None


def _reach_of_planes(node: Node) -> Halo:
    """Zeros that a convolution of planes reads around its operand: it takes lines in pairs, and
    leaves out lines of the kernel that meet zeros for both.
    """
    above_and_below, beside = node.attrs["padding"]
    lines = node.inputs[1].shape[2]
    if max(above_and_below) >= lines:  # there are lines of the result that meet no pixel
        return above_and_below, beside
    return tuple(min(side, 1) for side in above_and_below), beside


def _needs(
    graph: Graph, orders: Mapping[Node, tuple[int, ...]]
) -> dict[tuple[Node, tuple[int, ...]], Halo]:
    """For each value, and order in which it is read, the halo that its widest reader needs."""
    needs: dict[tuple[Node, tuple[int, ...]], Halo] = {}
    for node in graph.nodes:
        for i, source in enumerate(node.inputs):
            need = _need(node, i, orders)
            if need is not None:
                needs[source, need[0]] = _wider(needs.get((source, need[0]), NO_HALO), need[1])
    return needs


def _halos(graph: Graph, orders: Mapping[Node, tuple[int, ...]]) -> dict[Node, Halo]:
    """The halo of each value: as wide as its widest reader in the same order needs."""
    halos: dict[Node, Halo] = {}
    for node in graph.nodes:
        if node.op.name == "relayout":
            halos[node] = node.attrs["halo"]
        for i, source in enumerate(node.inputs):
            need = _need(node, i, orders)
            if need and need[0] == orders[source] and source.op.name != "relayout" and _own(source):
                halos[source] = _wider(halos.get(source, NO_HALO), need[1])
    return halos


def _own(node: Node) -> bool:
    """Whether dlc itself writes the value, so that it may lie in any layout."""
    return node.op.kind is not Kind.LEAF and node.op.name != "reshape"


def _wider(a: Halo, b: Halo) -> Halo:
    return tuple((max(x[0], y[0]), max(x[1], y[1])) for x, y in zip(a, b, strict=True))


def _covers(a: Halo, b: Halo) -> bool:
    return all(x[0] >= y[0] and x[1] >= y[1] for x, y in zip(a, b, strict=True))


def _as_needed(
    new: Node,
    source: Node,
    need: tuple[tuple[int, ...], Halo] | None,
    orders: Mapping[Node, tuple[int, ...]],
    halos: Mapping[Node, Halo],
    ends: set[Node],
) -> Node:
    if need is None:
        return new
    order, halo = need
    fits = orders[source] == order and _covers(halos.get(source, NO_HALO), halo)
    if fits and _own(source) and not (source in ends and orders[source] == tuple(range(4))):
        return new
    return apply("relayout", new, order=order, halo=halo)


def _alone(
    new: Node, node: Node, orders: Mapping[Node, tuple[int, ...]], halos: Mapping[Node, Halo]
) -> Node:
    """A new value of a parameter, in whatever order, without a halo."""
    if halos.get(node, NO_HALO) == NO_HALO or node.op.kind is Kind.LEAF:
        return new
    return apply("relayout", new, order=orders[node], halo=NO_HALO)


def _as_rows(
    new: Node, node: Node, orders: Mapping[Node, tuple[int, ...]], halos: Mapping[Node, Halo]
) -> Node:
    if node.op.kind is Kind.LEAF:
        return new
    rows = Layout.rows(node.ndim)
    if Layout(orders[node], halos.get(node, rows.halo)) == rows:
        return new
    return apply("relayout", new, order=rows.order, halo=rows.halo)
