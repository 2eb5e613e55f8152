"""A trained model on batches: its figures against targets, or its outputs."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from dlc.errors import ShapeError
from dlc.frontend.module import Module
from dlc.frontend.nn.loss import CrossEntropyLoss, LabelLoss, NLLLoss
from dlc.frontend.tree import flatten
from dlc.ir.node import Node
from dlc.training.checks import Array, check_batch, check_inputs, takes
from dlc.training.diagnosis import first_wrong
from dlc.training.step import Loss, OfBatches, scalar


class Evaluation(OfBatches):
    """The loss and the metrics of a batch, and what the loss counts in a mean over batches."""

    def __init__(self, model: Module, loss: Loss, metrics: Mapping[str, Loss], **options: Any):
        super().__init__(model, **options)
        self.loss, self.metrics = loss, dict(metrics)
        self._labels = _loss_of_labels(loss)

    def over(self, batches: Iterable[tuple[Array, ...]]) -> dict[str, float]:
        """The figures of all batches, as if they were one."""
        totals: dict[str, float] = {}
        shares: dict[str, float] = {}
        for batch in batches:
            figures, weight = self(*check_batch(batch))
            for name, value in figures.items():
                share = weight if name == "loss" else float(len(batch[0]))
                if share:  # a mean over no label is NaN, and counts nothing
                    totals[name] = totals.get(name, 0.0) + value * share
                shares[name] = shares.get(name, 0.0) + share
        if adds_up(self.loss):
            shares["loss"] = 1.0
        return {n: totals.get(n, 0.0) / share if share else math.nan for n, share in shares.items()}

    def why_nan(self, batches: Iterable[tuple[Array, ...]]) -> str:
        """What the loss of all batches is NaN for, and what to do."""
        for batch in batches:
            figures, weight = self(*check_batch(batch))
            if weight and not math.isfinite(figures["loss"]):
                return "first {}; {}".format(*first_wrong(self, batch))
        return "no label of them counts: all are ignore_index"

    def __call__(self, *batch: Array) -> tuple[dict[str, float], float]:
        figures, weights = self.executable(*batch)(*batch)
        weight = 1.0 if adds_up(self.loss) else float(weights[0] if weights else len(batch[0]))
        return {name: float(value) for name, value in figures.items()}, weight

    def compute(self, *tensors: Node) -> Any:
        """What is traced."""
        *inputs, target = tensors
        check_inputs(self.model, len(inputs), "a batch")
        output = self.model(*inputs)
        figures = {"loss": scalar(self.loss(output, target), "a loss")} | {
            name: scalar(metric(output, target), f"the metric {name!r}")
            for name, metric in self.metrics.items()
        }
        weight = None if self._labels is None else self._labels.weight_of(target)
        return figures, [] if weight is None else [weight]


def adds_up(loss: Loss) -> bool:
    """Whether a loss is the sum over a batch, not a mean: what its ``reduction`` says."""
    given = getattr(loss, "keywords", {}).get("reduction")  # of a functools.partial
    return getattr(loss, "reduction", given) == "sum"


def _loss_of_labels(loss: Loss) -> LabelLoss | None:
    """A loss that knows what its value counts in a mean, also where it is given as a function."""
    if isinstance(loss, LabelLoss):
        return loss
    for layer in (CrossEntropyLoss, NLLLoss):
        if layer.function in (loss, getattr(loss, "func", None)):
            return layer(**getattr(loss, "keywords", {}))
    return None


class Prediction(OfBatches):
    """The outputs of a batch."""

    def over(self, batches: Iterable[tuple[Array, ...]]) -> Any:
        """The outputs of all batches, one after the other; targets are left."""
        inputs, found = takes(self.model)[0], []
        for batch in batches:
            arrays, structure = flatten(self(*batch[:inputs]), _is_array, "arrays")
            found.append(arrays)
        return structure.build([np.concatenate(parts) for parts in zip(*found, strict=True)])

    def __call__(self, *batch: Array) -> Any:
        try:
            executable = self.executable(*batch)
        except ShapeError as error:
            of = " and ".join(str(array.shape[1:]) for array in batch)
            raise ShapeError(
                f"{error}. Samples are along the first axis, so that they have shape {of} here; of "
                "one sample x, give x[None]"
            ) from error
        return executable(*batch)

    def compute(self, *tensors: Node) -> Any:
        """What is traced."""
        return self.model(*tensors)


@contextlib.contextmanager
def inference(model: Module) -> Iterator[None]:
    """Inference mode for a block; afterwards each module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray)
