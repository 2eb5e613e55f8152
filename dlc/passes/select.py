"""Choose an algorithm for each contraction, as a rewrite of the graph.

Which kernel runs is then visible in the graph, checked by value like any rewrite, and its packed
weights move to `prepare` with everything else that depends on parameters only. The choice follows
from shapes, never from the number of threads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlc.ir.graph import Graph, is_parametric, topological
from dlc.ir.manager import Pass, Property
from dlc.ir.node import Node, apply
from dlc.ir.rewrite import Journal
from dlc.ir.sizes import Size, bounds, product
from dlc.ops.winograd import POINTS, TAPS, matrices, tiles_along
from dlc.passes.decompose import DECOMPOSED

#: Input channels up to which a convolution reads channel planes: the reduction over them is too
#: short to be contiguous.
PLANES = 4


#: Output channels up to which pixels rather than channels fill the vector lanes; an even number of
#: them beyond `TILE_CHANNELS` is two tiles.
FEW_CHANNELS, TILE_CHANNELS = 8, 6
#: Pixels of a line from which that pays.
WIDE = 8
#: What Winograd's algorithm costs besides its products, in multiply-adds: transforming an element
#: of a tile, before or behind them, and reading a weight from memory, of which it has more. Both
#: were measured on 3x3 convolutions of ResNet-18 and VGG-16 with weights that no cache held.
TRANSFORM, READ = 5, 8


@dataclass(frozen=True)
class SelectAlgorithms(Pass):
    """Rewrite convolutions and matrix products into forms that read packed weights."""

    name = "select-algorithms"

    @property
    def requires(self) -> tuple[Property, ...]:
        """Composite ops may hold contractions, so none may be left."""
        return (DECOMPOSED,)

    def run(self, graph: Graph, journal: Journal) -> Graph:
        """The graph with every contraction in the form of a kernel."""
        return graph.rewrite(_choose)


def _choose(node: Node, inputs: tuple[Node, ...]) -> Node | None:
    choose = _CHOICES.get(node.op.name)
    return choose(node, *inputs) if choose else None


def _conv2d(node: Node, x: Node, w: Node) -> Node:
    attrs = dict(node.attrs)
    groups, channels = attrs["groups"], w.shape[0]
    if groups == channels == x.shape[1] and groups > 1:
        attrs.pop("groups")
        taps = apply(
            "transpose", apply("reshape", w, shape=(channels, *w.shape[2:])), axes=(1, 2, 0)
        )
        return apply("conv2d_depthwise", x, taps, **attrs)
    if groups == 1 and _few(channels) and _slides_by_one(attrs) and _is_wide(node):
        tile = channels if channels <= TILE_CHANNELS else channels // 2
        parts = apply("reshape", w, shape=(channels // tile, tile, *w.shape[1:]))
        taps = apply("transpose", parts, axes=(0, 2, 3, 4, 1))
        return apply("conv2d_planes", x, taps, padding=attrs["padding"])
    few_inputs = w.shape[1] <= PLANES
    if not few_inputs and (m := _winograd_tile(node, w)):
        u, padding = winograd_weights(w, m), attrs["padding"]
        return apply("conv2d_winograd", x, u, channels=channels, padding=padding, m=m)
    planes = few_inputs and groups == 1 and attrs["dilation"][1] == 1
    packed = apply("pack_conv", w, groups=groups, planes=planes)
    return apply("conv2d_direct", x, packed, channels=channels, planes=planes, **attrs)


def _few(channels: Size) -> bool:
    few = isinstance(channels, int) and channels <= FEW_CHANNELS
    return few and (channels <= TILE_CHANNELS or channels % 2 == 0)


def _slides_by_one(attrs: Mapping[str, Any]) -> bool:
    return attrs["stride"] == (1, 1) and attrs["dilation"] == (1, 1)


def _is_wide(node: Node) -> bool:
    """Whether lines of the result fill vectors, and there are two of them."""
    height, width = (bounds(size)[0] for size in node.shape[2:])
    return height >= 2 and width >= WIDE


def _winograd_tile(node: Node, w: Node) -> int:
    """The tile of Winograd's algorithm for a convolution, or 0."""
    attrs, (outputs, inputs, *kernel) = node.attrs, w.shape
    fits = kernel == [TAPS, TAPS] and attrs["groups"] == 1 and _slides_by_one(attrs)
    if not fits or not _is_prepared(w):
        return 0
    images, _, height, width = (bounds(size)[0] for size in node.shape)
    return winograd_tile((images, height, width), inputs, outputs)


def winograd_tile(shape: tuple[int, int, int], inputs: int, outputs: int) -> int:
    """The tile with which Winograd's algorithm is estimated to be fastest, or 0 for a direct sum.

    Parameters
    ----------
    shape : tuple of int
        Images, height and width of the result.
    inputs, outputs : int
        Channels.
    """
    images, height, width = shape
    weights = outputs * inputs
    costs = {0: TAPS * TAPS * (images * height * width + READ) * weights}
    for m in POINTS:
        tiles = images * tiles_along(height, m) * tiles_along(width, m)
        products = tiles * (weights + TRANSFORM * (outputs + inputs))
        costs[m] = (m + 2) ** 2 * (products + READ * weights)
    return min(costs, key=lambda m: costs[m])


def _is_prepared(w: Node) -> bool:
    """Whether weights follow from parameters alone, so that transforming them costs a call
    nothing.
    """
    known: dict[Node, bool] = {}
    for node in topological((w,)):
        known[node] = is_parametric(node, known)
    return known[w]


def winograd_weights(w: Node, m: int) -> Node:
    """G w G^T of each kernel, one matrix product over all kernels, in panels for each point."""
    outputs, inputs = w.shape[:2]
    g = matrices(m)[1]
    # A cast of what is exact, so that a check in float64 sees no rounding.
    both = apply("cast", w.builder.constant(np.kron(g, g)), dtype=w.dtype)
    taps = apply("transpose", w, axes=(2, 3, 1, 0))
    kernels = apply("reshape", taps, shape=(TAPS * TAPS, inputs * outputs))
    points = apply("reshape", _matmul_rows(both, kernels), shape=(both.shape[0], inputs, outputs))
    return apply("pack_matrix", points)


def _conv2d_input_grad(node: Node, g: Node, w: Node) -> Node:
    """A convolution of the gradient, spread by the stride, with flipped, transposed weights."""
    attrs = node.attrs
    (kh, kw), d, groups = w.shape[2:], attrs["dilation"], attrs["groups"]
    o, i = w.shape[0] // groups, w.shape[1]
    by_group = apply("reshape", apply("flip", w, axes=(2, 3)), shape=(groups, o, i, kh, kw))
    turned = apply(
        "reshape", apply("transpose", by_group, axes=(0, 2, 1, 3, 4)), shape=(groups * i, o, kh, kw)
    )
    spread = _spread(g, attrs["stride"])
    reach = (d[0] * (kh - 1), d[1] * (kw - 1))
    low, high = [0, 0], [0, 0]
    for axis in range(2):
        low[axis] = reach[axis] - attrs["padding"][axis][0]
        have = spread.shape[2 + axis] + low[axis] - reach[axis]
        high[axis] = node.shape[2 + axis] - have
    framed = _frame(spread, tuple(low), tuple(high))
    conv = apply(
        "conv2d", framed, turned, stride=(1, 1), padding=((0, 0), (0, 0)), dilation=d, groups=groups
    )
    return _conv2d(conv, framed, turned)


def _spread(g: Node, stride: tuple[int, int]) -> Node:
    """``g`` with ``stride - 1`` zeros between neighbours, and behind the last."""
    if stride == (1, 1):
        return g
    n, c, h, w = g.shape
    apart = apply("reshape", g, shape=(n, c, h, 1, w, 1))
    high = (0, 0, 0, stride[0] - 1, 0, stride[1] - 1)
    padded = apply("pad", apart, low=(0,) * 6, high=high, value=0.0)
    return apply("reshape", padded, shape=(n, c, h * stride[0], w * stride[1]))


def _frame(x: Node, low: tuple[Size, ...], high: tuple[Size, ...]) -> Node:
    """An image with zeros around it, or with rows and columns cut off where a width is negative."""
    starts = (0, 0, *(max(-size, 0) for size in low))
    stops = tuple(size - max(-h, 0) for size, h in zip(x.shape, (0, 0, *high), strict=True))
    cut = apply("slice", x, starts=starts, stops=stops, steps=(1, 1, 1, 1))
    before = (0, 0, *(max(size, 0) for size in low))
    after = (0, 0, *(max(size, 0) for size in high))
    return apply("pad", cut, low=before, high=after, value=0.0)


def _conv2d_weight_grad(node: Node, x: Node, g: Node) -> Node:
    """A convolution in which images and channels change places, and stride and dilation too.

    dW[o, i] = sum over images n of x[n, i] correlated with g[n, o], whose elements are a stride
    apart.
    """
    attrs, (kh, kw), groups = node.attrs, node.shape[2:], node.attrs["groups"]
    o, i = g.shape[1] // groups, x.shape[1] // groups
    parts = []
    for group in range(groups):
        own_x = _channels(x, group * i, (group + 1) * i)
        own_g = _channels(g, group * o, (group + 1) * o)
        turned_x, turned_g = (apply("transpose", t, axes=(1, 0, 2, 3)) for t in (own_x, own_g))
        swapped = {
            "stride": attrs["dilation"],
            "padding": attrs["padding"],
            "dilation": attrs["stride"],
            "groups": 1,
        }
        conv = _conv2d(apply("conv2d", turned_x, turned_g, **swapped), turned_x, turned_g)
        own = apply("slice", conv, starts=(0, 0, 0, 0), stops=(i, o, kh, kw), steps=(1, 1, 1, 1))
        parts.append(apply("transpose", own, axes=(1, 0, 2, 3)))
    return apply("concat", *parts, axis=0) if groups > 1 else parts[0]


def _channels(x: Node, start: int, stop: int) -> Node:
    starts = (0, start, 0, 0)
    stops = (x.shape[0], stop, *x.shape[2:])
    return (
        x
        if stop - start == x.shape[1]
        else apply("slice", x, starts=starts, stops=stops, steps=(1, 1, 1, 1))
    )


def _matmul(node: Node, a: Node, b: Node) -> Node:
    if a.ndim > 1 and b.ndim > 1:
        return _matmul_rows(a, b)
    row = apply("reshape", a, shape=(1, *a.shape)) if a.ndim == 1 else a
    column = apply("reshape", b, shape=(*b.shape, 1)) if b.ndim == 1 else b
    return apply("reshape", _matmul_rows(row, column), shape=node.shape)


def _matmul_rows(a: Node, b: Node) -> Node:
    columns = b.shape[-1]
    if b.ndim == 2:  # all rows of all batches are one matrix
        rows = apply("reshape", a, shape=(product(a.shape[:-1]), a.shape[-1])) if a.ndim > 2 else a
        y = _product(rows, b)
        return apply("reshape", y, shape=(*a.shape[:-1], columns)) if a.ndim > 2 else y
    batch = apply("matmul", a, b).shape[:-2]
    a, b = (
        n if n.shape[:-2] == batch else apply("expand", n, shape=(*batch, *n.shape[-2:]))
        for n in (a, b)
    )
    flat_a = apply("reshape", a, shape=(product(batch), *a.shape[-2:]))
    flat_b = apply("reshape", b, shape=(product(batch), *b.shape[-2:]))
    return apply("reshape", _product(flat_a, flat_b), shape=(*batch, a.shape[-2], columns))


def _product(a: Node, b: Node) -> Node:
    """Weights are packed once, in `prepare`; what a call brings, as the kernel reads it."""
    if any(node.op.name == "input" for node in topological((b,))):
        return apply("matmul_direct", a, b)
    return apply("matmul_packed", a, apply("pack_matrix", b), columns=b.shape[-1])


_CHOICES = {
    "conv2d": _conv2d,
    "conv2d_input_grad": _conv2d_input_grad,
    "conv2d_weight_grad": _conv2d_weight_grad,
    "matmul": _matmul,
}
