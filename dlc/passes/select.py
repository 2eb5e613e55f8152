"""Choose an algorithm for each contraction, as a rewrite of the graph.

Which kernel runs is then visible in the graph, checked by value like any rewrite, and its packed
weights move to `prepare` with everything else that depends on parameters only. The choice follows
from shapes, never from the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dlc.ir.graph import Graph, topological
from dlc.ir.manager import Pass, Property
from dlc.ir.node import Node, apply
from dlc.ir.rewrite import Journal
from dlc.ir.sizes import Size, bounds, product
from dlc.passes.convolutions import Convolutions
from dlc.passes.decompose import DECOMPOSED

#: Pieces of a matrix that threads share by its rows, where these are so many times those of the
#: other one.
PIECES, TIMES = 2, 4
#: Rows of a product up to which a right side that changes is packed panel by panel, as the product
#: goes: of more, several blocks read each panel.
FEW_ROWS = 512


@dataclass(frozen=True)
class SelectAlgorithms(Pass):
    """Rewrite convolutions and matrix products into forms that read packed weights."""

    name = "select-algorithms"

    @property
    def requires(self) -> tuple[Property, ...]:
        """Composite ops may hold contractions, so none may be left."""
        return (DECOMPOSED,)

    def run(self, graph: Graph, journal: Journal) -> Graph:
        """The graph with every contraction in the form of a kernel."""
        forms = Convolutions.of(graph)
        choices = {
            "conv2d": forms.conv2d,
            "conv2d_input_grad": forms.input_grad,
            "conv2d_weight_grad": forms.weight_grad,
            "matmul": _Products(forms.is_prepared).matmul,
        }

        def choose(node: Node, inputs: tuple[Node, ...]) -> Node | None:
            form = choices.get(node.op.name)
            return form(node, *inputs) if form else None

        return graph.rewrite(choose)


@dataclass(frozen=True)
class _Products:
    """Chooses forms for matrix products; ``is_prepared`` tells weights that are known before the
    call.
    """

    is_prepared: Callable[[Node], bool]

    def matmul(self, node: Node, a: Node, b: Node) -> Node:
        """A product of any two operands in the form of a kernel."""
        if a.ndim > 1 and b.ndim > 1:
            return self._rows(a, b)
        row = apply("reshape", a, shape=(1, *a.shape)) if a.ndim == 1 else a
        column = apply("reshape", b, shape=(*b.shape, 1)) if b.ndim == 1 else b
        return apply("reshape", self._rows(row, column), shape=node.shape)

    def _rows(self, a: Node, b: Node) -> Node:
        if b.ndim == a.ndim == 2:
            return self._product(a, b)
        if b.ndim == 2:  # all rows of all batches are one matrix
            rows = apply("reshape", a, shape=(product(a.shape[:-1]), a.shape[-1]))
            y = self._product(rows, b)
            return apply("reshape", y, shape=(*a.shape[:-1], b.shape[-1]))
        batch = apply("matmul", a, b).shape[:-2]
        source = _transposed(a)
        if source is not None:
            y = apply("matmul_across", _flat(source, batch), _flat(b, batch))
        else:
            y = self._product(_flat(a, batch), _flat(b, batch))
        return apply("reshape", y, shape=(*batch, a.shape[-2], b.shape[-1]))

    def _product(self, a: Node, b: Node) -> Node:
        """A left side is read across its rows rather than transposed. Weights are packed once, in
        `prepare`; what changes from call to call, as the kernel reads it, transposed or not.
        """
        source = _transposed(a)
        if source is not None:
            return apply("matmul_across", source, b)
        given = any(node.op.name == "input" for node in topological((b,)))
        if given or not self.is_prepared(b):
            turned = _transposed(b)
            if turned is None:
                return _by_parts(a, b)
            if bounds(a.shape[-2])[1] <= FEW_ROWS:
                return apply("matmul_direct", a, turned, turned=True, parts=1)
        return apply("matmul_packed", a, apply("pack_matrix", b), columns=b.shape[-1])


def _by_parts(a: Node, b: Node) -> Node:
    """A product by a matrix with many more rows than the other: of pieces of the matrix, so that
    its rows stay with the threads that compute the outputs and the gradient of a linear layer.
    """
    rows, depth = bounds(a.shape[-2])[1], b.shape[-2]
    many = isinstance(depth, int) and depth % PIECES == 0 and TIMES * rows <= depth
    if a.ndim > 2 or not many or b.op.name != "parameter":
        return apply("matmul_direct", a, b, turned=False, parts=1)
    made = apply("matmul_direct", a, b, turned=False, parts=PIECES)
    return apply("sum", made, axes=(0,), keepdims=False)


def _flat(x: Node, batch: tuple[Size, ...]) -> Node:
    """Matrices for every element of a batch, which is one dimension."""
    if x.shape[:-2] != batch:
        x = apply("expand", x, shape=(*batch, *x.shape[-2:]))
    return apply("reshape", x, shape=(product(batch), *x.shape[-2:]))


def _transposed(x: Node) -> Node | None:
    """The matrices whose transposes a node gives."""
    *batch, row, column = range(x.ndim)
    if x.op.name == "transpose" and x.attrs["axes"] == (*batch, column, row):
        return x.inputs[0]
    return None
