"""Gradients in the DSL: of traced functions in their arguments, and of values in other values.

Everything here runs inside a trace and makes nodes, by the pass that differentiates graphs. A
derived function is an ordinary one, so it can be derived again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from dlc.errors import ArgumentError, DTypeError, ShapeError, explain
from dlc.frontend.scope import active, here
from dlc.frontend.tree import flatten
from dlc.ir.arithmetic import Arithmetic
from dlc.ir.graph import topological
from dlc.ir.node import Node, apply, current_builder
from dlc.ir.types import is_float
from dlc.passes import differentiate
from dlc.passes.in_place import checked

Argnums = int | Sequence[int]


def grad(function: Callable[..., Any], argnums: Argnums = 0) -> Callable[..., Any]:
    """The function that gives the gradient of ``function``, whose value is a scalar.

    Parameters
    ----------
    function : callable
        Of tensors; its result is a scalar of floats.
    argnums : int or sequence of int
        The arguments by position to differentiate in: tensors of floats, or tuples, lists and dicts
        of them.

    Returns
    -------
    callable
        Of the same arguments. Its result is the gradient in the argument, with the argument's
        structure; a tuple of them where ``argnums`` is a sequence.

    Raises
    ------
    ShapeError, DTypeError
        When called: the function's value is no scalar, or an argument is not of floats.
    IndexError
        When called: an index or a label is out of range, as the function itself would say.
    """
    both = _derived(function, argnums, computed=False)

    @functools.wraps(function)
    def gradient(*args: Any, **kwargs: Any) -> Any:
        return both(*args, **kwargs)[1]

    return gradient


def value_and_grad(function: Callable[..., Any], argnums: Argnums = 0) -> Callable[..., Any]:
    """The function that gives ``(value, gradient)``; see `grad`."""
    return _derived(function, argnums, computed=True)


def _derived(function: Callable[..., Any], argnums: Argnums, computed: bool) -> Callable[..., Any]:
    """`value_and_grad`, and whether somebody uses the value (see `gradients`)."""
    chosen = _positions(argnums)

    @functools.wraps(function)
    def both(*args: Any, **kwargs: Any) -> Any:
        args, variables, structures = _with_variables(args, chosen)
        value = function(*args, **kwargs)
        if not isinstance(value, Arithmetic):
            got = type(value).__name__
            raise ShapeError(explain("dlc.grad", "a function whose value is a scalar", got))
        made = iter(gradients(value, variables, computed=computed))
        parts = [
            structure.build([next(made) for _ in range(structure.count)])
            for structure in structures
        ]
        return value, parts[0] if isinstance(argnums, int) else tuple(parts)

    return both


def gradients(
    value: Any,
    variables: Iterable[Any],
    grad_output: Any = None,
    *,
    allow_unused: bool = False,
    computed: bool = False,
) -> tuple[Any, ...]:
    """The gradients of a tensor in others, inside a trace.

    Parameters
    ----------
    value : Tensor
        A scalar of floats; with ``grad_output`` a tensor of any shape.
    variables : iterable of Tensor or Parameter
        What to differentiate in, of floats. What is computed from one is seen through it.
    grad_output : Tensor, optional
        What the elements of ``value`` are weighted with before they are summed; one by default.
    allow_unused : bool
        Give None, as PyTorch does, in place of zeros where ``value`` does not depend on a variable.
    computed : bool
        Say that ``value`` is among what the traced function returns. Otherwise the gradients make
        sure that it is computed where that may find an error, such as a label out of range.

    Returns
    -------
    tuple of Tensor
        One for each variable, of its shape; zeros where ``value`` does not depend on it.
    """
    given = tuple(variables)
    nodes = [_node(each) for each in given]
    for node in nodes:
        if not is_float(node.dtype):
            expected = "variables of floats"
            raise DTypeError(explain("a gradient", expected, node.describe(), where=here()))
    root = _node(value)
    weight = differentiate.scalar_one(root) if grad_output is None else _node(grad_output)
    if weight.type != root.type:
        expected, got = f"grad_output of {root.type}", str(weight.type)
        raise ShapeError(explain("a gradient", expected, got, where=here()))
    derive = differentiate.reverse if allow_unused else differentiate.gradients
    found = derive((root,), (weight,), nodes)
    made = tuple(each for each in found if each is not None)
    if not computed and not checked(topological((root,))) <= checked(topological(made)):
        found = derive((root,), (apply("after", weight, root),), nodes)
    return tuple(found)


def _node(value: Any) -> Node:
    scope = active()
    return current_builder().operand(value) if scope is None else scope.node(value)


def _positions(argnums: Argnums) -> tuple[int, ...]:
    positions = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    if not all(isinstance(i, int) and i >= 0 for i in positions) or not positions:
        expected = "argnums to be positions of arguments, from 0"
        raise ArgumentError(explain("dlc.grad", expected, repr(argnums)))
    return positions


def _with_variables(
    args: tuple[Any, ...], positions: Sequence[int]
) -> tuple[tuple[Any, ...], list[Node], list[Any]]:
    """The arguments with variables of their own in the chosen places, these, and structures."""
    changed, variables, structures = list(args), [], []
    for position in positions:
        if position >= len(args):
            expected = f"at least {position + 1} arguments by position"
            raise ArgumentError(explain("dlc.grad", expected, str(len(args)), where=here()))
        label = f"argument {position}"
        leaves, structure = flatten(args[position], _is_tensor, "tensors", label)
        own = [_variable(leaf) for leaf in leaves]
        changed[position] = structure.build(own)
        variables += own
        structures.append(structure)
    return tuple(changed), variables, structures


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Arithmetic)


def _variable(value: Any) -> Node:
    """A stand-in for a tensor: the same value, but not the same node as outside the function."""
    node = _node(value)
    if not is_float(node.dtype):
        expected = "arguments of floats to differentiate in"
        raise DTypeError(explain("dlc.grad", expected, node.describe(), where=here()))
    return apply("variable", node, tag=node.builder.tag())
