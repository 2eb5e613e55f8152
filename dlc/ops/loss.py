"""Losses of classifiers, one value a position, as ops that gradients recognise.

The gradient of cross entropy is the softmax minus a one-hot tensor. Written so, by comparison of
each label with the numbers of the classes, it is pointwise and needs no scatter, no second sum over
the classes and no one-hot tensor in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from dlc.errors import ArgumentError, DTypeError, IndexError, ShapeError
from dlc.ir.node import Node, apply
from dlc.ir.op import OPS, Array, ErrorSample, Kind, OpDef, Sample
from dlc.ir.sizes import Size, bounds, equal, shape_text
from dlc.ir.types import TensorType, tensor
from dlc.ops.common import (
    only_floats,
    plain,
    require_float,
    require_integer,
    unbroadcast,
    uniform,
    where,
)
from dlc.ops.window import check_one_dtype

#: PyTorch's label of a position that does not count.
IGNORED = -100

# What the losses of labels share: x (N, C, ...), labels (N, ...), weights of the classes (C,).


def _nll_attrs(*types: TensorType, ignore_index: int = IGNORED) -> dict[str, Any]:
    return {"ignore_index": int(ignore_index)}


def _labels_type(x: TensorType, label: TensorType, *weight: TensorType, **_: Any) -> TensorType:
    require_float(x)
    require_integer(label, "labels")
    check_one_dtype(input=x, **dict(zip(("weight",), weight)))
    if x.ndim < 2 or bounds(x.shape[1])[0] < 1:
        raise ShapeError(
            f"expects scores (N, C, ...) of 1 class or more, got {shape_text(x.shape)}"
        )
    positions = (x.shape[0], *x.shape[2:])
    if label.ndim != len(positions) or not all(map(equal, label.shape, positions)):
        raise ShapeError(
            f"expects labels {shape_text(positions)} for scores {shape_text(x.shape)}, "
            f"got {shape_text(label.shape)}"
        )
    for w in weight:
        if w.ndim != 1 or not equal(w.shape[0], x.shape[1]):
            raise ShapeError(
                f"expects a weight for each of {x.shape[1]} classes, got {shape_text(w.shape)}"
            )
    return TensorType(x.dtype, positions)


def _counted(label: Node, ignore_index: int) -> tuple[Node, Node]:
    """Whether each position counts, and its label, or 0 where it does not."""
    counts = label != ignore_index
    return counts, where(counts, label, 0)


def _is_class(x: Node, label: Node, ignore_index: int) -> Node:
    """Whether each score is that of its position's label, as a bool of the scores' shape; nowhere
    where a position does not count.
    """
    classes = x.builder.node("iota", (), {"size": x.shape[1], "dtype": label.dtype})
    if ignore_index >= 0:  # else no class has its number
        label = where(label == ignore_index, -1, label)
    own: Node = _by_class(classes, x) == label.unsqueeze(1)
    return own


def _by_class(vector: Node, like: Node) -> Node:
    """A vector (C,) as (C, 1, ...), which broadcasts along the classes of ``like``."""
    return vector.reshape(vector.shape[0], *[1] * (like.ndim - 2))


# Negative log-likelihood.


def _nll_ref(x: Array, label: Array, *weight: Array, ignore_index: int) -> Array:
    _check_labels("nll_loss", label, x.shape[1], ignore_index)
    counts = label != ignore_index
    safe = np.where(counts, label, 0)
    picked = np.take_along_axis(x, safe[:, None].astype(np.int64), 1)[:, 0]
    cost = -picked * weight[0][safe] if weight else -picked
    return np.where(counts, cost, x.dtype.type(0))


def _check_labels(op: str, label: Array, classes: int, ignore_index: int) -> None:
    wrong = np.argwhere(((label < 0) | (label >= classes)) & (label != ignore_index))
    if len(wrong):
        place = tuple(wrong[0].tolist())
        raise IndexError(
            f"{op} expects labels from 0 to {classes - 1} (or {ignore_index}, which is ignored), "
            f"got {label[place]} at {place}"
        )


def _nll_expand(x: Node, label: Node, *weight: Node, ignore_index: int) -> Node:
    counts, safe = _counted(label, ignore_index)
    own = apply("gather", x, safe.unsqueeze(1), axis=1, what="labels")
    cost = -own.reshape(label.shape)
    if weight:
        cost = cost * of_label(weight[0], safe)
    return where(counts, cost, 0.0)


def of_label(weight: Node, label: Node) -> Node:
    """The weight of each label's class, in the shape of the labels."""
    return apply("take", weight, label, axis=0, what="labels")


def _nll_grad(
    g: Node, y: Node, x: Node, label: Node, *weight: Node, ignore_index: int
) -> tuple[Node | None, ...]:
    here = -g.unsqueeze(1)
    if weight:
        here = here * _by_class(weight[0], x)
    return where(_is_class(x, label, ignore_index), here, 0.0), None, *_constant(*weight)


def _constant(*weight: Node) -> tuple[None, ...]:
    """Weights of classes are constants of a loss, as in PyTorch."""
    return (None,) * len(weight)


# Cross entropy: the negative log-likelihood of the softmax. Smoothing moves a share of each label
# to all classes alike.


def _entropy_attrs(
    *types: TensorType, ignore_index: int = IGNORED, label_smoothing: float = 0.0
) -> dict[str, Any]:
    if not 0.0 <= label_smoothing <= 1.0:
        raise ArgumentError(f"expects label_smoothing from 0 to 1, got {label_smoothing!r}")
    return {"ignore_index": int(ignore_index), "label_smoothing": float(label_smoothing)}


def _entropy_ref(
    x: Array, label: Array, *weight: Array, ignore_index: int, label_smoothing: float
) -> Array:
    _check_labels("cross_entropy", label, x.shape[1], ignore_index)
    logs = OPS["log_softmax"].ref(x, axis=1)
    cost = _nll_ref(logs, label, *weight, ignore_index=ignore_index)
    if label_smoothing == 0:
        return cost
    scale = weight[0].reshape(-1, *[1] * (x.ndim - 2)) if weight else x.dtype.type(1)
    spread = np.where(label != ignore_index, -(logs * scale).sum(1), 0)
    share = label_smoothing / x.shape[1]
    y: Array = (cost * (1 - label_smoothing) + spread * share).astype(x.dtype)
    return y


def _entropy_expand(
    x: Node, label: Node, *weight: Node, ignore_index: int, label_smoothing: float
) -> Node:
    logs = x.log_softmax(1)
    cost = x.builder.node("nll_loss", (logs, label, *weight), {"ignore_index": ignore_index})
    if label_smoothing == 0:
        return cost
    counts, _ = _counted(label, ignore_index)
    spread = -(logs * _by_class(weight[0], x) if weight else logs).sum(1)
    share = _share(label_smoothing, x)
    return cost * (1 - label_smoothing) + where(counts, spread, 0.0) * share


def _share(label_smoothing: float, x: Node) -> Node | float:
    """What smoothing gives to each class."""
    classes: Size = x.shape[1]
    if isinstance(classes, int):
        return label_smoothing / classes
    return label_smoothing / x.builder.operand(classes).to(x.dtype)


def _entropy_grad(
    g: Node, y: Node, x: Node, label: Node, *weight: Node, ignore_index: int, label_smoothing: float
) -> tuple[Node | None, ...]:
    """With t the smoothed one-hot and w the weights: softmax(x) sum(t w) - t w."""
    counts, safe = _counted(label, ignore_index)
    share = _share(label_smoothing, x)
    wanted = where(_is_class(x, label, ignore_index), 1.0, 0.0).to(x.dtype)
    if label_smoothing:
        wanted = wanted * (1 - label_smoothing) + share
    likely = x.log_softmax(1).exp()
    if weight:
        own = of_label(weight[0], safe) * (1 - label_smoothing) + weight[0].sum() * share
        wanted, likely = wanted * _by_class(weight[0], x), likely * own.unsqueeze(1)
    return where(counts, g, 0.0).unsqueeze(1) * (likely - wanted), None, *_constant(*weight)


# Binary cross entropy. Logarithms stop at -100, and so do the gradients at 0 and 1, as in PyTorch.

_LEAST_LOG, _LEAST_VARIANCE = -100.0, 1e-12


def _binary_ref(x: Array, target: Array) -> Array:
    floor, one = x.dtype.type(_LEAST_LOG), x.dtype.type(1)
    away, near = np.maximum(np.log1p(-x), floor), np.maximum(np.log(x), floor)
    y: Array = (target - one) * away - target * near
    return y


def _binary_grad(g: Node, y: Node, x: Node, target: Node) -> tuple[Node, Node]:
    variance = (x * (1.0 - x)).maximum(_LEAST_VARIANCE)
    odds = (-x).log1p().maximum(_LEAST_LOG) - x.log().maximum(_LEAST_LOG)
    return unbroadcast(g * (x - target) / variance, x), unbroadcast(g * odds, target)


# Samples and errors.


def _label_samples(settings: tuple[dict[str, Any], ...]) -> Any:
    def samples(rng: np.random.Generator) -> Iterator[Sample]:
        for attrs in settings:
            for shape in ((4, 3), (2, 3, 5), (2, 5, 3, 4), (0, 3), (6, 1)):
                x, label = rng.normal(size=shape), rng.integers(0, shape[1], _places(shape))
                label[rng.random(label.shape) < 0.3] = attrs.get("ignore_index", IGNORED)
                yield Sample((x, label.astype(np.int32)), attrs, differentiable=(0,))
                weight = rng.uniform(0.5, 2.0, shape[1])
                yield Sample((x, label, weight), attrs, differentiable=(0,))
        yield plain([[900.0, -900.0], [np.nan, 1.0], [0.0, 1.0]], [1, -100, 0])

    return samples


def _places(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[0], *shape[2:])


def _label_errors() -> Iterator[ErrorSample]:
    x, label = tensor("float32", (4, 3)), tensor("int64", (4,))
    whole = tensor("int64", (4, 3))
    yield ErrorSample((x, whole), {}, ShapeError, "expects labels (4,) for scores (4, 3)")
    yield ErrorSample((x, tensor("float32", (4,))), {}, DTypeError, "expects labels of int32")
    yield ErrorSample((label, label), {}, DTypeError, "a tensor of floats")
    yield ErrorSample((x, label, tensor("float32", (4,))), {}, ShapeError, "each of 3 classes")
    yield ErrorSample((x, label, tensor("float64", (3,))), {}, DTypeError, "one element type")
    yield ErrorSample((tensor("float32", (4, 0)), label), {}, ShapeError, "1 class or more")


def _entropy_errors() -> Iterator[ErrorSample]:
    yield from _label_errors()
    types = tensor("float32", (4, 3)), tensor("int64", (4,))
    yield ErrorSample(types, {"label_smoothing": 1.5}, ArgumentError, "label_smoothing from 0 to 1")


def _binary_samples(rng: np.random.Generator) -> Iterator[Sample]:
    for shape in ((4, 3), (), (0, 3), (2, 1, 5)):
        yield Sample(uniform(rng, shape, shape, low=0.1, high=0.9))
    yield plain([[0.0, 1.0, 0.5, 1.0, 0.0]], [[0.0, 1.0, 1.0, 0.0, 1.0]])


def _labels_torch(name: str) -> Any:
    def call(torch: Any, x: Any, label: Any, weight: Any = None, **attrs: Any) -> Any:
        function = getattr(torch.nn.functional, name)
        return function(x, label.long(), weight, reduction="none", **attrs)

    return call


# The records.

nll_loss = OpDef(
    "nll_loss",
    Kind.COMPOSITE,
    arity=(2, 3),
    infer=_labels_type,
    ref=_nll_ref,
    doc="minus the element of x (N, C, ...) that each label names, times the weight of its class",
    attrs=_nll_attrs,
    grad=_nll_grad,
    expand=_nll_expand,
    samples=_label_samples(({}, {"ignore_index": 0})),
    errors=_label_errors,
    torch=_labels_torch("nll_loss"),
    checks=True,
)

cross_entropy = OpDef(
    "cross_entropy",
    Kind.COMPOSITE,
    arity=(2, 3),
    infer=_labels_type,
    ref=_entropy_ref,
    doc="minus the logarithm of the softmax of x (N, C, ...) at each label, weighted by class",
    attrs=_entropy_attrs,
    grad=_entropy_grad,
    expand=_entropy_expand,
    flops=lambda y, x, *rest, **_: x.count * 6,
    samples=_label_samples(({}, {"label_smoothing": 0.1}, {"ignore_index": 0})),
    errors=_entropy_errors,
    torch=_labels_torch("cross_entropy"),
    checks=True,
    ulp=8.0,
)

binary_cross_entropy = OpDef(
    "binary_cross_entropy",
    Kind.POINTWISE,
    arity=2,
    infer=only_floats,
    ref=_binary_ref,
    doc="-(y log(x) + (1 - y) log(1 - x)) of a probability x, with logarithms of at least -100",
    scalar="({1} - 1.0) * fmax(log1p(-{0}), -100.0) - {1} * fmax(log({0}), -100.0)",
    grad=_binary_grad,
    flops=lambda y, x, target: y.count * 7,
    samples=_binary_samples,
    errors=lambda: [
        ErrorSample((TensorType("int64", (2,)),) * 2, {}, DTypeError, "a tensor of floats")
    ],
    torch=lambda torch, x, target: torch.nn.functional.binary_cross_entropy(
        x, target, reduction="none"
    ),
    ulp=4.0,
)
