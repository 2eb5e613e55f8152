"""A training step: forward, backward and update of all parameters in one native call.

It is a traced function like any other. Gradients are more of the same graph, and the new values of
parameters, running statistics and an optimiser's moments replace the old ones in place.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from dlc import driver
from dlc.errors import ArgumentError, NumericsError, ShapeError, explain
from dlc.frontend import optim
from dlc.frontend.data.chance import check_seed
from dlc.frontend.gradient import gradients
from dlc.frontend.met import Variants
from dlc.frontend.module import Module
from dlc.frontend.parameter import Buffer, Parameter
from dlc.frontend.random import drawing_from, stream
from dlc.frontend.scope import active
from dlc.ir.arithmetic import Arithmetic
from dlc.ir.node import Node, apply
from dlc.ir.sizes import Dim
from dlc.ir.types import TensorSpec
from dlc.runtime.executable import Executable
from dlc.training.checks import check_batch, check_inputs, check_numbers, check_parts
from dlc.training.diagnosis import first_wrong

#: ``loss(output, target)``, a scalar.
Loss: TypeAlias = Callable[[Any, Any], Any]


class OfBatches(ABC):
    """A compiled function of a model and a batch, which is kept while the model stays what it is.

    Parameters
    ----------
    model : Module
    max_batch : int, optional
        Compile once for all batches up to this size; by default once for each shape.
    threads : int, optional
    progress : bool, optional
    memory_budget : int, optional
        As of `dlc.compile`.
    random : Buffer, optional
        A stream of random numbers (`dlc.frontend.random.stream`) for dropout and other draws; by
        default that of the process.
    """

    def __init__(
        self,
        model: Module,
        max_batch: int | None = None,
        threads: int | None = None,
        progress: bool | None = None,
        memory_budget: int | None = None,
        random: Buffer | None = None,
    ):
        self.model, self.random, self._max_batch = model, random, max_batch
        self._options = {
            "threads": threads,
            "progress": progress,
            "memory_budget": memory_budget,
        }
        self._variants: Variants[Executable] = Variants()
        self._version: object = None

    @abstractmethod
    def compute(self, *tensors: Node) -> Any:
        """What is traced."""

    def version(self) -> object:
        """What compiled code holds for, beside the modules that it meets."""
        return None

    def executable(self, *batch: Any) -> Executable:
        """The compiled function for arrays (or `TensorSpec`s) of such shapes and element types."""
        specs, version = self._specs(batch), self.version()
        if version != self._version:
            self._variants, self._version = Variants(), version
        found = self._variants.find(specs, self.compute)
        if found is None:
            build = functools.partial(driver.variant, self._traced(), specs, {}, **self._options)
            found = self._variants.make(specs, self.compute, build)
        return found

    def _traced(self) -> Callable[..., Any]:
        """`compute`, with the model's own names for its parameters, and a name for progress."""

        def function(*tensors: Node) -> Any:
            scope = active()
            assert scope is not None, "it is traced, never called"
            scope.adopt(self.model, "")
            with drawing_from(self.random):
                return self.compute(*tensors)

        function.__name__ = f"{type(self).__name__}({type(self.model).__name__})"
        return function

    def _specs(self, batch: tuple[Any, ...]) -> tuple[TensorSpec, ...]:
        if self._max_batch is None:
            return tuple(TensorSpec(array.shape, array.dtype) for array in batch)
        rows = batch[0].shape[0] if batch[0].ndim else 0
        for array in batch:
            if not array.ndim or array.shape[0] != rows or not 1 <= rows <= self._max_batch:
                expected = f"arrays of one length from 1 to {self._max_batch}"
                got = " and ".join(str(each.shape) for each in batch)
                raise ShapeError(explain("a batch", expected, got))
        size = Dim("batch", 1, self._max_batch)
        return tuple(TensorSpec((size, *array.shape[1:]), array.dtype) for array in batch)


class TrainStep(OfBatches):
    """One step of training; see `train_step`.

    Attributes
    ----------
    model : Module
    loss : callable
    optimizer : Optimizer
    metrics : mapping of str to callable
        What a step tells beside the loss.
    """

    def __init__(
        self,
        model: Module,
        loss: Loss,
        optimizer: optim.Optimizer,
        *,
        metrics: Mapping[str, Loss] | None = None,
        clip_grad_norm: float | None = None,
        clip_grad_value: float | None = None,
        max_batch: int | None = None,
        threads: int | None = None,
        progress: bool | None = None,
        memory_budget: int | None = None,
        random: Buffer | None = None,
    ):
        super().__init__(model, max_batch, threads, progress, memory_budget, random)
        check_parts(model, loss, optimizer)
        bounds = {"clip_grad_norm": clip_grad_norm, "clip_grad_value": clip_grad_value}
        check_numbers(threads, max_batch, **bounds)
        self.loss, self.optimizer, self.metrics = loss, optimizer, dict(metrics or {})
        self._clip = clip_grad_norm, clip_grad_value
        optimizer.bind(model.named_parameters())

    def __call__(self, *batch: Any) -> Any:
        """Take one step.

        Parameters
        ----------
        *batch : array
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
            The loss is NaN or infinite; the message says in which layer first. Nothing is changed.
        """
        arrays = check_batch(batch)
        try:
            results = self.executable(*arrays)(*arrays)
        except NumericsError:
            found, advice = first_wrong(self, arrays)
            raise NumericsError(
                f"the loss is not finite: first {found}. The parameters are as before this step; "
                f"{advice}"
            ) from None
        if self.metrics:
            return {name: float(value) for name, value in results.items()}
        return float(results)

    def version(self) -> object:
        """What compiled code holds for, beside the modules that it meets."""
        return self.optimizer.structure()

    def compute(self, *tensors: Node) -> Any:
        """What is traced."""
        *inputs, target = tensors
        check_inputs(self.model, len(inputs), "a batch")
        output = self.model(*inputs)
        value = scalar(self.loss(output, target), "a loss")
        self.optimizer.bind(self.model.named_parameters())
        self.optimizer.step(self._gradients(value))
        loss = apply("check_finite", value)
        if not self.metrics:
            return loss
        return {"loss": loss} | {
            name: scalar(metric(output, target), f"the metric {name!r}")
            for name, metric in self.metrics.items()
        }

    def _gradients(self, value: Node) -> Mapping[Parameter, Node]:
        """By parameter; as in PyTorch, one that the loss does not depend on has none, and stays."""
        parameters = self.optimizer.parameters()
        if not parameters:
            expected, got = "a parameter that requires a gradient", "none"
            advice = "model.requires_grad_() makes all of a model's trainable."
            raise ArgumentError(explain("a training step", expected, got, advice=advice))
        made = gradients(value, parameters, allow_unused=True, computed=True)
        found = {p: g for p, g in zip(parameters, made, strict=True) if g is not None}
        if not found:
            expected = "a loss of the model's output"
            got = "one that depends on no parameter that requires a gradient"
            raise ArgumentError(explain("a training step", expected, got))
        norm, most = self._clip
        if most is not None:
            found = optim.clip_grad_value(found, most)
        if norm is not None:
            found, _ = optim.clip_grad_norm(found, norm)
        return found


def scalar(value: Any, what: str) -> Node:
    """A value as a node without dimensions."""
    if not isinstance(value, Arithmetic):
        raise ShapeError(explain(what, "a scalar tensor", type(value).__name__))
    node = value._node
    if node.shape:
        raise ShapeError(
            explain(what, "a scalar", node.describe(), advice="Reduce it with .mean().")
        )
    return node


def train_step(
    model: Module,
    loss: Loss,
    optimizer: optim.Optimizer,
    *,
    clip_grad_norm: float | None = None,
    clip_grad_value: float | None = None,
    max_batch: int | None = None,
    threads: int | None = None,
    memory_budget: int | None = None,
    seed: int | None = None,
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
    memory_budget : int, optional
        Bytes that the values which a step makes on its way (activations, gradients, packed
        weights) take together at most, at the largest batch. Where they would take more, some are
        computed again in the backward pass rather than kept, with the same bits. Batches,
        parameters and the optimiser's state do not count. By default all are kept. See
        `dlc.compile` for what is raised, on the first call.
    seed : int, optional
        Of dropout and other draws in the step, which then depend on nothing else; by default they
        are the next ones of `dlc.seed`, which all models and steps of the process share.

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
        memory_budget=memory_budget,
        random=None if seed is None else stream(check_seed(seed)),
    )
