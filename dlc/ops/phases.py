"""Gradient of a strided convolution for its input, as dense convolutions: one for each phase of the
stride.

Element p of a line of the image meets tap t of the kernel at window q where p = stride q + dilation
t - padding. All p with one remainder modulo the stride, a phase, meet the same taps, so that they
are an ordinary convolution of the gradient with those taps in reverse, and no zeros are spread
between its elements.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlc.errors import ShapeError
from dlc.ir.op import OPS, Array, ErrorSample, Kind, OpDef, Sample
from dlc.ir.sizes import Size, bounds
from dlc.ir.types import TensorType, tensor
from dlc.ops.common import as_given
from dlc.ops.packed import NO_GRADIENT, PANEL, expect_rank, expect_shape, pack_conv_ref
from dlc.ops.window import Padding, Pair, SizePair


@dataclass(frozen=True)
class Phase:
    """The elements ``start, start + stride, ...`` of a line of the image.

    Element q of them is the sum over k of element ``q + offset + k * step`` of the gradient times
    tap ``taps[k]`` of the kernel; beyond its ends the gradient is zero.

    Parameters
    ----------
    start, stride : int
    taps : tuple of int
        In falling order; none where the convolution skips these elements.
    offset, step : int
    """

    start: int
    stride: int
    taps: tuple[int, ...]
    offset: int
    step: int

    def count(self, size: Size) -> Size:
        """How many of the ``size`` elements of a line they are."""
        return (size - self.start + (self.stride - 1)) // self.stride

    def beyond(self, size: Size, windows: Size) -> tuple[int, int]:
        """How far they reach before the first and behind the last element of the gradient, at
        most.
        """
        if not self.taps:
            return 0, 0
        last = self.count(size) - 1 + self.offset + self.step * (len(self.taps) - 1)
        return max(0, -self.offset), max(0, bounds(last - windows + 1)[1])


def phases(kernel: int, stride: int, before: int, dilation: int) -> list[Phase]:
    """The phases along one axis of a convolution with ``before`` elements of padding in front."""
    common = math.gcd(stride, dilation)
    made = []
    for start in range(stride):
        meets = (t for t in range(kernel) if (start + before - dilation * t) % stride == 0)
        taps = tuple(reversed(list(meets)))
        offset = (start + before - dilation * taps[0]) // stride if taps else 0
        made.append(Phase(start, stride, taps, offset, dilation // common))
    return made


def phases_of(
    kernel: Pair, stride: Pair, padding: Padding, dilation: Pair
) -> list[tuple[Phase, Phase]]:
    """The phases of an image: one of its rows with one of its columns."""
    rows, columns = (phases(kernel[d], stride[d], padding[d][0], dilation[d]) for d in range(2))
    return list(itertools.product(rows, columns))


def phases_with(attrs: Mapping[str, Any], kernel: Pair) -> list[tuple[Phase, Phase]]:
    """The phases for attributes of a convolution."""
    return phases_of(kernel, attrs["stride"], attrs["padding"], attrs["dilation"])


def weighted(both: Sequence[tuple[Phase, Phase]]) -> list[tuple[Phase, Phase]]:
    """Those of the phases that have taps, and weights."""
    return [(rows, columns) for rows, columns in both if rows.taps and columns.taps]


def reach_of_phases(attrs: Mapping[str, Any], windows: Sequence[Size]) -> Padding:
    """Zeros that the phases read around a gradient of so many rows and columns."""
    both, sizes = phases_with(attrs, attrs["kernel"]), attrs["input_shape"]
    rows = [first.beyond(sizes[0], windows[0]) for first, _ in both]
    columns = [second.beyond(sizes[1], windows[1]) for _, second in both]
    (top, bottom), (left, right) = (map(max, zip(*sides)) for sides in (rows, columns))
    return (top, bottom), (left, right)


# The op.


def _type(
    g: TensorType,
    *packed: TensorType,
    channels: int,
    input_shape: SizePair,
    kernel: Pair,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
    depthwise: bool,
) -> TensorType:
    expect_rank(g, 4, "a gradient (N, O, OH, OW)")
    both = weighted(phases_of(kernel, stride, padding, dilation))
    if len(packed) != len(both):
        raise ShapeError(f"expects {len(both)} packed weights, got {len(packed)}")
    for (rows, columns), w in zip(both, packed):
        taps = (len(rows.taps), len(columns.taps))
        panels = -(-(channels // groups) // PANEL)
        shape = (groups, panels, *taps, g.shape[1] // groups, PANEL)
        expect_shape(w, (*taps, channels) if depthwise else shape, "packed weights")
    return tensor(g.dtype, (g.shape[0], channels, *input_shape))


def _ref(
    g: Array,
    *packed: Array,
    channels: int,
    kernel: Pair,
    groups: int,
    depthwise: bool,
    **attrs: Any,
) -> Array:
    outputs, inputs = g.shape[1] // groups, channels // groups
    w = np.zeros((g.shape[1], inputs, *kernel), g.dtype)
    for (rows, columns), own in zip(weighted(phases_with(attrs, kernel)), packed):
        if depthwise:
            taps = own.transpose(2, 0, 1)[:, None]
        else:  # [group][panel][tap][tap][O][32]
            taps = own.transpose(0, 4, 1, 5, 2, 3).reshape(groups, outputs, -1, *own.shape[2:4])
            taps = taps[:, :, :inputs].reshape(len(w), inputs, *own.shape[2:4])
        w[:, :, np.array(rows.taps)[:, None], np.array(columns.taps)] = taps
    result: Array = OPS["conv2d_input_grad"].ref(g, w, groups=groups, **attrs)
    return result


def _flops(
    y: TensorType,
    g: TensorType,
    *packed: TensorType,
    channels: int,
    kernel: Pair,
    groups: int,
    **attrs: Any,
) -> Size:
    rows, columns = kernel
    return 2 * g.count * rows * columns * (channels // groups)


#: Sizes of the image, kernel, and what else is not as in an ordinary convolution of stride 2.
_CASES: tuple[tuple[Pair, Pair, dict[str, Any]], ...] = (
    ((7, 8), (3, 3), {"padding": ((1, 1), (1, 1))}),
    ((6, 5), (1, 1), {}),
    ((9, 12), (5, 4), {"stride": (2, 3), "padding": ((2, 1), (0, 3)), "dilation": (1, 2)}),
    ((8, 9), (2, 2), {"stride": (4, 3), "groups": 2}),
    ((7, 6), (3, 2), {"padding": ((3, 0), (4, 2)), "dilation": (2, 1)}),
    ((5, 6), (3, 3), {"padding": ((1, 1), (1, 1)), "groups": 4, "depthwise": True}),
)


def _samples(rng: np.random.Generator) -> Iterator[Sample]:
    for size, kernel, more in _CASES:
        attrs: dict[str, Any] = {"stride": (2, 2), "padding": ((0, 0), (0, 0)), "groups": 1}
        attrs |= {"dilation": (1, 1), "kernel": kernel, "depthwise": False, **more}
        slide = {name: attrs[name] for name in ("stride", "padding", "dilation", "groups")}
        groups = attrs["groups"]
        x, w = np.zeros((2, 4, *size)), rng.normal(size=(4, 4 // groups, *kernel))
        shape = OPS["conv2d"].ref(x, w, **slide).shape
        packed = []
        for rows, columns in weighted(phases_with(attrs, kernel)):
            own = w[:, :, np.array(rows.taps[::-1])[:, None], np.array(columns.taps[::-1])]
            if attrs["depthwise"]:
                packed.append(own[:, 0, ::-1, ::-1].transpose(1, 2, 0).copy())
            else:
                packed.append(pack_conv_ref(own, groups=groups, planes=False, turned=True))
        arrays = (rng.normal(size=shape), *packed)
        yield Sample(arrays, {**attrs, "channels": 4, "input_shape": size})


def _errors() -> Iterator[ErrorSample]:
    g, w = tensor("float32", (1, 8, 4, 4)), tensor("float32", (1, 1, 1, 1, 8, PANEL))
    attrs = {"stride": (2, 2), "padding": ((0, 0), (0, 0)), "dilation": (1, 1), "groups": 1}
    attrs |= {"channels": 5, "input_shape": (8, 8), "depthwise": False}
    yield ErrorSample(
        (g, w), {**attrs, "kernel": (2, 2)}, ShapeError, "expects 4 packed weights, got 1"
    )
    match = "expects packed weights (1, 1, 1, 1, 8, 32), got (1, 1, 1, 1, 8, 16)"
    wrong = w.with_shape((1, 1, 1, 1, 8, 16))
    yield ErrorSample((g, wrong), {**attrs, "kernel": (1, 1)}, ShapeError, match)
    flat = tensor("float32", (8,))
    yield ErrorSample((flat, w), {**attrs, "kernel": (1, 1)}, ShapeError, "a gradient (N, O,")


conv2d_phases = OpDef(
    "conv2d_phases",
    Kind.CONTRACT,
    arity=(2, math.inf),
    attrs=as_given,
    infer=_type,
    ref=_ref,
    doc=(
        "gradient of conv2d for its input, of rows and columns `input_shape`: a convolution with "
        "packed weights for each phase of the stride"
    ),
    no_grad=NO_GRADIENT,
    flops=_flops,
    samples=_samples,
    errors=_errors,
)
