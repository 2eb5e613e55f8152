"""Losses with PyTorch's names and arguments: functions of a prediction and of what is wanted.

They are part of ``dlc.functional``, and stand apart because they share how the values of positions
become one for the batch. PyTorch's long deprecated ``size_average`` and ``reduce`` are not taken,
so what follows them is given by name.
"""

from __future__ import annotations

from dlc.errors import ArgumentError, DTypeError, ShapeError, explain
from dlc.frontend.scope import here
from dlc.frontend.tensors import as_tensor
from dlc.frontend.tensors import where as choose
from dlc.ir.node import Node, apply
from dlc.ir.sizes import equal, same, shape_text
from dlc.ir.types import is_float
from dlc.ops.loss import of_label

__all__ = [
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "huber_loss",
    "kl_div",
    "l1_loss",
    "mse_loss",
    "nll_loss",
    "smooth_l1_loss",
]

# Classes.


def cross_entropy(
    input: object,
    target: object,
    weight: object = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Node:
    """Minus the logarithm of the softmax of the scores, at the class that is wanted.

    Parameters
    ----------
    input : Tensor (N, C, ...) or (C)
        Scores of C classes, not yet a softmax.
    target : Tensor (N, ...) or () of integers, or Tensor of the input's shape and type
        The number of the class at each position, or a probability for each class.
    weight : Tensor (C), optional
        What a position of each class counts; no gradient goes to it.
    ignore_index : int
        The label of positions that do not count (where labels are integers).
    reduction : {"mean", "sum", "none"}
        "mean" divides by the weights of the positions that count (of probabilities: by the number
        of positions); with none, that is NaN.
    label_smoothing : float
        The share of each label that goes to all classes alike, from 0 to 1.

    Raises
    ------
    IndexError
        In the call: a label is neither a class nor ``ignore_index``.
    """
    x, wanted, weights = _of_classes("cross_entropy", input, target, weight, reduction)
    attrs = {"ignore_index": ignore_index, "label_smoothing": label_smoothing}
    if not is_float(wanted.dtype):
        cost = apply("cross_entropy", *_batch(x, wanted), *weights, **attrs)
        return _over_labels(cost, wanted, weights, ignore_index, reduction)
    if x.shape != wanted.shape or x.dtype != wanted.dtype:
        expected = f"probabilities {x.type} like the scores, or labels that are integers"
        advice = "Cast class numbers with target.long()."
        raise _mismatch("cross_entropy", expected, str(wanted.type), advice)
    if ignore_index >= 0:
        expected = "no ignore_index where the target is probabilities"
        raise ArgumentError(explain("cross_entropy", expected, str(ignore_index), where=here()))
    cost = _of_probabilities(x, wanted, weights, label_smoothing)
    return _reduced("cross_entropy", cost, reduction)


def _of_probabilities(x: Node, wanted: Node, weights: list[Node], label_smoothing: float) -> Node:
    if not 0.0 <= label_smoothing <= 1.0:
        message = explain("label_smoothing", "a share from 0 to 1", str(label_smoothing))
        raise ArgumentError(message)
    classes = min(1, x.ndim - 1)
    if label_smoothing:
        uniform = as_tensor(1.0).to(x.dtype) / x.shape[classes]
        wanted = wanted * (1.0 - label_smoothing) + uniform * label_smoothing
    for weight in weights:
        wanted = wanted * weight.reshape(-1, *[1] * (x.ndim - 1 - classes))
    return -(x.log_softmax(classes) * wanted).sum(classes)


def nll_loss(
    input: object,
    target: object,
    weight: object = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Node:
    """Minus the logarithm of a probability, at the class that is wanted.

    Parameters
    ----------
    input : Tensor (N, C, ...) or (C)
        Logarithms of probabilities, such as `log_softmax` gives.
    target : Tensor (N, ...) or () of integers
    weight, ignore_index, reduction
        As in `cross_entropy`.

    Raises
    ------
    IndexError
        In the call: a label is neither a class nor ``ignore_index``.
    """
    x, wanted, weights = _of_classes("nll_loss", input, target, weight, reduction)
    cost = apply("nll_loss", *_batch(x, wanted), *weights, ignore_index=ignore_index)
    return _over_labels(cost, wanted, weights, ignore_index, reduction)


def _of_classes(
    name: str, input: object, target: object, weight: object, reduction: str
) -> tuple[Node, Node, list[Node]]:
    _check_reduction(name, reduction)
    x, wanted = as_tensor(input), as_tensor(target)
    if wanted.dtype == "uint8":
        wanted = wanted.long()
    return x, wanted, [] if weight is None else [as_tensor(weight)]


def _batch(x: Node, wanted: Node) -> tuple[Node, Node]:
    """Scores of one position (C) and its label as a batch of one."""
    return (x.unsqueeze(0), wanted.reshape(1)) if x.ndim == 1 and wanted.ndim == 0 else (x, wanted)


def _over_labels(
    cost: Node, label: Node, weights: list[Node], ignore_index: int, reduction: str
) -> Node:
    """``cost`` of each position, reduced; the mean is over the weights of positions that count."""
    if reduction == "none":
        return cost.reshape(label.shape)
    if reduction == "sum":
        return cost.sum()
    return cost.sum() / weight_of(label, weights, ignore_index).to(cost.dtype)


def weight_of(label: Node, weights: list[Node], ignore_index: int) -> Node:
    """The weights of the labels that count together, a scalar: what a mean over them divides by."""
    counts = label != ignore_index
    if not weights:
        return counts.sum()
    own = of_label(weights[0], choose(counts, label, 0))
    return choose(counts, own, 0.0).sum()


# Numbers.


def mse_loss(
    input: object, target: object, *, reduction: str = "mean", weight: object = None
) -> Node:
    """The square of the difference; ``weight``, of the input's shape, says what each counts."""
    x, wanted = _alike("mse_loss", input, target)
    return _weighted("mse_loss", (x - wanted).square(), weight, reduction)


def l1_loss(
    input: object, target: object, *, reduction: str = "mean", weight: object = None
) -> Node:
    """The size of the difference; ``weight``, of the input's shape, says what each counts."""
    x, wanted = _alike("l1_loss", input, target)
    return _weighted("l1_loss", abs(x - wanted), weight, reduction)


def smooth_l1_loss(
    input: object, target: object, *, reduction: str = "mean", beta: float = 1.0
) -> Node:
    """With d the size of the difference: d² / (2 beta) below ``beta``, d - beta / 2 above."""
    x, wanted = _alike("smooth_l1_loss", input, target)
    if not beta >= 0:
        raise ArgumentError(explain("smooth_l1_loss", "beta of at least 0", str(beta)))
    size = abs(x - wanted)
    if beta > 0:
        size = choose(size < beta, 0.5 * size * size / beta, size - 0.5 * beta)
    return _reduced("smooth_l1_loss", size, reduction)


def huber_loss(
    input: object,
    target: object,
    reduction: str = "mean",
    delta: float = 1.0,
    weight: object = None,
) -> Node:
    """With d the size of the difference: d² / 2 up to ``delta``, delta (d - delta / 2) above.

    ``weight``, of the input's shape, multiplies it; the mean stays that over the elements.
    """
    x, wanted = _alike("huber_loss", input, target)
    if not delta > 0:
        raise ArgumentError(explain("huber_loss", "delta above 0", str(delta)))
    size = abs(x - wanted)
    cost = choose(size <= delta, 0.5 * size * size, delta * (size - 0.5 * delta))
    if weight is not None:
        cost = cost * _of_shape("huber_loss", weight, cost)
    return _reduced("huber_loss", cost, reduction)


# Probabilities.


def binary_cross_entropy(
    input: object, target: object, weight: object = None, *, reduction: str = "mean"
) -> Node:
    """-(y log(x) + (1 - y) log(1 - x)) for probabilities x and y; the logarithms stop at -100.

    ``weight`` broadcasts against the input and multiplies the loss of each position.
    """
    x, wanted = _alike("binary_cross_entropy", input, target)
    cost = apply("binary_cross_entropy", x, wanted)
    return _scaled("binary_cross_entropy", cost, weight, reduction)


def binary_cross_entropy_with_logits(
    input: object,
    target: object,
    weight: object = None,
    *,
    reduction: str = "mean",
    pos_weight: object = None,
) -> Node:
    """The binary cross entropy of sigmoid(x), without overflow.

    Parameters
    ----------
    input : Tensor
        Scores, before the sigmoid.
    target : Tensor of the input's shape
        Probabilities.
    weight : Tensor, optional
        Broadcasts against the input and multiplies the loss of each position.
    reduction : {"mean", "sum", "none"}
    pos_weight : Tensor, optional
        Broadcasts against the input; what the positive part counts: above 1 for recall.
    """
    name = "binary_cross_entropy_with_logits"
    x, wanted = _alike(name, input, target)
    log = apply("log_sigmoid", x)
    if pos_weight is not None:
        log = log * ((_like(name, "pos_weight", pos_weight, x) - 1.0) * wanted + 1.0)
    cost = (1.0 - wanted) * x - log
    return _scaled(name, cost, weight, reduction)


def kl_div(
    input: object, target: object, *, reduction: str = "mean", log_target: bool = False
) -> Node:
    """The divergence of what is predicted from what is wanted: y (log(y) - x).

    Parameters
    ----------
    input : Tensor
        Logarithms of probabilities.
    target : Tensor of the input's shape
        Probabilities, or their logarithms where ``log_target`` says so.
    reduction : {"mean", "batchmean", "sum", "none"}
        "batchmean" divides the sum by the size of the first axis, as the mathematics does.
    log_target : bool
    """
    x, wanted = _alike("kl_div", input, target)
    if log_target:
        return _reduced("kl_div", wanted.exp() * (wanted - x), reduction, "batchmean")
    logs = choose(wanted == 0.0, 1.0, wanted).log()  # y log(y) is 0 at 0
    return _reduced("kl_div", wanted * logs - wanted * x, reduction, "batchmean")


# What they share.

_REDUCTIONS = ("mean", "sum", "none")


def _check_reduction(name: str, reduction: str, *more: str) -> None:
    known = (*_REDUCTIONS, *more)
    if reduction not in known:
        expected = f"a reduction of {', '.join(known)}"
        raise ArgumentError(explain(name, expected, repr(reduction), where=here()))


def _reduced(name: str, cost: Node, reduction: str, *more: str) -> Node:
    _check_reduction(name, reduction, *more)
    if reduction == "batchmean":
        return cost.sum() / cost.shape[0] if cost.ndim else cost
    return {"mean": cost.mean, "sum": cost.sum, "none": lambda: cost}[reduction]()


def _weighted(name: str, cost: Node, weight: object, reduction: str) -> Node:
    """``cost`` reduced, each part with its weight; the mean is over the weights."""
    if weight is None:
        return _reduced(name, cost, reduction)
    weights = _of_shape(name, weight, cost)
    if reduction == "mean":
        return (cost * weights).sum() / weights.sum()
    return _reduced(name, cost * weights, reduction)


def _of_shape(name: str, weight: object, cost: Node) -> Node:
    """Weights of the shape of what they weigh."""
    weights = _like(name, "weight", weight, cost)
    if weights.shape != cost.shape:
        expected = f"a weight of the input's shape {shape_text(cost.shape)}"
        raise _mismatch(name, expected, shape_text(weights.shape))
    return weights


def _scaled(name: str, cost: Node, weight: object, reduction: str) -> Node:
    """``cost`` reduced, each part multiplied by a weight that broadcasts."""
    if weight is not None:
        cost = cost * _like(name, "weight", weight, cost)
    return _reduced(name, cost, reduction)


def _like(name: str, what: str, value: object, like: Node) -> Node:
    """Weights as a tensor of the element type of what they weigh."""
    weight = as_tensor(value)
    if weight.dtype != like.dtype:
        expected = f"a {what} of {like.dtype} like its input"
        raise DTypeError(explain(name, expected, weight.dtype, where=here()))
    return weight


def _alike(name: str, input: object, target: object) -> tuple[Node, Node]:
    """Prediction and target, which have one shape: broadcast, they would give a wrong loss."""
    x, wanted = as_tensor(input), as_tensor(target)
    if x.ndim != wanted.ndim or not all(map(equal, x.shape, wanted.shape)):
        expected = f"a target of the input's shape {shape_text(x.shape)}"
        advice = "Reshape one of them, or broadcast it with expand where that is meant."
        if same(x.numel(), wanted.numel()):
            advice = f"Reshape it: target.reshape{shape_text(x.shape)}."
        raise _mismatch(name, expected, shape_text(wanted.shape), advice)
    if not is_float(x.dtype) or x.dtype != wanted.dtype:
        expected = "input and target of one type of floats"
        advice = "Cast the target with target.to(input.dtype)."
        got = f"{x.dtype} and {wanted.dtype}"
        raise DTypeError(explain(name, expected, got, where=here(), advice=advice))
    return x, wanted


def _mismatch(name: str, expected: str, got: str, advice: str = "") -> ShapeError:
    return ShapeError(explain(name, expected, got, where=here(), advice=advice))
