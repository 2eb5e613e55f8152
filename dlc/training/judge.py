"""A trained model on batches: its figures against targets, or its outputs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from dlc.frontend.module import Module
from dlc.frontend.nn.loss import CrossEntropyLoss, LabelLoss, NLLLoss
from dlc.ir.node import Node
from dlc.training.step import Array, Loss, OfBatches, check_batch, scalar


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

    def __call__(self, *batch: Array) -> tuple[dict[str, float], float]:
        figures, weights = self.executable(*batch)(*batch)
        weight = 1.0 if adds_up(self.loss) else float(weights[0] if weights else len(batch[0]))
        return {name: float(value) for name, value in figures.items()}, weight

    def compute(self, *tensors: Node) -> Any:
        """What is traced."""
        *inputs, target = tensors
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

    def __call__(self, *batch: Array) -> Any:
        return self.executable(*batch)(*batch)

    def compute(self, *tensors: Node) -> Any:
        """What is traced."""
        return self.model(*tensors)
