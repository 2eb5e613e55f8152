"""Choose an algorithm for each contraction, as a rewrite of the graph.

Which kernel runs is then visible in the graph, checked by value like any rewrite, and its packed weights move to `prepare`
with everything else that depends on parameters only. The choice follows from shapes, never from the number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass

from dlc.ir.graph import Graph
from dlc.ir.node import Node, apply
from dlc.ir.sizes import product
from dlc.ops.packed import PANEL

#: Input channels up to which a convolution reads channel planes: the reduction over them is too short to be contiguous.
PLANES = 4


@dataclass(frozen=True)
class SelectAlgorithms:
    """Rewrite `conv2d` and `matmul` into forms that read packed weights."""

    name: str = "select-algorithms"

    def run(self, graph: Graph) -> Graph:
        """The graph with every contraction in the form of a kernel."""
        return graph.rewrite(_choose)


def _choose(node: Node, inputs: tuple[Node, ...]) -> Node | None:
    choose = _CHOICES.get(node.op.name)
    return choose(node, *inputs) if choose else None


def _conv2d(node: Node, x: Node, w: Node) -> Node:
    attrs = dict(node.attrs)
    groups, channels = attrs["groups"], w.shape[0]
    if groups == channels == x.shape[1] and groups > 1:
        attrs.pop("groups")
        taps = apply("transpose", apply("reshape", w, shape=(channels, *w.shape[2:])), axes=(1, 2, 0))
        return apply("conv2d_depthwise", x, taps, **attrs)
    planes = w.shape[1] <= PLANES and groups == 1
    packed = apply("pack_conv", w, groups=groups, planes=planes)
    return apply("conv2d_direct", x, packed, channels=channels, planes=planes, **attrs)


def _conv2d_input_grad(node: Node, g: Node, w: Node) -> Node | None:
    """With stride 1 the gradient of the input is a convolution with the flipped, transposed weights."""
    attrs = node.attrs
    (kh, kw), d, p, groups = w.shape[2:], attrs["dilation"], attrs["padding"], attrs["groups"]
    if attrs["stride"] != (1, 1) or groups != 1:
        return None
    flipped = apply("transpose", apply("flip", w, axes=(2, 3)), axes=(1, 0, 2, 3))
    reach = (d[0] * (kh - 1), d[1] * (kw - 1))
    if any(side > reach[axis] for axis in range(2) for side in p[axis]):
        return None
    padding = tuple((reach[axis] - p[axis][0], reach[axis] - p[axis][1]) for axis in range(2))
    conv = apply("conv2d", g, flipped, stride=(1, 1), padding=padding, dilation=d, groups=1)
    return _conv2d(conv, g, flipped) if conv.shape == node.shape else None


def _matmul(node: Node, a: Node, b: Node) -> Node | None:
    if a.ndim == 1:  # one row
        return apply("reshape", _matmul_rows(apply("reshape", a, shape=(1, *a.shape)), b), shape=node.shape)
    if b.ndim == 1:  # one column
        column = apply("reshape", b, shape=(*b.shape, 1))
        return apply("reshape", _matmul_rows(a, column), shape=node.shape)
    return _matmul_rows(a, b)


def _matmul_rows(a: Node, b: Node) -> Node:
    columns = b.shape[-1]
    if b.ndim == 2:  # all rows of all batches are one matrix
        rows = apply("reshape", a, shape=(product(a.shape[:-1]), a.shape[-1])) if a.ndim > 2 else a
        y = apply("matmul_packed", rows, apply("pack_matrix", b), columns=columns)
        return apply("reshape", y, shape=(*a.shape[:-1], columns)) if a.ndim > 2 else y
    batch = apply("matmul", a, b).shape[:-2]
    a, b = (
        n if n.shape[:-2] == batch else apply("expand", n, shape=(*batch, *n.shape[-2:])) for n in (a, b)
    )
    flat_a = apply("reshape", a, shape=(product(batch), *a.shape[-2:]))
    flat_b = apply("reshape", b, shape=(product(batch), *b.shape[-2:]))
    y = apply("matmul_packed", flat_a, apply("pack_matrix", flat_b), columns=columns)
    return apply("reshape", y, shape=(*batch, a.shape[-2], columns))


_CHOICES = {
    "conv2d": _conv2d,
    "conv2d_input_grad": _conv2d_input_grad,
    "matmul": _matmul,
}

__all__ = ["PANEL", "PLANES", "SelectAlgorithms"]
