"""Winograd convolution of 3x3 kernels: fewer multiplications, for inputs and results that are sums.

A tile of m x m results needs 9 m^2 products a channel when computed directly. Seen as a product of
polynomials, evaluated at m + 2 points a side and interpolated, it needs (m + 2)^2, which is 2.25
times fewer for m = 2 and 4 times for m = 4. With d a tile of (m + 2) x (m + 2) inputs and w a
kernel,

    y = A^T [ sum over channels of (G w G^T) * (B^T d B) ] A

after Winograd (1980) and Lavin and Gray (2016). The points are 0, infinity and pairs +-p. Those of
m = 4 are 3/4 and 3/2: all constants of A and B are exact in binary, and the largest error is a
third of that with the customary 1 and 2.

Rounding. The result obeys a bound of its own, element by element: |y - y64| is at most gamma_n
times `magnitude` of x and w, n being the number of channels plus `ROUNDINGS`. Measured on 3x3
layers of ResNet-18, on the CPU, the mean error over the rms of the result is 1.5e-7 for a direct
sum, 1.9e-7 for m = 2 and 5.3e-7 for m = 4; the largest 1.3e-6, 1.3e-6 and 6e-6. An infinity or NaN
reaches all results of the tiles that read it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from functools import cache

import numpy as np

from dlc.errors import ShapeError
from dlc.ir.op import Array, ErrorSample, Kind, OpDef, Sample
from dlc.ir.sizes import Size
from dlc.ir.types import TensorType, tensor
from dlc.ops.common import as_given
from dlc.ops.packed import (
    NO_GRADIENT,
    PANEL,
    Pairs,
    conv_type,
    expect_rank,
    expect_shape,
    pack_matrix_ref,
)

#: Width of the kernels.
TAPS = 3
#: For each size of a tile of results, the positive ones of its points.
POINTS = {2: (Fraction(1),), 4: (Fraction(3, 4), Fraction(3, 2))}
#: Roundings of an element besides those of the sum over channels: of its weight, a sum of nine
#: products with a rounded constant, and of the two transforms, each two chains of this many.
ROUNDINGS = {2: 10 + 2 * (1 + 2), 4: 10 + 2 * (4 + 4)}


@cache
def matrices(m: int) -> tuple[Array, Array, Array]:
    """A^T (m, m + 2), G (m + 2, 3) and B^T (m + 2, m + 2) in float64, by Toom and Cook.

    Rows of B^T, and columns of A^T, belong to the points 0, p, -p, q, -q, ..., infinity.
    """
    finite = [Fraction(0), *(sign * p for p in POINTS[m] for sign in (1, -1))]
    at = [[p**i for p in finite] + [Fraction(i == m - 1)] for i in range(m)]
    g, bt = [], []
    for p in finite:
        others = [each for each in finite if each is not p]
        scale = math.prod(p - each for each in others)
        g.append([p**k / scale for k in range(TAPS)])
        bt.append([*_polynomial(others), Fraction(0)])
    g.append([Fraction(k == TAPS - 1) for k in range(TAPS)])
    bt.append(_polynomial(finite))
    return np.array(at, np.float64), np.array(g, np.float64), np.array(bt, np.float64)


def _polynomial(roots: list[Fraction]) -> list[Fraction]:
    """Coefficients of the product of all (x - root), the constant one first."""
    result = [Fraction(1)]
    for root in roots:
        raised, scaled = [Fraction(0), *result], [*(root * c for c in result), Fraction(0)]
        result = [a - b for a, b in zip(raised, scaled, strict=True)]
    return result


def overhang(size: Size, m: int) -> int:
    """Lines that tiles of m reach beyond `size` lines of the result, or the most they may."""
    return -size % m if isinstance(size, int) else m - 1


def tiles_along(size: Size, m: int) -> Size:
    """Tiles of m that cover `size` lines."""
    return (size + (m - 1)) // m


def _type(x: TensorType, u: TensorType, *, channels: int, padding: Pairs, m: int) -> TensorType:
    expect_rank(x, 4, "an image (N, C, H, W)")
    _expect_tile(m)
    panels = -(-channels // PANEL)
    expect_shape(u, ((m + 2) ** 2, panels, x.shape[1], PANEL), "transformed weights")
    return conv_type(x, channels, (TAPS, TAPS), padding)


def _expect_tile(m: int) -> None:
    if m not in POINTS:
        raise ShapeError(f"expects tiles of {' or '.join(map(str, POINTS))}, got {m}")


def _ref(x: Array, u: Array, *, channels: int, padding: Pairs, m: int) -> Array:
    at, _, bt = matrices(m)
    return _convolve(x, u, at.astype(x.dtype), bt.astype(x.dtype), channels, padding)


def _convolve(x: Array, u: Array, at: Array, bt: Array, channels: int, padding: Pairs) -> Array:
    """The formula, all tiles at once."""
    (m, a), images = at.shape, len(x)
    height, width = (x.shape[2 + d] + sum(padding[d]) - (TAPS - 1) for d in range(2))
    reach = [(low, high + overhang(s, m)) for (low, high), s in zip(padding, (height, width))]
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(x, [(0, 0), (0, 0), *reach]), (a, a), axis=(2, 3)
    )[:, :, ::m, ::m]
    _, depth, tall, wide, *_ = windows.shape
    v = (bt @ windows @ bt.T).transpose(4, 5, 0, 2, 3, 1).reshape(a * a, -1, depth)
    weights = u.transpose(0, 2, 1, 3).reshape(a * a, depth, -1)[..., :channels]
    products = (v @ weights).reshape(a, a, images, tall, wide, channels)
    tiles = at @ np.moveaxis(products, (0, 1), (4, 5)) @ at.T
    y = tiles.transpose(0, 3, 1, 4, 2, 5).reshape(images, channels, tall * m, wide * m)
    return np.ascontiguousarray(y[:, :, :height, :width])


def transformed(w: Array, m: int) -> Array:
    """Weights (O, I, 3, 3) as the op reads them: G w G^T, [point][panel][I][32], in float64."""
    g = matrices(m)[1]
    u = g @ w.astype(np.float64) @ g.T
    return pack_matrix_ref(u.reshape(*w.shape[:2], -1).transpose(2, 1, 0))


def _weights_type(w: TensorType, *, m: int, turned: bool) -> TensorType:
    expect_rank(w, 4, "weights (O, I, 3, 3)")
    _expect_tile(m)
    o, i, *kernel = w.shape
    if kernel != [TAPS, TAPS]:
        raise ShapeError(f"expects kernels of 3x3, got {kernel[0]}x{kernel[1]}")
    o, i = (i, o) if turned else (o, i)
    return w.with_shape(((m + 2) ** 2, (o + (PANEL - 1)) // PANEL, i, PANEL))


def _weights_ref(w: Array, *, m: int, turned: bool) -> Array:
    if turned:
        w = w[:, :, ::-1, ::-1].swapaxes(0, 1)
    return transformed(w, m).astype(w.dtype)


def _weights_samples(rng: np.random.Generator) -> Iterator[Sample]:
    for m, shape in ((2, (5, 33)), (4, (70, 20)), (4, (32, 64))):
        for turned in (False, True):
            yield Sample((rng.normal(size=(*shape, TAPS, TAPS)),), {"m": m, "turned": turned})


def _weights_errors() -> Iterator[ErrorSample]:
    w, attrs = tensor("float32", (8, 8, 3, 3)), {"m": 2, "turned": False}
    yield ErrorSample((w.with_shape((8, 8)),), attrs, ShapeError, "expects weights (O, I, 3, 3)")
    yield ErrorSample((w.with_shape((8, 8, 3, 1)),), attrs, ShapeError, "of 3x3, got 3x1")
    yield ErrorSample((w,), {**attrs, "m": 3}, ShapeError, "expects tiles of 2 or 4, got 3")


def magnitude(x: Array, w: Array, padding: Pairs, m: int) -> Array:
    """The formula with the absolute value of everything in it, in float64: gamma_n times this
    bounds the error of a result.

    Parameters
    ----------
    x, w : array
        Images (N, C, H, W) and weights (O, C, 3, 3).
    """
    at, g, bt = (np.abs(each) for each in matrices(m))
    u = g @ np.abs(w.astype(np.float64)) @ g.T
    packed = pack_matrix_ref(u.reshape(*w.shape[:2], -1).transpose(2, 1, 0))
    return _convolve(np.abs(x.astype(np.float64)), packed, at, bt, len(w), padding)


def _flops(
    y: TensorType, x: TensorType, u: TensorType, *, channels: int, padding: Pairs, m: int
) -> Size:
    tiles = y.shape[0] * tiles_along(y.shape[2], m) * tiles_along(y.shape[3], m)
    return 2 * tiles * (m + 2) ** 2 * channels * x.shape[1]


def _samples(rng: np.random.Generator) -> Iterator[Sample]:
    one = ((1, 1), (1, 1))
    for m, shape, channels, padding in (
        (2, (2, 3, 6, 8), 5, one),
        (4, (2, 3, 8, 12), 5, one),
        (4, (1, 7, 9, 7), 40, ((0, 2), (1, 0))),
        (2, (1, 20, 5, 3), 33, ((0, 0), (0, 0))),
        (4, (0, 2, 6, 6), 3, one),
    ):
        w = rng.normal(size=(channels, shape[1], TAPS, TAPS)) / (TAPS * shape[1] ** 0.5)
        attrs = {"channels": channels, "padding": padding, "m": m}
        yield Sample((rng.normal(size=shape), transformed(w, m)), attrs)


def _errors() -> Iterator[ErrorSample]:
    x, u = tensor("float32", (1, 8, 6, 6)), tensor("float32", (16, 1, 8, PANEL))
    attrs = {"channels": 5, "padding": ((1, 1), (1, 1)), "m": 2}
    yield ErrorSample((tensor("float32", (8,)), u), attrs, ShapeError, "an image (N, C, H, W)")
    yield ErrorSample((x, u), {**attrs, "m": 3}, ShapeError, "expects tiles of 2 or 4, got 3")
    match = "expects transformed weights (36, 1, 8, 32), got (16, 1, 8, 32)"
    yield ErrorSample((x, u), {**attrs, "m": 4}, ShapeError, match)


conv2d_winograd = OpDef(
    "conv2d_winograd",
    Kind.CONTRACT,
    arity=2,
    attrs=as_given,
    infer=_type,
    ref=_ref,
    doc=(
        "3x3 convolution of stride 1 by Winograd's algorithm, m x m results at a time; its FLOPs "
        "are those of the products that it does, not of the direct sum"
    ),
    no_grad=NO_GRADIENT,
    flops=_flops,
    samples=_samples,
    errors=_errors,
)

pack_winograd = OpDef(
    "pack_winograd",
    Kind.OPAQUE,
    attrs=as_given,
    infer=_weights_type,
    ref=_weights_ref,
    doc=(
        "weights OIHW of 3x3 kernels as `conv2d_winograd` reads them: G w G^T, in panels of 32 "
        "output channels for each point; `turned` exchanges channels and reverses taps"
    ),
    no_grad=NO_GRADIENT,
    flops=lambda u, w, **attrs: 2 * u.count * TAPS,
    samples=_weights_samples,
    errors=_weights_errors,
)
