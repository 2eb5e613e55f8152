"""Depthwise convolution: one filter a channel, channels in the vector lanes.

The taps of a window are few and each element is used once a tap, so there is nothing to block: for each pixel one straight
expression over the taps runs along the channels.
"""

from __future__ import annotations

from collections.abc import Mapping

from dlc.backends.native.isa import Isa
from dlc.backends.numba_cpu.loops import index_of, inner, loop_nest, rows
from dlc.backends.numba_cpu.writer import KernelSource, Writer
from dlc.ir.node import Node
from dlc.ir.plan import Layout
from dlc.ir.schedule import Group
from dlc.ir.sizes import as_size


def depthwise_kernel(group: Group, layouts: Mapping[Node, Layout], isa: Isa) -> KernelSource:
    """The kernel of a depthwise convolution and of the pointwise work behind it; its input has a halo."""
    node, out = group.anchor, group.outputs[0]
    (x, w), attrs = node.inputs, node.attrs
    loops = loop_nest(node.shape, layouts[out].order)
    writer = Writer(group, layouts, loops={loop.var for loop in loops})
    image, channel, row, column = index_of(loops, node.ndim)
    with rows(writer, loops[:-1], loops[-1] if len(loops) == 1 else None), inner(writer, loops):
        total = ""
        for i in range(w.shape[0]):
            for j in range(w.shape[1]):
                place = (
                    image,
                    channel,
                    as_size(row) * attrs["stride"][0] + (i * attrs["dilation"][0] - attrs["padding"][0][0]),
                    as_size(column) * attrs["stride"][1] + (j * attrs["dilation"][1] - attrs["padding"][1][0]),
                )
                tap, weight = writer.value(x, place), writer.value(w, (i, j, channel))
                name = writer.fresh()
                writer.line(f"{name} = fma({tap}, {weight}, {total})" if total else f"{name} = {tap} * {weight}")
                total = name
        writer.own[node] = total
        writer.store(out, (image, channel, row, column), writer.value(out, (image, channel, row, column)))
    return writer.finish("kernel")
