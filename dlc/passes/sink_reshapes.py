"""Sink reshapes: move them behind the pointwise work that follows a contraction.

A product of rows (batch, time, features) is computed with batch * time rows, and its result is
reshaped. Behind the reshape a bias, an activation or a residual sum would be a kernel of its own;
before it, they join the contraction's store, and the reshape is a view of what was stored:

    f(reshape(x), y) -> reshape(f(x, reshape(y)))
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from dlc.ir.graph import Graph
from dlc.ir.manager import Pass
from dlc.ir.node import Node, apply
from dlc.ir.op import Kind
from dlc.ir.rewrite import Journal


@dataclass(frozen=True)
class SinkReshapes(Pass):
    """Move reshapes behind the pointwise work that follows a contraction."""

    name = "sink-reshapes"

    def run(self, graph: Graph, journal: Journal) -> Graph:
        """The graph in which that work has the shape in which the contraction stores."""
        users, ends = graph.users(), set(graph.outputs)
        assigned = {graph.outputs[number] for number in graph.aliases}  # have their own shape
        stored: set[Node] = set()  # what a contraction stores for one reader, and its reshapes

        def change(node: Node, inputs: tuple[Node, ...]) -> Node:
            made = None if node in assigned else _sunk(node, inputs, stored)
            if made is None:
                made = node.builder.node(node.op, inputs, node.attrs)
            alone = len(users[node]) == 1 and node not in ends
            if alone and (node.op.kind is Kind.CONTRACT or _goes_on(node, inputs, stored)):
                stored.add(made)
            return made

        return graph.rewrite(change)


def _goes_on(node: Node, inputs: tuple[Node, ...], stored: Collection[Node]) -> bool:
    """Whether a node does no more to a stored value than reshape it or change its elements."""
    if node.op.name != "reshape" and node.op.kind is not Kind.POINTWISE:
        return False
    return any(n in stored and n.tensor_type.count == node.tensor_type.count for n in inputs)


def _sunk(node: Node, inputs: tuple[Node, ...], stored: Collection[Node]) -> Node | None:
    """What a node is with a reshape behind it, None where that lets it join no store."""
    if node.op.name == "reshape":
        return _reshaped(inputs[0], node)
    if node.op.kind is not Kind.POINTWISE:
        return None
    for view in inputs:
        if view in stored and view.op.name == "reshape" and view.shape == node.shape:
            operands = [n for n in (_beside(view, operand) for operand in inputs) if n is not None]
            if len(operands) == len(inputs) and all(n.dtype == node.dtype for n in operands):
                origins = node.origins | view.origins
                inner = node.builder.node(node.op, tuple(operands), node.attrs, origins)
                return _reshaped(inner, node)
    return None


def _beside(view: Node, operand: Node) -> Node | None:
    """``operand`` as a store can read it beside what ``view`` reshapes: a number, one value a
    column, or as many as are stored.
    """
    x = view.inputs[0]
    if operand is view:
        return x
    if operand.op.name == "constant" and operand.tensor_type.count == 1:
        return operand.builder.constant(operand.attrs["value"].reshape(()))
    if x.ndim > 3:  # an image lies channels last, which a reshape of an operand does not
        return None
    if operand.shape == view.shape:
        return _reshaped(operand, x)
    column = operand.ndim > 0 and all(size == 1 for size in operand.shape[:-1])
    if column and operand.shape[-1] == view.shape[-1] == x.shape[-1]:
        return apply("reshape", operand, shape=x.shape[-1:])
    return None


def _reshaped(x: Node, like: Node) -> Node:
    """``x`` in the shape of ``like``, by one reshape or none."""
    source = x.inputs[0] if x.op.name == "reshape" else x
    return source if source.shape == like.shape else apply("reshape", source, shape=like.shape)
