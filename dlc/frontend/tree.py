"""Nested tuples, lists and dicts of tensors: arguments and results as a graph sees them.

A graph has flat inputs and outputs; users pass and return structures. A `Structure` is what is left
of one without its leaves: hashable, so that compiled calls are keyed by it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from dlc.errors import TraceError

#: Python values that are part of the structure, frozen into the graph.
STATIC = (type(None), bool, int, float, str, bytes, enum.Enum)


@dataclass(frozen=True)
class Structure:
    """The shape of a nested value.

    Parameters
    ----------
    kind : str
        "leaf", "static", "tuple", "list" or "dict".
    names : tuple
        The keys of a dict, the fields of a named tuple, the positions of a tuple or list.
    children : tuple of Structure
        What stands under each of ``names``.
    detail : object
        What tells equal structures apart further: type and text of a static value, the class of a
        named tuple.
    value : object
        A static value itself.
    """

    kind: str
    names: tuple[Any, ...] = ()
    children: tuple[Structure, ...] = ()
    detail: object = None
    value: object = field(default=None, compare=False)

    @property
    def count(self) -> int:
        """Number of leaves."""
        return (self.kind == "leaf") + sum(child.count for child in self.children)

    def paths(self, prefix: str = "") -> list[str]:
        """The path of each leaf, such as ``states.0.hidden``; ``prefix`` for a lone leaf."""
        if self.kind == "leaf":
            return [prefix]
        parts = zip(self.names, self.children, strict=True)
        dot = "." if prefix else ""
        return [path for name, child in parts for path in child.paths(f"{prefix}{dot}{name}")]

    def build(self, leaves: Sequence[Any]) -> Any:
        """The nested value with these leaves, in order."""
        return self._build(iter(leaves))

    def _build(self, leaves: Iterator[Any]) -> Any:
        if self.kind == "leaf":
            return next(leaves)
        if self.kind == "static":
            return self.value
        values = [child._build(leaves) for child in self.children]
        if self.kind == "dict":
            return dict(zip(self.names, values, strict=True))
        if self.detail is not None:
            return self.detail(*values)  # type: ignore[operator]
        return values if self.kind == "list" else tuple(values)


LEAF = Structure("leaf")


def flatten(
    value: Any, is_leaf: Callable[[Any], bool], expected: str, path: str = ""
) -> tuple[list[Any], Structure]:
    """Take a nested value apart into its leaves and its structure.

    Parameters
    ----------
    value : object
    is_leaf : callable
        Which values are leaves.
    expected, path : str
        What leaves are and where ``value`` stands, for messages.

    Raises
    ------
    TraceError
        Something is no leaf, no tuple, list or dict, and no plain Python value.
    """
    if is_leaf(value):
        return [value], LEAF
    if isinstance(value, STATIC):
        return [], Structure("static", detail=(type(value), repr(value)), value=value)
    if isinstance(value, dict):
        kind, names, items = "dict", tuple(value), list(value.values())
    elif isinstance(value, (tuple, list)):
        kind = "list" if isinstance(value, list) else "tuple"
        names, items = getattr(value, "_fields", tuple(range(len(value)))), list(value)
    else:
        method = "; to jit a method, jit the bound one: obj.f = dlc.jit(obj.f)"
        raise TraceError(
            f"{path or 'the result'} has type {type(value).__name__}; expected {expected}, Python "
            "numbers, strings and None, or tuples, lists and dicts of these"
            f"{method if path == 'argument.0' else ''}"
        )
    dot = "." if path else ""
    parts = [
        flatten(item, is_leaf, expected, f"{path}{dot}{name}")
        for name, item in zip(names, items, strict=True)
    ]
    leaves = [leaf for found, _ in parts for leaf in found]
    named_tuple = type(value) if hasattr(value, "_fields") else None
    return leaves, Structure(kind, names, tuple(s for _, s in parts), named_tuple)
