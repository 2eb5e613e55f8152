"""Fuse: decide which nodes one kernel computes and which values are written to memory.

A contraction or window takes the pointwise work behind it into its store. A reduction takes its
pointwise neighbours, so that softmax and layer norm are one kernel. Everything else is computed
where it is read, unless two kernels would repeat it. Each group is convex: no value leaves it and
comes back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from graphlib import TopologicalSorter
from typing import Any

from dlc.ir.graph import Graph
from dlc.ir.manager import Pass
from dlc.ir.node import Node
from dlc.ir.op import Kind
from dlc.ir.plan import Layout
from dlc.ir.rewrite import Journal
from dlc.ir.schedule import Group
from dlc.ir.sizes import Size, bounds
from dlc.ops.across import SCALARS_AT_STORE
from dlc.ops.pool import POOL_GRADIENTS
from dlc.passes.decompose import Decompose
from dlc.passes.layout import layouts
from dlc.passes.pipelines import FORMS
from dlc.passes.siblings import merge_siblings
from dlc.passes.updates import join_updates

#: The contraction whose store can take the maximum of each 2x2, but reads no operand as large as
#: its result.
POOLS_AT_STORE = "conv2d_planes"
#: Ops whose elements lie where data says: their source must be in memory, everything else about
#: them is a loop.
INDIRECT = ("take", "gather")
#: Pointwise ops that cost less than reading their result from memory.
CHEAP = frozenset(
    [
        *("abs", "add", "cast", "clamp", "detach", "eq", "ge", "gt", "le", "leaky_relu", "lt"),
        *("logical_and", "logical_not", "logical_or", "maximum", "minimum", "mul", "ne", "neg"),
        *("relu", "sign", "square", "step", "sub", "variable", "where"),
    ]
)
#: Cheap ops that are computed again together.
MOST_AGAIN = 16
#: Pointwise nodes beside a value that are computed with it as it is stored.
MOST_BESIDE = 8
#: Leaves that are computed where they are read.
COMPUTED = ("iota", "size")
_READS_MEMORY = (Kind.CONTRACT, Kind.WINDOW, Kind.OPAQUE, Kind.SCAN)


@dataclass(frozen=True)
class Fuse(Pass):
    """Choose algorithms and layouts, and say which kernel computes each node (`Graph.kernels`)."""

    name = "fuse"

    def run(self, graph: Graph, journal: Journal) -> Graph:
        """The graph in the ops that kernels compute, as its text form tells."""
        for step in (Decompose(), *FORMS):
            graph = step.run(graph, journal)
        told: dict[Node, list[str]] = {}
        groups = (each for each in fuse(graph, layouts(graph)) if not each.view)
        for number, group in enumerate(groups, start=1):
            for node in group.inside:
                told.setdefault(node, []).append(f"kernel {number}, {group.label}")
        return replace(graph, kernels={node: "; ".join(names) for node, names in told.items()})


def reads_memory(node: Node) -> bool:
    """Whether the kernel of a node takes its operands from memory, so that nothing before it joins
    it.
    """
    return node.op.kind in _READS_MEMORY and node.op.name not in INDIRECT


def fuse(graph: Graph, layouts: Mapping[Node, Layout]) -> tuple[Group, ...]:
    """The groups of a graph, each after those that it reads."""
    updates = [graph.outputs[number] for number in graph.aliases]
    groups = merge_siblings(_Fusion(graph, layouts).groups(), layouts, updates)
    return _with_views(join_updates(groups, graph, layouts), graph, layouts)


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
        given.update(owner.get(node, node) for node in group.outputs if node in ends)
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
        self.walk: dict[Node, int] = {}  # how often a node is computed, at most
        self.again: set[Node] = set()  # what might end rows, but is computed in several kernels
        self.costs: dict[Node, bool] = {}  # whether a pointwise node is worth a kernel of its own
        self.reductions: dict[Any, dict[Node, None]] = {}  # by the shape that they reduce
        self.ends_of_rows: dict[Any, dict[Any, None]] = {}  # shape and axes, by what is left
        for node in self.nodes:
            if node.op.kind is Kind.REDUCE and node.attrs["keepdims"] and not _position(node):
                self.reductions.setdefault(node.inputs[0].shape, {})[node] = None
                if _is_behind(node):
                    walk = node.inputs[0].shape, node.attrs["axes"]
                    self.ends_of_rows.setdefault(node.shape, {})[walk] = None

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
                if self._is_repeated(node):
                    self.again.add(node)
                else:
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
            self.walk[node] = _count(node)

    def _store_chain(self, anchor: Node) -> list[Node]:
        """``anchor`` and the pointwise nodes behind it that can be computed as its result is
        stored.

        Later anchors choose first: of two convolutions that meet in an addition, the later one
        adds.
        """
        chain = [anchor]
        while (value := chain[-1]) not in self.ends and self.users[value]:
            more = self._next_stored(anchor, value)
            if not more:
                break
            chain += more
        return chain

    def _next_stored(self, anchor: Node, value: Node) -> list[Node]:
        """The next node of a chain, behind small expressions that it alone reads beside ``value``;
        none if it cannot be stored.
        """
        user = max(self.users[value], key=self.place.__getitem__)
        if not self._free(user, value):
            return []
        if anchor.op.kind is not Kind.CONTRACT:
            alone = len(self.users[value]) == 1 and self._takes(anchor, user)
            return [user] if alone else []
        taken = {user}
        stored = user.dtype == anchor.dtype and all(
            self._beside(anchor, source, value, taken) for source in user.inputs
        )
        whole = stored and taken.issuperset(self.users[value])
        return sorted(taken, key=self.place.__getitem__) if whole else []

    def _beside(self, anchor: Node, node: Node, value: Node, taken: set[Node]) -> bool:
        """Whether a contraction that stores ``value`` can compute ``node`` there, which then is one
        of the ``taken``, or read it.
        """
        if node is value:
            return True
        inner = node not in self.ends and taken.issuperset(self.users[node])
        kind = self._free(node, value) and node.dtype in ("bool", anchor.dtype)
        if inner and kind and len(taken) < MOST_BESIDE and not self._stored_elsewhere(node, value):
            more = {*taken, node}
            if all(self._beside(anchor, source, value, more) for source in node.inputs):
                taken |= more
                return True
        return self._storable(anchor, node, value)

    def _stored_elsewhere(self, node: Node, value: Node) -> bool:
        """Whether a node may join the store of what its operands are made by."""
        near, looked = [node], 0
        while near and looked < MOST_BESIDE:
            looked += 1
            for source in near.pop().inputs:
                if source is value or len(self.users[source]) > 1 or source in self.ends:
                    continue
                if reads_memory(source):
                    return True
                if self._free(source, value):
                    near.append(source)
        return False

    def _free(self, node: Node, value: Node) -> bool:
        """Whether a node computes element by element of ``value``, in no kernel so far."""
        pointwise = node.op.kind is Kind.POINTWISE and node not in self.home
        return pointwise and node.shape == value.shape

    def _pooled_chain(self, chain: list[Node]) -> list[Node]:
        """The chain with the 2x2 maximum behind it, if that is all that reads it."""
        users = self.users[chain[-1]]
        if len(users) == 1 and chain[-1] not in self.ends and _halves(users[0]):
            chain.append(users[0])
        return chain

    def _takes(self, anchor: Node, user: Node) -> bool:
        """Whether a kernel that is no contraction takes pointwise work into its store."""
        if anchor.op.name in POOL_GRADIENTS:  # it adds to its result, so that must be no parameter
            return user.dtype == anchor.dtype and not any(
                n.op.name == "parameter" for n in user.inputs
            )
        return anchor.op.kind not in (Kind.OPAQUE, Kind.SCAN)

    def _storable(self, anchor: Node, operand: Node, value: Node) -> bool:
        """Whether a contraction that stores ``value`` can read ``operand``: a scalar, one value a
        channel, or all.
        """
        if operand.dtype != anchor.dtype:
            return False
        if operand.op.name == "constant" and operand.tensor_type.count == 1:
            return True
        if operand.tensor_type.count == 1 and anchor.op.name in SCALARS_AT_STORE:
            return True
        if is_column(operand, value, self.layouts[value].order[-1]):
            return True
        same = operand.shape == value.shape and anchor.op.name != POOLS_AT_STORE
        return same and self.layouts[operand].order == self.layouts[value].order

    def _row_cluster(self, root: Node) -> None:
        """Open a kernel of several reductions over the same axes with the pointwise work between,
        if ``root`` ends one: of the shape that they reduce, or of what is left of it.
        """
        nearest = reversed(self.reductions.get(root.shape, ()))
        walks = [(root.shape, node.attrs["axes"]) for node in nearest]
        for full, axes in dict.fromkeys([*walks, *self.ends_of_rows.get(root.shape, ())]):
            cluster = self._row_ancestors(root, full, axes)
            sums = [node for node in cluster if node.op.kind is Kind.REDUCE]
            if len(sums) > (full != root.shape):
                self._open(sums[0], cluster)
                return

    def _row_ancestors(self, root: Node, full: Sequence[Size], axes: Sequence[int]) -> list[Node]:
        """``root`` and what only it needs: reductions over ``axes``, and pointwise nodes of whole
        rows or of one element a row.
        """
        cluster, near = {root}, set(root.inputs)
        while near:
            node = max(
                near, key=self.place.__getitem__
            )  # so that its readers were looked at before
            near.remove(node)
            if self._joins_rows(node, cluster, full, axes):
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
            return
        times = max(self._times(user) for user in self.users[node])
        if node.op.kind is Kind.POINTWISE and _count(node) < times and self._costs(node):
            self._open(node, [node])
        elif (
            len(roots) == 1
            or (node.op.kind is Kind.MOVE and _free(node))
            or self._pays_again(node, times, len(roots))
        ):
            self.home[node] = roots
            self.walk[node] = times
        else:
            self._open(node, [node])

    def _times(self, user: Node) -> int:
        """How often a reader asks for an element."""
        return _count(user.inputs[0]) if user.op.kind is Kind.REDUCE else self.walk[user]

    def _costs(self, node: Node) -> bool:
        """Whether a node, or what its kernel would compute for it alone, costs more than reading
        it: it is not to be computed again for each element of something larger.
        """
        if node not in self.costs:
            small = (n for n in node.inputs if n.op.kind is Kind.POINTWISE)
            dear = node.op.name not in CHEAP
            self.costs[node] = dear or any(
                self._costs(n) for n in small if _count(n) == _count(node)
            )
        return self.costs[node]

    def _is_repeated(self, node: Node) -> bool:
        """Whether a node that might end rows will be computed in each of its readers instead."""
        users = self.users[node]
        readers = max(len(users), 2 * any(user in self.again for user in users))
        written = node in self.ends or readers < 2 or self._needs_memory(node)
        return not written and self._pays_again(node, _count(node), readers)

    def _pays_again(self, node: Node, times: int, readers: int) -> bool:
        """Whether to compute a cheap node in each of its readers moves less memory than to write it
        once and read it in each.
        """
        if node.op.kind is not Kind.POINTWISE or _count(node) != times:
            return False
        sources, near, again = set[Node](), [node], set[Node]()
        while near and len(again) < MOST_AGAIN:
            at = near.pop()
            again.add(at)
            for source in at.inputs:
                if source.op.name in CHEAP and source not in again:
                    near.append(source)
                elif _count(source) == times and source not in again:
                    sources.add(source)
        if near or node.op.name not in CHEAP:
            return False
        return len(sources) * readers <= len(sources) + 1 + readers

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
        if user.op.name == "scatter_add" and node.op.name == "expand":
            return False
        if reads_memory(user):
            return True
        if user.op.name == "reshape" and not is_squeeze(user):
            return True
        if user.op.name in INDIRECT and user.inputs[0] is node:
            return True
        homes = self.home.get(user, ())
        return any(self.anchors[root].op.kind is Kind.CONTRACT for root in homes)

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


def is_column(operand: Node, value: Node, axis: int) -> bool:
    """Whether ``operand`` holds one value for each position along ``axis``, the contiguous one."""
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


def _count(node: Node) -> int:
    """Elements of a value, at most."""
    return bounds(node.tensor_type.count)[1]


def _is_behind(node: Node) -> bool:
    """Whether a reduction is over the last axes and leaves others."""
    axes, ndim = node.attrs["axes"], node.inputs[0].ndim
    return tuple(axes) == tuple(range(ndim - len(axes), ndim)) and len(axes) < ndim


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
