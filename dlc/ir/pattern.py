"""Rewrite rules in the DSL's own syntax: a pattern and its replacement are two functions.

    rule("neg(neg(x)) -> x", lambda x: -(-x), lambda x: x)

A rule is data with its equation as its name, so that a table of rules reads as a page of algebra,
and documentation, checks by value and bisection need nothing beside the table.

In a pattern the parameters of the function are variables, and each says what it stands for by
where it stands:

- ``x + y``, ``op.relu(x)``: any node, the same node wherever the name comes again;
- ``op.transpose(x, axes=a)``: the value of an attribute, equal wherever the name comes again;
- ``op.conv2d(x, w, **c)``: all attributes that are not named, as a dictionary;
- ``op.linear(x, w, *b)``: all inputs from there on, as a tuple;
- ``y(op.relu(x))``: the node that the pattern in parentheses matches.

A number matches a constant all of whose elements are that number, to the bit: ``0`` does not match
-0.0. An attribute that is neither named nor captured is an error: forgetting one makes a wrong
rule. The replacement computes with what was found. Its result is expanded to the shape of the node
it stands for: an equation between elements holds under broadcasting too.

Floats are no field: ``x + 0`` is not ``x`` for -0.0, ``x * 0`` is not 0 for NaN, ``x - x`` is not 0
for infinity. A rule is exact to the bit unless it says how many ``rounding`` steps it adds.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from dlc.errors import Error, RuleError
from dlc.ir.node import Node, apply, attrs_key, building
from dlc.ir.op import OPS

#: Ops whose operands may change places. The sign of a zero that `maximum` or `minimum` takes from
#: -0.0 and 0.0 is unspecified (as in PyTorch), so they belong here too.
COMMUTATIVE = frozenset(
    ("add", "mul", "maximum", "minimum", "eq", "ne", "logical_and", "logical_or")
)

#: Movement ops that only repeat or reorder elements: a constant of one value stays one.
_REARRANGE = frozenset(("expand", "reshape", "transpose"))


# Rules.


class Context(Protocol):
    """What guards may ask of the graph around a match."""

    def uses(self, node: Node) -> int:
        """How many nodes and graph outputs read ``node``."""

    def parametric(self, node: Node) -> bool:
        """Whether ``node`` depends on parameters and constants only."""


@dataclass(frozen=True, eq=False)
class Guard:
    """A named condition on a match.

    Parameters
    ----------
    name : str
        The condition in words, as the documentation prints it.
    test : callable
        Gets the variables that its parameters are named after; also ``root`` (the matched node) and
        the functions ``uses`` and ``parametric`` of `Context`.
    reads : tuple of str
        The variables to give to ``test`` where they are not named as its parameters.
    """

    name: str
    test: Callable[..., object]
    reads: tuple[str, ...] = ()


def used_once(*names: str) -> Guard:
    """The guard that nobody else reads these nodes; what is folded into them would reach others."""
    text = f"{' and '.join(names)} {'has' if len(names) == 1 else 'have'} no other user"
    return Guard(
        text, lambda uses, *nodes: all(uses(node) == 1 for node in nodes), ("uses", *names)
    )


def parametric(*names: str) -> Guard:
    """The guard that these nodes depend on parameters and constants only."""
    text = f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} parametric"
    return Guard(text, lambda known, *found: all(map(known, _nodes(found))), ("parametric", *names))


def _nodes(found: Sequence[Any]) -> Iterator[Node]:
    """The nodes that variables stand for, one or several each."""
    for value in found:
        yield from value if isinstance(value, tuple) else (value,)


@dataclass(frozen=True, eq=False)
class Rewrite:
    """One application of a rule: ``after`` takes the place of ``before``.

    ``found`` are the variables by name, ``interior`` the nodes that the pattern itself matched.
    """

    rule: str
    before: Node
    after: Node
    found: Mapping[str, Any] = field(default_factory=dict)
    interior: tuple[Node, ...] = ()


class Rule(Protocol):
    """An equation that a pass applies from left to right: a `PatternRule` or a `Procedure`."""

    @property
    def name(self) -> str:
        """The equation."""

    @property
    def roots(self) -> frozenset[str]:
        """Names of the ops that the left side can start with; empty for any."""

    @property
    def guards(self) -> tuple[Guard, ...]:
        """The conditions."""

    @property
    def rounding(self) -> int:
        """0 if the result is the same to the bit.

        Else the number c of roundings that the rule adds to or takes from an element, as in the
        bound gamma_(K+c) of a sum of K products.
        """

    def attempt(self, node: Node, context: Context) -> Rewrite | None:
        """What the rule makes of ``node``; None where it does not apply."""


@dataclass(frozen=True, eq=False)
class PatternRule:
    """A rule from a pattern and a replacement; `rule` makes one."""

    name: str
    pattern: Application
    replace: Callable[..., object]
    guards: tuple[Guard, ...] = ()
    rounding: int = 0

    @property
    def roots(self) -> frozenset[str]:
        """The op that the pattern starts with."""
        return frozenset((self.pattern.op,))

    def attempt(self, node: Node, context: Context) -> Rewrite | None:
        """The replacement of the first match whose guards all hold."""
        for match in self.pattern.match(node, Match(self.name)):
            known = {**match.found, **_surroundings(node, context)}
            if all(
                guard.test(*_arguments(guard.test, known, guard.reads)) for guard in self.guards
            ):
                after = self._replacement(node, known)
                if after is not node:
                    return Rewrite(self.name, node, after, match.found, match.interior)
        return None

    def _replacement(self, node: Node, known: Mapping[str, Any]) -> Node:
        try:
            with building(node.builder):
                result = self.replace(*_arguments(self.replace, known))
                return _fitted(node.builder.operand(result, node), node)
        except Error as error:
            message = f"the rule {self.name!r} cannot replace {node.describe()}: {error}"
            raise RuleError(message) from error


def rule(
    name: str,
    pattern: Callable[..., Any],
    replace: Callable[..., Any],
    *where: Guard,
    rounding: int = 0,
) -> PatternRule:
    """A rule from two functions.

    Parameters
    ----------
    name : str
        The equation, such as ``"neg(neg(x)) -> x"``.
    pattern : callable
        The left side over its parameters, which become the variables.
    replace : callable
        The right side; its parameters are some of the variables, ``root`` for the matched node.
    *where : Guard
        Conditions; the first match for which all of them hold is replaced.
    rounding : int
        See `Rule`.

    Raises
    ------
    RuleError
        A guard or the replacement names a variable that the pattern has not.
    """
    names = _parameters(pattern)
    made = pattern(*map(Variable, names))
    if not isinstance(made, Application):
        raise RuleError(f"the pattern of the rule {name!r} is not an op applied to something")
    known = {*names, *_SURROUNDINGS}
    for function, reads in ((replace, ()), *((guard.test, guard.reads) for guard in where)):
        if unknown := [read for read in reads or _parameters(function) if read not in known]:
            raise RuleError(
                f"the rule {name!r} reads {unknown[0]!r}, which its pattern has not; "
                f"it has {', '.join(sorted(known))}"
            )
    return PatternRule(name, made, replace, where, rounding)


@dataclass(frozen=True, eq=False)
class Procedure:
    """A rule whose left side is a function, for what no fixed pattern says (any number of inputs).

    ``function(node)`` gives the replacement, or None. It may look at the inputs of ``node``, not
    deeper, so that their origins are not lost.
    """

    name: str
    function: Callable[[Node], Node | None]
    roots: frozenset[str] = frozenset()
    rounding: int = 0
    guards: tuple[Guard, ...] = ()

    def attempt(self, node: Node, context: Context) -> Rewrite | None:
        """The function's replacement."""
        with building(node.builder):
            after = self.function(node)
        if after is None or after is node:
            return None
        if after.type != node.type:
            raise RuleError(f"the rule {self.name!r} replaces {node.type} by {after.type}")
        return Rewrite(self.name, node, after, {}, (node, *_dropped(node, after)))


def _dropped(node: Node, after: Node) -> Iterator[Node]:
    """The inputs of ``node`` that ``after`` does not read, other than leaves."""
    ends = {*node.inputs, *(n for source in node.inputs for n in source.inputs)}
    seen: set[Node] = set()
    stack = [after]
    while stack:
        reached = stack.pop()
        if reached not in seen:
            seen.add(reached)
            stack += () if reached in ends else reached.inputs
    yield from (source for source in node.inputs if source.inputs and source not in seen)


def procedure(
    name: str, *roots: str, rounding: int = 0
) -> Callable[[Callable[[Node], Node | None]], Procedure]:
    """Decorate a function of a node as the rule ``name``, tried on the ops ``roots`` or on all."""

    def decorate(function: Callable[[Node], Node | None]) -> Procedure:
        return Procedure(name, function, frozenset(roots), rounding)

    return decorate


_SURROUNDINGS = ("root", "uses", "parametric")


def _surroundings(node: Node, context: Context) -> dict[str, Any]:
    return {"root": node, "uses": context.uses, "parametric": context.parametric}


@functools.lru_cache(maxsize=4096)
def _parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)


def _arguments(
    function: Callable[..., Any], known: Mapping[str, Any], reads: Sequence[str] = ()
) -> list[Any]:
    return [known[name] for name in reads or _parameters(function)]


def _fitted(result: Node, node: Node) -> Node:
    """``result`` in the shape of ``node``, which it may broadcast to."""
    if result.type == node.type:
        return result
    if result.dtype != node.dtype:
        raise RuleError(f"its result has the type {result.type}, not {node.type}")
    return node.builder.node("expand", (result,), {"shape": node.shape})


# Patterns.


@dataclass(frozen=True, eq=False)
class Match:
    """What the left side of the rule ``rule`` has found so far."""

    rule: str
    found: Mapping[str, Any] = field(default_factory=dict)
    interior: tuple[Node, ...] = ()

    def bind(self, name: str, value: Any) -> Match | None:
        """The match with a variable added; None if it stands for something else already."""
        if name not in self.found:
            return Match(self.rule, {**self.found, name: value}, self.interior)
        return self if _same(self.found[name], value) else None

    def through(self, node: Node) -> Match:
        """The match with a node added to its interior."""
        return Match(self.rule, self.found, (*self.interior, node))


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Node) or isinstance(b, Node):
        return a is b
    if _are_nodes(a) or _are_nodes(b):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return attrs_key(a) == attrs_key(b)
    return attrs_key({"": a}) == attrs_key({"": b})


def _are_nodes(value: Any) -> bool:
    return isinstance(value, tuple) and any(isinstance(item, Node) for item in value)


def _binary(name: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """An operator and its reflection."""

    def forward(self: Pattern, other: object) -> Application:
        return Application(name, (self, _pattern(other)))

    def reflected(self: Pattern, other: object) -> Application:
        return Application(name, (_pattern(other), self))

    return forward, reflected


def _unary(name: str) -> Callable[..., Any]:
    return lambda self: Application(name, (self,))


class Pattern:
    """The left side of a rule, with the operators of a tensor."""

    __add__, __radd__ = _binary("add")
    __sub__, __rsub__ = _binary("sub")
    __mul__, __rmul__ = _binary("mul")
    __truediv__, __rtruediv__ = _binary("div")
    __pow__, __rpow__ = _binary("pow")
    __matmul__, __rmatmul__ = _binary("matmul")
    __and__, __rand__ = _binary("logical_and")
    __or__, __ror__ = _binary("logical_or")
    __lt__, __gt__ = _binary("lt")[0], _binary("gt")[0]
    __le__, __ge__ = _binary("le")[0], _binary("ge")[0]
    __eq__, __ne__ = _binary("eq")[0], _binary("ne")[0]
    __neg__, __abs__, __invert__ = _unary("neg"), _unary("abs"), _unary("logical_not")
    __hash__ = object.__hash__

    def __bool__(self) -> bool:
        raise RuleError("a pattern has no truth value; put conditions into guards")

    def match(self, node: Node, match: Match) -> Iterator[Match]:
        """Every way in which the pattern fits ``node`` and what was found before."""
        raise RuleError(f"{type(self).__name__} does not say what it matches")


class Variable(Pattern):
    """Any node, or the value of an attribute; the same one wherever the name comes again."""

    def __init__(self, name: str):
        self.name = name

    def __call__(self, pattern: Pattern) -> Application:
        """``y(pattern)``: ``y`` stands for the node that ``pattern`` matches."""
        if not isinstance(pattern, Application):
            raise RuleError(f"{self.name}(...) names an op applied to something, not {pattern!r}")
        return Application(pattern.op, pattern.inputs, pattern.attrs, self.name)

    def __iter__(self) -> Iterator[Pattern]:
        """Makes ``*b`` in a pattern stand for the inputs from there on."""
        return iter((Rest(self.name),))

    def keys(self) -> tuple[str]:
        """Makes ``**c`` in a pattern stand for the attributes that are not named."""
        return (_REST,)

    def __getitem__(self, key: object) -> Variable:
        if key != _REST:
            raise RuleError(f"{self.name}[{key!r}] is no pattern; write op.slice or op.take")
        return self

    def match(self, node: Node, match: Match) -> Iterator[Match]:
        """Binds the variable."""
        if found := match.bind(self.name, node):
            yield found


class Rest(Variable):
    """The inputs from some place on; made by ``*b``."""


class Number(Pattern):
    """A constant all of whose elements are one number, to the bit."""

    def __init__(self, value: bool | int | float):
        self.value = value

    def match(self, node: Node, match: Match) -> Iterator[Match]:
        """Matches the constant, and what expands or reorders it."""
        value = uniform(node)
        if value is not None and _is_number(value, self.value):
            yield match


class Application(Pattern):
    """An op applied to patterns."""

    def __init__(
        self,
        op: str,
        inputs: tuple[Pattern, ...],
        attrs: Mapping[str, Any] | None = None,
        name: str = "",
    ):
        self.op = OPS[op].name
        self.inputs = inputs
        self.attrs = dict(attrs or {})
        self.name = name
        if any(isinstance(pattern, Rest) for pattern in inputs[:-1]):
            raise RuleError(f"in a pattern of {op}, *... stands behind the other inputs")
        for key, value in self.attrs.items():
            if isinstance(value, Pattern) and not isinstance(value, Variable):
                raise RuleError(f"the attribute {key} of {op} is matched by a variable or a value")

    def match(self, node: Node, match: Match) -> Iterator[Match]:
        """Matches op, attributes, then inputs, in both orders where the op is commutative."""
        if node.op.name != self.op:
            return
        found: Match | None = match.through(node)
        if found and self.name:
            found = found.bind(self.name, node)
        found = found and self._match_attrs(node, found)
        if found is None:
            return
        yield from _match_inputs(self.inputs, node.inputs, found)
        if self.op in COMMUTATIVE and len(set(node.inputs)) == 2:
            yield from _match_inputs(self.inputs, node.inputs[::-1], found)

    def _match_attrs(self, node: Node, match: Match) -> Match | None:
        wanted = {name: value for name, value in self.attrs.items() if name != _REST}
        rest = {name: value for name, value in node.attrs.items() if name not in wanted}
        if missing := wanted.keys() - node.attrs.keys():
            raise RuleError(
                f"the rule {match.rule!r} names the attribute {min(missing)!r} of {self.op}, "
                f"which has {', '.join(node.attrs) or 'none'}"
            )
        if _REST in self.attrs:
            wanted[_REST] = self.attrs[_REST]
        elif rest:
            raise RuleError(
                f"the rule {match.rule!r} forgets the attributes {', '.join(rest)} of {self.op}; "
                "name them, or capture the rest as **c"
            )
        found: Match | None = match
        for name, value in wanted.items():
            came = rest if name == _REST else node.attrs[name]
            if isinstance(value, Variable):
                found = found and found.bind(value.name, came)
            elif not _same(value, came):
                return None
        return found


_REST = "**"


def _match_inputs(
    patterns: Sequence[Pattern], nodes: Sequence[Node], match: Match
) -> Iterator[Match]:
    if patterns and isinstance(patterns[0], Rest):
        if bound := match.bind(patterns[0].name, tuple(nodes)):
            yield bound
        return
    if not patterns or not nodes:
        if len(patterns) == len(nodes):
            yield match
        return
    for found in patterns[0].match(nodes[0], match):
        yield from _match_inputs(patterns[1:], nodes[1:], found)


def _pattern(value: object) -> Pattern:
    if isinstance(value, Pattern):
        return value
    if isinstance(value, (bool, int, float)):
        return Number(value)
    raise RuleError(f"a pattern is made of variables, ops and numbers; got {value!r}")


class _Ops:
    """``op.relu(x)``: an op by name, applied to patterns in a pattern, to tensors elsewhere."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*inputs: Any, **attrs: Any) -> Any:
            if any(isinstance(value, Pattern) for value in (*inputs, *attrs.values())):
                return Application(name, tuple(map(_pattern, inputs)), attrs)
            return apply(name, *inputs, **attrs)

        return call


op = _Ops()


# Constants.


def uniform(node: Node) -> np.generic | None:
    """The one value of all elements of a constant, also of an expanded one; None for others."""
    while node.op.name in _REARRANGE:
        node = node.inputs[0]
    if node.op.name != "constant":
        return None
    flat = np.ravel(node.attrs["value"])
    if not flat.size or flat[0].tobytes() != flat[-1].tobytes():
        return None
    bits = flat.view(f"u{flat.itemsize}")
    value: np.generic = flat[0]
    return value if bool((bits == bits[0]).all()) else None


def _is_number(value: np.generic, number: bool | int | float) -> bool:
    """Whether ``value`` is ``number`` in its own type, to the bit."""
    if isinstance(number, bool) != (value.dtype == bool):
        return False
    with np.errstate(invalid="ignore", over="ignore"):
        cast = np.asarray(number).astype(value.dtype)[()]
        exact = bool(cast == number) or (number != number and bool(cast != cast))
    return exact and cast.tobytes() == value.tobytes()
