"""Pooling layers: each output element from a window of the image.

They keep no state, so that they are their functional form with the arguments remembered.
"""

from __future__ import annotations

from collections.abc import Sequence

from dlc.errors import ArgumentError, explain
from dlc.frontend import functional as F
from dlc.frontend.module import Module
from dlc.frontend.nn.linear import check_counts, pair
from dlc.ir.node import Node

Pair = int | Sequence[int]


class MaxPool2d(Module):
    """The greatest element of each window of (N, C, H, W).

    Parameters
    ----------
    kernel_size : int or (rows, columns)
    stride : int or (rows, columns), optional
        The kernel's size where none is given.
    padding, dilation : int or (rows, columns)
    return_indices : bool
        False: positions are not given.
    ceil_mode : bool
        Keep a last window that reaches beyond the image.
    """

    def __init__(
        self,
        kernel_size: Pair,
        stride: Pair | None = None,
        padding: Pair = 0,
        dilation: Pair = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
    ):
        super().__init__()
        _check_window(self, kernel_size, stride, padding)
        pair(self, "dilation", dilation)
        F.no_indices(return_indices)
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding, self.dilation, self.ceil_mode = padding, dilation, ceil_mode

    def forward(self, input: Node) -> Node:
        """(N, C, H, W) to (N, C, OH, OW)."""
        return F.max_pool2d(
            input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode
        )

    def extra_repr(self) -> str:
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, "
            f"dilation={self.dilation}, ceil_mode={self.ceil_mode}"
        )


class AvgPool2d(Module):
    """The mean of each window of (N, C, H, W).

    Parameters
    ----------
    kernel_size : int or (rows, columns)
    stride : int or (rows, columns), optional
        The kernel's size where none is given.
    padding : int or (rows, columns)
    ceil_mode : bool
        Keep a last window that reaches beyond the image.
    count_include_pad : bool
        Whether the zeros of the padding count in the mean.
    divisor_override : int, optional
        What sums are divided by, in place of the number of elements.
    """

    def __init__(
        self,
        kernel_size: Pair,
        stride: Pair | None = None,
        padding: Pair = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ):
        super().__init__()
        _check_window(self, kernel_size, stride, padding)
        if divisor_override is not None:
            check_counts(self, divisor_override=divisor_override)
        self.divisor_override = divisor_override
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding, self.ceil_mode = padding, ceil_mode
        self.count_include_pad = count_include_pad

    def forward(self, input: Node) -> Node:
        """(N, C, H, W) to (N, C, OH, OW)."""
        return F.avg_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class AdaptiveAvgPool2d(Module):
    """The means over windows that divide the image evenly, however large it is.

    Parameters
    ----------
    output_size : int or (rows, columns)
        None keeps the size of an axis.
    """

    def __init__(self, output_size: int | Sequence[int | None]):
        super().__init__()
        given = output_size if isinstance(output_size, (tuple, list)) else (output_size,) * 2
        pair(self, "output_size", [1 if size is None else size for size in given])
        self.output_size = output_size

    def forward(self, input: Node) -> Node:
        """(N, C, H, W) to (N, C, *output_size)."""
        return F.adaptive_avg_pool2d(input, self.output_size)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}"


def _check_window(layer: Module, kernel_size: Pair, stride: Pair | None, padding: Pair) -> None:
    """Refuse windows that no image has."""
    kernel = pair(layer, "kernel_size", kernel_size)
    if stride is not None:
        pair(layer, "stride", stride)
    for reach, size in zip(pair(layer, "padding", padding, 0), kernel, strict=True):
        if 2 * reach > size:
            subject = f"{type(layer).__name__}: padding"
            expected = f"at most half of kernel_size={kernel_size}"
            raise ArgumentError(explain(subject, expected, repr(padding)))
