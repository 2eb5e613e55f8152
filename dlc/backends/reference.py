"""The reference backend: a graph evaluated node by node with NumPy.

Slow and obvious. Every other backend, every pass and every gradient is checked against it, in the
element types of the graph or with float32 widened to float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from dlc.errors import ArgumentError, DTypeError, Error, ShapeError, VerifyError
from dlc.ir.graph import Graph
from dlc.ir.node import Node
from dlc.ir.sizes import Dim, Poly, Size, atoms, dims, evaluate, shape_text, substitute
from dlc.ir.types import TensorType, TupleType

Array: TypeAlias = "np.ndarray[Any, Any]"


def run(
    graph: Graph,
    arrays: Mapping[str, Any],
    dims: Mapping[str, int] | None = None,
    dtype: str | None = None,
) -> list[Array]:
    """Evaluate a graph.

    Parameters
    ----------
    graph : Graph
    arrays : mapping of str to array
        A value for each input and parameter, by name; more names do no harm.
    dims : mapping of str to int, optional
        Sizes of the named dimensions; by default found from the shapes of the arrays.
    dtype : {"float64"}, optional
        Evaluate with every float32 of the graph, arrays included, widened to float64.

    Returns
    -------
    list of ndarray
        The outputs, which share no memory with the arrays.

    Raises
    ------
    ArgumentError
        An array is missing.
    ShapeError, DTypeError
        An array does not fit its input.
    IndexError
        An index is out of range.
    """
    ends = set(graph.outputs)
    found = {node: value for node, value in walk(graph, arrays, dims, dtype) if node in ends}
    return [np.array(found[node]) for node in graph.outputs]


def walk(
    graph: Graph,
    arrays: Mapping[str, Any],
    dims: Mapping[str, int] | None = None,
    dtype: str | None = None,
) -> Iterator[tuple[Node, Any]]:
    """Each node with its value, in the order of evaluation; see `run`."""
    if dtype not in (None, "float64"):
        raise ArgumentError(f"run expects dtype None or 'float64', got {dtype!r}")
    wide = dtype is not None
    given = _given(graph, arrays, wide)
    sizes = bind(graph, given) if dims is None else dict(dims)
    left = {node: len(users) for node, users in graph.users().items()}
    values: dict[Node, Any] = {}
    for node in graph.nodes:
        with np.errstate(all="ignore"):
            values[node] = _value(node, values, given, sizes, wide)
        yield node, values[node]
        for source in dict.fromkeys((*node.inputs, node)):
            left[source] -= source is not node
            if not left[source]:
                del values[source]


def _given(graph: Graph, arrays: Mapping[str, Any], wide: bool) -> dict[str, Array]:
    """The arrays that the graph reads, in the element types of the evaluation."""
    given: dict[str, Array] = {}
    for node in _named(graph):
        if node.name not in arrays:
            have = ", ".join(arrays) or "none"
            raise ArgumentError(f"{graph.name} expects an array for {node.describe()}, got {have}")
        array = np.asarray(arrays[node.name])
        expected = _widened(node.dtype, wide)
        if array.dtype.name not in (node.dtype, expected):
            raise DTypeError(
                f"{graph.name} expects {node.dtype} for {node.op.name} {node.name!r}, "
                f"got {array.dtype.name}; convert it with array.astype({node.dtype!r})"
            )
        given[node.name] = array.astype(expected, copy=False)
    return given


def _named(graph: Graph) -> list[Node]:
    return list(dict.fromkeys((*graph.inputs, *graph.parameters)))


def _value(
    node: Node,
    values: Mapping[Node, Any],
    given: Mapping[str, Array],
    sizes: Mapping[str, int],
    wide: bool,
) -> Any:
    if node.name is not None:
        return given[node.name]
    attrs = evaluate_attrs(node.attrs, sizes, wide)
    try:
        result = node.op.ref(*(values[source] for source in node.inputs), **attrs)
    except Error as error:
        raise type(error)(f"{error}, in {node.describe()}") from None
    if isinstance(node.type, TupleType):
        pairs = zip(result, node.type.elements, strict=True)
        return tuple(_checked(node, np.asarray(part), type, sizes, wide) for part, type in pairs)
    return _checked(node, np.asarray(result), node.type, sizes, wide)


def _checked(
    node: Node, array: Array, type: TensorType, sizes: Mapping[str, int], wide: bool
) -> Array:
    """``array``, which must be what the type rule has said."""
    shape = tuple(evaluate(size, sizes) for size in type.shape)
    dtype = _widened(type.dtype, wide)
    if array.shape != shape or array.dtype.name != dtype:
        raise VerifyError(
            f"the type rule of {node.op.name} gives {dtype}{list(shape)}, its reference "
            f"{array.dtype.name}{list(array.shape)}; mend the wrong one ({node.describe()})"
        )
    return array


def _widened(dtype: str, wide: bool) -> str:
    return "float64" if wide and dtype == "float32" else dtype


def evaluate_attrs(
    attrs: Mapping[str, Any], sizes: Mapping[str, int], wide: bool = False
) -> dict[str, Any]:
    """Attributes with every symbolic size replaced by its value, as references take them.

    Parameters
    ----------
    attrs : mapping
    sizes : mapping of str to int
        Sizes of the named dimensions.
    wide : bool
        Also widen element types and arrays of float32 to float64.
    """
    return {
        name: _widened(value, wide) if name == "dtype" else _evaluated(value, sizes, wide)
        for name, value in attrs.items()
    }


def _evaluated(value: Any, sizes: Mapping[str, int], wide: bool) -> Any:
    if isinstance(value, Poly):
        return evaluate(value, sizes)
    if isinstance(value, tuple):
        return tuple(_evaluated(item, sizes, wide) for item in value)
    if isinstance(value, np.ndarray):
        return value.astype(_widened(value.dtype.name, wide), copy=False)
    return value


def bind(graph: Graph, arrays: Mapping[str, Any]) -> dict[str, int]:
    """The sizes of the named dimensions, found from the shapes of arrays and checked.

    Parameters
    ----------
    graph : Graph
    arrays : mapping of str to array
        A value for each input and parameter, by name.

    Returns
    -------
    dict of str to int

    Raises
    ------
    ShapeError
        A number of dimensions or a size differs from the declared one, a size is outside the range
        of its `Dim`, two arrays give one `Dim` different sizes, or no array tells a size.
    """
    found: dict[Dim, int] = {}
    pending = [equation for node in _named(graph) for equation in _equations(graph, node, arrays)]
    while pending:
        left = [equation for equation in pending if not _solved(equation, found)]
        if len(left) == len(pending):
            raise ShapeError(
                f"{left[0].text()}, which no shape decides; pass `dims` with its sizes"
            )
        pending = left
    return {dim.name: value for dim, value in found.items()}


class _Equation(NamedTuple):
    """A declared size and the size that came."""

    node: Node
    axis: int
    size: Size
    actual: int
    shape: tuple[int, ...]
    graph: str

    def text(self) -> str:
        node = self.node
        return (
            f"{self.graph} expects {shape_text(node.shape)} for {node.op.name} {node.name!r}, "
            f"got {shape_text(self.shape)}: dimension {self.axis} is {self.size}"
        )


def _equations(graph: Graph, node: Node, arrays: Mapping[str, Any]) -> list[_Equation]:
    shape = np.shape(arrays[node.name or ""])
    if len(shape) != node.ndim:
        raise ShapeError(
            f"{graph.name} expects {node.ndim} dimensions for {node.op.name} {node.name!r}: "
            f"{shape_text(node.shape)}, got {len(shape)}: {shape_text(shape)}"
        )
    sizes = enumerate(zip(node.shape, shape, strict=True))
    return [
        _Equation(node, axis, size, actual, shape, graph.name) for axis, (size, actual) in sizes
    ]


def _solved(equation: _Equation, found: dict[Dim, int]) -> bool:
    """Whether the equation is settled: checked, or solved for the one dimension not yet found."""
    size = substitute(equation.size, found)
    if isinstance(size, int):
        if size != equation.actual:
            symbols = ", ".join(f"{d} = {found[d]}" for d in sorted(dims(equation.size), key=str))
            raise ShapeError(
                f"{equation.text()}{f' with {symbols}' if symbols else ''}, not {equation.actual}"
            )
        return True
    unknown = [atom for atom in atoms(size) if isinstance(atom, Dim)]
    if len(unknown) != 1 or dims(size) != set(unknown) or set(size.terms) - {(unknown[0],), ()}:
        return False
    dim = unknown[0]
    value, rest = divmod(equation.actual - size.terms.get((), 0), size.terms[(dim,)])
    if rest or not dim.min <= value <= dim.max:
        raise ShapeError(
            f"{equation.text()} with {dim} in {dim.min}..{dim.max}, not {equation.actual}"
        )
    if any(other.name == dim.name for other in found):
        raise ShapeError(f"{equation.text()}, and {dim} has another range elsewhere; use one Dim")
    found[dim] = value
    return True
