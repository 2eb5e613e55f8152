"""nn.init: initial values of parameters, by PyTorch's names, distributions and bounds.

The numbers come from dlc's own generator (`dlc.seed`), so a model's initial values are reproducible
but not PyTorch's; to start from PyTorch's, load its state dict.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np

from dlc.errors import ArgumentError, ShapeError, explain
from dlc.frontend import random
from dlc.frontend.parameter import Variable
from dlc.ir.sizes import shape_text

#: What can be filled: a parameter, a buffer or an array.
T = TypeVar("T", Variable, np.ndarray[Any, Any])

_skipping: contextvars.ContextVar[bool] = contextvars.ContextVar("dlc.init.skip", default=False)


@contextlib.contextmanager
def skip() -> Iterator[None]:
    """Draw no random values: layers made inside start at zero, for weights that come later."""
    token = _skipping.set(True)
    try:
        yield
    finally:
        _skipping.reset(token)


def uniform_(tensor: T, a: float = 0.0, b: float = 1.0) -> T:
    """Fill with uniform numbers from [a, b)."""
    if _skipping.get():
        return tensor
    return _fill(tensor, random.uniform(tensor.shape, _dtype(tensor), a, b))


def normal_(tensor: T, mean: float = 0.0, std: float = 1.0) -> T:
    """Fill with normal numbers."""
    if _skipping.get():
        return tensor
    return _fill(tensor, random.normal(tensor.shape, _dtype(tensor), mean, std))


def trunc_normal_(
    tensor: T, mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0
) -> T:
    """Fill with normal numbers, drawn again until each lies in [a, b].

    Raises
    ------
    ArgumentError
        Less than a thousandth of the distribution lies in [a, b].
    """
    mass = _normal_cdf((b - mean) / std) - _normal_cdf((a - mean) / std)
    if mass < 1e-3:
        expected = "an interval [a, b] that holds a thousandth of the distribution"
        raise ArgumentError(explain("trunc_normal_", expected, f"[{a}, {b}]"))
    if _skipping.get():
        return tensor
    values = random.normal(tensor.shape, _dtype(tensor), mean, std)
    while (outside := (values < a) | (values > b)).any():
        count = (int(outside.sum()),)
        values[outside] = random.normal(count, _dtype(tensor), mean, std)
    return _fill(tensor, values)


def constant_(tensor: T, val: float) -> T:
    """Fill with one value."""
    return _fill(tensor, np.full(tensor.shape, val, _dtype(tensor)))


def ones_(tensor: T) -> T:
    """Fill with ones."""
    return constant_(tensor, 1.0)


def zeros_(tensor: T) -> T:
    """Fill with zeros."""
    return constant_(tensor, 0.0)


def eye_(tensor: T) -> T:
    """Fill a matrix with the identity."""
    if tensor.ndim != 2:
        raise ShapeError(explain("eye_", "a matrix", shape_text(tensor.shape)))
    return _fill(tensor, np.eye(tensor.shape[0], tensor.shape[1], dtype=_dtype(tensor)))


def dirac_(tensor: T, groups: int = 1) -> T:
    """Fill a convolution's weight (O, I, ...) so that it passes its input channels on."""
    if tensor.ndim < 3 or tensor.shape[0] % groups:
        expected = f"a weight (O, I, ...) with O divisible by groups={groups}"
        raise ShapeError(explain("dirac_", expected, shape_text(tensor.shape)))
    values = np.zeros(tensor.shape, _dtype(tensor))
    outputs = tensor.shape[0] // groups
    centre = tuple(size // 2 for size in tensor.shape[2:])
    for group in range(groups):
        for channel in range(min(outputs, tensor.shape[1])):
            values[(group * outputs + channel, channel, *centre)] = 1
    return _fill(tensor, values)


def xavier_uniform_(tensor: T, gain: float = 1.0) -> T:
    """Uniform in +-gain sqrt(6 / (fan_in + fan_out)): Glorot and Bengio, 2010."""
    bound = gain * math.sqrt(6.0 / sum(fans(tensor.shape)))
    return uniform_(tensor, -bound, bound)


def xavier_normal_(tensor: T, gain: float = 1.0) -> T:
    """Normal with std gain sqrt(2 / (fan_in + fan_out)): Glorot and Bengio, 2010."""
    return normal_(tensor, 0.0, gain * math.sqrt(2.0 / sum(fans(tensor.shape))))


def kaiming_uniform_(
    tensor: T, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu"
) -> T:
    """Uniform in +-gain sqrt(3 / fan): He et al., 2015; ``a`` is the slope of leaky_relu."""
    bound = calculate_gain(nonlinearity, a) * math.sqrt(3.0 / _fan(tensor.shape, mode))
    return uniform_(tensor, -bound, bound)


def kaiming_normal_(
    tensor: T, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu"
) -> T:
    """Normal with std gain / sqrt(fan): He et al., 2015; ``a`` is the slope of leaky_relu."""
    std = calculate_gain(nonlinearity, a) / math.sqrt(_fan(tensor.shape, mode))
    return normal_(tensor, 0.0, std)


def orthogonal_(tensor: T, gain: float = 1.0) -> T:
    """A random (semi-)orthogonal matrix, later axes taken together: Saxe et al., 2013."""
    if tensor.ndim < 2:
        raise ShapeError(explain("orthogonal_", "two or more axes", shape_text(tensor.shape)))
    if _skipping.get():
        return tensor
    rows = tensor.shape[0]
    columns = math.prod(tensor.shape[1:])
    normal = random.normal((max(rows, columns), min(rows, columns)), "float64")
    q, r = np.linalg.qr(normal)
    q *= np.sign(np.diag(r))  # makes the distribution uniform
    values = q.T if rows < columns else q
    return _fill(tensor, (gain * values).reshape(tensor.shape).astype(_dtype(tensor)))


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """By how much a nonlinearity shrinks the standard deviation, inverted, as PyTorch has it."""
    if nonlinearity == "leaky_relu":
        slope = 0.01 if param is None else param
        return math.sqrt(2.0 / (1.0 + slope**2))
    if nonlinearity not in _GAINS:
        names = ", ".join(("leaky_relu", *_GAINS))
        raise ArgumentError(explain("calculate_gain", f"one of {names}", repr(nonlinearity)))
    return _GAINS[nonlinearity]


_CONVOLUTIONS = [f"conv{way}{rank}d" for way in ("", "_transpose") for rank in (1, 2, 3)]
_GAINS = dict.fromkeys(("linear", *_CONVOLUTIONS, "sigmoid"), 1.0)
_GAINS |= {"tanh": 5 / 3, "relu": math.sqrt(2.0), "selu": 0.75}


def fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """Numbers of inputs and outputs that one element of a weight (O, I, ...) takes part in."""
    if len(shape) < 2:
        raise ShapeError(explain("fan_in and fan_out", "two or more axes", shape_text(shape)))
    window = math.prod(shape[2:])
    return shape[1] * window, shape[0] * window


def _fan(shape: tuple[int, ...], mode: str) -> int:
    if mode not in ("fan_in", "fan_out"):
        raise ArgumentError(explain("mode", "'fan_in' or 'fan_out'", repr(mode)))
    return fans(shape)[mode == "fan_out"]


def _normal_cdf(x: float) -> float:
    return (1.0 + math.erf(x / math.sqrt(2.0))) / 2.0


def _dtype(tensor: Variable | np.ndarray[Any, Any]) -> str:
    return str(tensor.dtype)


def _fill(tensor: T, values: np.ndarray[Any, Any]) -> T:
    """Put fresh values into a variable or an array."""
    if isinstance(tensor, Variable):
        tensor.data = values
    else:
        tensor[...] = values
    return tensor
