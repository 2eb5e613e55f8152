"""Fold batch norms, scales and biases into the convolutions and linear layers beside them.

With given statistics a batch norm is a scale and a bias for each channel, x·s + t. Convolutions
and linear layers are linear, so a scale on either side goes into the weights and a bias before goes
through them; a bias behind is the layer's own, added at the store:

    bn(conv(x, w)) = conv(x, w)·s + t = conv(x, w·s) + t

The new weights stay expressions of the parameters, which `prepare` computes once for each version
of them. Training is not touched: its statistics depend on the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dlc.ir.manager import RulePass
from dlc.ir.node import Node
from dlc.ir.pattern import Guard, op, parametric, rule, used_once
from dlc.ir.sizes import product
from dlc.ops.norm import by_channel

# Which shapes are one value a channel.


def per_channel(v: Node, channels: Any, ndim: int, axis: int) -> bool:
    """Whether ``v``, broadcast to ``ndim`` dimensions, varies along ``axis`` alone, if at all."""
    if v.ndim > ndim:
        return False
    shape = (*(1,) * (ndim - v.ndim), *v.shape)
    sizes = (size in (1, channels) if k == axis else size == 1 for k, size in enumerate(shape))
    return all(sizes)


def _channels_of(v: str, x: str) -> Guard:
    def test(v: Node, x: Node) -> bool:
        return x.ndim == 4 and per_channel(v, x.shape[1], 4, 1)

    return Guard(f"{v} has one value a channel of {x}", test, (v, x))


def _features_of(v: str, x: str) -> Guard:
    def test(v: Node, x: Node) -> bool:
        return per_channel(v, x.shape[-1], x.ndim, x.ndim - 1)

    return Guard(f"{v} has one value a feature of {x}", test, (v, x))


NOT_PARAMETRIC = Guard("x is not parametric", lambda x, parametric: not parametric(x))
NO_PADDING = Guard("there is no padding", lambda c: c["padding"] == ((0, 0), (0, 0)))

# The algebra.


def on_outputs(w: Node, s: Node) -> Node:
    """Weights (O, ...) with one factor an output channel; ``s`` has O elements, or one."""
    return w * s.reshape((product(s.shape), *(1,) * (w.ndim - 1)))


def on_inputs(v: Node, w: Node, groups: int) -> Node:
    """One value an input channel as a factor of convolution weights (O, C / groups, KH, KW)."""
    outputs, inputs = w.shape[:2]
    if product(v.shape) == 1:
        return v.reshape((1, 1, 1, 1))
    rows = v.reshape((groups, 1, inputs)).expand((groups, outputs // groups, inputs))
    return rows.reshape((outputs, inputs, 1, 1))


def _scale(v: Node, g: Node, eps: float) -> Node:
    return g / (v + eps).sqrt()


def _scale_and_shift(x: Node, m: Node, v: Node, g: Node, b: Node, eps: float) -> Node:
    s = _scale(v, g, eps)
    return x * by_channel(s, x) + by_channel(b - m * s, x)


def _through(t: Node, w: Node, groups: int) -> Node:
    """What a bias of the input channels becomes behind the convolution: (O, 1, 1)."""
    return (w * on_inputs(t, w, groups)).sum((1, 2, 3)).reshape((w.shape[0], 1, 1))


def _vector(v: Node, like: Node) -> Node:
    """One value a feature as a vector of the features of ``like``."""
    size = like.shape[-1]
    return v.reshape((product(v.shape),)).expand((size,))


def _times(b: tuple[Node, ...], s: Node) -> tuple[Node, ...]:
    return tuple(v * s for v in b)


def _plus(b: tuple[Node, ...], t: Node) -> Node:
    return b[0] + t if b else t


# The rules.

NORMAL_FORM = (
    rule(
        "bn(x, 0, v, g, 0) -> x·s",
        lambda x, v, g, e: op.batch_norm(x, 0, v, g, 0, eps=e),
        lambda x, v, g, e: x * by_channel(_scale(v, g, e), x),
        parametric("v", "g"),
        rounding=4,
    ),
    rule(
        "bn(x, m, v, g, b) -> x·s + t",
        lambda x, m, v, g, b, eps: op.batch_norm(x, m, v, g, b, eps=eps),
        _scale_and_shift,
        parametric("m", "v", "g", "b"),
        rounding=8,
    ),
    rule(
        "x - t -> x + (-t)",
        lambda x, t: x - t,
        lambda x, t: x + (-t),
        parametric("t"),
        NOT_PARAMETRIC,
    ),
    rule(
        "x / s -> x · (1/s)",
        lambda x, s: x / s,
        lambda x, s: x * op.reciprocal(s),
        parametric("s"),
        NOT_PARAMETRIC,
        rounding=2,
    ),
)

CONVOLUTION = (
    rule(
        "conv(x, w)·s -> conv(x, w·s)",
        lambda x, w, s, c, conv: conv(op.conv2d(x, w, **c)) * s,
        lambda x, w, s, c: op.conv2d(x, on_outputs(w, s), **c),
        used_once("conv"),
        parametric("w", "s"),
        _channels_of("s", "conv"),
        rounding=2,
    ),
    rule(
        "(conv(x, w) + b)·s -> conv(x, w·s) + b·s",
        lambda x, w, b, s, c, conv, biased: biased(conv(op.conv2d(x, w, **c)) + b) * s,
        lambda x, w, b, s, c: op.conv2d(x, on_outputs(w, s), **c) + b * s,
        used_once("conv", "biased"),
        parametric("w", "b", "s"),
        _channels_of("s", "conv"),
        rounding=3,
    ),
    rule(
        "conv(x, w) + b + t -> conv(x, w) + (b + t)",
        lambda x, w, b, t, c, biased: biased(op.conv2d(x, w, **c) + b) + t,
        lambda x, w, b, t, c: op.conv2d(x, w, **c) + (b + t),
        used_once("biased"),
        parametric("b", "t"),
        rounding=2,
    ),
    rule(
        "conv(x·s, w) -> conv(x, w·s)",
        lambda x, s, w, c, scaled: op.conv2d(scaled(x * s), w, **c),
        lambda x, s, w, c: op.conv2d(x, w * on_inputs(s, w, c["groups"]), **c),
        used_once("scaled"),
        parametric("w", "s"),
        _channels_of("s", "x"),
        rounding=2,
    ),
    rule(
        "conv(x + t, w) -> conv(x, w) + Σ w·t",
        lambda x, t, w, c, shifted: op.conv2d(shifted(x + t), w, **c),
        lambda x, t, w, c: op.conv2d(x, w, **c) + _through(t, w, c["groups"]),
        used_once("shifted"),
        parametric("w", "t"),
        _channels_of("t", "x"),
        NO_PADDING,
        rounding=3,
    ),
)

LINEAR = (
    rule(
        "linear(x, w, b)·s -> linear(x, w·s, b·s)",
        lambda x, w, b, s, linear: linear(op.linear(x, w, *b)) * s,
        lambda x, w, b, s, linear: op.linear(x, on_outputs(w, s), *_times(b, _vector(s, linear))),
        used_once("linear"),
        parametric("w", "b", "s"),
        _features_of("s", "linear"),
        rounding=3,
    ),
    rule(
        "linear(x, w, b) + t -> linear(x, w, b + t)",
        lambda x, w, b, t, linear: linear(op.linear(x, w, *b)) + t,
        lambda x, w, b, t, linear: op.linear(x, w, _plus(b, _vector(t, linear))),
        used_once("linear"),
        parametric("b", "t"),
        _features_of("t", "linear"),
        rounding=2,
    ),
    rule(
        "linear(x·s, w, b) -> linear(x, w·s, b)",
        lambda x, s, w, b, scaled: op.linear(scaled(x * s), w, *b),
        lambda x, s, w, b: op.linear(x, w * _vector(s, x), *b),
        used_once("scaled"),
        parametric("w", "s"),
        _features_of("s", "x"),
        rounding=2,
    ),
    rule(
        "linear(x + t, w, b) -> linear(x, w, w·t + b)",
        lambda x, t, w, b, shifted: op.linear(shifted(x + t), w, *b),
        lambda x, t, w, b: op.linear(x, w, _plus(b, w @ _vector(t, x))),
        used_once("shifted"),
        parametric("w", "t"),
        _features_of("t", "x"),
        rounding=3,
    ),
)


@dataclass(frozen=True)
class FoldBatchNorm(RulePass):
    """Fold batch norms, scales and biases into the convolutions and linear layers beside them."""

    name = "fold-bn"
    rules = (*NORMAL_FORM, *CONVOLUTION, *LINEAR)
