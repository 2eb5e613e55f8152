"""Fold constants: compute now what depends on constants only.

Up to a budget, since a constant is part of the program: a large one costs more to carry than to
compute, and what depends on constants only is computed once by `prepare` in any case.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dlc.errors import VerifyError
from dlc.ir.graph import Graph
from dlc.ir.manager import Pass
from dlc.ir.node import Node
from dlc.ir.op import Array
from dlc.ir.pattern import Rewrite
from dlc.ir.rewrite import Journal
from dlc.ir.types import TupleType

#: Ops that make much out of little; backends compute them where they are read.
GENERATORS = frozenset(("expand", "iota"))


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Compute what depends on constants only, up to ``limit`` bytes a result."""

    name = "fold-constants"
    widens = False  # a constant is rounded to its type now, rather than in each call
    limit: int = 1 << 16

    def run(self, graph: Graph, journal: Journal) -> Graph:
        """Replace nodes by their values, as their reference gives them."""

        def change(node: Node, inputs: tuple[Node, ...]) -> Node | None:
            if journal.full or not self._folds(node, inputs):
                return None
            before = node.builder.node(node.op, inputs, node.attrs)
            after = node.builder.constant(_value(before))
            sources = [n for source in inputs for n in (source, *source.inputs)]
            after.origins = after.origins.union(*(source.origins for source in sources))
            journal.record(Rewrite("f(constants) -> constant", before, after))
            return after

        return graph.rewrite(change)

    def _folds(self, node: Node, inputs: tuple[Node, ...]) -> bool:
        if not inputs or node.op.name in GENERATORS or isinstance(node.type, TupleType):
            return False
        size = node.type.nbytes
        if not isinstance(size, int) or size > self.limit:
            return False
        whole = inputs[0].inputs if node.op.name == "project" else inputs
        return all(source.op.name == "constant" for source in whole)


def _value(node: Node) -> Array:
    if node.op.name == "project":
        parts = _reference(node.inputs[0])
        value = np.asarray(parts[node.attrs["index"]])
    else:
        value = np.asarray(_reference(node))
    expected = node.tensor_type
    if value.dtype.name != expected.dtype or value.shape != expected.shape:
        came = f"{value.dtype.name}{list(value.shape)}"
        raise VerifyError(f"the reference of {node.op.name} gives {came} for {node.describe()}")
    return value


def _reference(node: Node) -> Array:
    arrays = [source.attrs["value"] for source in node.inputs]
    with np.errstate(all="ignore"):
        result: Array = node.op.ref(*arrays, **node.attrs)
    return result
