"""Gradients of pooling: each window's share goes to its winner, or evenly to all of its elements.

A thread owns the lines or images that it writes. Windows that stand apart write each element once;
where windows overlap, a line of the image is done when the last window that reaches it is, and what
follows is computed while it is near.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import product

from dlc.backends.native.isa import Isa
from dlc.backends.numba_cpu.contraction import epilogue_of
from dlc.backends.numba_cpu.loops import index_of, loop_nest, rows
from dlc.backends.numba_cpu.pool_tile import PoolGradTile
from dlc.backends.numba_cpu.reduce import LANES
from dlc.backends.numba_cpu.window import WIDTH, WRITTEN_OUT, Window
from dlc.backends.numba_cpu.writer import (
    KernelSource,
    Loop,
    Var,
    Writer,
    literal,
    loop_over,
)
from dlc.ir.node import Node
from dlc.ir.op import Kind
from dlc.ir.plan import CHANNELS_LAST, Layout
from dlc.ir.schedule import Group
from dlc.ir.sizes import Size, as_size, bounds

Index = tuple[Size, ...]


def pool_grad_kernel(
    group: Group, layouts: Mapping[Node, Layout], isa: Isa, name: str
) -> KernelSource:
    """The kernel of a gradient of pooling and of the pointwise work behind it."""
    attrs = group.anchor.attrs
    padded = any(map(any, attrs["padding"])) or attrs["ceil_mode"]
    apart = attrs["stride"] == attrs["kernel"] and attrs.get("dilation", (1, 1)) == (1, 1)
    small = attrs["kernel"][0] * attrs["kernel"][1] <= WRITTEN_OUT
    if not (apart and small) or padded:
        return _Overlapping(group, layouts).kernel(name)
    if _lies_in_channels(group, layouts):
        return _Lines(group, layouts, isa).kernel(name)
    return _Apart(group, layouts).kernel(name)


class _PoolGradient:
    """What both forms share: the loops, and the share of a window's gradient at one of its
    elements.
    """

    def __init__(self, group: Group, layouts: Mapping[Node, Layout]):
        self.group, self.node = group, group.anchor
        self.g = self.node.inputs[-1]
        loops = loop_nest(self.node.shape, layouts[group.outputs[0]].order)
        self.writer = Writer(group, layouts)
        self.window = Window(self.writer, self.node, self.node.shape[2:])
        self.index = index_of(loops, 4)
        last = loops[-1] if loops else None
        self.across = last if last is not None and int(last.var.name[1:]) < 2 else None
        self.planes = [loop for loop in loops if int(loop.var.name[1:]) < 2]
        if self.across is not None:
            self.planes.remove(self.across)
        self.picks = self.node.op.name == "max_pool2d_grad"
        self.kind = "f32" if self.node.dtype == "float32" else "f64"
        self.zero = literal(0.0, self.node.dtype)

    def variable(self, name: str, extent: Size) -> Loop:
        """A loop of the source over an extent."""
        made = loop_over(name, extent)
        self.writer.loops.add(made.var)
        return made

    def own(self, loops: list[Loop]) -> None:
        """Tell the writer of loops."""
        self.writer.loops.update(loop.var for loop in loops)

    @contextmanager
    def lanes(self, chunked: bool = True) -> Iterator[None]:
        """Neighbouring channels, or just one."""
        writer = self.writer
        if self.across is None:
            yield
        elif chunked:
            with writer.block("for lane in range(width):"):
                writer.line(f"{self.across.var.name} = base + lane")
                yield
        else:
            name, extent = self.across.var.name, writer.size(self.across.extent)
            with writer.block(f"for {name} in range({extent}):"):
                yield

    def chunk(self) -> None:
        """Set ``base`` and ``width`` for the number ``chunk`` of a set of channels."""
        assert self.across is not None
        self.writer.line(f"base = chunk * {WIDTH}")
        self.writer.line(f"width = {self.writer.size(self.across.extent)} - base")
        self.writer.line(f"width = width if width < {WIDTH} else {WIDTH}")

    @property
    def chunks(self) -> Size:
        """How many sets of channels there are."""
        assert self.across is not None
        return (as_size(self.across.extent) + (WIDTH - 1)) // WIDTH

    @property
    def lane(self) -> str:
        """Where an array of all lanes holds this one's."""
        return "lane" if self.across is not None else "0"

    def at(self, h: Size, w: Size) -> Index:
        """An index of the image, or of the gradient."""
        return (*self.index[:2], as_size(h), as_size(w))

    def wins(self, value: str, best: str) -> str:
        """Whether an element takes the place of the greatest so far; the last NaN stays."""
        return f"({value} > {best}) | ({value} != {value})"  # without a branch

    def store(self, index: Index, text: str) -> None:
        """Store an element that is final, and what is computed from it."""
        writer, name = self.writer, self.writer.fresh()
        writer.line(f"{name} = {text}")
        writer.own[self.node] = name
        for out in self.group.outputs:
            writer.store(out, index, writer.value(out, index))
        del writer.own[self.node]


class _Apart(_PoolGradient):
    """Windows that do not touch: a strip of lines for each line of windows."""

    def kernel(self, name: str) -> KernelSource:
        writer, kernel = self.writer, self.window.kernel
        strips = (as_size(self.node.shape[2]) + (kernel[0] - 1)) // kernel[0]
        outer = [*self.planes, self.variable("strip", strips)]
        self.own([*outer, *([self.across] if self.across else [])])
        self.begin()
        with rows(writer, outer):
            lines, columns = (writer.size(size) for size in self.g.shape[2:])
            writer.line("column = 0")
            with writer.block(f"if strip < {lines}:"):
                writer.line(f"column = {columns} * {kernel[1]}")
                self.windows(columns)
            self._rest()
        return writer.finish(name)

    def begin(self) -> None:
        """What stands before the loops."""
        if self.across is not None and not self._few():
            self.writer.line(f"winner = local({WIDTH}, i32)")

    def windows(self, columns: str) -> None:
        """The windows of a strip."""
        places = self.window.positions(0, "strip")
        if self.across is None:
            self._line(places)
            return
        with self.writer.block(f"for ow in range({columns}):"):
            self._window(places)

    def _line(self, places: list[Var]) -> None:
        """The windows of a line side by side, once for each line of the image."""
        for number, row in enumerate(places):
            columns = self.writer.size(self.g.shape[3])
            with self.writer.block(f"for ow in range({columns}):"):
                across = self.window.positions(1, "ow")
                winner = self._winner(places, across) if self.picks else ""
                for tap, w in enumerate(across):
                    share = self._share(winner, number * len(across) + tap)
                    self.store(self.at(row, w), share)

    def _window(self, places: list[Var]) -> None:
        """One window of all channels."""
        across = self.window.positions(1, "ow")
        if self._few():
            with self.lanes(chunked=False):
                winner = self._winner(places, across) if self.picks else ""
                for number, (h, w) in enumerate(product(places, across)):
                    self.store(self.at(h, w), self._share(winner, number))
            return
        with self.writer.block(f"for chunk in range({self.writer.size(self.chunks)}):"):
            self.chunk()
            if self.picks:
                with self.lanes():
                    self.writer.line(f"winner[lane] = i32({self._winner(places, across)})")
            for number, (h, w) in enumerate(product(places, across)):
                with self.lanes():
                    self.store(self.at(h, w), self._share("winner[lane]", number))

    def _few(self) -> bool:
        """Whether channels are too few for vectors, so that one loop over them costs least."""
        return self.across is not None and bounds(self.across.extent)[1] < LANES

    def _winner(self, places: list[Var], across: list[Var]) -> str:
        """The number of the element that wins, as a chain of choices."""
        writer, x, winner, best = self.writer, self.node.inputs[0], "0", ""
        for i, h in enumerate(places):
            for j, w in enumerate(across):
                value = writer.value(x, self.at(h, w))
                if best:
                    wins, number = writer.fresh("b"), writer.fresh("k")
                    writer.line(f"{wins} = {self.wins(value, best)}")
                    writer.line(f"{number} = {i * len(across) + j} if {wins} else {winner}")
                    greater = writer.fresh()
                    writer.line(f"{greater} = {value} if {wins} else {best}")
                    winner, best = number, greater
                else:
                    best = value
        return winner

    def _share(self, winner: str, tap: int) -> str:
        g = self.writer.value(self.g, self.at(self._var("strip"), self._var("ow")))
        if self.picks:
            return f"{g} if {winner} == {tap} else {self.zero}"
        count = literal(self.window.kernel[0] * self.window.kernel[1], self.node.dtype)
        return f"{g} / {count}"

    def _var(self, name: str) -> Var:
        return self.window.place(name)

    def _rest(self) -> None:
        """What no window of this strip covers."""
        writer, kernel = self.writer, self.window.kernel
        height, width = (writer.size(size) for size in self.node.shape[2:])
        writer.line(f"bottom = strip * {kernel[0]} + {kernel[0]}")
        writer.line(f"bottom = bottom if bottom < {height} else {height}")
        h, w = self._var("h"), self._var("w")
        with (
            writer.block(f"for h in range(strip * {kernel[0]}, bottom):"),
            writer.block(f"for w in range(column, {width}):"),
            self.lanes(chunked=False),
        ):
            self.store(self.at(h, w), self.zero)


class _Lines(_Apart):
    """The same with a native function for the windows of a line, where all that it reads and writes
    lies in memory, channels last.
    """

    def __init__(self, group: Group, layouts: Mapping[Node, Layout], isa: Isa):
        super().__init__(group, layouts)
        epilogue, self.operands = epilogue_of(group)
        lines, columns = self.window.kernel
        self.tile = PoolGradTile(isa, self.node.dtype, lines, columns, self.picks, epilogue)

    def kernel(self, name: str) -> KernelSource:
        made = super().kernel(name)
        return replace(made, externs=(self.tile.extern,), objects=(self.tile,))

    def begin(self) -> None:
        """Nothing: what the function needs it keeps in registers."""

    def windows(self, columns: str) -> None:
        """One call."""
        writer, strip = self.writer, as_size(self._var("strip"))
        nodes = {"x": self.node.inputs[0], "y": self.group.outputs[0], **self.operands}
        call = [columns, writer.size(self.node.shape[1]), *self._place(self.g, strip)[:2]]
        for name in self.tile.images:
            call += self._place(nodes[name], strip * self.window.kernel[0])
        writer.line(f"{self.tile.name}({', '.join(call)})")

    def _place(self, node: Node, line: Size) -> list[str]:
        """Where a line of an image begins, and its strides of pixel and line."""
        writer, strides = self.writer, self.writer.layouts[node].strides(node.shape)
        start = writer.element(node, (self.index[0], 0, line, 0))
        place = f"at({writer.pointer(node)}, {writer.index_text(start)})"
        return [place, *(writer.index_text(as_size(stride)) for stride in (strides[3], strides[2]))]


def _lies_in_channels(group: Group, layouts: Mapping[Node, Layout]) -> bool:
    """Whether the function can compute a group: all that is read lies channels last and is as large
    as the image, but for the gradient, and what follows is computed from it element by element.
    """
    node, out = group.anchor, group.outputs[0]
    behind = [each for each in group.inside if each is not node]
    plain = len(group.outputs) == 1 and all(
        each.op.kind is Kind.POINTWISE
        and each.shape == node.shape
        and each.dtype in ("bool", node.dtype)
        for each in behind
    )
    if not plain or set(behind) & set(node.inputs):
        return False
    epilogue, operands = epilogue_of(group)
    lie = (*node.inputs, *operands.values(), out)
    return (
        all(operand.kind == "full" for operand in epilogue.operands)
        and all(each.dtype == node.dtype for each in lie)
        and all(layouts[each].order == CHANNELS_LAST for each in lie)
    )


class _Overlapping(_PoolGradient):
    """Windows of any kind: an image (of a set of channels) is cleared, added to and finished line
    by line.
    """

    def kernel(self, name: str) -> KernelSource:
        writer = self.writer
        outer = list(self.planes)
        if self.across is not None:
            outer.append(self.variable("chunk", self.chunks))
        self.own([*outer, *([self.across] if self.across else [])])
        if self.picks:
            size = WIDTH if self.across is not None else 1
            writer.line(f"best = local({size}, {self.kind})")
            writer.line(f"winner = local({size}, i32)")
        with rows(writer, outer):
            if self.across is not None:
                self.chunk()
            self._image()
        return writer.finish(name)

    def _image(self) -> None:
        writer, window = self.writer, self.window
        height = writer.size(self.node.shape[2])
        lines, columns = (writer.size(size) for size in self.g.shape[2:])
        writer.line("cleared = 0")
        writer.line("done = 0")
        with writer.block(f"for oh in range({lines}):"):
            writer.line(f"start0 = {window.start(0, 'oh')}")
            writer.line(f"bottom = start0 + {window.reach(0) + 1}")
            writer.line(f"bottom = bottom if bottom < {height} else {height}")
            self._clear("bottom")
            with writer.block(f"for ow in range({columns}):"):
                writer.line(f"start1 = {window.start(1, 'ow')}")
                self._window()
            writer.line(f"final = start0 + {window.stride[0]}")
            writer.line("final = final if final < cleared else cleared")
            self._finish("final")
        self._clear(height)
        self._finish(height)

    def _window(self) -> None:
        if self.picks:
            self._pick()
        else:
            self.window.count(("start0", "start1"))
        writer = self.writer
        place = self.at(self.window.place("oh"), self.window.place("ow"))
        with self.window.taps(("start0", "start1")) as (h, w), self.lanes():
            share = writer.value(self.g, place)
            if self.picks:
                tap = f"tap0 * {self.window.kernel[1]} + tap1"
                share = f"({share} if winner[{self.lane}] == {tap} else {self.zero})"
            else:
                share = f"{share} / count"
            address = writer.index_text(writer.element(self.group.outputs[0], self.at(h, w)))
            pointer = writer.pointer(self.group.outputs[0])
            writer.line(f"{pointer}[{address}] = {pointer}[{address}] + {share}")

    def _pick(self) -> None:
        """Set ``winner``: the number of the last NaN of a window, else of the first of the
        greatest.
        """
        writer, lane = self.writer, self.lane
        with self.lanes():
            writer.line(f"best[{lane}] = {literal(float('-inf'), self.node.dtype)}")
            writer.line(f"winner[{lane}] = i32(-1)")
        with self.window.taps(("start0", "start1")) as (h, w), self.lanes():
            value = writer.value(self.node.inputs[0], self.at(h, w))
            wins = writer.fresh("b")
            better = self.wins(value, f"best[{lane}]")
            writer.line(f"{wins} = ({better}) | (winner[{lane}] < 0)")
            writer.line(f"best[{lane}] = {value} if {wins} else best[{lane}]")
            tap = f"tap0 * {self.window.kernel[1]} + tap1"
            writer.line(f"winner[{lane}] = i32({tap}) if {wins} else winner[{lane}]")

    def _clear(self, until: str) -> None:
        """Zeros in the lines up to ``until``."""
        out = self.group.outputs[0]
        with self._lines("cleared", until) as index:
            self.writer.store(out, index, self.zero)
        self.writer.line(f"cleared = {until} if {until} > cleared else cleared")

    def _finish(self, until: str) -> None:
        """What is computed from the lines up to ``until``, to which nothing more is added."""
        out = self.group.outputs[0]
        if out is self.node:
            return
        with self._lines("done", until) as index:
            address = self.writer.index_text(self.writer.element(out, index))
            self.store(index, f"{self.writer.pointer(out)}[{address}]")
        self.writer.line(f"done = {until} if {until} > done else done")

    @contextmanager
    def _lines(self, begin: str, end: str) -> Iterator[Index]:
        writer, (h, w) = self.writer, (self.window.place("zh"), self.window.place("zw"))
        with (
            writer.block(f"for zh in range({begin}, {end}):"),
            writer.block(f"for zw in range({writer.size(self.node.shape[3])}):"),
            self.lanes(),
        ):
            yield self.at(h, w)
