"""Splits: the parts of a data set for training, validation and test.

A seed gives the same parts on every machine.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from dlc.errors import ArgumentError, ShapeError, explain
from dlc.frontend.data.chance import SPLIT, Array, permutation

if TYPE_CHECKING:
    from dlc.frontend.data.dataset import Data, Dataset


def split(data: Data, *parts: float, stratify: bool = False, seed: int = 0) -> tuple[Dataset, ...]:
    """Part a data set at random; a part keeps the order that its samples have in the whole.

    Parameters
    ----------
    data : Dataset, array, tuple of arrays or map-style data set
    *parts : float or int
        Fractions (0.8, 0.1), or counts (1000, 797). What they leave over is one part more.
    stratify : bool
        Give each part its share of each class: it differs from the exact share by fewer samples
        than there are other parts, so by less than 1 with two parts. The last array holds the
        classes.
    seed : int

    Returns
    -------
    tuple of Dataset

    Raises
    ------
    ArgumentError
        The parts are no fractions or counts, or add up to more than there is.
    ShapeError
        A part would be empty; `stratify` without labels.

    Examples
    --------
    >>> import numpy as np
    >>> train, test = split(np.arange(10), 0.8)
    >>> len(train), len(test)
    (8, 2)
    """
    from dlc.frontend.data.dataset import as_dataset

    dataset = as_dataset(data)
    sizes = part_sizes(len(dataset), parts)
    order = permutation(len(dataset), seed, stream=SPLIT)
    groups = _by_class(order, dataset.targets, sizes) if stratify else _runs(order, sizes)
    return tuple(dataset.subset(np.sort(group)) for group in groups)


def part_sizes(count: int, parts: tuple[float, ...]) -> list[int]:
    """Number of samples in each part; they add up to `count`."""
    given = ", ".join(map(str, parts))
    fractions = all(isinstance(part, float) and 0 < part < 1 for part in parts)
    counts = all(isinstance(part, (int, np.integer)) and part > 0 for part in parts)
    if not parts or not (fractions or counts) or bool in map(type, parts):
        expected = "fractions between 0 and 1, or counts above 0"
        raise ArgumentError(explain("split", expected, given or "nothing"))
    whole = 1 if fractions else count
    left = whole - sum(parts)
    if left < -1e-9:
        raise ArgumentError(explain("split", f"parts that are at most {whole} together", given))
    ends = np.rint(np.cumsum(parts) * (count / whole)).astype(int).tolist()
    ends += [count] if left > 1e-9 else []
    sizes = [end - start for start, end in pairwise([0, *ends])]
    if 0 in sizes:
        raise ShapeError(f"split({given}) of {count} samples leaves a part empty: {sizes}")
    return sizes


def _runs(order: Array, sizes: list[int]) -> list[Array]:
    return np.split(order, np.cumsum(sizes)[:-1])


def _by_class(order: Array, labels: Array, sizes: list[int]) -> list[Array]:
    """Parts with equal shares of each class.

    With the samples sorted by class, a part takes every so many-th of those that are left: n of m
    at the steps of floor(i n / m), so that any run of k, a class too, gives it k n / m but for less
    than 1.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "biu":
        got = f"{labels.dtype} {labels.shape}"
        expected = "integer labels (N,) as the last array"
        raise ShapeError(explain("split with stratify", expected, got))
    left = order[np.argsort(labels[order], kind="stable")]
    groups = []
    for size in sizes:
        steps = np.arange(len(left) + 1) * size // len(left)
        taken = np.diff(steps) > 0
        groups.append(left[taken])
        left = left[~taken]
    return groups
