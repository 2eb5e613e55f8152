"""Callbacks: who hears of each step and epoch of a training run, and may end it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from dlc.errors import ArgumentError, explain

if TYPE_CHECKING:
    from dlc.training.trainer import Trainer


class Callback:
    """What a training run tells; a subclass overrides what it wants to hear.

    ``trainer.stop = True`` ends the run behind the present step.
    """

    def on_epoch_start(self, trainer: Trainer) -> None:
        """Before the first step of an epoch."""

    def on_step_end(self, trainer: Trainer, figures: Mapping[str, float]) -> None:
        """Behind each step, with its loss and metrics."""

    def on_epoch_end(self, trainer: Trainer, figures: Mapping[str, Any]) -> None:
        """Behind each epoch, with its line of the history."""


def checked(callbacks: Any) -> tuple[Callback, ...]:
    """Callbacks, or one of them, as a tuple.

    Raises
    ------
    ArgumentError
        One is none, or a class.
    """
    told = tuple(callbacks) if isinstance(callbacks, Iterable) else (callbacks,)
    if wrong := [each for each in told if not isinstance(each, Callback)]:
        advice = "Derive from dlc.Callback, and pass an instance."
        expected = "instances of dlc.Callback"
        raise ArgumentError(explain("callbacks", expected, repr(wrong[0]), advice=advice))
    return told
