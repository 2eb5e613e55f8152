"""A trained model on batches: its figures against targets, or its outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dlc.frontend.module import Module
from dlc.ir.node import Node
from dlc.training.step import Array, Loss, OfBatches, scalar


class Evaluation(OfBatches):
    """The loss and the metrics of a batch, each a mean over its samples."""

    def __init__(self, model: Module, loss: Loss, metrics: Mapping[str, Loss], **options: Any):
        super().__init__(model, **options)
        self.loss, self.metrics = loss, dict(metrics)

    def __call__(self, *batch: Array) -> dict[str, float]:
        results = self.executable(*batch)(*batch)
        return {name: float(value) for name, value in results.items()}

    def compute(self, *tensors: Node) -> Any:
        """What is traced."""
        *inputs, target = tensors
        output = self.model(*inputs)
        return {"loss": scalar(self.loss(output, target), "a loss")} | {
            name: scalar(metric(output, target), f"the metric {name!r}")
            for name, metric in self.metrics.items()
        }


class Prediction(OfBatches):
    """The outputs of a batch."""

    def __call__(self, *batch: Array) -> Any:
        return self.executable(*batch)(*batch)

    def compute(self, *tensors: Node) -> Any:
        """What is traced."""
        return self.model(*tensors)
