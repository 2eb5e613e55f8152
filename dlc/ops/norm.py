"""Batch and layer normalisation, as layers that rules recognise before they expand into arithmetic.

Variance is the mean of squared deviations from the mean: the form E[x²] - E[x]² cancels where the
mean is large beside the deviation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import reduce
from operator import add, index
from typing import Any

import numpy as np

from dlc.errors import ArgumentError, DTypeError, ShapeError
from dlc.ir.node import Node
from dlc.ir.op import Array, ErrorSample, Kind, OpDef, Sample
from dlc.ir.sizes import Size, bounds, equal, product, shape_text
from dlc.ir.types import TensorType, TupleType, tensor
from dlc.ops.common import require_float, unbroadcast
from dlc.ops.window import Shape, check_one_dtype

Nodes = tuple[Node, ...]

# Batch norm with given statistics (inference).


def _eps_attrs(*types: TensorType, eps: float = 1e-5) -> dict[str, Any]:
    if not eps >= 0:
        raise ArgumentError(f"expects eps of at least 0, got {eps!r}")
    return {"eps": float(eps)}


def _batch_norm_type(
    x: TensorType,
    mean: TensorType,
    var: TensorType,
    weight: TensorType,
    bias: TensorType,
    *,
    eps: float,
) -> TensorType:
    _check_channels(x, mean=mean, variance=var, weight=weight, bias=bias)
    return x


def _check_channels(x: TensorType, **vectors: TensorType) -> None:
    require_float(x)
    check_one_dtype(input=x, **vectors)
    if x.ndim < 2:
        raise ShapeError(f"expects an input (N, C, ...), got {shape_text(x.shape)}")
    for name, vector in vectors.items():
        if vector.ndim != 1:
            raise ShapeError(f"expects a {name} (C,), got {shape_text(vector.shape)}")
        if not equal(vector.shape[0], x.shape[1]):
            raise ShapeError(
                f"expects {vector.shape[0]} channels, the size of its {name}, got {x.shape[1]}"
            )


def _batch_norm_ref(
    x: Array, mean: Array, var: Array, weight: Array, bias: Array, *, eps: float
) -> Array:
    mean, scale, bias = (
        v.reshape(-1, *[1] * (x.ndim - 2)) for v in (mean, weight / np.sqrt(var + eps), bias)
    )
    return (x - mean) * scale + bias


def _batch_norm_expand(
    x: Node, mean: Node, var: Node, weight: Node, bias: Node, *, eps: float
) -> Node:
    scale = weight * (var + eps).rsqrt()
    return (x - by_channel(mean, x)) * by_channel(scale, x) + by_channel(bias, x)


def by_channel(vector: Node, like: Node) -> Node:
    """A vector (C,) as (C, 1, ...), which broadcasts along the channels of ``like``."""
    return vector.reshape(vector.shape[0], *[1] * (like.ndim - 2))


def _others(x: Node) -> tuple[int, ...]:
    """The axes other than the channels'."""
    return tuple(axis for axis in range(x.ndim) if axis != 1)


def _batch_norm_vjp(
    g: Node, y: Node, x: Node, mean: Node, var: Node, weight: Node, bias: Node, *, eps: float
) -> Nodes:
    inverse = (var + eps).rsqrt()
    scale = weight * inverse
    total = g.sum(_others(x))
    correlation = (g * (x - by_channel(mean, x))).sum(_others(x))
    return (
        g * by_channel(scale, x),
        -total * scale,
        correlation * scale * inverse * inverse * -0.5,
        correlation * inverse,
        total,
    )


# Batch norm with the statistics of the batch (training).


def _train_type(x: TensorType, weight: TensorType, bias: TensorType, *, eps: float) -> TupleType:
    _check_channels(x, weight=weight, bias=bias)
    count = product((x.shape[0], *x.shape[2:]))
    if bounds(count)[1] <= 1:
        raise ShapeError(
            f"expects more than 1 value a channel in training, got {shape_text(x.shape)}; use a "
            "greater batch, or eval()"
        )
    return TupleType((x, weight, weight))


def _train_ref(x: Array, weight: Array, bias: Array, *, eps: float) -> tuple[Array, Array, Array]:
    axes = (0, *range(2, x.ndim))
    mean, var = x.mean(axes), x.var(axes)
    return _batch_norm_ref(x, mean, var, weight, bias, eps=eps), mean, var


def _train_expand(x: Node, weight: Node, bias: Node, *, eps: float) -> Nodes:
    mean, var = x.mean(_others(x)), x.builder.node("variance", (x,), {"axes": _others(x)})
    scale = weight * (var + eps).rsqrt()
    return (x - by_channel(mean, x)) * by_channel(scale, x) + by_channel(bias, x), mean, var


def _train_vjp(
    g: tuple[Node | None, ...], y: Nodes, x: Node, weight: Node, bias: Node, *, eps: float
) -> tuple[Node | None, ...]:
    """Each part of ``g`` may be None. The first term is equation 6 of Ioffe and Szegedy, 2015."""
    (g_y, g_mean, g_var), (_, mean, var) = g, y
    axes, count = _others(x), product((x.shape[0], *x.shape[2:]))
    inverse = (var + eps).rsqrt()
    centred = x - by_channel(mean, x)
    parts: list[Node] = []
    g_weight = g_bias = None
    if g_y is not None:
        normal = centred * by_channel(inverse, x)
        g_weight, g_bias = (g_y * normal).sum(axes), g_y.sum(axes)
        along = normal * by_channel(g_weight / count, x) + by_channel(g_bias / count, x)
        parts.append((g_y - along) * by_channel(weight * inverse, x))
    if g_mean is not None:
        parts.append(by_channel(g_mean / count, x).expand(x.shape))
    if g_var is not None:
        parts.append(centred * by_channel(g_var * 2 / count, x))
    return reduce(add, parts) if parts else None, g_weight, g_bias


# Layer norm.


def _layer_attrs(
    x: TensorType,
    weight: TensorType,
    bias: TensorType,
    *,
    ndim: int | None = None,
    eps: float = 1e-5,
) -> dict[str, Any]:
    return {"ndim": weight.ndim if ndim is None else index(ndim), **_eps_attrs(eps=eps)}


def _layer_norm_type(
    x: TensorType, weight: TensorType, bias: TensorType, *, ndim: int, eps: float
) -> TensorType:
    require_float(x)
    check_one_dtype(input=x, weight=weight, bias=bias)
    if not 1 <= ndim <= x.ndim:
        raise ShapeError(f"expects 1 to {x.ndim} trailing dimensions of its input, got {ndim}")
    sizes = x.shape[-ndim:]
    for name, vector in (("weight", weight), ("bias", bias)):
        same_rank = vector.ndim == ndim
        if not same_rank or not all(equal(a, b) for a, b in zip(vector.shape, sizes)):
            raise ShapeError(
                f"expects a {name} of the input's last sizes {shape_text(sizes)}, "
                f"got {shape_text(vector.shape)}"
            )
    return x


def _layer_norm_ref(x: Array, weight: Array, bias: Array, *, ndim: int, eps: float) -> Array:
    axes = tuple(range(x.ndim - ndim, x.ndim))
    mean, var = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    y: Array = (x - mean) / np.sqrt(var + eps) * weight + bias
    return y


def _layer_norm_expand(x: Node, weight: Node, bias: Node, *, ndim: int, eps: float) -> Node:
    normal, _ = _normalised(x, ndim, eps)
    return normal * weight + bias


def _normalised(x: Node, ndim: int, eps: float) -> tuple[Node, Node]:
    """``x`` less its mean over its standard deviation, and one over that deviation."""
    axes = _trailing(x, ndim)
    spread = x.builder.node("variance", (x,), {"axes": axes, "keepdims": True})
    inverse = (spread + eps).rsqrt()
    return (x - x.mean(axes, keepdim=True)) * inverse, inverse


def _trailing(x: Node, ndim: int) -> tuple[int, ...]:
    return tuple(range(x.ndim - ndim, x.ndim))


def _layer_norm_vjp(
    g: Node, y: Node, x: Node, weight: Node, bias: Node, *, ndim: int, eps: float
) -> Nodes:
    axes = _trailing(x, ndim)
    normal, inverse = _normalised(x, ndim, eps)
    share = g * weight
    correlation = (share * normal).mean(axes, keepdim=True)
    g_x = (share - share.mean(axes, keepdim=True) - normal * correlation) * inverse
    return g_x, unbroadcast(g * normal, weight), unbroadcast(g, bias)


# FLOPs: the operations of the expansion on each element.


def _flops(operations: int) -> Callable[..., Size]:
    return lambda y, x, *parameters, **attrs: x.count * operations


# Samples.

_SHAPES: tuple[Shape, ...] = ((4, 3), (2, 3, 5), (2, 3, 4, 5), (1, 2, 3, 2), (3, 1, 2, 2, 2))


def _images(rng: np.random.Generator) -> Iterator[tuple[Array, Array, Array]]:
    """Images whose mean is well away from zero, with weight and bias for their channels."""
    for shape in _SHAPES:
        yield rng.normal(3.0, 2.0, shape), rng.normal(size=shape[1]), rng.normal(size=shape[1])


def _batch_norm_samples(rng: np.random.Generator) -> Iterator[Sample]:
    for (x, weight, bias), eps in zip(_images(rng), (1e-5, 1e-3, 0.1, 0.0, 1e-5)):
        mean, var = rng.normal(size=len(weight)), rng.uniform(0.5, 2.0, len(weight))
        yield Sample((x, mean, var, weight, bias), {"eps": eps})


def _train_samples(rng: np.random.Generator) -> Iterator[Sample]:
    for arrays in _images(rng):
        yield Sample(arrays, {"eps": 1e-3})


def _layer_norm_samples(rng: np.random.Generator) -> Iterator[Sample]:
    for shape in ((4, 5), (2, 3, 4), (2, 3, 2, 4), (6,)):
        for ndim in range(1, len(shape) + 1):
            x = rng.normal(3.0, 2.0, shape)
            weight, bias = rng.normal(size=(2, *shape[-ndim:]))
            yield Sample((x, weight, bias), {"ndim": ndim, "eps": 1e-3})


def _channel_errors(vectors: int) -> Callable[[], Iterator[ErrorSample]]:
    def case(x: Shape, c: Shape, attrs: dict[str, Any], match: str) -> ErrorSample:
        types = (tensor("float32", x), *[tensor("float32", c)] * vectors)
        return ErrorSample(types, attrs, ArgumentError if "eps" in match else ShapeError, match)

    def errors() -> Iterator[ErrorSample]:
        yield case((2, 3, 8, 8), (64,), {}, "expects 64 channels, the size of its")
        yield case((2, 3, 8, 8), (1, 3), {}, "(C,), got (1, 3)")
        yield case((3,), (3,), {}, "expects an input (N, C, ...), got (3,)")
        yield case((2, 3), (3,), {"eps": -1.0}, "expects eps of at least 0, got -1.0")
        types = tensor("float32", (2, 3)), *[tensor("float64", (3,))] * vectors
        yield ErrorSample(types, {}, DTypeError, "expects operands of one element type")

    return errors


def _train_errors() -> Iterator[ErrorSample]:
    yield from _channel_errors(2)()
    types = tensor("float32", (1, 3, 1, 1)), tensor("float32", (3,)), tensor("float32", (3,))
    yield ErrorSample(types, {}, ShapeError, "expects more than 1 value a channel in training")


def _layer_norm_errors() -> Iterator[ErrorSample]:
    cases: tuple[tuple[Shape, Shape, dict[str, Any], str], ...] = (
        ((2, 768), (512,), {}, "expects a weight of the input's last sizes (768,), got (512,)"),
        ((2, 768), (768,), {"ndim": 2}, "expects a weight of the input's last sizes (2, 768)"),
        ((2, 768), (1, 2, 768), {}, "expects 1 to 2 trailing dimensions of its input, got 3"),
        ((2, 768), (), {}, "expects 1 to 2 trailing dimensions of its input, got 0"),
    )
    for x, w, attrs, match in cases:
        types = tensor("float32", x), tensor("float32", w), tensor("float32", w)
        yield ErrorSample(types, attrs, ShapeError, match)


# PyTorch twins.


def _torch_batch_norm(
    torch: Any, x: Any, mean: Any, var: Any, weight: Any, bias: Any, *, eps: float
) -> Any:
    """PyTorch gives the statistics no gradient; the formula does, where one is asked for."""
    if not mean.requires_grad and not var.requires_grad:
        return torch.nn.functional.batch_norm(x, mean, var, weight, bias, eps=eps)
    shape = (-1, *[1] * (x.ndim - 2))
    scale = (weight / torch.sqrt(var + eps)).reshape(shape)
    return (x - mean.reshape(shape)) * scale + bias.reshape(shape)


def _torch_train(torch: Any, x: Any, weight: Any, bias: Any, *, eps: float) -> Any:
    axes = (0, *range(2, x.ndim))
    y = torch.nn.functional.batch_norm(x, None, None, weight, bias, training=True, eps=eps)
    return y, x.mean(axes), x.var(axes, correction=0)


def _torch_layer_norm(torch: Any, x: Any, weight: Any, bias: Any, *, ndim: int, eps: float) -> Any:
    return torch.nn.functional.layer_norm(x, x.shape[x.ndim - ndim :], weight, bias, eps)


# The records.

batch_norm = OpDef(
    "batch_norm",
    Kind.COMPOSITE,
    arity=5,
    infer=_batch_norm_type,
    ref=_batch_norm_ref,
    doc="each channel scaled and shifted by given statistics, as in inference",
    attrs=_eps_attrs,
    grad=_batch_norm_vjp,
    expand=_batch_norm_expand,
    flops=_flops(3),
    samples=_batch_norm_samples,
    errors=_channel_errors(4),
    torch=_torch_batch_norm,
)

batch_norm_train = OpDef(
    "batch_norm_train",
    Kind.COMPOSITE,
    arity=3,
    infer=_train_type,
    ref=_train_ref,
    doc="each channel normalised by its own mean and variance, which are given back (biased)",
    attrs=_eps_attrs,
    grad=_train_vjp,
    expand=_train_expand,
    flops=_flops(6),
    samples=_train_samples,
    errors=_train_errors,
    torch=_torch_train,
)

layer_norm = OpDef(
    "layer_norm",
    Kind.COMPOSITE,
    arity=3,
    infer=_layer_norm_type,
    ref=_layer_norm_ref,
    doc="each element normalised by mean and variance over the last `ndim` dimensions",
    attrs=_layer_attrs,
    grad=_layer_norm_vjp,
    expand=_layer_norm_expand,
    flops=_flops(7),
    samples=_layer_norm_samples,
    errors=_layer_norm_errors,
    torch=_torch_layer_norm,
)
