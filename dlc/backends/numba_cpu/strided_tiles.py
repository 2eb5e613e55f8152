"""Register tiles over strided operands: one chain of products, for operands that lie as they are.

In the gradient of a weight the sum runs over pixels, and both operands lie with their channels
together: a row of the result is a channel of x, read with a stride along the sum, and its columns
are the channels of a gradient. Nothing needs to be packed or transposed. A tile adds one chain of
multiply-adds to sums in memory; what becomes of the sums is another function, which knows the
epilogue, so that one tile serves all models.

A chain computes, for rows i and columns j,

    chain[i, j] = sum over a < outer, b < inner, c < depth of
                  x[x_rows[i] + a x_outer + b x_inner + c x_step]
                  * w[a w_outer + b w_inner + c w_step + j]

as one chain of multiply-adds in the order of a, b, c, so that it has the same bits for every tile.
In a convolution with a filter for each channel, x moves with the column too, `x[... + j]`: such a
tile is `lanewise`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from dlc.backends.native.frontend import Param
from dlc.backends.native.isa import Isa
from dlc.backends.numba_cpu.kernel import NativeFunction
from dlc.backends.numba_cpu.tiles import ROWS
from dlc.backends.numba_cpu.vectors import (
    PLAIN,
    POINTER,
    WORD,
    Epilogue,
    VectorFunction,
    declare,
    declare_internal,
    module_text,
    word,
)

_LOOPS = ("outer", "x_outer", "w_outer", "inner", "x_inner", "w_inner", "depth", "x_step", "w_step")


@dataclass(frozen=True)
class StridedTile(NativeFunction):
    """A native function that adds a chain to the sums of up to `rows` rows of `columns` columns.

    In C: `void name(rows, columns, x, x_rows, w, sums, more, outer, x_outer, w_outer, inner,
    x_inner, w_inner, depth, x_step, w_step)`. Sums lie row by row, as wide as the tile. They become
    the chain, or are added to where `more` is not 0. Nothing beyond the columns is read of w; the
    sums there are zero, or nothing of use.

    Attributes
    ----------
    isa : Isa
    dtype : str
        "float32" or "float64".
    vectors : float
        Width in vectors: 2, 1, or 0.5 for a vector of half the length.
    lanewise : bool
        x has an element for each column, rather than one for all.
    """

    isa: Isa
    dtype: str
    vectors: float = 2
    lanewise: bool = False

    @property
    def rows(self) -> int:
        """The most rows of one call."""
        return ROWS[self.isa.name]

    @property
    def columns(self) -> int:
        """The most columns of one call."""
        return round(self.vectors * self.isa.lanes(self.dtype))

    @property
    def name(self) -> str:
        """The symbol."""
        stem = "lanewise" if self.lanewise else "strided"
        return f"{stem}_{self.isa.symbol}_{self.rows}x{self.columns}_{self.dtype}"

    @property
    def params(self) -> tuple[Param, ...]:
        """The parameters in order."""
        pointer = f"{self.dtype}*"
        params = [Param("rows", "int64"), Param("columns", "int64"), Param("x", pointer)]
        params += [Param("x_rows", "int64*"), Param("w", pointer), Param("sums", pointer)]
        return (*params, Param("more", "int64"), *(Param(name, "int64") for name in _LOOPS))

    def text(self) -> str:
        """The LLVM module: for each number of rows a body for all columns, and one for fewer."""
        module = ir.Module(self.name)
        entry = declare(module, self.name, self.params)
        builder = ir.IRBuilder(entry.append_basic_block("entry"))
        whole, part, done = (entry.append_basic_block(each) for each in ("whole", "part", "done"))
        full = builder.icmp_signed(">=", entry.args[1], word(self.columns))
        builder.cbranch(full, whole, part)
        for block, masked in ((whole, False), (part, True)):
            builder.position_at_end(block)
            switch = builder.switch(entry.args[0], done)
            for rows in range(1, self.rows + 1):
                name = f"{self.name}.{rows}{'.part' if masked else ''}"
                body = declare_internal(module, name, self.params)
                _Chain(self, body, rows).emit(masked)
                call = entry.append_basic_block("rows")
                switch.add_case(word(rows), call)
                builder.position_at_end(call)
                builder.call(body, entry.args, tail="tail")
                builder.ret_void()
        builder.position_at_end(done)
        builder.ret_void()
        return str(module)

    def twin(self) -> Callable[..., None]:
        """The same function in plain Python, for `python_twin.run`."""
        names = [param.name for param in self.params]

        def run(*arguments: Any) -> None:
            arg = dict(zip(names, arguments, strict=True))
            for i in range(arg["rows"]):
                for j in range(arg["columns"]):
                    at = i * self.columns + j
                    before = arg["sums"][at] if arg["more"] else 0
                    row = arg["x_rows"][i] + (j if self.lanewise else 0)
                    arg["sums"][at] = before + _chain(arg, row, j)

        return run


def _chain(arg: dict[str, Any], row: int, j: int) -> Any:
    """chain[i, j] of the module's formula."""
    total = 0
    for a in range(arg["outer"]):
        for b in range(arg["inner"]):
            for c in range(arg["depth"]):
                x = a * arg["x_outer"] + b * arg["x_inner"] + c * arg["x_step"]
                w = a * arg["w_outer"] + b * arg["w_inner"] + c * arg["w_step"]
                total += arg["x"][row + x] * arg["w"][w + j]
    return total


class _Chain(VectorFunction):
    """Emits the function for one number of rows."""

    def __init__(self, tile: StridedTile, function: ir.Function, rows: int) -> None:
        lanes = min(tile.columns, tile.isa.lanes(tile.dtype))
        super().__init__(function, tile.params, tile.isa, tile.dtype, PLAIN, lanes)
        self.tile, self.rows = tile, rows
        self.vectors = tile.columns // lanes
        self.count = rows * self.vectors

    def emit(self, masked: bool) -> None:
        """The chain in registers, then its way into the sums."""
        b, arg = self.builder, self.arg
        masks: Sequence[ir.Value | None] = [None] * self.vectors
        if masked:
            masks = self.masks(arg["columns"], self.vectors)
        rows = [self.at(arg["x"], self.offset(i)) for i in range(self.rows)]
        start, finish, add, put = self.blocks("runs", "finish", "add", "put")
        products = b.mul(b.mul(arg["outer"], arg["inner"]), arg["depth"])
        entry = b.block
        b.cbranch(b.icmp_signed(">", products, word(0)), start, finish)
        b.position_at_end(start)
        chain = self.runs(rows, masks, entry, finish)
        end = b.block
        b.position_at_end(finish)
        total = [self.phi(self.vector) for _ in range(self.count)]
        self.feed(total, [self.zero] * self.count, entry)
        self.feed(total, chain, end)
        b.cbranch(b.icmp_signed("!=", arg["more"], word(0)), add, put)
        for block, more in ((add, True), (put, False)):
            b.position_at_end(block)
            for number, value in enumerate(total):
                place = self.at(arg["sums"], number * self.lanes)
                self.store(b.fadd(self.load(place), value) if more else value, place)
            b.ret_void()

    def offset(self, i: int) -> ir.Value:
        """Where row i of x begins."""
        table = self.arg["x_rows"]
        return self.builder.load(self.builder.gep(table, [word(i)], source_etype=WORD), typ=WORD)

    def runs(
        self,
        rows: Sequence[ir.Value],
        masks: Sequence[ir.Value | None],
        before: ir.Block,
        after: ir.Block,
    ) -> list[ir.Value]:
        """A loop over the runs along depth, from `before` to `after`: the whole chain."""
        b, arg, run = self.builder, self.arg, self.builder.block
        place = [self.phi(WORD) for _ in range(6)]
        acc = [self.phi(self.vector) for _ in range(self.count)]
        self.feed(place, [word(0)] * 6, before)
        self.feed(acc, [self.zero] * self.count, before)
        a_left, b_left, x_a, w_a, x_b, w_b = place
        chain = self.steps(rows, masks, x_b, self.at(arg["w"], w_b), acc)
        # Where the next run is, without branches, in the shadow of the multiply-adds.
        inner = b.add(b_left, word(1))
        line_done = b.icmp_signed("==", inner, arg["inner"])
        a_next = b.add(a_left, b.zext(line_done, WORD))
        x_next = b.select(line_done, b.add(x_a, arg["x_outer"]), x_a)
        w_next = b.select(line_done, b.add(w_a, arg["w_outer"]), w_a)
        x_run = b.select(line_done, x_next, b.add(x_b, arg["x_inner"]))
        w_run = b.select(line_done, w_next, b.add(w_b, arg["w_inner"]))
        inner = b.select(line_done, word(0), inner)
        self.feed(place, [a_next, inner, x_next, w_next, x_run, w_run], b.block)
        self.feed(acc, chain, b.block)
        self.rolled(b.cbranch(b.icmp_signed("<", a_next, arg["outer"]), run, after))
        return chain

    def steps(
        self,
        rows: Sequence[ir.Value],
        masks: Sequence[ir.Value | None],
        x: ir.Value,
        w: ir.Value,
        acc: Sequence[ir.Value],
    ) -> list[ir.Value]:
        """The innermost loop, along depth."""
        b, before = self.builder, self.builder.block
        step, after = self.blocks("step", "after")
        b.branch(step)
        b.position_at_end(step)
        left, x_at, w_at = self.phi(WORD), self.phi(WORD), self.phi(POINTER)
        chain = [self.phi(self.vector) for _ in range(self.count)]
        columns = [self.load(self.at(w_at, j * self.lanes), mask) for j, mask in enumerate(masks)]
        sums = []
        for row in rows:
            elements = self.elements(self.at(row, x_at), masks)
            for element, column in zip(elements, columns, strict=True):
                sums.append(self.emitter.fma(element, column, chain[len(sums)]))
        left_next = b.sub(left, word(1))
        x_next, w_next = b.add(x_at, self.arg["x_step"]), self.at(w_at, self.arg["w_step"])
        self.feed([left, x_at, w_at, *chain], [self.arg["depth"], x, w, *acc], before)
        self.feed([left, x_at, w_at, *chain], [left_next, x_next, w_next, *sums], step)
        self.rolled(b.cbranch(b.icmp_signed(">", left_next, word(0)), step, after))
        b.position_at_end(after)
        return sums

    def elements(self, x: ir.Value, masks: Sequence[ir.Value | None]) -> list[ir.Value]:
        """What each vector of columns is multiplied by."""
        if self.tile.lanewise:
            starts = [j * self.lanes for j in range(len(masks))]
            return [self.load(self.at(x, j), mask) for j, mask in zip(starts, masks, strict=True)]
        return [self.emitter.splat(self.builder.load(x, typ=self.element))] * len(masks)


@dataclass(frozen=True)
class StridedStore(NativeFunction):
    """A native function that stores what the epilogue makes of the sums of a `StridedTile`.

    In C: `void name(rows, columns, sums, y, y_row, operands...)`, a full operand followed by the
    distance of its rows: `y[i y_row + j] = expression(sums[i, j], operands)`, and so on for y1 and
    y2 where there are several results, each of which may be an operand. Nothing beyond the columns
    is read or written.

    Attributes
    ----------
    isa : Isa
    dtype : str
        "float32" or "float64".
    columns : int
        Of the tile.
    epilogue : Epilogue
    """

    isa: Isa
    dtype: str
    columns: int
    epilogue: Epilogue = PLAIN

    @property
    def name(self) -> str:
        """The symbol: level and width, and a digest of the epilogue."""
        digest = self.epilogue.digest(self.dtype)
        return f"strided_store_{self.isa.symbol}_{self.columns}_{digest}"

    @property
    def params(self) -> tuple[Param, ...]:
        """The parameters in order."""
        pointer = f"{self.dtype}*"
        params = [Param("rows", "int64"), Param("columns", "int64"), Param("sums", pointer)]
        for name in self.epilogue.results:
            params += [Param(name, pointer), Param(f"{name}_row", "int64")]
        for operand in self.epilogue.operands:
            params.append(Param(operand.name, pointer))
            if operand.kind == "full":
                params.append(Param(f"{operand.name}_row", "int64"))
        return tuple(params)

    def text(self) -> str:
        """The LLVM module: a loop over the rows for all columns, and one for fewer."""
        return module_text(self, lambda function: _Store(self, function))

    def twin(self) -> Callable[..., None]:
        """The same function in plain Python, for `python_twin.run`."""
        names, expressions = [param.name for param in self.params], self.epilogue.twins()

        def run(*arguments: Any) -> None:
            arg = dict(zip(names, arguments, strict=True))
            for i in range(arg["rows"]):
                for j in range(arg["columns"]):
                    values = {"acc": arg["sums"][i * self.columns + j]}
                    values |= {each.name: arg[each.name][j] for each in self.epilogue.columns}
                    values |= {each.name: arg[each.name][0] for each in self.epilogue.scalars}
                    for each in self.epilogue.fulls:
                        values[each.name] = arg[each.name][i * arg[f"{each.name}_row"] + j]
                    results = {name: each(values) for name, each in expressions.items()}
                    for name, result in results.items():
                        arg[name][i * arg[f"{name}_row"] + j] = result

        return run


class _Store(VectorFunction):
    """Emits the store."""

    def __init__(self, store: StridedStore, function: ir.Function) -> None:
        lanes = min(store.columns, store.isa.lanes(store.dtype))
        super().__init__(function, store.params, store.isa, store.dtype, store.epilogue, lanes)
        self.width = store.columns

    def emit(self) -> None:
        """The whole function."""
        b = self.builder
        some, whole, part, done = self.blocks("some", "whole", "part", "done")
        b.cbranch(b.icmp_signed(">", self.arg["rows"], word(0)), some, done)
        b.position_at_end(some)
        full = b.icmp_signed(">=", self.arg["columns"], word(self.width))
        b.cbranch(full, whole, part)
        vectors = self.width // self.lanes
        b.position_at_end(whole)
        self.loop([None] * vectors, done)
        b.position_at_end(part)
        self.loop(self.masks(self.arg["columns"], vectors), done)
        b.position_at_end(done)
        b.ret_void()

    def loop(self, masks: Sequence[ir.Value | None], done: ir.Block) -> None:
        """Over the rows, the columns of `masks`."""
        b, arg, before = self.builder, self.arg, self.builder.block
        starts = [self.lanes * number for number in range(len(masks))]
        columns = {
            each.name: [
                self.load(self.at(arg[each.name], start), mask)
                for start, mask in zip(starts, masks, strict=True)
            ]
            for each in self.epilogue.columns
        }
        for each in self.epilogue.scalars:
            element = b.load(arg[each.name], typ=self.element)
            columns[each.name] = [self.emitter.splat(element)] * len(masks)
        (row,) = self.blocks("row")
        b.branch(row)
        b.position_at_end(row)
        i = self.phi(WORD)
        sums = self.at(arg["sums"], b.mul(i, word(self.width)))
        for number, (start, mask) in enumerate(zip(starts, masks, strict=True)):
            values = {name: pieces[number] for name, pieces in columns.items()}
            values["acc"] = self.load(self.at(sums, start))
            for each in self.epilogue.fulls:
                values[each.name] = self.load(self.at(self.row(each.name, i), start), mask)
            for name, result in self.expressions(values).items():
                self.store(result, self.at(self.row(name, i), start), mask)
        i_next = b.add(i, word(1))
        self.feed([i], [word(0)], before)
        self.feed([i], [i_next], b.block)
        self.rolled(b.cbranch(b.icmp_signed("<", i_next, arg["rows"]), row, done))

    def row(self, name: str, i: ir.Value) -> ir.Value:
        """Row i of a result or of a full operand."""
        return self.at(self.arg[name], self.builder.mul(i, self.arg[f"{name}_row"]))
