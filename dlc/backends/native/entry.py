"""The way from Python into a compiled call: arrays in, their addresses into the frame, and run.

Going through `ctypes` costs a Python call 2.3 us, and another 0.8 us for each array's address; here
it is a C function that CPython calls like its own. It reads arrays by the buffer protocol, so that
it knows neither NumPy nor its structs, and it uses functions of CPython's stable ABI only (the
layout of `Py_buffer` is part of that since Python 3.11). Whatever is not as the table says is left
to slower Python, which accepts more and explains the rest: see `dlc.runtime.entry`.

It is an object apart from the interpreter: a library has no use for it.
"""

from __future__ import annotations

from dlc.backends.native.isa import Isa
from dlc.backends.native.machine import (
    Words,
    at,
    c_function,
    pointer,
    primitive,
    program,
)
from dlc.runtime.frame import (
    BUSY,
    DONE,
    ENTRY_ARGUMENTS,
    ENTRY_CALL,
    ENTRY_FRAME,
    ENTRY_FREES_GIL,
    ENTRY_POOL,
    ENTRY_ROWS,
    ENTRY_VIEWS,
    ERROR,
    FAILED,
    LEASED,
    MISFIT,
    ROW_ELEMENTS,
    ROW_FORMAT,
    ROW_FORMAT_TOO,
    ROW_ITEM_BYTES,
    ROW_PATCHES,
    ROW_RANK,
    ROW_REQUEST,
    ROW_SHAPE,
    ROW_WORDS,
)

# The symbols of CPython that the program needs.
PYTHON = (
    "PyBuffer_Release",
    "PyBytes_AsString",
    "PyErr_Clear",
    "PyEval_RestoreThread",
    "PyEval_SaveThread",
    "PyLong_FromLong",
    "PyObject_GetBuffer",
    "PyTuple_GetItem",
)

# Words of a Py_buffer: its two ints share one.
VIEW_DATA, VIEW_ITEM_BYTES, VIEW_INTS, VIEW_FORMAT, VIEW_SHAPE, VIEW_STRIDES = 0, 3, 4, 5, 6, 7
VIEW_WORDS = 10


def build(isa: Isa) -> bytes:
    """Build the entry: an object that defines `dlc_entry`, a PyCFunction of kind METH_FASTCALL.

    Parameters
    ----------
    isa : Isa
        The level; the lowest of an architecture serves all.

    Returns
    -------
    bytes
        A relocatable ELF object; undefined in it are symbols of `PYTHON` only.
    """
    return program([dlc_entry], isa, PYTHON)


def dlc_entry(closure: Words, arguments: Words, count: int) -> int:
    """Run the frame on the arguments, if they are what the table says; a Python int says if so.

    `closure` is the function's `self`: a tuple whose first item is the table, as bytes.
    """
    table = pointer(bytes_data(tuple_item(closure, 0)))
    frame = pointer(table[ENTRY_FRAME])
    if frame[LEASED] != 0:
        return python_int(BUSY)
    frame[LEASED] = 1
    views = pointer(table[ENTRY_VIEWS])
    row = at(table, ENTRY_ROWS)
    taken = 0
    fit = count == table[ENTRY_ARGUMENTS]
    while fit and taken < count:
        view = at(views, taken * VIEW_WORDS)
        if get_buffer(arguments[taken], view, row[ROW_REQUEST]) != 0:
            clear_error()
            fit = False
        else:
            taken += 1
            fit = fits(view, row) != 0
            if fit:
                patch(frame, view, row)
                row = at(row, row[ROW_WORDS])
    status = MISFIT
    if fit:
        status = run(table, frame)
    for i in range(taken):
        release_buffer(at(views, i * VIEW_WORDS))
    if status != FAILED:
        frame[LEASED] = 0
    return python_int(status)


def run(table: Words, frame: Words) -> int:
    """Run the frame, without the GIL if the table says so."""
    if table[ENTRY_FREES_GIL] != 0:
        thread = save_thread()
        call(table[ENTRY_CALL], table[ENTRY_POOL], frame)
        restore_thread(thread)
    else:
        call(table[ENTRY_CALL], table[ENTRY_POOL], frame)
    return DONE if frame[ERROR] == 0 else FAILED


def fits(view: Words, row: Words) -> int:
    """1 if an array has the row's element type and shape, is aligned and C-contiguous."""
    size = row[ROW_ITEM_BYTES]
    rank = row[ROW_RANK]
    if view[VIEW_ITEM_BYTES] != size or view[VIEW_INTS] >> 32 != rank:
        return 0
    letter = byte(view[VIEW_FORMAT])
    if letter != row[ROW_FORMAT] and letter != row[ROW_FORMAT_TOO]:
        return 0
    if byte(view[VIEW_FORMAT] + 1) != 0 or view[VIEW_DATA] & (size - 1) != 0:
        return 0
    shape = pointer(view[VIEW_SHAPE])
    strides = pointer(view[VIEW_STRIDES])
    stride = size
    for behind in range(1, rank + 1):
        i = rank - behind
        if shape[i] != row[ROW_SHAPE + i]:
            return 0
        if shape[i] > 1 and strides[i] != stride and row[ROW_ELEMENTS] > 0:
            return 0
        stride *= shape[i]
    return 1


def patch(frame: Words, view: Words, row: Words) -> int:
    """Write an array's address into the words of the frame that the row names."""
    pairs = at(row, ROW_SHAPE + row[ROW_RANK])
    for i in range(row[ROW_PATCHES]):
        frame[pairs[2 * i]] = view[VIEW_DATA] + pairs[2 * i + 1]
    return 0


# What it needs of C and of CPython.


@primitive(
    body="""%at = inttoptr i64 %location to ptr
%value = load i8, ptr %at
%result = zext i8 %value to i64
ret i64 %result"""
)
def byte(location: int) -> int:
    """The byte at an address."""


@primitive(
    body="""%function = inttoptr i64 %code to ptr
%team = call i64 %function(i64 %pool, ptr %frame)
ret i64 %team"""
)
def call(code: int, pool: int, frame: Words) -> int:
    """Call `dlc_call`, given its address."""


@c_function("PyTuple_GetItem")
def tuple_item(items: Words, i: int) -> int:
    """An item of a tuple; borrowed."""


@c_function("PyBytes_AsString")
def bytes_data(value: int) -> int:
    """The address of what a bytes object holds."""


@c_function("PyLong_FromLong")
def python_int(value: int) -> int:
    """A Python int."""


@c_function("PyObject_GetBuffer", "i32")
def get_buffer(value: int, view: Words, request: int) -> int:
    """Fill in a Py_buffer and hold the object; -1, and an exception, if it has none like that."""


@c_function("PyBuffer_Release", "void")
def release_buffer(view: Words) -> int:
    """Let go of a Py_buffer's object."""


@c_function("PyErr_Clear", "void")
def clear_error() -> int:
    """Drop the exception that is set."""


@c_function("PyEval_SaveThread")
def save_thread() -> int:
    """Release the GIL."""


@c_function("PyEval_RestoreThread", "void")
def restore_thread(thread: int) -> int:
    """Take the GIL again."""
