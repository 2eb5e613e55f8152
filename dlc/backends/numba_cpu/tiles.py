"""Register tiles: the innermost loops of contractions, a few rows times a few vectors of columns.

They are written in LLVM rather than in Python because speed needs accumulators that stay in
registers over the whole sum, which no compiler arranges for a loop nest by itself.

A tile computes, for its rows i and its columns j (`w` is packed in panels of 32 columns),

    acc[i, j] = sum over a < outer, b < inner, c < depth of
                x[x_rows[i] + a outer_step + b inner_step + c] * w[((a inner + b) depth + c) 32 + j]
    y[y_rows[i] + j] = expression(acc[i, j], operands)

Rows are given by tables of offsets, so that they may be anything: rows of a matrix, neighbouring
pixels of a convolution, pixels on both sides of the end of an image's line.

Order of the sum: chains of multiply-adds over at most `chain` products in the order of a, b, c; the
chains are added one after the other. It depends on the sizes alone, so results have the same bits
for every tile, block and number of threads, and on every level that has a fused multiply-add.
Chains make the error grow with their length rather than with that of the sum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from dlc.backends.native.frontend import Param
from dlc.backends.native.isa import Isa
from dlc.backends.numba_cpu.kernel import NativeFunction
from dlc.backends.numba_cpu.vectors import (
    PLAIN,
    POINTER,
    WORD,
    Epilogue,
    VectorFunction,
    declare,
    declare_internal,
    tile_twin,
    word,
)
from dlc.ops.packed import PANEL

#: The longest chain of multiply-adds, unless a tile says otherwise.
CHAIN = 256
#: Most rows of a tile. Two vectors of columns make twice as many accumulators; the other registers
#: hold the columns' weights, a broadcast element and, without FMA, a product.
ROWS = {"x86-64-v2": 4, "x86-64-v3": 6, "x86-64-v4": 14, "aarch64": 12}


@dataclass(frozen=True)
class Tile(NativeFunction):
    """A native function that computes up to `rows` rows of `columns` columns.

    In C: `void name(rows, columns, x, x_rows, w, y, y_rows, operands..., outer, outer_step, inner,
    inner_step, depth, chunk)`. `columns` may be fewer than the tile's: nothing beyond them is read
    of the operands, or written. A full operand is followed by its table of rows. A run along depth
    is chained in pieces of `chunk`, at most `chain`. No rows are allowed, and no products.

    Attributes
    ----------
    isa : Isa
    dtype : str
        "float32" or "float64": of all operands.
    vectors : int
        Width in vectors: 2, or 1 for the ragged end of the columns.
    epilogue : Epilogue
    chain : int
        The longest chain of multiply-adds.
    """

    isa: Isa
    dtype: str
    vectors: int = 2
    epilogue: Epilogue = PLAIN
    chain: int = CHAIN

    @property
    def rows(self) -> int:
        """The most rows of one call."""
        return ROWS[self.isa.name]

    @property
    def columns(self) -> int:
        """The most columns of one call; it divides `PANEL`."""
        return self.vectors * self.isa.lanes(self.dtype)

    @property
    def name(self) -> str:
        """The symbol: level and shape in words, what else there is as a digest."""
        digest = self.epilogue.digest(self.dtype, self.chain)
        return f"tile_{self.isa.symbol}_{self.rows}x{self.vectors}_{digest}"

    @property
    def params(self) -> tuple[Param, ...]:
        """The parameters in order."""
        pointer = f"{self.dtype}*"
        params = [Param("rows", "int64"), Param("columns", "int64")]
        params += [Param("x", pointer), Param("x_rows", "int64*"), Param("w", pointer)]
        params += [Param("y", pointer), Param("y_rows", "int64*")]
        for operand in self.epilogue.operands:
            params.append(Param(operand.name, pointer))
            if operand.kind == "full":
                params.append(Param(f"{operand.name}_rows", "int64*"))
        sizes = ("outer", "outer_step", "inner", "inner_step", "depth", "chunk")
        return (*params, *(Param(size, "int64") for size in sizes))

    def text(self) -> str:
        """The LLVM module that defines it: a body for each number of rows, and a switch."""
        module = ir.Module(self.name)
        entry = declare(module, self.name, self.params)
        builder = ir.IRBuilder(entry.append_basic_block("entry"))
        done = entry.append_basic_block("done")
        switch = builder.switch(entry.args[0], done)
        for rows in range(1, self.rows + 1):
            body = declare_internal(module, f"{self.name}.{rows}", self.params)
            _Body(self, body, rows).emit()
            block = entry.append_basic_block(f"rows_{rows}")
            switch.add_case(word(rows), block)
            builder.position_at_end(block)
            builder.call(body, entry.args, tail="tail")
            builder.ret_void()
        builder.position_at_end(done)
        builder.ret_void()
        return str(module)

    def twin(self) -> Callable[..., None]:
        """The same function in plain Python, for `python_twin.run`."""
        return tile_twin(self, _sum, lambda arg, name, i: arg[f"{name}_rows"][i])


def _sum(arg: Mapping[str, Any], i: int, j: int) -> Any:
    """acc[i, j] of the module's formula."""
    x, w, row = arg["x"], arg["w"], arg["x_rows"][i]
    total, k = w[j] * 0, 0
    for a in range(arg["outer"]):
        for b in range(arg["inner"]):
            for c in range(arg["depth"]):
                step = a * arg["outer_step"] + b * arg["inner_step"]
                total += x[row + step + c] * w[k * PANEL + j]
                k += 1
    return total


class _Body(VectorFunction):
    """Emits the function for one number of rows."""

    def __init__(self, tile: Tile, function: ir.Function, rows: int) -> None:
        super().__init__(function, tile.params, tile.isa, tile.dtype, tile.epilogue)
        self.tile, self.rows = tile, rows
        self.count = rows * tile.vectors
        self.sums = self.builder.alloca(self.vector, word(self.count))
        self.sums.align = 64
        self.places = [self.sum(i) for i in range(self.count)]

    def emit(self) -> None:
        """The whole function: the sum, then the store."""
        b, vectors = self.builder, self.tile.vectors
        acc = self.contract()
        whole, part = self.blocks("whole", "part")
        b.cbranch(b.icmp_signed(">=", self.arg["columns"], word(self.tile.columns)), whole, part)
        b.position_at_end(whole)
        if self.epilogue.short:
            self.store_straight(acc)
        else:
            self.store_loop(acc, [None] * vectors)
        b.position_at_end(part)
        self.store_loop(acc, self.masks(self.arg["columns"], vectors))

    # The sum.

    def contract(self) -> list[ir.Value]:
        """acc[i, j], row by row."""
        b, arg = self.builder, self.arg
        rows = [self.row("x", i) for i in range(self.rows)]
        products = b.mul(b.mul(arg["outer"], arg["inner"]), arg["depth"])
        chained = b.icmp_signed(">", products, word(self.tile.chain))  # more than one chain
        clear, start, run, last, add, finish = self.blocks(
            "clear", "start", "run", "last", "add", "finish"
        )
        b.cbranch(chained, clear, start)
        b.position_at_end(clear)
        for place in self.places:
            self.store(self.zero, place)
        b.branch(start)
        b.position_at_end(start)
        b.cbranch(b.icmp_signed(">", products, word(0)), run, finish)
        b.position_at_end(run)
        chain = self.runs(rows, start, last)
        b.position_at_end(last)
        b.cbranch(chained, add, finish)
        b.position_at_end(add)
        total = [b.fadd(self.load(place), value) for place, value in zip(self.places, chain)]
        b.branch(finish)
        b.position_at_end(finish)
        result = [self.phi(self.vector) for _ in range(self.count)]
        self.feed(result, [self.zero] * self.count, start)
        self.feed(result, chain, last)
        self.feed(result, total, add)
        return result

    def runs(self, rows: Sequence[ir.Value], start: ir.Block, end: ir.Block) -> list[ir.Value]:
        """A loop over the chunks, from `start` to `end`: the last chain.

        Before a chunk that would make the chain too long, it is added to `self.sums`.
        """
        b, run = self.builder, self.builder.block
        zeros = [self.zero] * self.count
        place = _Place(self)
        acc = [self.phi(self.vector) for _ in range(self.count)]
        self.feed(acc, zeros, start)
        count = place.enter(start)
        w, chain = self.chunk([self.at(row, place.x) for row in rows], place.w, acc, count)
        more = place.advance(count, w)
        onward, fold = self.blocks("onward", "fold")
        b.cbranch(more, onward, end)
        b.position_at_end(onward)
        b.cbranch(place.full(), fold, run)
        self.feed(acc, chain, onward)
        place.go_on(onward)
        b.position_at_end(fold)
        for each, value in zip(self.places, chain):
            self.store(b.fadd(self.load(each), value), each)
        b.branch(run)
        self.feed(acc, zeros, fold)
        place.go_on(fold, chained=word(0))
        return chain

    def chunk(
        self, rows: Sequence[ir.Value], w: ir.Value, acc: Sequence[ir.Value], count: ir.Value
    ) -> tuple[ir.Value, list[ir.Value]]:
        """The innermost loop, `count` products from `rows` and `w` on: the next w, and the sums."""
        b, before = self.builder, self.builder.block
        step, after = self.blocks("step", "after")
        b.branch(step)
        b.position_at_end(step)
        k, at = self.phi(WORD), self.phi(POINTER)
        chain = [self.phi(self.vector) for _ in range(self.count)]
        columns = [self.load(self.at(at, j * self.lanes)) for j in range(self.tile.vectors)]
        sums = []
        for row in rows:
            element = self.emitter.splat(b.load(self.at(row, k), typ=self.element))
            for column in columns:
                sums.append(self.emitter.fma(element, column, chain[len(sums)]))
        k_next, at_next = b.add(k, word(1)), self.at(at, PANEL)
        self.feed([k, at, *chain], [word(0), w, *acc], before)
        self.feed([k, at, *chain], [k_next, at_next, *sums], step)
        self.rolled(b.cbranch(b.icmp_signed("<", k_next, count), step, after))
        b.position_at_end(after)
        return at_next, sums

    # The store.

    def store_straight(self, acc: Sequence[ir.Value]) -> None:
        """All columns, the expression written out for each accumulator."""
        vectors = self.tile.vectors
        every = [None] * vectors
        columns = {
            each.name: self.pieces(self.arg[each.name], every) for each in self.epilogue.columns
        }
        for i in range(self.rows):
            self.store_row(i, acc[i * vectors : (i + 1) * vectors], columns, every)
        self.builder.ret_void()

    def store_loop(self, acc: Sequence[ir.Value], masks: Sequence[ir.Value | None]) -> None:
        """A loop over the rows, the expression written out once; only the columns of `masks`."""
        b, vectors = self.builder, self.tile.vectors
        for value, each in zip(acc, self.places):
            self.store(value, each)
        columns = {
            each.name: self.pieces(self.arg[each.name], masks) for each in self.epilogue.columns
        }
        before = b.block
        loop, done = self.blocks("row", "done")
        b.branch(loop)
        b.position_at_end(loop)
        i = self.phi(WORD)
        first = b.mul(i, word(vectors))
        sums = [self.load(self.sum(b.add(first, word(j)))) for j in range(vectors)]
        self.store_row(i, sums, columns, masks)
        i_next = b.add(i, word(1))
        self.feed([i], [word(0)], before)
        self.feed([i], [i_next], b.block)
        self.rolled(b.cbranch(b.icmp_signed("<", i_next, word(self.rows)), loop, done))
        b.position_at_end(done)
        b.ret_void()

    def store_row(
        self,
        i: ir.Value | int,
        acc: Sequence[ir.Value],
        columns: Mapping[str, Sequence[ir.Value]],
        masks: Sequence[ir.Value | None],
    ) -> None:
        """Row i of y, from its sums."""
        pieces = {"acc": acc, **columns}
        for each in self.epilogue.fulls:
            pieces[each.name] = self.pieces(self.row(each.name, i), masks)
        y = self.row("y", i)
        for j, mask in enumerate(masks):
            result = self.expression({name: values[j] for name, values in pieces.items()})
            self.store(result, self.at(y, j * self.lanes), mask)

    # Memory.

    def offset(self, name: str, i: ir.Value | int) -> ir.Value:
        """The offset of row i of the operand `name`."""
        i = word(i) if isinstance(i, int) else i
        table = self.arg[f"{name}_rows"]
        return self.builder.load(self.builder.gep(table, [i], source_etype=WORD), typ=WORD)

    def row(self, name: str, i: ir.Value | int) -> ir.Value:
        """Row i of the operand `name`."""
        return self.at(self.arg[name], self.offset(name, i))

    def sum(self, i: ir.Value | int) -> ir.Value:
        """The memory of accumulator i."""
        i = word(i) if isinstance(i, int) else i
        return self.builder.gep(self.sums, [i], source_etype=self.vector)

    def pieces(self, row: ir.Value, masks: Sequence[ir.Value | None]) -> list[ir.Value]:
        """The vectors of a row."""
        return [self.load(self.at(row, j * self.lanes), mask) for j, mask in enumerate(masks)]


class _Place:
    """Where in the sum a tile is: a, b, what is left of depth, the offsets in x, w, and the chain.

    It advances without branches, in the shadow of the chunk's multiply-adds.
    """

    def __init__(self, body: _Body) -> None:
        self.body, self.builder, self.arg = body, body.builder, body.arg
        self.now = [body.phi(WORD) for _ in range(7)] + [body.phi(POINTER)]
        self.a, self.b, self.left, self.x_a, self.x_b, self.x, self.chained, self.w = self.now

    def enter(self, block: ir.Block) -> ir.Value:
        """At the beginning, from `block`: the length of this chunk."""
        zero = word(0)
        begin = [zero, zero, self.arg["depth"], zero, zero, zero, zero, self.arg["w"]]
        self.body.feed(self.now, begin, block)
        return self._chunk(self.left)

    def advance(self, count: ir.Value, w: ir.Value) -> ir.Value:
        """Behind a chunk of `count` products: whether there is another one."""
        b, arg = self.builder, self.arg
        left = b.sub(self.left, count)
        run_done = b.icmp_signed("==", left, word(0))
        b_next = b.add(self.b, b.zext(run_done, WORD))
        line_done = b.icmp_signed("==", b_next, arg["inner"])
        a_next = b.add(self.a, b.zext(line_done, WORD))
        x_a = b.select(line_done, b.add(self.x_a, arg["outer_step"]), self.x_a)
        x_b = b.select(run_done, b.add(self.x_b, arg["inner_step"]), self.x_b)
        x_b = b.select(line_done, x_a, x_b)
        x = b.select(run_done, x_b, b.add(self.x, count))
        b_next = b.select(line_done, word(0), b_next)
        left = b.select(run_done, arg["depth"], left)
        self.next = [a_next, b_next, left, x_a, x_b, x, b.add(self.chained, count), w]
        return b.icmp_signed("<", a_next, arg["outer"])

    def full(self) -> ir.Value:
        """Whether the next chunk would make the chain too long."""
        left, chained = self.next[2], self.next[6]
        length = self.builder.add(chained, self._chunk(left))
        return self.builder.icmp_signed(">", length, word(self.body.tile.chain))

    def go_on(self, block: ir.Block, chained: ir.Value | None = None) -> None:
        """To the next chunk, from `block`, the chain being `chained` long by now."""
        *place, length, w = self.next
        self.body.feed(self.now, [*place, length if chained is None else chained, w], block)

    def _chunk(self, left: ir.Value) -> ir.Value:
        chunk = self.arg["chunk"]
        return self.builder.select(self.builder.icmp_signed("<", left, chunk), left, chunk)
