"""Register tiles: the innermost loops of contractions, a few rows times a few vectors of columns.

They are written in LLVM rather than in Python because speed needs accumulators that stay in
registers over the whole sum, which no compiler arranges for a loop nest by itself.

A tile computes, for its rows i and its columns j (`w` is packed in panels of 32 columns),

    acc[i, j] = sum over a < outer, b < inner, c < depth of
                x[x_rows[i] + a * outer_step + b * inner_step + c] * w[((a * inner + b) * depth + c) * 32 + j]
    y[y_rows[i] + j] = expression(acc[i, j], operands)

Rows are given by tables of offsets, so that they may be anything: rows of a matrix, neighbouring
pixels of a convolution, pixels on both sides of the end of an image's line.

Order of the sum: chains of multiply-adds over at most `CHAIN` products in the order of a, b, c; the
chains are added one after the other. It depends on the sizes alone, so results have the same bits
for every tile, block and number of threads, and on every level that has a fused multiply-add.
Chains make the error grow with CHAIN rather than with the length of the sum.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from dlc.backends.native.emit import Emitter, emit_expression
from dlc.backends.native.frontend import Extern, Param
from dlc.backends.native.isa import Isa
from dlc.backends.native.python_twin import python_namespace
from dlc.errors import CompileError

#: Columns of a panel of packed weights, whatever the level; narrow vectors read a part of one.
PANEL = 32
#: The longest chain of multiply-adds.
CHAIN = 256
#: Most rows of a tile of two vectors. Accumulators are twice as many; the rest holds the columns'
#: weights, a broadcast element and, without FMA, a product.
ROWS = {"x86-64-v2": 4, "x86-64-v3": 6, "x86-64-v4": 14, "aarch64": 12}
#: Expressions of more operations are emitted once, in a loop, rather than for each accumulator.
SHORT = 8
_CALLS = frozenset({"relu", "abs", "fma", "fmax", "fmin"})

_WORD = ir.IntType(64)
_LANE = ir.IntType(32)
_POINTER = ir.PointerType()


@dataclass(frozen=True)
class Operand:
    """A value in an epilogue besides `acc`.

    Attributes
    ----------
    name : str
        Its name in the expression, and of its parameter.
    kind : str
        "column": one element per column, contiguous. "full": one per row and column, contiguous
        along columns; its rows have a table of offsets of their own.
    """

    name: str
    kind: str

    def __post_init__(self) -> None:
        if self.kind not in ("column", "full"):
            raise CompileError(f"operand {self.name} is a column or full, not {self.kind!r}")


@dataclass(frozen=True)
class Epilogue:
    """What becomes of the sum at the store.

    Attributes
    ----------
    expression : str
        Over `acc`, the operands' names and numbers, as `emit.emit_expression` reads it.
    operands : tuple of Operand
        A full operand may be `y` itself: `acc + y` accumulates.
    """

    expression: str = "acc"
    operands: tuple[Operand, ...] = ()

    @property
    def columns(self) -> tuple[Operand, ...]:
        """The operands of kind "column"."""
        return tuple(operand for operand in self.operands if operand.kind == "column")

    @property
    def fulls(self) -> tuple[Operand, ...]:
        """The operands of kind "full"."""
        return tuple(operand for operand in self.operands if operand.kind == "full")

    @property
    def short(self) -> bool:
        """Whether the expression is cheap enough to be repeated for every accumulator."""
        nodes = list(ast.walk(ast.parse(self.expression, mode="eval")))
        calls = {ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)}
        operations = sum(isinstance(node, ast.operator | ast.Call | ast.Compare) for node in nodes)
        return calls <= _CALLS and operations <= SHORT


@dataclass(frozen=True)
class Tile:
    """A native function that computes up to `rows` rows of `columns` columns.

    In C: `void name(rows, columns, x, x_rows, w, y, y_rows, operands..., outer, outer_step, inner,
    inner_step, depth, chunk)`. `columns` may be fewer than the tile's: nothing beyond them is read
    of the operands, or written. A full operand is followed by its table of rows. `chunk` is how
    many products of a run along depth are chained, see `chunk`. No rows is allowed, and no products.

    Attributes
    ----------
    isa : Isa
    dtype : str
        "float32" or "float64": of all operands.
    vectors : int
        Width in vectors: 2, or 1 for the ragged end of the columns.
    epilogue : Epilogue
    """

    isa: Isa
    dtype: str
    vectors: int = 2
    epilogue: Epilogue = Epilogue()

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
        """The symbol: level and shape in words, the epilogue as a digest."""
        identity = repr((self.dtype, self.epilogue)).encode()
        digest = hashlib.sha256(identity).hexdigest()[:12]
        level = self.isa.name.replace("-", "_")
        return f"tile_{level}_{self.rows}x{self.vectors}_{digest}"

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

    @property
    def extern(self) -> Extern:
        """How kernel source calls it."""
        return Extern(self.name, self.params)

    def text(self) -> str:
        """The LLVM module that defines it: one body for each number of rows, and a switch."""
        module = ir.Module(self.name)
        kinds = [_POINTER if param.is_pointer else _WORD for param in self.params]
        kind = ir.FunctionType(ir.VoidType(), kinds)
        entry = ir.Function(module, kind, self.name)
        builder = ir.IRBuilder(entry.append_basic_block("entry"))
        done = entry.append_basic_block("done")
        switch = builder.switch(entry.args[0], done)
        for rows in range(1, self.rows + 1):
            function = ir.Function(module, kind, f"{self.name}.{rows}")
            function.linkage = "internal"
            function.attributes.add("noinline")
            _Body(self, function, rows).emit()
            block = entry.append_basic_block(f"rows_{rows}")
            switch.add_case(_word(rows), block)
            builder.position_at_end(block)
            builder.call(function, entry.args, tail="tail")
            builder.ret_void()
        builder.position_at_end(done)
        builder.ret_void()
        return str(module)

    def twin(self) -> Callable[..., None]:
        """The same function in plain Python, for `python_twin.run`."""
        names = [param.name for param in self.params]
        expression = compile(self.epilogue.expression, f"<{self.name}>", "eval")

        def tile(*arguments: Any) -> None:
            arg = dict(zip(names, arguments, strict=True))
            for i in range(arg["rows"]):
                for j in range(arg["columns"]):
                    values = {"acc": _sum(arg, i, j)}
                    values |= {each.name: arg[each.name][j] for each in self.epilogue.columns}
                    for each in self.epilogue.fulls:
                        row = arg[f"{each.name}_rows"][i]
                        values[each.name] = arg[each.name][row + j]
                    result = eval(expression, dict(python_namespace()), values)
                    arg["y"][arg["y_rows"][i] + j] = result

        return tile


def _sum(arg: dict[str, Any], i: int, j: int) -> Any:
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


def _word(value: int) -> ir.Constant:
    return ir.Constant(_WORD, value)


class _Body:
    """Emits the function for one number of rows."""

    def __init__(self, tile: Tile, function: ir.Function, rows: int) -> None:
        self.tile, self.function, self.rows = tile, function, rows
        self.lanes = tile.isa.lanes(tile.dtype)
        self.element = ir.FloatType() if tile.dtype == "float32" else ir.DoubleType()
        self.vector = ir.VectorType(self.element, self.lanes)
        self.zero = ir.Constant(self.vector, None)
        self.bytes = 4 if tile.dtype == "float32" else 8
        self.builder = ir.IRBuilder(function.append_basic_block("entry"))
        self.emitter = Emitter(self.builder, self.vector, tile.isa)
        self.arg = {param.name: value for param, value in zip(tile.params, function.args)}
        self.count = rows * tile.vectors
        self.sums = self.builder.alloca(self.vector, _word(self.count))
        self.sums.align = 64

    def emit(self) -> None:
        """The whole function: the sum, then the store."""
        acc = self.contract()
        whole, part = self.blocks("whole", "part")
        full = self.builder.icmp_signed(">=", self.arg["columns"], _word(self.tile.columns))
        self.builder.cbranch(full, whole, part)
        self.builder.position_at_end(whole)
        if self.tile.epilogue.short:
            self.store_straight(acc)
        else:
            self.store_loop(acc, masks=None)
        self.builder.position_at_end(part)
        self.store_loop(acc, masks=self.masks())

    # The sum.

    def contract(self) -> list[ir.Value]:
        """acc[i, j], row by row; it ends in a block of its own.

        `start -> run -> step (the loop over one chunk) -> next -> run ... -> last -> finish`; on the
        way back `fold` adds the chains so far to `self.sums` and begins new ones.
        """
        b, arg = self.builder, self.arg
        clear, start, run, fold, last, add, finish = self.blocks(
            "clear", "start", "run", "fold", "last", "add", "finish"
        )
        rows = [self.at(arg["x"], self.offset("x", i)) for i in range(self.rows)]
        products = b.mul(b.mul(arg["outer"], arg["inner"]), arg["depth"])
        folded = b.icmp_signed(">", products, _word(CHAIN))
        b.cbranch(folded, clear, start)
        b.position_at_end(clear)
        for i in range(self.count):
            self.store(self.zero, self.sum(i))
        b.branch(start)
        b.position_at_end(start)
        b.cbranch(b.icmp_signed(">", products, _word(0)), run, finish)

        b.position_at_end(run)
        place = _Place(self)
        w, chain = self.phi(_POINTER), self.phi(_WORD)
        acc = [self.phi(self.vector) for _ in range(self.count)]
        self.feed([w, chain, *acc], [arg["w"], _word(0), *[self.zero] * self.count], start)
        count = place.enter(start)
        w_next, sums = self.chunk_loop([self.at(row, place.x) for row in rows], w, acc, count, run)

        step = b.block
        advance, more = place.advance(count)
        chain_next = b.add(chain, count)
        b.cbranch(more, advance, last)
        b.position_at_end(advance)
        too_long = b.icmp_signed(">", b.add(chain_next, place.next_count()), _word(CHAIN))
        b.cbranch(too_long, fold, run)
        self.feed([w, chain, *acc], [w_next, chain_next, *sums], advance)
        place.again(advance)
        b.position_at_end(fold)
        for i, value in enumerate(sums):
            self.store(b.fadd(self.load(self.sum(i)), value), self.sum(i))
        b.branch(run)
        self.feed([w, chain, *acc], [w_next, _word(0), *[self.zero] * self.count], fold)
        place.again(fold)

        b.position_at_end(last)
        b.cbranch(folded, add, finish)
        b.position_at_end(add)
        added = [b.fadd(self.load(self.sum(i)), value) for i, value in enumerate(sums)]
        b.branch(finish)
        b.position_at_end(finish)
        result = [self.phi(self.vector) for _ in range(self.count)]
        self.feed(result, [self.zero] * self.count, start)
        self.feed(result, sums, last)
        self.feed(result, added, add)
        return result

    def chunk_loop(
        self,
        rows: Sequence[ir.Value],
        w: ir.Value,
        acc: Sequence[ir.Value],
        count: ir.Value,
        before: ir.Block,
    ) -> tuple[ir.Value, list[ir.Value]]:
        """The innermost loop, `count` products from `rows` and `w` on: the new `w` and sums."""
        b, vectors = self.builder, self.tile.vectors
        (step,), after = self.blocks("step"), None
        b.branch(step)
        b.position_at_end(step)
        k, at = self.phi(_WORD), self.phi(_POINTER)
        chains = [self.phi(self.vector) for _ in range(self.count)]
        self.feed([k, at, *chains], [_word(0), w, *acc], before)
        columns = [self.load(self.at(at, j * self.lanes)) for j in range(vectors)]
        sums = []
        for i, row in enumerate(rows):
            element = self.emitter.splat(b.load(self.at(row, k), typ=self.element))
            for j, column in enumerate(columns):
                sums.append(self.emitter.fma(element, column, chains[i * vectors + j]))
        k_next, at_next = b.add(k, _word(1)), self.at(at, PANEL)
        self.feed([k, at, *chains], [k_next, at_next, *sums], step)
        (after,) = self.blocks("next")
        self.rolled(b.cbranch(b.icmp_signed("<", k_next, count), step, after))
        b.position_at_end(after)
        return at_next, sums

    # The store.

    def store_straight(self, acc: Sequence[ir.Value]) -> None:
        """All columns, the expression written out for each accumulator."""
        epilogue = self.tile.epilogue
        values = {each.name: self.pieces(self.arg[each.name]) for each in epilogue.columns}
        for i in range(self.rows):
            for each in epilogue.fulls:
                values[each.name] = self.pieces(self.at(self.arg[each.name], self.offset(each.name, i)))
            y = self.at(self.arg["y"], self.offset("y", i))
            for j in range(self.tile.vectors):
                operands = {name: pieces[j] for name, pieces in values.items()}
                operands["acc"] = acc[i * self.tile.vectors + j]
                self.store(self.expression(operands), self.at(y, j * self.lanes))
        self.builder.ret_void()

    def store_loop(self, acc: Sequence[ir.Value], masks: Sequence[ir.Value] | None) -> None:
        """A loop over the rows; with `masks`, only the columns that there are."""
        b, epilogue, vectors = self.builder, self.tile.epilogue, self.tile.vectors
        for i, value in enumerate(acc):
            self.store(value, self.sum(i))
        columns = {each.name: self.pieces(self.arg[each.name], masks) for each in epilogue.columns}
        before = b.block
        loop, done = self.blocks("row", "done")
        b.branch(loop)
        b.position_at_end(loop)
        i = self.phi(_WORD)
        values = dict(columns)
        for each in epilogue.fulls:
            row = self.at(self.arg[each.name], self.offset(each.name, i))
            values[each.name] = self.pieces(row, masks)
        y = self.at(self.arg["y"], self.offset("y", i))
        first = b.mul(i, _word(vectors))
        for j in range(vectors):
            operands = {name: pieces[j] for name, pieces in values.items()}
            operands["acc"] = self.load(self.sum(b.add(first, _word(j))))
            result, place = self.expression(operands), self.at(y, j * self.lanes)
            if masks is None:
                self.store(result, place)
            else:
                self.masked("store", ir.VoidType(), [result, place, masks[j]])
        i_next = b.add(i, _word(1))
        self.feed([i], [_word(0)], before)
        self.feed([i], [i_next], b.block)
        self.rolled(b.cbranch(b.icmp_signed("<", i_next, _word(self.rows)), loop, done))
        b.position_at_end(done)
        b.ret_void()

    def masks(self) -> list[ir.Value]:
        """For each vector, which of its columns there are."""
        b, kind = self.builder, ir.VectorType(_LANE, self.lanes)
        empty, zeros = ir.Constant(kind, ir.Undefined), ir.Constant(kind, None)
        columns = b.insert_element(empty, b.trunc(self.arg["columns"], _LANE), ir.Constant(_LANE, 0))
        limit = b.shuffle_vector(columns, empty, zeros)
        lanes = range(self.lanes * self.tile.vectors)
        numbers = [lanes[i : i + self.lanes] for i in lanes[:: self.lanes]]
        return [b.icmp_signed("<", ir.Constant(kind, list(each)), limit) for each in numbers]

    def expression(self, operands: dict[str, ir.Value]) -> ir.Value:
        return emit_expression(self.emitter, self.tile.epilogue.expression, operands)

    # Memory and blocks.

    def blocks(self, *names: str) -> list[ir.Block]:
        return [self.function.append_basic_block(name) for name in names]

    def phi(self, kind: ir.Type) -> ir.Value:
        return self.builder.phi(kind)

    def feed(self, phis: Sequence[Any], values: Sequence[ir.Value], block: ir.Block) -> None:
        """What the phis are when control comes from `block`."""
        for phi, value in zip(phis, values, strict=True):
            phi.add_incoming(value, block)

    def at(self, pointer: ir.Value, offset: ir.Value | int) -> ir.Value:
        """`pointer` moved by `offset` elements."""
        offset = _word(offset) if isinstance(offset, int) else offset
        return self.builder.gep(pointer, [offset], source_etype=self.element)

    def offset(self, name: str, i: ir.Value | int) -> ir.Value:
        """The offset of row i of the operand `name`."""
        i = _word(i) if isinstance(i, int) else i
        table = self.arg[f"{name}_rows"]
        return self.builder.load(self.builder.gep(table, [i], source_etype=_WORD), typ=_WORD)

    def sum(self, i: ir.Value | int) -> ir.Value:
        """The memory of accumulator i."""
        i = _word(i) if isinstance(i, int) else i
        return self.builder.gep(self.sums, [i], source_etype=self.vector)

    def pieces(self, row: ir.Value, masks: Sequence[ir.Value] | None = None) -> list[ir.Value]:
        """The vectors of a row."""
        places = [self.at(row, j * self.lanes) for j in range(self.tile.vectors)]
        if masks is None:
            return [self.load(place) for place in places]
        return [
            self.masked("load", self.vector, [place, mask, self.zero])
            for place, mask in zip(places, masks, strict=True)
        ]

    def load(self, pointer: ir.Value) -> ir.Value:
        value = self.builder.load(pointer, typ=self.vector)
        value.align = self.bytes
        return value

    def store(self, value: ir.Value, pointer: ir.Value) -> None:
        self.builder.store(value, pointer).align = self.bytes

    def masked(self, name: str, result: ir.Type, operands: Sequence[ir.Value]) -> ir.Value:
        symbol = f"llvm.masked.{name}.v{self.lanes}f{8 * self.bytes}.p0"
        module = self.builder.module
        function = module.globals.get(symbol)
        if function is None:
            kind = ir.FunctionType(result, [operand.type for operand in operands])
            function = ir.Function(module, kind, symbol)
        return self.builder.call(function, operands)

    def rolled(self, branch: Any) -> None:
        """Forbid LLVM to unroll the loop that `branch` closes: unrolled, it spills accumulators."""
        module = self.builder.module
        disable = module.add_metadata([ir.MetaDataString(module, "llvm.loop.unroll.disable")])
        loop = ir.MDValue(module, [disable], name=str(len(module.metadata)))
        loop.operands = (loop, disable)  # a loop's name is a node that holds itself
        branch.set_metadata("llvm.loop", loop)


class _Place:
    """Where in the sum the tile is: a, b, what is left of depth, and the offsets that go with them.

    It advances without branches, as the run over one chunk hides its instructions.
    """

    def __init__(self, body: _Body) -> None:
        self.body, self.builder, self.arg = body, body.builder, body.arg
        self.now = [body.phi(_WORD) for _ in range(6)]
        self.a, self.b, self.left, self.x_a, self.x_b, self.x = self.now

    def enter(self, block: ir.Block) -> ir.Value:
        """At the beginning, from `block`: the length of the first chunk."""
        zero = _word(0)
        self.body.feed(self.now, [zero, zero, self.arg["depth"], zero, zero, zero], block)
        return self._shorter(self.left)

    def advance(self, count: ir.Value) -> tuple[ir.Block, ir.Value]:
        """Behind `count` products: a block to go on in, and whether there is more."""
        b, arg = self.builder, self.arg
        left = b.sub(self.left, count)
        run_done = b.icmp_signed("==", left, _word(0))
        b_next = b.add(self.b, b.zext(run_done, _WORD))
        row_done = b.icmp_signed("==", b_next, arg["inner"])
        a_next = b.add(self.a, b.zext(row_done, _WORD))
        x_a = b.select(row_done, b.add(self.x_a, arg["outer_step"]), self.x_a)
        x_b = b.select(run_done, b.add(self.x_b, arg["inner_step"]), self.x_b)
        x_b = b.select(row_done, x_a, x_b)
        x = b.select(run_done, x_b, b.add(self.x, count))
        left = b.select(run_done, arg["depth"], left)
        self.next = [a_next, b.select(row_done, _word(0), b_next), left, x_a, x_b, x]
        (block,) = self.body.blocks("advance")
        return block, b.icmp_signed("<", a_next, arg["outer"])

    def next_count(self) -> ir.Value:
        """The length of the next chunk."""
        return self._shorter(self.next[2])

    def again(self, block: ir.Block) -> None:
        """Go on with the next chunk, from `block`."""
        self.body.feed(self.now, self.next, block)

    def _shorter(self, left: ir.Value) -> ir.Value:
        chunk = self.arg["chunk"]
        return self.builder.select(self.builder.icmp_signed("<", left, chunk), left, chunk)
