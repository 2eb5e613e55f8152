"""Zeros around an image: the kernel that writes a buffer's halo before its producer fills the
inside.

Arena memory is reused, so the zeros are written on every run. Where rows follow each other, the
right margin of one and the left margin of the next are one run of zeros. Where rows are so short
that nearly every cache line holds some of both, all of the buffer is one run, which takes half the
time; the producer waits for that, as it writes there too. A result that takes the place of a value
which its kernel reads finds the zeros there, and nothing may be written before it.
"""

from __future__ import annotations

from dlc.backends.native.frontend import Param
from dlc.backends.numba_cpu.writer import STORED, KernelSource, Start
from dlc.ir.node import Node
from dlc.ir.plan import Layout
from dlc.ir.sizes import Size, as_size, bounds, product

_PARAMS = ("planes", "rows", "plane", "head", "inside", "gap", "tail")
_SOURCE = """def {name}(y, planes, rows, plane, head, inside, gap, tail, thread, threads):
    for p in range(div(planes * thread, threads), div(planes * (thread + 1), threads)):
        start = p * plane
        for i in range(head):
            y[start + i] = 0
        start = start + head
        for r in range(rows - 1):
            start = start + inside
            for i in range(gap):
                y[start + i] = 0
            start = start + gap
        start = start + inside
        for i in range(tail):
            y[start + i] = 0
"""

_WHOLE = """def {name}(y, count, thread, threads):
    for i in range(div(count * thread, threads), div(count * (thread + 1), threads)):
        y[i] = 0
"""
#: Elements of a row that are not called few.
FEW = 32


def halo_kernel(node: Node, layout: Layout, name: str) -> KernelSource:
    """The kernel that zeroes the halo of a value's buffer; the halo lies on the two slower ones of
    its spatial dimensions.

    Its planes are what precedes the padded dimensions in memory, its unit what follows them.
    """
    shape, extents = node.shape, layout.extents(node.shape)
    h, w = (d for d in layout.order if d >= 2)
    before = layout.order[: layout.order.index(h)]
    behind = layout.order[layout.order.index(w) + 1 :]
    unit = product(shape[d] for d in behind)
    (top, bottom), (left, right) = layout.halo[h], layout.halo[w]
    row = as_size(extents[w]) * unit
    sizes: dict[str, Size] = {
        "planes": product(shape[d] for d in before),
        "rows": shape[h],
        "plane": as_size(extents[h]) * row,
        "head": as_size(row) * top + as_size(unit) * left,
        "inside": as_size(shape[w]) * unit,
        "gap": as_size(unit) * (left + right),
        "tail": as_size(unit) * right + as_size(row) * bottom,
    }
    y = Param("y", STORED.get(node.dtype, node.dtype) + "*")
    if bounds(sizes["inside"])[1] < FEW:
        params, source = (y, Param("count", "int64")), _WHOLE.format(name=name)
        count = as_size(sizes["planes"]) * extents[h] * row
        return KernelSource(name, source, params, (Start(node), count), barrier=True)
    params = (y, *(Param(n, "int64") for n in _PARAMS))
    return KernelSource(name, _SOURCE.format(name=name), params, (Start(node), *sizes.values()))
