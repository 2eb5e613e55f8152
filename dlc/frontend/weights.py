"""Weights in files: a state dict as safetensors, which PyTorch's tools read and write too.

A file is written beside its final name and renamed, so that a full disk or a crash leaves the old
file whole; a file is checked against the model before any of the model changes.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypeVar

import numpy as np
from safetensors import SafetensorError, deserialize, safe_open
from safetensors.numpy import save_file

from dlc.errors import ExecutionError, WeightsError, explain
from dlc.files import destination, to_disk
from dlc.frontend import init
from dlc.frontend.module import LoadResult, Module

#: A path of a safetensors file, a state dict, or None for random values.
Weights: TypeAlias = str | os.PathLike[str] | Mapping[str, Any] | None

Array: TypeAlias = np.ndarray[Any, Any]

#: What a checkpoint of training has among its metadata, and a file of weights has not.
CHECKPOINT = "dlc"

M = TypeVar("M", bound=Module)


def save_weights(model: Module, path: str | os.PathLike[str]) -> None:
    """Write a model's state dict to a safetensors file, whole or not at all.

    Parameters
    ----------
    model : Module
    path : path
        A file that exists is replaced, of a symbolic link the file that it links to; the folder
        must exist.

    Raises
    ------
    ExecutionError
        The file cannot be written (no space, no permission, no regular file of that name); an older
        one is as it was.
    """
    try:
        final = destination(path)
        folder, name = os.path.split(final)
        with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=folder) as aside:
            written = os.path.join(aside, name)
            save_file(model.state_dict(), written)
            os.chmod(written, _ordinary_mode(aside))
            to_disk(written)
            os.replace(written, final)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ExecutionError(
            f"cannot write the weights to {os.fspath(path)!r}: {reason}; what was there before is "
            "unchanged"
        ) from error


def _ordinary_mode(folder: str) -> int:
    """The permissions that the process's umask gives a new file; safetensors gives none to others.

    Read off a file, because to ask for the umask is to change it, for every thread.
    """
    with open(os.path.join(folder, "empty"), "wb") as file:
        return stat.S_IMODE(os.fstat(file.fileno()).st_mode)


def load_weights(model: Module, path: str | os.PathLike[str], strict: bool = True) -> LoadResult:
    """Load a safetensors file into a model.

    Parameters
    ----------
    model : Module
    path : path
    strict : bool
        Refuse names that are missing or unexpected.

    Returns
    -------
    LoadResult
        ``missing_keys`` and ``unexpected_keys``.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    WeightsError
        It is no complete safetensors file, or does not fit the model; nothing was loaded.
    """
    return model.load_state_dict(read_weights(path), strict)


def read_weights(path: str | os.PathLike[str]) -> dict[str, Array]:
    """The arrays of a safetensors file, by name; bfloat16, which NumPy lacks, as float32.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    WeightsError
        It is no complete safetensors file, a checkpoint of training, or holds an element type
        below 16 bits.
    """
    path = os.fspath(path)
    if os.path.isdir(path):
        raise WeightsError(explain("load_weights", "a safetensors file", f"the folder {path!r}"))
    try:
        with safe_open(path, framework="numpy") as file:
            if CHECKPOINT in (file.metadata() or {}):
                advice = (
                    "Trainer.resume goes on from it; dlc.save_weights(trainer.model, path) then "
                    "writes weights alone."
                )
                expected, got = "a file of weights", "a checkpoint of training"
                raise WeightsError(explain(repr(path), expected, got, advice=advice))
            types = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
            if small := [f"{n} ({t})" for n, t in types.items() if t.startswith(("F8", "F4"))]:
                listed = ", ".join(small)
                raise WeightsError(f"{path!r} has element types that dlc does not read: {listed}")
            arrays = _bfloat16_arrays(path) if "BF16" in types.values() else {}
            return arrays | {n: file.get_tensor(n) for n in types if n not in arrays}
    except SafetensorError as error:
        message = f"{path!r} is no complete safetensors file: {error}; copy or download it again"
        raise WeightsError(message) from None


def _bfloat16_arrays(path: str) -> dict[str, Array]:
    """The bfloat16 arrays of a file, widened: they are the upper halves of float32."""
    with open(path, "rb") as file:
        parts = deserialize(file.read())
    return {
        name: (np.frombuffer(part["data"], "<u2").astype("<u4") << 16)
        .view("<f4")
        .reshape(part["shape"])
        for name, part in parts
        if part["dtype"] == "BF16"
    }


def build(make: Callable[[], M], weights: Weights) -> M:
    """A model with weights from a file or a state dict; with random ones where none are given."""
    if weights is None:
        return make()
    with init.skip():
        model = make()
    if isinstance(weights, Mapping):
        model.load_state_dict(weights)
    else:
        load_weights(model, weights)
    return model
