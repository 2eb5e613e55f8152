"""The door to LLVM and Numba: one thread at a time, never open across a fork, imports whole.

A fork copies locks as they are, and one that another thread held stays locked in the child for
ever; so a fork waits until nobody is inside. An import that Ctrl-C breaks off leaves a package half
loaded, which fails from then on; so Ctrl-C waits until it is done.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_inside = threading.RLock()


@contextmanager
def exclusive() -> Iterator[None]:
    """Call LLVM or Numba within this block, or in a function that it decorates."""
    with _inside:
        yield


@contextmanager
def importing() -> Iterator[None]:
    """Import LLVM, Numba, or modules that do, within this block."""
    with _inside, _uninterrupted():
        yield


@contextmanager
def _uninterrupted() -> Iterator[None]:
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


os.register_at_fork(
    before=_inside.acquire, after_in_parent=_inside.release, after_in_child=_inside.release
)
