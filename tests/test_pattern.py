"""Patterns and the engine: what matches, what does not, and what one sweep sees."""

import numpy as np
import pytest
from helpers.cases import BATCH, XY, B, N, X, constant, f32, graph_of, i32, param

from dlc.errors import DTypeError, RuleError, VerifyError
from dlc.ir.graph import Graph
from dlc.ir.node import Builder, Origin
from dlc.ir.pattern import Guard, op, parametric, procedure, rule, uniform, used_once
from dlc.ir.rewrite import Journal, rewrite
from dlc.ir.types import tensor


def apply_rules(graph, *rules, budget=10, limit=None):
    journal = Journal(limit)
    return rewrite(graph, rules, budget, journal), journal


def fires(made, types, function):
    """How often a rule fires on the graph of a function."""
    return len(apply_rules(graph_of(types, function), made)[1].entries)


def ops_of(graph):
    return [node.op.name for node in graph.nodes]


MARK = rule("mark", lambda x: op.tanh(x), lambda x: op.sin(x))


# Variables and attributes.


def test_a_variable_that_comes_twice_is_one_node():
    made = rule("x - x -> 0", lambda x: op.exp(x) - x, lambda x: x)
    assert fires(made, XY, lambda x, y: op.exp(x) - x)
    assert not fires(made, XY, lambda x, y: op.exp(x) - y)


def test_an_attribute_is_matched_captured_and_compared():
    exact = rule("flip axis 1", lambda x: op.flip(x, axes=(1,)), lambda x: x)
    assert fires(exact, X, lambda x: op.flip(x, axes=(-1,)))
    assert not fires(exact, X, lambda x: op.flip(x, axes=(0,)))
    twice = rule("flip twice", lambda x, a: op.flip(op.flip(x, axes=a), axes=a), lambda x: x)
    assert fires(twice, X, lambda x: op.flip(op.flip(x, axes=(0,)), axes=(0,)))
    assert not fires(twice, X, lambda x: op.flip(op.flip(x, axes=(0,)), axes=(1,)))


def test_the_other_attributes_are_captured_as_a_dictionary():
    made = rule(
        "sum(-x) -> -sum(x)",
        lambda x, c: op.sum(-x, keepdims=True, **c),
        lambda x, c: -op.sum(x, keepdims=True, **c),
    )
    graph = graph_of(X, lambda x: op.sum(-x, axes=(1,), keepdims=True))
    got, _ = apply_rules(graph, made)
    assert ops_of(got) == ["input", "sum", "neg"]
    assert got.nodes[1].attrs == {"axes": (1,), "keepdims": True}
    assert not fires(made, X, lambda x: op.sum(-x, axes=(1,), keepdims=False))


def test_the_other_inputs_are_captured_as_a_tuple():
    made = rule(
        "concat(-x, ...) -> ...",
        lambda x, r, a: op.concat(-x, *r, axis=a),
        lambda r, a: op.concat(*r, *r, axis=a),
        Guard("one input is left", lambda r: len(r) == 1),
    )
    got, _ = apply_rules(graph_of(XY, lambda x, y: op.concat(-x, y, axis=0)), made)
    assert [node.inputs.count(node.inputs[0]) for node in got.outputs] == [2]
    assert not fires(made, X, lambda x: op.concat(-x, axis=0))
    assert not fires(made, XY, lambda x, y: op.concat(-x, y, y, axis=0))


def test_a_name_stands_for_the_node_that_its_pattern_matches():
    made = rule("f(exp(x)) -> exp(x) * x", lambda x, y: op.tanh(y(op.exp(x))), lambda x, y: y * x)
    got, _ = apply_rules(graph_of(X, lambda x: op.tanh(op.exp(x))), made)
    assert ops_of(got) == ["input", "exp", "mul"]


def test_the_number_of_inputs_must_fit():
    two = rule("concat of two", lambda x, y, a: op.concat(x, y, axis=a), lambda x, y: x + y)
    assert not fires(two, XY, lambda x, y: op.concat(x, y, x, axis=0))


def test_commutative_ops_match_in_both_orders():
    made = rule("exp(x) * y", lambda x, y: op.exp(x) * y, lambda x, y: op.sin(x) - y)
    assert fires(made, XY, lambda x, y: op.exp(x) * y)
    assert fires(made, XY, lambda x, y: y * op.exp(x))
    ordered = rule("exp(x) - y", lambda x, y: op.exp(x) - y, lambda x, y: op.sin(x) * y)
    assert not fires(ordered, XY, lambda x, y: y - op.exp(x))


def test_a_guard_may_prefer_the_other_order():
    made = rule(
        "x * c -> sin(x)",
        lambda x, c: x * c,
        lambda x: op.sin(x),
        Guard("c is the parameter", lambda c: c.op.name == "parameter"),
    )
    got, _ = apply_rules(graph_of(X, lambda x: param("w", 4) * x), made)
    assert ops_of(got) == ["input", "sin"]


# Numbers.


@pytest.mark.parametrize(
    ("number", "value", "dtype", "matches"),
    [
        (0, 0.0, "float32", True),
        (0, -0.0, "float32", False),
        (-0.0, -0.0, "float64", True),
        (-0.0, 0.0, "float32", False),
        (-0.0, 0, "int32", True),
        (0.1, 0.1, "float32", True),
        (0.1, 0.1, "float64", True),
        (0.5, 0, "int64", False),
        (1, 1, "uint8", True),
        (-1, 255, "uint8", False),
        (True, True, "bool", True),
        (1, True, "bool", False),
        (True, 1, "int32", False),
        (float("nan"), np.nan, "float32", True),
        (float("inf"), np.inf, "float32", True),
        (1e300, np.inf, "float32", True),  # numbers take the element type, here too
        (2, [2, 2, 2], "float32", True),
        (2, [2, 2, 3], "float32", False),
        (2, [2, 3, 2], "float32", False),
        (0, [0.0, -0.0], "float32", False),
        (2, np.zeros((0,)), "float32", False),
    ],
)
def test_a_number_matches_constants_to_the_bit(number, value, dtype, matches):
    made = rule("eq", lambda x: x == number, lambda x: op.ne(x, x))
    value = np.array(value, dtype)
    graph = graph_of(
        (tensor(dtype, (2, *value.shape)),), lambda x: op.eq(x, constant(value, dtype))
    )
    _, journal = apply_rules(graph, made)
    assert bool(journal.entries) == matches


def test_a_number_matches_a_constant_that_is_expanded_or_reordered():
    builder = Builder()
    ones = builder.constant(np.ones((2, 1), "float32"))
    for node in (
        ones.expand((2, 4)),
        ones.reshape((2,)),
        ones.permute((1, 0)),
        ones.expand((3, 2, 2)),
    ):
        assert uniform(node) == 1
    assert uniform(op.neg(ones)) is None
    assert uniform(builder.input("x", tensor("float32", ()))) is None


# Replacements.


def test_a_result_is_expanded_to_the_shape_that_it_replaces():
    made = rule("x * 1 -> x", lambda x: x * 1, lambda x: x)
    got, _ = apply_rules(graph_of((f32(4),), lambda x: x * constant(np.ones((3, 1)))), made)
    assert got.outputs[0].shape == (3, 4)
    assert ops_of(got) == ["input", "expand"]


def test_a_number_takes_the_type_of_what_it_replaces():
    made = rule("x - x -> 0", lambda x: x - x, lambda: 0)
    got, _ = apply_rules(graph_of((i32(2),), lambda x: x - x), made)
    assert got.outputs[0].dtype == "int32"


def test_a_result_of_another_element_type_is_an_error():
    made = rule("x == y -> x", lambda x, y: x == y, lambda x: x)
    with pytest.raises(RuleError, match=r"'x == y -> x' cannot replace eq.*type float32\[3, 4\]"):
        apply_rules(graph_of(XY, lambda x, y: x == y), made)


def test_a_replacement_that_an_op_refuses_is_an_error_with_the_name_of_the_rule():
    made = rule("x + y -> x @ y", lambda x, y: x + y, lambda x, y: x @ y)
    with pytest.raises(RuleError, match=r"'x \+ y -> x @ y' cannot replace add.*matmul expects"):
        apply_rules(graph_of(XY, lambda x, y: x + y), made)


def test_what_a_match_stands_for_carries_its_origins():
    graph = graph_of(X, lambda x: op.tanh(op.exp(-x)))
    neg, exp, tanh = graph.nodes[1:]
    for node in (neg, exp, tanh):
        node.origins |= {Origin(node.op.name)}
    made = rule("tanh(exp(x)) -> ...", lambda x: op.tanh(op.exp(x)), lambda x: op.sin(op.cos(x)))
    got, _ = apply_rules(graph, made)
    assert {n.op.name: sorted(o.module for o in n.origins) for n in got.nodes[1:]} == {
        "neg": ["neg"],
        "cos": ["exp", "tanh"],
        "sin": ["exp", "tanh"],
    }


# Guards that look around.

FOLD = rule(
    "tanh(exp(x)) -> sin(x)",
    lambda x, y: op.tanh(y(op.exp(x))),
    lambda x: op.sin(x),
    used_once("y"),
)


def test_used_once_counts_readers_and_outputs():
    assert fires(FOLD, X, lambda x: op.tanh(op.exp(x)))
    assert not fires(FOLD, X, lambda x: (op.tanh(op.exp(x)), op.neg(op.exp(x))))
    assert not fires(FOLD, X, lambda x: (op.tanh(op.exp(x)), op.exp(x)))
    assert not fires(FOLD, X, lambda x: (op.neg(op.exp(x)), op.tanh(op.exp(x))))


def test_used_once_sees_what_other_rules_have_done():
    """The other reader disappears in the same pass, whichever comes first."""
    drop = rule("x * 0 -> 0", lambda x: x * 0, lambda: 0.0)
    for first in (True, False):

        def function(x, first=first):
            y = op.exp(x)
            dead, alive = y * 0.0, op.tanh(y)
            return dead + alive if first else alive + dead

        got, _ = apply_rules(graph_of(X, function), drop, FOLD)
        assert "sin" in ops_of(got)
        assert "exp" not in ops_of(got)


def test_used_once_sees_a_reader_that_a_rule_has_made():
    """tanh(exp(x)) folds away unless another rule makes exp(x) be read again."""
    read = rule("cos(x) -> exp(x) + 1", lambda x: op.cos(x), lambda x: op.exp(x) + 1.0)
    got, journal = apply_rules(
        graph_of(X, lambda x: op.cos(x) * op.tanh(op.exp(x))), read, FOLD, budget=10
    )
    assert [entry.rule for entry in journal.entries] == ["cos(x) -> exp(x) + 1"]
    assert ops_of(got).count("exp") == 1


def test_parametric_means_parameters_and_constants_only():
    made = rule("tanh(w) -> sin(w)", lambda w: op.tanh(w), lambda w: op.sin(w), parametric("w"))
    assert fires(made, X, lambda x: op.tanh(param("w", 4) * 2.0) + x)
    assert not fires(made, X, lambda x: op.tanh(param("w", 4) + x))


# The engine.


def test_a_chain_is_followed_within_one_sweep():
    made = rule("-(-x) -> x", lambda x: op.neg(-x), lambda x: x)

    def function(x):
        for _ in range(200):
            x = -x
        return x

    graph = graph_of(X, function)
    got, journal = apply_rules(graph, made, budget=2)  # the second sees that nothing is left
    assert got.outputs[0] is got.inputs[0]
    assert len(journal.entries) == 100


def test_a_deep_graph_needs_no_recursion():
    def function(x):
        for _ in range(2000):
            x = op.tanh(op.sin(x))
        return x

    got, _ = apply_rules(graph_of(X, function), MARK)
    assert "tanh" not in ops_of(got)


def test_a_graph_on_which_nothing_fires_is_given_back_itself():
    graph = graph_of(X, lambda x: op.exp(x))
    assert apply_rules(graph, MARK)[0] is graph


def test_names_aliases_and_unused_inputs_stay():
    builder = Builder()
    x, y = (builder.input(name, tensor("float32", (2,))) for name in "xy")
    graph = Graph((op.tanh(x), x + 1.0), (x, y), ("a", "b"), {1: "x"}, "g")
    got, _ = apply_rules(graph, MARK)
    assert (got.inputs, got.output_names, got.aliases, got.name) == (
        (x, y),
        ("a", "b"),
        {1: "x"},
        "g",
    )
    assert got.outputs[0].op.name == "sin"


def test_the_first_rule_of_the_table_wins():
    other = rule("other", lambda x: op.tanh(x), lambda x: op.cos(x))
    assert "sin" in ops_of(apply_rules(graph_of(X, op.tanh), MARK, other)[0])
    assert "cos" in ops_of(apply_rules(graph_of(X, op.tanh), other, MARK)[0])


def test_a_limit_stops_after_so_many_rewrites():
    graph = graph_of(X, lambda x: op.tanh(op.exp(op.tanh(op.exp(op.tanh(x))))))
    for limit in range(4):
        got, journal = apply_rules(graph, MARK, limit=limit)
        assert ops_of(got).count("sin") == limit == len(journal.entries)


def test_rules_that_undo_each_other_are_named():
    back = rule("back", lambda x: op.sin(x), lambda x: op.tanh(x))
    with pytest.raises(VerifyError, match=r"go round in a circle on .*: mark; back"):
        apply_rules(graph_of(X, op.tanh), MARK, back)


def test_a_budget_that_does_not_suffice_names_the_rules_that_still_fire():
    deeper = rule("sin(x) -> exp(sin(x))", lambda x: op.sin(x), lambda x: op.exp(op.sin(x)))
    with pytest.raises(VerifyError, match=r"after 3 sweeps these rules still fire: 'sin\(x\)"):
        apply_rules(graph_of(X, op.sin), deeper, budget=3)


def test_a_procedure_is_a_rule():
    @procedure("exp(...) -> tanh(...)", "exp")
    def made(node):
        return op.tanh(node.inputs[0])

    got, journal = apply_rules(graph_of(X, lambda x: op.exp(op.neg(x))), made)
    assert ops_of(got) == ["input", "neg", "tanh"]
    assert journal.counts() == {"exp(...) -> tanh(...)": 1}

    @procedure("wrong", "exp")
    def wrong(node):
        return op.cast(node, dtype="float64")

    with pytest.raises(RuleError, match=r"'wrong' replaces float32\[3, 4\] by float64\[3, 4\]"):
        apply_rules(graph_of(X, op.exp), wrong)


# What is no rule.


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rule("x -> x", lambda x: x, lambda x: x), "not an op applied to something"),
        (lambda: rule("r", lambda x: -x, lambda y: y), "'r' reads 'y', which its pattern has not"),
        (
            lambda: rule("r", lambda x: -x, lambda x: x, Guard("g", lambda z: True)),
            "reads 'z', which its pattern has not; it has parametric, root, uses, x",
        ),
        (
            lambda: rule("r", lambda x: -x, lambda x: x, used_once("y")),
            "'r' reads 'y', which its pattern has not",
        ),
        (lambda: rule("r", lambda x: x + "1", lambda x: x), "variables, ops and numbers; got '1'"),
        (lambda: rule("r", lambda x: op.exp(x) if x else x, lambda x: x), "no truth value"),
        (lambda: rule("r", lambda x: -x[0], lambda x: x), r"x\[0\] is no pattern; write op.slice"),
        (
            lambda: rule("r", lambda x, y, a: op.concat(*x, y, axis=a), lambda y: y),
            r"in a pattern of concat, \*\.\.\. stands behind the other inputs",
        ),
        (
            lambda: rule("r", lambda x, a: op.concat(x, axis=-a), lambda x: x),
            "the attribute axis of concat is matched by a variable or a value",
        ),
        (lambda: rule("r", lambda x, y: -y(x), lambda x: x), "y\\(...\\) names an op applied"),
    ],
)
def test_what_is_no_rule_is_explained(make, message):
    with pytest.raises(RuleError, match=message):
        make()


def test_an_op_that_does_not_exist_is_an_error_at_once():
    with pytest.raises(Exception, match="there is no op 'rleu'"):
        rule("r", lambda x: op.rleu(x), lambda x: x)


def test_a_forgotten_or_misspelt_attribute_is_an_error():
    forgotten = rule("sum(x) -> x", lambda x, a: op.sum(x, axes=a), lambda x: x)
    with pytest.raises(RuleError, match=r"'sum\(x\) -> x' forgets the attributes keepdims of sum"):
        fires(forgotten, X, lambda x: op.sum(x, axes=(0,)))
    misspelt = rule("sum(x) -> x", lambda x, a, c: op.sum(x, axis=a, **c), lambda x: x)
    with pytest.raises(
        RuleError, match=r"names the attribute 'axis' of sum, which has axes, keepdims"
    ):
        fires(misspelt, X, lambda x: op.sum(x, axes=(0,)))


def test_ops_apply_to_tensors_outside_patterns():
    assert graph_of(B, lambda x: op.where(x, 1.0, 2.0)).outputs[0].dtype == "float32"
    assert graph_of(N, lambda x: op.cast(x, dtype="float64")).outputs[0].dtype == "float64"
    with pytest.raises(DTypeError, match="cast element types are"):
        graph_of((f32(BATCH),), lambda x: op.sin(op.cast(x, dtype="complex64")))
