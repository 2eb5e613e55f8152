"""Elementary functions and rounding: real functions of one variable, an element at a time.

Integers become float32 on the way in, as in PyTorch; rounding leaves them as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from dlc.ir.op import Array, OpDef
from dlc.ir.types import FLOATS
from dlc.ops.common import only_floats
from dlc.ops.elementwise import STEPS, by_kind, unary, unary_samples


def _real(
    name: str,
    doc: str,
    scalar: str,
    ref: Callable[..., Any],
    grad: Callable[..., Any],
    low: float = -3.0,
    high: float = 3.0,
    **fields: Any,
) -> OpDef:
    """A real function of one variable, of floats between ``low`` and ``high`` in its samples."""
    return unary(
        name,
        doc,
        scalar,
        ref,
        grad,
        infer=only_floats,
        promotes="float",
        samples=unary_samples(low, high),
        **fields,
    )


# Elementary functions.

exp = _real("exp", "e to the power x", "exp({0})", np.exp, lambda g, y, x: (g * y,))
expm1 = _real("expm1", "exp(x) - 1", "expm1({0})", np.expm1, lambda g, y, x: (g * (y + 1.0),))
log = _real("log", "natural logarithm", "log({0})", np.log, lambda g, y, x: (g / x,), 0.5)
log1p = _real("log1p", "log(1 + x)", "log1p({0})", np.log1p, lambda g, y, x: (g / (x + 1.0),), -0.5)
sqrt = _real(
    "sqrt", "square root", "sqrt({0})", np.sqrt, lambda g, y, x: (g * 0.5 / y,), 0.5, ulp=0.5
)
rsqrt = _real(
    "rsqrt",
    "1 / sqrt(x)",
    "1.0 / sqrt({0})",
    lambda x: (1 / np.sqrt(x)).astype(x.dtype),
    lambda g, y, x: (g * -0.5 * y * y * y,),
    0.5,
)
reciprocal = _real(
    "reciprocal",
    "1 / x",
    "1.0 / {0}",
    lambda x: np.divide(x.dtype.type(1), x),
    lambda g, y, x: (-g * y * y,),
    0.5,
    ulp=0.5,
)
sin = _real("sin", "sine", "sin({0})", np.sin, lambda g, y, x: (g * x.cos(),))
cos = _real("cos", "cosine", "cos({0})", np.cos, lambda g, y, x: (-g * x.sin(),))
tanh = _real(
    "tanh", "hyperbolic tangent", "tanh({0})", np.tanh, lambda g, y, x: (g * (1.0 - y * y),)
)


def _sigmoid_ref(x: Array) -> Array:
    one = x.dtype.type(1)
    # exp of what is not positive: nothing overflows
    y: Array = np.exp(np.minimum(x, 0 * one)) / (one + np.exp(-np.abs(x)))
    return y


sigmoid = _real(
    "sigmoid",
    "1 / (1 + exp(-x))",
    "sigmoid({0})",
    _sigmoid_ref,
    lambda g, y, x: (g * (y * (1.0 - y)),),
    ulp=4.0,
)


def erf_ref(x: Array) -> Array:
    """The error function; NumPy has none, so the C library's, by element."""
    values = [math.erf(value) for value in x.ravel().tolist()]
    return np.array(values, x.dtype).reshape(x.shape)


erf = _real(
    "erf",
    "error function",
    "erf({0})",
    erf_ref,
    lambda g, y, x: (g * (2.0 / math.sqrt(math.pi)) * (-(x * x)).exp(),),
)


# Rounding; integers stay as they are.


def _rounding(name: str, doc: str, ref: Callable[..., Any]) -> OpDef:
    return unary(
        name,
        doc,
        by_kind(f"{name}({{0}})", "{0}"),
        lambda x: ref(x) if x.dtype.name in FLOATS else x.copy(),
        no_grad=STEPS,
        ulp=0.0,
    )


floor = _rounding("floor", "the greatest integer <= x", np.floor)
ceil = _rounding("ceil", "the least integer >= x", np.ceil)
trunc = _rounding("trunc", "x without its fraction", np.trunc)
round_ = _rounding("round", "the nearest integer, halves to even", np.rint)

step = unary(
    "step",
    "1 where x > 0, else 0",
    "1 if {0} > 0 else 0",
    lambda x: (x > 0).astype(x.dtype),
    no_grad=STEPS,
    torch=lambda torch, x: torch.heaviside(x, torch.zeros((), dtype=x.dtype)),
    ulp=0.0,
)
