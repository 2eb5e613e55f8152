"""A compiled call as a Python function: a C function over a fixed frame, for the fast case.

It costs a fraction of a microsecond, where the way through `ctypes` costs several. It takes exactly
the arrays that it was made for (element type, shape, C-contiguous, aligned); for others it returns
`MISFIT`, having run nothing, and the caller goes the general way, which accepts more and words the
errors.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dlc.errors import DTypeError, explain
from dlc.runtime import frame
from dlc.runtime.frame import BUSY, DONE, FAILED, MISFIT
from dlc.runtime.loader import Linked
from dlc.runtime.pool import Pool

__all__ = ["BUSY", "DONE", "ENTRIES", "FAILED", "MISFIT", "Argument", "make_entry"]

ENTRIES = ("dlc_entry",)

# From CPython's headers; all of the stable ABI.
_METH_FASTCALL = 0x80
_PYBUF_WRITABLE, _PYBUF_RECORDS_RO = 0x1, 0x1C
_PY_BUFFER_BYTES = 80

# Letters of the struct module for one and the same type of 8 bytes.
_SAME = {"l": "q", "q": "l", "L": "Q", "Q": "L"}


@dataclass(frozen=True)
class Argument:
    """What an entry takes at one place.

    Attributes
    ----------
    dtype : str
        NumPy's name of the element type.
    shape : tuple of int
    patches : sequence of (int, int)
        The words of the frame that take the array's address, each with the bytes to add to it.
    writable : bool
        True for an array that the call fills in.
    """

    dtype: str
    shape: tuple[int, ...]
    patches: Sequence[tuple[int, int]]
    writable: bool = False


def make_entry(
    linked: Linked,
    pool: Pool,
    frame_address: int,
    arguments: Sequence[Argument],
    *,
    keep: object = None,
    release_gil: bool = True,
) -> Callable[..., int]:
    """Make a function that runs a frame on the arrays it is called with.

    Parameters
    ----------
    linked : Linked
        Holds the native entry, `ENTRIES`.
    pool : Pool
        Runs the frame.
    frame_address : int
        Address of the frame's words (`dlc.runtime.frame`), complete but for the patches.
    arguments : sequence of Argument
        Inputs and outputs, in the order in which the function takes them.
    keep : object
        Lives as long as the function: the frame's memory, and what the frame points to.
    release_gil : bool
        Whether other Python threads run meanwhile. A call of a few microseconds is better off
        holding the GIL: a thread that is busy in Python gives it back after milliseconds only.

    Returns
    -------
    function
        `function(*arrays) -> int`: `DONE`; `MISFIT`, if an argument is not as said; `BUSY`, if
        another thread is using the frame; `FAILED`, if a kernel found an error. After `FAILED` the
        frame stays leased, so that the header can be read; set its `LEASED` word to 0 then.

    Raises
    ------
    DTypeError
        If an element type has no letter in the buffer protocol.
    """
    views = np.zeros(len(arguments) * _PY_BUFFER_BYTES // 8, np.int64)
    head = [0] * frame.ENTRY_ROWS
    head[frame.ENTRY_CALL] = pool.call_address
    head[frame.ENTRY_POOL] = pool.address
    head[frame.ENTRY_FRAME] = frame_address
    head[frame.ENTRY_VIEWS] = views.ctypes.data
    head[frame.ENTRY_ARGUMENTS] = len(arguments)
    head[frame.ENTRY_FREES_GIL] = int(release_gil)
    words = [*head, *(word for argument in arguments for word in _row(argument))]
    table = struct.pack(f"={len(words)}q", *words)
    method = _MethodDef(b"dlc_entry", linked.address("dlc_entry"), _METH_FASTCALL, None)
    new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p)
    make = new(("PyCFunction_NewEx", ctypes.pythonapi))
    # The function owns this tuple, and with it all that it reads.
    closure = (table, method, views, linked, pool, keep)
    function: Callable[..., int] = make(ctypes.addressof(method), closure, None)
    return function


class _MethodDef(ctypes.Structure):
    """CPython's PyMethodDef."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    )


def _row(argument: Argument) -> list[int]:
    """An argument's row of the table."""
    dtype = np.dtype(argument.dtype)
    letter = dtype.char
    if dtype.hasobject or letter not in "?bBhHiIlLqQefd":
        message = explain("an array argument", "numbers of one of NumPy's real types", str(dtype))
        raise DTypeError(message)
    row = [0] * frame.ROW_SHAPE
    row[frame.ROW_REQUEST] = _PYBUF_RECORDS_RO | (_PYBUF_WRITABLE if argument.writable else 0)
    row[frame.ROW_FORMAT] = ord(letter)
    row[frame.ROW_FORMAT_TOO] = ord(_SAME.get(letter, letter))
    row[frame.ROW_ITEM_BYTES] = dtype.itemsize
    row[frame.ROW_ELEMENTS] = int(np.prod(argument.shape, dtype=np.int64))
    row[frame.ROW_RANK] = len(argument.shape)
    row[frame.ROW_PATCHES] = len(argument.patches)
    row += [*argument.shape, *(word for pair in argument.patches for word in pair)]
    row[frame.ROW_WORDS] = len(row)
    return row
