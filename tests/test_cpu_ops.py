"""Every op with samples on the native CPU backend: all its samples in one plan, against the
reference.

Nothing here names an op: a new record is covered by being in the table.
"""

from collections.abc import Iterator

import numpy as np
import pytest
from helpers.op_testing import at, parts

from dlc.backends import reference
from dlc.driver import run_native
from dlc.ir.graph import Graph
from dlc.ir.node import Builder
from dlc.ir.op import OPS, Kind, OpDef, Sample
from dlc.ir.types import tensor

WITH_SAMPLES = [op for op in OPS if op.samples and op.kind is not Kind.LEAF]


def samples_graph(op: OpDef, samples: list[Sample]) -> tuple[Graph, list[np.ndarray]]:
    """One graph of all samples of an op, and its arguments."""
    builder, inputs, outputs, arrays = Builder(), [], [], []
    for number, sample in enumerate(samples):
        own = tuple(
            builder.input(f"x{number}_{i}", tensor(a.dtype, a.shape))
            for i, a in enumerate(sample.arrays)
        )
        outputs += parts(builder.node(op, own, sample.attrs))
        inputs += own
        arrays += sample.arrays
    return Graph(tuple(outputs), tuple(inputs)), arrays


def in_type(op: OpDef, dtype: str) -> Iterator[Sample]:
    for sample in op.samples(np.random.default_rng(3)):
        made = at(sample, dtype)
        if made.arrays:
            yield made


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("op", WITH_SAMPLES, ids=lambda op: op.name)
def test_backend_agrees_with_reference(op: OpDef, dtype: str) -> None:
    graph, arrays = samples_graph(op, list(in_type(op, dtype)))
    named = {node.name: array for node, array in zip(graph.inputs, arrays, strict=True)}
    expected = reference.run(graph, named)
    actual = run_native(graph, arrays)
    assert len(actual) == len(expected)
    for got, want in zip(actual, expected, strict=True):
        assert got.dtype == want.dtype
        assert got.shape == want.shape
        tolerance = 1e-10 if got.dtype == np.float64 else 1e-5
        np.testing.assert_allclose(got, want, tolerance, tolerance)
