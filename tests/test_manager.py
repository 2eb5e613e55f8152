"""The pass manager: what it runs, reports, refuses and finds; the planted wrong rule."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from helpers.cases import XY, X, constant, f32, graph_of, param
from helpers.random_graphs import graphs
from hypothesis import given, settings

from dlc.backends import reference
from dlc.errors import RuleError, VerifyError
from dlc.ir.graph import Graph
from dlc.ir.manager import Pass, Property, RulePass, bisect, run, sides
from dlc.ir.node import Origin
from dlc.ir.pattern import Rewrite, op, rule
from dlc.ir.sizes import Dim
from dlc.ir.text import parse
from dlc.ir.types import tensor
from dlc.ir.values import Check, random_arrays
from dlc.passes.simplify import Simplify

CHECK = Check(reference.run)


@dataclass(frozen=True)
class Right(RulePass):
    """Rules that hold."""

    name = "right"
    rules = (
        rule("-(-x) -> x", lambda x: op.neg(-x), lambda x: x),
        rule("exp(-x) -> 1/exp(x)", lambda x: op.exp(-x), lambda x: op.reciprocal(op.exp(x))),
    )


@dataclass(frozen=True)
class Wrong(RulePass):
    """Two rules that hold, and one that does not."""

    name = "wrong"
    rules = (*Right.rules, rule("tanh(x) -> x", lambda x: op.tanh(x), lambda x: x))


@dataclass(frozen=True)
class Same(Pass):
    """Does nothing, in two ways."""

    name = "same"
    way: str = "quietly"
    times: int = 1

    def run(self, graph, journal):
        return graph


def example():
    """tanh(1 / exp(-(-x)))) + w, with rewrites before and after the tanh."""
    return graph_of(X, lambda x: op.exp(-op.tanh(op.exp(-op.neg(-x)))) + param("w", 4))


# Running.


def test_a_report_says_what_happened():
    graph = graph_of(X, lambda x: op.neg(-op.neg(-x)))
    got, report = run(graph, [Right(), Same(times=2)])
    assert got.outputs[0] is got.inputs[0]
    right, same = report.steps
    assert (right.name, right.before, right.after) == ("right", 5, 1)
    assert right.rewrites == {"-(-x) -> x": 2}
    assert (same.name, same.before, same.after, same.rewrites) == ("same(times=2)", 1, 1, {})
    assert right.seconds > 0
    lines = str(report).splitlines()
    assert lines[0].split() == ["pass", "ms", "nodes", "rewrites"]
    assert "2 x -(-x) -> x" in lines[2]
    assert len({line.index("->") for line in (lines[1], lines[3])}) == 1


def test_a_pass_shows_the_options_that_are_not_default():
    assert str(Same()) == "same"
    assert str(Same("loudly", 3)) == "same(way='loudly', times=3)"
    assert Same()(example()).name == "graph"


def test_no_passes_change_nothing():
    graph = example()
    assert run(graph, [])[0] is graph
    assert str(run(graph, [])[1]).splitlines()[1:] == []


def test_dumps_are_text_forms_that_parse(tmp_path):
    graph = example()
    run(graph, [Right(), Same()], dump=tmp_path / "new" / "folder")
    files = sorted((tmp_path / "new" / "folder").iterdir())
    assert [file.name for file in files] == ["00-input.txt", "01-right.txt", "02-same.txt"]
    assert str(parse(files[0].read_text())) == str(graph)
    assert "neg" not in files[1].read_text()


# Verifying.


@dataclass(frozen=True)
class Breaks(Pass):
    """Gives the graph an output name too many times."""

    name = "breaks"

    def run(self, graph, journal):
        return replace(graph, outputs=graph.outputs * 2, output_names=("y", "y"))


@dataclass(frozen=True)
class Forgets(Pass):
    """Computes the output anew, without a word of where it comes from."""

    name = "forgets"

    def run(self, graph, journal):
        return replace(graph, outputs=(op.sin(graph.inputs[0]),))


def test_a_broken_graph_names_the_pass_that_made_it():
    with pytest.raises(VerifyError, match=r"after the pass breaks: .*'names'"):
        run(example(), [Same(), Breaks()])
    run(example(), [Same(), Breaks()], verify=False)


def test_a_graph_that_is_broken_at_the_start_is_refused():
    broken = replace(example(), inputs=())
    with pytest.raises(VerifyError, match="graph 'graph' breaks the check 'inputs'"):
        run(broken, [Same()])


def test_a_lost_origin_is_found():
    graph = example()
    graph.outputs[0].origins |= {Origin("head", "/home/me/model.py", 7)}
    with pytest.raises(VerifyError, match=r"forgets loses the origins head, model\.py:7"):
        run(graph, [Forgets()])
    run(example(), [Forgets()])


def test_what_a_rule_cuts_off_may_take_its_origins_along():
    """x·0 is 0 whatever x is, so the node that made x is gone with its place."""
    graph = graph_of((tensor("int32", (2,)),), lambda x: op.square(x) * 0)
    graph.nodes[1].origins |= {Origin("square")}
    graph.outputs[0].origins |= {Origin("mul")}
    got, _ = run(graph, [Simplify()])
    assert [node.op.name for node in got.nodes] == ["input", "constant", "expand"]
    assert got.outputs[0].origins == {Origin("mul")}


@given(graphs())
@settings(max_examples=30)
def test_no_origin_is_lost_on_random_graphs(graph):
    run(graph, [Simplify(), Right()])


NO_NEG = Property(
    "no-neg",
    "nothing is negated",
    lambda graph: ((n, "negates") for n in graph.nodes if n.op.name == "neg"),
)


@dataclass(frozen=True)
class Ensures(Right):
    """Says that it leaves no negation."""

    name = "ensures"

    @property
    def ensures(self):
        return (NO_NEG,)


@dataclass(frozen=True)
class Requires(Same):
    """Works without negations only."""

    name = "requires"

    @property
    def requires(self):
        return (NO_NEG,)


def test_a_pass_gets_what_it_requires_or_a_message_that_says_who_ensures_it():
    graph = graph_of(X, lambda x: op.neg(-x))
    run(graph, [Ensures(), Requires()])
    with pytest.raises(VerifyError) as caught:
        run(graph, [Requires(), Ensures()])
    message = str(caught.value)
    assert "the pass requires requires 'no-neg' (nothing is negated), and neg: " in message
    assert "ensures ensures 'no-neg'" in message


def test_a_pass_that_does_not_keep_its_word_is_named():
    with pytest.raises(VerifyError, match=r"the pass ensures ensures 'no-neg' .*neg: .* negates"):
        run(graph_of(X, lambda x: -x), [Ensures()])


# Checking by value.


def test_right_rules_pass_the_check():
    run(example(), [Right(), Simplify()], check=CHECK)


def test_a_planted_wrong_rule_is_named_with_both_sides():
    with pytest.raises(RuleError) as caught:
        run(example(), [Right(), Wrong()], check=CHECK)
    assert str(caught.value).startswith("the pass wrong changes values: output 'output' is ")
    assert str(caught.value).endswith(
        """
first by the rule 'tanh(x) -> x':
graph before
%rule.x = input : float32[3, 4]
%0 = tanh(%rule.x) : float32[3, 4]
output output = %0
becomes
graph after
%rule.x = input : float32[3, 4]
output output = %rule.x"""
    )


def test_a_wrong_pass_without_rules_is_shown_whole():
    with pytest.raises(RuleError) as caught:
        run(graph_of(X, op.tanh), [Forgets()], check=CHECK)
    assert "first by the pass forgets:\ngraph graph\n" in str(caught.value)
    assert "%0 = tanh(%x0)" in str(caught.value)
    assert "%0 = sin(%x0)" in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda x: op.exp(x) * 1.0001, "is "),
        (lambda x: op.log(x), "is nan in place of"),
        (lambda x: op.exp(x) / 0.0, "is inf in place of"),
    ],
)
def test_every_kind_of_difference_is_seen(wrong, message):
    before, after = graph_of(X, lambda x: op.exp(x)), graph_of(X, wrong)
    assert message in CHECK.difference(before, after)
    assert CHECK.difference(before, before) == ""


def test_differences_of_integers_bools_types_and_shapes_are_seen():
    def difference(before, after, types=XY):
        return CHECK.difference(graph_of(types, before), graph_of(types, after))

    assert "differs in" in difference(lambda x, y: x < y, lambda x, y: x > y)
    assert "is float64(3,) in place of float64(3, 4)" in difference(
        lambda x, y: x, lambda x, y: op.amax(x, axes=(1,), keepdims=False)
    )
    assert "in place of float64" in difference(
        lambda x, y: x, lambda x, y: op.cast(x, dtype="bool")
    )
    assert difference(lambda x, y: x / (y - y), lambda x, y: x / (y - y)) == ""


def test_a_check_takes_given_arrays():
    graph, other = graph_of(X, lambda x: op.relu(x)), graph_of(X, lambda x: op.abs(x))
    assert CHECK.difference(graph, other)
    given_arrays = Check(reference.run, arrays={"x0": np.ones((3, 4), "float32")})
    assert given_arrays.difference(graph, other) == ""


def test_random_arrays_fit_the_graph():
    batch = Dim("batch", 3, 9)

    def function(x, i):
        return op.take(x, i, axis=0) + op.exp(param("var", 4, role="buffer"))

    graph = graph_of((f32(2 * batch, 4), tensor("int64", (batch,))), function)
    arrays = random_arrays(graph)
    assert {name: array.shape for name, array in arrays.items()} == {
        "x0": (6, 4),
        "x1": (3,),
        "var": (4,),
    }
    assert arrays["x1"].dtype == "int64"
    assert set(arrays["x1"]) <= {0, 1}
    assert arrays["var"].min() > 0
    assert random_arrays(graph, 1)["x0"].tolist() != arrays["x0"].tolist()
    reference.run(graph, arrays)


# Bisection.


def values_hold(graph):
    return not CHECK.difference(example(), graph)


def test_bisection_finds_the_pass_and_the_rewrite():
    culprit = bisect(example(), [Same(), Right(), Wrong(), Same()], values_hold)
    assert culprit.index == 2
    assert culprit.step == Wrong()
    assert culprit.entry.rule == "tanh(x) -> x"
    assert "tanh" in str(culprit.before)
    assert "tanh" not in str(culprit.after)


def test_bisection_finds_one_of_many_rewrites():
    def function(x):
        for k in range(40):
            x = op.tanh(x) if k == 23 else op.neg(-op.exp(-x))
        return x

    graph = graph_of(X, function)
    asked = []

    def good(g):
        asked.append(g)
        return "tanh" in str(g)

    culprit = bisect(graph, [Wrong()], good)
    assert culprit.entry.rule == "tanh(x) -> x"
    assert len(asked) < 12


def test_bisection_of_a_pass_without_rewrites_ends_at_the_pass():
    culprit = bisect(graph_of(X, op.tanh), [Same(), Forgets()], lambda g: "tanh" in str(g))
    assert (culprit.index, culprit.entry) == (1, None)


def test_bisection_of_what_holds_finds_nothing_and_must_hold_at_first():
    assert bisect(example(), [Right(), Same()], values_hold) is None
    with pytest.raises(VerifyError, match="holds before the first pass"):
        bisect(example(), [Right()], lambda graph: False)


def test_sides_show_captured_tuples_too():
    graph = graph_of(XY, lambda x, y: op.concat(-x, op.exp(x), op.exp(y), axis=0))
    concat = graph.outputs[0]
    neg, *rest = concat.inputs
    found = {"x": neg.inputs[0], "r": tuple(rest)}
    left, right = sides(Rewrite("r", concat, neg, found, (concat, neg)))
    assert "concat(%0, %rule.r0, %rule.r1)" in str(left)
    assert "exp" not in str(left)
    assert len(right.nodes) == 2


def test_graphs_of_constants_can_be_checked():
    graph = graph_of(X, lambda x: constant([1.0, 2.0]) * 2.0)
    assert CHECK.difference(graph, Graph(graph.outputs, graph.inputs)) == ""
