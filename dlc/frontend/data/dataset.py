"""Data sets: samples with numbers from 0, taken a batch at a time.

A batch is what everything works on, because one NumPy call for 64 samples costs little more than
for one.
"""

from __future__ import annotations

import builtins
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from dlc.errors import ArgumentError, DTypeError, IndexError, ShapeError, explain
from dlc.frontend.data.chance import Array, Chance
from dlc.frontend.data.transforms import AnyTransform, run

if TYPE_CHECKING:
    from dlc.frontend.data.loader import Batches

#: What stands for a data set: one, a tuple of arrays, an array, or what PyTorch takes for one.
Data: TypeAlias = Any

NO_CHANCE = Chance()


class Dataset(ABC):
    """Samples that are taken a batch at a time.

    A subclass gives `__len__` and `take`, and sets `classes` where its labels have names.
    """

    #: Names of the classes, by label; empty where labels have none.
    classes: tuple[str, ...] = ()

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples."""

    @abstractmethod
    def take(self, indices: Array, chance: Chance = NO_CHANCE) -> tuple[Array, ...]:
        """A batch: fresh arrays, usually inputs and labels, whose first axis goes over samples.

        Parameters
        ----------
        indices : array of int64
            (N,), from 0 to ``len(self) - 1``, in any order.
        chance : Chance
            Where transforms draw their numbers from.

        Returns
        -------
        tuple of arrays
            Each (N, ...).
        """

    @property
    def targets(self) -> Array:
        """The labels of all samples: the last array."""
        return self[:][-1]

    def transform(self, *transforms: AnyTransform) -> Dataset:
        """This data set with transforms of its inputs, the first array of each batch.

        Parameters
        ----------
        *transforms : Transform or callable
            Applied in order, where batches are prepared. A callable takes the batch's inputs,
            (N, ...), and returns as many.
        """
        return Transformed(self, transforms)

    def subset(self, indices: object) -> Dataset:
        """The samples with these numbers: integers, a slice or a mask."""
        return Subset(self, positions(indices, len(self)))

    def split(self, *parts: float, stratify: bool = False, seed: int = 0) -> tuple[Dataset, ...]:
        """Parts that have no sample in common; see `dlc.data.split`."""
        from dlc.frontend.data.splits import split

        return split(self, *parts, stratify=stratify, seed=seed)

    def batches(self, batch_size: int = 1, **options: Any) -> Batches:
        """Batches of this data set; see `dlc.data.batches`."""
        from dlc.frontend.data.loader import Batches

        return Batches(self, batch_size, **options)

    def __getitem__(self, index: object) -> tuple[Array, ...]:
        """A sample, for an integer; otherwise the batch of a slice, of integers or of a mask."""
        numbers = positions(index, len(self))
        arrays = self.take(numbers.reshape(-1))
        return arrays if numbers.ndim else tuple(array[0] for array in arrays)

    def __repr__(self) -> str:
        kinds = [f"{array.dtype} {array.shape}" for array in self[0]]
        classes = f"; {len(self.classes)} classes" if self.classes else ""
        return f"{type(self).__name__}({len(self)} samples of {', '.join(kinds)}{classes})"


class ArrayDataset(Dataset):
    """Samples from arrays: the n-th sample is the n-th entry of each.

    Parameters
    ----------
    *arrays : array
        Each (N, ...), with one N; usually inputs and labels. Anything that `np.asarray` takes,
        torch tensors and memory maps included. They are not copied.
    classes : sequence of str
        Names of the classes, by label.

    Raises
    ------
    ShapeError
        Lengths differ, an array has no samples, or has no axis.
    """

    def __init__(self, *arrays: Any, classes: Sequence[str] = ()):
        if not arrays:
            raise ArgumentError(explain("ArrayDataset", "one array or more", "none"))
        self.arrays: tuple[Array, ...] = tuple(map(np.asanyarray, arrays))
        self.classes = tuple(classes)
        shapes = ", ".join(str(array.shape) for array in self.arrays)
        if not all(array.ndim and len(array) for array in self.arrays):
            raise ShapeError(explain("ArrayDataset", "arrays of one sample or more", shapes))
        if len({len(array) for array in self.arrays}) > 1:
            message = explain("ArrayDataset", "arrays with one number of samples", shapes)
            raise ShapeError(f"{message}. The first axis goes over samples.")
        for array in self.arrays:
            refuse_objects(array, "ArrayDataset")

    def __len__(self) -> int:
        return len(self.arrays[0])

    def take(self, indices: Array, chance: Chance = NO_CHANCE) -> tuple[Array, ...]:
        """The entries with these numbers."""
        return tuple(np.asarray(array[indices]) for array in self.arrays)

    @property
    def targets(self) -> Array:
        """The last array."""
        return self.arrays[-1]


class Subset(Dataset):
    """Some samples of a data set, in a given order."""

    def __init__(self, source: Dataset, indices: Array):
        if not indices.size:
            raise ShapeError(explain("a subset", "one sample or more", "none"))
        self.source, self.indices = source, indices.reshape(-1)
        self.classes = source.classes

    def __len__(self) -> int:
        return len(self.indices)

    def take(self, indices: Array, chance: Chance = NO_CHANCE) -> tuple[Array, ...]:
        """What the source has at these places of the subset."""
        return self.source.take(self.indices[indices], chance)

    @property
    def targets(self) -> Array:
        """The labels of the samples chosen."""
        return np.asarray(self.source.targets)[self.indices]


class Transformed(Dataset):
    """A data set whose inputs go through transforms."""

    def __init__(self, source: Dataset, transforms: Sequence[AnyTransform]):
        for transform in transforms:
            if not callable(transform):
                raise ArgumentError(
                    explain("transform", "transforms or callables", repr(transform))
                )
        self.source, self.transforms = source, tuple(transforms)
        self.classes = source.classes

    def __len__(self) -> int:
        return len(self.source)

    def take(self, indices: Array, chance: Chance = NO_CHANCE) -> tuple[Array, ...]:
        """What the source has, its first array transformed."""
        inputs, *rest = self.source.take(indices, chance.deeper())
        draws = chance.draws(indices)
        for transform in self.transforms:
            inputs = run(transform, inputs, draws)
        return (np.ascontiguousarray(inputs), *rest)

    @property
    def targets(self) -> Array:
        """The labels of the source, which transforms leave alone."""
        return self.source.targets


class SampleDataset(Dataset):
    """What PyTorch calls a map-style data set: an object with `__len__` and `__getitem__`.

    Parameters
    ----------
    source : object
        ``source[n]`` is a tuple of arrays and numbers, or one of them; samples agree in shapes.
    """

    def __init__(self, source: Any):
        if not len(source):
            raise ShapeError(explain("a data set", "one sample or more", "none"))
        self.source = source
        self.classes = tuple(getattr(source, "classes", ()))

    def __len__(self) -> int:
        return len(self.source)

    def take(self, indices: Array, chance: Chance = NO_CHANCE) -> tuple[Array, ...]:
        """The samples, one by one, stacked."""
        rows = [self.source[number] for number in indices.tolist()]
        rows = [row if isinstance(row, (tuple, list)) else (row,) for row in rows]
        if len(lengths := {len(row) for row in rows}) > 1:
            got = " and ".join(map(str, sorted(lengths)))
            raise ShapeError(explain("a batch", "samples of one number of arrays", got))
        return tuple(stack([np.asarray(v) for v in column], indices) for column in zip(*rows))


def as_dataset(data: Data) -> Dataset:
    """A data set from what stands for one.

    Parameters
    ----------
    data : Dataset, array, tuple of arrays, or map-style data set
        A tuple holds arrays of all samples, such as (images, labels). Any other object with
        ``__len__`` and ``__getitem__``, a list too, holds samples, as in PyTorch.

    Raises
    ------
    DTypeError
        It is none of these.
    """
    if isinstance(data, Dataset):
        return data
    if isinstance(data, tuple):
        return ArrayDataset(*data)
    if isinstance(data, np.ndarray):
        return ArrayDataset(data)
    by_name = isinstance(data, (str, Mapping))
    if hasattr(data, "__len__") and hasattr(data, "__getitem__") and not by_name:
        return SampleDataset(data)
    expected = "a dlc.data.Dataset, a tuple of arrays, or an object with __len__ and __getitem__"
    advice = "Give its arrays, (images, labels)." if isinstance(data, Mapping) else ""
    raise DTypeError(explain("data", expected, type(data).__name__, advice=advice))


def positions(index: Any, count: int) -> Array:
    """Numbers of samples, from 0, of anything that indexes: () for an integer, else (N,)."""
    chosen = index if isinstance(index, slice) else np.asarray(index)
    if isinstance(chosen, np.ndarray):
        if chosen.size == 0 and chosen.dtype.kind == "f":
            chosen = chosen.astype(np.int64)  # an empty list has no type of its own
        if chosen.dtype.kind not in "iub"[: 2 + chosen.ndim] or chosen.ndim > 1:
            got = f"{chosen.dtype} {chosen.shape}"
            raise DTypeError(explain("a data set's index", "integers, a slice or a mask", got))
    try:
        return np.asarray(np.arange(count)[chosen])
    except builtins.IndexError as error:
        raise IndexError(
            f"the data set has {count} samples, from 0 to {count - 1}: {error}"
        ) from None


def stack(values: list[Array], indices: Array) -> Array:
    """The values of one field of all samples of a batch as one array."""
    for number, value in zip(indices, values, strict=True):
        refuse_objects(value, f"sample {number}")
        if value.shape != values[0].shape:
            got = f"{values[0].shape} in sample {indices[0]} and {value.shape} in sample {number}"
            advice = "Crop or pad them to one shape; arrays of all samples come as a tuple."
            raise ShapeError(explain("a batch", "samples of one shape", got, advice=advice))
    return np.stack(values)


def refuse_objects(array: Array, whose: str) -> None:
    """Refuse what is no array of numbers."""
    if array.dtype.kind not in "biuf":
        raise DTypeError(explain(whose, "numbers or bools", f"element type {array.dtype}"))
