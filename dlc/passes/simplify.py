"""Simplify: remove what changes nothing, by equations that hold to the bit.

Traced and imported models, and other passes, leave such nodes behind. Each rule here holds for
NaN, infinities and signed zeros too, so the pass needs no option that makes it safe.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dlc.ir.manager import RulePass
from dlc.ir.node import Node, apply
from dlc.ir.op import Kind
from dlc.ir.pattern import Guard, PatternRule, Rule, op, procedure, rule
from dlc.ir.types import INTEGERS, is_float

# Guards.

#: Ops whose results are neither negative nor -0.0, of floats (integers overflow). A relu is none
#: of them: it keeps -0.0.
NOT_NEGATIVE = frozenset(("abs", "square", "exp", "sigmoid", "step", "softmax"))

#: Casts that keep every value: from each element type, the types that hold all its values.
LOSSLESS = {
    "bool": {"bool", "uint8", "int32", "int64", "float32", "float64"},
    "uint8": {"uint8", "int32", "int64", "float32", "float64"},
    "int32": {"int32", "int64", "float64"},
    "int64": {"int64"},
    "float32": {"float32", "float64"},
    "float64": {"float64"},
}

NEVER_NEGATIVE = Guard(
    "x is never negative, nor -0.0", lambda x: x.op.name in NOT_NEGATIVE and is_float(x.dtype)
)
INTEGER = Guard("x is of integers", lambda x: x.dtype in INTEGERS)
SIGNED = Guard("x has a sign", lambda x: x.dtype != "uint8")
BOOL = Guard("x is of bools", lambda x: x.dtype == "bool")


def _same_type(x: Node, root: Node) -> bool:
    return x.type == root.type


SAME_TYPE = Guard("the result has the type of x", _same_type)

# Arithmetic.

ARITHMETIC: tuple[Rule, ...] = (
    rule("x + -0.0 -> x", lambda x: x + -0.0, lambda x: x),
    rule("x + 0 -> x", lambda x: x + 0, lambda x: x, NEVER_NEGATIVE),
    rule("x - 0 -> x", lambda x: x - 0, lambda x: x),
    rule("x * 1 -> x", lambda x: x * 1, lambda x: x),
    rule("x / 1 -> x", lambda x: x / 1, lambda x: x),
    rule("pow(x, 1) -> x", lambda x: x**1, lambda x: x),
    rule("pow(x, 0) -> 1", lambda x: x**0, lambda: 1.0),
    rule("x * 0 -> 0", lambda x: x * 0, lambda: 0, INTEGER),
    rule("x - x -> 0", lambda x: x - x, lambda: 0, INTEGER),
    rule("-(-x) -> x", lambda x: op.neg(-x), lambda x: x),
    rule("(-x) * (-y) -> x * y", lambda x, y: (-x) * (-y), lambda x, y: x * y),
    rule("abs(-x) -> abs(x)", lambda x: abs(-x), lambda x: abs(x), SIGNED),
    rule("square(-x) -> square(x)", lambda x: op.square(-x), lambda x: op.square(x)),
    rule("square(abs(x)) -> square(x)", lambda x: op.square(abs(x)), lambda x: op.square(x)),
    rule("abs(x) -> x", lambda x: abs(x), lambda x: x, NEVER_NEGATIVE),
    rule("relu(x) -> x", lambda x: op.relu(x), lambda x: x, NEVER_NEGATIVE),
)


def _idempotent(name: str) -> PatternRule:
    f = getattr(op, name)
    return rule(f"{name}({name}(x)) -> {name}(x)", lambda x: f(f(x)), lambda x: f(x))


def _absorbed(name: str) -> tuple[PatternRule, PatternRule]:
    f = getattr(op, name)
    return (
        rule(f"{name}(x, x) -> x", lambda x: f(x, x), lambda x: x),
        rule(
            f"{name}({name}(x, y), y) -> {name}(x, y)",
            lambda x, y: f(f(x, y), y),
            lambda x, y: f(x, y),
        ),
    )


def _of_integers(name: str) -> PatternRule:
    f = getattr(op, name)
    return rule(f"{name}(x) -> x", lambda x: f(x), lambda x: x, INTEGER)


IDEMPOTENT = tuple(
    map(_idempotent, ("relu", "relu6", "abs", "sign", "floor", "ceil", "round", "trunc"))
)
ABSORBED = tuple(r for name in ("maximum", "minimum") for r in _absorbed(name))
ROUNDED = tuple(map(_of_integers, ("floor", "ceil", "round", "trunc")))

# Logic and choice.

LOGIC: tuple[Rule, ...] = (
    rule("not not x -> x", lambda x: ~~x, lambda x: x, BOOL),
    rule("x and x -> x", lambda x: x & x, lambda x: x, BOOL),
    rule("x or x -> x", lambda x: x | x, lambda x: x, BOOL),
    rule("x and true -> x", lambda x: x & True, lambda x: x),
    rule("x or false -> x", lambda x: x | False, lambda x: x),
    rule("not (x == y) -> x != y", lambda x, y: ~(x == y), lambda x, y: x != y),
    rule("not (x != y) -> x == y", lambda x, y: ~(x != y), lambda x, y: x == y),
    rule("where(c, x, x) -> x", lambda c, x: op.where(c, x, x), lambda x: x),
    rule("where(true, x, y) -> x", lambda x, y: op.where(True, x, y), lambda x: x),
    rule("where(false, x, y) -> y", lambda x, y: op.where(False, x, y), lambda y: y),
)

# Casts.

CASTS: tuple[Rule, ...] = (
    rule("cast(x) -> x", lambda x, t: op.cast(x, dtype=t), lambda x: x, SAME_TYPE),
    rule(
        "cast(cast(x)) -> cast(x)",
        lambda x, t, u: op.cast(op.cast(x, dtype=t), dtype=u),
        lambda x, u: op.cast(x, dtype=u),
        Guard("the inner cast keeps every value", lambda x, t: t in LOSSLESS[x.dtype]),
    ),
)

# Movement.


def _is_zero(sizes: tuple[Any, ...]) -> bool:
    return all(size == 0 for size in sizes)


MOVEMENT: tuple[Rule, ...] = (
    rule("reshape(x) -> x", lambda x, s: op.reshape(x, shape=s), lambda x: x, SAME_TYPE),
    rule(
        "reshape(reshape(x)) -> reshape(x)",
        lambda x, s, t: op.reshape(op.reshape(x, shape=s), shape=t),
        lambda x, t: op.reshape(x, shape=t),
    ),
    rule("expand(x, its own shape) -> x", lambda x, s: op.expand(x, shape=s), lambda x: x),
    rule(
        "expand(expand(x)) -> expand(x)",
        lambda x, s, t: op.expand(op.expand(x, shape=s), shape=t),
        lambda x, t: op.expand(x, shape=t),
    ),
    rule(
        "expand(reshape(x)) -> expand(x)",
        lambda x, s, t: op.expand(op.reshape(x, shape=s), shape=t),
        lambda x, t: op.expand(x, shape=t),
        Guard("the reshape adds leading axes of size 1", lambda x, s: s == _led(x, len(s))),
    ),
    rule(
        "transpose(x) -> x",
        lambda x, a: op.transpose(x, axes=a),
        lambda x: x,
        Guard("the axes stay in order", lambda a: a == tuple(range(len(a)))),
    ),
    rule(
        "transpose(transpose(x)) -> transpose(x)",
        lambda x, a, b: op.transpose(op.transpose(x, axes=a), axes=b),
        lambda x, a, b: op.transpose(x, axes=tuple(a[axis] for axis in b)),
    ),
    rule(
        "slice(x) -> x",
        lambda x, a, b, c: op.slice(x, starts=a, stops=b, steps=c),
        lambda x: x,
        Guard(
            "all of x is taken",
            lambda x, a, b, c: b == x.shape and _is_zero(a) and max(c, default=1) == 1,
        ),
    ),
    rule(
        "pad(x) -> x",
        lambda x, a, b, v: op.pad(x, low=a, high=b, value=v),
        lambda x: x,
        Guard("nothing is added", lambda a, b: _is_zero(a + b)),
    ),
    rule(
        "pad(pad(x, v), v) -> pad(x, v)",
        lambda x, a, b, c, d, v: op.pad(op.pad(x, low=a, high=b, value=v), low=c, high=d, value=v),
        lambda x, a, b, c, d, v: op.pad(x, low=_sum(a, c), high=_sum(b, d), value=v),
    ),
    rule(
        "flip(flip(x, a), a) -> x",
        lambda x, a: op.flip(op.flip(x, axes=a), axes=a),
        lambda x: x,
    ),
    rule(
        "flip(x) -> x",
        lambda x, a: op.flip(x, axes=a),
        lambda x: x,
        Guard("it turns round axes of size 1 only", lambda x, a: all(x.shape[k] == 1 for k in a)),
    ),
    rule("concat(x) -> x", lambda x, a: op.concat(x, axis=a), lambda x: x),
)


def _led(x: Node, ndim: int) -> tuple[Any, ...]:
    return (*(1,) * (ndim - x.ndim), *x.shape)


def _sum(a: tuple[Any, ...], b: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(p + q for p, q in zip(a, b, strict=True))


@procedure("concat(concat(x, y), z) -> concat(x, y, z)", "concat")
def concat_of_concat(node: Node) -> Node | None:
    """Concatenation along one axis is associative."""

    def parts(source: Node) -> tuple[Node, ...]:
        nested = source.op.name == "concat" and source.attrs == node.attrs
        return source.inputs if nested else (source,)

    flat = [part for source in node.inputs for part in parts(source)]
    return None if len(flat) == len(node.inputs) else apply("concat", *flat, **node.attrs)


@procedure("f(expand(x), y) -> f(x, y)")
def pointwise_of_expand(node: Node) -> Node | None:
    """Pointwise ops broadcast by themselves, so an input is expanded in vain if the shape stays."""
    if node.op.kind is not Kind.POINTWISE:
        return None
    bare = [source.inputs[0] if source.op.name == "expand" else source for source in node.inputs]
    if all(a is b for a, b in zip(bare, node.inputs)):
        return None
    for kept in _choices(node.inputs, bare):
        made = node.builder.node(node.op, kept, node.attrs)
        if made.type == node.type:
            return made
    return None


def _choices(inputs: tuple[Node, ...], bare: list[Node]) -> Iterator[tuple[Node, ...]]:
    """All inputs bare, then each one alone."""
    yield tuple(bare)
    for place, source in enumerate(bare):
        if source is not inputs[place]:
            yield (*inputs[:place], source, *inputs[place + 1 :])


# Reductions.


def _over_one(name: str) -> PatternRule:
    f = getattr(op, name)
    return rule(
        f"{name}(x) over axes of size 1 -> reshape(x)",
        lambda x, a, k: f(x, axes=a, keepdims=k),
        lambda x, root: op.reshape(x, shape=root.shape),
        Guard("the axes have size 1", lambda x, a: all(x.shape[axis] == 1 for axis in a)),
    )


#: A sum or a mean of one element is no such thing: it adds 0, which turns -0.0 into 0.0.
REDUCTIONS = tuple(map(_over_one, ("amax", "amin")))


@dataclass(frozen=True)
class Simplify(RulePass):
    """Remove what changes nothing, by equations that hold to the bit."""

    name = "simplify"
    rules = (
        *ARITHMETIC,
        *IDEMPOTENT,
        *ABSORBED,
        *ROUNDED,
        *LOGIC,
        *CASTS,
        *MOVEMENT,
        concat_of_concat,
        pointwise_of_expand,
        *REDUCTIONS,
    )
