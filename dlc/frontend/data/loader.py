"""Batches: one pass over a data set after the other, shuffled, prepared in the background.

The order of an epoch is a function of seed and epoch, so that a position is two numbers, and
training resumes in the middle of an epoch with the very batches that were to come.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import closing
from typing import Any

import numpy as np

from dlc.errors import ArgumentError, ShapeError, explain
from dlc.frontend.data.ahead import ahead
from dlc.frontend.data.chance import Array, Chance, check_seed, permutation
from dlc.frontend.data.dataset import Data, as_dataset
from dlc.frontend.numeric import check_whole


class Batches:
    """Batches of a data set, prepared by a background thread; PyTorch's ``DataLoader``.

    Each iteration is an epoch and gives tuples of fresh arrays, (batch_size, ...). Leaving a loop
    ends its threads.

    Parameters
    ----------
    data : Dataset, array, tuple of arrays or map-style data set
    batch_size : int
        Samples in a batch; the last of an epoch may have fewer.
    shuffle : bool
        Another order in each epoch; the same for the same seed and epoch, on every machine.
    seed : int
        Of the order, and of the transforms' random numbers.
    drop_last : bool
        Leave out a last batch that is not full.
    workers : int
        Background threads. Batches do not depend on their number; 0 prepares each when it is asked
        for.
    prefetch : int
        Batches that are kept ready or under way, beside the one in use.

    Attributes
    ----------
    epoch : int
        The epoch that an iteration goes through; one that comes to its end adds 1.
    batch : int
        How many batches of that epoch have been given out.

    Raises
    ------
    ArgumentError
        An option is outside its domain.
    ShapeError
        There are no samples, or no batch is left after `drop_last`.
    """

    def __init__(
        self,
        data: Data,
        batch_size: int = 1,
        *,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        workers: int = 1,
        prefetch: int = 2,
    ):
        self.dataset = as_dataset(data)
        self.batch_size = check_whole("batch_size", batch_size)
        self.shuffle, self.seed, self.drop_last = bool(shuffle), check_seed(seed), bool(drop_last)
        self.workers = check_whole("workers", workers, 0)
        self.prefetch = check_whole("prefetch", prefetch)
        self.epoch = self.batch = 0
        self._resume = False  # does the next iteration begin at `batch`, or at the first one?
        self._latest: object = None
        if not len(self.dataset):
            raise ShapeError(explain("a data set", "one sample or more", "none"))
        if not len(self):
            message = explain(
                "drop_last", f"{self.batch_size} samples or more", f"{len(self.dataset)}"
            )
            raise ShapeError(f"{message}: no batch is left")

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        full, rest = divmod(len(self.dataset), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Generator[tuple[Array, ...], None, None]:
        """One epoch, from its beginning, or from where a loaded state stopped."""
        first, self._resume = self.batch if self._resume else 0, False
        epoch, order = self.epoch, self.order(self.epoch)

        def prepare(number: int) -> tuple[Array, ...]:
            indices = order[number * self.batch_size : (number + 1) * self.batch_size]
            try:
                return self.dataset.take(indices, Chance(self.seed, epoch))
            except Exception as error:
                error.add_note(f"while batch {number} of epoch {epoch} was prepared")
                raise

        # With several iterations at once, the position is that of the one begun last.
        this = self._latest = object()
        self.batch = first
        numbers = range(first, len(self))
        with closing(ahead(prepare, numbers, self.workers, self.prefetch)) as prepared:
            for number, batch in zip(numbers, prepared, strict=True):
                if self._latest is this:
                    self.batch = number + 1
                yield batch
        if self._latest is this:
            self.epoch, self.batch = epoch + 1, 0

    def order(self, epoch: int) -> Array:
        """The samples' numbers in the order of an epoch: int64, (N,)."""
        count = len(self.dataset)
        return permutation(count, self.seed, epoch) if self.shuffle else np.arange(count)

    def latest(self) -> Array:
        """The samples' numbers in the batch given out last, while its epoch lasts: int64."""
        first = max(0, self.batch - 1) * self.batch_size
        return self.order(self.epoch)[first : first + self.batch_size]

    def state_dict(self) -> dict[str, int]:
        """The position after the batch given out last, and what decides the batches to come."""
        return {"epoch": self.epoch, "batch": self.batch, **self.identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a saved position: the next iteration gives the rest of its epoch.

        The rest is empty where the state was taken after an epoch's last batch, before the
        iteration ended: then the next iteration only begins the next epoch.

        Raises
        ------
        ArgumentError
            The state is of other batches (seed, batch size, number of samples, ...), or is none.
        """
        own = self.identity()
        if missing := {"epoch", "batch", *own} - set(state):
            got = f"no {', '.join(sorted(missing))}"
            raise ArgumentError(explain("load_state_dict", "a state of dlc.data.Batches", got))
        if other := [name for name, value in own.items() if state[name] != value]:
            expected = ", ".join(f"{name}={own[name]}" for name in other)
            got = ", ".join(f"{name}={state[name]}" for name in other)
            raise ArgumentError(explain("load_state_dict", f"a state with {expected}", got))
        epoch = check_whole("epoch", state["epoch"], 0)
        batch = check_whole("batch", state["batch"], 0)
        if batch > len(self):
            raise ArgumentError(explain("batch", f"at most {len(self)}", str(batch)))
        self.epoch, self.batch, self._resume, self._latest = epoch, batch, True, None

    def identity(self) -> dict[str, int]:
        """What decides which samples are in which batch: their number and the options."""
        names = ("batch_size", "shuffle", "seed", "drop_last")
        return {"samples": len(self.dataset)} | {name: getattr(self, name) for name in names}

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value}" for name, value in self.state_dict().items())
        return f"Batches({len(self)} of {type(self.dataset).__name__}, {options})"


#: The name to call it by, beside functions such as `dlc.data.split`.
batches = Batches
