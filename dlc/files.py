"""How dlc writes files: whole or not at all.

Whoever is stopped in the midst, or runs out of space, leaves what was there before, and no half of
a file under its name.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["destination", "kind", "to_disk", "whole"]

#: What a path may name beside a regular file, in words.
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}


@contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A name beside ``path``, of the same ending, to write a file under; it then takes its own.

    Raises
    ------
    OSError
        There is something at ``path`` that is no file, or the file cannot be written.
    """
    final = Path(destination(path))
    aside = final.with_name(f".{os.getpid()}.{final.name}")
    try:
        yield aside
        os.replace(aside, final)
    finally:
        aside.unlink(missing_ok=True)


def destination(path: str | os.PathLike[str]) -> str:
    """The absolute path of the file that takes a name: of a symbolic link, what it links to.

    A file that is renamed takes the place of whatever is there, of a device too; so only a regular
    file may be there.

    Raises
    ------
    OSError
        It is a folder, a device, a pipe or a socket.
    """
    final = os.path.realpath(path)
    if found := kind(final):
        raise OSError(errno.EINVAL, f"it is {found}, no regular file", os.fspath(path))
    return final


def to_disk(path: str | os.PathLike[str]) -> None:
    """Wait until a file's bytes are on the disk: only then may it take another's name."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def kind(path: str | os.PathLike[str]) -> str:
    """What is at a path that is no regular file, in words; empty for a file, and for nothing."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return ""
    return "" if stat.S_ISREG(mode) else KINDS.get(stat.S_IFMT(mode), "of a strange kind")
