"""Operators of chosen algorithms: contractions that read packed weights, and the packing itself.

The `select` pass rewrites `conv2d` and `matmul` into these, so that the choice of an algorithm is
visible in the graph, is checked by value like any rewrite, and packing is an ordinary movement op
that moves to `prepare` with other work on parameters. Panels are 32 output channels wide on every
ISA; narrower vectors read a part of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from dlc.errors import ShapeError
from dlc.ir.op import OPS, Access, Array, ErrorSample, Kind, Move, OpDef, Sample
from dlc.ir.sizes import Size, equal, product, shape_text
from dlc.ir.types import TensorType, tensor
from dlc.ops.common import as_given
from dlc.ops.window import Windows

#: Output channels of a panel, whatever the level; narrow vectors read a part of one.
PANEL = 32
NO_GRADIENT = "gradients are taken before algorithms are chosen"

Pairs = tuple[tuple[int, int], tuple[int, int]]


def _panels(channels: int) -> int:
    return -(-channels // PANEL)


def _pad_channels(w: Array, axis: int) -> Array:
    extra = -w.shape[axis] % PANEL
    return np.pad(w, [(0, extra if a == axis else 0) for a in range(w.ndim)])


def expect_rank(x: TensorType, ndim: int, what: str) -> None:
    """Refuse an operand of another number of dimensions than ``what`` has."""
    if x.ndim != ndim:
        raise ShapeError(f"expects {what}, got {shape_text(x.shape)}")


def expect_shape(x: TensorType, shape: Sequence[Size], what: str) -> None:
    """Refuse an operand of another shape."""
    if x.ndim != len(shape) or not all(map(equal, x.shape, shape)):
        raise ShapeError(f"expects {what} {shape_text(shape)}, got {shape_text(x.shape)}")


def _flat_error(match: str, operands: int = 1, **attrs: Any) -> Callable[[], list[ErrorSample]]:
    """The error sample of a vector where an array of more dimensions belongs."""
    vector = tensor("float32", (8,))
    return lambda: [ErrorSample((vector,) * operands, attrs, ShapeError, match)]


def _mismatch(a: tuple[int, ...], b: tuple[int, ...], match: str, **attrs: Any) -> ErrorSample:
    return ErrorSample((tensor("float32", a), tensor("float32", b)), attrs, ShapeError, match)


_IMAGE, _OIHW = "an image (N, C, H, W)", "weights (O, I, KH, KW)"
_SLIDE = {"stride": (1, 1), "padding": ((0, 0), (0, 0)), "dilation": (1, 1)}


# Convolution weights: OIHW -> [group][panel][tap...][32]
def _pack_conv_attrs(
    w: TensorType, *, groups: int, planes: bool, turned: bool = False
) -> dict[str, Any]:
    return {"groups": groups, "planes": planes, "turned": turned}


def _pack_conv_type(w: TensorType, *, groups: int, planes: bool, turned: bool) -> TensorType:
    expect_rank(w, 4, _OIHW)
    o, i, kh, kw = _static(w.shape[0]) // groups, *w.shape[1:]
    o, i = (_static(i), o) if turned else (o, i)
    taps = (i, kh, kw) if planes else (kh, kw, i)
    return w.with_shape((groups, _panels(o), *taps, PANEL))


def _static(size: Size) -> int:
    if isinstance(size, int):
        return size
    raise ShapeError(f"expects weights of fixed size, got {size}")


def _pack_conv_index(
    i: Sequence[Size], types: Sequence[TensorType], *, groups: int, planes: bool, turned: bool
) -> list[Access]:
    group, panel, a, b, c, lane = i
    channel, row, column = (a, b, c) if planes else (c, a, b)
    o, inputs, kh, kw = types[0].shape
    per_group = _static(o) // groups
    within = panel * PANEL + lane
    if turned:
        place = (group * per_group + channel, within, kh - 1 - row, kw - 1 - column)
        return [Access(0, place, ((0, within, inputs),))]
    place = (group * per_group + within, channel, row, column)
    return [Access(0, place, ((0, within, per_group),))]


def pack_conv_ref(w: Array, *, groups: int, planes: bool, turned: bool = False) -> Array:
    """Weights (O, I, KH, KW) as the op `pack_conv` packs them."""
    o, i, kh, kw = w.shape
    if turned:
        by_group = w[:, :, ::-1, ::-1].reshape(groups, o // groups, i, kh, kw)
        w = by_group.swapaxes(1, 2).reshape(groups * i, o // groups, kh, kw)
        o, i, kh, kw = w.shape
    padded = _pad_channels(w.reshape(groups, o // groups, i, kh, kw), 1)
    panels = padded.reshape(groups, -1, PANEL, i, kh, kw)
    return np.ascontiguousarray(
        panels.transpose((0, 1, 3, 4, 5, 2) if planes else (0, 1, 4, 5, 3, 2))
    )


def _pack_conv_samples(rng: np.random.Generator) -> Iterator[Sample]:
    for planes in (False, True):
        yield Sample((rng.normal(size=(40, 3, 2, 3)),), {"groups": 1, "planes": planes})
        yield Sample((rng.normal(size=(6, 2, 3, 3)),), {"groups": 2, "planes": planes})
        turned = {"planes": planes, "turned": True}
        yield Sample((rng.normal(size=(3, 40, 2, 3)),), {"groups": 1, **turned})
        yield Sample((rng.normal(size=(6, 5, 3, 2)),), {"groups": 2, **turned})


pack_conv = OpDef(
    "pack_conv",
    Kind.MOVE,
    attrs=_pack_conv_attrs,
    infer=_pack_conv_type,
    ref=pack_conv_ref,
    doc=(
        "convolution weights OIHW in panels of 32 output channels; `planes` orders taps (I, KH, "
        "KW), else (KH, KW, I); `turned` exchanges input and output channels of each group and "
        "reverses the taps"
    ),
    move=Move(_pack_conv_index),
    no_grad=NO_GRADIENT,
    samples=_pack_conv_samples,
    errors=_flat_error(_OIHW, groups=1, planes=False),
)


# Matrix: [..., K, N] -> [...][panel][K][32]
def _pack_matrix_type(b: TensorType) -> TensorType:
    if b.ndim < 2:
        raise ShapeError(f"expects a matrix (..., K, N), got {shape_text(b.shape)}")
    *batch, k, n = b.shape
    return b.with_shape((*batch, (n + (PANEL - 1)) // PANEL, k, PANEL))


def _pack_matrix_index(i: Sequence[Size], types: Sequence[TensorType]) -> list[Access]:
    *batch, panel, k, lane = i
    column = panel * PANEL + lane
    return [Access(0, (*batch, k, column), ((0, column, types[0].shape[-1]),))]


def pack_matrix_ref(b: Array) -> Array:
    """A matrix (..., K, N) in panels of columns, (..., panels, K, 32)."""
    *batch, k, _ = b.shape
    padded = _pad_channels(b, b.ndim - 1)
    panels = padded.reshape(*batch, k, -1, PANEL)
    return np.ascontiguousarray(np.moveaxis(panels, -2, -3))


pack_matrix = OpDef(
    "pack_matrix",
    Kind.MOVE,
    infer=_pack_matrix_type,
    ref=pack_matrix_ref,
    doc="a matrix [..., K, N] in panels of 32 columns: [..., ceil(N / 32), K, 32]",
    move=Move(_pack_matrix_index),
    no_grad=NO_GRADIENT,
    samples=lambda rng: [Sample((rng.normal(size=s),)) for s in ((5, 40), (3, 32), (2, 4, 7))],
    errors=_flat_error("a matrix"),
)


# Layout
def _relayout_type(x: TensorType, *, order: tuple[int, ...], halo: Any) -> TensorType:
    if sorted(order) != list(range(x.ndim)) or len(halo) != x.ndim:
        raise ShapeError(f"expects an order of {x.ndim} dimensions, got {order}")
    return x


relayout = OpDef(
    "relayout",
    Kind.MOVE,
    attrs=as_given,
    infer=_relayout_type,
    ref=lambda x, *, order, halo: x.copy(),
    doc=(
        "the same values in another physical layout: an order of the dimensions and a halo of zeros"
    ),
    move=Move(lambda i, types, **attrs: [Access(0, tuple(i))]),
    no_grad=NO_GRADIENT,
    samples=lambda rng: [
        Sample(
            (rng.normal(size=(2, 3, 4, 5)),),
            {"order": (0, 2, 3, 1), "halo": ((0, 0), (0, 0), (1, 1), (2, 0))},
        )
    ],
    errors=_flat_error("an order of 1", order=(1, 0), halo=((0, 0),)),
)


# Convolution with packed weights
def conv_type(
    x: TensorType,
    channels: Size,
    kernel: Sequence[Size],
    padding: Pairs,
    stride: tuple[int, int] = (1, 1),
    dilation: tuple[int, int] = (1, 1),
) -> TensorType:
    """The type of a convolution of ``x``, an image of one group or of several."""
    rows, columns = kernel
    windows = Windows(
        (x.shape[2], x.shape[3]), (_static(rows), _static(columns)), stride, padding, dilation
    )
    return tensor(x.dtype, (x.shape[0], channels, *windows.out))


def _conv_direct_type(
    x: TensorType,
    w: TensorType,
    *,
    channels: int,
    stride: tuple[int, int],
    padding: Pairs,
    dilation: tuple[int, int],
    groups: int,
    planes: bool,
) -> TensorType:
    expect_rank(x, 4, _IMAGE)
    expect_rank(w, 6, "packed weights (groups, panels, taps, 32)")
    kernel = w.shape[3:5] if planes else w.shape[2:4]
    inputs = x.shape[1] // groups
    taps = (inputs, *kernel) if planes else (*kernel, inputs)
    expect_shape(w, (groups, _panels(channels // groups), *taps, PANEL), "packed weights")
    return conv_type(x, channels, kernel, padding, stride, dilation)


def _unpack_conv(w: Array, channels: int, groups: int, planes: bool) -> Array:
    w = w.transpose((0, 1, 5, 2, 3, 4) if planes else (0, 1, 5, 4, 2, 3))
    g, p, lane, i, kh, kw = w.shape
    return np.ascontiguousarray(w.reshape(g, p * lane, i, kh, kw)[:, : channels // groups]).reshape(
        channels, i, kh, kw
    )


def _conv_direct_ref(
    x: Array, w: Array, *, channels: int, groups: int, planes: bool, **attrs: Any
) -> Array:
    result: Array = OPS["conv2d"].ref(
        x, _unpack_conv(w, channels, groups, planes), groups=groups, **attrs
    )
    return result


def _conv_direct_flops(y: TensorType, x: TensorType, w: TensorType, **attrs: Any) -> Size:
    return 2 * y.count * product(w.shape[2:5])


def _conv_direct_samples(rng: np.random.Generator) -> Iterator[Sample]:
    for groups, planes in ((1, False), (2, False), (1, True)):
        weights = pack_conv_ref(
            rng.normal(size=(34, 4 // groups, 3, 3)), groups=groups, planes=planes
        )
        attrs = {"channels": 34, "stride": (2, 1), "padding": ((1, 1), (0, 1)), "dilation": (1, 1)}
        yield Sample(
            (rng.normal(size=(2, 4, 6, 7)), weights), {**attrs, "groups": groups, "planes": planes}
        )


conv2d_direct = OpDef(
    "conv2d_direct",
    Kind.CONTRACT,
    arity=2,
    attrs=as_given,
    infer=_conv_direct_type,
    ref=_conv_direct_ref,
    doc=(
        "convolution with packed weights by register tiles over pixels and panels of output "
        "channels"
    ),
    no_grad=NO_GRADIENT,
    flops=_conv_direct_flops,
    samples=_conv_direct_samples,
    errors=lambda: [
        *_flat_error(_IMAGE, 2, channels=8, groups=1, planes=False, **_SLIDE)(),
        _mismatch(
            (1, 4, 6, 6),
            (2, 1, 3, 3, 4, PANEL),
            "expects packed weights (2, 1, 3, 3, 2, 32), got (2, 1, 3, 3, 4, 32)",
            channels=8,
            groups=2,
            planes=False,
            **_SLIDE,
        ),
    ],
)


# Convolution with few output channels: weights [group][I][KH][KW][channels of a group]
def _planes_type(x: TensorType, w: TensorType, *, padding: Pairs) -> TensorType:
    expect_rank(x, 4, _IMAGE)
    groups, _, kh, kw, channels = w.shape
    return conv_type(x, groups * channels, (kh, kw), padding)


def _planes_ref(x: Array, w: Array, *, padding: Pairs) -> Array:
    g, i, kh, kw, c = w.shape
    weights = np.ascontiguousarray(w.transpose(0, 4, 1, 2, 3)).reshape(g * c, i, kh, kw)
    attrs = {"stride": (1, 1), "padding": padding, "dilation": (1, 1), "groups": 1}
    result: Array = OPS["conv2d"].ref(x, weights, **attrs)
    return result


conv2d_planes = OpDef(
    "conv2d_planes",
    Kind.CONTRACT,
    arity=2,
    attrs=as_given,
    infer=_planes_type,
    ref=_planes_ref,
    doc="convolution of stride 1 with few output channels, pixels in the vector lanes",
    no_grad=NO_GRADIENT,
    flops=lambda y, x, w, **attrs: 2 * y.count * product(w.shape[1:4]),
    samples=lambda rng: [
        Sample(
            (rng.normal(size=(2, 3, 7, 40)), rng.normal(size=(2, 3, 3, 5, 3))),
            {"padding": ((1, 1), (2, 2))},
        ),
        Sample(
            (rng.normal(size=(1, 1, 6, 9)), rng.normal(size=(1, 1, 3, 3, 2))),
            {"padding": ((0, 0), (0, 0))},
        ),
    ],
    errors=_flat_error(_IMAGE, 2, padding=((0, 0), (0, 0))),
)


# Depthwise convolution: weights (C, 1, KH, KW) read as they are, transposed to (KH, KW, C)
def _depthwise_type(
    x: TensorType,
    w: TensorType,
    *,
    stride: tuple[int, int],
    padding: Pairs,
    dilation: tuple[int, int],
) -> TensorType:
    expect_rank(x, 4, _IMAGE)
    return conv_type(x, x.shape[1], w.shape[:2], padding, stride, dilation)


def _depthwise_ref(x: Array, w: Array, **attrs: Any) -> Array:
    weights = np.ascontiguousarray(w.transpose(2, 0, 1))[:, None]
    result: Array = OPS["conv2d"].ref(x, weights, groups=w.shape[2], **attrs)
    return result


conv2d_depthwise = OpDef(
    "conv2d_depthwise",
    Kind.CONTRACT,
    arity=2,
    attrs=as_given,
    infer=_depthwise_type,
    ref=_depthwise_ref,
    doc=(
        "depthwise convolution (one filter a channel) with weights (KH, KW, C), channels in the "
        "vector lanes"
    ),
    no_grad=NO_GRADIENT,
    flops=lambda y, x, w, **attrs: 2 * y.count * product(w.shape[:2]),
    samples=lambda rng: [
        Sample(
            (rng.normal(size=(2, 5, 6, 7)), rng.normal(size=(3, 3, 5))),
            {"stride": (1, 2), "padding": ((1, 1), (1, 1)), "dilation": (1, 1)},
        )
    ],
    errors=_flat_error(_IMAGE, 2, **_SLIDE),
)


# Matrix product whose right side is packed as it is read
def _matmul_direct_type(a: TensorType, b: TensorType, *, turned: bool, parts: int) -> TensorType:
    if a.ndim < 2 or a.ndim != b.ndim:
        shapes = f"{shape_text(a.shape)} and {shape_text(b.shape)}"
        raise ShapeError(f"expects matrices (M, K) and (K, N), or batches of them, got {shapes}")
    columns = b.shape[-2 if turned else -1]
    inner = (columns, a.shape[-1]) if turned else (a.shape[-1], columns)
    expect_shape(b, (*a.shape[:-2], *inner), "a right side")
    if parts == 1:
        return tensor(a.dtype, (*a.shape[:-1], columns))
    if turned or a.ndim > 2 or a.shape[-1] % parts != 0:
        shape = shape_text(a.shape)
        raise ShapeError(f"expects a matrix (M, K) whose K is {parts} equal parts, got {shape}")
    return tensor(a.dtype, (parts, *a.shape[:-1], columns))


def _matmul_direct_ref(a: Array, b: Array, *, turned: bool, parts: int) -> Array:
    if parts > 1:
        pairs = zip(np.split(a, parts, axis=1), np.split(b, parts), strict=True)
        return np.stack([np.matmul(np.ascontiguousarray(x), w) for x, w in pairs])
    y: Array = np.matmul(a, np.ascontiguousarray(b.swapaxes(-1, -2)) if turned else b)
    return y


matmul_direct = OpDef(
    "matmul_direct",
    Kind.CONTRACT,
    arity=2,
    attrs=as_given,
    infer=_matmul_direct_type,
    ref=_matmul_direct_ref,
    doc=(
        "matrix product [B,] M, K by [B,] K, N, both known only in a call; where `turned`, the "
        "right side lies as its transpose, [B,] N, K; of two matrices also as the products of "
        "`parts` pieces of K, whose sum it is"
    ),
    no_grad=NO_GRADIENT,
    flops=lambda y, a, b, parts, **attrs: 2 * y.count * (a.shape[-1] // parts),
    samples=lambda rng: [
        Sample((rng.normal(size=a), rng.normal(size=b)), {"turned": turned, "parts": parts})
        for a, b, turned, parts in (
            ((6, 5), (5, 40), False, 1),
            ((2, 33, 70), (2, 70, 37), False, 1),
            ((6, 5), (40, 5), True, 1),
            ((2, 33, 70), (2, 71, 70), True, 1),
            ((17, 12), (12, 40), False, 3),
        )
    ],
    errors=lambda: [
        *_flat_error("expects matrices", 2, turned=False, parts=1)(),
        _mismatch((6, 5), (4, 3), "expects a right side (5, 3), got (4, 3)", turned=False, parts=1),
        _mismatch((6, 5), (5, 3), "whose K is 2 equal parts", turned=False, parts=2),
    ],
)


# Matrix product with a packed right side
def _matmul_packed_type(a: TensorType, b: TensorType, *, columns: Size) -> TensorType:
    if a.ndim < 2:
        raise ShapeError(f"expects a matrix (..., M, K), got {shape_text(a.shape)}")
    batch = a.shape[:-2] if b.ndim > 3 else ()
    panels = (columns + (PANEL - 1)) // PANEL
    expect_shape(b, (*batch, panels, a.shape[-1], PANEL), "a packed matrix")
    return tensor(a.dtype, (*a.shape[:-1], columns))


def _matmul_packed_ref(a: Array, b: Array, *, columns: int) -> Array:
    *batch, panels, k, lane = b.shape
    matrix = np.moveaxis(b, -3, -2).reshape(*batch, k, panels * lane)[..., :columns]
    y: Array = np.matmul(a, np.ascontiguousarray(matrix))
    return y


matmul_packed = OpDef(
    "matmul_packed",
    Kind.CONTRACT,
    arity=2,
    attrs=as_given,
    infer=_matmul_packed_type,
    ref=_matmul_packed_ref,
    doc=(
        "matrix product [..., M, K] by a packed [..., K, N]; without batches on the right, all "
        "rows are one matrix"
    ),
    no_grad=NO_GRADIENT,
    flops=lambda y, a, b, **attrs: 2 * y.count * a.shape[-1],
    samples=lambda rng: [
        Sample(
            (rng.normal(size=(6, 5)), pack_matrix_ref(rng.normal(size=(5, 40)))), {"columns": 40}
        ),
        Sample(
            (rng.normal(size=(2, 6, 5)), pack_matrix_ref(rng.normal(size=(2, 5, 7)))),
            {"columns": 7},
        ),
    ],
    errors=lambda: [
        *_flat_error("a matrix", 2, columns=7)(),
        _mismatch((6, 5), (1, 4, PANEL), "expects a packed matrix (1, 5, 32)", columns=7),
        _mismatch((6, 5), (1, 5, PANEL), "expects a packed matrix (2, 5, 32)", columns=33),
    ],
)
