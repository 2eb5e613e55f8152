"""Runs passes: verifies, times, dumps, checks by value, and finds the one that went wrong.

A pass is a function from graph to graph with a name and options; everything that holds for all
passes happens here, between two of them, so that a pass is nothing but its transformation.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar

from dlc.debug import IR, TIMINGS
from dlc.errors import RuleError, VerifyError
from dlc.ir.graph import Graph, topological
from dlc.ir.node import Node, Origin
from dlc.ir.pattern import Rewrite, Rule
from dlc.ir.rewrite import Journal, rewrite
from dlc.ir.values import Check
from dlc.ir.verify import verify as verify_graph

_log = logging.getLogger("dlc.passes")

# Passes.


@dataclass(frozen=True)
class Property:
    """What a pass may require of a graph, or ensure.

    Parameters
    ----------
    name : str
    meaning : str
        The property in words.
    breaches : callable
        The nodes of a graph that have not got it, each with what is wrong.
    """

    name: str
    meaning: str
    breaches: Callable[[Graph], Iterator[tuple[Node, str]]]


@dataclass(frozen=True)
class Pass(ABC):
    """A transformation of graphs; its fields are its options on the command line.

    A subclass is a frozen dataclass with a ``name`` (verb first, ``fold-bn``), one line of
    docstring, and `run`. A check by value runs in float64 where it ``widens``, else in the graph's
    own element types.
    """

    name: ClassVar[str]
    widens: ClassVar[bool] = True

    @property
    def requires(self) -> tuple[Property, ...]:
        """What the graph must satisfy before."""
        return ()

    @property
    def ensures(self) -> tuple[Property, ...]:
        """What the graph satisfies after."""
        return ()

    @abstractmethod
    def run(self, graph: Graph, journal: Journal) -> Graph:
        """The new graph; what was rewritten is recorded in ``journal``, within its limit."""

    def __call__(self, graph: Graph) -> Graph:
        """The new graph."""
        return self.run(graph, Journal())

    def __str__(self) -> str:
        given = [(f.name, getattr(self, f.name)) for f in fields(self)]
        changed = [f"{n}={v!r}" for (n, v), f in zip(given, fields(self)) if v != f.default]
        return f"{self.name}({', '.join(changed)})" if changed else self.name


@dataclass(frozen=True)
class RulePass(Pass):
    """A pass that applies the table ``rules`` until none fires, in at most ``budget`` sweeps."""

    rules: ClassVar[tuple[Rule, ...]]
    budget: int = 10

    def run(self, graph: Graph, journal: Journal) -> Graph:
        """Apply the table."""
        return rewrite(graph, self.rules, self.budget, journal)


# Running them.


@dataclass(frozen=True)
class Step:
    """What one pass did: seconds, nodes before and after, and how often each rule fired."""

    name: str
    seconds: float
    before: int
    after: int
    rewrites: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """What a run of passes did; as text, a table."""

    steps: tuple[Step, ...] = ()

    def __str__(self) -> str:
        width = max([len("pass"), *(len(step.name) for step in self.steps)])
        lines = [f"{'pass':{width}}       ms  nodes       rewrites"]
        for step in self.steps:
            counts = f"{step.before:5} -> {step.after:<5}"
            total = sum(step.rewrites.values())
            lines.append(f"{step.name:{width}} {step.seconds * 1e3:8.2f} {counts} {total:8}")
            lines += [f"{'':{width}}   {n:4} x {rule}" for rule, n in step.rewrites.items()]
        return "\n".join(lines)


def run(
    graph: Graph,
    passes: Sequence[Pass],
    *,
    verify: bool = True,
    check: Check | None = None,
    dump: str | Path | None = None,
) -> tuple[Graph, Report]:
    """Run passes one after the other.

    Parameters
    ----------
    graph : Graph
    passes : sequence of Pass
    verify : bool
        Verify the graph at the start and after each pass, what passes require and ensure, and that
        no origin is lost.
    check : Check, optional
        Evaluate the graph before and after each pass and compare.
    dump : path, optional
        A folder, made if need be, for the text form at the start and after each pass.

    Returns
    -------
    Graph
    Report

    Raises
    ------
    VerifyError
        A graph breaks a rule of the IR; the message names the pass that made it.
    RuleError
        A pass changed a value; the message names the rule and shows both sub-graphs.
    """
    folder = None if dump is None else Path(dump)
    if verify:
        verify_graph(graph)
    _dump(folder, 0, "input", graph)
    steps = []
    for number, step in enumerate(passes, start=1):
        journal = Journal()
        if verify:
            _demand(graph, step.requires, f"the pass {step} requires", _advice(passes))
        start = time.perf_counter()
        after = step.run(graph, journal)
        seconds = time.perf_counter() - start
        steps.append(Step(str(step), seconds, len(graph.nodes), len(after.nodes), journal.counts()))
        _dump(folder, number, step.name, after)
        _log.log(IR, "after %s:\n%s", step, after)
        if verify:
            _verify_step(step, graph, after, journal)
        if check:
            _check_step(step, graph, after, check)
        graph = after
    report = Report(tuple(steps))
    _log.log(TIMINGS, "passes:\n%s", report)
    return graph, report


def _dump(folder: Path | None, number: int, name: str, graph: Graph) -> None:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:02}-{name}.txt").write_text(f"{graph}\n", encoding="utf-8")


def _demand(graph: Graph, properties: Sequence[Property], who: str, advice: str = "") -> None:
    for prop in properties:
        for node, message in prop.breaches(graph):
            raise VerifyError(
                f"{who} {prop.name!r} ({prop.meaning}), and {node.describe()} {message}{advice}"
            )


def _advice(passes: Sequence[Pass]) -> str:
    ensuring = [f"{step.name} ensures {p.name!r}" for step in passes for p in step.ensures]
    return f"; {', '.join(dict.fromkeys(ensuring))}" if ensuring else ""


def _verify_step(step: Pass, before: Graph, after: Graph, journal: Journal) -> None:
    try:
        verify_graph(after)
    except VerifyError as error:
        raise VerifyError(f"after the pass {step}: {error}") from None
    _demand(after, step.ensures, f"the pass {step} ensures")
    lost = _origins(before.nodes) - _origins(after.nodes)
    for entry in journal.entries if lost else ():
        # What a rule cuts off may take its origins along; what it replaces may not.
        cut = set(topological([entry.before])) - set(topological([entry.after]))
        lost -= _origins(cut - set(entry.interior))
    if lost:
        places = ", ".join(sorted(map(str, lost)))
        raise VerifyError(f"the pass {step} loses the origins {places} of the nodes it replaces")


def _origins(nodes: Sequence[Node] | set[Node]) -> set[Origin]:
    return set[Origin]().union(*(node.origins for node in nodes))


def _check_step(step: Pass, before: Graph, after: Graph, check: Check) -> None:
    difference = check.difference(before, after, step.widens)
    if not difference:
        return
    culprit = _first_wrong(
        step, before, lambda graph: not check.difference(before, graph, step.widens)
    )
    raise RuleError(f"the pass {step} changes values: {difference}\n{culprit}")


# Finding the one that went wrong.


@dataclass(frozen=True)
class Culprit:
    """The first pass after which something fails, and where rules are recorded, the first rewrite.

    Attributes
    ----------
    index : int
        Its place among the passes.
    step : Pass
    before, after : Graph
        The graph just before and just after the pass, or after the rewrite at fault.
    entry : Rewrite or None
    """

    index: int
    step: Pass
    before: Graph
    after: Graph
    entry: Rewrite | None = None

    def __str__(self) -> str:
        if self.entry is None:
            return f"first by the pass {self.step}:\n{self.before}\nbecomes\n{self.after}"
        left, right = sides(self.entry)
        return f"first by the rule {self.entry.rule!r}:\n{left}\nbecomes\n{right}"


def bisect(graph: Graph, passes: Sequence[Pass], good: Callable[[Graph], bool]) -> Culprit | None:
    """The first pass, and within it the first rewrite, after which ``good`` no longer holds.

    Returns None if it holds to the end. It is asked once a pass, then about log2 of the number of
    rewrites of the pass found.

    Raises
    ------
    VerifyError
        ``good`` does not hold at the start.
    """
    if not good(graph):
        raise VerifyError("bisect expects a condition that holds before the first pass")
    for index, step in enumerate(passes):
        after = step(graph)
        if not good(after):
            return _first_wrong(step, graph, good, index)
        graph = after
    return None


def _first_wrong(
    step: Pass, graph: Graph, good: Callable[[Graph], bool], index: int = 0
) -> Culprit:
    whole = Journal()
    after = step.run(graph, whole)
    low, high = 0, len(whole.entries)  # good after `low` rewrites, not good after `high`
    while high - low > 1:
        middle = (low + high) // 2
        if good(step.run(graph, Journal(middle))):
            low = middle
        else:
            high = middle
    if not high or good(partial := step.run(graph, Journal(high))):
        return Culprit(index, step, graph, after)
    return Culprit(index, step, step.run(graph, Journal(low)), partial, whole.entries[high - 1])


def sides(entry: Rewrite) -> tuple[Graph, Graph]:
    """The two sides of a rewrite as graphs, cut where the variables of the rule stand."""
    cut: dict[Node, Node] = {}
    matched = set(entry.interior)
    for name, node in _variables(entry.found):
        if isinstance(node, Node) and node.inputs and node not in matched:
            cut[node] = node.builder.input(f"rule.{name}", node.tensor_type)
    return _cut(entry.before, cut, "before"), _cut(entry.after, cut, "after")


def _variables(found: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What each variable stands for; tuples item by item."""
    for name, value in found.items():
        if isinstance(value, tuple):
            yield from ((f"{name}{i}", item) for i, item in enumerate(value))
        else:
            yield name, value


def _cut(root: Node, cut: Mapping[Node, Node], name: str) -> Graph:
    graph = Graph((root,), name=name).rewrite(lambda node, _: cut.get(node))
    return replace(graph, inputs=tuple(n for n in graph.nodes if n.op.name == "input"))
