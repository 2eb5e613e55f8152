"""The door to LLVM and Numba: one thread at a time, never open across a fork, imports whole.

A fork copies locks as they are, and one that another thread held stays locked in the child for
ever; so a fork waits until nobody is inside. An import that Ctrl-C breaks off leaves a package half
loaded, which fails from then on; so Ctrl-C waits until it is done.
"""

from __future__ import annotations

import logging  # noqa: F401  (its lock is held over a fork too, and taken after this one)
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_inside = threading.Lock()
_next = threading.Lock()  # held by whoever is next, so that a fork is not left waiting for ever
_mine = threading.local()


@contextmanager
def exclusive() -> Iterator[None]:
    """Call LLVM or Numba within this block, or in a function that it decorates."""
    _enter()
    try:
        yield
    finally:
        _leave()


def _enter() -> None:
    _mine.depth = getattr(_mine, "depth", 0) + 1
    if _mine.depth > 1:
        return
    entered = False
    try:
        with _next:
            entered = _inside.acquire()
    finally:
        if not entered:  # interrupted while it waited
            _mine.depth = 0


def _leave() -> None:
    if _mine.depth == 1:
        _inside.release()
    _mine.depth -= 1  # last: a finaliser that runs between is still inside, and does not wait


@contextmanager
def importing() -> Iterator[None]:
    """Import LLVM, Numba, or modules that do, within this block."""
    with exclusive(), uninterrupted():
        yield


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Take Ctrl-C only at the end of the block; Python has the main thread take it."""
    here = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT) if here else None
    if before is None:  # another thread, or a handler that is not Python's
        yield
        return
    pressed: list[Any] = []
    signal.signal(signal.SIGINT, lambda *interrupt: pressed.append(interrupt))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if pressed:
            signal.raise_signal(signal.SIGINT)


def _new_locks() -> None:
    """In a forked child no other thread waits."""
    global _next
    _next = threading.Lock()
    _leave()


os.register_at_fork(before=_enter, after_in_parent=_leave, after_in_child=_new_locks)
