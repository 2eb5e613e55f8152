"""Siblings: kernels that walk the same elements made one, so that what both read is read once.

The update of a parameter and of its moments is one kernel that way, and so are the two sums in the
gradient of batch norm, wherever in the schedule they stand.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence

from dlc.ir.node import Node
from dlc.ir.op import Kind
from dlc.ir.plan import Layout
from dlc.ir.schedule import Group, in_order
from dlc.ir.sizes import bounds

#: A kernel with more results would run out of registers.
MOST_RESULTS = 8


def merge_siblings(
    groups: Sequence[Group], layouts: Mapping[Node, Layout], updates: Collection[Node] = ()
) -> tuple[Group, ...]:
    """The groups, each after those that it reads, with siblings merged unless something between
    them would have to run both before and after.

    ``updates`` are new values of parameters: they are written last, and not together with values
    that others wait for.
    """
    return _Merger(groups, layouts, updates).merged()


class _Merger:
    """Groups by number; one that is merged into another leaves its place empty."""

    def __init__(
        self,
        groups: Sequence[Group],
        layouts: Mapping[Node, Layout],
        updates: Collection[Node],
    ):
        self.layouts, self.updates = layouts, set(updates)
        self.groups: dict[int, Group] = dict(enumerate(groups))
        self.reads = {i: set(group.inputs) for i, group in self.groups.items()}
        self.maker = {node: i for i, group in self.groups.items() for node in group.outputs}
        self.waits = {
            i: {self.maker[node] for node in reads if node in self.maker}
            for i, reads in self.reads.items()
        }

    def merged(self) -> tuple[Group, ...]:
        alike: dict[Hashable, list[int]] = {}
        for number in list(self.groups):
            group = self.groups[number]
            walk = _walk(group, self.layouts)
            if walk is None:
                continue
            family = alike.setdefault((walk, self.updates.issuperset(group.outputs)), [])
            first = next((i for i in reversed(family) if self._fits(i, number)), None)
            if first is None:
                family.append(number)
            else:
                self._merge(first, number)
        return tuple(self.groups[i] for i in in_order(self.waits))

    def _fits(self, first: int, second: int) -> bool:
        one, other = self.groups[first], self.groups[second]
        if len(one.outputs) + len(other.outputs) > MOST_RESULTS:
            return False
        made = one.outputs_set
        shared = self.reads[second] & (self.reads[first] | made)
        least = min(2, bounds(one.outputs[0].tensor_type.count)[1])
        if not any(bounds(node.tensor_type.count)[1] >= least for node in shared):
            return False
        if one.anchor.op.kind is Kind.REDUCE:
            full = one.anchor.inputs[0].shape
            fits = not made & self.reads[second] and any(node.shape == full for node in shared)
        else:
            fits = _reads_in_step(other, made)
        return fits and not self._apart(first, second)

    def _apart(self, first: int, second: int) -> bool:
        """Whether the second group waits for the first by way of another one."""
        near, seen = [i for i in self.waits[second] if i != first], set[int]()
        while near:
            number = near.pop()
            if number == first:
                return True
            if number > first and number not in seen:
                seen.add(number)
                near += self.waits[number]
        return False

    def _merge(self, first: int, second: int) -> None:
        one, other = self.groups[first], self.groups.pop(second)
        inside = tuple(dict.fromkeys((*one.inside, *other.inside)))
        self.groups[first] = Group(one.anchor, inside, (*one.outputs, *other.outputs))
        self.reads[first] = (self.reads[first] | self.reads.pop(second)) - one.outputs_set
        self.waits[first] = (self.waits[first] | self.waits.pop(second)) - {first}
        for waits in self.waits.values():
            if second in waits:
                waits.remove(second)
                waits.add(first)


def _walk(group: Group, layouts: Mapping[Node, Layout]) -> Hashable:
    """What two groups must have in common to share their loops; None of one that shares none."""
    out, anchor = group.outputs[0], group.anchor
    kinds = {node.op.kind for node in group.inside}
    if anchor.op.kind is Kind.POINTWISE and kinds <= {Kind.POINTWISE, Kind.MOVE, Kind.LEAF}:
        return ("pointwise", out.shape, layouts[out])
    if anchor.op.kind is not Kind.REDUCE or not anchor.op.reduction or "axes" not in anchor.attrs:
        return None
    sums = [node for node in group.inside if node.op.kind is Kind.REDUCE]
    if len(sums) == 1 and all(node.shape != anchor.inputs[0].shape for node in group.outputs):
        return ("reduce", anchor.inputs[0].shape, anchor.attrs["axes"])
    return None


def _reads_in_step(group: Group, made: set[Node]) -> bool:
    """Whether a group reads each of ``made`` only at the element that it computes."""
    shape, follows = group.outputs[0].shape, set(made)
    for node in group.inside:
        if follows & set(node.inputs):
            if node.op.kind is not Kind.POINTWISE or node.shape != shape:
                return False
            follows.add(node)
    return all(node.shape == shape for node in made & set(group.inputs))
