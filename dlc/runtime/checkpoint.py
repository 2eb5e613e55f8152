"""Checkpoints: named arrays and notes in one safetensors file, whole or not at all.

The file is written aside, brought to the disk and renamed, so that whoever is killed at any moment,
or runs out of space, leaves the last one that was complete.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from dlc.errors import CheckpointError, ExecutionError, explain

Array: TypeAlias = "np.ndarray[Any, Any]"
#: The entry of the file's metadata that holds the notes, as JSON.
NOTES = "dlc"


def write(
    path: str | os.PathLike[str], arrays: Mapping[str, Array], notes: Mapping[str, Any]
) -> None:
    """Write a checkpoint.

    Parameters
    ----------
    path : path
        Replaced if it exists; its folder must exist.
    arrays : mapping of str to array
    notes : mapping
        What JSON holds.

    Raises
    ------
    ExecutionError
        The file cannot be written (no space, no permission); an older one is as it was.
    """
    path = os.path.abspath(os.fspath(path))
    folder, name = os.path.split(path)
    aside = os.path.join(folder, f".{name}.partial")
    content = save({n: np.asarray(a, order="C") for n, a in arrays.items()}, _metadata(notes))
    try:
        try:
            with open(aside, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
        except OSError:
            if os.path.exists(aside):
                os.unlink(aside)
            raise
        _settle(folder)
    except OSError as error:
        raise ExecutionError(
            f"cannot write the checkpoint {path!r}: {error}; what was there before is unchanged"
        ) from error


def _metadata(notes: Mapping[str, Any]) -> dict[str, str]:
    return {NOTES: json.dumps(notes)}


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
    FileNotFoundError
        There is no such file.
    CheckpointError
        It is truncated, or no checkpoint.
    """
    path = os.fspath(path)
    if os.path.isdir(path):
        raise CheckpointError(explain(repr(path), "a checkpoint", "a folder"))
    try:
        with safe_open(path, framework="numpy") as file:
            notes = (file.metadata() or {}).get(NOTES)
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(
            f"{path!r} is no complete checkpoint: {error}; use an older one"
        ) from None
    if notes is None:
        advice = "Files of weights are read by dlc.load_weights."
        raise CheckpointError(
            explain(repr(path), "a checkpoint", "a file of weights", advice=advice)
        )
    return arrays, json.loads(notes)
