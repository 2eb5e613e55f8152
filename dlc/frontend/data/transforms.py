"""Transforms of a batch's inputs: what they are, and those without chance.

A transform works on a whole batch; one with chance takes its numbers from the `Draws` it is given,
so that what it does to a sample is decided by seed, epoch and sample alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from dlc.errors import ArgumentError, DTypeError, ShapeError, explain
from dlc.frontend.data.chance import Array, Chance, Draws


class Transform(ABC):
    """A change of a batch's inputs."""

    @abstractmethod
    def apply(self, inputs: Array, draws: Draws) -> Array:
        """The inputs changed; those given stay as they are.

        Parameters
        ----------
        inputs : array
            (N, ...); images are (N, C, H, W).
        draws : Draws
            Random numbers for these N samples.

        Returns
        -------
        array
            (N, ...).
        """

    def __call__(self, inputs: Any, seed: int = 0, epoch: int = 0) -> Array:
        """Apply it to a batch by itself: the samples count as those from 0 to N - 1."""
        inputs = np.asarray(inputs)
        return run(self, inputs, Chance(seed, epoch).draws(np.arange(len(inputs))))


#: A transform, or a function of a batch's inputs.
AnyTransform: TypeAlias = Transform | Callable[[Array], Array]


def run(transform: AnyTransform, inputs: Array, draws: Draws) -> Array:
    """Apply a transform or a function, and see that it returns as many samples as it got."""
    if isinstance(transform, Transform):
        result = transform.apply(inputs, draws)
    else:
        result = np.asarray(transform(inputs))
    if result.shape[:1] != inputs.shape[:1]:
        got = f"{result.shape} for {inputs.shape}"
        raise ShapeError(explain(f"{transform!r}", "to return as many samples as it gets", got))
    return result


class Compose(Transform):
    """Transforms one after the other.

    Parameters
    ----------
    transforms : sequence of Transform or callable
    """

    def __init__(self, transforms: Sequence[AnyTransform], *more: AnyTransform):
        listed = isinstance(transforms, Sequence) and not more
        if not (listed and all(map(callable, transforms))):
            given = [*transforms] if listed else [transforms, *more]
            expected, got = "a list of transforms or callables", ", ".join(map(repr, given))
            advice = f"Write Compose([{got}])." if all(map(callable, given)) else ""
            raise ArgumentError(explain("Compose", expected, got, advice=advice))
        self.transforms = tuple(transforms)

    def apply(self, inputs: Array, draws: Draws) -> Array:
        """All of them, in order."""
        for transform in self.transforms:
            inputs = run(transform, inputs, draws)
        return inputs

    def __repr__(self) -> str:
        return f"Compose([{', '.join(map(repr, self.transforms))}])"


@dataclass(frozen=True)
class ToFloat(Transform):
    """Unsigned integers as float32 from 0 to 1; floats stay as they are."""

    def apply(self, inputs: Array, draws: Draws) -> Array:
        """Divided by the largest value of their type."""
        if inputs.dtype.kind == "f":
            return inputs
        if inputs.dtype.kind != "u":
            raise DTypeError(explain("ToFloat", "unsigned integers or floats", str(inputs.dtype)))
        return inputs.astype(np.float32) / np.float32(np.iinfo(inputs.dtype).max)


@dataclass(frozen=True)
class Normalize(Transform):
    """Subtract a mean and divide by a standard deviation, a channel (axis 1) at a time.

    Parameters
    ----------
    mean, std : float or sequence of float
        One for all channels, or one a channel; each standard deviation above 0.
    """

    mean: Any
    std: Any

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            given = getattr(self, name)
            try:
                numbers = np.atleast_1d(np.asarray(given, np.float64))
            except (TypeError, ValueError):
                numbers = np.array([np.nan])
            if numbers.ndim != 1 or not np.isfinite(numbers).all():
                raise ArgumentError(explain(f"Normalize's {name}", "finite numbers", repr(given)))
            object.__setattr__(self, name, tuple(numbers.tolist()))
        if min(self.std) <= 0:
            raise ArgumentError(explain("Normalize's std", "numbers above 0", str(self.std)))

    @classmethod
    def fit(cls, data: Any) -> Normalize:
        """Means and standard deviations of a data set's inputs, those of training usually.

        Parameters
        ----------
        data : Dataset, array or tuple of arrays
            Its inputs are floats, (N, C, ...). What is constant gets a standard deviation of 1.
        """
        from dlc.frontend.data.dataset import as_dataset

        dataset = as_dataset(data)
        count, mean, squares = 0, np.zeros(1), np.zeros(1)
        for start in range(0, len(dataset), 1024):
            inputs = dataset[start : start + 1024][0]
            check_floats(inputs, "Normalize.fit", 2)
            values = np.moveaxis(inputs, 1, -1).reshape(-1, inputs.shape[1]).astype(np.float64)
            # Chan, Golub and LeVeque's way to put two samples together: nothing cancels.
            own = values.mean(0)
            share = len(values) / (count + len(values))
            squares = squares + ((values - own) ** 2).sum(0) + (own - mean) ** 2 * count * share
            count, mean = count + len(values), mean + (own - mean) * share
        std = np.sqrt(squares / count)
        return cls(mean, np.where(std > 0, std, 1.0))

    def apply(self, inputs: Array, draws: Draws) -> Array:
        """(inputs - mean) / std."""
        mean, std = self._numbers(inputs)
        return (inputs - mean) / std

    def undo(self, inputs: Array) -> Array:
        """The inputs that `apply` made these of, but for rounding."""
        mean, std = self._numbers(inputs)
        return inputs * std + mean

    def _numbers(self, inputs: Array) -> list[Array]:
        """Mean and standard deviation in the inputs' element type, along their axis 1."""
        check_floats(inputs, "Normalize", 2)
        channels = inputs.shape[1]
        if not {len(self.mean), len(self.std)} <= {1, channels}:
            got = f"inputs of shape {inputs.shape}"
            numbers = max(len(self.mean), len(self.std))
            raise ShapeError(explain("Normalize", f"{numbers} channels along axis 1", got))
        shape = (-1,) + (1,) * (inputs.ndim - 2)
        return [np.asarray(n, inputs.dtype).reshape(shape) for n in (self.mean, self.std)]


def check_floats(inputs: Array, whose: str, axes: int) -> None:
    """Refuse inputs that are no floats, or have fewer axes."""
    if inputs.dtype.kind != "f":
        advice = "Put ToFloat() before it."
        raise DTypeError(explain(whose, "floats", str(inputs.dtype), advice=advice))
    if inputs.ndim < axes:
        raise ShapeError(explain(whose, f"inputs of {axes} or more axes", str(inputs.shape)))
