"""Recompute: compute values again rather than keep them, where memory is short.

What the forward pass makes and the backward pass reads again is kept in between. Under a budget
some of it is let go behind its last early reader, and the groups that made it run once more before
its first late one. Groups, not nodes: the same kernels on the same values give every result the
same bits, and what lives when is known to the byte. The choice weighs bytes against the work that
is done twice, down to checkpoints with everything between them computed again, segment by segment
(Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from dlc.errors import MemoryError, explain
from dlc.ir.graph import Graph
from dlc.ir.node import Node
from dlc.ir.op import Kind
from dlc.ir.plan import Layout
from dlc.ir.schedule import Group, Schedule
from dlc.ir.sizes import bounds
from dlc.passes.traffic import Traffic

#: Floating-point operations in the time that a byte takes to or from memory, and that a kernel
#: takes to begin: what these cost beside what is computed.
FLOPS_A_BYTE, FLOPS_A_KERNEL = 8, 20_000
#: So many levels of cost, and so many sizes of segments, are tried with each other.
LEVELS, SEGMENTS = 10, 16
#: So many of the best choices are refined, value by value.
REFINED = 4
#: How often a choice is made, each for less than the one before it came to; the last is for the
#: least there is.
TRIES = 8


def within(
    budget: int,
    graph: Graph,
    groups: Sequence[Group],
    layouts: Mapping[Node, Layout],
    placed: Callable[[Graph, Sequence[Group], Mapping[Node, Layout]], Schedule],
) -> Schedule:
    """A schedule whose arena takes no more than ``budget`` bytes, with as little work done twice as
    is found; ``placed`` gives groups their memory.

    Raises
    ------
    MemoryError
        None was found; the message says how little is enough.
    """
    traffic = Traffic(graph, groups, layouts)
    options, goal, least = Recomputation(traffic), budget, budget
    for more in reversed(range(TRIES)):
        choice = options.cheapest(goal if more else 0)
        new = Rewriting(traffic, layouts, options, choice.gone)
        made = placed(new.graph(graph), tuple(new.groups.values()), new.layouts)
        if made.arena <= budget:
            return made
        goal, least = min(goal, choice.peak) - (made.arena - budget), made.arena
    expected, got = f"at least {least} bytes, the least that was found to do", f"{budget}"
    advice = "Give it that, or make the batch smaller."
    raise MemoryError(explain("memory_budget", expected, got, advice=advice))


class Run(NamedTuple):
    """A group that runs, perhaps once more; ``turn`` is the group for whose sake, or itself."""

    group: int
    again: bool
    turn: int


@dataclass(frozen=True)
class Choice:
    """Values that are let go, the bytes in use at most, and the cost of making them again."""

    gone: frozenset[int]
    peak: int
    cost: int


class Recomputation:
    """What may be computed again in groups that run in the order given, and what that costs.

    Values are known by number, in the order in which they are made.
    """

    def __init__(self, traffic: Traffic):
        self.values = list(traffic.nbytes)
        number = {node: i for i, node in enumerate(self.values)}
        self.nbytes = [traffic.nbytes[node] for node in self.values]
        self.reads = [[number[n] for n in nodes] for nodes in traffic.reads]
        self.writes = [[number[n] for n in nodes] for nodes in traffic.writes]
        self.maker = {v: i for i, values in enumerate(self.writes) for v in values}
        self.cost = [
            bounds(group.flops)[1] + FLOPS_A_BYTE * self._touched(i) + FLOPS_A_KERNEL
            for i, group in enumerate(traffic.groups)
        ]
        self.may = [_may_run_again(group, traffic) for group in traffic.groups]
        self._measured: dict[frozenset[int], Choice] = {}

    def _touched(self, group: int) -> int:
        return sum(self.nbytes[v] for v in (*self.reads[group], *self.writes[group]))

    # What lives when.

    @cached_property
    def uses(self) -> list[list[int]]:
        """The groups that make and read each value, in order."""
        uses: list[list[int]] = [[] for _ in self.values]
        for group in range(len(self.reads)):
            for v in (*self.writes[group], *self.reads[group]):
                uses[v].append(group)
        return uses

    @cached_property
    def middle(self) -> int:
        """The group during which most bytes wait for a later reader: the end of a forward pass."""
        waiting = [0] * (len(self.reads) + 1)
        for v, uses in enumerate(self.uses):
            for before, behind in itertools.pairwise(uses):
                if behind > before + 1:
                    waiting[before + 1] += self.nbytes[v]
                    waiting[behind] -= self.nbytes[v]
        totals = list(itertools.accumulate(waiting))
        return totals.index(max(totals))

    @cached_property
    def early(self) -> list[int]:
        """The last group that needs each value before it waits in the middle; of one that does not,
        the last of all.
        """
        last = []
        for uses in self.uses:
            waits = uses[0] < self.middle < uses[-1] and self.middle not in uses
            last.append(max(i for i in uses if i < self.middle) if waits else uses[-1])
        return last

    @cached_property
    def repeatable(self) -> list[int]:
        """The values of the forward pass that can be made again."""
        return [v for v, i in self.maker.items() if self.may[i] and i < self.middle]

    def waiting(self, value: int) -> int:
        """Bytes of a value that waits in the middle, else 0."""
        return self.nbytes[value] if self.uses[value][-1] > self.early[value] else 0

    # What happens if values are let go.

    def runs(self, gone: frozenset[int]) -> Iterator[Run]:
        """The groups in the order in which they run if these values are let go."""
        made: set[int] = set()
        for turn in range(len(self.reads)):
            near = self._missing(turn, turn, gone, made)
            while near:
                missing = self._missing(near[-1], turn, gone, made)
                if missing:
                    near += missing
                elif (group := near.pop()) not in made:
                    made.add(group)
                    yield Run(group, True, turn)
            yield Run(turn, False, turn)

    def _missing(self, group: int, turn: int, gone: frozenset[int], made: set[int]) -> list[int]:
        """The groups that must run again before a group can."""
        late = (v for v in self.reads[group] if self.is_late(v, turn, gone))
        return [self.maker[v] for v in late if self.maker[v] not in made]

    def is_late(self, value: int, turn: int, gone: frozenset[int]) -> bool:
        """Whether a value has been let go when a group has its turn."""
        return value in gone and turn > self.early[value]

    def measure(self, gone: frozenset[int]) -> Choice:
        """What letting go of these values comes to."""
        if gone not in self._measured:
            self._measured[gone] = self._measure(gone)
        return self._measured[gone]

    def _measure(self, gone: frozenset[int]) -> Choice:
        last: dict[tuple[int, bool], int] = {}
        first: dict[tuple[int, bool], int] = {}
        cost, at = 0, -1
        for at, (group, again, turn) in enumerate(self.runs(gone)):
            cost += self.cost[group] if again else 0
            for v in self.writes[group]:
                first[v, again] = last[v, again] = at
            for v in self.reads[group]:
                last[v, self.is_late(v, turn, gone)] = at
        change = [0] * (at + 2)
        for key, start in first.items():
            change[start] += self.nbytes[key[0]]
            change[last[key] + 1] -= self.nbytes[key[0]]
        return Choice(gone, max(itertools.accumulate(change)), cost)

    # What to let go.

    def cheapest(self, budget: int) -> Choice:
        """The choice with the least work among those within so many bytes; if none is, the one with
        the least bytes.
        """
        whole = self.measure(frozenset())
        if whole.peak <= budget:
            return whole
        choices = [self.measure(gone) for gone in self._candidates()]
        fitting = [choice for choice in choices if choice.peak <= budget]
        if not fitting:
            return min(choices, key=lambda choice: (choice.peak, choice.cost))
        best = sorted(fitting, key=lambda choice: choice.cost)[:REFINED]
        return min((self._kept(choice, budget) for choice in best), key=lambda choice: choice.cost)

    def _kept(self, choice: Choice, budget: int) -> Choice:
        """The choice without what need not be let go, dear values first."""
        for v in sorted(choice.gone, key=lambda v: (-self._rate(v), v)):
            less = self.measure(choice.gone - {v})
            if less.peak <= budget and less.cost <= choice.cost:
                choice = less
        return choice

    def _rate(self, value: int) -> float:
        """What it costs to make a value again, for each byte of it."""
        return self.cost[self.maker[value]] / max(1, self.nbytes[value])

    def _candidates(self) -> Iterator[frozenset[int]]:
        """For each level of cost and size of segments what they let go, and nothing."""
        waiting = [v for v in self.repeatable if self.waiting(v)]
        rates = sorted({self._rate(v) for v in waiting})
        total = sum(self.nbytes[v] for v in waiting)
        steps = (-(-len(rates) * i // LEVELS) for i in range(1, LEVELS + 1))
        for level in dict.fromkeys(rates[step - 1] for step in steps if rates):
            cheap = [v for v in self.repeatable if self._rate(v) <= level]
            for part in range(SEGMENTS):
                yield self._segments(cheap, int(total * 0.75**part))
        yield frozenset()

    def _segments(self, cheap: Sequence[int], most: int) -> frozenset[int]:
        """These values, but for checkpoints: behind each segment of so many bytes, all that later
        groups of the forward pass read is kept.
        """
        gone, segment, held = set[int](), list[int](), 0
        for v in cheap:
            segment.append(v)
            held += self.waiting(v)
            if held > most:
                ends = segment[len(segment) // 2 :]
                end = min(reversed(ends), key=lambda v: self._carried(segment, v))
                done = [w for w in segment if w <= end]
                gone.update(w for w in done if self.early[w] <= self.maker[end])
                segment = segment[len(done) :]
                held = sum(map(self.waiting, segment))
        return frozenset((*gone, *segment))

    def _carried(self, segment: Sequence[int], end: int) -> int:
        """Bytes that are read behind the group that makes ``end``."""
        carried = (v for v in segment if v <= end and self.early[v] > self.maker[end])
        return sum(self.nbytes[v] for v in carried)


def _may_run_again(group: Group, traffic: Traffic) -> bool:
    """Whether a group may run twice: it gives no result and no new value of a parameter, and each
    of its values follows from others.
    """
    if group.view or any(traffic.nbytes[node] == 0 for node in group.outputs):
        return False
    follows = {node for node in group.inputs if _is_given(node)}
    for node in group.inside:
        if follows & set(node.inputs):
            follows.add(node)
    return follows.issuperset(group.outputs)


def _is_given(node: Node) -> bool:
    """Whether a value that a group reads lies in memory, rather than being written in its code."""
    return node.op.kind is not Kind.LEAF or node.op.name in ("input", "parameter")


class Rewriting:
    """Groups in a new order, some of them twice: what reads a value that has been let go reads the
    one that was made again.

    Equal nodes are one, so that what is computed again must differ from what was computed before:
    it starts from values that are marked with the op `again`.
    """

    def __init__(
        self,
        traffic: Traffic,
        layouts: Mapping[Node, Layout],
        options: Recomputation,
        gone: frozenset[int],
    ):
        self.traffic, self.layouts, self.gone = traffic, dict(layouts), gone
        self.options, self.number = options, {node: i for i, node in enumerate(options.values)}
        self.made: dict[tuple[Node, bool], Node] = {}
        self.groups: dict[Node, Group] = {}  # by their first value
        for run in options.runs(gone):
            group = traffic.groups[run.group]
            if group.view:
                self._now(group.outputs[0], run.turn)
            else:
                self._run(group, run)

    def graph(self, graph: Graph) -> Graph:
        """The graph that the groups compute."""
        return replace(graph, outputs=tuple(self._now(node, 0) for node in graph.outputs))

    def _run(self, group: Group, run: Run) -> None:
        new = {node: self._read(node, run) for node in group.inputs}
        for node in group.inside:
            new[node] = self._on(node, tuple(new[source] for source in node.inputs))
        for node in group.outputs:
            self.made[node, run.again] = new[node]
        inside, outputs = (tuple(new[n] for n in nodes) for nodes in (group.inside, group.outputs))
        self.groups[outputs[0]] = Group(new[group.anchor], inside, outputs, again=run.again)

    def _read(self, node: Node, run: Run) -> Node:
        """What a group reads for a value; if it runs again, that is another node than before."""
        if run.again and _is_given(node) and not self._is_late(node, run.turn):
            now = self._now(node, run.turn)
            return self._view(node.builder.node("again", (now,)), self.layouts[now])
        return self._now(node, run.turn)

    def _now(self, node: Node, turn: int) -> Node:
        """A value as it is when a group has its turn."""
        owner = self.traffic.owner.get(node)
        if owner is None:
            return node
        if owner is not node:
            shown = (self._now(node.inputs[0], turn), *node.inputs[1:])
            return self._view(self._on(node, shown), self.layouts[node])
        return self.made[node, self._is_late(node, turn)]

    def _is_late(self, node: Node, turn: int) -> bool:
        owner = self.traffic.owner.get(node)
        return owner in self.number and self.options.is_late(self.number[owner], turn, self.gone)

    def _view(self, node: Node, layout: Layout) -> Node:
        if node not in self.groups:
            self.layouts[node] = layout
            self.groups[node] = Group(node, (node,), (node,), view=True)
        return node

    def _on(self, node: Node, inputs: tuple[Node, ...]) -> Node:
        """A node on other inputs, to be written in the same layout."""
        if all(a is b for a, b in zip(inputs, node.inputs, strict=True)):
            return node
        made = node.builder.node(node.op, inputs, node.attrs, node.origins)
        if node in self.layouts:
            self.layouts[made] = self.layouts[node]
        return made
