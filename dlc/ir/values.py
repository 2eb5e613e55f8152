"""Check by value: two graphs on the same random arrays must give the same numbers.

The strongest check of a rewrite that needs no theory. It runs in float64, so that what rounding may
change is far below what a wrong rule changes.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlc.ir.graph import Graph
from dlc.ir.node import Node
from dlc.ir.op import Array
from dlc.ir.sizes import evaluate
from dlc.ir.types import is_float


@dataclass(frozen=True)
class Check:
    """How to compare two graphs by value.

    Parameters
    ----------
    evaluate : callable
        ``(graph, arrays by name, dtype=...) -> arrays``; with dtype "float64" in float64 where the
        graph says float32, with None as the graph says. The reference backend's ``run`` is one.
    rtol : float
        Difference allowed in float64, relative to the largest element of each output.
    seed : int
        Of the random arrays.
    arrays : mapping, optional
        Arrays for some of the inputs and parameters, by name; the others are random.
    """

    evaluate: Callable[..., Sequence[Array]]
    rtol: float = 1e-9
    seed: int = 0
    arrays: Mapping[str, Array] | None = None

    def difference(self, before: Graph, after: Graph, widen: bool = True) -> str:
        """In words, how the first output that differs does; empty if none does.

        Without ``widen`` the graphs are evaluated in their own element types, and must agree to the
        bit: for what rounds to these types by design, such as folded constants.
        """
        dtype, rtol = ("float64", self.rtol) if widen else (None, 0.0)
        arrays = {**random_arrays(before, self.seed), **(self.arrays or {})}
        expected = self.evaluate(before, _used(before, arrays), dtype=dtype)
        came = self.evaluate(after, _used(after, arrays), dtype=dtype)
        if len(came) < len(expected):
            return f"is one of {len(expected)}, of which {len(came)} are left"
        for name, a, b in zip(before.output_names, expected, came):  # a pass may add outputs
            if message := _difference(np.asarray(a), np.asarray(b), rtol):
                return f"output {name!r} {message}"
        return ""


def random_arrays(graph: Graph, seed: int = 0) -> dict[str, Array]:
    """Random arrays for the inputs and parameters of a graph, by name.

    Floats are normal, buffers positive (they are variances too), integers 0 or 1 (so that they can
    index almost anything); a named dimension takes a small value in its range.
    """
    sizes = {dim.name: min(dim.max, max(dim.min, 2)) for dim in graph.dims}
    return {node.attrs["name"]: _random(node, sizes, seed) for node in _leaves(graph)}


def _leaves(graph: Graph) -> list[Node]:
    return [*graph.inputs, *graph.parameters]


def _used(graph: Graph, arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {node.attrs["name"]: arrays[node.attrs["name"]] for node in _leaves(graph)}


def _random(node: Node, sizes: Mapping[str, int], seed: int) -> Array:
    # A stream for each name: a pass that reorders or drops parameters changes no other array.
    rng = np.random.default_rng([seed, zlib.crc32(node.attrs["name"].encode())])
    shape = tuple(evaluate(size, sizes) for size in node.shape)
    if not is_float(node.dtype):
        return rng.integers(0, 2, shape).astype(node.dtype)
    drawn: Any = rng.uniform(0.5, 1.5, shape)
    if node.attrs.get("role") != "buffer":
        drawn = rng.normal(size=shape)
    return np.asarray(drawn, node.dtype)


def _difference(a: Array, b: Array, rtol: float) -> str:
    if a.shape != b.shape or a.dtype != b.dtype:
        return f"is {b.dtype}{b.shape} in place of {a.dtype}{a.shape}"
    if not a.size or not is_float(a.dtype.name):
        wrong = int(np.count_nonzero(a != b))
        return f"differs in {wrong} of {a.size} elements" if wrong else ""
    finite = np.isfinite(a) & np.isfinite(b)
    strange = ~finite & ~((a == b) | (np.isnan(a) & np.isnan(b)))
    if strange.any():
        at = tuple(int(i) for i in np.argwhere(strange)[0])
        return f"is {b[at]} in place of {a[at]} at {at}"
    gap = np.abs(np.where(finite, a, 0) - np.where(finite, b, 0))
    largest = float(np.max(np.abs(np.where(finite, a, 0)), initial=0.0))
    if not gap.max() > rtol * largest:
        return ""
    at = tuple(int(i) for i in np.unravel_index(int(gap.argmax()), gap.shape))
    return f"is {b[at]} in place of {a[at]} at {at}"
