"""What is refused before anything is trained: parts that do not fit, numbers out of range, batches
that are none.

An error where something is given says more than one at the first step.
"""

from __future__ import annotations

import inspect
import json
import reprlib
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from dlc.errors import ArgumentError, ShapeError, explain
from dlc.frontend import nn, optim
from dlc.frontend.module import Module
from dlc.frontend.numeric import check_whole
from dlc.runtime.threads import count

Array: TypeAlias = "np.ndarray[Any, Any]"


def check_parts(model: Any, loss: Any, optimizer: Any) -> None:
    """Refuse what is no model, no loss or no optimiser.

    Raises
    ------
    ArgumentError
    """
    classes = [each.__name__ for each in (model, loss, optimizer) if isinstance(each, type)]
    if classes:
        expected, advice = "an instance", f"Make one: {classes[0]}(...)."
        got = f"the class {classes[0]}"
    elif not isinstance(model, Module):
        expected, got = "a model, a dlc Module, first", f"a {type(model).__name__}"
        advice = "dlc.nn has the layers of torch.nn."
    elif of_torch := _name_in_torch(loss):
        expected, got = "a loss of dlc", f"PyTorch's {of_torch}"
        advice = f"Use dlc.nn.{of_torch}." if of_torch in nn.__all__ else "dlc.nn has losses."
    elif not callable(loss):
        expected, got, advice = "a loss(output, target)", repr(loss), "Such as nn.MSELoss()."
    elif not isinstance(optimizer, optim.Optimizer):
        of_torch = _name_in_torch(optimizer)
        got = f"PyTorch's {of_torch}" if of_torch else reprlib.repr(optimizer)
        expected, advice = "an optimizer of dlc.optim", "Such as optim.AdamW(lr=1e-3)."
    else:
        return
    raise ArgumentError(explain("training", expected, got, advice=advice))


def check_notes(notes: Mapping[str, Any]) -> None:
    """Refuse notes that a checkpoint cannot keep.

    Raises
    ------
    ArgumentError
    """
    for name, value in notes.items():
        try:
            json.dumps({name: value})
        except (TypeError, ValueError) as error:
            expected, got = "what JSON holds: numbers, strings, lists, dicts", f"other: {error}"
            raise ArgumentError(explain(f"trainer.notes[{name!r}]", expected, got)) from None


def _name_in_torch(part: Any) -> str:
    """The name of an object or a function that is PyTorch's; empty for another."""
    kind = part if inspect.isroutine(part) else type(part)
    whose = (getattr(kind, "__module__", None) or "").partition(".")[0]
    return kind.__name__ if whose == "torch" else ""


def check_numbers(threads: Any, max_batch: Any = None, **bounds: Any) -> None:
    """Refuse numbers of threads or samples, or bounds on gradients, that are none.

    Raises
    ------
    ArgumentError
    """
    count(threads)
    if max_batch is not None:
        check_whole("max_batch", max_batch)
    for name, bound in bounds.items():
        number = isinstance(bound, (int, float, np.number))
        if bound is not None and not (number and bound >= 0):
            raise ArgumentError(explain(name, "a number of at least 0", repr(bound)))


def check_batch(batch: tuple[Any, ...]) -> tuple[Array, ...]:
    """The arrays of a batch: inputs and a target, with as many samples each, and some.

    Raises
    ------
    ArgumentError, ShapeError
        There is no target, or the arrays have no samples, or not as many.
    """
    if len(batch) < 2:
        got = f"{len(batch)} array{'s' * (len(batch) != 1)}"
        raise ArgumentError(explain("a batch", "inputs and then a target", got))
    arrays = tuple(map(np.asarray, batch))
    lengths = {array.shape[0] if array.ndim else 0 for array in arrays}
    if len(lengths) > 1 or not lengths.pop():
        expected = "inputs and a target with as many samples each, at least one"
        got = " and ".join(str(array.shape) for array in arrays)
        raise ShapeError(explain("a batch", expected, got))
    return arrays


def check_inputs(model: Module, inputs: int, whose: str) -> None:
    """Refuse batches with more or fewer arrays than a model takes, and a target.

    Raises
    ------
    ArgumentError
    """
    least, most = takes(model)
    if least <= inputs <= most:
        return
    names = [each.name for each in _positional(model)]
    expected = f"{', '.join(names) or 'an input'} of {type(model).__name__}.forward, and a target"
    got = f"{inputs + 1} arrays, of which the last is the target"
    raise ArgumentError(explain(whose, expected, got))


def takes(model: Module) -> tuple[int, float]:
    """With how many arrays a model is called, at least and at most: the least are the arguments of
    `forward` that have no default.
    """
    plain = _positional(model)
    kinds = {each.kind for each in inspect.signature(model.forward).parameters.values()}
    most = float("inf") if inspect.Parameter.VAR_POSITIONAL in kinds else len(plain)
    return max(1, sum(each.default is each.empty for each in plain)), max(1, most)


def _positional(model: Module) -> list[inspect.Parameter]:
    arguments = inspect.signature(model.forward).parameters.values()
    return [each for each in arguments if each.kind <= each.POSITIONAL_OR_KEYWORD]
