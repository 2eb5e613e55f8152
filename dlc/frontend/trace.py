"""Tracing: run a function once on symbols, and keep what it computes as a graph.

Ordinary Python runs, so loops, helper functions and configuration cost nothing in the graph. What
Python decides is decided once: a condition on a tensor's value is an error that says so.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlc.errors import ArgumentError, DTypeError, TraceError, explain
from dlc.frontend.met import Met
from dlc.frontend.module import Module
from dlc.frontend.parameter import Variable, latest_change
from dlc.frontend.scope import Scope
from dlc.frontend.tree import LEAF, Structure, flatten
from dlc.ir.arithmetic import Arithmetic
from dlc.ir.graph import Graph
from dlc.ir.node import Node
from dlc.ir.sizes import Dim, Poly
from dlc.ir.types import DTYPES, TensorSpec, TensorType, TupleType, tensor


@dataclass(frozen=True, eq=False, repr=False)
class Traced:
    """What tracing gives: the graph, and how it is joined to the user's values.

    Attributes
    ----------
    graph : Graph
        Inputs are the leaves of the arguments in order; outputs the leaves of the result, then the
        new values of buffers (`Graph.aliases`).
    parameters : dict of str to Variable
        Who owns the storage of each parameter and buffer of the graph, by name.
    arguments : Structure
        Of ``(args, kwargs)``: equal to that of a later call that may use this graph.
    structure : Structure
        Of the result: ``structure.build(outputs)`` is what the user gets.
    training : bool
        Whether a module in training mode ran.
    met : Met
        What it is a trace of as long as that stays as it is.
    """

    graph: Graph
    parameters: Mapping[str, Variable]
    arguments: Structure
    structure: Structure
    training: bool
    met: Met


def trace(function: Callable[..., Any], *specs: Any, **named_specs: Any) -> Traced:
    """Trace a function or module.

    Parameters
    ----------
    function : callable
        A module, a method of one, or a function of tensors (which may use modules).
    *specs, **named_specs
        Its arguments: arrays or `TensorSpec`s stand for tensors; Python numbers, strings and None
        are passed as they are, frozen into the graph; tuples, lists and dicts hold any of these.

    Raises
    ------
    Error
        An op refuses what it is given (with op, module path, file and line), or the function asks
        for a tensor's value. Other exceptions of the function come through unchanged.
    """
    _check_function(function)
    leaves, arguments = flatten_arguments(specs, named_specs)
    since, scope = latest_change(), Scope()
    root = function if isinstance(function, Module) else getattr(function, "__self__", None)
    if isinstance(root, Module):
        scope.adopt(root, "")
        scope.meet(root)
    inputs = _inputs(function, arguments, leaves, scope)
    with scope.open():
        args, kwargs = arguments.build(inputs)
        results, structure = _results(function(*args, **kwargs), scope)
    updates = scope.new_values()
    names = [*_output_names(structure), *(f"{name}.next" for name in updates)]
    graph = Graph(
        outputs=(*results, *updates.values()),
        inputs=inputs,
        output_names=_distinct(names),
        aliases=dict(enumerate(updates, start=len(results))),
        name=_graph_name(function),
    )
    met = Met(function, scope.modes, scope.parameters.values(), since)
    return Traced(graph, scope.parameters, arguments, structure, scope.training, met)


def _check_function(function: object) -> None:
    """Refuse what cannot be traced, above all a class where an instance of it is meant."""
    if isinstance(function, type):
        name = function.__name__
        advice = f"Make one: {name}()." if issubclass(function, Module) else ""
        got = f"the class {name}"
    elif not callable(function):
        got, advice = f"{function!r} of type {type(function).__name__}", ""
    elif any(kind.__module__.startswith("torch.") for kind in type(function).__mro__):
        got, advice = f"a {type(function).__name__} of PyTorch", _FROM_TORCH
    else:
        return
    expected = "a Module or a function of tensors"
    raise ArgumentError(explain("tracing", expected, got, advice=advice))


_FROM_TORCH = (
    "Write the model with dlc.nn, which has PyTorch's names, and take over the weights by "
    "load_state_dict."
)


def flatten_arguments(
    args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[list[Any], Structure]:
    """Arrays (or specs) among the arguments of a call in order, and the structure of the rest.

    It is on the way of every call, hence the shortcut for arrays alone.
    """
    if not kwargs:
        for value in args:
            if type(value) not in _LEAVES:
                break
        else:
            return list(args), _leaves_only(len(args))
    expected = "NumPy arrays or TensorSpecs (of another library's tensor, its .numpy())"
    first, positional = flatten(args, _is_argument, expected, "argument")
    second, named = flatten(dict(kwargs), _is_argument, expected, "argument")
    return first + second, Structure("tuple", (0, 1), (positional, named))


_LEAVES = (np.ndarray, TensorSpec)


@functools.cache
def _leaves_only(count: int) -> Structure:
    """The structure of a call with ``count`` arrays and nothing else."""
    positional = Structure("tuple", tuple(range(count)), (LEAF,) * count)
    return Structure("tuple", (0, 1), (positional, Structure("dict")))


def _is_argument(value: Any) -> bool:
    if isinstance(value, Node):
        raise TraceError(
            f"a symbolic tensor ({value.describe()}) left its trace and was passed as an argument; "
            "it has no value, return it from the traced function to get one"
        )
    return isinstance(value, (np.ndarray, np.generic, TensorSpec))


def _inputs(
    function: Callable[..., Any], arguments: Structure, leaves: list[Any], scope: Scope
) -> tuple[Node, ...]:
    """One graph input a leaf, named by the function's own parameters."""
    inputs = []
    for path, leaf in zip(_argument_paths(function, arguments), leaves, strict=True):
        name = scope.unique(path)
        if isinstance(leaf, TensorSpec) and leaf.name:
            name = scope.unique(leaf.name)
            if name != leaf.name:
                message = explain("a TensorSpec", "a name of its own", repr(leaf.name))
                raise ArgumentError(f"{message}, which the graph has already")
        inputs.append(scope.builder.input(name, _type_of(leaf, path)))
    return tuple(inputs)


def _argument_paths(function: Callable[..., Any], arguments: Structure) -> list[str]:
    """What each leaf of the arguments is called: ``x``, or ``states.0`` inside a structure."""
    positional, rest = _positional_names(function)
    args, kwargs = arguments.children
    paths = []
    for i, child in enumerate(args.children):
        extra = f"{rest}.{i - len(positional)}"
        paths += child.paths(positional[i] if i < len(positional) else extra)
    for name, child in zip(kwargs.names, kwargs.children, strict=True):
        paths += child.paths(name)
    return paths


def _positional_names(function: Callable[..., Any]) -> tuple[list[str], str]:
    """Names of the positional parameters, and of the one that takes the rest."""
    called = function.forward if isinstance(function, Module) else function
    try:
        parameters = inspect.signature(called).parameters.values()
    except (TypeError, ValueError):  # some builtins have no signature
        return [], "input"
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    rest = [p.name for p in parameters if p.kind is inspect.Parameter.VAR_POSITIONAL]
    return [p.name for p in parameters if p.kind in positional], (rest or ["input"])[0]


def _type_of(leaf: Any, path: str) -> TensorType:
    if isinstance(leaf, TensorSpec):
        return leaf.type
    if leaf.dtype.name not in DTYPES:
        expected = f"an element type of {', '.join(DTYPES)}"
        raise DTypeError(explain(f"argument {path!r}", expected, leaf.dtype.name))
    return tensor(leaf.dtype.name, leaf.shape)


def _results(result: Any, scope: Scope) -> tuple[list[Node], Structure]:
    """The nodes in what a function returned, and its structure."""
    values, structure = flatten(result, _is_result, "tensors")
    if not values:
        raise TraceError(f"the traced function returned no tensor, but {result!r}")
    nodes = [scope.node(value) for value in values]
    for node in nodes:
        if isinstance(node.type, TupleType):
            count = len(node.type.elements)
            got = f"{node.describe()}, which stands for {count} tensors"
            advice = "Return node.project(0), node.project(1) and so on."
            raise TraceError(
                explain("the traced function", "to return tensors", got, advice=advice)
            )
    return nodes, structure


def _is_result(value: Any) -> bool:
    return isinstance(value, (Arithmetic, np.ndarray, np.generic, Poly, Dim))


def _output_names(structure: Structure) -> list[str]:
    """``output`` for a single result, ``output0`` for one of several, the key for one of a dict."""
    if structure.kind == "dict":
        return structure.paths()
    return [f"output{path}" for path in structure.paths()]


def _distinct(names: Iterable[str]) -> tuple[str, ...]:
    """The names, with a number where one was there already: a key may look like a path."""
    found: dict[str, None] = {}
    for name in names:
        number = itertools.count(1)
        own = name
        while own in found:
            own = f"{name}_{next(number)}"
        found[own] = None
    return tuple(found)


def _graph_name(function: Callable[..., Any]) -> str:
    name = getattr(function, "__name__", type(function).__name__)
    return name.strip("<>")
