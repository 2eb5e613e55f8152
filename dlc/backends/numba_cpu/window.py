"""Sliding windows: pooling over images, neighbours in memory side by side.

A window at the border covers only what is inside the image, so no padding is stored and none is
read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from dlc.backends.numba_cpu.loops import index_of, loop_nest, rows
from dlc.backends.numba_cpu.reduce import WIDTH, combine, neutral
from dlc.backends.numba_cpu.writer import KernelSource, Loop, Var, Writer, cast, loop_over
from dlc.ir.node import Node
from dlc.ir.plan import Layout
from dlc.ir.schedule import Group
from dlc.ir.sizes import Size, as_size


def window_kernel(group: Group, layouts: Mapping[Node, Layout], name: str) -> KernelSource:
    """The kernel of a pooling op and of the pointwise work behind it."""
    return _WindowWriter(group, layouts).kernel(name)


class _WindowWriter:
    """One kernel: for each window, and each chunk of neighbours, the taps inside the image."""

    def __init__(self, group: Group, layouts: Mapping[Node, Layout]):
        self.group, self.node = group, group.anchor
        self.x = group.anchor.inputs[0]
        loops = loop_nest(self.node.shape, layouts[group.outputs[0]].order)
        self.writer = Writer(group, layouts, loops={loop.var for loop in loops})
        self.index = index_of(loops, self.node.ndim)
        side_by_side = bool(loops) and int(loops[-1].var.name[1:]) < 2
        self.across: Loop | None = loops.pop() if side_by_side else None
        self.outer = loops

    def kernel(self, name: str) -> KernelSource:
        writer, rule = self.writer, self.node.op.reduction
        assert rule is not None, self.node
        outer = list(self.outer)
        kind = "f32" if self.node.dtype == "float32" else "f64"
        writer.line(f"total = local({WIDTH}, {kind})")
        if self.across is not None:
            outer.append(loop_over("chunk", (as_size(self.across.extent) + (WIDTH - 1)) // WIDTH))
        with rows(writer, outer):
            writer.line(f"base = {'chunk' if self.across else '0'} * {WIDTH}")
            extent = writer.size(self.across.extent) if self.across else "1"
            writer.line(f"width = {extent} - base")
            writer.line(f"width = width if width < {WIDTH} else {WIDTH}")
            with self._lanes():
                writer.line(f"total[lane] = {neutral(rule, self.node.dtype)}")
            with self._taps() as position, self._lanes():
                value = writer.value(self.x, (*self.index[:2], *position))
                writer.line(f"total[lane] = {combine(self.node, 'total[lane]', value)}")
            count = self._count() if "{n}" in rule.finish else ""
            with self._lanes():
                done = writer.fresh()
                writer.line(f"{done} = {rule.finish.format(acc='total[lane]', n=count)}")
                writer.own[self.node] = done
                for out in self.group.outputs:
                    writer.store(out, self.index, writer.value(out, self.index))
        return writer.finish(name)

    @contextmanager
    def _lanes(self) -> Iterator[None]:
        with self.writer.block("for lane in range(width):"):
            if self.across is not None:
                self.writer.line(f"{self.across.var.name} = base + lane")
            yield

    @contextmanager
    def _taps(self) -> Iterator[tuple[Size, Size]]:
        """Loops over the taps of a window that lie inside the image; gives their position."""
        with self._axis(0) as h, self._axis(1) as w:
            self.writer.loops.update((h, w))
            yield as_size(h), as_size(w)

    @contextmanager
    def _axis(self, axis: int) -> Iterator[Var]:
        writer, attrs, extent = self.writer, self.node.attrs, self.x.shape[2 + axis]
        place = loop_over("hw"[axis], extent).var
        dilation = attrs.get("dilation", (1, 1))[axis]
        with writer.block(f"for tap{axis} in range({attrs['kernel'][axis]}):"):
            writer.line(f"{place.name} = {self._first(axis)} + tap{axis} * {dilation}")
            with writer.block(f"if {place.name} >= 0 and {place.name} < {writer.size(extent)}:"):
                yield place

    def _first(self, axis: int) -> str:
        """Row or column where the window begins, in the image's own numbering."""
        attrs = self.node.attrs
        start = as_size(self.index[2 + axis]) * attrs["stride"][axis] - attrs["padding"][axis][0]
        return self.writer.index_text(start)

    def _count(self) -> str:
        """How many elements the window averages over, as a number of the element type."""
        writer, attrs = self.writer, self.node.attrs
        for axis in range(2):
            before, after = attrs["padding"][axis] if attrs["count_include_pad"] else (0, 0)
            extent = writer.size(self.x.shape[2 + axis] + after)
            writer.line(f"low{axis} = {self._first(axis)}")
            writer.line(f"high{axis} = low{axis} + {attrs['kernel'][axis]}")
            writer.line(f"high{axis} = high{axis} if high{axis} < {extent} else {extent}")
            writer.line(f"low{axis} = low{axis} if low{axis} > {-before} else {-before}")
        writer.line(f"count = {cast('(high0 - low0) * (high1 - low1)', 'int64', self.node.dtype)}")
        return "count"
