"""Reductions, several in one kernel where they share their axes, and sliding windows.

Sums are trees that the shape alone decides. Along the fastest dimension 16 lanes run over blocks of
1024 elements; across it, up to 64 neighbours are summed side by side, in runs of 256. Blocks and
runs are combined pairwise, as a binary counter carries. So the bits depend neither on the number of
threads nor on the width of the machine's vectors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from dlc.backends.numba_cpu.loops import index_of, loop_nest, rows
from dlc.backends.numba_cpu.writer import (
    KernelSource,
    Loop,
    Writer,
    cast,
    float_literals,
    integer_form,
    literal,
    loop_over,
)
from dlc.ir.node import Node
from dlc.ir.op import Kind, Reduction
from dlc.ir.plan import Layout
from dlc.ir.schedule import Group
from dlc.ir.sizes import Size, as_size, product

LANES, BLOCK, LEVELS = 16, 1024, 48
WIDTH, RUN = 64, 256


def reduce_kernel(group: Group, layouts: Mapping[Node, Layout], name: str) -> KernelSource:
    """The kernel of reductions over the same axes and of the pointwise work around them."""
    return _ReduceWriter(group, layouts).kernel(name)


class _ReduceWriter:
    """One kernel: rows of kept elements; for each the reductions in turn, then what is computed
    from them.
    """

    def __init__(self, group: Group, layouts: Mapping[Node, Layout]):
        self.group, self.layouts = group, layouts
        self.reductions = [node for node in group.inside if node.op.kind is Kind.REDUCE]
        self.source = group.anchor.inputs[0]
        self.axes = reduced_axes(group.anchor)
        order = self._order()
        loops = loop_nest(self.source.shape, order)
        self.kept = [loop for loop in loops if int(loop.var.name[1:]) not in self.axes]
        self.reduced = [loop for loop in loops if int(loop.var.name[1:]) in self.axes]
        position = any(_rule(node).position for node in self.reductions)
        self.across = bool(self.kept and loops and loops[-1] is self.kept[-1]) and not position
        self.writer = Writer(group, layouts, loops={loop.var for loop in loops})
        self.index = index_of(loops, self.source.ndim)
        self.full = [n for n in group.outputs if n.shape == self.source.shape and self.reduced]

    def _order(self) -> Sequence[int]:
        """The physical order of the largest operand: the walk that reads memory in sequence."""
        for node in self.group.inputs:
            if node.shape == self.source.shape and node in self.layouts:
                return self.layouts[node].order
        return range(self.source.ndim)

    def kernel(self, name: str) -> KernelSource:
        writer = self.writer
        across = self.kept.pop() if self.across else None
        for i, node in enumerate(self.reductions):
            self._locals(i, node)
        outer = list(self.kept)
        if across is not None:
            outer.append(loop_over("chunk", (as_size(across.extent) + (WIDTH - 1)) // WIDTH))
        with rows(writer, outer):
            if across is not None:
                writer.line(f"base = chunk * {WIDTH}")
                writer.line(f"width = {writer.size(across.extent)} - base")
                writer.line(f"width = width if width < {WIDTH} else {WIDTH}")
            for i, node in enumerate(self.reductions):
                self._reduction(i, node, across)
            self._results(across)
        return writer.finish(name)

    def _locals(self, i: int, node: Node) -> None:
        kind = {"float32": "f32", "float64": "f64", "int64": "i64", "int32": "i32"}.get(
            self._held(node), "u8"
        )
        if self.across:
            self.writer.line(f"part{i} = local({WIDTH}, {kind})")
            self.writer.line(f"total{i} = local({WIDTH}, {kind})")
            self.writer.line(f"stack{i} = local({LEVELS * WIDTH}, {kind})")
        elif not _rule(node).position:
            self.writer.line(f"lanes{i} = local({LANES}, {kind})")
            self.writer.line(f"stack{i} = local({LEVELS}, {kind})")

    def _held(self, node: Node) -> str:
        """Element type in which a reduction accumulates."""
        return node.dtype if not _rule(node).position else node.inputs[0].dtype

    def _element(self, node: Node) -> str:
        source = node.inputs[0]
        return cast(self.writer.value(source, self.index), source.dtype, self._held(node))

    def _reduction(self, i: int, node: Node, across: Loop | None) -> None:
        if _rule(node).position:
            self._winner(i, node)
        elif across is not None:
            self._columns(i, node, across)
        else:
            self._row(i, node)

    # Along the fastest dimension.
    def _row(self, i: int, node: Node) -> None:
        writer, rule = self.writer, _rule(node)
        start = neutral(rule, self._held(node))
        writer.line(f"count{i} = 0")
        with self._nest(self.reduced[:-1]):
            extent = writer.size(self.reduced[-1].extent) if self.reduced else "1"
            with writer.block(f"for begin in range(0, {extent}, {BLOCK}):"):
                self._block(i, node, extent, start)
                self._push(i, node, f"lanes{i}[0]", f"stack{i}[level]")
        self._combine_pushed(i, node, f"r{i}", f"stack{i}[level]")
        self._finish(i, node, f"r{i}")

    def _block(self, i: int, node: Node, extent: str, start: str) -> None:
        """One block into lanes, and the lanes into the first of them."""
        writer, lanes = self.writer, f"lanes{i}"
        var = self.reduced[-1].var.name if self.reduced else "unused"
        writer.line(f"stop = begin + {BLOCK}")
        writer.line(f"stop = stop if stop < {extent} else {extent}")
        writer.line(f"full = begin + div(stop - begin, {LANES}) * {LANES}")
        with writer.block(f"for lane in range({LANES}):"):
            writer.line(f"{lanes}[lane] = {start}")
        with (
            writer.block(f"for k in range(begin, full, {LANES}):"),
            writer.block(f"for lane in range({LANES}):"),
        ):
            writer.line(f"{var} = k + lane")
            writer.line(f"{lanes}[lane] = {combine(node, f'{lanes}[lane]', self._element(node))}")
        with writer.block("for lane in range(stop - full):"):
            writer.line(f"{var} = full + lane")
            writer.line(f"{lanes}[lane] = {combine(node, f'{lanes}[lane]', self._element(node))}")
        half = LANES // 2
        while half:
            with writer.block(f"for lane in range({half}):"):
                writer.line(
                    f"{lanes}[lane] = {combine(node, f'{lanes}[lane]', f'{lanes}[lane + {half}]')}"
                )
            half //= 2

    def _push(self, i: int, node: Node, part: str, place: str, across: Loop | None = None) -> None:
        """Carry a partial result into the stack of them, as a binary counter does; ``place`` is its
        place at ``level``.
        """
        writer = self.writer
        writer.line("level = 0")
        writer.line(f"carry = count{i}")
        with writer.block("while mod(carry, 2) == 1:"):
            with self._lanes(across):
                writer.line(f"{part} = {combine(node, place, part)}")
            writer.line("level += 1")
            writer.line("carry = div(carry, 2)")
        with self._lanes(across):
            writer.line(f"{place} = {part}")
        writer.line(f"count{i} += 1")

    def _combine_pushed(
        self, i: int, node: Node, total: str, place: str, across: Loop | None = None
    ) -> None:
        """The total of the stack of partial results."""
        writer = self.writer
        with self._lanes(across):
            writer.line(f"{total} = {neutral(_rule(node), self._held(node))}")
        writer.line("level = 0")
        with writer.block(f"while count{i} > 0:"):
            with writer.block(f"if mod(count{i}, 2) == 1:"), self._lanes(across):
                writer.line(f"{total} = {combine(node, place, total)}")
            writer.line("level += 1")
            writer.line(f"count{i} = div(count{i}, 2)")

    # Across the fastest dimension.
    def _columns(self, i: int, node: Node, across: Loop) -> None:
        writer, rule = self.writer, _rule(node)
        start, place = neutral(rule, self._held(node)), f"stack{i}[level * {WIDTH} + lane]"
        writer.line(f"count{i} = 0")
        with self._nest(self.reduced[:-1]):
            run = self.reduced[-1] if self.reduced else None
            extent = writer.size(run.extent) if run else "1"
            with writer.block(f"for begin in range(0, {extent}, {RUN}):"):
                writer.line(f"stop = begin + {RUN}")
                writer.line(f"stop = stop if stop < {extent} else {extent}")
                with self._lanes(across):
                    writer.line(f"part{i}[lane] = {start}")
                with (
                    writer.block(f"for {run.var.name if run else 'unused'} in range(begin, stop):"),
                    self._lanes(across),
                ):
                    writer.line(
                        f"part{i}[lane] = {combine(node, f'part{i}[lane]', self._element(node))}"
                    )
                self._push(i, node, f"part{i}[lane]", place, across)
        self._combine_pushed(i, node, f"total{i}[lane]", place, across)
        with self._lanes(across):
            self._finish(i, node, f"total{i}[lane]")
            writer.line(f"total{i}[lane] = {writer.own[node]}")
        writer.own[node] = f"total{i}[lane]"

    def _finish(self, i: int, node: Node, total: str) -> None:
        rule = _rule(node)
        if rule.finish == "{acc}":
            self.writer.own[node] = total
            return
        number = product(self.source.shape[axis] for axis in self.axes)
        count = cast(f"i64({self.writer.size(number)})", "int64", node.dtype)
        name = self.writer.fresh()
        self.writer.line(f"{name} = {rule.finish.format(acc=total, n=count)}")
        self.writer.own[node] = name

    # The position of the first element that wins.
    def _winner(self, i: int, node: Node) -> None:
        writer, rule = self.writer, _rule(node)
        writer.line(f"best = {neutral(rule, self._held(node))}")
        writer.line(f"r{i} = i64(0)")
        writer.line("found = 0")
        with self._nest(self.reduced):
            value = writer.fresh()
            writer.line(f"{value} = {self._element(node)}")
            wins = combine(node, "best", value)
            with writer.block(f"if found == 0 or ({wins}):"):
                writer.line(f"best = {value}")
                writer.line(f"r{i} = i64({self._linear()})")
                writer.line("found = 1")
        writer.own[node] = f"r{i}"

    def _linear(self) -> str:
        """Position within the reduced axes, row-major in the logical shape."""
        total: Size = 0
        for axis in sorted(self.axes):
            total = as_size(total) * self.source.shape[axis] + self.index[axis]
        return self.writer.index_text(total)

    # What is computed from the reductions.
    def _results(self, across: Loop | None) -> None:
        full = set(self.full)
        kept_outputs = [node for node in self.group.outputs if node not in full]
        if kept_outputs:
            with self._lanes(across):
                for node in kept_outputs:
                    index = self._kept_index(node)
                    self.writer.store(node, index, self.writer.value(node, index))
        if self.full:
            with self._nest(self.reduced), self._lanes(across):
                for node in self.full:
                    self.writer.store(node, self.index, self.writer.value(node, self.index))

    def _kept_index(self, node: Node) -> tuple[Size, ...]:
        """The index of an output that has lost the reduced axes, or has them with size 1."""
        if node.ndim == self.source.ndim:
            return tuple(0 if d in self.axes else i for d, i in enumerate(self.index))
        return tuple(i for d, i in enumerate(self.index) if d not in self.axes)

    # Loops.
    @contextmanager
    def _nest(self, loops: Sequence[Loop]) -> Iterator[None]:
        if not loops:
            yield
            return
        with (
            self.writer.block(
                f"for {loops[0].var.name} in range({self.writer.size(loops[0].extent)}):"
            ),
            self._nest(loops[1:]),
        ):
            yield

    @contextmanager
    def _lanes(self, across: Loop | None) -> Iterator[None]:
        """The neighbours that are reduced side by side; without them, once."""
        if across is None:
            yield
            return
        with self.writer.block("for lane in range(width):"):
            self.writer.line(f"{across.var.name} = base + lane")
            yield


def reduced_axes(node: Node) -> tuple[int, ...]:
    """The axes that a reduction removes, by number."""
    ndim = node.inputs[0].ndim
    axes = node.attrs.get("axes", node.attrs.get("axis"))
    if axes is None:
        return tuple(range(ndim))
    return (axes,) if isinstance(axes, int) else tuple(axes)


def _rule(node: Node) -> Reduction:
    assert node.op.reduction is not None, node
    return node.op.reduction


def combine(node: Node, a: str, b: str) -> str:
    """Source that joins two partial results of a reduction or a window."""
    text = _rule(node).combine.format(a="_a_", b="_b_")
    text = float_literals(text) if node.inputs[0].dtype.startswith("float") else integer_form(text)
    return text.replace("_a_", a).replace("_b_", f"({b})")


def neutral(rule: Reduction, dtype: str) -> str:
    """The neutral element as source, within the range of the element type."""
    import numpy as np

    if dtype.startswith("float"):
        return literal(rule.init, dtype)
    if dtype == "bool":
        return str(int(rule.init > 0))
    info = np.iinfo(dtype)
    return literal(min(max(rule.init, info.min), info.max), dtype)
