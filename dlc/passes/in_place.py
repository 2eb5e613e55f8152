"""In place: let new values of parameters and buffers be written over the old ones.

A kernel may do so if it reads the old value at most where it writes the new one, and if every other
reader has run before. Where that cannot be, the new value is written elsewhere and copied at the
end. Kernels that may find an error come before all of them, so that an error leaves everything as
it was.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import replace

from dlc.ir.graph import Graph
from dlc.ir.node import Node
from dlc.ir.op import Kind
from dlc.ir.plan import Layout
from dlc.ir.schedule import Group, in_order
from dlc.ir.sizes import Size

#: Ops whose result has no other values than their operand.
SAME_VALUES = ("again", "expand", "reshape", "transpose")


def with_own_values(graph: Graph) -> Graph:
    """The graph with every new value of a parameter computed by a node of its own, which is nothing
    else; a new value of an input is an ordinary result.
    """
    owned = {node.name for node in graph.parameters}
    graph = replace(graph, aliases={i: n for i, n in graph.aliases.items() if n in owned})
    plain = {node for i, node in enumerate(graph.outputs) if i not in graph.aliases}
    outputs, taken = list(graph.outputs), set[Node]()
    changing = set(graph.aliases.values())
    for number, value in enumerate(graph.outputs):
        leaf, name = _shown(value), graph.aliases.get(number, f"output {number}")
        copied = value in plain or value in taken or leaf.op.kind is Kind.LEAF
        if copied if number in graph.aliases else leaf.name in changing:
            outputs[number] = value.builder.node("assign", (value,), {"name": name}, value.origins)
        if number in graph.aliases:
            taken.add(outputs[number])
    return replace(graph, outputs=tuple(outputs))


def _shown(node: Node) -> Node:
    """The value whose elements a node shows in their order."""
    while node.op.name == "reshape":
        node = node.inputs[0]
    return node


def settle(
    graph: Graph, groups: Sequence[Group], layouts: Mapping[Node, Layout]
) -> tuple[tuple[Group, ...], dict[Node, Layout]]:
    """Say of each new value whether it takes the place of the old one, and order the groups so that
    it can; copies come last.

    Returns
    -------
    tuple of Group
        With ``in_place`` set.
    dict of Node to Layout
        Of the copies too.
    """
    order = _Order(groups)
    places = dict(layouts)
    leaves = {node.name: node for node in graph.parameters}
    copies = []
    for number, name in graph.aliases.items():
        value, leaf = graph.outputs[number], leaves[name]
        writer = order.maker[value]
        shown = order.shown(leaf)
        fits = layouts[value] == layouts[leaf] and _rewrites(groups[writer], value, shown)
        if fits and order.put_behind(writer, order.readers(shown)):
            order.place[writer].append((value, leaf))
        else:
            copy = value.builder.node("assign", (value,), {"name": f"{name}.next"}, value.origins)
            places[copy] = layouts[leaf]
            copies.append(Group(copy, (copy,), (copy,), in_place=((copy, leaf),)))
    return (*order.groups(), *copies), places


def _rewrites(group: Group, value: Node, shown: Collection[Node]) -> bool:
    """Whether a group that writes ``value`` reads the old one, of which all of these show the
    elements, at most at the element it writes.
    """
    if group.view:
        return False
    users = [node for node in group.inside if not set(node.inputs).isdisjoint(shown)]
    if not users:
        return True
    through = set(users)
    for node in group.inside:
        if through & set(node.inputs):
            through.add(node)
    plain = all(node.op.kind is Kind.POINTWISE or node.op.name == "relayout" for node in through)
    return plain and all(node.shape == value.shape for node in through)


def checks(groups: Sequence[Group]) -> list[int]:
    """The groups that may find an error which none before them has found: where something was
    looked up, its gradient can be added.
    """
    found, known = list[int](), set[tuple[Node, Size]]()
    for number, group in enumerate(groups):
        own = checked(group.inside)
        if not own <= known:
            found.append(number)
        known |= own
    return found


def checked(nodes: Iterable[Node]) -> set[tuple[Node, Size]]:
    """What ops check: values, and how many places there are for them."""
    return {_checked(node) for node in nodes if node.op.checks}


def _checked(node: Node) -> tuple[Node, Size]:
    values = node.inputs[min(1, len(node.inputs) - 1)]
    while values.op.name in SAME_VALUES:
        values = values.inputs[0]
    return values, node.inputs[0].shape[node.attrs["axis"]] if "axis" in node.attrs else 0


class _Order:
    """Groups by number, what each waits for, and which new values take whose place."""

    def __init__(self, groups: Sequence[Group]):
        self._groups = groups
        self.maker = {node: i for i, group in enumerate(groups) for node in group.outputs}
        self.place: list[list[tuple[Node, Node]]] = [[] for _ in groups]
        self._reads = [set(group.inputs) for group in groups]
        self._waits = [
            {self.maker[node] for node in reads if node in self.maker} for reads in self._reads
        ]
        self._checks = checks(groups)

    def shown(self, leaf: Node) -> set[Node]:
        """A leaf and the views of it."""
        shown = {leaf}
        for group, reads in zip(self._groups, self._reads, strict=True):
            if group.view and shown & reads:
                shown.update(group.outputs)
        return shown

    def readers(self, nodes: Set[Node]) -> set[int]:
        """The groups that read any of these."""
        return {i for i, reads in enumerate(self._reads) if nodes & reads}

    def put_behind(self, writer: int, readers: Iterable[int]) -> bool:
        """Let ``writer`` wait for ``readers`` and for every check; False if one waits for it, or it
        is itself one, which would find its error too late.
        """
        before = {*readers, *self._checks} - {writer}
        if writer in self._checks or self._depends(before, writer):
            return False
        self._waits[writer] |= before
        return True

    def _depends(self, numbers: Iterable[int], on: int) -> bool:
        seen, near = set[int](), list(numbers)
        while near:
            number = near.pop()
            if number == on:
                return True
            if number not in seen:
                seen.add(number)
                near += self._waits[number]
        return False

    def groups(self) -> list[Group]:
        """In an order that keeps every wait, and else the one they came in."""
        order = in_order(dict(enumerate(self._waits)))
        return [replace(self._groups[i], in_place=tuple(self.place[i])) for i in order]
