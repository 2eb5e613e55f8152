"""Conv2d.

The weight is PyTorch's (O, I / groups, KH, KW); how it is laid out for the machine is the
compiler's business and never shows here.
"""

from __future__ import annotations

from collections.abc import Sequence

from dlc.errors import ArgumentError, explain
from dlc.frontend import functional as F
from dlc.frontend.module import Module
from dlc.frontend.nn.linear import (
    check_counts,
    check_device,
    empty_parameter,
    pair,
    reset_weight_and_bias,
)
from dlc.ir.node import Node

Pair = int | Sequence[int]


class Conv2d(Module):
    """A 2-d convolution of images (N, C, H, W).

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size, stride, dilation : int or (rows, columns)
    padding : int, (rows, columns), "valid" or "same"
    groups : int
        Divides both numbers of channels; each group sees its own share of the input.
    bias : bool
    padding_mode : str
        "zeros".
    dtype : str

    Notes
    -----
    Weight and bias start uniform in +-1 / sqrt(in_channels / groups * KH * KW).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair | str = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: object = None,
        *,
        dtype: object = "float32",
    ):
        super().__init__()
        check_device(self, device)
        check_counts(self, in_channels=in_channels, out_channels=out_channels, groups=groups)
        if in_channels % groups or out_channels % groups:
            got = f"{in_channels} and {out_channels}"
            raise ArgumentError(explain("Conv2d", f"channels divisible by groups={groups}", got))
        if padding_mode != "zeros":
            raise ArgumentError(explain("Conv2d", "padding_mode='zeros'", repr(padding_mode)))
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size = pair(self, "kernel_size", kernel_size)
        self.stride = pair(self, "stride", stride)
        self.dilation = pair(self, "dilation", dilation)
        self.padding = padding if isinstance(padding, str) else pair(self, "padding", padding, 0)
        F.check_padding(self.padding, self.stride)
        shape = (out_channels, in_channels // groups, *self.kernel_size)
        self.weight = empty_parameter(*shape, dtype=dtype)
        self.bias = empty_parameter(out_channels, dtype=dtype) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw initial values."""
        reset_weight_and_bias(self.weight, self.bias)

    def forward(self, input: Node) -> Node:
        """(N, in_channels, H, W) to (N, out_channels, OH, OW)."""
        return F.conv2d(
            input,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
        )

    def extra_repr(self) -> str:
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"]
        parts += [f"stride={self.stride}"]
        parts += [f"padding={self.padding}"] if self.padding != (0, 0) else []
        parts += [f"dilation={self.dilation}"] if self.dilation != (1, 1) else []
        parts += [f"groups={self.groups}"] if self.groups != 1 else []
        return ", ".join(parts + (["bias=False"] if self.bias is None else []))
