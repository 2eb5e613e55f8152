"""Reshapes behind contractions: what joins the store in spite of them, and what does not."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.cases import f32, graph_of, param
from helpers.random_networks import networks, values
from helpers.schedules import check, labels, main
from hypothesis import given, settings

import dlc
from dlc import functional as F
from dlc import nn
from dlc.backends import reference
from dlc.driver import optimise
from dlc.ir import manager
from dlc.ir.node import Origin
from dlc.ir.op import Kind
from dlc.ir.pattern import op
from dlc.ir.values import Check
from dlc.passes.select import SelectAlgorithms
from dlc.passes.sink_reshapes import SinkReshapes

BATCH = dlc.Dim("batch", 1, 8)
ROWS = dlc.TensorSpec((BATCH, 5, 10))
LAYER, OTHER = nn.Linear(10, 10), nn.Linear(10, 10)
SCALE = nn.Parameter(np.full((1, 1, 10), 3, "float32"))

FIRES = {
    "a bias": (lambda x: LAYER(x), ["matmul+add"]),
    "an activation": (lambda x: F.gelu(LAYER(x)), ["matmul+add+gelu"]),
    "a number": (lambda x: op.tanh(LAYER(x)) * 0.5 - 1, ["matmul+add+tanh+mul+add"]),
    "one value a column": (lambda x: F.relu(LAYER(x)) * SCALE, ["matmul+add+relu+mul"]),
    "a residual sum": (
        lambda x: F.relu(x + LAYER(F.gelu(OTHER(x)))),
        ["matmul+add+gelu", "matmul+add+add+relu"],
    ),
    "another product": (lambda x: LAYER(x) * OTHER(x), ["matmul+add", "matmul+add+mul"]),
    "the product twice": (lambda x: op.prelu(y := LAYER(x), y), ["matmul+add+prelu"]),
    "work behind a second reshape": (
        lambda x: F.relu(op.tanh(LAYER(x)).reshape(-1, 5, 2, 5)),
        ["matmul+add+tanh+relu"],
    ),
}


@pytest.mark.parametrize("what", FIRES)
def test_it_joins_the_store(what):
    function, expected = FIRES[what]
    made = main(function, ROWS)
    assert labels(made) == expected
    check(made)
    exe, slow = (dlc.compile(function, ROWS, target=target) for target in ("cpu", "reference"))
    for batch in (1, 3):
        x = np.random.default_rng(batch).normal(size=(batch, 5, 10)).astype("float32")
        np.testing.assert_allclose(exe(x), slow(x), rtol=1e-4, atol=1e-5)


def test_an_activation_behind_a_flattened_image_joins_its_convolution():
    layer = nn.Conv2d(3, 16, 3)
    made = main(lambda x: F.relu(layer(x).flatten(2)), dlc.TensorSpec((2, 3, 8, 8)))
    assert labels(made) == ["relayout", "conv2d+add+relu", "reshape"]


# What stops it.

X = f32(2, 5, 4)


def product(x):
    return x @ param("w", 4, 6)


def image(x):
    return op.conv2d(x, param("k", 8, 3, 3, 3)).reshape((2, 8, 36))


def fork(y):
    return op.concat(op.relu(y), op.tanh(y), axis=0)


STOPPED = {
    "a product that is a result": ((X,), lambda x: (y := product(x), op.relu(y))),
    "a product with two readers": ((X,), lambda x: fork(product(x))),
    "no product before": ((X,), lambda x: op.relu(x.reshape((10, 4)))),
    "a reduction between": (
        (X,),
        lambda x: op.relu(product(x).sum(2, keepdim=True).reshape((10,))),
    ),
    "an operand that repeats along rows": ((X, f32(5, 6)), lambda x, y: product(x) + y),
    "an operand that is one value a row": ((X, f32(2, 5, 1)), lambda x, y: product(x) + y),
    "a number that is no constant": ((X, f32()), lambda x, y: product(x) + y),
    "a result that is larger": ((f32(2, 1, 4), f32(2, 5, 6)), lambda x, y: product(x) + y),
    "another element type": ((X,), lambda x: op.cast(product(x), dtype="float64")),
    "one value a column of the new shape": (
        (X, f32(12)),
        lambda x, y: product(x).reshape((5, 12)) + y,
    ),
    "an operand beside an image": ((f32(2, 3, 8, 8), f32(2, 8, 36)), lambda x, y: image(x) + y),
}


def sides(types, function):
    chosen = SelectAlgorithms()(graph_of(types, function))
    return chosen, SinkReshapes()(chosen)


def pointwise(graph):
    nodes = (node for node in graph.nodes if node.op.kind is Kind.POINTWISE)
    return [(node.op.name, node.shape) for node in nodes]


@pytest.mark.parametrize("what", STOPPED)
def test_it_stays_where_no_store_could_take_it(what):
    before, after = sides(*STOPPED[what])
    assert any(node.op.name == "reshape" for node in before.nodes)
    assert pointwise(after) == pointwise(before)


def test_the_new_value_of_a_parameter_keeps_its_shape():
    types = (X, f32(2, 5, 6))
    graph = graph_of(types, lambda x, y: param("p", 2, 5, 6) - product(x))
    chosen = SelectAlgorithms()(graph)
    assert SinkReshapes()(chosen).outputs[0].op.name == "reshape"
    assert SinkReshapes()(replace(chosen, aliases={0: "p"})).outputs[0].op.name == "sub"


# Structure.


def test_reshapes_of_reshapes_are_one_or_none():
    chosen, after = sides(
        (X,), lambda x: op.relu(product(product(x).reshape((2, 5, 6)) @ param("v", 6, 4)))
    )
    assert [n.op.name for n in chosen.nodes].count("reshape") > 2
    assert [n.op.name for n in after.nodes].count("reshape") == 2


def test_both_sides_of_the_reshape_have_the_origins_of_the_work():
    graph = graph_of((X,), lambda x: op.relu(product(x)))
    graph.outputs[0].origins |= {Origin("relu")}
    end = SinkReshapes()(SelectAlgorithms()(graph)).outputs[0]
    assert (end.op.name, end.inputs[0].op.name) == ("reshape", "relu")
    for node in (end, end.inputs[0]):
        assert Origin("relu") in node.origins


@settings(max_examples=40)
@given(networks())
def test_it_changes_no_bit(graph):
    chosen = SelectAlgorithms()(optimise(graph))
    sunk, _ = manager.run(chosen, [SinkReshapes()], check=Check(reference.run))
    arrays = values(chosen, np.random.default_rng(0))
    for ours, theirs in zip(reference.run(sunk, arrays), reference.run(chosen, arrays)):
        np.testing.assert_array_equal(ours, theirs)
