"""Batch and layer normalisation.

Running statistics are buffers; in training mode a call gives them new values, which become theirs
when the call is done.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dlc.errors import ShapeError, explain
from dlc.frontend import functional as F
from dlc.frontend.functional import trailing
from dlc.frontend.module import Module
from dlc.frontend.nn.linear import check_counts, check_device
from dlc.frontend.parameter import Parameter
from dlc.frontend.scope import here
from dlc.ir.node import Node
from dlc.ir.sizes import shape_text
from dlc.ir.types import as_dtype


class BatchNorm(Module):
    """What batch norms share: each channel to mean 0 and variance 1, then scaled and shifted.

    Parameters
    ----------
    num_features : int
        Channels: the size of axis 1.
    eps : float
        Added to the variance.
    momentum : float, optional
        Share of each batch in the running statistics; None makes them plain averages.
    affine : bool
        Scale and shift by weight and bias (start: 1 and 0).
    track_running_stats : bool
        Keep running_mean and running_var (start: 0 and 1) for inference; without them every call
        normalises by its own batch.
    bias : bool
        Shift too, where ``affine`` is on.
    dtype : str
    """

    ranks: tuple[int, ...] = ()

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        bias: bool = True,
        device: object = None,
        dtype: object = "float32",
    ):
        super().__init__()
        check_device(self, device)
        check_counts(self, num_features=num_features)
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.affine, self.track_running_stats = affine, track_running_stats
        ones, zeros = (np.full(num_features, n, as_dtype(dtype)) for n in (1, 0))
        self.weight = Parameter(ones) if affine else None
        self.bias = Parameter(zeros) if affine and bias else None
        self.register_buffer("running_mean", zeros if track_running_stats else None)
        self.register_buffer("running_var", ones if track_running_stats else None)
        batches = np.array(0, np.int64)
        self.register_buffer("num_batches_tracked", batches if track_running_stats else None)

    def forward(self, input: Node) -> Node:
        """Same shape as the input."""
        self._check(input)
        momentum = self.momentum
        if self.training and self.track_running_stats:
            self.num_batches_tracked = self.num_batches_tracked + 1
            if momentum is None:  # a plain average of all batches so far
                momentum = 1.0 / self.num_batches_tracked.to(self.running_mean.dtype)
        return F.batch_norm(
            input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            training=self.training or not self.track_running_stats,
            momentum=0.0 if momentum is None else momentum,
            eps=self.eps,
        )

    def _check(self, input: Node) -> None:
        if input.ndim not in self.ranks:
            ranks = " or ".join(map(str, self.ranks))
            subject, got = type(self).__name__, shape_text(input.shape)
            raise ShapeError(explain(subject, f"an input of {ranks} axes", got, where=here()))

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, "
            f"affine={self.affine}, bias={self.bias is not None}, "
            f"track_running_stats={self.track_running_stats}"
        )


class BatchNorm1d(BatchNorm):
    """Batch norm of (N, C) or (N, C, L); `BatchNorm` explains the parameters."""

    ranks = (2, 3)


class BatchNorm2d(BatchNorm):
    """Batch norm of images (N, C, H, W); `BatchNorm` explains the parameters."""

    ranks = (4,)


class LayerNorm(Module):
    """The last axes to mean 0 and variance 1, then scaled and shifted.

    Parameters
    ----------
    normalized_shape : int or sequence of int
        Sizes of the last axes, which are also the shape of weight and bias.
    eps : float
        Added to the variance.
    elementwise_affine : bool
        Scale and shift by weight and bias (start: 1 and 0).
    bias : bool
        Shift too.
    dtype : str
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        *,
        device: object = None,
        dtype: object = "float32",
    ):
        super().__init__()
        check_device(self, device)
        self.normalized_shape = trailing(normalized_shape)
        for size in self.normalized_shape:
            check_counts(self, normalized_shape=size)
        self.eps, self.elementwise_affine = eps, elementwise_affine
        ones, zeros = (np.full(self.normalized_shape, n, as_dtype(dtype)) for n in (1, 0))
        self.weight = Parameter(ones) if elementwise_affine else None
        self.bias = Parameter(zeros) if elementwise_affine and bias else None

    def forward(self, input: Node) -> Node:
        """Same shape as the input."""
        return F.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return (
            f"{self.normalized_shape}, eps={self.eps}, "
            f"elementwise_affine={self.elementwise_affine}, bias={self.bias is not None}"
        )
