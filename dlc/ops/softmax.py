"""Softmax and its logarithm: composites that stay whole in the graph for rules and gradients.

Their gradients are written in their results, which are at hand, rather than in what they are made
of.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from dlc.errors import DTypeError, ShapeError
from dlc.ir.node import Node
from dlc.ir.op import Array, ErrorSample, Kind, OpDef, Sample
from dlc.ir.types import TensorType
from dlc.ops.common import normal_axis, plain, require_float, twin, uniform
from dlc.ops.reduce import not_empty


def _axis(x: TensorType, axis: int) -> dict[str, Any]:
    return {"axis": normal_axis(axis, x.ndim)}


def _softmax_type(x: TensorType, axis: int) -> TensorType:
    require_float(x)
    not_empty(x, (axis,))
    return x


def _softmax_samples(rng: np.random.Generator) -> Iterable[Sample]:
    yield Sample(uniform(rng, (4, 3)), {"axis": -1})
    yield Sample(uniform(rng, (2, 3, 5)), {"axis": 1})
    yield Sample(uniform(rng, (4,)), {"axis": 0})
    yield Sample(uniform(rng, (0, 3)), {"axis": 1})
    yield Sample(uniform(rng, (2, 1)), {"axis": 1})
    yield plain([[900.0, 901.0], [-900.0, -901.0], [-np.inf, 0.0], [np.nan, 1.0]], axis=1)


def _softmax_errors() -> Iterable[ErrorSample]:
    yield ErrorSample((TensorType("float32", (2,)),), {"axis": 1}, ShapeError, "an axis from")
    yield ErrorSample((TensorType("int64", (2,)),), {"axis": 0}, DTypeError, "floats")
    yield ErrorSample((TensorType("float32", (2, 0)),), {"axis": 1}, ShapeError, "at least one")


def _softmax_ref(x: Array, axis: int) -> Array:
    e = np.exp(x - np.max(x, axis=axis, keepdims=True))
    y: Array = e / np.sum(e, axis=axis, keepdims=True, dtype=x.dtype)
    return y


def _softmax_expand(x: Node, axis: int) -> Node:
    e = (x - x.amax(axis, keepdim=True)).exp()
    return e / e.sum(axis, keepdim=True)


softmax = OpDef(
    "softmax",
    Kind.COMPOSITE,
    infer=_softmax_type,
    ref=_softmax_ref,
    doc="exp(x) scaled to sum 1 along an axis",
    attrs=_axis,
    grad=lambda g, y, x, axis: (y * (g - (g * y).sum(axis, keepdim=True)),),
    expand=_softmax_expand,
    samples=_softmax_samples,
    errors=_softmax_errors,
    torch=twin("softmax", axis="dim"),
    ulp=8.0,
)


def _log_softmax_ref(x: Array, axis: int) -> Array:
    away = x - np.max(x, axis=axis, keepdims=True)
    y: Array = away - np.log(np.sum(np.exp(away), axis=axis, keepdims=True, dtype=x.dtype))
    return y


def _log_softmax_expand(x: Node, axis: int) -> Node:
    away = x - x.amax(axis, keepdim=True)
    return away - away.exp().sum(axis, keepdim=True).log()


log_softmax = OpDef(
    "log_softmax",
    Kind.COMPOSITE,
    infer=_softmax_type,
    ref=_log_softmax_ref,
    doc="log(softmax(x)) along an axis, without overflow",
    attrs=_axis,
    grad=lambda g, y, x, axis: (g - y.exp() * g.sum(axis, keepdim=True),),
    expand=_log_softmax_expand,
    samples=_softmax_samples,
    errors=_softmax_errors,
    torch=twin("log_softmax", axis="dim"),
    ulp=8.0,
)
