"""Metrics: what is told of a model beside its loss, computed in the graph batch by batch.

Each is a mean over samples, so that batches of any size add up to what the whole set would give.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import dlc.frontend.tensors as T
from dlc.errors import ArgumentError, ShapeError, explain
from dlc.frontend import functional as F
from dlc.ir.node import Node
from dlc.ir.sizes import equal, shape_text

#: ``metric(output, target)``: a scalar, the mean over the samples of a batch.
Metric: TypeAlias = Callable[[Any, Any], Any]


def accuracy(output: Node, target: Node) -> Node:
    """The share of samples whose greatest output, along axis 1, is at the label's place."""
    best = output.argmax(1)
    if best.ndim != target.ndim or not all(map(equal, best.shape, target.shape)):
        expected, got = f"labels of shape {shape_text(best.shape)}", shape_text(target.shape)
        raise ShapeError(explain("accuracy", expected, got))
    return T.cast(best == target, "float32").mean()


def top5(output: Node, target: Node) -> Node:
    """The share of samples with fewer than five outputs above the label's one."""
    own = T.gather(output, 1, target.reshape(-1, 1))
    above = T.cast(output > own, "float32").sum(1)
    return T.cast(above < 5.0, "float32").mean()


def mse(output: Node, target: Node) -> Node:
    """The mean squared error."""
    return F.mse_loss(output, target.to(output.dtype))


def mae(output: Node, target: Node) -> Node:
    """The mean absolute error."""
    return F.l1_loss(output, target.to(output.dtype))


METRICS: Mapping[str, Metric] = {"accuracy": accuracy, "top5": top5, "mse": mse, "mae": mae}
#: Metrics of which less is better, as of a loss.
FALLING = ("loss", "mse", "mae")


def named(metrics: Iterable[str | Metric] | Mapping[str, Metric]) -> dict[str, Metric]:
    """Metrics by name.

    Parameters
    ----------
    metrics : iterable or mapping
        Names among "accuracy", "top5", "mse" and "mae", or functions ``(output, target)`` of
        tensors that give a scalar; a mapping gives them other names.

    Raises
    ------
    ArgumentError
        There is no metric of a name, or a name is taken.
    """
    if isinstance(metrics, Mapping):
        found = dict(metrics)
    else:
        found = {}
        for metric in [metrics] if isinstance(metrics, str) else metrics:
            name = metric if isinstance(metric, str) else getattr(metric, "__name__", "metric")
            if name in found:
                raise ArgumentError(explain("metrics", "each name once", repr(name)))
            found[name] = _metric(metric)
    if "loss" in found:
        raise ArgumentError(explain("metrics", "other names than 'loss'", "'loss'"))
    return found


def _metric(metric: str | Metric) -> Metric:
    if callable(metric):
        return metric
    if metric not in METRICS:
        expected = f"names among {', '.join(METRICS)}, or functions of tensors"
        raise ArgumentError(explain("metrics", expected, repr(metric)))
    return METRICS[metric]
