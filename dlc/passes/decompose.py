"""Decompose: expand composite ops, such as batch norm and softmax, into simpler ones.

They stay whole while rules look for them; backends lower the other kinds only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dlc.ir.graph import Graph
from dlc.ir.manager import Pass, Property
from dlc.ir.node import Node
from dlc.ir.op import Kind
from dlc.ir.pattern import Procedure
from dlc.ir.rewrite import Journal, rewrite
from dlc.ir.types import TupleType


def _composite(graph: Graph) -> Iterator[tuple[Node, str]]:
    for node in graph.nodes:
        if node.op.kind is Kind.COMPOSITE:
            yield node, "is composite"


DECOMPOSED = Property("decomposed", "no composite op is left", _composite)


@dataclass(frozen=True)
class Decompose(Pass):
    """Expand composite ops into simpler ones, except those in ``keep``."""

    name = "decompose"
    keep: tuple[str, ...] = ()
    budget: int = 10

    @property
    def ensures(self) -> tuple[Property, ...]:
        """No composite op, if none is kept."""
        return () if self.keep else (DECOMPOSED,)

    @property
    def rules(self) -> tuple[Procedure, ...]:
        """The two rules: an op with one output, and one output of an op with several."""
        return (
            Procedure("composite(x) -> its expansion", self._expand(one_of_several=False)),
            Procedure(
                "project(composite(x)) -> its expansion",
                self._expand(one_of_several=True),
                frozenset(("project",)),
            ),
        )

    def run(self, graph: Graph, journal: Journal) -> Graph:
        """Expand until no composite op is left."""
        return rewrite(graph, self.rules, self.budget, journal)

    def _expand(self, one_of_several: bool) -> Callable[[Node], Node | None]:
        def function(node: Node) -> Node | None:
            whole = node.inputs[0] if one_of_several else node
            several = isinstance(whole.type, TupleType)
            if whole.op.kind is not Kind.COMPOSITE or whole.op.name in self.keep:
                return None
            if several != one_of_several or whole.op.expand is None:
                return None
            made = whole.op.expand(*whole.inputs, **whole.attrs)
            result: Node = made[node.attrs["index"]] if several else made
            return result

        return function
