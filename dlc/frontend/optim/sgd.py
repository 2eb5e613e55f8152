"""Stochastic gradient descent, plain or with momentum."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from dlc.errors import ArgumentError, explain
from dlc.frontend.optim.group import Group
from dlc.frontend.optim.optimizer import Optimizer, decayed
from dlc.ir.arithmetic import where
from dlc.ir.node import Node


class SGD(Optimizer):
    """Steps against the gradient, or against a running sum of gradients.

    Parameters
    ----------
    params : iterable, optional
        `Optimizer` explains it; None trains the whole model.
    lr : float
        The learning rate.
    momentum : float
        What is left of the running sum after a step.
    dampening : float
        What a gradient loses on its way into the running sum, but for the first.
    weight_decay : float
        The share of each parameter that is added to its gradient.
    nesterov : bool
        Step by the gradient plus the next momentum: Sutskever et al., 2013.
    maximize : bool
        Step along the gradient.
    """

    counts = False

    def __init__(
        self,
        params: Iterable[Any] | None = None,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        **unknown: Any,
    ):
        super().__init__(
            params,
            unknown,
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            weight_decay=weight_decay,
            nesterov=nesterov,
            maximize=maximize,
        )

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Add a group; nesterov needs a momentum and no dampening."""
        super().add_param_group(group)
        made = self.param_groups[-1]
        if made["nesterov"] and (made["momentum"] == 0 or made["dampening"] != 0):
            got = f"momentum={made['momentum']}, dampening={made['dampening']}"
            self.param_groups.pop()
            raise ArgumentError(explain("SGD with nesterov", "momentum and no dampening", got))

    def slots(self, group: Group) -> dict[str, float]:
        """The running sum, with momentum."""
        return {"momentum_buffer": 0.0} if group.on("momentum") else {}

    def scalars(self, group: Group, step: Node) -> dict[str, Node]:
        """The options, and the share of a gradient in the running sum."""
        share = where(step == 1, 1.0, 1.0 - group.number("dampening"))
        names = ("lr", "momentum", "weight_decay")
        return {"share": share, **{name: group.number(name) for name in names}}

    def update(
        self, group: Group, p: Node, g: Node, kept: Mapping[str, Node], by: Mapping[str, Node]
    ) -> tuple[Node, dict[str, Node]]:
        """See `Optimizer.update`."""
        g = decayed(group, p, g, by)
        if not group.on("momentum"):
            return p - by["lr"] * g, {}
        added = by["share"] * g if group.on("dampening") else g
        total = kept["momentum_buffer"] * by["momentum"] + added
        direction = g + by["momentum"] * total if group.on("nesterov") else total
        return p - by["lr"] * direction, {"momentum_buffer": total}
