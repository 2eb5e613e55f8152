"""Native calls by hand: kernels from source, the interpreter, and frames of steps."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from dlc.backends.native.machine import float_mode, program, set_float_mode
from dlc.runtime import frame
from dlc.runtime.entry import ENTRIES as ENTRY
from dlc.runtime.loader import link
from dlc.runtime.pool import ENTRIES

KERNELS = {
    # Each thread counts on a line of its own.
    "count": (
        """
def count(counts, thread, threads):
    counts[thread * 16] += 1
""",
        [("counts", "int64*")],
    ),
    # Each thread compares its neighbour's count with its own, and counts where they differ.
    "compare": (
        """
def compare(cells, thread, threads):
    other = thread + 1 if thread + 1 < threads else 0
    cells[thread * 16 + 1] += 1 if cells[other * 16] != cells[thread * 16] else 0
""",
        [("cells", "int64*")],
    ),
    # Keep every thread busy for a number of rounds, about a nanosecond each.
    "burn": (
        """
def burn(cells, rounds, thread, threads):
    x = cells[thread * 16]
    for i in range(rounds):
        x = (x ^ (x >> 7)) * 6364136223846793005 + i
    cells[thread * 16] = x
""",
        [("cells", "int64*"), ("rounds", "int64")],
    ),
    # The first thread reports an error.
    "report": (
        """
def report(header, code, position, thread, threads):
    if thread == 0:
        raise_error(header, code, position)
""",
        [("header", "int64*"), ("code", "int64"), ("position", "int64")],
    ),
    # y = x * factor, element by element.
    "scale": (
        """
def scale(x, y, n, factor, thread, threads):
    i = thread
    while i < n:
        y[i] = x[i] * factor
        i += threads
""",
        [
            ("x", "float32*"),
            ("y", "float32*"),
            ("n", "int64"),
            ("factor", "float32"),
        ],
    ),
}


def mode() -> int:
    """This thread's floating-point mode."""
    return float_mode()


def set_mode(word: int) -> int:
    """Set it."""
    return set_float_mode(word)


SYMBOLS = (*ENTRIES, *ENTRY, *KERNELS, "mode", "set_mode")


@cache
def code():
    """The interpreter, the entry and the kernels, as objects for this machine."""
    from dlc.backends.native import entry, interpreter, objects
    from dlc.backends.native.frontend import Param, lower
    from dlc.backends.native.isa import host

    isa = host()
    kernels = []
    for name, (source, params) in KERNELS.items():
        text = lower(source, name, [Param(*param) for param in params], isa)
        kernels.append(objects.build(text, [name], isa))
    return [interpreter.build(isa), entry.build(isa), program([mode, set_mode], isa), *kernels]


def load(folder=None):
    """All of `code` linked, or what `save` wrote: that way no compiler is imported."""
    files = sorted(Path(folder).glob("*.o")) if folder else ()
    return link([file.read_bytes() for file in files] or code(), SYMBOLS)


def save(folder):
    """Write the objects, for a program of its own."""
    for i, data in enumerate(code()):
        (folder / f"{i}.o").write_bytes(data)


class Frame:
    """A frame of steps (kernel, words of its arguments, barrier), its words and its memory."""

    def __init__(self, linked, threads, steps):
        start = frame.HEADER_WORDS + frame.STEP_WORDS * len(steps)
        self.words = np.zeros(start + sum(len(words) for _, words, _ in steps), np.int64)
        self.address = self.words.ctypes.data
        self.arguments = []  # for each step, the word at which its arguments begin
        self.words[frame.STEP_COUNT] = len(steps)
        self.words[frame.STEPS] = self.address + 8 * frame.HEADER_WORDS
        self.words[frame.THREADS] = threads
        for i, (kernel, words, barrier) in enumerate(steps):
            row = self.words[frame.HEADER_WORDS + frame.STEP_WORDS * i :]
            row[frame.STEP_KERNEL] = linked.address(kernel)
            row[frame.STEP_ARGUMENTS] = self.address + 8 * start
            row[frame.STEP_FLAGS] = frame.BARRIER if barrier else 0
            self.words[start : start + len(words)] = words
            self.arguments.append(start)
            start += len(words)
