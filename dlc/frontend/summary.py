"""A summary of a model: what each module takes, gives, holds and costs, without compiling it.

The numbers are read off the traced graph, whose nodes know the module that they come from; so they
are those of this input, not of formulas by type of layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from dlc import passes
from dlc.frontend.module import Module
from dlc.frontend.trace import trace
from dlc.ir.graph import Graph, is_parametric
from dlc.ir.node import Node
from dlc.ir.op import Kind
from dlc.ir.schedule import flops_of
from dlc.ir.sizes import Size, evaluate, shape_text
from dlc.ir.types import ITEMSIZE
from dlc.report import quantity, table, text

__all__ = ["Layer", "Summary", "summary"]


@dataclass(frozen=True)
class Layer:
    """One module of a summary; counts include the modules inside it.

    Attributes
    ----------
    path, kind : str
        Such as ``layer1.0.conv1`` and ``Conv2d``; the model's own path is empty.
    depth : int
        0 for the model itself.
    input, output : str
        Shapes of the first value that it reads and the last that it gives; empty where it computes
        nothing.
    kernel : str
        Shape of a convolution's kernel.
    parameters : int
        Numbers in its parameters, a shared one once.
    multiply_adds : int
        Products in its convolutions and matrix products.
    flops : int
        Floating-point operations: two for each multiply-add, one for any other.
    bytes : int
        Read and written at least, if each module computes its part by itself.
    """

    path: str
    kind: str
    depth: int
    input: str = ""
    output: str = ""
    kernel: str = ""
    parameters: int = 0
    multiply_adds: int = 0
    flops: int = 0
    bytes: int = 0

    @property
    def intensity(self) -> float:
        """Floating-point operations for each byte moved."""
        return self.flops / self.bytes if self.bytes else 0.0


@dataclass(frozen=True)
class Summary:
    """A model, module by module; as text, a table.

    Attributes
    ----------
    layers : tuple of Layer
        The model itself, then its modules in order, each before those inside it.
    sizes : dict of str to int
        The size of each named dimension for which the numbers hold: its smallest.
    trainable : int
        Numbers in parameters that require a gradient.
    parameter_bytes, buffer_bytes : int
    """

    layers: tuple[Layer, ...]
    sizes: Mapping[str, int]
    trainable: int
    parameter_bytes: int
    buffer_bytes: int

    @property
    def total(self) -> Layer:
        """The model as a whole."""
        return self.layers[0]

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return asdict(self)

    def __rich__(self) -> Any:
        shapes, counts = ("layer", "input", "output", "kernel"), ("parameters", "multiply-adds")
        columns = (*shapes, *counts, "FLOPs", "bytes", "FLOP/B")
        rows = [_row(layer) for layer in self.layers]
        return table(columns, rows, left=4, title=self._title())

    def __str__(self) -> str:
        return text(self, width=200)

    def _title(self) -> str:
        total, words = self.total, quantity
        frozen = total.parameters - self.trainable
        trainable = f", {words(frozen)} of them frozen" if frozen else ""
        sizes = ", ".join(f"{name} = {size}" for name, size in self.sizes.items())
        return (
            f"{total.kind}: {words(total.parameters)} parameters{trainable} "
            f"({words(self.parameter_bytes, 'B')}), {words(total.multiply_adds)} multiply-adds, "
            f"{words(total.flops, 'FLOP')}, {total.intensity:.3g} FLOP for each byte moved"
            + (f"; at {sizes}" if sizes else "")
        )


def summary(model: Callable[..., Any], *specs: Any, depth: int | None = None) -> Summary:
    """Summarise a model on arguments of given shapes.

    Parameters
    ----------
    model : Module or function
    *specs : array or TensorSpec
        Its arguments, as of `dlc.compile`.
    depth : int, optional
        How many levels of modules to list; deeper ones are counted in those above. All by default.

    Returns
    -------
    Summary

    Examples
    --------
    >>> from dlc.frontend.models import lenet5
    >>> from dlc.ir.types import TensorSpec
    >>> total = summary(lenet5().eval(), TensorSpec((1, 1, 28, 28))).total
    >>> total.parameters, total.multiply_adds
    (61706, 416520)
    """
    traced = trace(model, *specs)
    graph = passes.run(traced.graph, "O0")
    sizes = {dim.name: dim.min for dim in graph.dims}
    modules = dict(model.named_modules()) if isinstance(model, Module) else {"": None}
    costs, regions = _costs(graph, sizes), _regions(graph, modules)
    shapes = _Shapes(graph)
    layers = [
        _layer(path, module, [costs[node] for node in regions[path]], shapes.of(regions[path]))
        for path, module in modules.items()
    ]
    layers[0] = replace(layers[0], kind=traced.graph.name)
    shown = [layer for layer in layers if depth is None or layer.depth <= depth]
    parameters = list(model.parameters()) if isinstance(model, Module) else []
    buffers = list(model.buffers()) if isinstance(model, Module) else []
    return Summary(
        tuple(shown),
        sizes,
        trainable=sum(v.numel() for v in parameters if v.requires_grad),
        parameter_bytes=sum(v.numpy().nbytes for v in parameters),
        buffer_bytes=sum(v.numpy().nbytes for v in buffers),
    )


# What each node costs.


@dataclass(frozen=True)
class _Cost:
    multiply_adds: int = 0
    flops: int = 0
    bytes: int = 0


def _costs(graph: Graph, sizes: Mapping[str, int]) -> dict[Node, _Cost]:
    """Costs of the nodes that a call computes: not of those that depend on parameters alone.

    A module reads each value of another module once, and writes what others read.
    """
    computed = _computed(graph)
    owner = {node: min((o.module for o in node.origins), default="") for node in graph.nodes}
    readers: dict[Node, set[str | None]] = {node: set() for node in graph.nodes}
    for node in computed:
        for source in node.inputs:
            readers[_memory(source)].add(owner[node])
    for node in graph.outputs:
        readers[_memory(node)].add(None)
    seen: set[tuple[str, Node]] = set()
    costs = dict.fromkeys(graph.nodes, _Cost())
    for node in computed:
        moved: Size = 0
        for source in map(_memory, node.inputs):
            foreign = source not in computed or owner[source] != owner[node]
            if foreign and (owner[node], source) not in seen:
                seen.add((owner[node], source))
                moved = moved + _nbytes(source)
        if readers[node] - {owner[node]}:
            moved = moved + _nbytes(node)
        flops = evaluate(flops_of(node), sizes)
        products = flops // 2 if node.op.kind is Kind.CONTRACT else 0
        costs[node] = _Cost(products, flops, evaluate(moved, sizes))
    return costs


def _computed(graph: Graph) -> dict[Node, None]:
    """The nodes that are neither given nor known before the call; views of others are neither."""
    known: dict[Node, bool] = {}
    found: dict[Node, None] = {}
    for node in graph.nodes:
        known[node] = is_parametric(node, known)
        given = known[node] or node.op.kind is Kind.LEAF
        if not given and _memory(node) is node:
            found[node] = None
    return found


def _memory(node: Node) -> Node:
    """The node in whose memory a value lies: a reshape is only another way to read it."""
    while node.op.name == "reshape":
        node = node.inputs[0]
    return node


def _nbytes(node: Node) -> Size:
    return node.tensor_type.count * ITEMSIZE[node.dtype]


# What belongs to each module.


def _regions(graph: Graph, paths: Iterable[str]) -> dict[str, dict[Node, None]]:
    """The nodes that each module, or one inside it, computes; all of them for the model itself."""
    found: dict[str, dict[Node, None]] = {path: {} for path in paths}
    for node in graph.nodes:
        found[""][node] = None
        for origin in node.origins:
            for path in _above(origin.module):
                found.get(path, {})[node] = None
    return found


def _above(path: str) -> Iterator[str]:
    """A module's path, and those of the modules around it; not the model's own."""
    while path:
        yield path
        path = path.rpartition(".")[0]


class _Shapes:
    """Finds what a part of a graph takes and gives."""

    def __init__(self, graph: Graph) -> None:
        self._computed = _computed(graph)
        self._users = graph.users()
        self._ends = set(graph.outputs)

    def of(self, region: Mapping[Node, None]) -> tuple[str, str]:
        """Shapes of the first value that a region reads, and of the last that it gives."""
        own = [node for node in region if node in self._computed]
        read = [s for node in own for s in self._coming_in(node, region)]
        given = [n for n in region if n in self._ends or set(self._users[n]) - region.keys()]
        given = [node for node in given if _memory(node) in self._computed]
        ends = [*(node.shape for node in read[:1]), *(node.shape for node in given[-1:])]
        first, last = map(shape_text, ends) if len(ends) == 2 else ("", "")
        return first, last

    def _coming_in(self, node: Node, region: Mapping[Node, None]) -> Iterator[Node]:
        """What a node reads of values from outside, as they are there."""
        for source in node.inputs:
            while source in region and source.op.name == "reshape":
                source = source.inputs[0]
            given = source.op.name == "input"
            if given or (source not in region and _memory(source) in self._computed):
                yield source


def _layer(
    path: str, module: Module | None, costs: Sequence[_Cost], shapes: tuple[str, str]
) -> Layer:
    weight = getattr(module, "weight", None)
    return Layer(
        path,
        type(module).__name__,
        path.count(".") + 1 if path else 0,
        *shapes,
        kernel=shape_text(weight.shape[2:]) if weight is not None and weight.ndim > 2 else "",
        parameters=sum(p.numel() for p in module.parameters()) if module else 0,
        multiply_adds=sum(cost.multiply_adds for cost in costs),
        flops=sum(cost.flops for cost in costs),
        bytes=sum(cost.bytes for cost in costs),
    )


def _row(layer: Layer) -> list[str]:
    name = layer.path.rpartition(".")[2]
    label = f"{name}: {layer.kind}" if name else layer.kind
    counts = [layer.parameters, layer.multiply_adds, layer.flops]
    return [
        "  " * layer.depth + label,
        layer.input,
        layer.output,
        layer.kernel,
        *(quantity(count) if count else "" for count in counts),
        quantity(layer.bytes, "B") if layer.bytes else "",
        f"{layer.intensity:.3g}" if layer.flops else "",
    ]
