"""Random numbers outside the graph: the one generator that initial values come from.

It is counter-based (Philox), so that a seed gives the same numbers on every machine, and each draw
depends only on the seed and on how much was drawn before.
"""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np

from dlc.errors import ArgumentError, explain
from dlc.frontend.scope import refuse_in_trace
from dlc.ir.types import FLOATS, as_dtype

Array = np.ndarray[Any, Any]

_generator = np.random.Generator(np.random.Philox())


def seed(number: int) -> None:
    """Make what follows reproducible: initial values of parameters, `rand` and `randn`.

    Parameters
    ----------
    number : int
        Not negative; the same number gives the same models, in the same order of construction.
    """
    global _generator
    if isinstance(number, bool) or not isinstance(number, Integral) or number < 0:
        raise ArgumentError(explain("dlc.seed", "an integer of at least 0", repr(number)))
    _generator = np.random.Generator(np.random.Philox(int(number)))


def generator() -> np.random.Generator:
    """The generator that `seed` sets; it locks itself, so that threads may share it."""
    return _generator


def rand(*shape: int, dtype: object = "float32") -> Array:
    """An array of uniform numbers in [0, 1)."""
    return uniform(_shape(shape), as_dtype(dtype))


def randn(*shape: int, dtype: object = "float32") -> Array:
    """An array of standard normal numbers."""
    return normal(_shape(shape), as_dtype(dtype))


def uniform(shape: tuple[int, ...], dtype: str, low: float = 0.0, high: float = 1.0) -> Array:
    """A fresh array of uniform numbers in [low, high)."""
    return _scaled(_generator.random, shape, dtype, high - low, low)


def normal(shape: tuple[int, ...], dtype: str, mean: float = 0.0, std: float = 1.0) -> Array:
    """A fresh array of normal numbers."""
    return _scaled(_generator.standard_normal, shape, dtype, std, mean)


_DRAW_OUTSIDE = (
    "draw it outside and pass it as an argument (layers draw their initial values: make them in "
    "__init__, not in forward)"
)


def _scaled(draw: Any, shape: tuple[int, ...], dtype: str, scale: float, shift: float) -> Array:
    refuse_in_trace("a random number", _DRAW_OUTSIDE)
    if dtype not in FLOATS:
        raise ArgumentError(explain("a random number", " or ".join(FLOATS), dtype))
    array = np.asarray(draw(shape, dtype=np.dtype(dtype)))
    array *= array.dtype.type(scale)
    array += array.dtype.type(shift)
    return array


def _shape(shape: tuple[Any, ...]) -> tuple[int, ...]:
    """Sizes given one by one, or as one sequence."""
    return tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
