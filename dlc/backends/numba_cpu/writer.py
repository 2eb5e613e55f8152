"""Writes kernel source: parameters, addresses and scalar expressions.

The source is plain Python over typed pointers, so that a person can read it and tests can run it.
Sizes and strides are parameters, so that one kernel serves every layer that computes the same thing
on other sizes.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from dlc.backends.native.frontend import Extern, Param
from dlc.backends.numba_cpu.kernel import NativeFunction
from dlc.errors import CompileError
from dlc.ir.node import Node
from dlc.ir.op import Kind
from dlc.ir.plan import SITES, Layout
from dlc.ir.schedule import Group
from dlc.ir.sizes import Atom, Dim, Monomial, Poly, Size, as_size, bounds, dims
from dlc.ir.types import TensorType

#: Element type in memory of each element type: bool is a byte.
STORED = {"bool": "uint8"}
#: What converts to each element type.
TYPES = {"float32": "f32", "float64": "f64", "int64": "i64", "int32": "i32", "uint8": "u8"}


@dataclass(frozen=True)
class Value:
    """A kernel argument: the address of a value in memory, ``elements`` away from its first one
    inside the halo.
    """

    node: Node
    elements: Size = 0


@dataclass(frozen=True)
class Start:
    """A kernel argument: the address where a value's buffer begins, halo included."""

    node: Node


@dataclass(frozen=True)
class Where:
    """A kernel argument: the number by which the kernel reports an error of an op."""

    node: Node


@dataclass(frozen=True, eq=False)
class KernelSource:
    """A kernel before it is compiled, with what its parameters are in this place.

    ``args`` are a `Value`, `Start` or `Where`, a size, `HEADER` or `SCRATCH`; ``objects`` are
    native objects that the kernel calls into. Its final name begins with ``stem``, or with what its
    group computes. ``flops`` are those of the group, unless said otherwise: one of its several
    kernels. With ``barrier`` the next kernel of the group waits for all threads.
    """

    name: str
    source: str
    params: tuple[Param, ...]
    args: tuple[Any, ...]
    externs: tuple[Extern, ...] = ()
    objects: tuple[NativeFunction, ...] = ()
    scratch: Size = 0
    stem: str = ""
    flops: Size | None = None
    barrier: bool = False


class Var(Dim):
    """An integer variable of a kernel, as an atom of addresses.

    It equals no `Dim` of a model, whatever that one's name and range: a size that happens to be
    called like a loop stays a parameter of the kernel.
    """

    __slots__ = ()


@dataclass(frozen=True)
class Loop:
    """A loop variable and its number of rounds."""

    var: Var
    extent: Size


def is_number(node: Node) -> bool:
    """Whether a node is one number, which stands in the source."""
    return node.op.name == "constant" and node.tensor_type.count == 1


def loop_over(name: str, extent: Size) -> Loop:
    """A loop of `extent` rounds, whose variable counts from 0."""
    return Loop(Var(name, 0, max(bounds(extent)[1] - 1, 0)), extent)


@dataclass
class Writer:
    """Collects the parameters and lines of one kernel."""

    group: Group
    layouts: Mapping[Node, Layout]
    lines: list[str] = field(default_factory=list)
    depth: int = 1
    pointers: dict[Node, str] = field(default_factory=dict)
    sizes: dict[Size, str] = field(default_factory=dict)
    own: dict[Node, str] = field(
        default_factory=dict
    )  # values that lie in local variables or arrays
    loops: set[Var] = field(default_factory=set)
    affine: bool = True  # no division, guard or indirect access met so far
    addresses: list[Size] = field(default_factory=list)
    memo: dict[Any, str] = field(default_factory=dict)
    temporaries: int = 0
    sites: dict[Node, str] = field(default_factory=dict)  # ops that may report an error
    scratch: dict[str, str] = field(default_factory=dict)  # pointers to scratch memory, their type

    def __post_init__(self) -> None:
        # Sets, because `in` on a tuple compares by ==, which for tensors builds nodes.
        self.inside, self.outputs = set(self.group.inside), set(self.group.outputs)
        self.in_place = dict(self.group.in_place)
        given = _element_types({*self.group.inputs, *self.group.outputs})
        kinds = given | _element_types(self.inside)
        # Whether literals say their type: a plain one is float64 beside float64 in memory, or else
        # float32.
        self.mixed = "float64" in kinds and ("float32" in kinds or "float64" not in given)

    # Lines and loops.
    def line(self, text: str) -> None:
        """Append a line at the present depth."""
        self.lines.append("    " * self.depth + text)

    @contextmanager
    def block(self, head: str) -> Iterator[None]:
        """An indented block; values computed inside are forgotten behind it."""
        self.line(head)
        self.depth += 1
        kept = dict(self.memo)
        yield
        self.memo = kept
        self.depth -= 1

    def fresh(self, prefix: str = "v") -> str:
        """A new name."""
        self.temporaries += 1
        return f"{prefix}{self.temporaries}"

    # Parameters.
    def pointer(self, node: Node) -> str:
        """Name of the pointer to a value in memory: one for all that lie in the same place, since
        others are taken to be apart.
        """
        node = self.in_place.get(node, node)
        if node not in self.pointers:
            written = node in self.outputs or node in set(self.in_place.values())
            prefix = "y" if written else "x"
            self.pointers[node] = f"{prefix}{len(self.pointers)}"
        return self.pointers[node]

    def size(self, size: Size) -> str:
        """A size as text: 0 and 1 as they are, others as a parameter."""
        if isinstance(size, int) and size in (0, 1):
            return str(size)
        if size not in self.sizes:
            self.sizes[size] = f"n{len(self.sizes)}"
        return self.sizes[size]

    # Addresses.
    def index_text(self, poly: Size) -> str:
        """A polynomial over loop variables as source; its coefficients become parameters."""
        by_loops: dict[Monomial, Size] = {}
        for monomial, coefficient in (poly.terms if isinstance(poly, Poly) else {(): poly}).items():
            own = tuple(a for a in monomial if self._is_loop(a))
            rest = tuple(a for a in monomial if not self._is_loop(a))
            term = Poly({rest: coefficient}) if rest else coefficient
            by_loops[own] = by_loops.get(own, 0) + term
        parts = [self._term(own, factor) for own, factor in by_loops.items() if factor != 0]
        return " + ".join(parts) or "0"

    def _term(self, own: Monomial, factor: Size) -> str:
        names = [self._atom(a) for a in own]
        if factor == 1 and names:
            return " * ".join(names)
        return " * ".join([*names, self.size(factor)])

    def _is_loop(self, atom: Atom) -> bool:
        if isinstance(atom, Dim):
            return atom in self.loops
        return bool(dims(atom.numerator) & self.loops)

    def _atom(self, atom: Atom) -> str:
        if isinstance(atom, Dim):
            return atom.name
        self.affine = False
        key = ("floor", atom)
        if key not in self.memo:
            name = self.fresh("q")
            self.line(f"{name} = div({self.index_text(atom.numerator)}, {atom.divisor})")
            self.memo[key] = name
        return self.memo[key]

    def element(self, node: Node, index: Sequence[Size]) -> Size:
        """Offset in elements of an element from the first one inside the halo."""
        strides = self.layouts[node].strides(node.shape)
        total: Size = 0
        for position, stride in zip(index, strides, strict=True):
            total = total + as_size(position) * stride
        return total

    # Values.
    def value(self, node: Node, index: Sequence[Size], guard: str = "") -> str:
        """Source for one element of a node, computed in this kernel or loaded."""
        if node in self.own:
            return self.own[node]
        key = (node, tuple(index), guard)
        if key in self.memo:
            return self.memo[key]
        text = self._compute(node, tuple(index), guard)
        if not text.isidentifier() and not _is_number(text):
            name = self.fresh()
            self.line(f"{name} = {text}")
            text = name
        self.memo[key] = text
        return text

    def _compute(self, node: Node, index: tuple[Size, ...], guard: str) -> str:
        name, inside = node.op.name, node in self.inside
        if is_number(node):
            text = literal(node.attrs["value"].reshape(())[()].item(), node.dtype)
            return typed(text, node.dtype, self.mixed)
        if name == "size":
            return f"i64({self.size(node.attrs['size'])})"
        if name == "iota":
            self.addresses.append(as_size(index[0]))  # loops merge only if it walks along
            return cast(self.index_text(index[0]), "int64", node.dtype)
        if not inside or node.op.kind is Kind.LEAF:
            return self._load(node, index, guard)
        if node.op.kind is Kind.POINTWISE:
            return self._pointwise(node, index, guard)
        if name in ("take", "gather"):
            return self._indirect(node, index, guard)
        if name == "check_finite":
            return self._finite(node, index, guard)
        if node.op.kind is Kind.MOVE:
            return self._move(node, index, guard)
        raise CompileError(
            f"{node.describe()} cannot be computed inside the kernel of {self.group.label}"
        )

    def _load(self, node: Node, index: tuple[Size, ...], guard: str) -> str:
        element = self.element(node, index)
        self.addresses.append(element)
        address = self.index_text(element)
        if guard:
            address = f"({address}) if {guard} else 0"
        text = f"{self.pointer(node)}[{address}]"
        return f"({text} != 0)" if node.dtype == "bool" else text

    def _pointwise(self, node: Node, index: tuple[Size, ...], guard: str) -> str:
        operands = []
        for source in node.inputs:
            own = index[len(index) - source.ndim :]
            own = tuple(0 if size == 1 else i for i, size in zip(own, source.shape, strict=True))
            operands.append(self.value(source, own, guard))
        return scalar_text(node, operands, self.mixed)

    def _move(self, node: Node, index: tuple[Size, ...], guard: str) -> str:
        types = [source.tensor_type for source in node.inputs]
        move = node.op.move
        assert move is not None, node
        accesses = move.index(index, types, **node.attrs)
        fill = literal(node.attrs[move.fill] if move.fill else 0, node.dtype)
        conditions, values = [], []
        for access in accesses:
            holds = self._conditions(access.guards)
            both = " and ".join(t for t in (guard, holds) if t)
            if holds and both != holds:
                name = self.fresh("g")
                self.line(f"{name} = {both}")
                both = name
            conditions.append(holds)
            values.append(self.value(node.inputs[access.operand], access.index, both or guard))
            if not holds:
                break
        text = fill if conditions[-1] else values.pop()
        conditions = [c for c in conditions if c]
        for condition, value in zip(reversed(conditions), reversed(values), strict=True):
            text = f"{value} if {condition} else {text}"
        return text

    def _conditions(self, guards: Sequence[tuple[Size, Size, Size]]) -> str:
        """The name of a flag that says whether all guards hold; empty where they always do."""
        parts = []
        for low, value, high in guards:
            least, most = bounds(as_size(value))
            text = None
            if least < bounds(low)[1]:
                text = text or self.index_text(as_size(value))
                parts.append(f"{self.size(low)} <= {text}")
            if most >= bounds(high)[0]:
                text = text or self.index_text(as_size(value))
                parts.append(f"{text} < {self.size(high)}")
        if not parts:
            return ""
        self.affine = False
        name = self.fresh("g")
        self.line(f"{name} = {' and '.join(parts)}")
        return name

    def _indirect(self, node: Node, index: tuple[Size, ...], guard: str) -> str:
        """An element whose position along one axis is data: checked, clamped, and reported to the
        caller if outside.
        """
        self.affine = False
        x, which = node.inputs
        axis = node.attrs["axis"]
        width = which.ndim if node.op.name == "take" else 1
        place = index[axis : axis + width] if node.op.name == "take" else index
        before, behind = index[:axis], index[axis + width :]
        here, extent = self.fresh("j"), self.size(x.shape[axis])
        self.line(f"{here} = i64({self.value(which, place, guard)})")
        outside = f"{here} < 0 or {here} >= {extent}"
        # Where the guard fails, the index that was read is not the one of this place.
        with self.block(f"if {guard} and ({outside}):" if guard else f"if {outside}:"):
            self.report(node, which, place, here)
            self.line(f"{here} = i64(0)")
        var = loop_over(here, x.shape[axis]).var
        self.loops.add(var)
        return self._load(x, (*before, as_size(var), *behind), guard)

    def _finite(self, node: Node, index: tuple[Size, ...], guard: str) -> str:
        """An element that is reported to the caller if it is NaN or infinite."""
        (x,) = node.inputs
        value = self.value(x, index, guard)
        with self.block(f"if {value} - {value} != {value} - {value}:"):
            self.report(node, x, index, "i64(0)")
        return value

    def report(self, node: Node, which: Node, place: Sequence[Size], value: str) -> None:
        """Tell the caller of an index out of range: which op, where among the indices, what."""
        site = self.sites.setdefault(node, f"site{len(self.sites)}")
        position: Size = 0
        for i, size in zip(place, which.shape, strict=True):
            position = as_size(position) * size + i
        at = self.index_text(position)
        self.line(f"raise_error(header, {site} + {SITES} * ({at}), {value})")

    def store(self, node: Node, index: Sequence[Size], text: str) -> None:
        """Write one element of an output."""
        element = self.element(node, index)
        self.addresses.append(element)
        stored = f"u8(1) if {text} else u8(0)" if node.dtype == "bool" else text
        self.line(f"{self.pointer(node)}[{self.index_text(element)}] = {stored}")

    # The finished kernel.
    def finish(self, name: str) -> KernelSource:
        """The kernel that the lines make."""
        nodes = sorted(self.pointers, key=lambda n: self.pointers[n][0] != "y")
        params = [Param(self.pointers[n], STORED.get(n.dtype, n.dtype) + "*") for n in nodes]
        args: list[Any] = [Value(n) for n in nodes]
        params += [Param(name, f"{dtype}*") for name, dtype in self.scratch.items()]
        args += [SCRATCH] * len(self.scratch)
        if self.sites:
            params += [Param("header", "int64*")]
            params += [Param(name, "int64") for name in self.sites.values()]
            args += [HEADER, *map(Where, self.sites)]
        params += [Param(text, "int64") for text in self.sizes.values()]
        args += list(self.sizes)
        head = f"def {name}({', '.join([*(p.name for p in params), 'thread', 'threads'])}):"
        return KernelSource(name, "\n".join([head, *self.lines]) + "\n", tuple(params), tuple(args))


class _Header:
    """The kernel argument that is the address of the call's header."""


HEADER = _Header()


class _Scratch:
    """The kernel argument that is the address of the scratch memory of all threads."""


SCRATCH = _Scratch()


def scalar_text(node: Node, operands: Sequence[str], mixed: bool = False) -> str:
    """The scalar expression of a pointwise node over the source of its operands; in a kernel of
    ``mixed`` float types its literals say theirs.
    """
    if node.op.name == "cast":
        return cast(operands[0], node.inputs[0].dtype, node.dtype, mixed)
    record = node.op.scalar
    floats = [n.dtype for n in node.inputs if n.dtype.startswith("float")]
    working = floats[0] if floats else node.inputs[-1].dtype
    template = record(working, **node.attrs) if callable(record) else record
    assert template is not None, node
    attrs = {k: literal(v, working) for k, v in node.attrs.items() if isinstance(v, (int, float))}
    text = template.format(*(f"_{i}_" for i in range(len(operands))), **attrs)
    kind = working if mixed else ""
    text = float_literals(text, kind) if working.startswith("float") else integer_form(text)
    whole = node.dtype in ("int64", "int32", "uint8") and any(sign in text for sign in "+-*")
    text = wrapping(text) if whole else text
    for i, operand in enumerate(operands):
        text = text.replace(f"_{i}_", operand if operand.isidentifier() else f"({operand})")
    return cast(text, "int64", node.dtype) if whole else text


@lru_cache(maxsize=4096)
def float_literals(text: str, dtype: str = "") -> str:
    """An expression with integer literals made floats, so that they take the element type beside
    them, or say that they are of ``dtype``.
    """

    class Floats(ast.NodeTransformer):
        def visit_Constant(self, node: ast.Constant) -> ast.AST:
            if isinstance(node.value, bool) or not isinstance(node.value, (int, float)):
                return node
            value = ast.copy_location(ast.Constant(float(node.value)), node)
            return ast.Call(ast.Name(TYPES[dtype]), [value], []) if dtype else value

    return ast.unparse(ast.fix_missing_locations(Floats().visit(ast.parse(text, mode="eval"))))


@lru_cache(maxsize=4096)
def integer_form(text: str) -> str:
    """An expression over integers: they are never NaN, and their maxima are comparisons."""

    class Integers(ast.NodeTransformer):
        def visit_Call(self, node: ast.Call) -> ast.AST:
            self.generic_visit(node)
            name = node.func.id if isinstance(node.func, ast.Name) else ""
            if name == "isnan":
                return ast.Constant(False)
            if name in ("fmax", "fmin"):
                a, b = node.args
                compare = ast.Compare(a, [ast.Gt() if name == "fmax" else ast.Lt()], [b])
                return ast.IfExp(compare, a, b)
            return node

    return ast.unparse(ast.fix_missing_locations(Integers().visit(ast.parse(text, mode="eval"))))


@lru_cache(maxsize=4096)
def wrapping(text: str) -> str:
    """An expression over integers whose results wrap around; + - * are for sizes and places, which
    LLVM may expect not to.
    """
    names = {ast.Add: "plus", ast.Sub: "minus", ast.Mult: "times"}

    class Wrapping(ast.NodeTransformer):
        def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
            self.generic_visit(node)
            if type(node.op) not in names:
                return node
            return ast.Call(ast.Name(names[type(node.op)]), [node.left, node.right], [])

        def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
            self.generic_visit(node)
            if not isinstance(node.op, ast.USub) or isinstance(node.operand, ast.Constant):
                return node
            return ast.Call(ast.Name("minus"), [ast.Constant(0), node.operand], [])

    return ast.unparse(ast.fix_missing_locations(Wrapping().visit(ast.parse(text, mode="eval"))))


def literal(value: Any, dtype: str) -> str:
    """A constant as source."""
    if dtype == "bool":
        return str(bool(value))
    if dtype.startswith("float"):
        value = float(value)
        if value != value:
            return "(1e999 - 1e999)"
        if value in (float("inf"), float("-inf")):
            return "1e999" if value > 0 else "(-1e999)"
        return repr(value) if value >= 0 and str(value)[0] != "-" else f"({value!r})"
    return str(int(value)) if value >= 0 else f"({int(value)})"


def cast(text: str, source: str, target: str, mixed: bool = False) -> str:
    """A conversion of one element as source; where float types are ``mixed``, literals say which
    they are.
    """
    if source == target:
        return text
    if target == "bool":
        return f"({text} != {literal(0, source)})"
    if source == "bool":
        one, zero = (typed(literal(value, target), target, mixed) for value in (1, 0))
        return f"({one} if {text} else {zero})"
    return f"{TYPES[target]}({text})"


def typed(text: str, dtype: str, mixed: bool) -> str:
    """A literal, which says its type if it is a float and float types are ``mixed``."""
    return f"{TYPES[dtype]}({text})" if mixed and dtype.startswith("float") else text


def _element_types(nodes: Iterable[Node]) -> set[str]:
    arrays = (node for node in nodes if isinstance(node.type, TensorType))
    return {node.dtype for node in arrays if not is_number(node)}


def _is_number(text: str) -> bool:
    try:
        float(text.strip("()"))
    except ValueError:
        return False
    return True
