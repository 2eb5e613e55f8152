"""What every graph must satisfy, as a short table of checks.

A pass that breaks one of them has a bug; caught here it is named at once, with the node and the
check, instead of showing as wrong numbers or a crash three passes later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dlc.errors import Error, VerifyError
from dlc.ir.graph import Graph
from dlc.ir.node import Node, attrs_key
from dlc.ir.sizes import Dim, Size, dims
from dlc.ir.types import TensorType, TupleType, Type

#: A breach: the node at fault, and what is wrong with it.
Breach = tuple[Node, str]


@dataclass(frozen=True)
class Check:
    """One line of the table: its name, what it demands, and a search for breaches."""

    name: str
    demand: str
    breaches: Callable[[Graph], Iterator[Breach]]


def verify(graph: Graph) -> None:
    """Raise `VerifyError` for the first breach of the first check that fails."""
    for check in CHECKS:
        for node, message in check.breaches(graph):
            raise VerifyError(
                f"graph {graph.name!r} breaks the check {check.name!r} ({check.demand}): "
                f"{node.describe()} {message}"
            )


def _inputs(graph: Graph) -> Iterator[Breach]:
    listed = {id(node) for node in graph.inputs}
    for node in graph.inputs:
        if node.op.name != "input":
            yield node, "stands in the list of inputs, which takes input nodes only"
    for node in graph.nodes:
        if node.op.name == "input" and id(node) not in listed:
            yield node, "is read, and is not in the list of inputs"
    if len(listed) != len(graph.inputs):
        twice = [
            node for i, node in enumerate(graph.inputs) if id(node) in map(id, graph.inputs[:i])
        ]
        yield twice[0], "stands in the list of inputs twice"


def _names(graph: Graph) -> Iterator[Breach]:
    seen: dict[str, Node] = {}
    for node in graph.nodes:
        if node.name is not None and seen.setdefault(node.name, node) is not node:
            yield node, f"has the name of {seen[node.name].describe()}"
    first = graph.outputs[0] if graph.outputs else None
    if first is not None and len(set(graph.output_names)) != len(graph.output_names):
        yield first, f"and the others have the output names {', '.join(graph.output_names)}"


def _builders(graph: Graph) -> Iterator[Breach]:
    nodes = graph.nodes
    for node in nodes:
        if node.builder is not nodes[0].builder:
            yield node, f"belongs to another builder than {nodes[0].describe()}"


def _interned(graph: Graph) -> Iterator[Breach]:
    seen: dict[tuple[object, ...], Node] = {}
    for node in graph.nodes:
        key = (node.op.name, tuple(map(id, node.inputs)), attrs_key(node.attrs))
        if seen.setdefault(key, node) is not node:
            yield node, "is another object than a node of the same op, inputs and attributes"


def _attributes(graph: Graph) -> Iterator[Breach]:
    for node in graph.nodes:
        if node.op.attrs is None:
            continue
        try:
            canonical = node.op.attrs(*_input_types(node), **node.attrs)
        except Error as error:
            yield node, f"has attributes that its op refuses: {error}"
            continue
        if attrs_key(canonical) != attrs_key(node.attrs):
            yield (
                node,
                f"has the attributes {dict(node.attrs)}, which are {canonical} in canonical form",
            )


def _types(graph: Graph) -> Iterator[Breach]:
    for node in graph.nodes:
        try:
            inferred = node.op.infer(*_input_types(node), **node.attrs)
        except Error as error:
            yield node, f"has inputs that its op refuses: {error}"
            continue
        if inferred != node.type:
            yield node, f"has the type {node.type}, and its op's rule gives {inferred}"


def _tuples(graph: Graph) -> Iterator[Breach]:
    for node in graph.nodes:
        for source in node.inputs:
            if isinstance(source.type, TupleType) and node.op.name != "project":
                yield node, f"reads all outputs of {source.describe()}; it takes one, by project"
    for node in graph.outputs:
        if isinstance(node.type, TupleType):
            yield node, "is an output of the graph; an output is one tensor"


def _aliases(graph: Graph) -> Iterator[Breach]:
    leaves = {node.name: node for node in (*graph.inputs, *graph.parameters)}
    taken: dict[str, int] = {}
    for number, name in graph.aliases.items():
        if not 0 <= number < len(graph.outputs):
            raise VerifyError(f"graph {graph.name!r} aliases output {number}, which it has not")
        node = graph.outputs[number]
        if name not in leaves:
            yield node, f"is the new value of {name!r}, which the graph does not read"
        elif leaves[name].type != node.type:
            yield node, f"is the new value of {leaves[name].describe()}, which has another type"
        if taken.setdefault(name, number) != number:
            yield node, f"is the second new value of {name!r}, after output {taken[name]}"


def _dims(graph: Graph) -> Iterator[Breach]:
    seen: dict[str, Dim] = {}
    for node in graph.nodes:
        for dim in sorted(_dims_of(node.type), key=str):
            first = seen.setdefault(dim.name, dim)
            if first != dim:
                ranges = f"{first.min}..{first.max} and {dim.min}..{dim.max}"
                yield node, f"gives the dimension {dim.name} a second range: {ranges}"


def _dims_of(type: Type) -> set[Dim]:
    elements = (type,) if isinstance(type, TensorType) else type.elements
    sizes: list[Size] = [size for element in elements for size in element.shape]
    return set[Dim]().union(*map(dims, sizes))


def _input_types(node: Node) -> tuple[Type, ...]:
    return tuple(source.type for source in node.inputs)


CHECKS = (
    Check("builder", "all nodes belong to one builder", _builders),
    Check("interned", "equal nodes are one object", _interned),
    Check("inputs", "the list of inputs has each input node once, and nothing else", _inputs),
    Check("names", "inputs, parameters and outputs have names of their own", _names),
    Check("tuples", "an op with several outputs is read by project only", _tuples),
    Check("attributes", "attributes are in canonical form", _attributes),
    Check("types", "each type is what the op's rule gives", _types),
    Check("aliases", "an input has at most one new value, of its own type", _aliases),
    Check("dims", "dimensions of one name have one range", _dims),
)
