"""Sliding windows: pooling over images, neighbours in memory side by side.

A window at the border covers only what is inside the image, so no padding is stored and none is
read. Small windows that lie inside are one expression of all their elements, without a loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from dlc.backends.numba_cpu.loops import index_of, loop_nest, rows
from dlc.backends.numba_cpu.totals import combine, neutral
from dlc.backends.numba_cpu.writer import KernelSource, Loop, Var, Writer, cast, literal
from dlc.ir.node import Node
from dlc.ir.plan import Layout
from dlc.ir.schedule import Group
from dlc.ir.sizes import Size, as_size

#: Channels that a window at the border combines side by side, and the elements of the largest
#: window that is written out.
WIDTH, WRITTEN_OUT = 64, 16


def window_kernel(group: Group, layouts: Mapping[Node, Layout], name: str) -> KernelSource:
    """The kernel of a pooling op and of the pointwise work behind it."""
    return _WindowWriter(group, layouts).kernel(name)


class Window:
    """Where the windows of a pooling op lie: ``attrs`` over an image of size ``extents``, for the
    output index ``place`` (names of variables, or "0").
    """

    def __init__(self, writer: Writer, node: Node, extents: tuple[Size, Size]):
        attrs = node.attrs
        self.writer, self.node, self.extents = writer, node, extents
        self.kernel, self.stride = attrs["kernel"], attrs["stride"]
        self.dilation = attrs.get("dilation", (1, 1))
        self.before = tuple(before for before, _ in attrs["padding"])
        self.ragged = any(map(any, attrs["padding"])) or attrs["ceil_mode"]

    def start(self, axis: int, place: str) -> str:
        """Row or column where a window begins, in the image's own numbering."""
        start = f"{place} * {self.stride[axis]}"
        return f"{start} - {self.before[axis]}" if self.before[axis] else start

    def reach(self, axis: int) -> int:
        """From the first to the last row or column of a window."""
        return int((self.kernel[axis] - 1) * self.dilation[axis])

    def positions(self, axis: int, place: str) -> list[Var]:
        """Variables set to every row or column of a window that lies inside; strides are numbers in
        the source, so that neighbouring windows are loaded together.
        """
        found = []
        for tap in range(self.kernel[axis]):
            var = self.place(f"{'hw'[axis]}{tap}")
            shift = tap * self.dilation[axis]
            self.writer.line(f"{var.name} = {self.start(axis, place)} + {shift}")
            found.append(var)
        return found

    def place(self, name: str) -> Var:
        """A variable of the source; nobody asks for its range, as the image is in memory."""
        var = Var(name, 0, 1)
        self.writer.loops.add(var)
        return var

    def inside(self, axis: int, place: str) -> str:
        """Whether a window lies inside, along one axis."""
        extent, start = self.writer.size(self.extents[axis]), self.start(axis, place)
        return f"{start} >= 0 and {start} + {self.reach(axis)} < {extent}"

    def count(self, starts: tuple[str, str]) -> str:
        """Over how many elements a window averages, as a number of the element type."""
        writer, attrs = self.writer, self.node.attrs
        for axis, start in enumerate(starts):
            before, after = attrs["padding"][axis] if attrs["count_include_pad"] else (0, 0)
            extent = writer.size(self.extents[axis] + after)
            writer.line(f"low{axis} = {start}")
            writer.line(f"high{axis} = low{axis} + {self.kernel[axis]}")
            writer.line(f"high{axis} = high{axis} if high{axis} < {extent} else {extent}")
            writer.line(f"low{axis} = low{axis} if low{axis} > {-before} else {-before}")
        writer.line(f"count = {cast('(high0 - low0) * (high1 - low1)', 'int64', self.node.dtype)}")
        return "count"

    @contextmanager
    def taps(self, starts: tuple[str, str]) -> Iterator[tuple[Size, Size]]:
        """Loops over the elements of a window that lie inside the image; gives their position."""
        with self._tap(0, starts[0]) as h, self._tap(1, starts[1]) as w:
            yield as_size(h), as_size(w)

    @contextmanager
    def _tap(self, axis: int, start: str) -> Iterator[Var]:
        writer, place = self.writer, self.place("hw"[axis])
        with writer.block(f"for tap{axis} in range({self.kernel[axis]}):"):
            writer.line(f"{place.name} = {start} + tap{axis} * {self.dilation[axis]}")
            extent = writer.size(self.extents[axis])
            with writer.block(f"if {place.name} >= 0 and {place.name} < {extent}:"):
                yield place


class _WindowWriter:
    """One kernel: windows inside as one expression each, the others tap by tap."""

    def __init__(self, group: Group, layouts: Mapping[Node, Layout]):
        self.group, self.node = group, group.anchor
        self.x = group.anchor.inputs[0]
        self.loops = loop_nest(self.node.shape, layouts[group.outputs[0]].order)
        self.writer = Writer(group, layouts, loops={loop.var for loop in self.loops})
        self.index = index_of(self.loops, self.node.ndim)
        names = {loop.var.name for loop in self.loops}
        self.at = tuple(f"i{d}" if f"i{d}" in names else "0" for d in (2, 3))
        self.window = Window(self.writer, self.node, self.x.shape[2:])
        assert self.node.op.reduction is not None, self.node
        self.rule = self.node.op.reduction

    def kernel(self, name: str) -> KernelSource:
        writer, outer = self.writer, list(self.loops)
        last = outer.pop() if outer else None
        dim = int(last.var.name[1:]) if last is not None else 0
        kind = "f32" if self.node.dtype == "float32" else "f64"
        writer.line(f"total = local({WIDTH}, {kind})")
        if last is not None and dim < 2:
            inner = outer.pop() if outer else None
            with rows(writer, outer), self._each(inner):
                self._channels(last)
        else:
            with rows(writer, outer):
                self._line(last)
        return writer.finish(name)

    @contextmanager
    def _each(self, loop: Loop | None, bounds: str = "") -> Iterator[None]:
        if loop is None:
            yield
            return
        with self.writer.block(
            f"for {loop.var.name} in range({bounds or self.writer.size(loop.extent)}):"
        ):
            yield

    @property
    def _written_out(self) -> bool:
        taps = self.window.kernel[0] * self.window.kernel[1]
        return bool(taps <= WRITTEN_OUT)

    # Channels side by side: the windows of one place begin and end together.
    def _channels(self, loop: Loop) -> None:
        writer = self.writer
        if not self._written_out:
            self._chunks(loop)
            return
        if not self.window.ragged:
            self._channels_inside(loop)
            return
        conditions = " and ".join(self.window.inside(axis, self.at[axis]) for axis in range(2))
        with writer.block(f"if {conditions}:"):
            self._channels_inside(loop)
        with writer.block("else:"):
            self._chunks(loop)

    def _channels_inside(self, loop: Loop) -> None:
        places = [self.window.positions(axis, self.at[axis]) for axis in range(2)]
        with self._each(loop):
            self._whole(places)

    def _chunks(self, loop: Loop) -> None:
        writer, extent = self.writer, self.writer.size(loop.extent)
        with writer.block(f"for base in range(0, {extent}, {WIDTH}):"):
            writer.line(f"width = {extent} - base")
            writer.line(f"width = width if width < {WIDTH} else {WIDTH}")
            self._partial(loop)

    # Windows of one line side by side.
    def _line(self, loop: Loop | None) -> None:
        writer = self.writer
        if loop is None or int(loop.var.name[1:]) != 3 or not self._written_out:
            with self._each(loop):
                writer.line("width = 1")
                self._partial(None)
            return
        if not self.window.ragged:
            self._line_inside(loop, "")
            return
        self._bounds(loop)
        self._line_inside(loop, "first, last")
        count = writer.size(loop.extent)
        with writer.block(f"for edge in range(first + {count} - last):"):
            writer.line(f"{loop.var.name} = edge if edge < first else edge - first + last")
            writer.line("width = 1")
            self._partial(None)

    def _bounds(self, loop: Loop) -> None:
        """Set ``first`` and ``last``: the windows of a line between them lie inside."""
        writer, window = self.writer, self.window
        stride, before = window.stride[1], window.before[1]
        extent, count = writer.size(self.x.shape[3]), writer.size(loop.extent)
        writer.line(f"whole = {window.inside(0, self.at[0])}")
        writer.line(f"first = {-(-before // stride)} if whole else 0")
        writer.line(f"last = div({extent} - 1 - {window.reach(1)} + {before + stride}, {stride})")
        writer.line(f"last = last if last < {count} else {count}")
        writer.line("last = last if whole and last > first else first")

    def _line_inside(self, loop: Loop, bounds: str) -> None:
        rows_ = self.window.positions(0, self.at[0])
        with self._each(loop, bounds):
            self._whole([rows_, self.window.positions(1, self.at[1])])

    # One window.
    def _whole(self, places: list[list[Var]]) -> None:
        """A window inside the image as one expression."""
        writer, total = self.writer, neutral(self.rule, self.node.dtype)
        for h in places[0]:
            for w in places[1]:
                value = writer.value(self.x, (*self.index[:2], as_size(h), as_size(w)))
                name = writer.fresh()
                writer.line(f"{name} = {combine(self.node, total, value)}")
                total = name
        count = literal(len(places[0]) * len(places[1]), self.node.dtype)
        self._store(self.rule.finish.format(acc=total, n=count))

    def _partial(self, across: Loop | None) -> None:
        """Windows whose elements outside the image do not count."""
        writer = self.writer
        with self._lanes(across):
            writer.line(f"total[lane] = {neutral(self.rule, self.node.dtype)}")
        starts = self.window.start(0, self.at[0]), self.window.start(1, self.at[1])
        with self.window.taps(starts) as position, self._lanes(across):
            value = writer.value(self.x, (*self.index[:2], *position))
            writer.line(f"total[lane] = {combine(self.node, 'total[lane]', value)}")
        count = self.window.count(starts) if "{n}" in self.rule.finish else ""
        with self._lanes(across):
            self._store(self.rule.finish.format(acc="total[lane]", n=count))

    def _store(self, text: str) -> None:
        """Store a combined window, and what is computed from it."""
        writer, done = self.writer, self.writer.fresh()
        writer.line(f"{done} = {text}")
        writer.own[self.node] = done
        for out in self.group.outputs:
            writer.store(out, self.index, writer.value(out, self.index))

    @contextmanager
    def _lanes(self, across: Loop | None) -> Iterator[None]:
        with self.writer.block("for lane in range(width):"):
            if across is not None:
                self.writer.line(f"{across.var.name} = base + lane")
            yield
