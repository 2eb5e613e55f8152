"""How dlc writes files: whole or not at all.

Whoever is stopped in the midst, or runs out of space, leaves what was there before, and no half of
a file under its name.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["whole"]


@contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A name beside ``path``, of the same ending, to write a file under; it then takes its own."""
    final = Path(path)
    aside = final.with_name(f".{os.getpid()}.{final.name}")
    try:
        yield aside
        os.replace(aside, final)
    finally:
        aside.unlink(missing_ok=True)
