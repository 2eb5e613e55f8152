"""The op record: all that dlc knows about one operator, in one place.

The type rule, the NumPy reference, the gradient, the data that backends lower and the samples that
tests run stand side by side, so that an op is added in one file and works on every backend on the
day it is written. Backends lower the eight kinds below, not single ops.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from dlc.errors import ArgumentError, Error
from dlc.ir.sizes import Size
from dlc.ir.types import TensorType, Type

if TYPE_CHECKING:
    from dlc.ir.node import Node

Array: TypeAlias = "np.ndarray[Any, Any]"


class Kind(enum.Enum):
    """How an op is lowered."""

    LEAF = "leaf"  #: no computation: inputs, parameters, constants
    POINTWISE = "pointwise"  #: one scalar expression an element, broadcasting
    MOVE = "move"  #: elements copied: the output index gives the input index
    REDUCE = "reduce"  #: an associative combination over some axes
    CONTRACT = "contract"  #: sums of products: matrix product, convolution
    WINDOW = "window"  #: a reduction over a sliding window
    SCAN = "scan"  #: a loop that carries values; its body is a graph
    COMPOSITE = "composite"  #: visible to rules, then expanded into other ops
    OPAQUE = "opaque"  #: a kernel of its own


@dataclass(frozen=True)
class Access:
    """Where one output element of a movement op comes from.

    Parameters
    ----------
    operand : int
        Which input is read.
    index : tuple of Size
        The element read, as sizes over the output's loop variables.
    guards : tuple of (Size, Size, Size)
        ``(low, value, high)``: the access holds where every ``low <= value < high``.
    """

    operand: int
    index: tuple[Size, ...]
    guards: tuple[tuple[Size, Size, Size], ...] = ()


@dataclass(frozen=True)
class Move:
    """A movement op as index arithmetic.

    ``index(i, types, **attrs)`` gives the accesses of output element ``i`` in order; the first
    whose guards hold is taken, and where none holds the element is ``fill``, the value of the
    attribute of that name, or zero.
    """

    index: Callable[..., Sequence[Access]]
    fill: str | None = None


@dataclass(frozen=True)
class Reduction:
    """An associative combination over the attribute ``axes``.

    Parameters
    ----------
    combine : str
        Expression that joins two partial results ``{a}`` and ``{b}``; with ``position``, whether
        the later element ``{b}`` takes the place of ``{a}``.
    init : float
        The neutral element; for integers it is clamped to the type's range.
    finish : str
        Expression of the result from the total ``{acc}`` and the number ``{n}`` of elements.
    position : bool
        The result is the position of the element that won, not its value; of equals, the first.
    centred : bool
        What is combined are squared distances from the mean, in one walk.
    """

    combine: str
    init: float
    finish: str = "{acc}"
    position: bool = False
    centred: bool = False


@dataclass(frozen=True)
class Sample:
    """Arguments to run an op on: arrays, and attributes.

    ``differentiable`` says which arrays take part in gradient checks; None means every float array.
    """

    arrays: tuple[Array, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    differentiable: tuple[int, ...] | None = None


@dataclass(frozen=True)
class ErrorSample:
    """Arguments that an op refuses, with the error class and a piece of its message."""

    types: tuple[TensorType, ...]
    attrs: Mapping[str, Any]
    error: type[Error]
    match: str


@dataclass(frozen=True, eq=False)
class OpDef:
    """One operator.

    Parameters
    ----------
    name : str
        Lower snake case, PyTorch's name where PyTorch has the op.
    kind : Kind
        How backends lower it.
    infer : callable
        Type rule ``(*input_types, **attrs) -> Type``; raises `ShapeError` or `DTypeError` with a
        message that continues "<op> ", such as "expects 64 input channels, got 3".
    ref : callable
        Reference ``(*arrays, **attrs) -> array`` (a tuple of arrays for several outputs) in NumPy,
        in the input's type.
    doc : str
        One line.
    arity : int or (int, int or inf)
        How many inputs it takes, or the least and the most.
    attrs : callable
        ``(*input_types, **attrs) -> dict``: the attributes in canonical form (axes not negative,
        sizes as sizes, every default written out), so that equal nodes are equal. None for an op
        that has none.
    grad : callable, optional
        ``(g, y, *inputs, **attrs) -> tuple of Node or None``, written in the DSL; for an op with
        several outputs ``g`` and ``y`` are tuples.
    no_grad : str
        Why there is no gradient, where there is none.
    scalar : str or callable
        POINTWISE: the expression of one element over ``{0}``, ``{1}``... and attributes by name; or
        ``(dtype, **attrs) -> str``.
    move, reduction : optional
        Data of MOVE, and of REDUCE and WINDOW.
    expand : callable, optional
        COMPOSITE: ``(*inputs, **attrs) -> Node`` in terms of simpler ops.
    flops : callable, optional
        ``(output_type, *input_types, **attrs) -> Size``; by default one an output element for
        POINTWISE, one an input element for REDUCE, none for MOVE.
    promotes : bool or "float"
        Inputs of different element types are cast to their common type before the type rule sees
        them; with "float", inputs that are all integers or bools to float32, so that real functions
        compute on floats alone.
    samples, errors : callable
        ``(rng) -> iterable of Sample`` in float64 (tests also run them in float32), ``() ->
        iterable of ErrorSample``.
    torch : callable, optional
        The PyTorch twin ``(torch, *tensors, **attrs) -> tensor``; None where PyTorch has none.
    checks : bool
        Whether a call may find an error in its data, such as an index out of range.
    ulp : float
        Error of one application in units in the last place, for tolerances of the tests; 0 means
        correctly rounded.
    """

    name: str
    kind: Kind
    infer: Callable[..., Type]
    ref: Callable[..., Any]
    doc: str
    arity: int | tuple[int, float] = 1
    attrs: Callable[..., dict[str, Any]] | None = None
    grad: Callable[..., tuple[Node | None, ...]] | None = None
    no_grad: str = ""
    scalar: str | Callable[..., str] | None = None
    move: Move | None = None
    reduction: Reduction | None = None
    expand: Callable[..., Any] | None = None
    flops: Callable[..., Size] | None = None
    promotes: bool | Literal["float"] = False
    samples: Callable[[np.random.Generator], Iterable[Sample]] | None = None
    errors: Callable[[], Iterable[ErrorSample]] | None = None
    torch: Callable[..., Any] | None = None
    checks: bool = False
    ulp: float = 2.0

    def __repr__(self) -> str:
        return self.name

    def canonical(self, types: Sequence[Type], attrs: Mapping[str, Any]) -> dict[str, Any]:
        """The attributes in canonical form; raises `ArgumentError` if the op has none."""
        if self.attrs is not None:
            return self.attrs(*types, **attrs)
        if attrs:
            raise ArgumentError(f"has no attributes, got {', '.join(attrs)}")
        return {}

    def check_arity(self, count: int) -> None:
        """Raise `ArgumentError` where the op does not take ``count`` inputs."""
        least, most = self.arity if isinstance(self.arity, tuple) else (self.arity, self.arity)
        if not least <= count <= most:
            bound = "at least " if most == math.inf else f"{least} to " if least < most else ""
            number = least if most == math.inf else most
            raise ArgumentError(f"expects {bound}{number} input{'s' * (number != 1)}, got {count}")


class OpTable:
    """All op records by name; filled once by `dlc.ops`, then frozen."""

    def __init__(self) -> None:
        self._ops: dict[str, OpDef] = {}
        self._frozen = False

    def add(self, op: OpDef) -> None:
        """Take in a record; a second one of the same name is refused."""
        if self._frozen:
            raise Error(f"the op table is frozen; define {op.name!r} in a file of dlc/ops")
        if op.name in self._ops:
            raise Error(f"two records define the op {op.name!r}; rename one of them")
        self._ops[op.name] = op

    def freeze(self) -> None:
        """Refuse further records."""
        self._frozen = True

    def __getitem__(self, name: str) -> OpDef:
        if name not in self._ops:
            raise Error(f"there is no op {name!r}; the ops are {', '.join(sorted(self._ops))}")
        return self._ops[name]

    def __contains__(self, name: str) -> bool:
        return name in self._ops

    def __iter__(self) -> Iterator[OpDef]:
        return iter(self._ops.values())

    def __len__(self) -> int:
        return len(self._ops)


#: The op table of this process.
OPS = OpTable()
