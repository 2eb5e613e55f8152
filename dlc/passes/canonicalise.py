"""Canonicalise: one form for what can be written in several ways, so that later rules know one.

Every equation holds to the bit. It also chooses the cheaper form: multiplication in place of
division, subtraction in place of a negation and an addition.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlc.ir.graph import Graph
from dlc.ir.manager import Property, RulePass
from dlc.ir.node import Node
from dlc.ir.op import Array
from dlc.ir.pattern import COMMUTATIVE, Guard, op, procedure, rule, uniform
from dlc.ir.types import is_float

# Constants stand on the right.

#: Not of `maximum` and `minimum`: which of 0.0 and -0.0 they take may depend on the order.
SWAPPED = COMMUTATIVE - {"maximum", "minimum"}


def _is_constant(node: Node) -> bool:
    return node.op.name == "constant" or uniform(node) is not None


def _constant_first(node: Node) -> bool:
    return (
        node.op.name in SWAPPED
        and _is_constant(node.inputs[0])
        and not _is_constant(node.inputs[1])
    )


@procedure("c ∘ x -> x ∘ c", *sorted(SWAPPED))
def constants_right(node: Node) -> Node | None:
    """The constant operand of a commutative op goes to the right."""
    if not _constant_first(node):
        return None
    return node.builder.node(node.op, node.inputs[::-1], node.attrs)


def _on_the_left(graph: Graph) -> Iterator[tuple[Node, str]]:
    for node in graph.nodes:
        if _constant_first(node):
            yield node, "has its constant on the left"


CANONICAL = Property("canonical", "constants of commutative ops stand on the right", _on_the_left)

# Arithmetic.


def _is_power_of_two(values: Array) -> bool:
    """Whether 1 / v is exact and normal for each element: x / v is x * (1 / v) to the bit then."""
    if not is_float(values.dtype.name) or not values.size:
        return False
    mantissa, _ = np.frexp(values)
    with np.errstate(all="ignore"):
        inverse = 1 / values
    normal = np.abs(inverse) >= np.finfo(values.dtype).tiny
    return bool(np.all((np.abs(mantissa) == 0.5) & normal & np.isfinite(inverse)))


NUMBERS = Guard("x is of numbers", lambda x: x.dtype != "bool")
POWERS_OF_TWO = Guard("the elements of c are powers of two", lambda c: _is_power_of_two(c))


def _moves_ones(x: Node, a: tuple[int, ...]) -> bool:
    """Whether a permutation moves axes of size 1 only."""
    longer = [axis for axis in a if x.shape[axis] != 1]
    return longer == sorted(longer) and a != tuple(range(len(a)))


def _inverse(c: Array) -> Array:
    inverse: Any = 1 / c
    return np.asarray(inverse, c.dtype)


@dataclass(frozen=True)
class Canonicalise(RulePass):
    """One form for what can be written in several ways."""

    name = "canonicalise"
    rules = (
        constants_right,
        rule(
            "x - c -> x + (-c)",
            lambda x, c: x - op.constant(value=c),
            lambda x, c: x + np.negative(c),
        ),
        rule(
            "x / c -> x * (1/c)",
            lambda x, c: x / op.constant(value=c),
            lambda x, c: x * _inverse(c),
            POWERS_OF_TWO,
        ),
        rule("x + (-y) -> x - y", lambda x, y: x + (-y), lambda x, y: x - y),
        rule("x - (-y) -> x + y", lambda x, y: x - (-y), lambda x, y: x + y),
        rule("x * -1 -> -x", lambda x: x * -1, lambda x: -x),
        rule("x * x -> square(x)", lambda x: x * x, lambda x: op.square(x), NUMBERS),
        rule("x + x -> x * 2", lambda x: x + x, lambda x: x * 2, NUMBERS),
        rule("1 / x -> reciprocal(x)", lambda x: 1 / x, lambda x: op.reciprocal(x)),
        rule("x > y -> y < x", lambda x, y: x > y, lambda x, y: y < x),
        rule("x >= y -> y <= x", lambda x, y: x >= y, lambda x, y: y <= x),
        rule(
            "where(not c, x, y) -> where(c, y, x)",
            lambda c, x, y: op.where(~c, x, y),
            lambda c, x, y: op.where(c, y, x),
            Guard("c is of bools", lambda c: c.dtype == "bool"),
        ),
        rule(
            "transpose(x) -> reshape(x)",
            lambda x, a: op.transpose(x, axes=a),
            lambda x, root: op.reshape(x, shape=root.shape),
            Guard("it moves axes of size 1 only", _moves_ones),
        ),
        rule(
            "expand(x) -> reshape(x)",
            lambda x, s: op.expand(x, shape=s),
            lambda x, s: op.reshape(x, shape=s),
            Guard(
                "it adds axes of size 1 only",
                lambda x, s: s != x.shape and _without_ones(s) == _without_ones(x.shape),
            ),
        ),
    )

    @property
    def ensures(self) -> tuple[Property, ...]:
        """Constants stand on the right."""
        return (CANONICAL,)


def _without_ones(shape: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(size for size in shape if size != 1)
