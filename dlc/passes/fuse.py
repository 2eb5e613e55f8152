"""Fuse: decide which nodes one kernel computes and which values are written to memory.

A contraction or window takes the pointwise work behind it into its store. A reduction takes its
pointwise neighbours, so that softmax and layer norm are one kernel. Everything else is computed
where it is read, unless two kernels would repeat it. Each group is convex: no value leaves it and
comes back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from graphlib import TopologicalSorter
from typing import Any

from dlc.ir.graph import Graph
from dlc.ir.node import Node
from dlc.ir.op import Kind
from dlc.ir.plan import Layout
from dlc.ir.schedule import Group
from dlc.ir.sizes import Size

#: The contraction whose store can take the maximum of each 2x2, but reads no operand as large as
#: its result.
POOLS_AT_STORE = "conv2d_planes"
#: Ops whose elements lie where data says: their source must be in memory, everything else about
#: them is a loop.
INDIRECT = ("take", "gather")
#: Leaves that are computed where they are read.
COMPUTED = ("iota", "size")
_READS_MEMORY = (Kind.CONTRACT, Kind.WINDOW, Kind.OPAQUE, Kind.SCAN)


def reads_memory(node: Node) -> bool:
    """Whether the kernel of a node takes its operands from memory, so that nothing before it joins
    it.
    """
    return node.op.kind in _READS_MEMORY and node.op.name not in INDIRECT


def fuse(graph: Graph, layouts: Mapping[Node, Layout]) -> tuple[Group, ...]:
    """The groups of a graph, each after those that it reads."""
    groups = _siblings(_Fusion(graph, layouts).groups(), layouts)
    return _with_views(groups, graph, layouts)


def _siblings(groups: Sequence[Group], layouts: Mapping[Node, Layout]) -> tuple[Group, ...]:
    """Neighbouring groups that walk the same elements made one, so that what both read is read
    once.
    """
    merged: list[Group] = []
    for group in groups:
        if merged and _same_walk(merged[-1], group, layouts):
            first = merged.pop()
            inside = dict.fromkeys((*first.inside, *group.inside))
            group = Group(first.anchor, tuple(inside), (*first.outputs, *group.outputs))
        merged.append(group)
    return tuple(merged)


def _same_walk(first: Group, second: Group, layouts: Mapping[Node, Layout]) -> bool:
    """Whether two groups can share their loops: pointwise ones of one shape and layout, or
    reductions of one value over the same axes that do not read each other.
    """
    kinds = {group.anchor.op.kind for group in (first, second)}
    if kinds == {Kind.POINTWISE}:
        a, b = first.outputs[0], second.outputs[0]
        pointwise = all(node.op.kind is Kind.POINTWISE for node in (*first.inside, *second.inside))
        alike = a.shape == b.shape and layouts[a] == layouts[b] and _shares(first, second)
        return (
            pointwise
            and alike
            and all(n.shape == a.shape for n in second.inputs if n in first.outputs_set)
        )
    if kinds == {Kind.REDUCE}:
        a, b = first.anchor, second.anchor
        over = a.inputs[0] is b.inputs[0] and a.attrs.get("axes", ()) == b.attrs.get("axes", ())
        positions = _position(a) or _position(b)
        apart = not first.outputs_set & set(second.inputs)
        return over and not positions and apart and a.attrs["keepdims"] == b.attrs["keepdims"]
    return False


def _shares(first: Group, second: Group) -> bool:
    """Whether the second group reads something that the first reads or writes."""
    return bool(set(second.inputs) & (set(first.inputs) | first.outputs_set))


def _with_views(
    groups: Sequence[Group], graph: Graph, layouts: Mapping[Node, Layout]
) -> tuple[Group, ...]:
    """The groups, with each reshape that moves nothing marked as a view of its input.

    A user's result is fresh memory: it shows no argument, and no memory of another result.
    """
    ends, owner, given = set(graph.outputs), {}, set()
    marked = []
    for group in groups:
        root = group.outputs[0]
        view = root.op.name == "reshape" and len(group.inside) == 1
        if view:
            source = root.inputs[0]
            base = owner.get(source, source)
            free = base.op.kind is not Kind.LEAF and base not in given
            view = layouts[source].plain and layouts[root].plain and (root not in ends or free)
            owner[root] = base if view else root
        if root in ends:
            given.add(owner.get(root, root))
        marked.append(replace(group, view=view))
    return tuple(marked)


class _Fusion:
    """The state of one fusion: ``home[node]`` is the set of group roots in whose kernels a node is
    computed.
    """

    def __init__(self, graph: Graph, layouts: Mapping[Node, Layout]):
        self.graph = graph
        self.layouts = layouts
        self.nodes = graph.nodes
        self.place = {node: i for i, node in enumerate(self.nodes)}
        self.users = graph.users()
        self.ends = set(graph.outputs)
        self.home: dict[Node, set[Node]] = {}
        self.anchors: dict[Node, Node] = {}  # root -> anchor
        self.written: dict[Node, list[Node]] = {}  # root -> outputs
        self.reductions: dict[Any, dict[Node, None]] = {}  # by the shape that they reduce
        for node in self.nodes:
            if node.op.kind is Kind.REDUCE and node.attrs["keepdims"] and not _position(node):
                self.reductions.setdefault(node.inputs[0].shape, {})[node] = None

    def groups(self) -> tuple[Group, ...]:
        backward = list(reversed(self.nodes))
        for node in backward:
            if node.op.name == POOLS_AT_STORE:
                self._open(node, self._pooled_chain(self._store_chain(node)))
        for node in backward:
            if reads_memory(node) and node not in self.home:
                self._open(node, self._store_chain(node))
        for node in backward:
            if node.op.kind is Kind.POINTWISE and node not in self.home:
                self._row_cluster(node)
        for node in backward:
            if node.op.kind is Kind.REDUCE and node not in self.home:
                self._open(node, self._store_chain(node))
        for node in backward:
            if node not in self.home and (
                node.op.kind is not Kind.LEAF or self._must_be_written(node)
            ):
                self._inline_or_open(node)
        return self._ordered()

    # A kernel is known by its root, the last node that it computes.
    def _open(self, anchor: Node, chain: Sequence[Node]) -> None:
        root = chain[-1]
        self.anchors[root] = anchor
        self.written[root] = [root]
        for node in chain:
            self.home[node] = {root}

    def _store_chain(self, anchor: Node) -> list[Node]:
        """``anchor`` and the pointwise nodes behind it that can be computed as its result is
        stored.

        Later anchors choose first: of two convolutions that meet in an addition, the later one
        adds.
        """
        chain = [anchor]
        while (value := chain[-1]) not in self.ends and len(self.users[value]) == 1:
            user = self.users[value][0]
            free = (
                user.op.kind is Kind.POINTWISE
                and user not in self.home
                and user.shape == value.shape
            )
            if not free or not self._store_operands(anchor, user, value):
                break
            chain.append(user)
        return chain

    def _pooled_chain(self, chain: list[Node]) -> list[Node]:
        """The chain with the 2x2 maximum behind it, if that is all that reads it."""
        users = self.users[chain[-1]]
        if len(users) == 1 and chain[-1] not in self.ends and _halves(users[0]):
            chain.append(users[0])
        return chain

    def _store_operands(self, anchor: Node, user: Node, value: Node) -> bool:
        """Whether the other operands of ``user`` can be read where ``anchor`` stores an element."""
        if anchor.op.kind in (Kind.OPAQUE, Kind.SCAN):
            return False
        if anchor.op.kind is not Kind.CONTRACT:
            return True
        others = [source for source in user.inputs if source is not value]
        return all(n.dtype == anchor.dtype for n in (*others, user)) and all(
            self._storable(anchor, n, value) for n in others
        )

    def _storable(self, anchor: Node, operand: Node, value: Node) -> bool:
        """Whether a contraction that stores ``value`` can read ``operand``: a scalar, one value a
        channel, or all.
        """
        if operand.op.name == "constant" and operand.tensor_type.count == 1:
            return True
        if is_column(operand, value):
            return True
        same = operand.shape == value.shape and anchor.op.name != POOLS_AT_STORE
        return same and self.layouts[operand].order == self.layouts[value].order

    def _row_cluster(self, root: Node) -> None:
        """Open a kernel of several reductions over the same axes with the pointwise work between,
        if ``root`` ends one.
        """
        nearest = reversed(self.reductions.get(root.shape, ()))
        for axes in dict.fromkeys(node.attrs["axes"] for node in nearest):
            cluster = self._row_ancestors(root, axes)
            anchor = next((node for node in cluster if node.op.kind is Kind.REDUCE), None)
            if anchor is not None:
                self._open(anchor, cluster)
                return

    def _row_ancestors(self, root: Node, axes: Sequence[int]) -> list[Node]:
        """``root`` and what only it needs: reductions over ``axes``, and pointwise nodes of whole
        rows or of one element a row.
        """
        cluster, near = {root}, set(root.inputs)
        while near:
            node = max(
                near, key=self.place.__getitem__
            )  # so that its readers were looked at before
            near.remove(node)
            if self._joins_rows(node, cluster, root.shape, axes):
                cluster.add(node)
                near.update(node.inputs)
        return sorted(cluster, key=self.place.__getitem__)

    def _joins_rows(
        self, node: Node, cluster: set[Node], full: Sequence[Size], axes: Sequence[int]
    ) -> bool:
        if node.op.kind is Kind.LEAF or node in self.ends or node in self.home:
            return False
        if not cluster.issuperset(self.users[node]):
            return False
        if node.op.kind is Kind.REDUCE:
            return node in self.reductions.get(full, ()) and node.attrs["axes"] == axes
        return node.op.kind is Kind.POINTWISE and _row_shape(node.shape, full, axes)

    def _inline_or_open(self, node: Node) -> None:
        roots = {root for user in self.users[node] for root in self.home[user]}
        if node in self.ends or self._needs_memory(node):
            self._open(node, [node])
        elif len(roots) == 1 or (node.op.kind is Kind.MOVE and _free(node)):
            self.home[node] = roots
        else:
            self._open(node, [node])

    def _must_be_written(self, leaf: Node) -> bool:
        """Whether a leaf that has no memory of its own needs some."""
        return leaf.op.name in COMPUTED and (leaf in self.ends or self._needs_memory(leaf))

    def _needs_memory(self, node: Node) -> bool:
        """Whether some reader takes the value from memory, or it is a change of shape that costs
        nothing as a view.
        """
        if (node.op.name == "reshape" and not is_squeeze(node)) or node.op.name == "relayout":
            return True
        return any(self._reads_from_memory(user, node) for user in self.users[node])

    def _reads_from_memory(self, user: Node, node: Node) -> bool:
        if reads_memory(user):
            return True
        if user.op.name == "reshape" and not is_squeeze(user):
            return True
        if user.op.name in INDIRECT and user.inputs[0] is node:
            return True
        return any(self.anchors[root].op.kind is Kind.CONTRACT for root in self.home[user])

    def _ordered(self) -> tuple[Group, ...]:
        inside: dict[Node, list[Node]] = {root: [] for root in self.anchors}
        for node in self.nodes:
            for root in self.home.get(node, ()):
                inside[root].append(node)
        maker = {node: root for root, outputs in self.written.items() for node in outputs}
        waits = TopologicalSorter(
            {
                root: dict.fromkeys(
                    maker[s] for n in nodes for s in n.inputs if s in maker and maker[s] is not root
                )
                for root, nodes in inside.items()
            }
        )
        waits.prepare()
        order: list[Node] = []
        while waits.is_active():
            ready = sorted(waits.get_ready(), key=self.place.__getitem__)
            order += ready
            waits.done(*ready)
        order.sort(key=self._rank(order, maker, inside))
        return tuple(self._group(root, inside[root]) for root in order)

    def _rank(
        self,
        order: Iterable[Node],
        maker: Mapping[Node, Node],
        inside: Mapping[Node, Sequence[Node]],
    ) -> Callable[[Node], tuple[int, int]]:
        """Sort key that keeps dependencies and otherwise follows the graph, so that values die
        early.
        """
        rank: dict[Node, int] = {}
        for root in order:
            before = (
                rank[maker[s]]
                for n in inside[root]
                for s in n.inputs
                if s in maker and maker[s] is not root
            )
            rank[root] = max([self.place[root], *(r + 1 for r in before)])
        return lambda root: (rank[root], self.place[root])

    def _group(self, root: Node, inside: Sequence[Node]) -> Group:
        return Group(self.anchors[root], tuple(inside), tuple(self.written[root]))


def is_column(operand: Node, value: Node) -> bool:
    """Whether ``operand`` holds one value for each output channel (axis 1 of images, the last of
    matrices).
    """
    axis = value.ndim - 3 if value.ndim == 4 else value.ndim - 1
    own = operand.ndim - (value.ndim - axis)
    return (
        own >= 0
        and operand.shape[own] == value.shape[axis]
        and all(size == 1 for i, size in enumerate(operand.shape) if i != own)
    )


def _halves(node: Node) -> bool:
    """Whether a node is the maximum of each 2x2 that fits."""
    if node.op.name != "max_pool2d":
        return False
    attrs = node.attrs
    plain = attrs["padding"] == ((0, 0), (0, 0)) and attrs["dilation"] == (1, 1)
    return plain and attrs["kernel"] == attrs["stride"] == (2, 2) and not attrs["ceil_mode"]


def is_squeeze(node: Node) -> bool:
    """Whether a reshape only adds or drops dimensions of size 1, so that indices map without
    division.
    """
    real = [tuple(size for size in n.shape if size != 1) for n in (node, node.inputs[0])]
    return real[0] == real[1]


def _position(node: Node) -> bool:
    return node.op.reduction is not None and node.op.reduction.position


def _free(node: Node) -> bool:
    """Whether reading through a movement costs no more than reading its result."""
    return node.op.name in ("expand", "transpose", "reshape", "slice")


def _row_shape(shape: Sequence[Size], full: Sequence[Size], axes: Sequence[int]) -> bool:
    """Whether a value varies like the rows of a cluster: the full shape, or the full shape with the
    axes reduced to 1.
    """
    if tuple(shape) == tuple(full):
        return True
    reduced = tuple(1 if axis in axes else size for axis, size in enumerate(full))
    return tuple(shape) == reduced
