"""Memory: give every value a buffer, and every buffer of the arena an offset, so that dead values
make room.

Offsets are planned at the maximum of every dimension, once; a call with a smaller batch uses part
of each buffer. The largest are placed first, since small ones fit between them: the arena is then
hardly larger than what lives at one time (Pisarchyk and Lee, Efficient Memory Management for Deep
Neural Net Inference, 2020).

Threads share most kernels by the first dimension, so that each writes the same part of every
buffer. Memory that one has written is in its processor's cache, and costs another one several times
as much to write. So an arena that caches hold is placed a second time, with some room, such that
the parts of a thread meet: LeNet-5's training step is 25 % faster on two processors that share no
cache, and 5 % where they do.
"""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from dlc.ir.graph import Graph
from dlc.ir.node import Node
from dlc.ir.op import Kind
from dlc.ir.plan import ALIGNMENT, SLACK, Buffer, Layout, align
from dlc.ir.schedule import Group, Schedule
from dlc.ir.sizes import bounds
from dlc.passes.traffic import owners

Array: TypeAlias = "np.ndarray[Any, Any]"
#: Offsets at which blocks of memory begin and end.
Intervals: TypeAlias = Sequence[tuple[int, int]]

#: Bytes of an arena that processors' own caches, or the next one, may hold from use to use.
CACHED = 16 << 20
#: How much larger it may become so that threads meet what they wrote.
ROOM = 1.3
#: Blocks that count in this, the largest, so that the time for it grows with the square of their
#: number only.
WEIGHTY = 128


def assign_memory(
    graph: Graph,
    groups: Sequence[Group],
    layouts: Mapping[Node, Layout],
    role: str = "arena",
    room: float = ROOM,
) -> Schedule:
    """A schedule whose values all have buffers.

    With ``role="prepared"`` the outputs of the graph lie in memory that outlives the call, and are
    never overwritten. The arena may be ``room`` times as large as it would have to be.
    """
    owner = owners(groups)
    buffers, state = _leaves(graph, layouts)
    in_place = {value: leaf for group in groups for value, leaf in group.in_place}
    buffers |= {value: buffers[leaf] for value, leaf in in_place.items()}
    ends = {owner.get(n, n) for i, n in enumerate(graph.outputs) if i not in graph.aliases}
    names = {
        owner.get(n, n): name for n, name in zip(graph.outputs, graph.output_names, strict=True)
    }
    arena, blocks = _Arena(), dict[Node, int]()
    last_use = _last_uses(groups, owner)
    for number, group in enumerate(groups):
        for node in group.outputs:
            if owner[node] is not node or node in in_place:
                continue  # a view lies in its owner's buffer
            if node in ends and role == "arena":
                buffers[node] = Buffer(names[node], "output", node.tensor_type, layouts[node])
                continue
            kind = "prepared" if node in ends else "arena"
            made = Buffer(names.get(node, f"value{number}"), kind, node.tensor_type, layouts[node])
            buffers[node] = made
            if kind == "prepared":
                continue
            until = last_use.get(node, number)
            first = node is group.outputs[0]
            spent = _spent(group, number, buffers, layouts, last_use, owner) if first else None
            if spent is not None:
                blocks[node] = blocks[spent]
                arena.extend(blocks[node], until)
            else:
                blocks[node] = arena.add(bounds(made.nbytes)[1] + SLACK, number, until)
    offsets, size = arena.places(room)
    for node, block in blocks.items():
        buffers[node] = replace(buffers[node], offset=offsets[block])
    for group in groups:
        for node in group.outputs:
            if owner[node] is not node:
                base = buffers[owner[node]]
                buffers[node] = Buffer(
                    base.name, base.role, node.tensor_type, layouts[node], base.offset
                )
    return Schedule(graph, tuple(groups), layouts, buffers, size, state)


def _leaves(graph: Graph, layouts: Mapping[Node, Layout]) -> tuple[dict[Node, Buffer], int]:
    """The buffers of inputs, parameters and constants, and the bytes of those parameters that the
    graph gives new values.
    """
    buffers: dict[Node, Buffer] = {}
    states, state = set(graph.aliases.values()), 0
    for node in graph.nodes:
        if node.op.name in ("input", "parameter"):
            kind = "input" if node.op.name == "input" else "parameter"
            buffers[node] = Buffer(str(node.name), kind, node.tensor_type, Layout.rows(node.ndim))
            if node.name in states:
                own = replace(buffers[node], role="state", layout=layouts[node], offset=state)
                buffers[node] = own
                state += align(bounds(own.nbytes)[1] + SLACK)
        elif node.op.name == "constant":
            name = f"constant_{content_digest(node.attrs['value'])}"
            buffers[node] = Buffer(name, "constant", node.tensor_type, Layout.rows(node.ndim))
    return buffers, state


def content_digest(array: Array) -> str:
    """A name for an array's content, element type and shape."""
    head = f"{array.dtype.str}{array.shape}".encode()
    return hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def _spent(
    group: Group,
    number: int,
    buffers: Mapping[Node, Buffer],
    layouts: Mapping[Node, Layout],
    last_use: Mapping[Node, int],
    owner: Mapping[Node, Node],
) -> Node | None:
    """A value that a contraction adds as it stores, and that nobody reads later: the result takes
    its place, element by element.
    """
    if group.anchor.op.kind is not Kind.CONTRACT:
        return None
    out, anchored = group.outputs[0], {owner.get(n, n) for n in group.anchor.inputs}
    for node in group.inputs:
        own = node in buffers and owner.get(node) is node and buffers[node].role == "arena"
        alike = own and node.type == out.type and buffers[node].layout == layouts[out]
        if alike and node not in anchored and last_use[node] == number:
            return node
    return None


def _last_uses(groups: Sequence[Group], owner: Mapping[Node, Node]) -> dict[Node, int]:
    last: dict[Node, int] = {}
    for number, group in enumerate(groups):
        for source in group.inputs:
            last[owner.get(source, source)] = number
    return last


class _Arena:
    """Blocks of memory by number, each with its bytes and the first and last group of its life."""

    def __init__(self) -> None:
        self.blocks: list[tuple[int, int, int]] = []

    def add(self, nbytes: int, first: int, last: int) -> int:
        """The number of a new block that lives from group ``first`` to ``last``, both included."""
        self.blocks.append((align(nbytes), first, last))
        return len(self.blocks) - 1

    def extend(self, number: int, last: int) -> None:
        """Let a block live longer."""
        nbytes, first, _ = self.blocks[number]
        self.blocks[number] = (nbytes, first, last)

    def places(self, room: float = 1.0) -> tuple[list[int], int]:
        """The offset of each block, and the end of all, at most ``room`` times what is needed."""
        offsets, size = self._placed(_best_fit)
        most = int(room * size) // ALIGNMENT * ALIGNMENT
        if 0 < size <= CACHED:
            apart, end = self._placed(functools.partial(_least_foreign, most=most))
            if end <= most:
                return apart, end
        return offsets, size

    def _placed(self, choose: Callable[[int, Intervals, Intervals], int]) -> tuple[list[int], int]:
        """Offsets and their end, the largest block first: for each, ``choose`` gets its bytes, the
        intervals in order that are busy while it lives, and all that were placed before.
        """
        offsets, placed, lives = [0] * len(self.blocks), list[tuple[int, int]](), list[Any]()
        for number in sorted(range(len(self.blocks)), key=lambda i: (-self.blocks[i][0], i)):
            nbytes, first, last = self.blocks[number]
            busy = [at for at, (f, l) in zip(placed, lives) if f <= last and first <= l]
            offsets[number] = offset = choose(nbytes, sorted(busy), placed)
            placed.append((offset, offset + nbytes))
            lives.append((first, last))
        return offsets, max((end for _, end in placed), default=0)


def _best_fit(nbytes: int, busy: Intervals, placed: Intervals) -> int:
    """The offset of the smallest gap that holds so many bytes."""
    return min(_gaps(nbytes, busy), key=lambda gap: gap[1] - gap[0])[0]


def _least_foreign(nbytes: int, busy: Intervals, placed: Intervals, most: int) -> int:
    """The offset at which the fewest bytes change hands, within the first ``most`` if it can: where
    a gap begins or ends, or where the middle meets that of another block.
    """
    others = np.array(placed[:WEIGHTY], np.int64).reshape(-1, 2)
    gaps = [(low, min(high, max(most, low + nbytes)) - nbytes) for low, high in _gaps(nbytes, busy)]
    meeting = align((others.sum(axis=1) - nbytes) // 2)
    inside = [meeting[(low <= meeting) & (meeting <= high)] for low, high in gaps]
    choices = np.concatenate([*gaps, *inside])
    beyond = np.maximum(choices + nbytes - most, 0)
    foreign = _foreign(choices, nbytes, others)
    return int(choices[np.lexsort((choices, foreign, beyond))[0]])


def _gaps(nbytes: int, busy: Intervals) -> Iterator[tuple[int, int]]:
    """The gaps of at least so many bytes between intervals in order, and all behind them."""
    cursor = 0
    for offset, end in busy:
        if offset - cursor >= nbytes:
            yield cursor, offset
        cursor = max(cursor, end)
    yield cursor, sys.maxsize


def _foreign(choices: Array, nbytes: int, others: Array) -> Array:
    """For each offset of a block, how many of its bytes lie in one half of it and in the other half
    of another block.
    """
    starts, ends = others.T
    middles, theirs = choices[:, None] + nbytes // 2, (starts + ends) // 2
    low = np.maximum(np.maximum(choices[:, None], starts), np.minimum(middles, theirs))
    high = np.minimum(np.minimum(choices[:, None] + nbytes, ends), np.maximum(middles, theirs))
    return np.maximum(high - low, 0).sum(axis=1)
