"""Activation functions: elementwise, with PyTorch's names, parameters and special values.

A gradient that holds below zero takes ``exp`` of ``min(x, 0)``, so that a second derivative meets
no ``inf * 0`` in the branch that is not taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from dlc.errors import ArgumentError, DTypeError
from dlc.ir.node import Node
from dlc.ir.op import Array, ErrorSample, Kind, OpDef, Sample
from dlc.ir.types import TensorType
from dlc.ops.common import (
    only_floats,
    plain,
    specials,
    twin,
    unbroadcast,
    uniform,
    where,
)
from dlc.ops.elementary import erf_ref
from dlc.ops.elementwise import Samples, by_kind, only_numbers, unary_samples

SELU_ALPHA = (
    1.6732632423543772848170429916717  # Klambauer et al. 2017, "Self-Normalizing Neural Networks"
)
SELU_SCALE = 1.0507009873554805


def _activation(
    name: str,
    doc: str,
    scalar: str | Callable[..., str],
    ref: Callable[..., Any],
    grad: Callable[..., Any],
    settings: Iterable[dict[str, Any]] = ({},),
    **fields: Any,
) -> OpDef:
    """A function of floats; its samples run with each of ``settings``."""
    fields.setdefault("infer", only_floats)
    fields.setdefault("torch", twin(f"nn.functional.{name}"))
    fields.setdefault(
        "errors",
        lambda: [
            ErrorSample((TensorType("int32", (2,)),), next(iter(settings)), DTypeError, "floats")
        ],
    )

    fields.setdefault("samples", _samples(settings, integers=fields["infer"] is not only_floats))
    return OpDef(name, Kind.POINTWISE, ref=ref, doc=doc, scalar=scalar, grad=grad, **fields)


def _samples(settings: Iterable[dict[str, Any]], integers: bool = False) -> Samples:
    def samples(rng: np.random.Generator) -> Iterable[Sample]:
        for attrs in settings:
            for sample in unary_samples(integers=integers)(rng):
                yield Sample(sample.arrays, attrs, sample.differentiable)

    return samples


def _floats(**defaults: float) -> Callable[..., dict[str, Any]]:
    """Canonical attributes of a function with float parameters."""

    def attrs(x: TensorType, **given: Any) -> dict[str, Any]:
        for name in given:
            if name not in defaults:
                raise ArgumentError(f"expects the parameters {', '.join(defaults)}, got {name!r}")
        return {name: float(given.get(name, default)) for name, default in defaults.items()}

    return attrs


def _negative(x: Node) -> Node:
    return x.minimum(0.0)


relu = _activation(
    "relu",
    "max(x, 0); NaN stays",
    by_kind("relu({0})", "{0} if {0} > 0 else 0"),
    lambda x: np.where(x < 0, x.dtype.type(0), x),
    lambda g, y, x: (where(y <= 0.0, 0.0, g),),
    infer=only_numbers,
    errors=lambda: [ErrorSample((TensorType("bool"),), {}, DTypeError, "got bool")],
    ulp=0.0,
)

leaky_relu = _activation(
    "leaky_relu",
    "x above zero, slope * x below",
    "{0} if {0} > 0 else {slope} * {0}",
    lambda x, slope: np.where(x > 0, x, x * x.dtype.type(slope)),
    lambda g, y, x, slope: (where(x > 0.0, g, g * slope),),
    ({}, {"slope": 0.2}),
    attrs=_floats(slope=0.01),
    torch=twin("nn.functional.leaky_relu", slope="negative_slope"),
    ulp=0.5,
)

prelu = OpDef(
    "prelu",
    Kind.POINTWISE,
    arity=2,
    infer=only_floats,
    ref=lambda x, slope: np.where(x > 0, x, slope * x),
    doc="x above zero, slope * x below, with a tensor of slopes that broadcasts against x",
    scalar="{0} if {0} > 0 else {1} * {0}",
    grad=lambda g, y, x, slope: (
        unbroadcast(where(x > 0.0, g, slope * g), x),
        unbroadcast(where(x > 0.0, 0.0, x * g), slope),
    ),
    promotes=True,
    samples=lambda rng: [
        Sample(uniform(rng, (2, 3, 4), (3, 1))),
        Sample(uniform(rng, (4,), ())),
        Sample(uniform(rng, (0, 2), (2,))),
        plain(specials(), np.array(0.25)),
    ],
    errors=lambda: [ErrorSample((TensorType("int64"),) * 2, {}, DTypeError, "floats")],
    torch=lambda torch, x, slope: torch.where(x > 0, x, slope * x),
    ulp=0.5,
)


def _elu_ref(x: Array, alpha: float = 1.0) -> Array:
    y: Array = np.where(x < 0, x.dtype.type(alpha) * np.expm1(x), x)
    return y


elu = _activation(
    "elu",
    "x above zero, alpha * (exp(x) - 1) below",
    "{alpha} * expm1({0}) if {0} < 0 else {0}",
    _elu_ref,
    lambda g, y, x, alpha: (where(x > 0.0, g, g * alpha * _negative(x).exp()),),
    ({}, {"alpha": 0.5}),
    attrs=_floats(alpha=1.0),
)


def _celu_attrs(x: TensorType, alpha: float = 1.0) -> dict[str, Any]:
    if alpha == 0:
        raise ArgumentError("expects alpha other than 0, because it divides by it")
    return {"alpha": float(alpha)}


def _celu_ref(x: Array, alpha: float) -> Array:
    scale = x.dtype.type(alpha)
    return np.where(x < 0, scale * np.expm1(x / scale), x)


celu = _activation(
    "celu",
    "x above zero, alpha * (exp(x / alpha) - 1) below",
    "{alpha} * expm1({0} / {alpha}) if {0} < 0 else {0}",
    _celu_ref,
    lambda g, y, x, alpha: (where(x > 0.0, g, g * (_negative(x) / alpha).exp()),),
    ({}, {"alpha": 0.5}),
    attrs=_celu_attrs,
    errors=lambda: [
        ErrorSample((TensorType("float32"),), {"alpha": 0.0}, ArgumentError, "other than 0"),
        ErrorSample((TensorType("int32"),), {"alpha": 1.0}, DTypeError, "floats"),
    ],
)


def _selu_ref(x: Array) -> Array:
    y: Array = x.dtype.type(SELU_SCALE) * _elu_ref(x, SELU_ALPHA)
    return y


def _selu_grad(g: Node, y: Node, x: Node) -> tuple[Node]:
    return (g * SELU_SCALE * where(x > 0.0, 1.0, _negative(x).exp() * SELU_ALPHA),)


selu = _activation(
    "selu",
    "ELU scaled so that activations keep mean 0 and variance 1",
    f"{SELU_SCALE!r} * ({SELU_ALPHA!r} * expm1({{0}}) if {{0}} < 0 else {{0}})",
    _selu_ref,
    _selu_grad,
)

RELU6_HIGH = 6.0


def _hardtanh_attrs(x: TensorType, low: float = -1.0, high: float = 1.0) -> dict[str, Any]:
    if low > high:
        raise ArgumentError(f"expects low <= high, got {low} and {high}")
    return {"low": float(low), "high": float(high)}


def _hardtanh_ref(x: Array, low: float, high: float) -> Array:
    return np.where(x < low, x.dtype.type(low), np.where(x > high, x.dtype.type(high), x))


def _hardtanh_grad(g: Node, y: Node, x: Node, low: float, high: float) -> tuple[Node]:
    return (where((x > low) & (x < high), g, 0.0),)


hardtanh = _activation(
    "hardtanh",
    "x held between low and high; flat at the bounds themselves",
    "{low} if {0} < {low} else ({high} if {0} > {high} else {0})",
    _hardtanh_ref,
    _hardtanh_grad,
    ({}, {"low": -0.5, "high": 2.0}),
    attrs=_hardtanh_attrs,
    errors=lambda: [
        ErrorSample(
            (TensorType("float32"),), {"low": 1.0, "high": 0.0}, ArgumentError, "low <= high"
        ),
        ErrorSample((TensorType("int32"),), {}, DTypeError, "floats"),
    ],
    torch=twin("nn.functional.hardtanh", low="min_val", high="max_val"),
    ulp=0.0,
)

relu6 = _activation(
    "relu6",
    "x held between 0 and 6",
    f"0.0 if {{0}} < 0.0 else ({RELU6_HIGH} if {{0}} > {RELU6_HIGH} else {{0}})",
    lambda x: _hardtanh_ref(x, 0.0, RELU6_HIGH),
    lambda g, y, x: _hardtanh_grad(g, y, x, 0.0, RELU6_HIGH),
    ulp=0.0,
)


# GELU: Hendrycks and Gimpel 2016, "Gaussian Error Linear Units".

GELU_MODES = ("none", "tanh")
GELU_CUBE = 0.044715
SQRT_HALF = math.sqrt(0.5)
SQRT_2_OVER_PI = math.sqrt(2 / math.pi)


def _gelu_attrs(x: TensorType, approximate: str = "none") -> dict[str, Any]:
    if approximate not in GELU_MODES:
        raise ArgumentError(f"expects approximate 'none' or 'tanh', got {approximate!r}")
    return {"approximate": approximate}


def _gelu(dtype: str, /, approximate: str) -> str:
    if approximate == "none":
        return f"0.5 * {{0}} * (1.0 + erf({{0}} * {SQRT_HALF!r}))"
    inner = f"{SQRT_2_OVER_PI!r} * ({{0}} + {GELU_CUBE} * {{0}} * {{0}} * {{0}})"
    return f"0.5 * {{0}} * (1.0 + tanh({inner}))"


def _gelu_ref(x: Array, approximate: str) -> Array:
    real = x.dtype.type
    if approximate == "none":
        half: Array = erf_ref(x * real(SQRT_HALF))
    else:
        half = np.tanh(real(SQRT_2_OVER_PI) * (x + real(GELU_CUBE) * x * x * x))
    y: Array = real(0.5) * x * (real(1) + half)
    return y


def _gelu_grad(g: Node, y: Node, x: Node, approximate: str) -> tuple[Node]:
    if approximate == "none":
        density = (x * x * -0.5).exp() * (SQRT_2_OVER_PI / 2)
        return (g * (((x * SQRT_HALF).erf() + 1.0) * 0.5 + x * density),)
    t = ((x + x * x * x * GELU_CUBE) * SQRT_2_OVER_PI).tanh()
    slope = (x * x * (3 * GELU_CUBE) + 1.0) * SQRT_2_OVER_PI
    return (g * ((t + 1.0) * 0.5 + x * 0.5 * (1.0 - t * t) * slope),)


def _gelu_samples(rng: np.random.Generator) -> Iterable[Sample]:
    for sample in _samples(({"approximate": "none"}, {"approximate": "tanh"}))(rng):
        x = sample.arrays[0]
        finite = np.where(x == math.inf, 1.0, x)  # where PyTorch's float32 gives NaN, float64 inf
        yield Sample((finite,), sample.attrs, sample.differentiable)


gelu = _activation(
    "gelu",
    "x times the normal distribution function at x, or its tanh approximation",
    _gelu,
    _gelu_ref,
    _gelu_grad,
    attrs=_gelu_attrs,
    samples=_gelu_samples,
    errors=lambda: [
        ErrorSample((TensorType("float32"),), {"approximate": "exact"}, ArgumentError, "'tanh'"),
        ErrorSample((TensorType("int32"),), {}, DTypeError, "floats"),
    ],
    ulp=8.0,
)


def _silu_grad(g: Node, y: Node, x: Node) -> tuple[Node]:
    s = x.sigmoid()
    return (g * (s * (x * (1.0 - s) + 1.0)),)


silu = _activation(
    "silu",
    "x * sigmoid(x)",
    "{0} * sigmoid({0})",
    lambda x: x / (x.dtype.type(1) + np.exp(-x)),
    _silu_grad,
    ulp=4.0,
)


def _softplus_attrs(x: TensorType, beta: float = 1.0, threshold: float = 20.0) -> dict[str, Any]:
    if beta == 0:
        raise ArgumentError("expects beta other than 0, because it divides by it")
    return {"beta": float(beta), "threshold": float(threshold)}


def _softplus_ref(x: Array, beta: float, threshold: float) -> Array:
    scaled = x * x.dtype.type(beta)
    return np.where(scaled > threshold, x, np.log1p(np.exp(scaled)) / x.dtype.type(beta))


softplus = _activation(
    "softplus",
    "log(1 + exp(beta * x)) / beta; x itself where beta * x is above the threshold",
    "{0} if {0} * {beta} > {threshold} else log1p(exp({0} * {beta})) / {beta}",
    _softplus_ref,
    lambda g, y, x, beta, threshold: (where(x * beta > threshold, g, g * (x * beta).sigmoid()),),
    ({}, {"beta": 2.0, "threshold": 1.0}),
    attrs=_softplus_attrs,
    errors=lambda: [
        ErrorSample((TensorType("float32"),), {"beta": 0.0}, ArgumentError, "other than 0"),
        ErrorSample((TensorType("int32"),), {}, DTypeError, "floats"),
    ],
    ulp=4.0,
)

log_sigmoid = _activation(
    "log_sigmoid",
    "log(sigmoid(x))",
    "fmin({0}, 0.0) - log1p(exp(-abs({0})))",
    lambda x: np.minimum(x, x.dtype.type(0)) - np.log1p(np.exp(-np.abs(x))),
    lambda g, y, x: (g * (-x).sigmoid(),),
    torch=twin("nn.functional.logsigmoid"),
    ulp=4.0,
)
