"""Layered layout of a directed acyclic graph of boxes: where each box stands, where each edge runs.

Four steps, after Sugiyama, Tagawa and Toda (1981): layers, order within the layers, horizontal
places, edges. Equal graphs give equal drawings: nothing depends on hashes or on time.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import networkx as nx

GAP_X, GAP_Y = 24.0, 46.0  # between boxes of a layer, and between layers
LANE = 10.0  # width kept free for an edge that passes through a layer
SWEEPS = 12  # of ordering; the best of them is taken

Point = tuple[float, float]
Edge = tuple[int, int]


@dataclass(frozen=True)
class Layout:
    """Places of boxes and edges, from (0, 0) on.

    Attributes
    ----------
    centres : mapping of int to (x, y)
        The middle of each box.
    paths : mapping of (int, int) to points
        The way of each edge from the bottom of a box to the top of another, downward throughout.
    shortcuts : frozenset of (int, int)
        Edges beside which there is a longer way, such as skip connections.
    width, height : float
    """

    centres: Mapping[int, Point]
    paths: Mapping[Edge, tuple[Point, ...]]
    shortcuts: frozenset[Edge]
    width: float
    height: float


def layout(sizes: Sequence[Point], edges: Sequence[Edge]) -> Layout:
    """Place boxes in layers, each below all that it depends on.

    Parameters
    ----------
    sizes : sequence of (width, height)
        Of box 0, 1, 2 and so on, numbered in topological order.
    edges : sequence of (int, int)
        From box to box.
    """
    graph = nx.DiGraph()
    graph.add_nodes_from(range(len(sizes)))
    graph.add_edges_from(edges)
    layer = _layers(graph)
    chains = _chains(layer, edges, len(sizes))
    lanes = sum(len(chain) - 2 for chain in chains.values())
    widths = [size[0] for size in sizes] + [LANE] * lanes
    rows = _rows(layer, chains)
    links = [pair for chain in chains.values() for pair in itertools.pairwise(chain)]
    rows = _ordered(rows, links)
    x = _columns(rows, links, widths)
    tops, heights = _heights(rows, sizes)
    height = tops[-1] + heights[-1] if tops else 0.0
    row_of = {node: number for number, row in enumerate(rows) for node in row}

    def point(node: int, place: float) -> Point:
        """At the top (0), the middle (0.5) or the bottom (1) of a box, or of an edge's lane."""
        row = row_of[node]
        size = sizes[node][1] if node < len(sizes) else heights[row]
        middle = tops[row] + heights[row] / 2
        return x[node], middle + (place - 0.5) * size

    paths = {
        edge: (
            point(chain[0], 1.0),
            *(point(lane, place) for lane in chain[1:-1] for place in (0.0, 1.0)),
            point(chain[-1], 0.0),
        )
        for edge, chain in chains.items()
    }
    width = max((x[node] + widths[node] / 2 for row in rows for node in row), default=0.0)
    centres = {node: point(node, 0.5) for node in range(len(sizes))}
    spine = set(nx.transitive_reduction(graph).edges)
    return Layout(centres, paths, frozenset(set(edges) - spine), width, height)


def _layers(graph: nx.DiGraph) -> dict[int, int]:
    """The layer of each box: as high as it can be, and a source just above its first reader."""
    layer = {n: i for i, row in enumerate(nx.topological_generations(graph)) for n in row}
    for node in graph:
        readers = [layer[reader] for reader in graph.successors(node)]
        if readers and not graph.in_degree(node):
            layer[node] = min(readers) - 1
    return layer


def _chains(
    layer: Mapping[int, int], edges: Sequence[Edge], first_lane: int
) -> dict[Edge, list[int]]:
    """Each edge as a chain through all layers that it crosses; lanes count on from the boxes."""
    chains: dict[Edge, list[int]] = {}
    for a, b in edges:
        crossed = layer[b] - layer[a] - 1
        chains[a, b] = [a, *range(first_lane, first_lane + crossed), b]
        first_lane += crossed
    return chains


def _rows(layer: Mapping[int, int], chains: Mapping[Edge, Sequence[int]]) -> list[list[int]]:
    rows: list[list[int]] = [[] for _ in range(max(layer.values(), default=-1) + 1)]
    for node, row in sorted(layer.items()):
        rows[row].append(node)
    for (a, _), chain in chains.items():
        for step, lane in enumerate(chain[1:-1], start=1):
            rows[layer[a] + step].append(lane)
    return rows


def _ordered(rows: list[list[int]], links: Sequence[Edge]) -> list[list[int]]:
    """The order within each layer with the fewest crossings that sweeps of barycentres find."""
    above, below = _neighbours(links)
    best, fewest = rows, _crossings(rows, below)
    rows = [list(row) for row in rows]
    for sweep in range(SWEEPS):
        downward = sweep % 2 == 0
        order = range(1, len(rows)) if downward else range(len(rows) - 2, -1, -1)
        for number in order:
            fixed = rows[number - 1 if downward else number + 1]
            place = {node: i for i, node in enumerate(fixed)}
            rows[number] = _by_barycentre(rows[number], place, above if downward else below)
        crossings = _crossings(rows, below)
        if crossings < fewest:
            best, fewest = [list(row) for row in rows], crossings
    return best


def _neighbours(links: Sequence[Edge]) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
    above: dict[int, list[int]] = {}
    below: dict[int, list[int]] = {}
    for a, b in links:
        above.setdefault(b, []).append(a)
        below.setdefault(a, []).append(b)
    return above, below


def _by_barycentre(
    row: Sequence[int], place: Mapping[int, int], neighbours: Mapping[int, Sequence[int]]
) -> list[int]:
    def key(item: tuple[int, int]) -> float:
        position, node = item
        places = [place[other] for other in neighbours.get(node, ())]
        return sum(places) / len(places) if places else position

    return [node for _, node in sorted(enumerate(row), key=key)]


def _crossings(rows: Sequence[Sequence[int]], below: Mapping[int, Sequence[int]]) -> int:
    total = 0
    for row, next_row in itertools.pairwise(rows):
        place = {node: i for i, node in enumerate(next_row)}
        ends = [sorted(place[other] for other in below.get(node, ())) for node in row]
        flat = [end for group in ends for end in group]
        total += sum(a > b for i, a in enumerate(flat) for b in flat[i + 1 :])
    return total


def _columns(
    rows: Sequence[Sequence[int]], links: Sequence[Edge], widths: Sequence[float]
) -> dict[int, float]:
    """Horizontal places: near the mean of the neighbours, in order, at least a gap apart."""
    above, below = _neighbours(links)
    x: dict[int, float] = {}
    for row in rows:
        x |= _spread(row, [0.0] * len(row), widths)
    for sweep in range(SWEEPS):
        downward = sweep % 2 == 0
        for row in rows if downward else reversed(rows):
            near = above if downward else below
            wanted = [_mean([x[other] for other in near.get(n, ())], x[n]) for n in row]
            x |= _spread(row, wanted, widths)
    left = min((x[node] - widths[node] / 2 for row in rows for node in row), default=0.0)
    return {node: place - left for node, place in x.items()}


def _mean(values: Sequence[float], default: float) -> float:
    return sum(values) / len(values) if values else default


def _spread(
    row: Sequence[int], wanted: Sequence[float], widths: Sequence[float]
) -> dict[int, float]:
    """The places nearest to ``wanted`` (least squares) that leave the gaps: isotonic regression."""
    offsets = [0.0]
    for a, b in itertools.pairwise(row):
        offsets.append(offsets[-1] + (widths[a] + widths[b]) / 2 + GAP_X)
    blocks: list[tuple[float, int]] = []  # mean and number of neighbours that move as one
    for want, offset in zip(wanted, offsets):
        mean, count = want - offset, 1
        while blocks and blocks[-1][0] > mean:
            other, more = blocks.pop()
            mean, count = (mean * count + other * more) / (count + more), count + more
        blocks.append((mean, count))
    starts = [mean for mean, count in blocks for _ in range(count)]
    return {node: s + offset for node, s, offset in zip(row, starts, offsets)}


def _heights(
    rows: Sequence[Sequence[int]], sizes: Sequence[Point]
) -> tuple[list[float], list[float]]:
    heights = [max((sizes[n][1] for n in row if n < len(sizes)), default=0.0) for row in rows]
    tops = [sum(heights[:i]) + i * GAP_Y for i in range(len(rows))]
    return tops, heights
