"""Choose the form of each convolution, and of its gradient for the input.

The gradient for the input is a convolution too, of the gradient with turned weights: input and
output channels exchanged, taps reversed. So it has the same forms, and others for strides, which go
by phases: one convolution for each, or one for all of them whose channels are their pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dlc.ir.graph import Graph, is_parametric, topological
from dlc.ir.node import Node, apply
from dlc.ir.op import Kind
from dlc.ir.sizes import Size, bounds
from dlc.ops.phases import Phase, phases_with, weighted
from dlc.ops.winograd import POINTS, TAPS, tiles_along

#: Input channels up to which a convolution reads channel planes: the reduction over them is too
#: short to be contiguous.
PLANES = 4
#: Output channels up to which pixels rather than channels fill the vector lanes; an even number of
#: them beyond `TILE_CHANNELS` is two tiles.
FEW_CHANNELS, TILE_CHANNELS = 8, 6
#: Pixels of a line from which that pays.
WIDE = 8
#: Channels that a tile computes in the time of one.
LANES = 16
#: What Winograd's algorithm costs besides its products, in multiply-adds: transforming an element
#: of a tile, before or behind them, and reading a weight from memory, of which it has more. Both
#: were measured on 3x3 convolutions of ResNet-18 and VGG-16 with weights that no cache held.
TRANSFORM, READ = 5, 8
#: The same for a weight that changes from call to call, and so is written first: packed as it is,
#: or transformed.
PACK, WRITE = 12, 20

#: The tiles where gradients are taken. Rounding adds up from step to step: a ResNet-18 with smooth
#: activations goes 1.2 times as far from float64 in ten steps as PyTorch's with m = 2, and with
#: m = 4 2.4 times as far.
GENTLE = (2,)
#: What tells that they are.
GRADIENTS = frozenset(("conv2d_input_grad", "conv2d_weight_grad"))

#: Elements up to which the gradient of a weight has too few tiles to share; it is the sum of those
#: of several parts of the images, at most so many.
SMALL, PARTS = 8192, 16
#: Where what it is computed from has so many times its elements, it is the sum of so many parts:
#: threads then read their own images only, which other processors' caches do not hold.
TIMES, OWN_PARTS = 3, 2

Pads = tuple[tuple[int, int], tuple[int, int]]


@dataclass(frozen=True)
class Weights:
    """Weights (O, I / groups, KH, KW) as a convolution takes them, or turned for its gradient."""

    node: Node
    groups: int = 1
    turned: bool = False

    @property
    def outputs(self) -> Size:
        """Output channels of the convolution."""
        o, i = self.node.shape[:2]
        return i * self.groups if self.turned else o

    @property
    def inputs(self) -> Size:
        """Input channels of one group."""
        o, i = self.node.shape[:2]
        return o // self.groups if self.turned else i

    @property
    def kernel(self) -> tuple[Size, Size]:
        """Rows and columns."""
        rows, columns = self.node.shape[2:]
        return rows, columns

    @property
    def taps(self) -> Node:
        """The taps of each channel (KH, KW, C), of a depthwise convolution."""
        own = apply("reshape", self.node, shape=(self.node.shape[0], *self.kernel))
        taps = apply("transpose", own, axes=(1, 2, 0))
        return apply("flip", taps, axes=(0, 1)) if self.turned else taps

    @property
    def plain(self) -> Node:
        """(O, I, KH, KW) of the convolution, for one group."""
        if not self.turned:
            return self.node
        return apply("transpose", apply("flip", self.node, axes=(2, 3)), axes=(1, 0, 2, 3))

    def packed(self, planes: bool = False) -> Node:
        """In panels of output channels."""
        attrs = {"groups": self.groups, "planes": planes, "turned": self.turned}
        return apply("pack_conv", self.node, **attrs)

    def of(self, rows: Phase, columns: Phase) -> Weights:
        """The taps of a phase only."""
        starts, stops, steps = [0, 0], list(self.node.shape[:2]), [1, 1]
        for taps in (rows.taps[::-1], columns.taps[::-1]):
            starts.append(taps[0])
            stops.append(taps[-1] + 1)
            steps.append(taps[1] - taps[0] if len(taps) > 1 else 1)
        own = apply("slice", self.node, starts=starts, stops=stops, steps=steps)
        return Weights(own, self.groups, self.turned)

    def of_blocks(self, rows: int, columns: int) -> Weights:
        """Those of the convolution whose channels are pixels of blocks; see `Blocks`."""
        o, c, *kernel = self.node.shape
        down, across = -(-kernel[0] // rows), -(-kernel[1] // columns)
        high = (0, 0, down * rows - kernel[0], across * columns - kernel[1])
        w = apply("pad", self.node, low=(0,) * 4, high=high, value=0.0) if any(high) else self.node
        w = apply("reshape", w, shape=(o, c, down, rows, across, columns))
        w = apply("transpose", w, axes=(0, 3, 5, 1, 2, 4))
        shape = (o, rows * columns * c, down, across)
        return Weights(apply("reshape", w, shape=shape), turned=True)


@dataclass(frozen=True)
class Convolutions:
    """Chooses forms for a graph in which the parameters named ``changing`` have new values in every
    call, so that their packed form is made anew, and with these ``tiles`` of Winograd's algorithm.
    """

    changing: frozenset[str] = frozenset()
    tiles: tuple[int, ...] = tuple(POINTS)

    @classmethod
    def of(cls, graph: Graph) -> Convolutions:
        """For a graph: of new values, and perhaps with gradients."""
        trains = any(node.op.name in GRADIENTS for node in graph.nodes)
        return cls(frozenset(graph.aliases.values()), GENTLE if trains else tuple(POINTS))

    def conv2d(self, node: Node, x: Node, w: Node) -> Node:
        """A convolution in the form of a kernel."""
        weights = Weights(w, node.attrs["groups"])
        return self._dense(x, weights, node.attrs, node.shape)

    def input_grad(self, node: Node, g: Node, w: Node) -> Node:
        """The gradient of a convolution for its input in the form of a kernel."""
        attrs, weights = node.attrs, Weights(w, node.attrs["groups"], turned=True)
        if attrs["stride"] == (1, 1):
            reach = [d * (k - 1) for d, k in zip(attrs["dilation"], weights.kernel)]
            padding = tuple(
                (r - low, r - high) for r, (low, high) in zip(reach, attrs["padding"], strict=True)
            )
            if min(min(sides) for sides in padding) >= 0:
                return self._dense(g, weights, {**attrs, "padding": padding}, node.shape)
        if (blocks := _blocks(node, g, weights)) is not None:
            return self._by_blocks(node, g, weights, *blocks)
        return _by_phases(node, g, weights)

    def weight_grad(self, node: Node, x: Node, g: Node) -> Node:
        """The gradient of a convolution for its weight in the form of a kernel."""
        attrs, inputs = node.attrs, x.shape[1]
        planes = attrs["groups"] == 1 and inputs <= PLANES
        parts = _parts(node, x, g)
        made = apply("conv2d_weight_direct", x, g, **attrs, parts=parts, planes=planes)
        return apply("sum", made, axes=(0,), keepdims=False) if parts > 1 else made

    def _dense(
        self, x: Node, weights: Weights, attrs: Mapping[str, Any], shape: tuple[Size, ...]
    ) -> Node:
        """A convolution of ``x`` with a result of ``shape``."""
        slide = {name: attrs[name] for name in ("stride", "padding", "dilation")}
        groups, channels, padding = weights.groups, weights.outputs, attrs["padding"]
        if _depthwise(weights):
            return apply("conv2d_depthwise", x, weights.taps, **slide)
        if groups == 1 and _few(channels) and _slides_by_one(attrs) and _is_wide(shape):
            return apply("conv2d_planes", x, _plane_taps(weights), padding=padding)
        few_inputs = weights.inputs <= PLANES
        if not few_inputs and (m := self._winograd_tile(weights, attrs, shape)):
            u = apply("pack_winograd", weights.node, m=m, turned=weights.turned)
            return apply("conv2d_winograd", x, u, channels=channels, padding=padding, m=m)
        planes = few_inputs and groups == 1 and attrs["dilation"][1] == 1
        packed = weights.packed(planes)
        return apply(
            "conv2d_direct", x, packed, channels=channels, planes=planes, groups=groups, **slide
        )

    def _by_blocks(
        self, node: Node, g: Node, weights: Weights, rows: Blocks, columns: Blocks
    ) -> Node:
        """The gradient for the input as one convolution, whose channels are pixels of blocks."""
        (images, channels), axes = node.shape[:2], (rows, columns)
        down, across = rows.stride, columns.stride
        shape = (images, down * across * channels, rows.count, columns.count)
        padding = tuple(axis.padding for axis in axes)
        attrs = {"stride": (1, 1), "padding": padding, "dilation": (1, 1)}
        y = self._dense(g, weights.of_blocks(down, across), attrs, shape)
        y = apply("reshape", y, shape=(images, down, across, channels, rows.count, columns.count))
        y = apply("transpose", y, axes=(0, 3, 4, 1, 5, 2))
        y = apply("reshape", y, shape=(images, channels, down * rows.count, across * columns.count))
        stops = (images, channels, *(axis.skipped + axis.size for axis in axes))
        return apply("slice", y, starts=(0, 0, rows.skipped, columns.skipped), stops=stops)

    def _winograd_tile(
        self, weights: Weights, attrs: Mapping[str, Any], shape: tuple[Size, ...]
    ) -> int:
        """The tile of Winograd's algorithm for a convolution, or 0."""
        if weights.kernel != (TAPS, TAPS) or weights.groups != 1 or not _slides_by_one(attrs):
            return 0
        prepared = self.is_prepared(weights.node)
        images, _, height, width = map(self._typical, shape)
        channels = (bounds(weights.inputs)[0], bounds(weights.outputs)[0])
        return winograd_tile((images, height, width), *channels, prepared, self.tiles)

    def _typical(self, size: Size) -> int:
        """The size that a choice is made for: batches of a training step are full but the last."""
        return bounds(size)[1 if self.changing else 0]

    def is_prepared(self, w: Node) -> bool:
        """Whether weights follow from parameters that stay, so that transforming them costs a call
        nothing.
        """
        known: dict[Node, bool] = {}
        for node in topological((w,)):
            stays = node.op.kind is not Kind.LEAF or node.name not in self.changing
            known[node] = is_parametric(node, known) and stays
        return known[w]


def winograd_tile(
    shape: tuple[int, int, int],
    inputs: int,
    outputs: int,
    prepared: bool = True,
    tiles: Iterable[int] = POINTS,
) -> int:
    """The tile with which Winograd's algorithm is estimated to be fastest, or 0 for a direct sum.

    Parameters
    ----------
    shape : tuple of int
        Images, height and width of the result.
    inputs, outputs : int
        Channels.
    prepared : bool
        Whether the weights are packed before the call, or in it.
    tiles : iterable of int
        The choices.
    """
    images, height, width = shape
    weights = outputs * inputs
    packed, transformed = (READ, READ) if prepared else (READ + PACK, READ + WRITE)
    costs = {0: TAPS * TAPS * (images * height * width + packed) * weights}
    for m in tiles:
        count = images * tiles_along(height, m) * tiles_along(width, m)
        products = count * (weights + TRANSFORM * (outputs + inputs))
        costs[m] = (m + 2) ** 2 * (products + transformed * weights)
    return min(costs, key=lambda m: costs[m])


@dataclass(frozen=True)
class Blocks:
    """A line of the input of a strided convolution in blocks as long as the stride.

    Padding included, element r of block Q meets the taps r + stride k of the windows Q - k: the
    same windows for every element. So the gradient is an ordinary convolution whose channels are
    the elements of a block, times those of the input; taps there are not weigh nothing. This is the
    sub-pixel convolution of Shi et al., "Real-Time Single Image and Video Super-Resolution", 2016.
    A few channels fill vectors so, and do not in phases.

    Attributes
    ----------
    size, windows : int
        Elements of the input, and of the gradient.
    kernel, stride, before : int
        Taps, and elements of padding in front.
    """

    size: int
    windows: int
    kernel: int
    stride: int
    before: int

    @property
    def taps(self) -> int:
        """Taps of the convolution of the gradient."""
        return -(-self.kernel // self.stride)

    @property
    def first(self) -> int:
        """The first block with an element of the input."""
        return self.before // self.stride

    @property
    def count(self) -> int:
        """Blocks with an element of the input."""
        return (self.before + self.size - 1) // self.stride + 1 - self.first

    @property
    def skipped(self) -> int:
        """Elements of the first block in front of the input."""
        return self.before - self.first * self.stride

    @property
    def padding(self) -> tuple[int, int]:
        """Zeros around the gradient; fewer than none where windows lie outside the input."""
        return self.taps - 1 - self.first, self.first + self.count - self.windows


def _blocks(node: Node, g: Node, weights: Weights) -> tuple[Blocks, Blocks] | None:
    """The blocks of a gradient's rows and columns, if they take fewer products than phases, for
    images of known size.
    """
    attrs, sizes = node.attrs, (*node.shape[2:], *g.shape[2:])
    known = all(isinstance(size, int) for size in sizes)
    if weights.groups > 1 or attrs["dilation"] != (1, 1) or not known:
        return None
    befores = [before for before, _ in attrs["padding"]]
    lines = zip(sizes[:2], sizes[2:], weights.kernel, attrs["stride"], befores, strict=True)
    rows, columns = (Blocks(*line) for line in lines)
    if min(*rows.padding, *columns.padding) < 0:
        return None
    phases = rows.kernel * columns.kernel * _in_vectors(weights.outputs)
    pixels = rows.stride * columns.stride
    joined = rows.taps * columns.taps * _in_vectors(pixels * weights.outputs)
    return (rows, columns) if joined < phases else None


def _in_vectors(channels: int) -> int:
    """Channels, those included that fill the last vector."""
    return -(-channels // LANES) * LANES


def _parts(weight: Node, x: Node, g: Node) -> int:
    """Into how many parts the images are cut for the gradient of a weight."""
    count, *read = (bounds(node.tensor_type.count)[1] for node in (weight, x, g))
    parts = PARTS if count <= SMALL else OWN_PARTS if TIMES * count <= sum(read) else 1
    return max(1, min(parts, bounds(x.shape[0])[1]))


def _by_phases(node: Node, g: Node, weights: Weights) -> Node:
    """The gradient for the input phase by phase of the stride."""
    attrs, depthwise = node.attrs, _depthwise(weights)
    own = [weights.of(*phase) for phase in weighted(phases_with(attrs, weights.kernel))]
    packed = [each.taps if depthwise else each.packed() for each in own]
    more = {"channels": weights.outputs, "kernel": weights.kernel, "depthwise": depthwise}
    return apply("conv2d_phases", g, *packed, **attrs, **more)


def _depthwise(weights: Weights) -> bool:
    """Whether each channel has a filter of its own."""
    return weights.groups > 1 and weights.groups == weights.outputs and weights.inputs == 1


def _plane_taps(weights: Weights) -> Node:
    """Weights as tiles of few channels read them, [tile][I][KH][KW][channels]."""
    w, channels = weights.plain, weights.outputs
    tile = channels if channels <= TILE_CHANNELS else channels // 2
    parts = apply("reshape", w, shape=(channels // tile, tile, *w.shape[1:]))
    return apply("transpose", parts, axes=(0, 2, 3, 4, 1))


def _is_wide(shape: tuple[Size, ...]) -> bool:
    """Whether lines of the result fill vectors, and there are two of them."""
    height, width = (bounds(size)[0] for size in shape[2:])
    return height >= 2 and width >= WIDE


def _few(channels: Size) -> bool:
    few = isinstance(channels, int) and channels <= FEW_CHANNELS
    return few and (channels <= TILE_CHANNELS or channels % 2 == 0)


def _slides_by_one(attrs: Mapping[str, Any]) -> bool:
    return attrs["stride"] == (1, 1) and attrs["dilation"] == (1, 1)
