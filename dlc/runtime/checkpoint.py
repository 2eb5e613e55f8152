"""Checkpoints: named arrays and notes in one safetensors file, whole or not at all.

The file is written aside, brought to the disk and renamed, so that whoever is killed at any moment,
or runs out of space, leaves the last one that was complete. It holds a digest of all its content:
nobody goes on from a damaged one.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any, TypeAlias

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from dlc.errors import CheckpointError, ExecutionError, explain
from dlc.files import destination, kind

Array: TypeAlias = "np.ndarray[Any, Any]"
#: The entries of the file's metadata that hold the notes, as JSON, and the digest of all content.
NOTES, DIGEST = "dlc", "blake2b"


def write(
    path: str | os.PathLike[str], arrays: Mapping[str, Array], notes: Mapping[str, Any]
) -> None:
    """Write a checkpoint.

    Parameters
    ----------
    path : path
        A file that exists is replaced, of a symbolic link the file that it links to; the folder
        must exist.
    arrays : mapping of str to array
    notes : mapping
        What JSON holds.

    Raises
    ------
    ExecutionError
        The file cannot be written (no space, no permission, no regular file of that name); an older
        one is as it was.
    """
    own = {n: np.asarray(a, order="C") for n, a in arrays.items()}
    text = json.dumps(notes)
    content = save(own, {NOTES: text, DIGEST: _digest(own, text)})
    try:
        final = destination(path)
        folder, name = os.path.split(final)
        aside = os.path.join(folder, f".{name}.partial")
        with _mine(aside) as file:
            try:
                file.truncate(0)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                os.replace(aside, final)
            except OSError:
                os.unlink(aside)
                raise
        _settle(folder)
    except OSError as error:
        raise ExecutionError(
            f"cannot write the checkpoint {os.fspath(path)!r}: {error.strerror or error}; what was "
            "there before is unchanged"
        ) from error


@contextmanager
def _mine(aside: str) -> Iterator[IO[bytes]]:
    """The file to write aside, which no other run writes meanwhile.

    One name for all runs leaves nothing behind when one is killed; so they take turns. Who waited
    may have opened what has another name by now, or none, and opens it anew.
    """
    while True:
        with open(aside, "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # until the file is closed
            if _is_at(file, aside):
                yield file
                return


def _is_at(file: IO[bytes], path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _digest(arrays: Mapping[str, Array], notes: str) -> str:
    digest = hashlib.blake2b(notes.encode(), digest_size=16)
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return digest.hexdigest()


def _settle(folder: str) -> None:
    """Bring a folder's new names to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Array], dict[str, Any]]:
    """The arrays and the notes of a checkpoint.

    Raises
    ------
    CheckpointError
        There is none, it is truncated or damaged, or no checkpoint.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        got = kind(path) or "no file of that name"
        raise CheckpointError(explain(repr(path), "a checkpoint", got))
    try:
        with safe_open(path, framework="numpy") as file:
            known = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(
            f"{path!r} is no complete checkpoint: {error}; use an older one"
        ) from None
    if NOTES not in known:
        advice = "Files of weights are read by dlc.load_weights."
        raise CheckpointError(
            explain(repr(path), "a checkpoint", "a file of weights", advice=advice)
        )
    if _digest(arrays, known[NOTES]) != known.get(DIGEST):
        advice = "Use an older one: what it holds is not what was saved."
        raise CheckpointError(
            explain(repr(path), "a whole checkpoint", "a damaged one", advice=advice)
        )
    return arrays, json.loads(known[NOTES])
