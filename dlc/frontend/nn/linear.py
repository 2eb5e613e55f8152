"""Linear, Identity, Flatten: the layers that act on features.

Shapes and initial distributions are PyTorch's, so that state dicts and trainings carry over.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dlc.errors import ArgumentError, explain
from dlc.frontend import functional as F
from dlc.frontend import init
from dlc.frontend.module import Module
from dlc.frontend.numeric import check_whole, is_whole
from dlc.frontend.parameter import Parameter
from dlc.ir.node import Node
from dlc.ir.types import as_dtype


class Linear(Module):
    """y = x W^T + b.

    Parameters
    ----------
    in_features, out_features : int
    bias : bool
    dtype : str
        Of weight (out_features, in_features) and bias (out_features).

    Notes
    -----
    Both start uniform in +-1 / sqrt(in_features).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: object = None,
        *,
        dtype: object = "float32",
    ):
        super().__init__()
        check_device(self, device)
        check_counts(self, in_features=in_features, out_features=out_features)
        self.in_features, self.out_features = in_features, out_features
        self.weight = empty_parameter(out_features, in_features, dtype=dtype)
        self.bias = empty_parameter(out_features, dtype=dtype) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw initial values."""
        reset_weight_and_bias(self.weight, self.bias)

    def forward(self, input: Node) -> Node:
        """(..., in_features) to (..., out_features)."""
        return F.linear(input, self.weight, self.bias)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}"
        )


class Identity(Module):
    """Gives back its input; takes any arguments, so that it can stand in for any layer."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__()

    def forward(self, input: Any) -> Any:
        """The input."""
        return input


class Flatten(Module):
    """Axes ``start_dim`` to ``end_dim``, both included, as one.

    Parameters
    ----------
    start_dim, end_dim : int
    """

    def __init__(self, start_dim: int = 1, end_dim: int = -1):
        super().__init__()
        check_axis(self, start_dim=start_dim, end_dim=end_dim)
        self.start_dim, self.end_dim = start_dim, end_dim

    def forward(self, input: Node) -> Node:
        """(N, C, H, W) to (N, C H W), by default."""
        return F.flatten(input, self.start_dim, self.end_dim)

    def extra_repr(self) -> str:
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"


def empty_parameter(*shape: int, dtype: object) -> Parameter:
    """A parameter whose values `reset_parameters` is about to draw."""
    return Parameter(np.zeros(shape, as_dtype(dtype)))


def reset_weight_and_bias(weight: Parameter, bias: Parameter | None) -> None:
    """What PyTorch's linear and convolution layers start from: uniform in +-1 / sqrt(fan_in)."""
    init.kaiming_uniform_(weight, a=math.sqrt(5.0))  # its bound is 1 / sqrt(fan_in)
    if bias is not None:
        bound = 1.0 / math.sqrt(max(1, init.fans(weight.shape)[0]))
        init.uniform_(bias, -bound, bound)


def pair(layer: Module, name: str, value: Any, least: int = 1) -> tuple[int, int]:
    """A size for rows and columns alike, or one each, as a pair; none below ``least``."""
    sizes = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(sizes) != 2 or not all(is_whole(size, least) for size in sizes):
        subject = f"{type(layer).__name__}: {name}"
        expected = f"an integer of at least {least}, or one for rows and one for columns"
        raise ArgumentError(explain(subject, expected, repr(value)))
    return sizes


def check_axis(layer: Module, **axes: object) -> None:
    """Refuse what is no dimension of a tensor."""
    for name, axis in axes.items():
        if not is_whole(axis):
            subject = f"{type(layer).__name__}: {name}"
            raise ArgumentError(explain(subject, "an integer, a dimension", repr(axis)))


def check_device(layer: Module, device: object) -> None:
    """Accept PyTorch's argument where it says what holds anyway."""
    if device is not None and str(device) != "cpu":
        raise ArgumentError(
            explain(f"{type(layer).__name__}: device", "None or 'cpu'", repr(device))
        )


def check_counts(layer: Module, **counts: int) -> None:
    """Refuse what is no positive number of features or channels."""
    for name, count in counts.items():
        check_whole(f"{type(layer).__name__}: {name}", count)
