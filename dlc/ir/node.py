"""Nodes of the graph, interned: equal computations are one object.

A node is an op applied to nodes. It is immutable, has one output, and is also the symbolic tensor
that users compute with (`dlc.Tensor`), so that models, rewrite rules and gradient rules are written
in the same arithmetic. Interning makes common subexpressions free and comparison a pointer
comparison.
"""

from __future__ import annotations

import contextlib
import contextvars
import difflib
import hashlib
import itertools
import struct
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn

import numpy as np

from dlc.errors import ArgumentError, DTypeError, Error, ShapeError, TraceError
from dlc.ir.arithmetic import Arithmetic
from dlc.ir.op import OPS, Kind, OpDef
from dlc.ir.operators import subtract
from dlc.ir.sizes import Dim, Floor, Poly, Size, as_size, shape_text
from dlc.ir.types import DTYPES, TensorType, TupleType, Type, as_dtype, is_float, promote


class Origin(NamedTuple):
    """Where in the user's program a node comes from."""

    module: str = ""
    file: str = ""
    line: int = 0

    def __str__(self) -> str:
        place = f"{self.file.rsplit('/', 1)[-1]}:{self.line}" if self.file else ""
        return ", ".join(part for part in (self.module, place) if part)


class Node(Arithmetic):
    """An op applied to inputs; also the symbolic tensor of the DSL.

    Attributes
    ----------
    op : OpDef
    inputs : tuple of Node
    attrs : mapping
        Attributes in canonical form.
    type : TensorType or TupleType
    origins : frozenset of Origin
        Every place in the user's program that this node stands for.
    builder : Builder
        The builder that interned it.
    """

    __slots__ = ("__weakref__", "attrs", "builder", "inputs", "op", "origins", "type")

    def __init__(
        self,
        op: OpDef,
        inputs: tuple[Node, ...],
        attrs: Mapping[str, Any],
        type: Type,
        builder: Builder,
    ):
        self.op = op
        self.inputs = inputs
        self.attrs = MappingProxyType(dict(attrs))
        self.type = type
        self.builder = builder
        self.origins: frozenset[Origin] = frozenset()

    @property
    def tensor_type(self) -> TensorType:
        """The type of a node with one output."""
        if isinstance(self.type, TupleType):
            raise TraceError(
                f"{self.describe()} has {len(self.type.elements)} outputs; take one with "
                f"node.project(i)"
            )
        return self.type

    @property
    def shape(self) -> tuple[Size, ...]:
        """Sizes of the dimensions, each an int or a symbolic size."""
        return self.tensor_type.shape

    @property
    def dtype(self) -> str:
        """Name of the element type, such as ``"float32"``."""
        return self.tensor_type.dtype

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def name(self) -> str | None:
        """The name of an input or a parameter, None for other nodes."""
        return self.attrs.get("name") if self.op.kind is Kind.LEAF else None

    def project(self, index: int) -> Node:
        """Output ``index`` of an op with several outputs."""
        return self.builder.node("project", (self,), {"index": index})

    def __bool__(self) -> bool:
        raise TraceError(
            f"a Python condition{self._here()} on a symbolic tensor ({self.describe()}) has no "
            f"value while the model is "
            "traced; use dlc.where(condition, a, b) to choose by element, or decide on shapes and "
            "Python values"
        )

    def __index__(self) -> int:
        raise self._no_number()

    def __float__(self) -> float:
        raise self._no_number()

    __int__ = __index__

    def _no_number(self) -> TraceError:
        return TraceError(
            f"a Python number is asked for{self._here()} of a symbolic tensor ({self.describe()}), "
            f"which has no value "
            "while the model is traced; compute with tensors, or use shapes and Python values"
        )

    def __getattr__(self, name: str) -> Any:
        instead = _instead(name)
        raise AttributeError(f"a dlc.Tensor has no attribute {name!r}{self._here()}; {instead}")

    def __format__(self, spec: str) -> str:
        if spec:
            raise self._no_number()
        return repr(self)

    def __reduce__(self) -> NoReturn:
        raise TraceError(
            f"a node of a graph ({self.describe()}) is part of that graph alone, and is neither "
            "copied nor pickled; a graph never changes, and str(graph) and dlc.parse carry it to "
            "another process"
        )

    def __array__(self, *_: object, **__: object) -> Any:
        raise TraceError(
            f"NumPy cannot read a symbolic tensor{self._here()} ({self.describe()}); inside a "
            f"traced function use dlc's functions "
            "(dlc.exp, dlc.functional), outside call the compiled function"
        )

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Node:
        """NumPy's functions and operators on tensors are the ops of the same meaning."""
        if method != "__call__" or options or ufunc.__name__ not in _UFUNCS:
            raise TraceError(
                f"numpy.{ufunc.__name__} has no form for symbolic tensors{self._here()}; "
                "inside a traced function use dlc's functions (dlc.exp, dlc.functional)"
            )
        if ufunc is np.subtract:
            return subtract(*inputs)
        return apply(_UFUNCS[ufunc.__name__], *inputs)

    def _here(self) -> str:
        """Where the user's program is while it is traced, for messages: `` at model.py:12``."""
        return self.builder._place()

    def describe(self) -> str:
        """Op, place and type in one phrase for messages: ``conv2d (stem.conv, model.py:12):
        float32[1, 64, 56, 56]``.
        """
        name = f"{self.op.name} {self.name!r}" if self.name else self.op.name
        place = ", ".join(sorted(str(origin) for origin in self.origins if str(origin)))
        return f"{name}{f' ({place})' if place else ''}: {self.type}"

    def __repr__(self) -> str:
        return f"<{self.describe()}>"


Node.__name__ = Node.__qualname__ = "Tensor"  # as users know it


def _instead(name: str) -> str:
    """What to use in place of an attribute that tensors do not have."""
    known = [each for each in dir(Node) if not each.startswith("_")]
    if name.endswith("_") and not name.startswith("_"):
        usual = name.rstrip("_")
        other = f"x = x.{usual}(...)" if usual in known else "another one, by dlc.where or dlc.cat"
        return f"tensors are values, which nothing changes in place: use {other}"
    near = difflib.get_close_matches(name, known, 3, 0.65)
    also = f"did you mean {' or '.join(near)}? " if near else ""
    return f"{also}dir(dlc.Tensor) lists what it has"


#: Ops that NumPy's functions of these names stand for.
_UFUNCS = {
    **{name: name for name in ("abs", "sign", "floor", "ceil", "trunc", "maximum", "minimum")},
    **{name: name for name in ("exp", "expm1", "log", "log1p", "sqrt", "sin", "cos", "tanh")},
    **{name: name for name in ("logical_and", "logical_or", "logical_not", "isnan", "square")},
    **{name: name for name in ("matmul", "reciprocal", "remainder", "floor_divide")},
    "absolute": "abs",
    "add": "add",
    "subtract": "sub",
    "multiply": "mul",
    "divide": "div",
    "power": "pow",
    "negative": "neg",
    "rint": "round",
    "equal": "eq",
    "not_equal": "ne",
    "less": "lt",
    "less_equal": "le",
    "greater": "gt",
    "greater_equal": "ge",
}


class Builder:
    """Makes and interns nodes; holds none of them once nobody else does.

    ``origin`` is called for each application of an op and tells the place in the user's program.
    """

    def __init__(self, origin: Callable[[], Origin | None] | None = None):
        self._nodes: weakref.WeakValueDictionary[bytes, Node] = weakref.WeakValueDictionary()
        self._lock = threading.RLock()
        self._principals: frozenset[Origin] | None = None
        self._tags = itertools.count()
        self.origin = origin

    def node(
        self,
        op: str | OpDef,
        inputs: tuple[Node, ...] = (),
        attrs: Mapping[str, Any] | None = None,
        origins: frozenset[Origin] = frozenset(),
    ) -> Node:
        """The node of ``op`` on ``inputs``: a new one, or the one that is equal to it.

        Raises
        ------
        Error
            The op takes another number of inputs or other attributes, or its type rule refuses
            them; the message names op, place, and what came.
        """
        record = OPS[op] if isinstance(op, str) else op
        origins |= self._here()
        for node in inputs:
            if node.builder is not self:
                raise TraceError(
                    f"{record.name} mixes tensors of two traces: {node.describe()} belongs to "
                    f"another one"
                )
        if record.promotes:
            inputs = _promoted(inputs, floats=record.promotes == "float")
        types = tuple(
            node.type if record.name == "project" else node.tensor_type for node in inputs
        )
        try:
            record.check_arity(len(inputs))
            canonical = record.canonical(types, attrs or {})
            key = _node_key(record, inputs, canonical)
            with self._lock:
                made = self._nodes.get(key)
                if made is None:
                    made = Node(record, inputs, canonical, record.infer(*types, **canonical), self)
                    self._nodes[key] = made
                made.origins |= origins
        except Error as error:
            raise _located(error, record, inputs, origins) from None
        except TypeError as error:  # a call of the op's functions with others than their parameters
            given = ", ".join(f"{name}={value!r}" for name, value in (attrs or {}).items())
            refused = ArgumentError(f"does not take the attributes {given or 'none'}: {error}")
            raise _located(refused, record, inputs, origins) from error
        return made

    def _here(self) -> frozenset[Origin]:
        if self._principals is not None:
            return self._principals
        here = self.origin() if self.origin else None
        return frozenset((here,)) if here else frozenset()

    def tag(self) -> int:
        """A number that this builder has not given before."""
        return next(self._tags)

    @contextlib.contextmanager
    def on_behalf_of(self, origins: frozenset[Origin]) -> Iterator[None]:
        """Give what is made inside these origins, such as those of the node it differentiates."""
        outer, self._principals = self._principals, origins
        try:
            yield
        finally:
            self._principals = outer

    def constant(self, value: object, dtype: object = None) -> Node:
        """A constant from anything NumPy reads; equal arrays are one node."""
        array = np.asarray(value, dtype=None if dtype is None else as_dtype(dtype))
        if array.dtype.name not in DTYPES:
            raise DTypeError(
                f"a constant has an element type of {', '.join(DTYPES)}; got {array.dtype.name}"
            )
        # By its name, an element type is in the machine's byte order.
        array = np.array(array, array.dtype.name, order="C", copy=True)
        array.flags.writeable = False
        return self.node("constant", (), {"value": array})

    def input(self, name: str, type: TensorType) -> Node:
        """A graph input; its name is unique in the graph."""
        return self.node("input", (), {"name": name, "dtype": type.dtype, "shape": type.shape})

    def parameter(self, name: str, type: TensorType, role: str = "parameter") -> Node:
        """A parameter (or with ``role="buffer"`` a buffer) of the model, by its name in the state
        dict.
        """
        attrs = {"name": name, "dtype": type.dtype, "shape": type.shape, "role": role}
        return self.node("parameter", (), attrs)

    def operand(self, value: object, like: Node | None = None) -> Node:
        """``value`` as a node: a node itself, an array, or a Python number in the element type that
        ``like`` gives it.
        """
        if isinstance(value, Node):
            return value
        if isinstance(value, (Poly, Dim)):
            size = self.node("size", (), {"size": as_size(value)})
            return size if like is None else self.node("cast", (size,), {"dtype": like.dtype})
        if isinstance(value, (bool, int, float)):
            return self._number(value, like)
        if isinstance(value, (np.ndarray, np.generic)):
            return self.constant(value)
        raise TraceError(
            f"expected a tensor, a NumPy array or a number, got {value!r} of type "
            f"{type(value).__name__}"
        )

    def _number(self, value: bool | int | float, like: Node | None) -> Node:
        dtype = _weak_dtype(value, like)
        try:
            return self.constant(value, dtype)
        except OverflowError:
            beside = f" beside {like.describe()}" if like is not None else ""
            raise DTypeError(
                f"the number {value} is beyond {dtype}, the element type that it has{beside}"
                f"{self._place()}; cast the tensor, as in x.long() or x.float()"
            ) from None

    def _place(self) -> str:
        """The user's line, for messages: `` at model.py:12``."""
        origin = self.origin() if self.origin else None
        if origin is None or not origin.file:
            return ""
        return f" at {origin.file.rsplit('/', 1)[-1]}:{origin.line}"


_CURRENT: contextvars.ContextVar[Builder | None] = contextvars.ContextVar(
    "dlc.builder", default=None
)


@contextlib.contextmanager
def building(builder: Builder) -> Iterator[Builder]:
    """Make ``builder`` the one that functions without tensor arguments use."""
    token = _CURRENT.set(builder)
    try:
        yield builder
    finally:
        _CURRENT.reset(token)


def place_of_trace() -> str:
    """Where the user's program is while it is traced, for messages; else nothing."""
    builder = _CURRENT.get()
    return "" if builder is None else builder._place()


def current_builder() -> Builder:
    """The builder of the trace under way; raises `TraceError` outside one."""
    builder = _CURRENT.get()
    if builder is None:
        raise TraceError(
            "tensors exist only while a function is traced; call this inside a function given to "
            "dlc.jit"
        )
    return builder


def apply(op: str, *inputs: object, **attrs: Any) -> Node:
    """Apply an op to nodes, arrays and numbers. Numbers take the element type of the tensors beside
    them.
    """
    inputs = tuple(value._node if isinstance(value, Arithmetic) else value for value in inputs)
    first = next((value for value in inputs if isinstance(value, Node)), None)
    builder = first.builder if first is not None else current_builder()
    tensors = [value for value in inputs if isinstance(value, Node)]
    like = (
        max(tensors, key=lambda node: DTYPES.index(node.dtype), default=None)
        if len(tensors) != len(inputs)
        else None
    )
    return builder.node(op, tuple(builder.operand(value, like) for value in inputs), attrs)


def _weak_dtype(value: bool | int | float, like: Node | None) -> str:
    """Element type of a Python number beside a tensor (PyTorch's rule: a number never widens within
    its kind).
    """
    if like is None:
        return (
            "bool" if isinstance(value, bool) else "int64" if isinstance(value, int) else "float32"
        )
    if isinstance(value, float):
        return like.dtype if is_float(like.dtype) else "float32"
    if like.dtype == "bool" and not isinstance(value, bool):
        return "int64"
    return like.dtype


def _promoted(inputs: tuple[Node, ...], floats: bool) -> tuple[Node, ...]:
    """Inputs cast to their common element type, with ``floats`` to one that is a float."""
    common = "float32" if floats else "bool"
    for node in inputs:
        common = promote(common, node.dtype)
    return tuple(
        n if n.dtype == common else n.builder.node("cast", (n,), {"dtype": common}) for n in inputs
    )


def _located(
    error: Error, op: OpDef, inputs: tuple[Node, ...], origins: frozenset[Origin]
) -> Error:
    """The error of a type rule with op, place and inputs added: ``conv2d expects ...
    (layer2.0.conv1, model.py:41)``.
    """
    place = ", ".join(sorted(str(origin) for origin in origins if str(origin)))
    came = "; ".join(f"{_source(node)}: {_type_text(node.type)}" for node in inputs)
    noun = "Its input is" if len(inputs) == 1 else "Its inputs are"
    text = f"{op.name} {error}{f' ({place})' if place else ''}." + (
        f" {noun} {came}" if came else ""
    )
    return type(error)(text)


def _source(node: Node) -> str:
    """What made a value, for messages: ``input 'x'``, or ``max_pool2d of stem.pool`` with the
    module's path.
    """
    if node.name:
        return f"{node.op.name} {node.name!r}"
    modules = sorted({origin.module for origin in node.origins if origin.module})
    return f"{node.op.name} of {' and '.join(modules)}" if modules else node.op.name


def _type_text(type: Type) -> str:
    return f"{shape_text(type.shape)} {type.dtype}" if isinstance(type, TensorType) else str(type)


def _node_key(op: OpDef, inputs: tuple[Node, ...], attrs: Mapping[str, Any]) -> bytes:
    # Inputs outlive the node, so their ids stay theirs.
    ids = struct.pack(f"<{len(inputs)}Q", *map(id, inputs))
    return op.name.encode() + b"\0" + ids + attrs_key(attrs)


def attrs_key(attrs: Mapping[str, Any]) -> bytes:
    """Canonical bytes of attributes: values with their types, floats by bit pattern, arrays by
    content.
    """
    return b"".join(name.encode() + b"=" + _value_key(attrs[name]) + b";" for name in sorted(attrs))


def _value_key(value: Any) -> bytes:
    if value is None or isinstance(value, (bool, int)):
        return f"{type(value).__name__}:{value}".encode()
    if isinstance(value, float):
        return b"float:" + struct.pack("<d", value)
    if isinstance(value, str):
        return f"str{len(value)}:{value}".encode()
    if isinstance(value, (Poly, Dim, Floor)):
        bound = ",".join(f"{d.name}={d.min}..{d.max}" for d in sorted(_dims(value), key=str))
        return f"size:{value}[{bound}]".encode()
    if isinstance(value, (tuple, list)):
        return b"(" + b",".join(map(_value_key, value)) + b")"
    if isinstance(value, np.ndarray):
        head = f"array:{value.dtype.str}{value.shape}:".encode()
        return (
            head + hashlib.sha256(np.ascontiguousarray(value).data if value.size else b"").digest()
        )
    if hasattr(value, "structure_key"):
        return b"graph:" + bytes(value.structure_key())
    raise ShapeError(
        f"has an attribute of type {type(value).__name__}, which has no canonical form: {value!r}"
    )


def _dims(value: Poly | Dim | Floor) -> set[Dim]:
    from dlc.ir.sizes import dims

    if isinstance(value, Dim):
        return {value}
    return dims(value.numerator if isinstance(value, Floor) else value)
