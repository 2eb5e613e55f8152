"""Split a graph into `prepare`, which depends on parameters and constants only, and `main`, which
reads its results.

Batch-norm folding, packing, flipping and weight transforms then run once for each version of the
parameters, by kernels compiled like any other, and cost nothing in a call.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

from dlc.ir.graph import Graph, is_parametric
from dlc.ir.node import Node
from dlc.ir.op import Kind
from dlc.ir.types import TensorType

#: Role of the leaves through which `main` reads what `prepare` has made.
PREPARED = "prepared"


@dataclass(frozen=True, eq=False)
class Split:
    """``prepare`` computes the values named ``names``; ``main`` reads them as leaves of those
    names.
    """

    prepare: Graph
    main: Graph
    names: tuple[str, ...]


def split(graph: Graph) -> Split:
    """Split a graph; leaves and scalar constants stay where they are read."""
    early: dict[Node, bool] = {}
    changing = set(graph.aliases.values())
    for node in graph.nodes:
        early[node] = is_parametric(node, early) and node.name not in changing
    made = {node for node in graph.nodes if early[node] and node.op.kind is not Kind.LEAF}
    users, ends = graph.users(), set(graph.outputs)
    crossing = [
        node
        for node in graph.nodes
        if node in made
        and isinstance(node.type, TensorType)
        and (node in ends or not made.issuperset(users[node]))
    ]
    taken = {node.name for node in graph.nodes if node.op.kind is Kind.LEAF}
    fresh = (name for i in itertools.count() if (name := f"prepared{i}") not in taken)
    names = dict(zip(crossing, fresh))

    def leaf(node: Node, _: tuple[Node, ...]) -> Node | None:
        if node in names:
            return node.builder.parameter(names[node], node.tensor_type, role=PREPARED)
        return None

    main = graph.rewrite(leaf)
    prepare = (
        Graph(tuple(crossing), output_names=tuple(names.values()), name="prepare")
        if crossing
        else Graph(())
    )
    return Split(prepare, replace(main, name="main"), tuple(names.values()))
