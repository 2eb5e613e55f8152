"""Random numbers: the generator that initial values come from, and the state of draws in graphs.

Both are counter-based (Philox), so that a seed gives the same numbers on every machine, and each
draw depends only on the seed and on how much was drawn before. A compiled function that draws reads
the state and gives it a new value, like any other buffer. A training run has a state of its own, so
that its numbers do not depend on what else is drawn meanwhile.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from numbers import Integral
from typing import Any

import numpy as np

from dlc.errors import ArgumentError, explain
from dlc.frontend.parameter import Buffer
from dlc.frontend.scope import active, refuse_in_trace
from dlc.ir.node import Node, apply
from dlc.ir.sizes import Size
from dlc.ir.types import FLOATS, as_dtype

Array = np.ndarray[Any, Any]

_generator = np.random.Generator(np.random.Philox())


def stream(number: int) -> Buffer:
    """A state of draws inside graphs, at its beginning."""
    return Buffer(words(number))


def words(number: int, draws: int = 0) -> Array:
    """What a `stream` holds: the seed, and the number of draws so far."""
    return np.array([number % 2**63, draws], np.int64)


#: Of all draws inside graphs that no stream of their own serves.
state = stream(np.random.SeedSequence().entropy)
_source: contextvars.ContextVar[Buffer] = contextvars.ContextVar("dlc.random", default=state)


@contextlib.contextmanager
def drawing_from(own: Buffer | None) -> Iterator[None]:
    """Let what is traced in a block draw from a `stream` of its own; None changes nothing."""
    token = _source.set(_source.get() if own is None else own)
    try:
        yield
    finally:
        _source.reset(token)


def seed(number: int) -> None:
    """Make what follows reproducible: initial values of parameters, dropout, `rand` and `randn`.

    It is one state for the whole process: calls of models and steps take their draws from it one
    after another, in whichever threads, and none twice. What runs beside others and is to be
    reproducible by itself has a stream of its own: a `Trainer`, and a `train_step` with a seed.

    Parameters
    ----------
    number : int
        Not negative; the same number gives the same models, in the same order of construction.
    """
    global _generator
    if isinstance(number, bool) or not isinstance(number, Integral) or number < 0:
        raise ArgumentError(explain("dlc.seed", "an integer of at least 0", repr(number)))
    _generator = np.random.Generator(np.random.Philox(int(number)))
    state.data = words(int(number))


def generator() -> np.random.Generator:
    """The generator that `seed` sets; it locks itself, so that threads may share it."""
    return _generator


def rand(*shape: Any, dtype: object = "float32") -> Any:
    """Uniform numbers in [0, 1): an array, or inside a trace a tensor, other ones in every call."""
    if active() is not None:
        return draw(_shape(shape), as_dtype(dtype))
    return uniform(_shape(shape), as_dtype(dtype))


def randn(*shape: Any, dtype: object = "float32") -> Any:
    """Standard normal numbers: an array, or inside a trace a tensor, other ones in every call.

    In a trace by Box and Muller, 1958: sqrt(-2 log u) cos(2 pi v) of two uniform numbers.
    """
    if active() is None:
        return normal(_shape(shape), as_dtype(dtype))
    u, v = (draw(_shape(shape), as_dtype(dtype)) for _ in range(2))
    normal_numbers: Node = (-2.0 * (1.0 - u).log()).sqrt() * (2.0 * np.pi * v).cos()
    return normal_numbers


def draw(shape: tuple[Size, ...], dtype: str) -> Node:
    """Uniform numbers in [0, 1), inside a trace: the next ones of the stream that serves it."""
    scope, source = active(), _source.get()
    assert scope is not None, "outside a trace `uniform` draws"
    scope.name(source, "random.state")
    now = scope.value(source)
    scope.assign(source, now + np.array([0, 1]))
    index, stride = scope.node(np.array(0)), scope.node(np.array(1))
    for axis, size in enumerate(reversed(shape)):
        along = apply("iota", size=size, dtype="int64")
        index = index + along.reshape(-1, *[1] * axis) * stride
        stride = stride * size
    return apply("random_uniform", index.expand(shape), now[0], now[1], dtype=dtype)


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
