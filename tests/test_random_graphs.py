"""Random graphs on the CPU against NumPy in float64; a planted wrong rule is caught."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from helpers.random_networks import networks, values, with_gradients
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dlc
from dlc import driver
from dlc.backends import reference
from dlc.errors import RuleError
from dlc.ir.manager import RulePass
from dlc.ir.node import building
from dlc.ir.pattern import op, rule
from dlc.passes import pipelines, select


def runner_of(graph, level, threads=2):
    """A graph, compiled; its parameters are not given yet."""
    optimised = lambda: driver.optimise(graph, level)  # noqa: E731
    return driver._native(graph, optimised, level, threads)[0]


def compare(got, exact):
    """Errors are measured by the size of the whole result: sums may cancel."""
    assert (got.dtype, got.shape) == (np.float32, exact.shape)
    size = max(1.0, float(np.abs(exact).max(initial=0)))
    np.testing.assert_allclose(got, exact, rtol=0, atol=1e-4 * size)


def check(graph, level):
    """The graph, compiled, twice against NumPy in float64."""
    runner = runner_of(graph, level)
    names = {node.name for node in graph.parameters}
    weights = values(graph, np.random.default_rng(1))
    runner.refresh({name: weights[name] for name in names})
    for batch in (1, 3) if graph.dims else (2,):
        arrays = values(graph, np.random.default_rng(batch), batch) | {n: weights[n] for n in names}
        exact = reference.run(graph, arrays, dtype="float64")
        given = [arrays[node.name] for node in graph.inputs]
        first, second = runner(*given), runner(*given)
        for got, again, want in zip(first, second, exact, strict=True):
            compare(got, want)
            np.testing.assert_array_equal(got, again)


@settings(max_examples=30)
@given(networks(), st.sampled_from(["O0", "O2"]))
def test_compiled_graphs_agree_with_the_reference(graph, level):
    check(graph, level)


@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(networks(steps=7, smooth=True))
def test_compiled_gradients_agree_with_the_reference(graph):
    check(with_gradients(graph), "O2")


# A wrong rule.


@dataclass(frozen=True)
class Planted(RulePass):
    """One rule that holds, and one that does not."""

    name = "planted"
    rules = (
        rule("x - y -> x + -y", lambda x, y: x - y, lambda x, y: x + -y),
        rule(
            "sigmoid(x) -> 1.001 / (1 + exp(-x))",
            lambda x: op.sigmoid(x),
            lambda x: 1.001 / (1 + op.exp(-x)),
        ),
    )


@pytest.fixture
def planted(monkeypatch):
    monkeypatch.setitem(pipelines.LEVELS, "O2", (*pipelines.O0, Planted()))


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(networks(steps=6))
def test_a_wrong_rule_is_named_wherever_it_fires(planted, graph):
    with building(graph.outputs[0].builder):
        wrong = op.sigmoid(graph.outputs[0])
    graph = replace(graph, outputs=(wrong, *graph.outputs), output_names=())
    with pytest.raises(RuleError, match=r"first by the rule 'sigmoid\(x\) -> 1\.001"):
        driver.optimise(graph, "O2", verify=2)


def test_a_wrong_rule_is_named_when_a_function_is_compiled(planted):
    x = np.linspace(-1, 1, 6, dtype="float32").reshape(2, 3)
    with pytest.raises(RuleError, match=r"the rule 'sigmoid\(x\) -> 1\.001"):
        dlc.compile(lambda x: dlc.sigmoid(x) - x, x, verify=2)
    np.testing.assert_allclose(dlc.compile(lambda x: x - 2, x, verify=2)(x), x - 2)


def test_a_wrong_choice_of_an_algorithm_is_found(monkeypatch):
    choose = select._Products.matmul
    wrong = lambda self, n, a, b: choose(self, n, a * 1.001, b)  # noqa: E731
    monkeypatch.setattr(select._Products, "matmul", wrong)
    x = np.ones((3, 3), "float32")
    with pytest.raises(RuleError, match="the pass select-algorithms changes values"):
        dlc.compile(lambda x: x @ x - 5, x, verify=2)
