"""Functions of neural networks with PyTorch's names and arguments: ``functional as F``.

Each is a few words around one op, so that a layer, its functional form and its op agree. What a
layer keeps (weights, running statistics) is passed in; a running statistic that is a buffer gets
its new value when the call is done.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from dlc.errors import ArgumentError, ShapeError, explain
from dlc.frontend.absent import explained
from dlc.frontend.losses import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    cross_entropy,
    huber_loss,
    kl_div,
    l1_loss,
    mse_loss,
    nll_loss,
    smooth_l1_loss,
)
from dlc.frontend.parameter import Buffer
from dlc.frontend.random import draw
from dlc.frontend.scope import active, here
from dlc.frontend.tensors import arange, as_tensor, cast, flatten, full, sigmoid, tanh
from dlc.ir.node import Node, apply
from dlc.ir.sizes import bounds, product, shape_text

__all__ = [
    "adaptive_avg_pool2d",
    "avg_pool2d",
    "batch_norm",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "celu",
    "conv2d",
    "cross_entropy",
    "dropout",
    "elu",
    "embedding",
    "flatten",
    "gelu",
    "hardtanh",
    "huber_loss",
    "kl_div",
    "l1_loss",
    "layer_norm",
    "leaky_relu",
    "linear",
    "log_softmax",
    "logsigmoid",
    "max_pool2d",
    "mse_loss",
    "nll_loss",
    "one_hot",
    "pad",
    "prelu",
    "relu",
    "relu6",
    "selu",
    "sigmoid",
    "silu",
    "smooth_l1_loss",
    "softmax",
    "softmin",
    "softplus",
    "tanh",
]

__getattr__ = explained("dlc.functional", __all__)

#: A size of a window: one for rows and columns, or one each.
Pair = int | Sequence[int]

# Activations. ``inplace`` is taken for PyTorch's sake and changes nothing: values are pure.


def relu(input: object, inplace: bool = False) -> Node:
    """max(x, 0); NaN stays."""
    return apply("relu", input)


def relu6(input: object, inplace: bool = False) -> Node:
    """x held between 0 and 6."""
    return apply("relu6", input)


def hardtanh(
    input: object, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> Node:
    """x held between ``min_val`` and ``max_val``."""
    return apply("hardtanh", input, low=min_val, high=max_val)


def leaky_relu(input: object, negative_slope: float = 0.01, inplace: bool = False) -> Node:
    """x above zero, ``negative_slope`` x below."""
    return apply("leaky_relu", input, slope=negative_slope)


def prelu(input: object, weight: object) -> Node:
    """x above zero, ``weight`` x below; the weight is one slope, or one a channel (axis 1)."""
    x, slope = as_tensor(input), as_tensor(weight)
    if slope.shape in ((), (1,)):
        return apply("prelu", x, slope)
    if slope.shape != x.shape[1:2]:
        expected = f"one slope, or one a channel of {shape_text(x.shape)}"
        raise ShapeError(explain("prelu", expected, shape_text(slope.shape), where=here()))
    return apply("prelu", x, slope.reshape(-1, *[1] * (x.ndim - 2)))


def elu(input: object, alpha: float = 1.0, inplace: bool = False) -> Node:
    """x above zero, ``alpha`` (exp(x) - 1) below."""
    return apply("elu", input, alpha=alpha)


def celu(input: object, alpha: float = 1.0, inplace: bool = False) -> Node:
    """x above zero, ``alpha`` (exp(x / alpha) - 1) below."""
    return apply("celu", input, alpha=alpha)


def selu(input: object, inplace: bool = False) -> Node:
    """The self-normalising ELU: Klambauer et al., 2017."""
    return apply("selu", input)


def gelu(input: object, approximate: str = "none") -> Node:
    """x times the normal distribution function at x, or its approximation by "tanh"."""
    return apply("gelu", input, approximate=approximate)


def silu(input: object, inplace: bool = False) -> Node:
    """x sigmoid(x)."""
    return apply("silu", input)


def softplus(input: object, beta: float = 1.0, threshold: float = 20.0) -> Node:
    """log(1 + exp(beta x)) / beta; x itself where beta x is above ``threshold``."""
    return apply("softplus", input, beta=beta, threshold=threshold)


def logsigmoid(input: object) -> Node:
    """log(sigmoid(x)) without overflow."""
    return apply("log_sigmoid", input)


def softmax(input: object, dim: int, dtype: object = None) -> Node:
    """exp(x) over its sum along ``dim``; computed in ``dtype`` where one is given."""
    return as_tensor(input).softmax(dim, dtype)


def softmin(input: object, dim: int, dtype: object = None) -> Node:
    """The softmax of -x along ``dim``."""
    return (-as_tensor(input)).softmax(dim, dtype)


def log_softmax(input: object, dim: int, dtype: object = None) -> Node:
    """The logarithm of the softmax along ``dim``, without overflow."""
    return as_tensor(input).log_softmax(dim, dtype)


# Layers with weights.


def linear(input: object, weight: object, bias: object = None) -> Node:
    """x W^T + b for x (..., in), W (out, in) and b (out)."""
    return apply("linear", input, weight, *([] if bias is None else [bias]))


def conv2d(
    input: object,
    weight: object,
    bias: object = None,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> Node:
    """The 2-d convolution (cross-correlation) of images.

    Parameters
    ----------
    input : Tensor (N, C, H, W) or (C, H, W)
    weight : Tensor (O, C / groups, KH, KW)
    bias : Tensor (O), optional
    stride, dilation : int or (rows, columns)
    padding : int, (rows, columns), "valid" or "same"
        "same" pads so that the output has the input's size, the odd one at the bottom right; it
        needs a stride of 1.
    groups : int

    Raises
    ------
    ShapeError
        The channels or the bias do not fit, or the window is larger than the padded image.
    """
    w = as_tensor(weight)
    pads = _padding(padding, w, stride, dilation)
    attrs = {"stride": stride, "padding": pads, "dilation": dilation, "groups": groups}
    y = _on_images("conv2d", input, w, **attrs)
    if bias is None:
        return y
    b = as_tensor(bias)
    if b.shape != w.shape[:1]:
        expected, got = f"a bias of shape {shape_text(w.shape[:1])}", shape_text(b.shape)
        raise ShapeError(explain("conv2d", expected, got, where=here()))
    return y + b.reshape(-1, 1, 1)


def check_padding(padding: Pair | str, stride: Pair) -> None:
    """Refuse words that conv2d does not know, and "same" where it has no meaning."""
    if isinstance(padding, str) and padding not in ("valid", "same"):
        expected = "padding as 'valid', 'same', an int or a pair of ints"
        raise ArgumentError(explain("conv2d", expected, repr(padding), where=here()))
    if padding == "same" and stride not in (1, (1, 1), [1, 1]):
        message = explain("padding='same'", "a stride of 1", repr(stride), where=here())
        raise ArgumentError(message)


def _padding(padding: Any, w: Node, stride: Pair, dilation: Pair) -> Any:
    """Padding in the op's form; "same" splits what the window reaches beyond one element."""
    check_padding(padding, stride)
    if not isinstance(padding, str):
        return padding
    if padding == "valid":
        return 0
    steps = (dilation, dilation) if isinstance(dilation, int) else dilation
    reach = [step * (size - 1) for step, size in zip(steps, w.shape[2:], strict=True)]
    return tuple((total // 2, total - total // 2) for total in reach)


def embedding(input: object, weight: object, padding_idx: int | None = None) -> Node:
    """The rows of ``weight`` (rows, features) that the integers of ``input`` name.

    ``padding_idx`` is a row that training leaves alone; it changes no value.
    """
    return apply("take", weight, input, axis=0)


# Pooling.


def max_pool2d(
    input: object,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Node:
    """The greatest element of each window of (N, C, H, W) or (C, H, W); NaN wins.

    The stride is the kernel's size where none is given; positions are not given.
    """
    no_indices(return_indices)
    return _on_images(
        "max_pool2d",
        input,
        kernel=kernel_size,
        stride=stride,
        padding=padding,
        dilation=dilation,
        ceil_mode=ceil_mode,
    )


def avg_pool2d(
    input: object,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Node:
    """The mean of each window of (N, C, H, W) or (C, H, W).

    The stride is the kernel's size where none is given; padding counts as zeros unless
    ``count_include_pad`` is off. With ``divisor_override`` it is the sum over that.
    """
    window = {"kernel": kernel_size, "stride": stride, "padding": padding}
    means = {"ceil_mode": ceil_mode, "count_include_pad": count_include_pad}
    if divisor_override is None:
        return _on_images("avg_pool2d", input, **window, **means)
    if ceil_mode:  # a window that reaches out has another number of elements
        advice = "Pad the image first."
        message = explain("avg_pool2d with a divisor", "ceil_mode=False", "True", advice=advice)
        raise ArgumentError(message)
    sizes = kernel_size if isinstance(kernel_size, Sequence) else (kernel_size, kernel_size)
    mean = _on_images("avg_pool2d", input, **window)
    return mean * (math.prod(sizes) / divisor_override)


def no_indices(return_indices: bool) -> None:
    """Refuse to give positions with the elements, which no op does."""
    if return_indices:
        raise ArgumentError(explain("max_pool2d", "return_indices=False", "True", where=here()))


def adaptive_avg_pool2d(input: object, output_size: int | Sequence[int | None]) -> Node:
    """The means over ``output_size`` (rows, columns) windows that divide the image evenly.

    None keeps the size of an axis.
    """
    return _on_images("adaptive_avg_pool2d", input, output_size=output_size)


def _on_images(op: str, input: object, *weights: Node, **attrs: Any) -> Node:
    """An op on images (N, C, H, W), or on one image (C, H, W) as a batch of one."""
    x = as_tensor(input)
    if x.ndim == 3:
        return apply(op, x.unsqueeze(0), *weights, **attrs).squeeze(0)
    return apply(op, x, *weights, **attrs)


# Normalisation.


def batch_norm(
    input: object,
    running_mean: object,
    running_var: object,
    weight: object = None,
    bias: object = None,
    training: bool = False,
    momentum: float | Node = 0.1,
    eps: float = 1e-5,
) -> Node:
    """Each channel (axis 1) shifted to mean 0 and scaled to variance 1, then by weight and bias.

    Parameters
    ----------
    input : Tensor (N, C, ...)
    running_mean, running_var : Buffer or Tensor (C), optional in training
        What inference normalises by. In training, buffers move towards the batch's statistics
        (the variance with n - 1; of a single value a channel, with n).
    weight, bias : Tensor (C), optional
    training : bool
        Normalise by mean and variance of the batch.
    momentum : float
        Share of the batch in the new running statistics.
    eps : float
        Added to the variance.
    """
    x = as_tensor(input)
    if not training and (running_mean is None or running_var is None):
        advice = "Pass them, or normalise by the batch with training=True."
        message = explain("batch_norm", "running statistics", "None", where=here(), advice=advice)
        raise ArgumentError(message)
    channels = x.shape[1:2]
    scale = full(channels, 1, x.dtype) if weight is None else weight
    shift = full(channels, 0, x.dtype) if bias is None else bias
    if not training:
        return apply("batch_norm", x, running_mean, running_var, scale, shift, eps=eps)
    outputs = apply("batch_norm_train", x, scale, shift, eps=eps)
    y, mean, var = (outputs.project(i) for i in range(3))
    _move(running_mean, mean, momentum)
    _move(running_var, var * _bessel(x), momentum)
    return y


def _bessel(x: Node) -> Node | float:
    """n / (n - 1) for the number n of values a channel."""
    count = product((x.shape[0], *x.shape[2:]))
    if isinstance(count, int):
        return count / max(count - 1, 1)
    n = as_tensor(count).to(x.dtype)
    return n / apply("maximum", n - 1.0, 1.0)


def _move(running: object, value: Node, share: float | Node) -> None:
    """Move a running statistic by ``share`` of the way to a new value."""
    scope = active()
    if isinstance(running, Buffer) and scope is not None:
        scope.assign(running, running * (1.0 - share) + value * share)


def layer_norm(
    input: object,
    normalized_shape: int | Sequence[int],
    weight: object = None,
    bias: object = None,
    eps: float = 1e-5,
) -> Node:
    """The last axes, of sizes ``normalized_shape``, to mean 0 and variance 1, then scale and shift.

    Parameters
    ----------
    input : Tensor (..., *normalized_shape)
    normalized_shape : int or sequence of int
    weight, bias : Tensor of shape ``normalized_shape``, optional
    eps : float
        Added to the variance.
    """
    x = as_tensor(input)
    sizes = trailing(normalized_shape)
    scale = full(sizes, 1, x.dtype) if weight is None else weight
    shift = full(sizes, 0, x.dtype) if bias is None else bias
    return apply("layer_norm", x, scale, shift, ndim=len(sizes), eps=eps)


def trailing(sizes: int | Sequence[int]) -> tuple[int, ...]:
    """Sizes of the last axes, given as one or several, as a tuple."""
    return tuple(sizes) if isinstance(sizes, Sequence) else (sizes,)


# The rest.


def dropout(input: object, p: float = 0.5, training: bool = True, inplace: bool = False) -> Node:
    """Elements zeroed with probability ``p`` in training, and the others divided by ``1 - p``; in
    inference ``input`` as it is.

    Every call draws anew; `dlc.seed` makes it reproducible.
    """
    if not 0.0 <= p <= 1.0:
        raise ArgumentError(explain("dropout", "p from 0 to 1", str(p), where=here()))
    x = as_tensor(input)
    if not training or p == 0.0:
        return x
    if p == 1.0:
        return x * 0.0
    kept = draw(x.shape, x.dtype) >= p
    return x * cast(kept, x.dtype) * (1.0 / (1.0 - p))


def pad(input: object, pad: Sequence[int], mode: str = "constant", value: float = 0.0) -> Node:
    """``input`` with elements added before and after, or taken away where a number is negative.

    Parameters
    ----------
    input : Tensor
    pad : sequence of int
        Before and after for the last axis, then for the one before it, and so on.
    mode : str
        "constant" puts ``value`` there, "reflect" what lies behind the edge, "replicate" the edge,
        "circular" what lies at the other end.
    value : float
    """
    x = as_tensor(input)
    if mode not in ("constant", *_EDGES):
        expected = f"mode to be constant, {', '.join(_EDGES)}"
        raise ArgumentError(explain("pad", expected, repr(mode), where=here()))
    if len(pad) % 2 or len(pad) > 2 * x.ndim:
        expected = f"two numbers an axis for at most {x.ndim} axes"
        raise ArgumentError(explain("pad", expected, repr(tuple(pad)), where=here()))
    axes = [(0, 0)] * (x.ndim - len(pad) // 2)
    axes += [(pad[i], pad[i + 1]) for i in range(len(pad) - 2, -1, -2)]
    if mode != "constant":
        for axis, (before, after) in enumerate(axes):
            x = _with_edges(x, axis, before, after, mode) if (before, after) != (0, 0) else x
        return x
    crop = [
        slice(max(-low, 0), size - max(-high, 0))
        for (low, high), size in zip(axes, x.shape, strict=True)
    ]
    if any(number < 0 for number in pad):
        x = x[tuple(crop)]
    low, high = ([max(number, 0) for number in side] for side in zip(*axes, strict=True))
    return apply("pad", x, low=low, high=high, value=float(value or 0.0))


def _with_edges(x: Node, axis: int, before: int, after: int, mode: str) -> Node:
    """``x`` with elements of its own before and after along an axis."""
    size = x.shape[axis]
    least, most = bounds(size)[0], max(before, after)
    if min(before, after) < 0 or least < (_EDGES[mode](most) if most else 0):
        expected = f"numbers from 0 that mode={mode!r} finds in an axis of {size}"
        raise ArgumentError(explain("pad", expected, f"{before} and {after}", where=here()))
    if mode == "reflect":
        first, last = x.narrow(axis, 1, before), x.narrow(axis, size - 1 - after, after)
        first, last = first.flip(axis), last.flip(axis)
    elif mode == "circular":
        first, last = x.narrow(axis, size - before, before), x.narrow(axis, 0, after)
    else:
        edges = x.narrow(axis, 0, 1), x.narrow(axis, size - 1, 1)
        shapes = [(*x.shape[:axis], n, *x.shape[axis + 1 :]) for n in (before, after)]
        first, last = (edge.expand(shape) for edge, shape in zip(edges, shapes, strict=True))
    return apply("concat", first, x, last, axis=axis)


#: How long an axis must be for so many elements outside it.
_EDGES = {"reflect": lambda n: n + 1, "replicate": lambda n: 1, "circular": lambda n: n}


def one_hot(input: object, num_classes: int) -> Node:
    """A new last axis of size ``num_classes`` with 1 at the place that each integer names (int64).

    An integer outside ``0..num_classes - 1`` gives zeros only.
    """
    if num_classes < 1:
        advice = "PyTorch reads it from the data when it is -1; a graph needs it beforehand."
        got = str(num_classes)
        raise ArgumentError(explain("one_hot", "num_classes of 1 or more", got, advice=advice))
    index = as_tensor(input)
    return cast(apply("eq", index.unsqueeze(-1), arange(num_classes, dtype=index.dtype)), "int64")
