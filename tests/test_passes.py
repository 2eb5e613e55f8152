"""Passes as wholes: what folds and what must not, constants, decomposition, levels, pipelines."""

from pathlib import Path

import numpy as np
import pytest
from helpers.cases import BATCH, bits, constant, f32, graph_of, hostile_arrays, param
from helpers.fold_cases import VECTORS, bn_unshifted, conv, matrix, scale, weight
from helpers.random_graphs import graphs
from hypothesis import given, settings

import dlc
from dlc.backends import reference
from dlc.errors import ArgumentError
from dlc.ir import manager
from dlc.ir.node import Origin
from dlc.ir.pattern import op
from dlc.ir.values import Check, random_arrays
from dlc.passes import parse, passes, run
from dlc.passes.__main__ import page
from dlc.passes.decompose import Decompose
from dlc.passes.fold_bn import FoldBatchNorm
from dlc.passes.pipelines import LEVELS, O1, O2
from dlc.passes.simplify import Simplify

CHECK = Check(reference.run)
X = (f32(3, 4),)


def ops_of(graph):
    return [node.op.name for node in graph.nodes]


def images(function, *shape):
    """A graph over images (batch, 4, 5, 5)."""
    return graph_of((f32(BATCH, *(shape or (4, 5, 5))),), function)


def folded(graph):
    """What fold-bn makes of a graph, checked by value; the ops that `main` has left."""
    result, _ = manager.run(graph, [FoldBatchNorm(), Simplify()], check=CHECK)
    known = {}
    for node in result.nodes:
        known[node] = all(known[n] for n in node.inputs) if node.inputs else node.op.name != "input"
    return [node.op.name for node in result.nodes if not known[node]]


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_batch_norm_becomes_part_of_its_convolution(groups):
    graph = images(lambda x: op.relu(bn_of(conv(x, weight(groups), 1, groups))))
    assert folded(graph) == ["input", "conv2d", "add", "relu"]


def bn_of(x, prefix=""):
    c = x.shape[1]
    mean, var = (param(prefix + name, c, role="buffer") for name in ("mean", "var"))
    return op.batch_norm(x, mean, var, param(prefix + "g", c), param(prefix + "b", c), eps=1e-5)


def test_a_bias_between_convolution_and_batch_norm_joins_it():
    graph = images(lambda x: bn_of(conv(x, weight()) + scale(6, "bias")))
    assert folded(graph) == ["input", "conv2d", "add"]


def test_batch_norm_after_batch_norm_folds_too():
    assert folded(images(lambda x: bn_of(bn_of(conv(x, weight())), "second."))) == [
        "input",
        "conv2d",
        "add",
    ]


def test_a_batch_norm_before_a_convolution_folds_without_padding():
    assert folded(images(lambda x: conv(bn_of(x), weight(2), 0, 2))) == ["input", "conv2d", "add"]


def test_a_batch_norm_before_a_padded_convolution_stays_a_shift():
    """The padding is zero after the batch norm, so its shift cannot go behind the convolution."""
    assert folded(images(lambda x: conv(bn_of(x), weight(), 1))) == [
        "input",
        "mul",
        "add",
        "conv2d",
    ]


def test_a_batch_norm_without_shift_folds_through_padding():
    graph = images(lambda x: conv(bn_unshifted(x, param("var", 4, role="buffer")), weight(), 1))
    assert folded(graph) == ["input", "conv2d"]


def test_a_shared_convolution_keeps_its_weights():
    def function(x):
        y = conv(x, weight())
        return bn_of(y), op.relu(y)

    assert folded(images(function)) == ["input", "conv2d", "mul", "add", "relu"]


def test_a_convolution_that_is_an_output_keeps_its_weights():
    def function(x):
        y = conv(x, weight())
        return y, bn_of(y)

    assert folded(images(function)) == ["input", "conv2d", "mul", "add"]


def test_training_mode_is_not_folded():
    def function(x):
        whole = op.batch_norm_train(conv(x, weight()), param("g", 6), param("b", 6), eps=1e-5)
        return whole.project(0), whole.project(1)

    graph = images(function)
    assert run(graph, "fold-bn") is graph


def test_one_weight_of_two_convolutions_is_scaled_for_each():
    def function(x):
        y = bn_of(op.conv2d(x, param("w", 4, 4, 3, 3), padding=1), "first.")
        return bn_of(op.conv2d(op.relu(y), param("w", 4, 4, 3, 3), padding=1), "second.")

    assert folded(images(function)) == ["input", "conv2d", "add", "relu", "conv2d", "add"]


def test_a_batch_norm_around_a_linear_layer_folds():
    def function(x):
        y = bn_of(op.linear(bn_of(x, "in."), matrix(), param("b", 3)), "out.")
        return op.relu(y)

    assert folded(images(function, 4)) == ["input", "linear", "relu"]


def test_a_batch_norm_over_another_axis_than_the_features_stays():
    """On (N, C, L) a batch norm scales C, a linear layer mixes L."""
    graph = images(lambda x: bn_of(op.linear(x, param("w", 3, 4))), 5, 4)
    assert folded(graph) == ["input", "linear", "mul", "add"]


def test_a_scale_that_brings_the_batch_dimension_stays():
    """A stack of channels (5, 5, 5) times (1, 5, 1, 1) is a batch of one image."""
    graph = graph_of(
        (f32(5, 5, 5),), lambda x: op.conv2d(x * param("s", 1, 5, 1, 1), param("w", 6, 5, 3, 3))
    )
    assert folded(graph) == ["input", "mul", "conv2d"]


def test_preprocessing_folds_into_the_first_convolution():
    """(x - mean) / std, as users write it in front of a network."""
    graph = images(lambda x: conv((x - scale(4, "mean")) / scale(4, "std"), weight(), 0))
    assert folded(graph) == ["input", "conv2d", "add"]


# Folding of constants.


def test_constants_fold_through_several_ops():
    graph = graph_of(X, lambda x: x + op.exp(constant([1.0, 2.0, 3.0, 4.0]) * 2.0))
    got = run(graph, "fold-constants")
    assert ops_of(got) == ["input", "constant", "add"]
    expected = np.exp(np.array([2, 4, 6, 8], "float32"))
    np.testing.assert_array_equal(got.nodes[1].attrs["value"], expected)


def test_one_of_several_outputs_folds():
    def function(x):
        ones, values = constant([1.0, 1.0]), constant([[1.0, 2.0], [3.0, 6.0]])
        whole = op.batch_norm_train(values, ones, ones, eps=0.0)
        return x + whole.project(1)

    got = run(graph_of((f32(2),), function), "fold-constants")
    assert ops_of(got) == ["input", "constant", "add"]
    np.testing.assert_array_equal(got.nodes[1].attrs["value"], [2.0, 4.0])


def test_a_result_beyond_the_budget_is_not_folded():
    def function(x):
        return x + constant(np.ones((16, 1))) * constant(np.ones((1, 16)))

    graph = graph_of((f32(16, 16),), function)
    assert run(graph, "fold-constants(limit=1023)") is graph or "mul" in ops_of(
        run(graph, "fold-constants(limit=1023)")
    )
    assert "mul" not in ops_of(run(graph, "fold-constants(limit=1024)"))


def test_what_enlarges_a_constant_or_has_a_symbolic_size_is_not_folded():
    graph = graph_of(
        (f32(BATCH, 4),), lambda x: op.relu(x) + constant([1.0] * 4).expand((BATCH, 4))
    )
    assert "expand" in ops_of(run(graph, "fold-constants"))
    graph = graph_of(X, lambda x: x + constant(1.0).expand((3, 4)))
    assert "expand" in ops_of(run(graph, "fold-constants"))


def test_parameters_are_not_folded():
    graph = graph_of(X, lambda x: x + op.exp(param("w", 4)))
    assert "exp" in ops_of(run(graph, "fold-constants"))


# Decomposition.


def test_decompose_leaves_no_composite_op(rng):
    def function(x):
        whole = op.batch_norm_train(x, param("g", 4), param("b", 4), eps=1e-5)
        y = op.softmax(op.layer_norm(whole.project(0), param("h", 5), param("c", 5)), axis=1)
        return op.adaptive_avg_pool2d(y, output_size=(2, 2)), whole.project(2)

    graph = images(function)
    got, report = manager.run(graph, [Decompose()], check=CHECK)
    assert "its expansion" in str(report)
    assert not {"batch_norm_train", "softmax", "layer_norm", "adaptive_avg_pool2d"} & set(
        ops_of(got)
    )


def test_decompose_keeps_what_it_is_told_to():
    graph = graph_of(VECTORS, lambda x: op.softmax(op.linear(x, matrix()), axis=1))
    assert ops_of(run(graph, "decompose(keep=('linear',))")).count("linear") == 1
    assert Decompose().ensures
    assert not Decompose(keep=("linear",)).ensures


def test_an_expansion_carries_the_origins_of_the_op_alone():
    graph = graph_of(VECTORS, lambda x: op.linear(op.relu(x), matrix()))
    (relu,) = [node for node in graph.nodes if node.op.name == "relu"]
    relu.origins |= {Origin("relu")}
    graph.outputs[0].origins |= {Origin("linear")}
    got = run(graph, "decompose")
    assert {node.op.name: {o.module for o in node.origins} for node in got.nodes} == {
        "input": set(),
        "relu": {"relu"},
        "parameter": set(),
        "transpose": {"linear"},
        "matmul": {"linear"},
    }


# Levels.


@given(graphs())
@settings(max_examples=60)
def test_level_1_keeps_every_bit(graph):
    graph = Decompose()(graph)
    got = run(graph, "O1")
    for arrays in (random_arrays(graph), hostile_arrays(graph, np.random.default_rng(0))):
        for a, b in zip(reference.run(graph, arrays), reference.run(got, arrays)):
            assert bits(a) == bits(b), f"\n{graph}\nbecomes\n{got}"


@given(graphs())
@settings(max_examples=60)
def test_level_2_keeps_values_in_float64(graph):
    manager.run(graph, O2, check=CHECK)


@given(graphs())
@settings(max_examples=25)
def test_passes_end_where_they_end(graph):
    """What a pass has made it leaves alone."""
    for name in ("simplify", "canonicalise", "fold-bn", "fold-constants", "decompose"):
        once = run(graph, name)
        assert run(once, name) is once or str(run(once, name)) == str(once)


def test_levels_name_their_passes():
    assert parse("O1") == O1
    assert parse(" O0 , fold-bn(budget=3)") == (*LEVELS["O0"], FoldBatchNorm(budget=3))
    assert parse("") == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fold-bm", "there is no pass 'fold-bm'; did you mean 'fold-bn'?"),
        ("simplify,", "expects the name of a pass at column 10, got the end"),
        ("simplify fold-bn", "expects a comma or '(' at column 10, got 'fold-bn'"),
        ("simplify(budget=3", "expects ')' at column 18, got the end"),
        ("simplify(3)", "expects options such as (budget=10), got (3)"),
        ("simplify(budget=x)", "expects options such as"),
        ("simplify(bugdet=3)", "has the options budget, got 'bugdet'"),
        ("simplify(budget='3')", "is of type int, got '3'"),
        ("O2(budget=3)", "there is no pass 'O2'"),
        ("?", "expects the name of a pass at column 1, got '?'"),
    ],
)
def test_a_wrong_pipeline_is_explained(text, message):
    with pytest.raises(ArgumentError) as caught:
        parse(text)
    assert message in str(caught.value)


def test_every_pass_has_a_line_of_documentation_and_a_default():
    assert {"simplify", "fold-constants", "canonicalise", "fold-bn", "decompose"} <= set(passes())
    for name, kind in passes().items():
        assert kind.__doc__
        assert str(kind()) == name


def test_the_page_of_the_passes_is_up_to_date():
    path = Path(dlc.__file__).parent.parent / "docs" / "passes.md"
    assert path.read_text(encoding="utf-8") == page(), "run: python -m dlc.passes > docs/passes.md"
