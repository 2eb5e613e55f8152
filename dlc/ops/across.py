"""Contractions that read their left operand across its rows: weight gradients of convolutions, and
products of a transposed matrix.

The `select` pass rewrites `conv2d_weight_grad` and `matmul` into these. What they sum over lies a
stride apart in both operands, so that neither is transposed or packed.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from dlc.errors import ShapeError
from dlc.ir.op import OPS, Array, ErrorSample, Kind, OpDef, Sample
from dlc.ir.sizes import Size, equal, product, shape_text
from dlc.ir.types import TensorType, tensor
from dlc.ops.common import as_given
from dlc.ops.packed import NO_GRADIENT
from dlc.ops.window import Pair

#: Of these the store can read a number from memory, such as a learning rate.
SCALARS_AT_STORE = ("conv2d_weight_direct", "matmul_across")

# Gradient of a convolution's weight.


def weight_order(parts: int, planes: bool) -> tuple[int, ...]:
    """The physical order in which the gradient of a weight is written: its outputs contiguous, and
    rows in the order in which x lies.
    """
    order = (1, 2, 3, 0) if planes else (2, 3, 1, 0)
    return (0, *(axis + 1 for axis in order)) if parts > 1 else order


def _weight_direct_type(
    x: TensorType, g: TensorType, *, parts: int, planes: bool, **attrs: Any
) -> TensorType:
    w = OPS["conv2d_weight_grad"].infer(x, g, **attrs)
    assert isinstance(w, TensorType)
    return w.with_shape((parts, *w.shape)) if parts > 1 else w


def _weight_direct_ref(x: Array, g: Array, *, parts: int, planes: bool, **attrs: Any) -> Array:
    whole = OPS["conv2d_weight_grad"].ref
    if parts == 1:
        result: Array = whole(x, g, **attrs)
        return result
    cuts = [len(x) * part // parts for part in range(parts + 1)]
    own = [slice(*pair) for pair in pairwise(cuts)]
    return np.stack([whole(x[images], g[images], **attrs) for images in own])


def _weight_direct_samples(rng: np.random.Generator) -> Iterator[Sample]:
    dense = {"stride": (2, 1), "padding": ((1, 1), (0, 1)), "dilation": (1, 1), "groups": 1}
    apart = {"stride": (1, 1), "padding": ((0, 0), (2, 2)), "dilation": (1, 2), "groups": 2}
    alone = {**dense, "groups": 6}
    cases: tuple[tuple[int, int, dict[str, Any], int, bool], ...] = (
        (6, 34, dense, 1, False),
        (6, 10, apart, 1, False),
        (6, 6, alone, 1, False),
        (6, 12, alone, 1, False),
        (3, 8, dense, 1, True),
        (1, 6, dense, 4, True),
        (6, 16, dense, 2, False),
    )
    for inputs, outputs, attrs, parts, planes in cases:
        w = tensor("float64", (outputs, inputs // attrs["groups"], 3, 2))
        y = OPS["conv2d"].infer(tensor("float64", (3, inputs, 7, 8)), w, **attrs)
        assert isinstance(y, TensorType)
        arrays = (rng.normal(size=(3, inputs, 7, 8)), rng.normal(size=y.shape))
        yield Sample(arrays, {**attrs, "kernel": (3, 2), "parts": parts, "planes": planes})


def _weight_direct_flops(
    y: TensorType, x: TensorType, g: TensorType, *, kernel: Pair, groups: int, **attrs: Any
) -> Size:
    return 2 * g.count * product(kernel) * (x.shape[1] // groups)


def _weight_direct_errors() -> Iterator[ErrorSample]:
    slide = {"stride": (1, 1), "padding": ((0, 0), (0, 0)), "dilation": (1, 1), "groups": 1}
    attrs = {**slide, "kernel": (3, 3), "parts": 1, "planes": False}
    x, g = tensor("float32", (2, 3, 8, 8)), tensor("float32", (1, 8, 6, 6))
    match = "expects a gradient of the output's shape (2, 8, 6, 6), got (1, 8, 6, 6)"
    yield ErrorSample((x, g), attrs, ShapeError, match)


conv2d_weight_direct = OpDef(
    "conv2d_weight_direct",
    Kind.CONTRACT,
    arity=2,
    attrs=as_given,
    infer=_weight_direct_type,
    ref=_weight_direct_ref,
    doc=(
        "gradient of conv2d for its weight, as `parts` sums over the images where that is more "
        "than 1; `planes` reads planes of x, else channels last"
    ),
    no_grad=NO_GRADIENT,
    flops=_weight_direct_flops,
    samples=_weight_direct_samples,
    errors=_weight_direct_errors,
)


# Product of a transposed matrix.


def _across_type(a: TensorType, b: TensorType) -> TensorType:
    alike = a.ndim == b.ndim and a.ndim > 1 and all(map(equal, a.shape[:-1], b.shape[:-1]))
    if not alike:
        shapes = f"{shape_text(a.shape)} and {shape_text(b.shape)}"
        raise ShapeError(f"expects matrices (K, M) and (K, N), or batches of them, got {shapes}")
    return a.with_shape((*a.shape[:-2], a.shape[-1], b.shape[-1]))


def _across_ref(a: Array, b: Array) -> Array:
    result: Array = np.matmul(np.ascontiguousarray(a.swapaxes(-1, -2)), b)
    return result


matmul_across = OpDef(
    "matmul_across",
    Kind.CONTRACT,
    arity=2,
    infer=_across_type,
    ref=_across_ref,
    doc="matrix product of a transposed matrix, [B,] K, M by [B,] K, N, both as they lie",
    no_grad=NO_GRADIENT,
    flops=lambda y, a, b: 2 * y.count * a.shape[-2],
    samples=lambda rng: [
        Sample((rng.normal(size=a), rng.normal(size=b)))
        for a, b in (((5, 6), (5, 40)), ((300, 17), (300, 3)), ((2, 7, 33), (2, 7, 16)))
    ],
    errors=lambda: [
        ErrorSample(
            (tensor("float32", (5, 6)), tensor("float32", (4, 3))),
            {},
            ShapeError,
            "expects matrices (K, M) and (K, N), or batches of them, got (5, 6) and (4, 3)",
        )
    ],
)
