"""Kernel source as plain Python: the names of `intrinsics.py` over NumPy scalars and arrays.

The same source that becomes native code runs here one statement at a time, which is how a wrong
kernel is told from a wrong compilation. It is slow, rounds `fma` twice and uses NumPy's elementary
functions, so results agree to rounding, not bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dlc.ops.random import random_bits


class Pointer:
    """A typed pointer into a NumPy array: `p[i]`, and `p + n` for the intrinsic `at`.

    Parameters
    ----------
    array : numpy.ndarray
        Contiguous memory, of any shape; written through.
    offset : int
        Elements from its start.

    Raises
    ------
    builtins.IndexError
        From `p[i]`, outside the array: native code would read or write what is not its own.
    """

    def __init__(self, array: np.ndarray, offset: int = 0) -> None:
        self.elements, self.offset = array.reshape(-1).view(), offset
        assert np.shares_memory(self.elements, array) or not array.size, "memory must be contiguous"

    def _place(self, i: int) -> int:
        place = self.offset + int(i)
        if not 0 <= place < self.elements.size:
            raise IndexError(f"element {place} of {self.elements.size}")
        return place

    def __getitem__(self, i: int) -> Any:
        value = self.elements[self._place(i)]
        return int(value) if self.elements.dtype.kind in "iub" else value

    def __setitem__(self, i: int, value: Any) -> None:
        self.elements[self._place(i)] = value

    def __add__(self, offset: int) -> Pointer:
        return Pointer(self.elements, self.offset + int(offset))


def python_namespace() -> Mapping[str, Any]:
    """The names that kernel source may use, as Python functions over NumPy scalars."""
    return dict(_NAMES)


def run(
    source: str,
    name: str,
    arguments: Sequence[Any],
    thread: int = 0,
    threads: int = 1,
    externs: Mapping[str, Callable[..., None]] | None = None,
) -> None:
    """Run a kernel's source as Python.

    Parameters
    ----------
    source, name : str
        As for `frontend.lower`.
    arguments : sequence
        NumPy arrays for the pointers, numbers for the scalars, in the order of the parameters.
    thread, threads : int
        The share of the work to do.
    externs : mapping of str to function
        Python twins of the native functions that the source calls; they get `Pointer`s.
    """
    names = python_namespace() | dict(externs or {})
    exec(compile(source, f"<kernel {name}>", "exec"), names)
    pointers = [Pointer(each) if isinstance(each, np.ndarray) else each for each in arguments]
    with np.errstate(all="ignore"):
        names[name](*pointers, thread, threads)


def _fmax(x: Any, y: Any) -> Any:
    return x if x > y or np.isnan(x) else y


def _fmin(x: Any, y: Any) -> Any:
    return x if x < y or np.isnan(x) else y


def _erf(x: Any) -> Any:
    return type(x)(math.erf(x))


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def _wrapped(x: int) -> int:
    """The number that an int64 of the same low bits is."""
    return (x + 2**63) % 2**64 - 2**63


def _i32(x: Any) -> int:
    return (int(x) + 2**31) % 2**32 - 2**31


def _u8(x: Any) -> int:
    return int(x) & 255


def _local(count: int, kind: Any) -> Pointer:
    """Scratch memory; -1 stands for what happens to be there."""
    dtype = {_i32: np.int32, _u8: np.uint8}.get(kind, kind)
    return Pointer(np.full(count, -1).astype(dtype))


def _raise_error(words: Pointer, code: int, position: int) -> None:
    if words[0] == 0:
        words[0], words[1] = code, position


_NAMES: dict[str, Any] = {
    "abs": np.abs,
    "at": lambda pointer, offset: pointer + offset,
    "ceil": np.ceil,
    "copysign": np.copysign,
    "cos": np.cos,
    "div": lambda a, b: int(a) // int(b),
    "erf": _erf,
    "exp": np.exp,
    "expm1": np.expm1,
    "f32": np.float32,
    "f64": np.float64,
    "floor": np.floor,
    "fma": lambda x, y, z: x * y + z,
    "fmax": _fmax,
    "fmin": _fmin,
    "inf": math.inf,
    "i32": _i32,
    "i64": int,
    "isnan": np.isnan,
    "local": _local,
    "log": np.log,
    "log1p": np.log1p,
    "minus": lambda a, b: _wrapped(int(a) - int(b)),
    "mod": lambda a, b: int(a) % int(b),
    "nan": math.nan,
    "philox": lambda index, key, call: int(random_bits(np.asarray(index), key, call)),
    "plus": lambda a, b: _wrapped(int(a) + int(b)),
    "pow": np.power,
    "claim": lambda pointer, offset: None,
    "raise_error": _raise_error,
    "relu": lambda x: type(x)(0) if x < 0 else x,
    "round": np.rint,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "sigmoid": _sigmoid,
    "sin": np.sin,
    "sqrt": np.sqrt,
    "tanh": np.tanh,
    "times": lambda a, b: _wrapped(int(a) * int(b)),
    "trunc": np.trunc,
    "u8": _u8,
}
