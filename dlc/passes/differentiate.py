"""Differentiate: gradients as more of the same graph, by the rule of each op, in reverse.

Because they are ordinary nodes, every other pass works on them, and the gradient of a gradient is
this pass once more.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from dlc.errors import ArgumentError, DTypeError, Error, ShapeError, explain
from dlc.ir.graph import Graph, topological
from dlc.ir.manager import Pass
from dlc.ir.node import Node, building
from dlc.ir.rewrite import Journal
from dlc.ir.types import TupleType, is_float
from dlc.ops.common import filled

#: The gradient of an op's output: one node, or one for each of several outputs.
Cotangent = Node | None | tuple[Node | None, ...]


@dataclass(frozen=True)
class Differentiate(Pass):
    """Append the gradients of the first output, a scalar, in the inputs and parameters ``wrt``.

    Without any, in every parameter of floats that is no buffer.
    """

    name = "differentiate"
    wrt: tuple[str, ...] = ()

    def run(self, graph: Graph, journal: Journal) -> Graph:
        """The graph with an output ``<name>.grad`` for each."""
        value = graph.outputs[0]
        targets = self._targets(graph)
        with building(value.builder):
            made = gradients((value,), (scalar_one(value),), targets)
        names = tuple(f"{node.name}.grad" for node in targets)
        return replace(
            graph,
            outputs=(*graph.outputs, *made),
            output_names=(*graph.output_names, *names),
        )

    def _targets(self, graph: Graph) -> list[Node]:
        leaves = {str(node.name): node for node in (*graph.inputs, *graph.parameters)}
        unknown = [name for name in self.wrt if name not in leaves]
        if unknown:
            expected = f"names among {', '.join(leaves)}"
            raise ArgumentError(explain("differentiate", expected, repr(unknown[0])))
        if self.wrt:
            return [leaves[name] for name in self.wrt]
        learned = (node for node in graph.parameters if node.attrs["role"] == "parameter")
        return [node for node in learned if is_float(node.dtype)]


def scalar_one(value: Node) -> Node:
    """The gradient of a scalar in itself.

    Raises
    ------
    ShapeError, DTypeError
        The value is no scalar, or no float.
    """
    if not is_float(value.dtype):
        raise DTypeError(explain("a gradient", "a value of floats", value.describe()))
    if value.shape:
        advice = "Reduce it first, with .sum() or .mean()."
        raise ShapeError(explain("a gradient", "a scalar", value.describe(), advice=advice))
    return value.builder.constant(1.0, value.dtype)


def gradients(
    outputs: Sequence[Node], cotangents: Sequence[Node], wrt: Sequence[Node]
) -> list[Node]:
    """The gradient of ``sum(outputs * cotangents)`` in each node of ``wrt``.

    Parameters
    ----------
    outputs, cotangents : sequence of Node
        Of the same types, pair by pair.
    wrt : sequence of Node
        What to differentiate in: leaves or any other nodes, of floats.

    Returns
    -------
    list of Node
        Each of its node's type; zeros where the outputs do not depend on it.
    """
    return [
        filled(node.builder, node.shape, 0.0, node.dtype) if g is None else g
        for node, g in zip(wrt, reverse(outputs, cotangents, wrt), strict=True)
    ]


def reverse(
    outputs: Sequence[Node], cotangents: Sequence[Node], wrt: Sequence[Node]
) -> list[Node | None]:
    """The same, but None where the outputs do not depend on a node.

    It goes from the outputs back; each node's gradient is complete before its rule is applied.
    """
    total: dict[Node, Node] = {}
    for node, g in zip(outputs, cotangents, strict=True):
        _add(total, node, g)
    several: dict[Node, list[Node | None]] = {}  # of ops with several outputs, one by one
    active = _between(wrt, outputs)
    for node in reversed(topological(outputs)):
        if node not in active or not node.inputs:
            continue
        if node.op.name == "project":
            whole = node.inputs[0]
            parts = several.setdefault(whole, [None] * len(_elements(whole)))
            parts[node.attrs["index"]] = total.get(node)
            continue
        g: Cotangent = tuple(several[node]) if node in several else total.get(node)
        if g is None or (isinstance(g, tuple) and all(part is None for part in g)):
            continue
        with node.builder.on_behalf_of(node.origins):
            for source, part in zip(node.inputs, apply_rule(node, g), strict=True):
                if part is not None and source in active:
                    _check_type(node, source, part)
                    _add(total, source, part)
    return [total.get(node) for node in wrt]


def _add(total: dict[Node, Node], node: Node, g: Node) -> None:
    total[node] = total[node] + g if node in total else g


def _between(wrt: Iterable[Node], outputs: Sequence[Node]) -> set[Node]:
    """The nodes through which the outputs depend on ``wrt``, both included."""
    found = set(wrt)
    for node in topological(outputs):
        if any(source in found for source in node.inputs):
            found.add(node)
    return found


def apply_rule(node: Node, g: Cotangent) -> tuple[Node | None, ...]:
    """Gradients of a node's inputs by its record: its rule, or the rules of what it expands to."""
    op = node.op
    if op.grad is not None:
        outputs = [node.project(i) for i in range(len(_elements(node)))]
        made = op.grad(g, tuple(outputs) or node, *node.inputs, **node.attrs)
        if not isinstance(made, tuple) or len(made) != len(node.inputs):
            raise Error(f"the gradient rule of {op.name} gives {made!r} for {len(node.inputs)}")
        return made
    if op.no_grad:
        return (None,) * len(node.inputs)
    assert op.expand is not None, f"{op.name} has no gradient rule and does not say why"
    expanded = op.expand(*node.inputs, **node.attrs)
    outputs = expanded if isinstance(expanded, tuple) else (expanded,)
    parts = g if isinstance(g, tuple) else (g,)
    pairs = [(y, part) for y, part in zip(outputs, parts, strict=True) if part is not None]
    return tuple(reverse([y for y, _ in pairs], [part for _, part in pairs], node.inputs))


def _elements(node: Node) -> tuple[object, ...]:
    return node.type.elements if isinstance(node.type, TupleType) else ()


def _check_type(node: Node, source: Node, part: Node) -> None:
    if part.type != source.type:
        raise Error(
            f"the gradient rule of {node.op.name} gives {part.type} for an input of {source.type}"
        )
