"""A trained model on batches: its figures against targets, or its outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dlc.frontend.module import Module
from dlc.frontend.nn.loss import LabelLoss
from dlc.ir.node import Node
from dlc.training.step import Array, Loss, OfBatches, scalar


class Evaluation(OfBatches):
    """The loss and the metrics of a batch, and what the loss counts in a mean over batches."""

    def __init__(self, model: Module, loss: Loss, metrics: Mapping[str, Loss], **options: Any):
        super().__init__(model, **options)
        self.loss, self.metrics = loss, dict(metrics)

    def __call__(self, *batch: Array) -> tuple[dict[str, float], float]:
        figures, weights = self.executable(*batch)(*batch)
        weight = float(weights[0]) if weights else float(len(batch[0]))
        return {name: float(value) for name, value in figures.items()}, weight

    def compute(self, *tensors: Node) -> Any:
        """What is traced."""
        *inputs, target = tensors
        output = self.model(*inputs)
        figures = {"loss": scalar(self.loss(output, target), "a loss")} | {
            name: scalar(metric(output, target), f"the metric {name!r}")
            for name, metric in self.metrics.items()
        }
        weight = self.loss.weight_of(target) if isinstance(self.loss, LabelLoss) else None
        return figures, [] if weight is None else [weight]


class Prediction(OfBatches):
    """The outputs of a batch."""

    def __call__(self, *batch: Array) -> Any:
        return self.executable(*batch)(*batch)

    def compute(self, *tensors: Node) -> Any:
        """What is traced."""
        return self.model(*tensors)
