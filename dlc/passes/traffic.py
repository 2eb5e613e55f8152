"""Traffic: which values of the arena each group reads and writes, and how large they are.

Ordering groups, computing values again and giving them memory all ask how long a value lives; this
is what they ask it of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dlc.ir.graph import Graph
from dlc.ir.node import Node
from dlc.ir.plan import SLACK, Buffer, Layout, align
from dlc.ir.schedule import Group, waits_of
from dlc.ir.sizes import bounds


class Traffic:
    """What groups read and write, by their number.

    Attributes
    ----------
    groups : sequence of Group
    owner : dict of Node to Node
        See `owners`.
    nbytes : dict of Node to int
        Of each value that has memory of its own, what it takes in the arena at most; 0 for results
        of the graph and for new values of parameters, which do not lie there.
    reads, writes : list of tuple of Node
        Those values, of each group.
    waits : list of set of int
        The groups that each waits for.
    """

    def __init__(self, graph: Graph, groups: Sequence[Group], layouts: Mapping[Node, Layout]):
        self.groups, self.owner = groups, owners(groups)
        ends = {self.owner.get(node, node) for node in graph.outputs}
        own = [node for group in groups for node in group.outputs if self.owner[node] is node]
        self.nbytes = {node: 0 if node in ends else arena_bytes(node, layouts) for node in own}
        self.reads = [tuple(self._memory(group.inputs)) for group in groups]
        self.writes = [tuple(n for n in group.outputs if n in self.nbytes) for group in groups]
        self.waits = waits_of(groups)

    def _memory(self, nodes: Sequence[Node]) -> dict[Node, None]:
        """The values of the arena that nodes lie in, each once."""
        lie = (self.owner.get(node, node) for node in nodes)
        return dict.fromkeys(node for node in lie if node in self.nbytes)


def owners(groups: Sequence[Group]) -> dict[Node, Node]:
    """For each written value the one whose memory it lies in: itself, or for views the value that
    they show.
    """
    owner: dict[Node, Node] = {}
    for group in groups:
        for node in group.outputs:
            source = node.inputs[0] if group.view else None
            owner[node] = owner.get(source, source) if source is not None else node
    return owner


def arena_bytes(node: Node, layouts: Mapping[Node, Layout]) -> int:
    """Bytes that a value takes in the arena, at the largest sizes."""
    buffer = Buffer("", "arena", node.tensor_type, layouts[node])
    return align(bounds(buffer.nbytes)[1] + SLACK)
