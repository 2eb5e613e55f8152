"""A graph: named inputs, outputs, and which outputs replace which inputs.

Graphs are values. A pass makes a new one from an old one; nothing is changed in place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dlc.errors import VerifyError
from dlc.ir.node import Builder, Node, attrs_key
from dlc.ir.op import Kind
from dlc.ir.sizes import Dim, Poly, dims
from dlc.ir.types import TensorType


@dataclass(frozen=True, eq=False)
class Graph:
    """A pure function from inputs and parameters to outputs.

    Parameters
    ----------
    outputs : tuple of Node
    inputs : tuple of Node
        The arguments, in the caller's order (an unused one included).
    output_names : tuple of str
    aliases : mapping of int to str
        Output number to the name of the input or parameter whose new value it is.
    name : str
    kernels : mapping of Node to str
        Which kernel computes each node, where the pass `fuse` was the last; the text form tells it.
    """

    outputs: tuple[Node, ...]
    inputs: tuple[Node, ...] = ()
    output_names: tuple[str, ...] = ()
    aliases: Mapping[int, str] = field(default_factory=dict)
    name: str = "graph"
    kernels: Mapping[Node, str] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not self.output_names:
            names = (
                ("output",)
                if len(self.outputs) == 1
                else tuple(f"output{i}" for i in range(len(self.outputs)))
            )
            object.__setattr__(self, "output_names", names)
        if len(self.output_names) != len(self.outputs):
            raise VerifyError(
                f"graph {self.name!r} has {len(self.outputs)} outputs and {len(self.output_names)} "
                f"names"
            )

    @property
    def nodes(self) -> list[Node]:
        """Every node that an output depends on, and every input, each after its own inputs; the
        order is stable.
        """
        return topological((*self.inputs, *self.outputs))

    @property
    def parameters(self) -> list[Node]:
        """Parameters and buffers in the order in which the computation meets them."""
        return [node for node in self.nodes if node.op.name == "parameter"]

    @property
    def dims(self) -> list[Dim]:
        """Named dimensions of the inputs and parameters, by name."""
        found: set[Dim] = set()
        for node in (*self.inputs, *self.parameters):
            for size in node.shape:
                found |= dims(size)
        return sorted(found, key=lambda dim: (dim.name, dim.min, dim.max))

    def users(self) -> dict[Node, list[Node]]:
        """The nodes that read each node, in topological order (graph outputs are no users)."""
        users: dict[Node, list[Node]] = {node: [] for node in self.nodes}
        for node in users:
            for source in dict.fromkeys(node.inputs):
                users[source].append(node)
        return users

    def rewrite(self, change: Callable[[Node, tuple[Node, ...]], Node | None]) -> Graph:
        """A graph in which each node is ``change(node, new_inputs)``; None keeps the node, on its
        new inputs.

        The origins of a replaced node go on to what replaces it.
        """
        new: dict[Node, Node] = {}
        for node in self.nodes:
            inputs = tuple(new[source] for source in node.inputs)
            made = change(node, inputs)
            if made is None:
                same = all(
                    a is b for a, b in zip(inputs, node.inputs, strict=True)
                )  # `==` would build nodes
                made = node if same else node.builder.node(node.op, inputs, node.attrs)
            made.origins |= node.origins
            new[node] = made
        return replace(
            self,
            outputs=tuple(new[n] for n in self.outputs),
            inputs=tuple(new[n] for n in self.inputs),
        )

    def structure_key(self) -> bytes:
        """A digest of the structure: equal for graphs that compute the same by the same steps, in
        any process.
        """
        return hashlib.sha256(b"".join(self._lines())).digest()

    def _lines(self) -> Iterator[bytes]:
        number = {node: i for i, node in enumerate(self.nodes)}
        for node, i in number.items():
            sources = ",".join(str(number[source]) for source in node.inputs)
            yield f"{i}={node.op.name}({sources})".encode() + attrs_key(node.attrs) + b"\n"
        ends = [number[node] for node in (*self.inputs, *self.outputs)]
        yield repr(
            (len(self.inputs), ends, self.output_names, sorted(self.aliases.items()))
        ).encode()

    def __str__(self) -> str:
        from dlc.ir.text import print_graph

        return print_graph(self)

    def draw(self, path: str) -> None:
        """Write a drawing of the graph (SVG) to ``path``."""
        from dlc.ir.draw import draw

        draw(self, path)


def topological(roots: Iterable[Node]) -> list[Node]:
    """Every node that ``roots`` depend on, inputs before users, in a stable order; iterative, so
    depth has no limit.
    """
    done: dict[Node, None] = {}
    for root in roots:
        stack: list[tuple[Node, int]] = [(root, 0)]
        while stack:
            node, next_input = stack.pop()
            if node in done:
                continue
            if next_input < len(node.inputs):
                stack += [(node, next_input + 1), (node.inputs[next_input], 0)]
            else:
                done[node] = None
    return list(done)


def is_parametric(node: Node, known: Mapping[Node, bool]) -> bool:
    """Whether a node depends on parameters and constants only, and on no named dimension: its size
    is known in a call only. ``known`` answers for the node's inputs.
    """
    if any(map(_is_symbolic, node.attrs.values())):
        return False
    if node.op.kind is Kind.LEAF and not node.inputs:
        return node.op.name in ("parameter", "constant")
    return all(known[source] for source in node.inputs)


def _is_symbolic(value: object) -> bool:
    if isinstance(value, (tuple, list)):
        return any(map(_is_symbolic, value))
    return isinstance(value, Poly)


def graph_of(function: Callable[..., Any], *types: TensorType, names: Sequence[str] = ()) -> Graph:
    """The graph of a function of nodes, for rules and tests: inputs get ``names``, or x0, x1 and so
    on.
    """
    from dlc.ir.node import building

    builder = Builder()
    inputs = tuple(builder.input(names[i] if names else f"x{i}", t) for i, t in enumerate(types))
    with building(builder):
        out = function(*inputs)
    return Graph(tuple(out) if isinstance(out, (tuple, list)) else (out,), inputs)
