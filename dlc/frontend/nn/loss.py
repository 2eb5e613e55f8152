"""Loss layers: a function of `functional` each, with its arguments remembered.

A loss takes a prediction and what is wanted. Weights are buffers, so that they move and are saved
with the model that the loss belongs to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from dlc.frontend import functional as F
from dlc.frontend.losses import weight_of
from dlc.frontend.module import Module
from dlc.frontend.tensors import as_tensor
from dlc.ir.node import Node
from dlc.ir.types import is_float


class _Loss(Module):
    """A loss that applies ``function`` with the arguments it was made with."""

    function: ClassVar[Callable[..., Node]]

    def __init__(self, *, weights: dict[str, Any] | None = None, **arguments: Any):
        super().__init__()
        for name, value in (weights or {}).items():
            self.register_buffer(name, value)
        for name, value in arguments.items():
            setattr(self, name, value)
        self._arguments = (*(weights or ()), *arguments)

    def forward(self, input: Node, target: Node) -> Node:
        """A scalar; with ``reduction="none"`` a value for each position."""
        arguments = {name: getattr(self, name) for name in self._arguments}
        return type(self).function(input, target, **arguments)

    def extra_repr(self) -> str:
        shown = [name for name in self._arguments if name not in self._buffers]
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in shown)


class LabelLoss(_Loss):
    """A loss of labels, some of which may count more than others, or not at all."""

    def weight_of(self, target: Node) -> Node | None:
        """What its value for a batch counts in a mean over several; None is by samples.

        Parameters
        ----------
        target : Tensor
            As for the loss.
        """
        if self.reduction != "mean" or is_float(target.dtype):
            return None
        label = target.long() if target.dtype == "uint8" else target
        weights = [] if self.weight is None else [as_tensor(self.weight)]
        return weight_of(label, weights, self.ignore_index)


class CrossEntropyLoss(LabelLoss):
    """Minus the logarithm of the softmax of scores (N, C, ...), at the class that is wanted.

    Parameters
    ----------
    weight : array (C), optional
        What a position of each class counts.
    ignore_index : int
        The label of positions that do not count.
    reduction : {"mean", "sum", "none"}
    label_smoothing : float
        The share of each label that goes to all classes alike.
    """

    function = staticmethod(F.cross_entropy)

    def __init__(
        self,
        weight: Any = None,
        *,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ):
        super().__init__(
            weights={"weight": weight},
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
        )


class NLLLoss(LabelLoss):
    """Minus the logarithm of a probability (N, C, ...), at the class that is wanted.

    `CrossEntropyLoss` explains the parameters.
    """

    function = staticmethod(F.nll_loss)

    def __init__(self, weight: Any = None, *, ignore_index: int = -100, reduction: str = "mean"):
        super().__init__(weights={"weight": weight}, ignore_index=ignore_index, reduction=reduction)


class MSELoss(_Loss):
    """The square of the difference; ``reduction`` is "mean", "sum" or "none"."""

    function = staticmethod(F.mse_loss)

    def __init__(self, *, reduction: str = "mean"):
        super().__init__(reduction=reduction)


class L1Loss(_Loss):
    """The size of the difference; ``reduction`` is "mean", "sum" or "none"."""

    function = staticmethod(F.l1_loss)

    def __init__(self, *, reduction: str = "mean"):
        super().__init__(reduction=reduction)


class SmoothL1Loss(_Loss):
    """With d the size of the difference: d² / (2 beta) below ``beta``, d - beta / 2 above."""

    function = staticmethod(F.smooth_l1_loss)

    def __init__(self, *, reduction: str = "mean", beta: float = 1.0):
        super().__init__(reduction=reduction, beta=beta)


class HuberLoss(_Loss):
    """With d the size of the difference: d² / 2 to ``delta``, delta (d - delta / 2) above."""

    function = staticmethod(F.huber_loss)

    def __init__(self, reduction: str = "mean", delta: float = 1.0):
        super().__init__(reduction=reduction, delta=delta)


class BCELoss(_Loss):
    """The binary cross entropy of probabilities.

    Parameters
    ----------
    weight : array, optional
        Broadcasts against the input and multiplies the loss of each position.
    reduction : {"mean", "sum", "none"}
    """

    function = staticmethod(F.binary_cross_entropy)

    def __init__(self, weight: Any = None, *, reduction: str = "mean"):
        super().__init__(weights={"weight": weight}, reduction=reduction)


class BCEWithLogitsLoss(_Loss):
    """The binary cross entropy of the sigmoid of scores.

    Parameters
    ----------
    weight : array, optional
        Broadcasts against the input and multiplies the loss of each position.
    reduction : {"mean", "sum", "none"}
    pos_weight : array, optional
        Broadcasts against the input; what the positive part counts.
    """

    function = staticmethod(F.binary_cross_entropy_with_logits)

    def __init__(self, weight: Any = None, *, reduction: str = "mean", pos_weight: Any = None):
        super().__init__(weights={"weight": weight, "pos_weight": pos_weight}, reduction=reduction)


class KLDivLoss(_Loss):
    """The divergence of predicted logarithms of probabilities from wanted probabilities.

    Parameters
    ----------
    reduction : {"mean", "batchmean", "sum", "none"}
    log_target : bool
        The target is logarithms too.
    """

    function = staticmethod(F.kl_div)

    def __init__(self, *, reduction: str = "mean", log_target: bool = False):
        super().__init__(reduction=reduction, log_target=log_target)
