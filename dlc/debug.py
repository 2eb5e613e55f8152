"""What dlc tells while it works: the rungs of `DLC_DEBUG`, as levels of standard logging.

Every part logs under its own name below ``dlc``, so that a program can listen with `logging` alone;
`setup` is for those who set the variable and want to read it on their terminal.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from dlc import config

__all__ = [
    "CHOICES",
    "IR",
    "LLVM",
    "REWRITES",
    "SOURCE",
    "SUMMARY",
    "TIMINGS",
    "setup",
    "timed",
]

#: The ladder from its first rung to its seventh: `logging.INFO` down to below `logging.DEBUG`.
SUMMARY, TIMINGS, CHOICES, SOURCE, IR, REWRITES, LLVM = LADDER = range(logging.INFO, 7, -2)


class _Terminal(logging.Handler):
    """Writes to what `sys.stderr` is at the time."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


_handler = _Terminal()
_handler.setFormatter(logging.Formatter("[%(name)s] %(message)s"))
_level_before: int | None = None  # of the logger, where `setup` has changed it


def setup() -> None:
    """Show as much as `DLC_DEBUG` says; called at the start of everything that takes long.

    A program that has set up logging keeps its own handlers; they get what the variable asks for.
    """
    global _level_before
    rung, root = config.get("debug"), logging.getLogger("dlc")
    if rung:
        _level_before = root.level if _level_before is None else _level_before
        root.setLevel(LADDER[rung - 1])
        if not root.hasHandlers():
            root.addHandler(_handler)
    elif _level_before is not None:
        root.setLevel(_level_before)
        root.removeHandler(_handler)
        _level_before = None


@contextmanager
def timed(logger: logging.Logger, what: str) -> Iterator[None]:
    """Tell on the rung of timings how long a block took."""
    start = time.perf_counter()
    yield
    logger.log(TIMINGS, "%8.2f ms  %s", 1e3 * (time.perf_counter() - start), what)
