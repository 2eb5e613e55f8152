"""The text form of graphs: printed for people, parsed back to the same graph.

    graph lenet
    dim batch: 1..64
    %image = input : float32[batch, 1, 28, 28]
    %conv1.weight = parameter : float32[6, 1, 5, 5]
    %0 = conv2d(%image, %conv1.weight) stride=(1, 1) : float32[batch, 6, 28, 28]  # conv1, m.py:7
    %1 = relu(%0) : float32[batch, 6, 28, 28]
    output logits = %1

It shows what a pass did, cuts a failing case out of a model, and feeds `dlc opt`; so every number
comes back to the bit, and a slip in an edited text is an error with its line and column. Types may
be left out except for inputs and parameters; where they stand they are checked against the rules of
the ops. What follows ``#`` is which kernel computes the node, where that is known, and where the
node comes from.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from dlc.errors import ParseError
from dlc.ir.graph import Graph
from dlc.ir.node import Node
from dlc.ir.op import Array
from dlc.ir.parse import parse
from dlc.ir.pattern import uniform
from dlc.ir.sizes import Dim, Poly, dims
from dlc.ir.types import TupleType

__all__ = ["INLINE", "arrays", "parse", "print_graph"]

#: Constants of more elements are written as a digest, except where all elements are equal.
INLINE = 16


def print_graph(graph: Graph) -> str:
    """The text form of a graph, one node a line; `parse` reads it back.

    Constants of more than `INLINE` elements appear by digest; `arrays` gives them by digest.
    """
    nodes = graph.nodes
    names: dict[Node, str] = {}
    numbers = itertools.count()
    lines = [f"graph {_name(graph.name)}"]
    lines += [f"dim {dim.name}: {dim.min}..{dim.max}" for dim in _all_dims(nodes)]
    for node in nodes:
        names[node] = f"%{next(numbers) if node.name is None else _name(node.name)}"
        lines.append(_line(node, names, graph.kernels.get(node)))
    for number, (name, node) in enumerate(zip(graph.output_names, graph.outputs, strict=True)):
        alias = graph.aliases.get(number)
        updates = "" if alias is None else f" updates %{_name(alias)}"
        lines.append(f"output {_name(name)} = {names[node]}{updates}")
    return "\n".join(lines)


def arrays(graph: Graph) -> dict[str, Array]:
    """The large constants of a graph by the digest that stands for them in its text form."""
    values = [node.attrs["value"] for node in graph.nodes if node.op.name == "constant"]
    return {_digest(value): value for value in values if value.size > INLINE}


def _line(node: Node, names: Mapping[Node, str], kernel: str | None) -> str:
    inputs = ", ".join(names[source] for source in node.inputs)
    words = [f"{names[node]} = {node.op.name}" + (f"({inputs})" if inputs else "")]
    if node.op.name == "constant":
        words.append(_constant(node))
    else:
        words += [f"{k}={_value(v, node)}" for k, v in node.attrs.items() if not _is_said(k, node)]
    text = f"{' '.join(words)} : {node.type}"
    places = "; ".join(sorted(str(origin) for origin in node.origins if str(origin)))
    notes = " ".join(filter(None, (f"[{kernel}]" if kernel else "", places)))
    return text + (f"  # {notes}".replace("\n", " ") if notes else "")


def _is_said(attr: str, node: Node) -> bool:
    """Whether a leaf's name and type, which stand on the line anyway, tell the attribute."""
    if node.op.name not in ("input", "parameter"):
        return False
    return attr in ("name", "dtype", "shape") or node.attrs[attr] == "parameter"


def _all_dims(nodes: list[Node]) -> list[Dim]:
    found: set[Dim] = set()
    for node in nodes:
        elements = node.type.elements if isinstance(node.type, TupleType) else (node.type,)
        for value in (*(size for e in elements for size in e.shape), *node.attrs.values()):
            found |= _dims_in(value)
    return sorted(found, key=str)


def _dims_in(value: Any) -> set[Dim]:
    if isinstance(value, (tuple, list)):
        return set[Dim]().union(*map(_dims_in, value))
    return dims(value) if isinstance(value, Poly) else set()


def _name(name: str) -> str:
    return name if re.fullmatch(r"[^\W\d][\w.]*", name) else json.dumps(name)


def _value(value: Any, node: Node) -> str:
    if isinstance(value, float):
        return _number(np.float64(value))
    if value is None or isinstance(value, (bool, int, Poly)):
        return str(value)
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, (tuple, list)):
        items = [_value(item, node) for item in value]
        return f"({items[0]},)" if len(items) == 1 else f"({', '.join(items)})"
    kind = type(value).__name__
    raise ParseError(f"the text form has no way to write an attribute of type {kind}: {node!r}")


def _constant(node: Node) -> str:
    value: Array = node.attrs["value"]
    one = uniform(node)
    if one is not None and value.size > 1:
        return f"all {_number(one)}"
    return _nested(value) if value.size <= INLINE else f"sha256:{_digest(value)}"


def _nested(value: Array) -> str:
    if value.ndim == 0:
        return _number(value.ravel()[0])
    return f"[{', '.join(_nested(np.asarray(part)) for part in value)}]"


def _number(value: np.generic) -> str:
    """The shortest text that gives the same bits."""
    if value.dtype.kind != "f":
        return str(value.item())
    text = str(value)
    if np.isfinite(value) and value.dtype.type(float(text)).tobytes() == value.tobytes():
        return text
    if np.isfinite(value):
        return repr(float(value))
    if value.tobytes() == value.dtype.type(text).tobytes():
        return f'float("{text}")'
    return f'float("nan:{value.view(f"u{value.itemsize}"):x}")'


def _digest(value: Array) -> str:
    head = f"{value.dtype.str}{value.shape}:".encode()
    return hashlib.sha256(head + value.tobytes()).hexdigest()[:32]
