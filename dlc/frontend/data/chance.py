"""Random numbers of data: order of samples, splits, augmentations, all from one counter.

A number depends on seed, epoch, sample and purpose, never on what was drawn before: an order is the
same on every machine, and a batch the same from whichever thread and after a stop in mid-epoch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from dlc.errors import ArgumentError, explain
from dlc.ops.random import philox

Array: TypeAlias = np.ndarray[Any, Any]

#: What a stream of numbers is for. Transforms have the streams from TRANSFORM on, one a data set.
ORDER, SPLIT, TRANSFORM = range(3)


@dataclass(frozen=True)
class Chance:
    """Where the random numbers of one epoch come from.

    Parameters
    ----------
    seed : int
        From 0 to 2**64 - 1.
    epoch : int
        From 0 to 2**32 - 1.
    depth : int
        How many data sets with transforms lie above the one that draws: each has its own numbers.
    """

    seed: int = 0
    epoch: int = 0
    depth: int = 0

    def draws(self, samples: Array) -> Draws:
        """The numbers for the transforms of these samples."""
        return Draws(self.seed, self.epoch, samples, TRANSFORM + self.depth)

    def deeper(self) -> Chance:
        """The numbers of the data set below."""
        return replace(self, depth=self.depth + 1)


class Draws:
    """Random numbers for the samples of a batch; each call gives the next ones.

    A sample's numbers do not depend on which samples are beside it.

    Parameters
    ----------
    seed, epoch : int
    samples : array of int
        (N,), the samples' positions in their data set.
    stream : int
        What the numbers are for.
    """

    def __init__(self, seed: int, epoch: int, samples: Array, stream: int):
        self._key = check_seed(seed)
        self._samples = np.asarray(samples, np.uint64).reshape(-1, 1)
        self._epoch = np.uint64(epoch)
        self._stream = np.uint64(stream)
        self._block = 0

    def __len__(self) -> int:
        return len(self._samples)

    def uniform(self, low: float = 0.0, high: float = 1.0, size: tuple[int, ...] = ()) -> Array:
        """Uniform numbers in [low, high]: float64, (N, *size)."""
        unit = (self.words(size) + 0.5) * 2.0**-32
        return low + (high - low) * unit

    def integers(self, low: int, high: int) -> Array:
        """Whole numbers from low to high, both included: int64, (N,)."""
        return low + (self.words(()) * np.uint64(high - low + 1) >> np.uint64(32)).astype(np.int64)

    def chance(self, p: float) -> Array:
        """True with probability p: bool, (N,)."""
        return self.uniform() < p

    def normal(self, size: tuple[int, ...] = ()) -> Array:
        """Standard normal numbers, by Box and Muller's transform: float32, (N, *size)."""
        count = math.prod(size)
        pairs = self.words((2, (count + 1) // 2)).astype(np.float32)
        pairs += np.float32(0.5)
        pairs *= np.float32(2.0**-32)
        radius = np.sqrt(-2 * np.log(pairs[:, 0]))
        angle = np.float32(2 * math.pi) * pairs[:, 1]
        both = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
        return both[:, :count].reshape(-1, *size)

    def words(self, size: tuple[int, ...]) -> Array:
        """32 random bits each: uint64, (N, *size)."""
        count = math.prod(size)
        blocks = np.arange(self._block, self._block + -(-count // 4), dtype=np.uint64)
        self._block += len(blocks)
        four = philox(self._key, (blocks, self._samples, self._epoch, self._stream))
        return np.stack(four, axis=-1).reshape(len(self), -1)[:, :count].reshape(-1, *size)


def permutation(count: int, seed: int, epoch: int = 0, stream: int = ORDER) -> Array:
    """A random order of `count` things: sorted by 64 random bits each.

    Returns
    -------
    array of int64
        (count,), each of 0 to count - 1 once.
    """
    high, low = Draws(seed, epoch, np.zeros(1), stream).words((count, 2))[0].T
    return np.argsort(high << np.uint64(32) | low, kind="stable")


def check_seed(seed: object) -> int:
    """Refuse what is not a whole number of 64 bits."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**64:
        raise ArgumentError(explain("seed", "an integer from 0 to 2**64 - 1", repr(seed)))
    return seed
