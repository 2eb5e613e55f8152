"""Compiled kernels and plans on disk, each under the digest of all that went into it.

Compiling takes a thousand times as long as loading, but what is loaded is run: hence a directory
private to the user, a checksum over every entry, and files that appear whole or not at all. Any
trouble with the disk costs a recompilation and one warning, never a result.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import logging
import os
import stat
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache as memoize
from pathlib import Path

from dlc import config
from dlc.errors import ArgumentError, CacheError, CacheWarning, explain

__all__ = ["Cache", "CodeStore", "Stats", "Store", "code_version", "default", "digest"]

CHECKSUM = hashlib.sha256().digest_size  # an entry is the checksum, then the value
TEMPORARY = ".new-"
ABANDONED = 3600.0  # seconds after which a temporary file belongs to a process that died
KEPT = 0.75  # share of the limit that making room leaves, so that it is rarely needed

# What decides the bytes of an entry beside its key: the parts of dlc that generate them, and the
# packages that turn them into machine code, by the file that holds their version.
GENERATORS = ("ir", "ops", "passes", "backends", "runtime")
PACKAGES = (("numba", "_version.py"), ("llvmlite", "_version.py"), ("numpy", "version.py"))

log = logging.getLogger("dlc.cache")


@dataclass(frozen=True)
class Stats:
    """What is in a cache, and how it served this process.

    `entries` and `bytes` are counted in the directory; `hits` and `misses` are those since this
    `Cache` was made, and may lack a few where threads asked at once.
    """

    entries: int
    bytes: int
    hits: int
    misses: int
    path: str


class Cache:
    """A directory of checksummed entries, kept to a size, safe for many processes and threads.

    A directory that cannot be written or read, that belongs to another user or that others may
    write to, and a full disk, give one `CacheWarning`; after it, what cannot be stored is absent.

    Parameters
    ----------
    directory : str or Path, optional
        Where the entries are; made with mode 0700 when the first is written. The default is
        `DLC_CACHE_DIR`, or `$XDG_CACHE_HOME/dlc`, or `~/.cache/dlc`.
    limit : int, optional
        Bytes to which the entries are kept, by removing what was not used for longest; the default
        is `DLC_CACHE_SIZE`. A process counts what it writes itself, so that several together may
        exceed it for a while. 0 turns the cache off: nothing is read or written.
    """

    def __init__(self, directory: str | Path | None = None, limit: int | None = None) -> None:
        self.path = _default_path() if directory is None else os.path.abspath(directory)
        self.limit: int = config.get("cache_size") if limit is None else limit
        self._warned = False
        self._hits = self._misses = 0
        self._bytes: int | None = None  # what this process believes is there; None: not counted

    def get(self, key: str) -> bytes | None:
        """Return the value stored under `key`, or None.

        A damaged entry is removed and counts as absent.

        Parameters
        ----------
        key : str
            What `digest` returned.

        Raises
        ------
        ArgumentError
            When `key` has another form.
        """
        path = self._file(key)
        value = None
        try:
            value = self._read(path, key) if self._ready() else None
        except OSError as error:
            self._warn(f"it cannot be read: {error}")
        if value is None:
            self._misses += 1
        else:
            self._hits += 1
        return value

    def put(self, key: str, value: bytes) -> None:
        """Store `value` under `key`; other processes see all of it or nothing.

        Parameters
        ----------
        key : str
            What `digest` returned.
        value : bytes
            Of any length; one that exceeds the cache's limit is not stored, with a warning.

        Raises
        ------
        ArgumentError
            When `key` has another form.
        """
        path = self._file(key)
        if not self._ready(make=True):
            return
        size = CHECKSUM + len(value)
        if size > self.limit:
            return self._warn(f"an entry of {size} bytes exceeds its limit of {self.limit}")
        try:
            self._replace(path, _checksum(key, value) + value)
            self._make_room(path, size)
        except OSError as error:
            self._warn(f"it cannot be written: {error}")

    def get_or(self, key: str, make: Callable[[], bytes]) -> bytes:
        """Return the value under `key`; where it is absent, call `make` and store what it returns.

        Threads and processes that ask at once may each call `make`.
        """
        value = self.get(key)
        if value is None:
            value = make()
            self.put(key, value)
        return value

    def clear(self) -> None:
        """Remove every entry.

        Raises
        ------
        CacheError
            When the directory is not safe to use; see `check`.
        """
        if self.check():
            for entry in self._entries():
                _remove(entry.path)
        self._bytes = None

    def stats(self) -> Stats:
        """Return the number and size of the entries, and the hits and misses of this `Cache`."""
        sizes = [entry.size for entry in self._entries()] if self._ready() else []
        return Stats(len(sizes), sum(sizes), self._hits, self._misses, self.path)

    def check(self) -> bool:
        """Return whether the directory exists.

        Raises
        ------
        CacheError
            When it is no directory, belongs to another user, or others may write to it: whoever
            writes there decides what this process runs.
        """
        if not os.path.isabs(self.path):
            raise CacheError("the cache has no place: the user has no home; set DLC_CACHE_DIR")
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            return False
        others = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not others:
            return True
        raise CacheError(
            explain(
                "the cache",
                f"a directory of user {os.geteuid()} that nobody else may write to",
                f"{stat.filemode(found.st_mode)} of user {found.st_uid}",
                where=self.path,
                advice=(
                    f"Run `chmod 700 {self.path}` if it is yours, or set DLC_CACHE_DIR."
                    if stat.S_ISDIR(found.st_mode)
                    else "Move that file away, or set DLC_CACHE_DIR to a directory."
                ),
            )
        )

    def _ready(self, make: bool = False) -> bool:
        """Whether the directory may be used now; with `make`, it is made where absent."""
        if not self.limit:
            return False
        try:
            return self.check() or (make and self._make())
        except OSError as error:  # CacheError is one
            self._warn(str(error))
            return False

    def _make(self) -> bool:
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        with contextlib.suppress(FileExistsError):  # another process was faster
            os.mkdir(self.path, 0o700)
        return self.check()

    def _read(self, path: str, key: str) -> bytes | None:
        try:
            data = Path(path).read_bytes()
        except FileNotFoundError:
            return None
        value = data[CHECKSUM:]
        if data[:CHECKSUM] != _checksum(key, value):
            _remove(path)
            log.warning("removed a damaged entry of %d bytes: %s", len(data), path)
            return None
        with contextlib.suppress(OSError):  # on a read-only file system, times stay as they are
            os.utime(path)
        return value

    def _replace(self, path: str, data: bytes) -> None:
        """Write a file beside its place, then move it there in one step."""
        # Process numbers repeat across containers that share a home, hence a random name.
        temporary = os.path.join(self.path, TEMPORARY + os.urandom(16).hex())
        try:
            with open(temporary, "xb", buffering=0, opener=_private) as file:
                rest = memoryview(data)
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(file)  # a name must not reach the disk before its bytes
            os.rename(temporary, path)
        finally:
            _remove(temporary)  # it is gone already when all went well

    def _make_room(self, written: str, size: int) -> None:
        """Keep the books after a write; beyond the limit, remove entries, but never `written`."""
        believed = self._bytes  # read once: another thread may clear the cache meanwhile
        if believed is not None and believed + size <= self.limit:
            self._bytes = believed + size
            return
        entries = self._entries()  # others write and remove too: what is there decides
        total = sum(entry.size for entry in entries)
        if total > self.limit:
            for entry in sorted(entries, key=lambda entry: entry.used):
                if total > KEPT * self.limit and entry.path != written:
                    _remove(entry.path)
                    total -= entry.size
        self._bytes = total

    def _entries(self) -> list[_Entry]:
        """What is there now, with what processes that died left; others come and go meanwhile."""
        found = []
        abandoned = time.time() - ABANDONED
        with contextlib.suppress(FileNotFoundError), os.scandir(self.path) as files:
            for file in files:
                with contextlib.suppress(FileNotFoundError):
                    status = file.stat(follow_symlinks=False)
                    left = file.name.startswith(TEMPORARY) and status.st_mtime < abandoned
                    if left or _is_key(file.name):
                        found.append(_Entry(file.path, status.st_size, status.st_mtime_ns))
        return found

    def _file(self, key: str) -> str:
        if not _is_key(key):
            raise ArgumentError(explain("the cache", "a key made by cache.digest", repr(key)))
        return os.path.join(self.path, key)

    def _warn(self, reason: str) -> None:
        message = f"the cache {self.path} is not used, dlc compiles afresh each time: {reason}"
        log.info(message)
        if not self._warned:
            self._warned = True
            warnings.warn(message, CacheWarning, stacklevel=2)


@dataclass(frozen=True)
class _Entry:
    path: str
    size: int
    used: int  # nanoseconds of its last use


def default() -> Cache:
    """Return the cache that the options describe; the same object until they change."""
    return _shared(_default_path(), config.get("cache_size"))


@memoize
def _shared(path: str, limit: int) -> Cache:
    return Cache(path, limit)


def digest(*parts: bytes | str) -> str:
    """Return the key of a sequence of parts.

    Each part goes in with its type and length, so that `("ab", "c")` and `("a", "bc")` differ.

    Parameters
    ----------
    *parts : bytes or str

    Returns
    -------
    str
        64 hexadecimal digits: a SHA-256.
    """
    state = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        state.update(b"%c%d:" % (b"s" if isinstance(part, str) else b"b", len(data)))
        state.update(data)
    return state.hexdigest()


@memoize
def code_version() -> str:
    """Return the digest of what compiles: dlc's generators and the versions of what they use.

    Part of every key, so that a change of dlc, Numba, llvmlite, NumPy or Python never meets an old
    entry. Reads files only: importing `importlib.metadata` alone would take longer, Numba a second.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    root = Path(__file__).parent.parent
    sources = [file for part in GENERATORS for file in sorted((root / part).rglob("*.py"))]
    parts: list[bytes | str] = [sys.version]
    for file in sources:
        parts += [str(file.relative_to(root)), file.read_bytes()]
    for package, name in PACKAGES:
        spec = importlib.util.find_spec(package)  # finds it without importing it
        if spec is not None and spec.origin is not None:
            parts += [package, Path(spec.origin).with_name(name).read_bytes()]
    return digest(*parts)


def _default_path() -> str:
    """Where the options put the cache; not absolute if the user has no home."""
    chosen: str | None = config.get("cache_dir")
    if chosen is not None:
        return chosen
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # the standard says to ignore such a value
        base = os.path.expanduser("~/.cache")
    return os.path.join(base, "dlc")


def _checksum(key: str, value: bytes) -> bytes:
    """Over the key too, so that a renamed entry is a damaged one."""
    state = hashlib.sha256(key.encode())
    state.update(value)
    return state.digest()


def _is_key(name: str) -> bool:
    return len(name) == 64 and set(name) <= set("0123456789abcdef")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


class Store:
    """Where dlc's own code keeps what it has made from one compilation to the next; this one keeps
    nothing.
    """

    def get(self, parts: Sequence[object]) -> bytes | None:
        """What was made of ``parts``, anything with a `repr` that says all; None if nothing was."""

    def put(self, parts: Sequence[object], value: bytes) -> None:
        """Keep what was made of ``parts``."""

    def get_or(self, parts: Sequence[object], make: Callable[[], bytes]) -> bytes:
        """What was made of ``parts``, or what ``make`` gives, kept."""
        value = self.get(parts)
        if value is None:
            value = make()
            self.put(parts, value)
        return value


class CodeStore(Store):
    """A store in the default cache, keyed also by the code that makes what is in it."""

    def get(self, parts: Sequence[object]) -> bytes | None:
        return default().get(_key(parts))

    def put(self, parts: Sequence[object], value: bytes) -> None:
        default().put(_key(parts), value)


def _key(parts: Sequence[object]) -> str:
    return digest(code_version(), *(repr(part) for part in parts))
