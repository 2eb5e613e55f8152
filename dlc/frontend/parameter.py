"""Parameters and buffers: arrays that a model owns, and symbols while it is traced.

They own their storage, which is read-only outside and changes only by assignment of a whole array;
each assignment gives a new version, so that everything compiled for the model knows when to read
the value again. What a compiled call gives new values is lent to it, and read back when asked for.
"""

from __future__ import annotations

import itertools
import math
import os
import threading
from typing import Any, NoReturn, Protocol

import numpy as np

from dlc.errors import AttributeError, DTypeError, ShapeError, TraceError, explain
from dlc.frontend.scope import active, refuse_in_trace
from dlc.ir.arithmetic import Arithmetic
from dlc.ir.node import Node
from dlc.ir.sizes import shape_text
from dlc.ir.types import DTYPES, FLOATS, TensorType, tensor

_counting = threading.Lock()  # held while the newest version changes
_storing = threading.Lock()  # held while a variable changes its owner or value
_moments = itertools.count(1)  # `next` is atomic under the GIL
_latest = 0
_newest = 0


def touch(owner: object | None) -> None:
    """Note in ``owner._changed`` that a model changed in a way for which it is traced again.

    Called after the change. The moment is published last, so that whoever sees it also sees the
    change and its note. Without an owner only the clock moves on.
    """
    global _latest
    moment = next(_moments)
    if owner is not None:
        object.__setattr__(owner, "_changed", moment)
    _latest = moment


def latest_change() -> int:
    """The moment of the newest such change in this process: while it stays, no model changed."""
    return _latest


def latest_version() -> int:
    """The newest version of any variable in this process: while it stays, no value changed."""
    return _newest


def advance() -> int:
    """A new newest version, for values that change elsewhere."""
    global _newest
    with _counting:
        _newest += 1
        return _newest


def _after_fork() -> None:
    """In a forked child, no other thread holds a lock."""
    global _counting, _storing
    _counting, _storing = threading.Lock(), threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


class Keeper(Protocol):
    """Who keeps the values of variables that are lent, such as a compiled training step."""

    version: int

    def read(self, name: str) -> tuple[int, np.ndarray[Any, Any]]:
        """A version, and a copy of the value of that version under a name, between two calls."""

    def let_go(self, version: int) -> bool:
        """Give up a value, if it is that of ``version`` and the next one is not being made."""


class Variable(Arithmetic):
    """An array that a model owns.

    Inside a trace its operators and methods build the graph, as those of any `dlc.Tensor`; outside
    one it is read with ``.numpy()`` or ``np.asarray`` and written by assigning to ``.data``.

    Parameters
    ----------
    data : array-like or Variable
        The first value, copied. Python numbers become float32, arrays keep their element type.

    Raises
    ------
    DTypeError
        The element type is not one that this kind of variable holds.
    """

    role = "parameter"
    dtypes: tuple[str, ...] = FLOATS
    __slots__ = ("__weakref__", "_changed", "_keeper", "_type", "_value", "_version")
    _value: np.ndarray[Any, Any] | None  # None from lending it to the first reading after that

    def __init__(self, data: object):
        self._store(_owned(data, self.dtypes, type(self).__name__))
        self._changed = 0
        touch(None)  # a name may mean another variable now

    # The value, outside a trace.

    @property
    def version(self) -> int:
        """Grows with every new value. Read it before the value: then the pair is never stale."""
        keeper = self._keeper
        return self._version if keeper is None else keeper[0].version

    @property
    def _array(self) -> np.ndarray[Any, Any]:
        return self.latest()[1]

    def latest(self) -> tuple[int, np.ndarray[Any, Any]]:
        """The version and the value of one moment; it waits for a call that changes the value only
        where nobody has read that one yet.
        """
        with _storing:
            keeper, value = self._keeper, self._value
            version = self._version if keeper is None else keeper[0].version
            if value is not None and version == self._version:
                return version, value
        assert keeper is not None
        version, array = keeper[0].read(keeper[1])
        array.flags.writeable = False
        with _storing:
            if self._keeper is keeper:
                self._value, self._version = array, version
        return version, array

    def lend(self, keeper: Keeper, name: str, version: int) -> bool:
        """Let ``keeper`` keep the value from now on, under a name; False if the value is no longer
        that of ``version``, or its present keeper is at work on the next one.
        """
        with _storing:
            before = self._keeper
            if not (before[0].let_go(version) if before else self._version == version):
                return False
            self._keeper, self._version = (keeper, name), -1
            self._value = None  # the keeper's is the only one
            return True

    def settled(self) -> tuple[int, np.ndarray[Any, Any]]:
        """The value and its version, when no call is at work on the next one."""
        with _storing:
            keeper, value = self._keeper, self._value
            if keeper is None:
                assert value is not None
                return self._version, value
        return keeper[0].read(keeper[1])

    def lent_to(self, keeper: Keeper) -> bool:
        """Whether ``keeper`` keeps the value."""
        with _storing:
            return self._keeper is not None and self._keeper[0] is keeper

    def numpy(self) -> np.ndarray[Any, Any]:  # type: ignore[override]
        """The value, as a read-only view; it never changes, a later value is another array."""
        refuse_in_trace(f"a {type(self).__name__.lower()}", "compute with it directly")
        return self._array.view()

    @property
    def data(self) -> np.ndarray[Any, Any]:
        """The value (read-only); assigning an array of the same shape and element type changes it.

        Raises
        ------
        ShapeError, DTypeError
            What is assigned has another shape or element type; the old value stays.
        """
        return self.numpy()

    @data.setter
    def data(self, value: object) -> None:
        array = as_array(value)
        if array.shape != self.shape:
            raise ShapeError(self._refusal("shape", shape_text(self.shape), array.shape))
        if array.dtype.name != self.dtype:
            advice = f"Convert it with .astype(np.{self.dtype}), or use copy_, which converts."
            raise DTypeError(self._refusal("type", self.dtype, array.dtype.name, advice))
        self._store(np.array(array, order="C"))

    def copy_(self, value: object) -> Variable:
        """Take over the values of an array, converted to this element type and broadcast.

        Raises
        ------
        DTypeError
            The conversion would lose more than precision, as from float to integer.
        """
        array = as_array(value)
        if not np.can_cast(array.dtype, self.dtype, "same_kind"):
            advice = f"Convert it with .astype(np.{self.dtype}) if that is meant."
            raise DTypeError(self._refusal("type", self.dtype, array.dtype.name, advice))
        self.data = np.broadcast_to(array.astype(self.dtype), self.shape)
        return self

    def retype(self, dtype: str) -> None:
        """Change the element type; compiled calls that use it are compiled again."""
        if dtype != self.dtype:
            self._store(_owned(self._array.astype(dtype), self.dtypes, type(self).__name__))
            touch(self)

    def _store(self, array: np.ndarray[Any, Any]) -> None:
        array.flags.writeable = False
        with _storing:
            self._keeper: tuple[Keeper, str] | None = None
            self._value, self._type = array, tensor(array.dtype.name, array.shape)
            self._version = advance()

    def _refusal(self, what: str, expected: object, got: object, advice: str = "") -> str:
        expected = f"an array of {what} {expected}"
        got = shape_text(got) if isinstance(got, tuple) else got
        return explain(type(self).__name__, expected, str(got), advice=advice)

    def item(self) -> Any:
        """The value of a scalar as a Python number."""
        return self.numpy().item()

    def tolist(self) -> Any:
        """The value as nested lists of Python numbers."""
        return self.numpy().tolist()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        view = self.numpy()
        if dtype is None or np.dtype(dtype) == view.dtype:
            return view.copy() if copy else view
        return view.astype(dtype)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._array,)

    # What it is, in a trace and outside.

    @property
    def type(self) -> TensorType:
        """Element type and shape."""
        return self._type

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the dimensions."""
        return self._type.shape

    @property
    def dtype(self) -> str:
        """Name of the element type."""
        return self._type.dtype

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def dim(self) -> int:
        """Number of dimensions."""
        return self.ndim

    def size(self, dim: int | None = None) -> Any:
        """The shape, or one size of it."""
        return self.shape if dim is None else self.shape[dim]

    @property
    def _node(self) -> Node:
        """The node that stands for this variable in the trace under way."""
        scope = active()
        if scope is None:
            raise TraceError(
                f"a {type(self).__name__.lower()} takes part in arithmetic only while a model is "
                "traced; outside, read its value with .numpy() and assign to .data"
            )
        return scope.value(self)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("a variable without dimensions has no length")
        return self.shape[0]

    def __bool__(self) -> bool:
        return bool(self._array if active() is None else self._node)

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    __array_ufunc__ = None  # NumPy operands leave binary operators to `Arithmetic`

    def __repr__(self) -> str:
        return f"{type(self).__name__} containing:\n{self._array!r}"


class Parameter(Variable):
    """A learnable array of a model (float32 or float64); an attribute of a Module is registered.

    Parameters
    ----------
    data : array-like
        The first value, copied.
    requires_grad : bool
        Whether training updates it.
    """

    __slots__ = ("_requires_grad",)

    def __init__(self, data: object, requires_grad: bool = True):
        super().__init__(data)
        self._requires_grad = bool(requires_grad)

    @property
    def requires_grad(self) -> bool:
        """Whether training updates it."""
        return self._requires_grad

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        if bool(value) != self._requires_grad:
            self._requires_grad = bool(value)
            touch(self)

    @property
    def grad(self) -> NoReturn:
        """There is none: gradients are values."""
        raise AttributeError(
            "a parameter has no 'grad': no gradient is kept beside it. dlc.train_step takes whole "
            "steps; in a function that is traced, dlc.gradients(loss, parameters) gives gradients"
        )

    def requires_grad_(self, value: bool = True) -> Parameter:
        """Set `requires_grad` and return the parameter."""
        self.requires_grad = value
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Parameter, (self._array, self._requires_grad)


class Buffer(Variable):
    """An array of a model that is no parameter, such as a running mean.

    Assigning a tensor to it inside ``forward`` gives it a new value when the call is done.

    Parameters
    ----------
    data : array-like
        The first value, copied; of any element type.
    persistent : bool
        Whether it is part of the state dict.
    """

    role = "buffer"
    dtypes = DTYPES
    __slots__ = ("persistent",)

    def __init__(self, data: object, persistent: bool = True):
        super().__init__(data)
        self.persistent = bool(persistent)

    @classmethod
    def full(cls, shape: tuple[int, ...], value: float, dtype: str) -> Buffer:
        """A buffer that holds one value all over, which has no memory of its own until a compiled
        call keeps it, or another value is assigned.
        """
        made = cls(np.array(value, dtype))
        made._store(np.broadcast_to(made._array, shape))
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return Buffer, (self._array, self.persistent)


def as_array(value: Any) -> np.ndarray[Any, Any]:
    """A value as NumPy reads it; a torch tensor on any device, in bfloat16 too."""
    if isinstance(value, Node):
        raise TraceError(
            f"a symbolic tensor ({value.describe()}) cannot be stored: it has no value while the "
            "model is traced; assign it to a buffer of the module, or return it"
        )
    if hasattr(value, "detach") and hasattr(value, "cpu"):
        value = value.detach().cpu()
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value
        return np.asarray(value.numpy())
    return np.asarray(value)


def _owned(data: object, dtypes: tuple[str, ...], kind: str) -> np.ndarray[Any, Any]:
    """A copy of ``data`` in C order, of one of ``dtypes``."""
    array = data._array if isinstance(data, Variable) else as_array(data)
    plain = not hasattr(data, "dtype")  # numbers and lists: Python's float is no wish for float64
    if plain and array.dtype == np.float64:
        array = array.astype(np.float32)
    if array.dtype.name not in dtypes:
        advice = "Convert it with .astype(np.float32)."
        if array.dtype.name in DTYPES:
            advice = "Convert it with .astype(np.float32), or keep it as it is by register_buffer."
        expected = f"an element type of {', '.join(dtypes)}"
        raise DTypeError(explain(kind, expected, array.dtype.name, advice=advice))
    return np.array(array, order="C")
