"""Adam and AdamW: steps along the average gradient, divided by the root of the average square."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from dlc.frontend.optim.group import Group
from dlc.frontend.optim.optimizer import Optimizer, decayed
from dlc.ir.node import Node


class Adam(Optimizer):
    """Adaptive moments: Kingma and Ba, 2015.

    Parameters
    ----------
    params : iterable, optional
        `Optimizer` explains it; None trains the whole model.
    lr : float
        The learning rate.
    betas : (float, float)
        What is left, after a step, of the averages of gradients and of their squares.
    eps : float
        Added to the root.
    weight_decay : float
        The share of each parameter that is added to its gradient.
    amsgrad : bool
        Divide by the greatest average so far: Reddi et al., 2018.
    maximize : bool
        Step along the gradient.
    decoupled_weight_decay : bool
        Take ``lr weight_decay`` off the parameter in place of adding to the gradient: AdamW.
    """

    def __init__(
        self,
        params: Iterable[Any] | None = None,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        decoupled_weight_decay: bool = False,
        **unknown: Any,
    ):
        super().__init__(
            params,
            unknown,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            amsgrad=amsgrad,
            maximize=maximize,
            decoupled_weight_decay=decoupled_weight_decay,
        )

    def slots(self, group: Group) -> dict[str, float]:
        """The averages of gradients and of their squares; with amsgrad the greatest of those."""
        names = ("exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if group.on("amsgrad") else ()))
        return dict.fromkeys(names, 0.0)

    def scalars(self, group: Group, step: Node) -> dict[str, Node]:
        """The options, and with them what corrects the averages for having begun at zero."""
        (beta1, beta2), count = group.numbers("betas"), step.to("float64")
        lr, decay = group.number("lr"), group.number("weight_decay")
        return {
            "share1": 1.0 - beta1,
            "beta2": beta2,
            "share2": 1.0 - beta2,
            "step_size": lr / (1.0 - beta1**count),
            "root": (1.0 - beta2**count).sqrt(),
            "eps": group.number("eps"),
            "weight_decay": decay,
            "kept": 1.0 - lr * decay,
        }

    def update(
        self, group: Group, p: Node, g: Node, kept: Mapping[str, Node], by: Mapping[str, Node]
    ) -> tuple[Node, dict[str, Node]]:
        """See `Optimizer.update`."""
        if not group.on("decoupled_weight_decay"):
            g = decayed(group, p, g, by)
        elif group.on("weight_decay"):
            p = p * by["kept"]
        mean = kept["exp_avg"] + by["share1"] * (g - kept["exp_avg"])
        square = kept["exp_avg_sq"] * by["beta2"] + by["share2"] * g * g
        new, size = {"exp_avg": mean, "exp_avg_sq": square}, square
        if group.on("amsgrad"):
            size = new["max_exp_avg_sq"] = kept["max_exp_avg_sq"].maximum(square)
        size = size.sqrt() / by["root"] + by["eps"]
        return p - by["step_size"] * mean / size, new


class AdamW(Adam):
    """Adam with weight decay that does not pass through the averages: Loshchilov and Hutter, 2019.

    `Adam` explains the parameters.
    """

    def __init__(
        self,
        params: Iterable[Any] | None = None,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        **unknown: Any,
    ):
        super(Adam, self).__init__(
            params,
            unknown,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            amsgrad=amsgrad,
            maximize=maximize,
            decoupled_weight_decay=True,
        )
