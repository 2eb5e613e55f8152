"""Reductions, several in one kernel where they share their axes.

Sums are trees that the shape alone decides. Along the fastest dimension 16 lanes run over blocks of
1024 elements; across it, up to 64 neighbours are summed side by side, in blocks of 64. Blocks are
combined pairwise, as a binary counter carries. Where a reduction has few results, runs of 16 blocks
are shared between threads, and a second kernel combines them. So the bits depend neither on the
number of threads nor on the width of the machine's vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from dlc.backends.numba_cpu.loops import collapse, index_of, loop_nest, rows
from dlc.backends.numba_cpu.totals import (
    Total,
    arrays_of,
    combine,
    has_spread,
    local_kind,
    reduced_axes,
    rule_of,
)
from dlc.backends.numba_cpu.writer import (
    STORED,
    KernelSource,
    Loop,
    Var,
    Writer,
    cast,
    literal,
    loop_over,
    typed,
)
from dlc.ir.node import Node
from dlc.ir.op import Kind
from dlc.ir.plan import Layout, align
from dlc.ir.schedule import Group
from dlc.ir.sizes import Size, as_size, bounds, product
from dlc.ir.types import ITEMSIZE

#: Along: lanes of a block. Across: neighbours side by side, elements of a block, of which 4 are
#: combined before they meet the sum.
LANES, BLOCK, LEVELS = 16, 1024, 48
WIDTH, RUN, NEAR = 64, 64, 4
#: Elements that are combined in one expression.
SHORT = 16
#: Blocks in the share of a thread, where a reduction of at least so many elements has fewer results
#: (or sets of neighbours) than that.
SHARE, LARGE, FEW = 16, 1 << 15, 32

Text = Callable[[str], str]


def reduce_kernels(group: Group, layouts: Mapping[Node, Layout], name: str) -> list[KernelSource]:
    """The kernels of reductions over the same axes and of the pointwise work around them: one, or
    one for shares and one that combines them.
    """
    made = _ReduceWriter(group, layouts)
    if made.is_short():
        return [made.unrolled(name)]
    if not made.is_split():
        return [made.kernel(name)]
    return [made.shares(name), _ReduceWriter(group, layouts).combined(name)]


class _ReduceWriter:
    """One kernel: rows of kept elements; for each the reductions in turn, then what is computed
    from them.
    """

    def __init__(self, group: Group, layouts: Mapping[Node, Layout]):
        self.group, self.layouts = group, layouts
        self.source = group.anchor.inputs[0]
        self.axes = reduced_axes(group.anchor)
        self.reductions = [node for node in group.inside if node.op.kind is Kind.REDUCE]
        self.full = [n for n in group.outputs if n.shape == self.source.shape]
        position = any(rule_of(node).position for node in self.reductions)
        loops = self._loops(position)
        self.kept = [loop for loop in loops if not self._is_reduced(loop)]
        self.reduced = [loop for loop in loops if self._is_reduced(loop)]
        self.full = self.full if self.reduced else []
        self.across: Loop | None = None
        if self.kept and loops[-1] is self.kept[-1] and not position:
            self.across = self.kept.pop()
        self.writer = Writer(group, layouts, loops={loop.var for loop in loops})
        self.index = index_of(loops, self.source.ndim)
        self.totals = self._totals()
        self.lane = "lane" if self.across else "0"
        self.place = f"level * {WIDTH} + lane" if self.across else "level"
        self.size = RUN if self.across else BLOCK

    # The walk.
    def _is_reduced(self, loop: Loop) -> bool:
        return int(loop.var.name[1:]) in self.axes

    def _loops(self, position: bool) -> list[Loop]:
        """Loops over the source; dimensions that all operands walk as one are one."""
        loops = loop_nest(self.source.shape, self._order())
        if position:
            return loops
        apart = [loop.var for loop in loops if self._is_reduced(loop)]
        return collapse(self.group, self.layouts, loops, self.source.ndim, self._touch, apart)

    def _touch(self, writer: Writer, index: Sequence[Size]) -> None:
        """Every address of the kernel, for the writer that asks how they grow."""
        writer.own |= dict.fromkeys(self.reductions, "r")
        for node in self.reductions:
            writer.value(node.inputs[0], index)
        for node in self.group.outputs:
            own = index if node in set(self.full) else self._kept_index(node, index)
            writer.store(node, own, writer.value(node, own))

    def _order(self) -> Sequence[int]:
        """The physical order of the largest operand: the walk that reads memory in sequence."""
        for node in self.group.inputs:
            if node.shape == self.source.shape and node in self.layouts:
                return self.layouts[node].order
        return range(self.source.ndim)

    def _totals(self) -> list[Total]:
        """A total for each reduction; the mean of what a variance is taken of shares its sum."""
        centred = {n.inputs[0]: n for n in self.reductions if rule_of(n).centred}
        made: dict[Node, Total] = {}
        for i, node in enumerate(self.reductions):
            if rule_of(node).centred:
                made[node] = Total(node, f"sum{i}", f"away{i}")
        for i, node in enumerate(self.reductions):
            spread = centred.get(node.inputs[0])
            if node not in made and spread is not None and node.op.name in ("sum", "mean"):
                made[node] = Total(node, made[spread].held)
            elif node not in made:
                made[node] = Total(node, f"r{i}")
        return [made[node] for node in self.reductions]

    def _waves(self) -> list[list[Total]]:
        """Reductions that do not need each other share their walk."""
        depth: dict[Node, int] = {}
        for node in self.group.inside:
            before = max((depth.get(source, 0) for source in node.inputs), default=0)
            depth[node] = before + (node.op.kind is Kind.REDUCE)
        levels = sorted({depth[total.node] for total in self.totals})
        return [[t for t in self.totals if depth[t.node] == level] for level in levels]

    @property
    def blocks(self) -> Size:
        """Into how many blocks the reduced elements are cut."""
        if not self.reduced:
            return 1
        last = (as_size(self.reduced[-1].extent) + (self.size - 1)) // self.size
        return product(loop.extent for loop in self.reduced[:-1]) * last

    @property
    def parts(self) -> Size:
        """Into how many shares of threads."""
        return (as_size(self.blocks) + (SHARE - 1)) // SHARE

    def is_split(self) -> bool:
        """Whether threads share the elements of each result."""
        whole = any(rule_of(node).position for node in self.reductions) or len(self._waves()) > 1
        if whole or self.full or bounds(as_size(self.blocks))[1] <= SHARE:
            return False
        most = bounds(product(loop.extent for loop in self._outer()))[1]
        return most < FEW and bounds(self.source.tensor_type.count)[1] >= LARGE

    def is_short(self) -> bool:
        """Whether each result is an expression of few elements, side by side with the next."""
        if self.across is None or self.full or len(self.reduced) != 1 or has_spread(self.totals):
            return False
        extent = self.reduced[0].extent
        return isinstance(extent, int) and extent <= SHORT

    def _outer(self) -> list[Loop]:
        chunks = [] if self.across is None else [self._chunks(self.across)]
        return [*self.kept, *chunks]

    def _chunks(self, across: Loop) -> Loop:
        made = loop_over("chunk", (as_size(across.extent) + (WIDTH - 1)) // WIDTH)
        self.writer.loops.add(made.var)
        return made

    # The kernels.
    def kernel(self, name: str) -> KernelSource:
        """The one that does all."""
        self._locals()
        with rows(self.writer, self._outer()):
            self._width()
            for wave in self._waves():
                if rule_of(wave[0].node).position:
                    self._winner(wave[0])
                    continue
                self.writer.line("count = 0")
                self._sum(wave, "0", self.writer.size(self.blocks))
                self._gather(wave)
                self._finish(wave)
            self._results()
        return self.writer.finish(name)

    def unrolled(self, name: str) -> KernelSource:
        """The one that does all where results are short expressions, with the same bits."""
        (loop,), writer = self.reduced, self.writer
        with rows(writer, self._outer()):
            self._width()
            with self._lanes():
                for total in (total for wave in self._waves() for total in wave):
                    moved = [self._moved(loop.var, k) for k in range(bounds(loop.extent)[1])]
                    values = [self._element(total, index) for index in moved]
                    held, start = total.held, self._start(total)
                    writer.line(f"{held} = {start}")
                    while values:
                        many = NEAR if len(values) >= NEAR else 1
                        near, values = values[:many], values[many:]
                        joined = combine(total.node, held, self._paired(total, near))
                        writer.line(f"{held} = {joined}")
                    writer.line(f"{held} = {combine(total.node, start, held)}")
                    writer.own[total.node] = self._finished(total, held)
                self._store_kept()
        return writer.finish(name)

    def shares(self, name: str) -> KernelSource:
        """The one that leaves the total of each share in memory."""
        writer, (wave,) = self.writer, self._waves()
        self._locals()
        with rows(writer, [*self._outer(), loop_over("part", self.parts)]):
            self._width()
            writer.line(f"last = part * {SHARE} + {SHARE}")
            blocks = writer.size(self.blocks)
            writer.line(f"last = last if last < {blocks} else {blocks}")
            writer.line("count = 0")
            self._sum(wave, f"part * {SHARE}", "last")
            self._gather(wave)
            with self._lanes():
                for array in arrays_of(wave):
                    writer.line(f"{self._share(wave, array, 'row')} = {array}t[{self.lane}]")
            if has_spread(wave):
                writer.line(f"{self._share(wave, 'elements', 'row')} = i64(counted)")
        return self._with_scratch(writer.finish(name), wave, barrier=True)

    def combined(self, name: str) -> KernelSource:
        """The one that combines the totals of the shares."""
        writer, (wave,) = self.writer, self._waves()
        self._locals()
        parts, outer = writer.size(self.parts), self._outer()
        with rows(writer, outer):
            writer.line(f"slot = {'row' if outer else '0'} * {parts}")
            self._width()
            writer.line("count = 0")
            with writer.block(f"for part in range({parts}):"):
                writer.line("at_part = slot + part")
                with self._lanes():
                    for array in arrays_of(wave):
                        writer.line(f"{array}[{self.lane}] = {self._share(wave, array, 'at_part')}")
                if has_spread(wave):
                    writer.line(f"number = {self._share(wave, 'elements', 'at_part')}")
                self._push(wave)
            self._gather(wave)
            self._finish(wave)
            self._results()
        return self._with_scratch(writer.finish(name), wave)

    # Memory between the two.
    def _shared(self, wave: Sequence[Total]) -> dict[str, tuple[str, int]]:
        """Element type and elements of a slot for each array of totals."""
        width = WIDTH if self.across is not None else 1
        arrays = {a: (STORED.get(t.dtype, t.dtype), width) for t in wave for a in t.arrays}
        return arrays | ({"elements": ("int64", 1)} if has_spread(wave) else {})

    def _share(self, wave: Sequence[Total], array: str, slot: str) -> str:
        """Where an array lies in a slot of the scratch memory."""
        slots = bounds(product(loop.extent for loop in self._outer()) * self.parts)[1]
        start = 0
        for name, (dtype, width) in self._shared(wave).items():
            if name == array:
                break
            start += align(slots * width * ITEMSIZE[dtype])
        self.writer.scratch[f"s_{name}"] = dtype
        first = self.writer.size(start // ITEMSIZE[dtype])
        lane = f" * {WIDTH} + lane" if width > 1 else ""
        return f"s_{name}[{first} + ({slot}){lane}]"

    def _with_scratch(
        self, kernel: KernelSource, wave: Sequence[Total], barrier: bool = False
    ) -> KernelSource:
        slots = bounds(product(loop.extent for loop in self._outer()) * self.parts)[1]
        shared = self._shared(wave).values()
        nbytes = sum(align(slots * width * ITEMSIZE[dtype]) for dtype, width in shared)
        flops = None if barrier else 0
        return replace(kernel, scratch=nbytes, barrier=barrier, flops=flops)

    # Local variables.
    def _locals(self) -> None:
        width, part = (WIDTH, WIDTH) if self.across is not None else (1, LANES)
        totals = [t for t in self.totals if not rule_of(t.node).position]
        for array, kind in {a: local_kind(t.dtype) for t in totals for a in t.arrays}.items():
            self.writer.line(f"{array} = local({part}, {kind})")
            self.writer.line(f"{array}t = local({width}, {kind})")
            self.writer.line(f"{array}s = local({LEVELS * width}, {kind})")
        for i, t in enumerate(totals):
            kind = local_kind(t.dtype)
            self.writer.line(f"own{i} = local({width}, {kind})")
            if t.away:
                self.writer.line(f"{t.away}m = local({width}, {kind})")
        if has_spread(totals):
            self.writer.line(f"numbers = local({LEVELS}, i64)")

    def _width(self) -> None:
        if self.across is not None:
            self.writer.line(f"base = chunk * {WIDTH}")
            self.writer.line(f"width = {self.writer.size(self.across.extent)} - base")
            self.writer.line(f"width = width if width < {WIDTH} else {WIDTH}")

    def _element(self, total: Total, index: Sequence[Size] | None = None) -> str:
        source, writer = total.node.inputs[0], self.writer
        value = writer.value(source, index or self.index)
        return cast(value, source.dtype, total.dtype, writer.mixed)

    # Sums of blocks.
    def _sum(self, wave: Sequence[Total], first: str, last: str) -> None:
        """Push the totals of blocks ``first`` to ``last``."""
        writer = self.writer
        if not self.reduced:
            with writer.block(f"for block in range({first}, {last}):"):
                writer.line("begin = 0")
                writer.line("stop = 1")
                self._block(wave)
                self._push(wave)
            return
        extent = writer.size(self.reduced[-1].extent)
        writer.line(f"line = div({extent} + {self.size - 1}, {self.size})")
        with writer.block(f"for block in range({first}, {last}):"):
            rest = "block"
            if len(self.reduced) > 1:
                writer.line("upper = div(block, line)")
                writer.line(f"begin = (block - upper * line) * {self.size}")
                rest = "upper"
            else:
                writer.line(f"begin = block * {self.size}")
            for number, loop in enumerate(reversed(self.reduced[1:-1])):
                writer.line(f"{loop.var.name} = mod({rest}, {writer.size(loop.extent)})")
                writer.line(f"upper{number} = div({rest}, {writer.size(loop.extent)})")
                rest = f"upper{number}"
            if len(self.reduced) > 1:
                writer.line(f"{self.reduced[0].var.name} = {rest}")
            writer.line(f"stop = begin + {self.size}")
            writer.line(f"stop = stop if stop < {extent} else {extent}")
            self._block(wave)
            self._push(wave)

    def _block(self, wave: Sequence[Total]) -> None:
        """The totals of the block from ``begin`` to ``stop``; of a variance, its mean first."""
        walk = self._columns if self.across is not None else self._line
        own = {t.held: t for t in wave if t.away} | {t.held: t for t in wave if not t.away}
        walk({t.held: (t, self._element) for t in own.values()})
        spread = [t for t in wave if t.away]
        if not spread:
            return
        self.writer.line("number = stop - begin")
        with self._lanes():
            for t in spread:
                number = cast("number", "int64", t.dtype)
                self.writer.line(f"{t.away}m[{self.lane}] = {t.held}[{self.lane}] / {number}")
        walk({t.away: (t, self._distance) for t in spread})

    def _distance(self, total: Total, index: Sequence[Size] | None = None) -> str:
        """The squared distance of an element from the mean of its block."""
        writer, name = self.writer, self.writer.fresh()
        writer.line(f"{name} = {self._element(total, index)} - {total.away}m[{self.lane}]")
        return f"{name} * {name}"

    def _line(self, sums: Mapping[str, tuple[Total, Callable[..., str]]]) -> None:
        """A block along the fastest dimension, into lanes, and these into the first of them."""
        writer = self.writer
        var = self.reduced[-1].var.name if self.reduced else "unused"
        writer.line(f"whole = begin + div(stop - begin, {LANES}) * {LANES}")
        with writer.block(f"for lane in range({LANES}):"):
            for array, (total, _) in sums.items():
                writer.line(f"{array}[lane] = {total.neutral}")
        with (
            writer.block(f"for k in range(begin, whole, {LANES}):"),
            writer.block(f"for lane in range({LANES}):"),
        ):
            writer.line(f"{var} = k + lane")
            self._add(sums)
        with writer.block("for lane in range(stop - whole):"):
            writer.line(f"{var} = whole + lane")
            self._add(sums)
        half = LANES // 2
        while half:
            with writer.block(f"for lane in range({half}):"):
                for array, (total, _) in sums.items():
                    joined = combine(total.node, f"{array}[lane]", f"{array}[lane + {half}]")
                    writer.line(f"{array}[lane] = {joined}")
            half //= 2

    def _add(self, sums: Mapping[str, tuple[Total, Callable[..., str]]]) -> None:
        for array, (total, element) in sums.items():
            joined = combine(total.node, f"{array}[lane]", element(total))
            self.writer.line(f"{array}[lane] = {joined}")

    def _columns(self, sums: Mapping[str, tuple[Total, Callable[..., str]]]) -> None:
        """A block across the fastest dimension: 4 elements of each column at a time."""
        writer = self.writer
        with self._lanes():
            for array, (total, _) in sums.items():
                writer.line(f"{array}[lane] = {total.neutral}")
        if not self.reduced:
            with self._lanes():
                self._add(sums)
            return
        var = self.reduced[-1].var
        writer.line(f"whole = begin + div(stop - begin, {NEAR}) * {NEAR}")
        with writer.block(f"for k in range(begin, whole, {NEAR}):"):
            near = [Var(f"{var.name}_{j}", *bounds(as_size(var))) for j in range(NEAR)]
            writer.loops.update(near)
            for j, each in enumerate(near):
                writer.line(f"{each.name} = k + {j}")
            with self._lanes():
                for array, (total, element) in sums.items():
                    values = [element(total, self._moved(var, each)) for each in near]
                    joined = combine(total.node, f"{array}[lane]", self._paired(total, values))
                    writer.line(f"{array}[lane] = {joined}")
        with writer.block(f"for {var.name} in range(whole, stop):"), self._lanes():
            self._add(sums)

    def _moved(self, var: Var, to: Var | int) -> tuple[Size, ...]:
        """The index with another variable, or a number, in the place of one."""
        return tuple(as_size(to) if i == as_size(var) else i for i in self.index)

    def _start(self, total: Total) -> str:
        """The neutral element, of the type of what it meets."""
        return typed(total.neutral, total.dtype, self.writer.mixed)

    def _paired(self, total: Total, values: list[str]) -> str:
        while len(values) > 1:
            halves = zip(values[::2], values[1::2], strict=True)
            values = [f"({combine(total.node, a, b)})" for a, b in halves]
        return values[0]

    # Blocks, pairwise.
    def _push(self, wave: Sequence[Total]) -> None:
        """Carry the totals of a block into the stack of them, as a binary counter does."""
        writer, arrays = self.writer, arrays_of(wave)
        writer.line("level = 0")
        writer.line("carry = count")
        with writer.block("while mod(carry, 2) == 1:"):
            self._join(wave, "numbers[level]", "number", lambda a: f"{a}[{self.lane}]")
            writer.line("level += 1")
            writer.line("carry = div(carry, 2)")
        with self._lanes():
            for array in arrays:
                writer.line(f"{array}s[{self.place}] = {array}[{self.lane}]")
        if has_spread(wave):
            writer.line("numbers[level] = i64(number)")
        writer.line("count += 1")

    def _gather(self, wave: Sequence[Total]) -> None:
        """The totals of the stack."""
        writer = self.writer
        with self._lanes():
            for total in wave:
                for array in total.arrays:
                    writer.line(f"{array}t[{self.lane}] = {total.neutral}")
        writer.line("counted = 0")
        writer.line("level = 0")
        with writer.block("while count > 0:"):
            with writer.block("if mod(count, 2) == 1:"):
                self._join(wave, "numbers[level]", "counted", lambda a: f"{a}t[{self.lane}]")
            writer.line("level += 1")
            writer.line("count = div(count, 2)")

    def _join(self, wave: Sequence[Total], before: str, behind: str, at: Text) -> None:
        """Combine what lies in the stack at ``level`` with what is ``at`` its right; squared
        distances by Chan, Golub and LeVeque, 1979.
        """
        writer, held = self.writer, {t.held: t for t in wave}
        if has_spread(wave):
            dtype = next(t.dtype for t in wave if t.away)
            writer.line(f"left = {cast(before, 'int64', dtype)}")
            writer.line(f"right = {cast(behind, 'int64', dtype)}")
            writer.line("between = left * right / (left + right)")
            writer.line(f"right = right if right > {literal(0, dtype)} else {literal(1, dtype)}")
        with self._lanes():
            for total in (t for t in wave if t.away):
                left = {a: f"{a}s[{self.place}]" for a in total.arrays}
                gap = writer.fresh()
                writer.line(f"{gap} = {at(total.held)} / right - {left[total.held]} / left")
                apart = f"{left[total.away]} + {at(total.away)} + {gap} * {gap} * between"
                writer.line(f"{at(total.away)} = {apart}")
            for array, total in held.items():
                joined = combine(total.node, f"{array}s[{self.place}]", at(array))
                writer.line(f"{at(array)} = {joined}")
        if has_spread(wave):
            writer.line(f"{behind} = {before} + {behind}")

    def _finish(self, wave: Sequence[Total]) -> None:
        """What reductions are, from their totals."""
        with self._lanes():
            for total in wave:
                own = f"own{self.totals.index(total)}[{self.lane}]"
                held = f"{total.away or total.held}t[{self.lane}]"
                self.writer.line(f"{own} = {self._finished(total, held)}")
                self.writer.own[total.node] = own

    def _finished(self, total: Total, held: str) -> str:
        """What a reduction is, from its total."""
        number = self.writer.size(product(self.source.shape[axis] for axis in self.axes))
        count = cast(f"i64({number})", "int64", total.node.dtype)
        return rule_of(total.node).finish.format(acc=held, n=count)

    # The position of the first element that wins.
    def _winner(self, total: Total) -> None:
        writer = self.writer
        writer.line(f"best = {total.neutral}")
        writer.line(f"{total.held} = i64(0)")
        writer.line("found = 0")
        with self._nest(self.reduced):
            value = writer.fresh()
            writer.line(f"{value} = {self._element(total)}")
            wins = combine(total.node, "best", value)
            with writer.block(f"if found == 0 or ({wins}):"):
                writer.line(f"best = {value}")
                writer.line(f"{total.held} = i64({self._linear()})")
                writer.line("found = 1")
        writer.own[total.node] = total.held

    def _linear(self) -> str:
        """Position within the reduced axes, row-major in the logical shape."""
        total: Size = 0
        for axis in sorted(self.axes):
            total = as_size(total) * self.source.shape[axis] + self.index[axis]
        return self.writer.index_text(total)

    # What is computed from the reductions.
    def _results(self) -> None:
        if len(self.full) < len(self.group.outputs):
            with self._lanes():
                self._store_kept()
        if self.full:
            with self._nest(self.reduced), self._lanes():
                for node in self.full:
                    self.writer.store(node, self.index, self.writer.value(node, self.index))

    def _store_kept(self) -> None:
        """Store the outputs of which there is one for each result."""
        full = set(self.full)
        for node in self.group.outputs:
            if node not in full:
                index = self._kept_index(node, self.index)
                self.writer.store(node, index, self.writer.value(node, index))

    def _kept_index(self, node: Node, index: Sequence[Size]) -> tuple[Size, ...]:
        """The index of an output that has lost the reduced axes, or has them with size 1."""
        if node.ndim == self.source.ndim:
            return tuple(0 if d in self.axes else i for d, i in enumerate(index))
        return tuple(i for d, i in enumerate(index) if d not in self.axes)

    # Loops.
    @contextmanager
    def _nest(self, loops: Sequence[Loop]) -> Iterator[None]:
        if not loops:
            yield
            return
        head = f"for {loops[0].var.name} in range({self.writer.size(loops[0].extent)}):"
        with self.writer.block(head), self._nest(loops[1:]):
            yield

    @contextmanager
    def _lanes(self) -> Iterator[None]:
        """The neighbours that are reduced side by side; without them, once."""
        if self.across is None:
            yield
            return
        with self.writer.block("for lane in range(width):"):
            self.writer.line(f"{self.across.var.name} = base + lane")
            yield
