"""A training step: forward, backward and update of all parameters in one native call.

It is a traced function like any other. Gradients are more of the same graph, and the new values of
parameters, running statistics and an optimiser's moments replace the old ones in place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from dlc import driver
from dlc.errors import ArgumentError, ShapeError, explain
from dlc.frontend import optim
from dlc.frontend.gradient import gradients
from dlc.frontend.module import Module, version_of
from dlc.frontend.parameter import Parameter
from dlc.frontend.scope import active
from dlc.ir.arithmetic import Arithmetic
from dlc.ir.node import Node, apply
from dlc.ir.sizes import Dim
from dlc.ir.types import TensorSpec
from dlc.runtime.executable import Executable

Array: TypeAlias = "np.ndarray[Any, Any]"
Loss: TypeAlias = Callable[[Any, Any], Any]


class TrainStep:
    """One step of training, as `train_step` makes it.

    Attributes
    ----------
    model : Module
    loss : callable
    optimizer : Optimizer
    """

    def __init__(
        self,
        model: Module,
        loss: Loss,
        optimizer: optim.Optimizer,
        *,
        clip_grad_norm: float | None = None,
        clip_grad_value: float | None = None,
        max_batch: int | None = None,
        threads: int | None = None,
        metrics: Mapping[str, Loss] | None = None,
        progress: bool | None = None,
    ):
        self.model, self.loss, self.optimizer = model, loss, optimizer
        self._clip = clip_grad_norm, clip_grad_value
        self._max_batch, self._threads, self._progress = max_batch, threads, progress
        self._metrics = dict(metrics or {})
        self._compiled: dict[Any, Executable] = {}
        optimizer.bind(model.named_parameters())

    def __call__(self, *arrays: Any) -> Any:
        """Take one step.

        Parameters
        ----------
        *arrays : array
            The model's inputs, then the target: what the loss compares its output with.

        Returns
        -------
        float
            The loss before the update; with metrics a dict of floats, the loss as ``"loss"``.

        Raises
        ------
        IndexError
            A label is out of range. Nothing is changed.
        NumericsError
            The loss is NaN or infinite. Nothing is changed.
        """
        batch = tuple(map(np.asarray, arrays))
        results = self.executable(*batch)(*batch)
        if not self._metrics:
            return float(results)
        return {name: float(value) for name, value in results.items()}

    def executable(self, *batch: Any) -> Executable:
        """The compiled step for arrays (or `TensorSpec`s) of such shapes and element types."""
        specs = self._specs(batch)
        key = (specs, self._version())
        if key not in self._compiled:
            self._compiled = {k: e for k, e in self._compiled.items() if k[1] == key[1]}
            self._compiled[key] = driver.compile(
                self._step, *specs, threads=self._threads, progress=self._progress
            )
        return self._compiled[key]

    def _version(self) -> tuple[object, ...]:
        """What compiled code holds for."""
        loss = version_of(self.loss) if isinstance(self.loss, Module) else None
        return version_of(self.model), loss, self.optimizer.structure()

    def _specs(self, batch: tuple[Any, ...]) -> tuple[TensorSpec, ...]:
        if len(batch) < 2:
            raise ArgumentError(explain("a training step", "inputs and a target", len(batch)))
        if self._max_batch is None:
            return tuple(TensorSpec(array.shape, array.dtype) for array in batch)
        rows = batch[0].shape[0] if batch[0].ndim else 0
        for array in batch:
            if not array.ndim or array.shape[0] != rows or not 1 <= rows <= self._max_batch:
                expected = f"arrays of one length from 1 to {self._max_batch}"
                got = " and ".join(str(each.shape) for each in batch)
                raise ShapeError(explain("a training step", expected, got))
        size = Dim("batch", 1, self._max_batch)
        return tuple(TensorSpec((size, *array.shape[1:]), array.dtype) for array in batch)

    def _step(self, *tensors: Node) -> Any:
        """What is traced."""
        scope = active()
        assert scope is not None, "a step is traced, never called"
        scope.adopt(self.model, "")
        *inputs, target = tensors
        output = self.model(*inputs)
        value = _scalar(self.loss(output, target))
        self.optimizer.bind(self.model.named_parameters())
        self.optimizer.step(self._gradients(value))
        loss = apply("check_finite", value)
        if not self._metrics:
            return loss
        return {"loss": loss, **{n: f(output, target) for n, f in self._metrics.items()}}

    def _gradients(self, value: Node) -> Mapping[Parameter, Node]:
        parameters = self.optimizer.parameters()
        found = dict(zip(parameters, gradients(value, parameters), strict=True))
        norm, most = self._clip
        if most is not None:
            found = optim.clip_grad_value(found, most)
        if norm is not None:
            found, _ = optim.clip_grad_norm(found, norm)
        return found


def _scalar(value: Any) -> Node:
    if not isinstance(value, Arithmetic):
        got = type(value).__name__
        raise ShapeError(explain("a training step", "a loss that is a scalar tensor", got))
    return value._node


def train_step(
    model: Module,
    loss: Loss,
    optimizer: optim.Optimizer,
    *,
    clip_grad_norm: float | None = None,
    clip_grad_value: float | None = None,
    max_batch: int | None = None,
    threads: int | None = None,
) -> TrainStep:
    """A compiled function that takes one step of training.

    Parameters
    ----------
    model : Module
        In training mode, so that dropout and batch norm do what they do there (``model.train()``).
    loss : callable
        ``loss(output, target)``, a scalar, such as ``nn.CrossEntropyLoss()``.
    optimizer : Optimizer
        Such as ``optim.AdamW(lr=1e-3)``; without parameters of its own it trains all of the
        model's that require gradients.
    clip_grad_norm, clip_grad_value : float, optional
        Scale all gradients together to at most this Euclidean norm; bound each element to plus or
        minus this value.
    max_batch : int, optional
        Compile once for all batches up to this size, along the first axis of every array; by
        default once for each shape.
    threads : int, optional
        By default what the machine allows.

    Returns
    -------
    TrainStep
        ``step(*inputs, target)`` gives the loss as a float. The first call compiles.
    """
    return TrainStep(
        model,
        loss,
        optimizer,
        clip_grad_norm=clip_grad_norm,
        clip_grad_value=clip_grad_value,
        max_batch=max_batch,
        threads=threads,
    )
