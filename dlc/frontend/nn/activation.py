"""Activation layers: a function of `functional` each, with its arguments remembered.

``inplace`` is taken for PyTorch's sake and changes nothing: values are pure, and what is computed
in place is the memory planner's decision.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from dlc.errors import ArgumentError, explain
from dlc.frontend import functional as F
from dlc.frontend.module import Module
from dlc.frontend.nn.linear import check_axis, check_counts
from dlc.frontend.parameter import Parameter
from dlc.ir.node import Node
from dlc.ir.types import as_dtype


class _Activation(Module):
    """A layer that applies ``function`` with the arguments it was made with."""

    function: ClassVar[Callable[..., Node]]

    def __init__(self, inplace: bool = False, **arguments: Any):
        super().__init__()
        self.inplace = inplace
        self._arguments = tuple(arguments)
        for name, value in arguments.items():
            setattr(self, name, value)

    def forward(self, input: Node) -> Node:
        """Same shape as the input."""
        arguments = {name: getattr(self, name) for name in self._arguments}
        return type(self).function(input, **arguments)

    def extra_repr(self) -> str:
        shown = (*self._arguments, *(("inplace",) if self.inplace else ()))
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in shown)


class _Plain(_Activation):
    """An activation without arguments."""

    def __init__(self, inplace: bool = False):
        super().__init__(inplace)


class ReLU(_Plain):
    """max(x, 0)."""

    function = staticmethod(F.relu)


class ReLU6(_Plain):
    """x held between 0 and 6."""

    function = staticmethod(F.relu6)


class SELU(_Plain):
    """The self-normalising ELU."""

    function = staticmethod(F.selu)


class SiLU(_Plain):
    """x sigmoid(x)."""

    function = staticmethod(F.silu)


class Sigmoid(_Plain):
    """1 / (1 + exp(-x))."""

    function = staticmethod(F.sigmoid)

    def __init__(self) -> None:
        super().__init__()


class Tanh(_Plain):
    """The hyperbolic tangent."""

    function = staticmethod(F.tanh)

    def __init__(self) -> None:
        super().__init__()


class LogSigmoid(_Plain):
    """log(sigmoid(x)) without overflow."""

    function = staticmethod(F.logsigmoid)

    def __init__(self) -> None:
        super().__init__()


class Hardtanh(_Activation):
    """x held between ``min_val`` and ``max_val``."""

    function = staticmethod(F.hardtanh)

    def __init__(self, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False):
        super().__init__(inplace, min_val=min_val, max_val=max_val)


class LeakyReLU(_Activation):
    """x above zero, ``negative_slope`` x below."""

    function = staticmethod(F.leaky_relu)

    def __init__(self, negative_slope: float = 0.01, inplace: bool = False):
        super().__init__(inplace, negative_slope=negative_slope)


class ELU(_Activation):
    """x above zero, ``alpha`` (exp(x) - 1) below."""

    function = staticmethod(F.elu)

    def __init__(self, alpha: float = 1.0, inplace: bool = False):
        super().__init__(inplace, alpha=alpha)


class CELU(_Activation):
    """x above zero, ``alpha`` (exp(x / alpha) - 1) below."""

    function = staticmethod(F.celu)

    def __init__(self, alpha: float = 1.0, inplace: bool = False):
        super().__init__(inplace, alpha=alpha)


class GELU(_Activation):
    """x times the normal distribution function at x, or its approximation by "tanh"."""

    function = staticmethod(F.gelu)

    def __init__(self, approximate: str = "none"):
        if approximate not in ("none", "tanh"):
            expected = "approximate to be 'none' or 'tanh'"
            raise ArgumentError(explain("GELU", expected, repr(approximate)))
        super().__init__(approximate=approximate)


class Softplus(_Activation):
    """log(1 + exp(beta x)) / beta; x itself where beta x is above ``threshold``."""

    function = staticmethod(F.softplus)

    def __init__(self, beta: float = 1.0, threshold: float = 20.0):
        super().__init__(beta=beta, threshold=threshold)


class Softmax(_Activation):
    """exp(x) over its sum along ``dim``."""

    function = staticmethod(F.softmax)

    def __init__(self, dim: int):
        super().__init__(dim=dim)
        check_axis(self, dim=dim)


class Softmin(_Activation):
    """The softmax of -x along ``dim``."""

    function = staticmethod(F.softmin)

    def __init__(self, dim: int):
        super().__init__(dim=dim)
        check_axis(self, dim=dim)


class LogSoftmax(_Activation):
    """The logarithm of the softmax along ``dim``, without overflow."""

    function = staticmethod(F.log_softmax)

    def __init__(self, dim: int):
        super().__init__(dim=dim)
        check_axis(self, dim=dim)


class PReLU(Module):
    """x above zero, ``weight`` x below; the slope is learnt.

    Parameters
    ----------
    num_parameters : int
        One slope, or one a channel (axis 1).
    init : float
        The slopes at the start.
    dtype : str
    """

    def __init__(self, num_parameters: int = 1, init: float = 0.25, *, dtype: object = "float32"):
        super().__init__()
        check_counts(self, num_parameters=num_parameters)
        self.num_parameters = num_parameters
        self.weight = Parameter(np.full(num_parameters, init, as_dtype(dtype)))

    def forward(self, input: Node) -> Node:
        """Same shape as the input."""
        return F.prelu(input, self.weight)

    def extra_repr(self) -> str:
        return f"num_parameters={self.num_parameters}"
