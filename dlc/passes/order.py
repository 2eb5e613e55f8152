"""Order: run what makes room as soon as it can run, so that values die early.

A graph is walked from its results back, so all gradients for inputs would come before the first
gradient for a weight, and what those read would be kept until the end: every activation of a
training step, and every gradient of one. A kernel behind which no more memory is in use than before
does not wait for its turn.
"""

from __future__ import annotations

from dlc.ir.node import Node
from dlc.ir.schedule import Group
from dlc.passes.traffic import Traffic


def order_groups(traffic: Traffic) -> tuple[Group, ...]:
    """The groups, each behind those that it waits for: in the order that they came in, but for
    those that make room.
    """
    order = _Order(traffic)
    for number in range(len(traffic.groups)):
        if number not in order.done:
            order.take(number)
    return tuple(traffic.groups[i] for i in order.done)


class _Order:
    """Groups by number: those that have run, in order, and who is still to read what."""

    def __init__(self, traffic: Traffic):
        self.traffic = traffic
        self.done: dict[int, None] = {}
        self.readers: dict[Node, list[int]] = {node: [] for node in traffic.nbytes}
        for number, nodes in enumerate(traffic.reads):
            for node in nodes:
                self.readers[node].append(number)
        self.left = {node: len(numbers) for node, numbers in self.readers.items()}

    def take(self, number: int) -> None:
        """Run a group, and behind it whatever then makes room."""
        self._run(number)
        recent = [number]
        while recent:
            ready = next((i for i in self._beside(recent[-1]) if self._makes_room(i)), None)
            if ready is None:
                recent.pop()
            else:
                self._run(ready)
                recent.append(ready)

    def _run(self, number: int) -> None:
        self.done[number] = None
        for node in self.traffic.reads[number]:
            self.left[node] -= 1

    def _beside(self, number: int) -> list[int]:
        """The groups that read what a group reads or writes."""
        nodes = (*self.traffic.reads[number], *self.traffic.writes[number])
        return sorted({i for node in nodes for i in self.readers[node]})

    def _makes_room(self, number: int) -> bool:
        """Whether a group can run now and leaves less memory in use, or writes none of the arena's
        and leaves no more.
        """
        if number in self.done or not self._waits_for_none_but(number):
            return False
        reads, writes = self.traffic.reads[number], self.traffic.writes[number]
        freed = sum(self.traffic.nbytes[node] for node in reads if self.left[node] == 1)
        kept = sum(self.traffic.nbytes[node] for node in writes if not self._is_spent(node, number))
        return kept < freed or not any(self.traffic.nbytes[node] for node in writes)

    def _waits_for_none_but(self, number: int, other: int | None = None) -> bool:
        return all(i in self.done or i == other for i in self.traffic.waits[number])

    def _is_spent(self, node: Node, maker: int) -> bool:
        """Whether all that reads a value can run behind its maker, and leaves nothing in memory."""
        readers = self.readers[node]
        return all(
            self._waits_for_none_but(i, maker)
            and not any(self.traffic.nbytes[n] for n in self.traffic.writes[i])
            for i in readers
        )
