"""Random numbers as a pure function of a key and a counter, so that a graph has no hidden state.

Each element is computed by itself from its index: the same numbers for any number of threads, any
layout and any order of work.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from dlc.errors import DTypeError
from dlc.ir.op import Array, ErrorSample, Kind, OpDef, Sample
from dlc.ir.types import TensorType, as_dtype
from dlc.ops.common import broadcast_shapes, plain

#: Bits of a fraction: that many random bits make a float in [0, 1).
BITS = {"float32": 24, "float64": 53}
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


def philox(key: Any, counter: tuple[Any, Any, Any, Any]) -> tuple[Array, Array, Array, Array]:
    """Philox 4x32 with ten rounds (Salmon, Moraes, Dror, Shaw: Parallel random numbers, 2011).

    Parameters
    ----------
    key : int
        64 bits.
    counter : tuple of four arrays
        uint64 below 2**32; they broadcast.

    Returns
    -------
    tuple of four arrays
        32 random bits each, as uint64.
    """
    a, b, c, d = np.broadcast_arrays(*counter)
    for turn in range(10):
        low = np.uint64((key + turn * 0x9E3779B9) & 0xFFFFFFFF)
        high = np.uint64(((key >> 32) + turn * 0xBB67AE85) & 0xFFFFFFFF)
        first, second = a * np.uint64(0xD2511F53), c * np.uint64(0xCD9E8D57)
        a, b, c, d = (
            (second >> _HALF) ^ b ^ low,
            second & _LOW,
            (first >> _HALF) ^ d ^ high,
            first & _LOW,
        )
    return a, b, c, d


def random_bits(index: Array, key: int, call: int) -> Array:
    """63 random bits for each index, as int64."""
    at, turn = (np.asarray(each).astype(np.uint64) for each in (index, call))
    first, second, _, _ = philox(
        int(key) % 2**64, (at & _LOW, at >> _HALF, turn & _LOW, turn >> _HALF)
    )
    return np.asarray((first << np.uint64(31) | second >> np.uint64(1)).astype(np.int64))


def _attrs(*types: TensorType, dtype: object = "float32") -> dict[str, Any]:
    name = as_dtype(dtype)
    if name not in BITS:
        raise DTypeError(f"expects a dtype of {', '.join(BITS)}, got {name}")
    return {"dtype": name}


def _type(index: TensorType, key: TensorType, call: TensorType, *, dtype: str) -> TensorType:
    for t in (index, key, call):
        if t.dtype != "int64":
            raise DTypeError(f"expects index, key and call of int64, got {t.dtype}")
    return TensorType(dtype, broadcast_shapes(index.shape, key.shape, call.shape))


def _ref(index: Array, key: Array, call: Array, *, dtype: str) -> Array:
    shape = np.broadcast_shapes(index.shape, key.shape, call.shape)
    places = [np.broadcast_to(each, shape).ravel() for each in (index, key, call)]
    bits = np.zeros(len(places[0]), np.int64)
    for own in {(int(k), int(c)) for k, c in zip(*places[1:], strict=True)}:
        mine = (places[1] == own[0]) & (places[2] == own[1])
        bits[mine] = random_bits(places[0][mine], *own)
    fraction = (bits >> (63 - BITS[dtype])).astype(dtype)
    result: Array = (fraction * fraction.dtype.type(2.0 ** -BITS[dtype])).reshape(shape)
    return result


def _samples(rng: np.random.Generator) -> Iterator[Sample]:
    key, call = np.array(rng.integers(2**62)), np.array(7)
    for dtype in BITS:
        yield plain(np.arange(70).reshape(7, 10), key, call, dtype=dtype)
        yield plain(np.array([0, 2**40, 2**62]), np.array(-1), np.array(2**33), dtype=dtype)


def _errors() -> list[ErrorSample]:
    whole = TensorType("int64", ())
    return [
        ErrorSample(
            (TensorType("int32", (2,)), whole, whole), {}, DTypeError, "of int64, got int32"
        ),
        ErrorSample((whole,) * 3, {"dtype": "int64"}, DTypeError, "a dtype of float32, float64"),
    ]


random_uniform = OpDef(
    "random_uniform",
    Kind.POINTWISE,
    arity=3,
    infer=_type,
    ref=_ref,
    doc="uniform numbers in [0, 1) of Philox, from an index, a key, and the number of the call",
    attrs=_attrs,
    no_grad="it depends on integers only",
    scalar=lambda working, dtype: (
        f"{dtype[0]}{dtype[-2:]}(div(philox({{0}}, {{1}}, {{2}}), {2 ** (63 - BITS[dtype])}))"
        f" * {dtype[0]}{dtype[-2:]}({2.0 ** -BITS[dtype]!r})"
    ),
    samples=_samples,
    errors=_errors,
    ulp=0.0,
)
