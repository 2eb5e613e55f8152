"""From an optimised graph to schedules of kernels over buffers: the last passes, in their order."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from dlc.ir.graph import Graph
from dlc.ir.manager import Pass
from dlc.ir.node import Node
from dlc.ir.plan import SLACK, Layout, align
from dlc.ir.schedule import Group, Schedule
from dlc.ir.sizes import bounds
from dlc.passes import run as run_passes
from dlc.passes.fuse import fuse
from dlc.passes.in_place import settle, with_own_values
from dlc.passes.layout import layouts
from dlc.passes.memory import ROOM, assign_memory
from dlc.passes.order import order_groups
from dlc.passes.pipelines import ALGORITHMS, LAYOUTS
from dlc.passes.prepare import PREPARED, split
from dlc.passes.recompute import within
from dlc.passes.traffic import Traffic


def schedule(
    graph: Graph,
    run: Callable[[Graph, Sequence[Pass]], Graph] = run_passes,
    memory_budget: int | None = None,
) -> tuple[Schedule, Schedule, int]:
    """Schedules of `prepare` and `main`, and the bytes of prepared memory; ``run`` runs the passes
    that still rewrite the graph. Their arenas take at most ``memory_budget`` bytes.
    """
    parts = split(run(with_own_values(graph), ALGORITHMS))
    # What one leaves to the other lies row by row, so each has its own layouts.
    prepare = _scheduled(run(parts.prepare, LAYOUTS), "prepared", memory_budget)
    offsets, total = {}, 0
    for node, name in zip(prepare.graph.outputs, parts.names, strict=True):
        offsets[name] = total
        total += align(bounds(prepare.buffers[node].nbytes)[1] + SLACK)
    prepare = _placed(prepare, offsets)
    main = _scheduled(run(parts.main, LAYOUTS), "arena", memory_budget)
    main = _placed(main, offsets)
    return prepare, main, total


def _scheduled(graph: Graph, role: str, memory_budget: int | None) -> Schedule:
    groups = fuse(graph, places := layouts(graph))
    groups = order_groups(Traffic(graph, groups, places))
    if memory_budget is None:
        return _in_memory(graph, groups, places, role, ROOM)
    tight = functools.partial(_in_memory, role=role, room=1.0)
    return within(memory_budget, graph, groups, places, tight)


def _in_memory(
    graph: Graph,
    groups: Sequence[Group],
    places: Mapping[Node, Layout],
    role: str,
    room: float,
) -> Schedule:
    groups, places = settle(graph, groups, places)
    return assign_memory(graph, groups, places, role, room)


def _placed(schedule: Schedule, offsets: dict[str, int]) -> Schedule:
    """The schedule with its prepared buffers at their offsets; `main` has them as parameters."""
    roles = (PREPARED, "parameter")
    buffers = {
        node: replace(b, role=PREPARED, offset=offsets[b.name])
        if b.role in roles and b.name in offsets
        else b
        for node, b in schedule.buffers.items()
    }
    return replace(schedule, buffers=buffers)
