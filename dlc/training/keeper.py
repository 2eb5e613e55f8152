"""Checkpoints of a run: when they are due, where they may go, and whether one fits.

No run writes over the checkpoint of another: whoever forgets to resume would lose it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from typing import Any

from dlc.errors import ArgumentError, explain
from dlc.files import kind
from dlc.frontend.numeric import is_whole
from dlc.ir.sizes import shape_text
from dlc.training.checks import Array


class Keeper:
    """Saves checkpoints when they are due.

    Parameters
    ----------
    save : callable
        Writes a checkpoint to a path.
    own : collection of str
        Real paths of the run's own checkpoints, which it may replace.
    path : path or None
    every : int or None
        Steps from one to the next, beside those behind epochs.
    """

    def __init__(
        self, save: Callable[[Any], None], own: Collection[str], path: Any, every: int | None
    ):
        if every is not None and (path is None or not is_whole(every, 1)):
            expected = "an integer of at least 1, and a path for checkpoint"
            raise ArgumentError(explain("checkpoint_every", expected, repr(every)))
        if path is not None:
            _check_place(os.path.realpath(path), own, os.fspath(path))
        self._save, self._path, self._every = save, path, every

    def step(self, number: int) -> None:
        """So many steps are complete."""
        if self._every is not None and number % self._every == 0:
            self._save(self._path)

    def now(self) -> None:
        """An epoch is complete, or the run is to end."""
        if self._path is not None:
            self._save(self._path)


def _check_place(real: str, own: Collection[str], path: str) -> None:
    """Refuse a place where no file can be, or where one is that the run has not written."""
    if not os.path.isdir(folder := os.path.dirname(real)):
        raise ArgumentError(explain("checkpoint", "a path in a folder", f"no folder {folder}"))
    if strange := kind(real):
        raise ArgumentError(explain("checkpoint", "a file", f"{strange}, {path!r}"))
    if os.path.exists(real) and real not in own:
        raise ArgumentError(
            f"the checkpoint {path!r} exists, and is not this run's: go on from it with "
            "trainer.resume(path) before fit, name another file, or remove it"
        )


def differences(ours: Mapping[str, Array], theirs: Mapping[str, Array]) -> str:
    """Where the arrays of a checkpoint are others than those of the model, the first few."""
    here, there = _kinds(ours), _kinds(theirs)
    names = [name for name in {**here, **there} if here.get(name) != there.get(name)]
    told = [f"{n} is {here.get(n, 'not')} here and {there.get(n, 'not')} there" for n in names[:3]]
    more = [f"and {len(names) - 3} more"] if len(names) > 3 else []
    return "; ".join(told + more)


def _kinds(arrays: Mapping[str, Array]) -> dict[str, str]:
    """Element type and shape of each array, in words."""
    return {name: f"{array.dtype} {shape_text(array.shape)}" for name, array in arrays.items()}


def under(prefix: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """The arrays whose names begin so, by the rest of their names."""
    return {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
