"""Apply a table of rules to a graph until none fires.

Sweeps go from inputs to outputs and match on what has been made so far, so that a chain of
rewrites is followed within one sweep; another sweep sees what a replacement brought in.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from dlc.errors import VerifyError
from dlc.ir.graph import Graph, is_parametric
from dlc.ir.node import Node, Origin
from dlc.ir.pattern import Rewrite, Rule

_log = logging.getLogger("dlc.passes")

#: A node that changes more often within one sweep is going round in a circle.
MAX_CHAIN = 100


class Journal:
    """The rewrites that a pass made, and how many it may make.

    Parameters
    ----------
    limit : int, optional
        The pass stops rewriting after so many; bisection finds the first wrong one with it.
    """

    def __init__(self, limit: int | None = None):
        self.limit = limit
        self.entries: list[Rewrite] = []

    @property
    def full(self) -> bool:
        """Whether the limit is reached; a pass then leaves the rest of the graph as it is."""
        return self.limit is not None and len(self.entries) >= self.limit

    def record(self, entry: Rewrite) -> None:
        """Take in one rewrite."""
        self.entries.append(entry)
        if _log.isEnabledFor(logging.DEBUG):
            before, after = entry.before.describe(), entry.after.describe()
            _log.debug("%s: %s => %s", entry.rule, before, after)

    def counts(self) -> Mapping[str, int]:
        """How often each rule fired, in order of first application."""
        return Counter(entry.rule for entry in self.entries)


def rewrite(graph: Graph, rules: Sequence[Rule], budget: int, journal: Journal) -> Graph:
    """Apply ``rules`` everywhere until none fires.

    Parameters
    ----------
    graph : Graph
    rules : sequence of Rule
        Tried in this order at each node.
    budget : int
        Sweeps over the graph.
    journal : Journal

    Raises
    ------
    VerifyError
        Rules still fire when the budget is used up, which means that they undo each other.
    """
    for _ in range(budget):
        before = len(journal.entries)
        graph = _Sweep(graph, rules, journal).run()
        if len(journal.entries) == before or journal.full:
            return graph
    names = sorted({entry.rule for entry in journal.entries[before:]})
    raise VerifyError(
        f"after {budget} sweeps these rules still fire: {', '.join(map(repr, names))}; "
        "either they undo each other or the pass needs a larger budget"
    )


class _Sweep:
    """One pass over the nodes of a graph; the `Context` of the rules' guards.

    What reads a node of the new graph is known exactly at any time: the new nodes that stand for
    old ones (``users``), and the old nodes not yet come to (``pending``).
    """

    def __init__(self, graph: Graph, rules: Sequence[Rule], journal: Journal):
        self.graph = graph
        self.rules = rules
        self.journal = journal
        self.by_op: dict[str, list[Rule]] = {}
        self.users: dict[Node, set[Node]] = {}
        self.pending: Counter[Node] = Counter()
        self.known_parametric: dict[Node, bool] = {}

    def run(self) -> Graph:
        new: dict[Node, Node] = {}
        fired = len(self.journal.entries)
        reads = {node: len(users) for node, users in self.graph.users().items()}
        for node in self.graph.outputs:
            reads[node] += 1
        for node, count in reads.items():
            sources = tuple(new[source] for source in node.inputs)
            for source in {id(source): source for source in node.inputs}.values():
                self.pending[new[source]] -= 1
            same = all(a is b for a, b in zip(sources, node.inputs, strict=True))
            made = node if same else node.builder.node(node.op, sources, node.attrs, node.origins)
            new[node] = self._rewrite(made)
            self.pending[new[node]] += count
        if len(self.journal.entries) == fired:
            return self.graph
        outputs = tuple(new[node] for node in self.graph.outputs)
        return replace(
            self.graph, outputs=outputs, inputs=tuple(map(new.__getitem__, self.graph.inputs))
        )

    def uses(self, node: Node) -> int:
        return len(self.users[node]) + self.pending[node]

    def parametric(self, node: Node) -> bool:
        return self.known_parametric[node]

    def _rewrite(self, node: Node) -> Node:
        """What ``node`` is after the rules that fire on it, one after the other."""
        self._enter(node, frozenset())
        for _ in range(MAX_CHAIN):
            entry = None if self.journal.full else self._first(node)
            if entry is None:
                return node
            self.journal.record(entry)
            origins = frozenset[Origin]().union(*(n.origins for n in entry.interior))
            self._enter(entry.after, origins)
            self.pending[entry.after] += 1  # hold what replaces the node while the node is let go
            self._release(node)
            self.pending[entry.after] -= 1
            node = entry.after
        raise VerifyError(
            f"the rules go round in a circle on {node.describe()}: "
            + "; ".join(dict.fromkeys(e.rule for e in self.journal.entries[-MAX_CHAIN:]))
        )

    def _first(self, node: Node) -> Rewrite | None:
        name = node.op.name
        if name not in self.by_op:
            self.by_op[name] = [r for r in self.rules if not r.roots or name in r.roots]
        attempts = (rule.attempt(node, self) for rule in self.by_op[name])
        return next((entry for entry in attempts if entry is not None), None)

    def _enter(self, root: Node, origins: frozenset[Origin]) -> None:
        """Take in ``root`` and the new nodes below it; they stand for the places ``origins``."""
        root.origins |= origins
        stack = [root]
        while stack:
            node = stack[-1]
            known = node in self.users
            missing = [] if known else [n for n in node.inputs if n not in self.users]
            stack += missing
            if missing:
                continue
            stack.pop()
            if not known:
                node.origins |= origins
                self.users[node] = set()
                self.known_parametric[node] = is_parametric(node, self.known_parametric)
                for source in node.inputs:
                    self.users[source].add(node)

    def _release(self, root: Node) -> None:
        """Forget ``root``, and what only it read, if nothing reads it any more."""
        stack = [root]
        while stack:
            node = stack.pop()
            if node in self.users and not self.users[node] and not self.pending[node]:
                del self.users[node]
                for source in node.inputs:
                    self.users[source].discard(node)
                    stack.append(source)
