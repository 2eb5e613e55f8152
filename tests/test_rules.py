"""Every rule of every pass: a case where it fires, one where each guard stops it, its values.

A case says what a graph becomes, as a function in the same builder: since equal nodes are one
object, the structure is right if the result *is* the expected node.
"""

from dataclasses import replace

import pytest
from helpers.cases import bits, build, graph_of, hostile_arrays
from helpers.exact_cases import CANONICALISE, SIMPLIFY
from helpers.fold_cases import DECOMPOSE, FOLD_BN, LINEAR

from dlc.backends import reference
from dlc.errors import DTypeError, RuleError
from dlc.ir.graph import Graph
from dlc.ir.rewrite import Journal, rewrite
from dlc.ir.types import DTYPES
from dlc.ir.values import Check
from dlc.ir.verify import verify
from dlc.passes.canonicalise import Canonicalise
from dlc.passes.decompose import Decompose
from dlc.passes.fold_bn import FoldBatchNorm
from dlc.passes.simplify import Simplify

CHECK = Check(reference.run)

CASES = [*SIMPLIFY, *CANONICALISE, *FOLD_BN, *LINEAR, *DECOMPOSE]
TABLES = (Simplify().rules, Canonicalise().rules, FoldBatchNorm().rules, Decompose().rules)
RULES = {rule.name: rule for table in TABLES for rule in table}


def apply_rule(rule, graph, limit=None):
    journal = Journal(limit)
    return rewrite(graph, [rule], 10, journal), journal


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_rule_fires_and_keeps_structure_and_values(case):
    inputs, (before, after) = build(case.types, case.before, case.after)
    graph = Graph((before,), inputs)
    got, journal = apply_rule(RULES[case.rule], graph)
    assert journal.entries
    assert got.outputs[0] is after, f"\n{got}\nin place of\n{Graph((after,), inputs)}"
    verify(got)
    assert CHECK.difference(graph, got) == ""


EXACT = [case for case in CASES if not RULES[case.rule].rounding and case not in DECOMPOSE]


@pytest.mark.parametrize("case", EXACT, ids=str)
def test_an_exact_rule_keeps_every_bit(case, rng):
    graph = graph_of(case.types, case.before)
    got, _ = apply_rule(RULES[case.rule], graph)
    for _ in range(8):
        arrays = hostile_arrays(graph, rng)
        (expected,), (came,) = reference.run(graph, arrays), reference.run(got, arrays)
        assert bits(expected) == bits(came)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", EXACT, ids=str)
def test_an_exact_rule_holds_for_every_element_type_that_it_fires_on(case, dtype, rng):
    types = tuple(t if t.dtype == "bool" else t.with_dtype(dtype) for t in case.types)
    try:
        graph = graph_of(types, case.before)
    except DTypeError:
        return  # no such graph
    got, _ = apply_rule(RULES[case.rule], graph)
    for _ in range(4):
        arrays = hostile_arrays(graph, rng)
        (expected,), (came,) = reference.run(graph, arrays), reference.run(got, arrays)
        assert bits(expected) == bits(came)


STOPPED = [(case, guard) for case in CASES for guard in case.stopped]


@pytest.mark.parametrize(("case", "guard"), STOPPED, ids=lambda part: str(part))
def test_a_guard_stops_a_rule(case, guard):
    """With all its guards the rule does nothing; without this one it would go on."""
    rule, stopped = RULES[case.rule], case.stopped[guard]
    types, function = stopped if isinstance(stopped, tuple) else (case.types, stopped)
    graph = graph_of(types, function)
    got, journal = apply_rule(rule, graph)
    assert not journal.entries
    assert got is graph
    assert guard in [g.name for g in rule.guards]
    unguarded = replace(rule, guards=tuple(g for g in rule.guards if g.name != guard))
    try:
        _, journal = apply_rule(unguarded, graph, limit=1)
        assert journal.entries
    except RuleError:
        pass  # it went on, and made what no type rule accepts


def test_every_rule_has_a_case_and_every_guard_a_stop():
    assert sorted(RULES) == sorted({case.rule for case in CASES})
    for name, rule in RULES.items():
        stopped = {guard for case in CASES if case.rule == name for guard in case.stopped}
        assert {guard.name for guard in rule.guards} == stopped, name


def test_rules_have_names_of_their_own():
    for table in TABLES:
        names = [rule.name for rule in table]
        assert len(set(names)) == len(names)
