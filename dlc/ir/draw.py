"""Draw a graph as SVG: boxes by kind of op, shapes on the edges, what they come from in the boxes.

A picture answers at a glance what a page of text does not: what is a chain, where it branches, what
a pass has merged. Weights would fill most of it, so what depends on parameters alone stands as a
line in the box that reads it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from dlc.ir.graph import Graph, is_parametric, topological
from dlc.ir.layers import Edge, Layout, Point, layout
from dlc.ir.node import Node
from dlc.ir.op import Kind
from dlc.ir.sizes import Size
from dlc.ir.types import TupleType

FONT = 12.0  # pixels
LETTER = 0.602 * FONT  # width of a letter of the fixed-width fonts below
LEADING = 16.0  # from line to line
PADDING = 10.0  # from a box to its text
MARGIN = 28.0  # around the drawing
LONGEST = 44  # letters of a line; the rest shows when the mouse rests on the box

#: Fill and line of each kind of op.
COLOURS: Mapping[Kind, tuple[str, str]] = {
    Kind.LEAF: ("#f4f4f5", "#71717a"),
    Kind.POINTWISE: ("#dcfce7", "#16a34a"),
    Kind.MOVE: ("#fef9c3", "#ca8a04"),
    Kind.REDUCE: ("#ffedd5", "#ea580c"),
    Kind.CONTRACT: ("#dbeafe", "#2563eb"),
    Kind.WINDOW: ("#ede9fe", "#7c3aed"),
    Kind.SCAN: ("#cffafe", "#0891b2"),
    Kind.COMPOSITE: ("#fce7f3", "#db2777"),
    Kind.OPAQUE: ("#fee2e2", "#dc2626"),
}
EDGE, SHORTCUT = "#52525b", "#c2410c"


def draw(graph: Graph, path: str | Path, *, parametric: bool = False) -> None:
    """Write the drawing of a graph to a file.

    Parameters
    ----------
    graph : Graph
    path : path
        Of the SVG file.
    parametric : bool
        Draw boxes for parameters, constants and what is computed from them alone, too.
    """
    Path(path).write_text(svg(graph, parametric=parametric), encoding="utf-8")


def svg(graph: Graph, *, parametric: bool = False) -> str:
    """The drawing of a graph as the text of an SVG file; equal graphs give equal texts."""
    boxes, edges = _boxes(graph, parametric)
    plan = layout([box.size for box in boxes], edges)
    legend = _Legend(graph, boxes, bool(plan.shortcuts))
    shift = legend.height + GAP
    width = max(plan.width, legend.width) + 2 * MARGIN
    height = plan.height + shift + 2 * MARGIN
    body = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" font-size="{FONT:g}" '
        'font-family="DejaVu Sans Mono, Menlo, Consolas, monospace">',
        _MARKERS,
        '<rect width="100%" height="100%" fill="white"/>',
        f'<g transform="translate({MARGIN:g} {MARGIN:g})">',
        *legend.draw(),
        f'<g transform="translate({(width - 2 * MARGIN - plan.width) / 2:.1f} {shift:g})">',
        *_draw_edges(boxes, plan),
        *(line for n, box in enumerate(boxes) for line in box.draw(plan.centres[n])),
        "</g>",
        "</g>",
        "</svg>",
    ]
    return "\n".join(body) + "\n"


GAP = 34.0  # between legend and drawing


# Boxes.


@dataclass(frozen=True)
class _Box:
    """One box: a title, lines below it, and what leaves it."""

    title: str
    lines: tuple[str, ...]
    kind: Kind
    shape: str
    tooltip: str
    rounded: bool = False

    @property
    def size(self) -> Point:
        longest = max(len(_cut(text)) for text in (self.title, *self.lines))
        height = LEADING * (1 + len(self.lines)) + PADDING
        return longest * LETTER + 2 * PADDING, height

    def draw(self, centre: Point) -> Iterator[str]:
        fill, line = COLOURS[self.kind]
        width, height = self.size
        x, y = centre[0] - width / 2, centre[1] - height / 2
        radius = height / 2 if self.rounded else 4
        yield f"<g><title>{_xml(self.tooltip)}</title>"
        yield (
            f'<rect class="box" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" '
            f'rx="{radius:g}" fill="{fill}" stroke="{line}" stroke-width="1.3"/>'
        )
        for number, text in enumerate((self.title, *self.lines)):
            style = 'font-weight="bold" fill="#18181b"' if number == 0 else 'fill="#52525b"'
            down = y + PADDING / 2 + LEADING * (number + 0.75)
            yield _text(centre[0], down, _cut(text), f'text-anchor="middle" {style}')
        yield "</g>"


def _boxes(graph: Graph, parametric: bool) -> tuple[list[_Box], list[Edge]]:
    """The boxes in topological order, and the edges between them."""
    known: dict[Node, bool] = {}
    for node in graph.nodes:
        known[node] = is_parametric(node, known)
    always = {*graph.inputs, *graph.outputs}
    drawn = [n for n in graph.nodes if parametric or not known[n] or n in always]
    number = {node: i for i, node in enumerate(drawn)}
    boxes = [_node_box(node, number) for node in drawn]
    edges = [
        (number[source], number[node])
        for node in drawn
        for source in dict.fromkeys(node.inputs)
        if source in number
    ]
    for i, (name, node) in enumerate(zip(graph.output_names, graph.outputs)):
        alias = graph.aliases.get(i)
        lines = (f"new value of {alias}",) if alias else ()
        edges.append((number[node], len(boxes)))
        boxes.append(_Box(name, lines, Kind.LEAF, "", f"output {name}: {node.type}", True))
    return boxes, edges


def _node_box(node: Node, drawn: Mapping[Node, int]) -> _Box:
    attrs = ", ".join(f"{name}={value}" for name, value in node.attrs.items() if name != "value")
    tooltip = f"{node.describe()}\n{attrs}"
    if node.name is not None:
        role = "" if node.op.name == "input" else str(node.attrs["role"])
        return _Box(node.name, (role,) if role else (), Kind.LEAF, _shape(node), tooltip, True)
    modules = sorted({origin.module for origin in node.origins if origin.module})
    lines = [", ".join(modules)] if modules else []
    lines += [text] if (text := _attributes(node)) else []
    within = f"{modules[0]}." if len(modules) == 1 else ""
    lines += [_operand(n, within) for n in dict.fromkeys(node.inputs) if n not in drawn]
    return _Box(node.op.name, tuple(lines), node.op.kind, _shape(node), tooltip)


def _shape(node: Node) -> str:
    elements = node.type.elements if isinstance(node.type, TupleType) else (node.type,)
    return ", ".join(_sizes(element.shape) or element.dtype for element in elements)


def _sizes(shape: Sequence[Size]) -> str:
    texts = map(str, shape)
    return "×".join(f"({text})" if " " in text else text for text in texts)


def _attributes(node: Node) -> str:
    """The attributes that differ from what is usual, in short."""
    texts = {name: _short(value) for name, value in node.attrs.items() if name not in _SEEN}
    return ", ".join(f"{n} {text}" for n, text in texts.items() if _USUAL.get(n) != text)


#: Attributes that show elsewhere, and values that go without saying.
_SEEN = frozenset(("name", "dtype", "shape", "value", "eps"))
_USUAL = {
    "stride": "1",
    "padding": "0",
    "dilation": "1",
    "groups": "1",
    "ceil_mode": "False",
    "keepdims": "False",
}


def _short(value: object) -> str:
    """A value in few letters: ``((1, 1), (1, 1))`` is 1, ``(2, 2)`` is 2, ``(2, 1)`` is 2×1."""
    if isinstance(value, tuple):
        items = [_short(item) for item in value]
        return items[0] if items and set(items) == {items[0]} else "×".join(items) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _operand(node: Node, within: str) -> str:
    """A parameter or constant, or what is computed of them; names less the module ``within``."""
    if node.op.name == "constant":
        value = node.attrs["value"]
        return f"{value.item():g}" if value.size == 1 else f"constant {_shape(node)}"
    if node.name is not None:
        return f"{node.name.removeprefix(within)} {_shape(node)}"
    names = [leaf.name for leaf in topological([node]) if leaf.name is not None]
    leaves = [name.removeprefix(within) for name in names]
    return f"{_shape(node)} of {', '.join(leaves)}"


# Edges.


def _draw_edges(boxes: Sequence[_Box], plan: Layout) -> Iterator[str]:
    labelled: set[int] = set()
    for (a, b), points in plan.paths.items():
        short = (a, b) in plan.shortcuts
        colour, marker = (SHORTCUT, "shortcut") if short else (EDGE, "edge")
        yield (
            f'<path d="{_curve(points)}" fill="none" stroke="{colour}" stroke-width="1.3" '
            f'marker-end="url(#{marker})"/>'
        )
        if a not in labelled and boxes[a].shape:
            labelled.add(a)
            (x, y) = points[0]
            halo = 'paint-order="stroke" stroke="white" stroke-width="4"'
            yield _text(x + 5, y + 14, boxes[a].shape, f'font-size="10" fill="{EDGE}" {halo}')


def _curve(points: Sequence[Point]) -> str:
    """A smooth line through points, vertical at each."""
    parts = [f"M{points[0][0]:.1f} {points[0][1]:.1f}"]
    for (ax, ay), (bx, by) in itertools.pairwise(points):
        middle = (ay + by) / 2
        parts.append(
            f"L{bx:.1f} {by:.1f}"
            if ax == bx
            else f"C{ax:.1f} {middle:.1f} {bx:.1f} {middle:.1f} {bx:.1f} {by:.1f}"
        )
    return "".join(parts)


def _marker(name: str, colour: str) -> str:
    return (
        f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        f'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="{colour}"/></marker>'
    )


_MARKERS = f"<defs>{_marker('edge', EDGE)}{_marker('shortcut', SHORTCUT)}</defs>"


# Legend.


class _Legend:
    """Name, numbers, dimensions and the meaning of the colours."""

    def __init__(self, graph: Graph, boxes: Sequence[_Box], shortcuts: bool):
        sizes = "; ".join(f"{dim.name} {dim.min}..{dim.max}" for dim in graph.dims)
        counts = f"{len(graph.nodes)} nodes, {len(graph.parameters)} parameters"
        self.title = graph.name
        self.line = f"{counts}; {sizes}" if sizes else counts
        self.kinds = [kind for kind in Kind if any(box.kind is kind for box in boxes)]
        self.shortcuts = shortcuts
        self.height = 3 * LEADING + 8

    @property
    def items(self) -> list[tuple[str, Callable[[float, float], str]]]:
        swatches = [(kind.value, _swatch(kind)) for kind in self.kinds]
        return [*swatches, ("shortcut", _dash)] if self.shortcuts else list(swatches)

    @property
    def width(self) -> float:
        keys = sum(len(name) * LETTER + 40 for name, _ in self.items)
        return max(keys, len(self.line) * LETTER, len(self.title) * LETTER * 1.4)

    def draw(self) -> Iterator[str]:
        yield _text(0, LEADING, self.title, 'font-size="16" font-weight="bold" fill="#18181b"')
        yield _text(0, 2 * LEADING, self.line, 'fill="#52525b"')
        x, y = 0.0, 3 * LEADING
        for name, sample in self.items:
            yield sample(x, y)
            yield _text(x + 20, y + 4, name, 'fill="#52525b"')
            x += len(name) * LETTER + 40


def _swatch(kind: Kind) -> Callable[[float, float], str]:
    fill, line = COLOURS[kind]
    return lambda x, y: (
        f'<rect x="{x:.1f}" y="{y - 6:.1f}" width="14" height="12" rx="3" '
        f'fill="{fill}" stroke="{line}"/>'
    )


def _dash(x: float, y: float) -> str:
    return f'<path d="M{x:.1f} {y:.1f}h14" stroke="{SHORTCUT}" stroke-width="1.3"/>'


# Text.


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _text(x: float, y: float, text: str, style: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{_xml(text)}</text>'


def _xml(text: str) -> str:
    """Text as XML can hold it: control characters have no place there."""
    return escape(re.sub(r"[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "�", text))
