"""Optimisers that scale each element by the sizes of its past gradients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from dlc.frontend.optim.group import Group
from dlc.frontend.optim.optimizer import Optimizer, decayed
from dlc.ir.node import Node


class Adagrad(Optimizer):
    """Steps divided by the root of the sum of squared gradients: Duchi et al., 2011.

    Parameters
    ----------
    params : iterable, optional
        `Optimizer` explains it; None trains the whole model.
    lr : float
        The learning rate.
    lr_decay : float
        In step n the learning rate is ``lr / (1 + (n - 1) lr_decay)``.
    weight_decay : float
        The share of each parameter that is added to its gradient.
    initial_accumulator_value : float
        Where the sums begin.
    eps : float
        Added to the root.
    maximize : bool
        Step along the gradient.
    """

    def __init__(
        self,
        params: Iterable[Any] | None = None,
        lr: float = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        *,
        maximize: bool = False,
        **unknown: Any,
    ):
        super().__init__(
            params,
            unknown,
            lr=lr,
            lr_decay=lr_decay,
            weight_decay=weight_decay,
            initial_accumulator_value=initial_accumulator_value,
            eps=eps,
            maximize=maximize,
        )

    def slots(self, group: Group) -> dict[str, float]:
        """The sum of squared gradients."""
        return {"sum": group.now("initial_accumulator_value")}

    def scalars(self, group: Group, step: Node) -> dict[str, Node]:
        """The options, with the learning rate of this step."""
        rate = group.number("lr")
        if group.on("lr_decay"):
            rate = rate / (1.0 + (step - 1).to("float64") * group.number("lr_decay"))
        names = ("weight_decay", "eps")
        return {"rate": rate, **{name: group.number(name) for name in names}}

    def update(
        self, group: Group, p: Node, g: Node, kept: Mapping[str, Node], by: Mapping[str, Node]
    ) -> tuple[Node, dict[str, Node]]:
        """See `Optimizer.update`."""
        g = decayed(group, p, g, by)
        total = kept["sum"] + g * g
        return p - by["rate"] * g / (total.sqrt() + by["eps"]), {"sum": total}


class Adadelta(Optimizer):
    """Steps scaled by the ratio of past steps to past gradients: Zeiler, 2012.

    Parameters
    ----------
    params : iterable, optional
        `Optimizer` explains it; None trains the whole model.
    lr : float
        What scales the step in the end.
    rho : float
        What is left of the running averages after a step.
    eps : float
        Added to the averages before their roots.
    weight_decay : float
        The share of each parameter that is added to its gradient.
    maximize : bool
        Step along the gradient.
    """

    def __init__(
        self,
        params: Iterable[Any] | None = None,
        lr: float = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        **unknown: Any,
    ):
        super().__init__(
            params, unknown, lr=lr, rho=rho, eps=eps, weight_decay=weight_decay, maximize=maximize
        )

    def slots(self, group: Group) -> dict[str, float]:
        """Averages of squared gradients and of squared steps."""
        return {"square_avg": 0.0, "acc_delta": 0.0}

    def scalars(self, group: Group, step: Node) -> dict[str, Node]:
        """The options, and what a new value counts in the averages."""
        names = ("lr", "rho", "eps", "weight_decay")
        options = {name: group.number(name) for name in names}
        return {**options, "share": 1.0 - options["rho"]}

    def update(
        self, group: Group, p: Node, g: Node, kept: Mapping[str, Node], by: Mapping[str, Node]
    ) -> tuple[Node, dict[str, Node]]:
        """See `Optimizer.update`."""
        g = decayed(group, p, g, by)
        squares = kept["square_avg"] * by["rho"] + by["share"] * g * g
        delta = (kept["acc_delta"] + by["eps"]).sqrt() / (squares + by["eps"]).sqrt() * g
        steps = kept["acc_delta"] * by["rho"] + by["share"] * delta * delta
        return p - by["lr"] * delta, {"square_avg": squares, "acc_delta": steps}


class RMSprop(Optimizer):
    """Steps divided by the root of a running average of squared gradients: Hinton, 2012.

    Parameters
    ----------
    params : iterable, optional
        `Optimizer` explains it; None trains the whole model.
    lr : float
        The learning rate.
    alpha : float
        What is left of the running averages after a step.
    eps : float
        Added to the root.
    weight_decay : float
        The share of each parameter that is added to its gradient.
    momentum : float
        What is left of the running sum of steps after a step.
    centered : bool
        Divide by an estimate of the deviation: subtract the square of the average gradient.
    maximize : bool
        Step along the gradient.
    """

    def __init__(
        self,
        params: Iterable[Any] | None = None,
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        *,
        maximize: bool = False,
        **unknown: Any,
    ):
        super().__init__(
            params,
            unknown,
            lr=lr,
            alpha=alpha,
            eps=eps,
            weight_decay=weight_decay,
            momentum=momentum,
            centered=centered,
            maximize=maximize,
        )

    def slots(self, group: Group) -> dict[str, float]:
        """The average of squared gradients; the running sum and the average of gradients, if on."""
        wanted = {"momentum_buffer": group.on("momentum"), "grad_avg": group.on("centered")}
        return {"square_avg": 0.0, **{name: 0.0 for name, on in wanted.items() if on}}

    def scalars(self, group: Group, step: Node) -> dict[str, Node]:
        """The options, and what a new value counts in the averages."""
        names = ("lr", "alpha", "eps", "weight_decay", "momentum")
        options = {name: group.number(name) for name in names}
        return {**options, "share": 1.0 - options["alpha"]}

    def update(
        self, group: Group, p: Node, g: Node, kept: Mapping[str, Node], by: Mapping[str, Node]
    ) -> tuple[Node, dict[str, Node]]:
        """See `Optimizer.update`."""
        g = decayed(group, p, g, by)
        square = kept["square_avg"] * by["alpha"] + by["share"] * g * g
        new, size = {"square_avg": square}, square
        if group.on("centered"):
            mean = kept["grad_avg"] + by["share"] * (g - kept["grad_avg"])
            new["grad_avg"], size = mean, square - mean * mean
        size = size.sqrt() + by["eps"]
        if not group.on("momentum"):
            return p - by["lr"] * g / size, new
        total = kept["momentum_buffer"] * by["momentum"] + g / size
        return p - by["lr"] * total, {**new, "momentum_buffer": total}
