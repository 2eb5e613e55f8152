"""The transforms of Winograd's algorithm as native functions: a tile of the input to points, and
the products at those points back to a tile of the result.

Channels are in the vector lanes, so that a transform is straight arithmetic on a few dozen
registers, written out; the mathematics is that of `dlc.ops.winograd`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import ir

from dlc.backends.native.frontend import Param
from dlc.backends.native.isa import Isa
from dlc.backends.numba_cpu.kernel import NativeFunction
from dlc.backends.numba_cpu.vectors import (
    PLAIN,
    WORD,
    Epilogue,
    VectorFunction,
    module_text,
    word,
)
from dlc.ops.winograd import matrices

Matrix = Sequence[Sequence[float]]


@dataclass(frozen=True)
class InputTransform(NativeFunction):
    """A native function: B^T d B of one tile of the input, for all channels.

    In C: `void name(x, x_row, x_pixel, v, v_plane, depth)`. Element (i, j) of the result, of
    channel c, is v[(i a + j) v_plane + c], a being m + 2. x and v are read and written in whole
    vectors, beyond the last channel.

    Attributes
    ----------
    isa : Isa
    dtype : str
        "float32" or "float64".
    m : int
        Width of a tile of results.
    """

    isa: Isa
    dtype: str
    m: int

    @property
    def name(self) -> str:
        """The symbol."""
        return f"winograd_input_{self.isa.symbol}_{self.m}_{self.dtype}"

    @property
    def params(self) -> tuple[Param, ...]:
        """The parameters in order."""
        pointer = f"{self.dtype}*"
        x = (Param("x", pointer), Param("x_row", "int64"), Param("x_pixel", "int64"))
        return (*x, Param("v", pointer), Param("v_plane", "int64"), Param("depth", "int64"))

    def text(self) -> str:
        """The LLVM module that defines it."""
        return module_text(self, lambda function: _InputBody(self, function))

    def twin(self) -> Callable[..., None]:
        """The same function in plain Python, for `python_twin.run`."""
        bt = matrices(self.m)[2]

        def transform(x: Any, x_row: int, x_pixel: int, v: Any, v_plane: int, depth: int) -> None:
            a = self.m + 2
            for c in range(depth):
                d = [[x[i * x_row + j * x_pixel + c] for j in range(a)] for i in range(a)]
                for point, value in enumerate((bt @ np.array(d) @ bt.T).flat):
                    v[point * v_plane + c] = value

        return transform


@dataclass(frozen=True)
class OutputTransform(NativeFunction):
    """A native function: A^T M A of one tile, and the epilogue, stored to the result.

    In C: `void name(rows, pixels, columns, p, p_plane, y, y_row, y_pixel, operands...)`. Of the
    m x m pixels only the first `rows` and `pixels` are stored; p holds the products in a plane for
    each point. A full operand is followed by the distances of its rows and of its pixels. Of p
    whole vectors are read, of the operands nothing beyond the columns.

    Attributes
    ----------
    isa : Isa
    dtype : str
    m : int
    epilogue : Epilogue
    """

    isa: Isa
    dtype: str
    m: int
    epilogue: Epilogue = PLAIN

    @property
    def name(self) -> str:
        """The symbol: level and size in words, what else there is as a digest."""
        return f"winograd_output_{self.isa.symbol}_{self.m}_{self.epilogue.digest(self.dtype)}"

    @property
    def params(self) -> tuple[Param, ...]:
        """The parameters in order."""
        pointer = f"{self.dtype}*"
        params = [Param(name, "int64") for name in ("rows", "pixels", "columns")]
        params += [Param("p", pointer), Param("p_plane", "int64")]
        places = ["y", *(each.name for each in self.epilogue.fulls)]
        for name in ("y", *(each.name for each in self.epilogue.operands)):
            params.append(Param(name, pointer))
            if name in places:
                params += [Param(f"{name}_row", "int64"), Param(f"{name}_pixel", "int64")]
        return tuple(params)

    def text(self) -> str:
        """The LLVM module that defines it."""
        return module_text(self, lambda function: _OutputBody(self, function))

    def twin(self) -> Callable[..., None]:
        """The same function in plain Python, for `python_twin.run`."""
        names, at = [param.name for param in self.params], matrices(self.m)[0]
        expression = self.epilogue.twin()

        def transform(*arguments: Any) -> None:
            arg = dict(zip(names, arguments, strict=True))
            a = self.m + 2
            for c in range(arg["columns"]):
                products = [arg["p"][point * arg["p_plane"] + c] for point in range(a * a)]
                tile = at @ np.array(products).reshape(a, a) @ at.T
                values = {each.name: arg[each.name][c] for each in self.epilogue.columns}
                for i in range(arg["rows"]):
                    for j in range(arg["pixels"]):
                        for each in self.epilogue.fulls:
                            row, pixel = (arg[f"{each.name}_{unit}"] for unit in ("row", "pixel"))
                            values[each.name] = arg[each.name][i * row + j * pixel + c]
                        values["acc"] = tile[i, j]
                        arg["y"][i * arg["y_row"] + j * arg["y_pixel"] + c] = expression(values)

        return transform


class Transform(VectorFunction):
    """A function that applies a matrix to both sides of tiles of vectors."""

    def matrix(self, matrix: Matrix, values: Sequence[ir.Value]) -> list[ir.Value]:
        """Matrix times vector, each row a chain of multiply-adds over what is not zero."""
        return [self._chain(row, values) for row in matrix]

    def _chain(self, row: Sequence[float], values: Sequence[ir.Value]) -> ir.Value:
        emit = self.emitter
        terms = [(c, value) for c, value in zip(row, values, strict=True) if c]
        terms.sort(key=lambda term: term[0] != 1)  # a term to begin with that needs no product
        (c, total), *rest = terms
        total = total if c == 1 else emit.mul(total, emit.constant(c))
        for c, value in rest:
            if abs(c) == 1:
                total = emit.add(total, value) if c == 1 else emit.sub(total, value)
            else:
                total = emit.fma(value, emit.constant(c), total)
        return total

    def butterfly(self, values: Sequence[ir.Value]) -> list[ir.Value]:
        """Sum and difference in place of each pair of values for points +-p."""
        result = list(values)
        for i in range(1, len(values) - 1, 2):
            even, odd = values[i : i + 2]
            result[i : i + 2] = self.emitter.add(even, odd), self.emitter.sub(even, odd)
        return result

    def loop(self, end: ir.Value, emit: Callable[[ir.Value], None]) -> None:
        """`for c in range(0, end, lanes)`, at least once, then return."""
        b, before = self.builder, self.builder.block
        body, done = self.blocks("body", "done")
        b.branch(body)
        b.position_at_end(body)
        c = self.phi(WORD)
        emit(c)
        c_next = b.add(c, word(self.lanes))
        self.feed([c], [word(0)], before)
        self.feed([c], [c_next], b.block)
        self.rolled(b.cbranch(b.icmp_signed("<", c_next, end), body, done))
        b.position_at_end(done)
        b.ret_void()

    def place(self, name: str, i: ir.Value | int, j: ir.Value | int, c: ir.Value) -> ir.Value:
        """Row i, pixel j, channel c of an image."""
        b = self.builder
        row, pixel = (
            b.mul(self.arg[f"{name}_{unit}"], word(k) if isinstance(k, int) else k)
            for unit, k in (("row", i), ("pixel", j))
        )
        return self.at(self.arg[name], b.add(b.add(row, pixel), c))

    def plane(self, name: str, point: int, c: ir.Value) -> ir.Value:
        """Channel c of a point's plane."""
        b = self.builder
        return self.at(self.arg[name], b.add(b.mul(self.arg[f"{name}_plane"], word(point)), c))


def _halves(matrix: np.ndarray) -> list[list[float]]:
    """The matrix that a butterfly after it completes: the even and the odd part of the rows of each
    pair of points +-p.
    """
    halved = matrix.copy()
    for i in range(1, len(matrix) - 1, 2):
        plus, minus = matrix[i : i + 2]
        halved[i : i + 2] = (plus + minus) / 2, (plus - minus) / 2
    result: list[list[float]] = halved.tolist()
    return result


class _InputBody(Transform):
    """Emits the input transform."""

    def __init__(self, tile: InputTransform, function: ir.Function) -> None:
        super().__init__(function, tile.params, tile.isa, tile.dtype, PLAIN)
        self.size, self.halves = tile.m + 2, _halves(matrices(tile.m)[2])

    def emit(self) -> None:
        """A loop over vectors of channels."""
        self.loop(self.arg["depth"], self._tile)

    def _tile(self, c: ir.Value) -> None:
        span = range(self.size)
        columns = [self._side([self.load(self.place("x", i, j, c)) for i in span]) for j in span]
        for i in span:
            for j, value in enumerate(self._side([columns[k][i] for k in span])):
                self.store(value, self.plane("v", i * self.size + j, c))

    def _side(self, values: Sequence[ir.Value]) -> list[ir.Value]:
        return self.butterfly(self.matrix(self.halves, values))


class _OutputBody(Transform):
    """Emits the output transform."""

    def __init__(self, tile: OutputTransform, function: ir.Function) -> None:
        super().__init__(function, tile.params, tile.isa, tile.dtype, tile.epilogue)
        self.m, self.size = tile.m, tile.m + 2
        # A^T after a butterfly: the transposed factors, in turn.
        self.halves = np.array(_halves(matrices(tile.m)[0].T)).T.tolist()
        self.memory = self.builder.alloca(self.vector, word(tile.m**2))
        self.memory.align = 64
        b = self.builder
        all_rows, all_pixels = (
            b.icmp_signed("==", self.arg[name], word(tile.m)) for name in ("rows", "pixels")
        )
        self.complete = b.and_(all_rows, all_pixels)

    def emit(self) -> None:
        """A loop over vectors of columns."""
        self.loop(self.arg["columns"], self._tile)

    def _tile(self, c: ir.Value) -> None:
        b = self.builder
        span = range(self.size)
        columns = []
        for j in span:
            points = [self.plane("p", i * self.size + j, c) for i in span]
            columns.append(self._side([self.load(point) for point in points]))
        rows = [self._side([columns[j][i] for j in span]) for i in range(self.m)]
        left = b.sub(self.arg["columns"], c)
        part, stored = self.blocks("part", "stored")
        if self.epilogue.short:
            whole = self.function.append_basic_block("whole")
            full = b.icmp_signed(">=", left, word(self.lanes))
            b.cbranch(b.and_(self.complete, full), whole, part)
            b.position_at_end(whole)
            self._store_straight(rows, c)
            b.branch(stored)
        else:
            b.branch(part)
        b.position_at_end(part)
        self._store_part(rows, c, self.masks(left)[0], stored)
        b.position_at_end(stored)

    def _side(self, values: Sequence[ir.Value]) -> list[ir.Value]:
        return self.matrix(self.halves, self.butterfly(values))

    def _store_straight(self, rows: Sequence[Sequence[ir.Value]], c: ir.Value) -> None:
        """All pixels and a whole vector, the expression written out for each pixel."""
        columns = self._columns(c, None)
        for i, row in enumerate(rows):
            for j, value in enumerate(row):
                self._store_pixel(value, columns, i, j, c, None)

    def _store_part(
        self, rows: Sequence[Sequence[ir.Value]], c: ir.Value, mask: ir.Value, done: ir.Block
    ) -> None:
        """Loops over the pixels that there are, the expression written out once; then to `done`."""
        b = self.builder
        for i, row in enumerate(rows):
            for j, value in enumerate(row):
                self.store(value, self._kept(word(i * self.m + j)))
        columns, before = self._columns(c, mask), b.block
        row_block, pixel_block, next_row = self.blocks("row", "pixel", "next_row")
        b.branch(row_block)
        b.position_at_end(row_block)
        i = self.phi(WORD)
        b.branch(pixel_block)
        b.position_at_end(pixel_block)
        j = self.phi(WORD)
        value = self.load(self._kept(b.add(b.mul(i, word(self.m)), j)))
        self._store_pixel(value, columns, i, j, c, mask)
        j_next, i_next = b.add(j, word(1)), b.add(i, word(1))
        self.feed([j], [word(0)], row_block)
        self.feed([j], [j_next], b.block)
        self.rolled(
            b.cbranch(b.icmp_signed("<", j_next, self.arg["pixels"]), pixel_block, next_row)
        )
        b.position_at_end(next_row)
        self.feed([i], [word(0)], before)
        self.feed([i], [i_next], next_row)
        self.rolled(b.cbranch(b.icmp_signed("<", i_next, self.arg["rows"]), row_block, done))

    def _columns(self, c: ir.Value, mask: ir.Value | None) -> dict[str, ir.Value]:
        return {
            each.name: self.load(self.at(self.arg[each.name], c), mask)
            for each in self.epilogue.columns
        }

    def _kept(self, i: ir.Value) -> ir.Value:
        return self.builder.gep(self.memory, [i], source_etype=self.vector)

    def _store_pixel(
        self,
        value: ir.Value,
        columns: Mapping[str, ir.Value],
        i: ir.Value | int,
        j: ir.Value | int,
        c: ir.Value,
        mask: ir.Value | None,
    ) -> None:
        values = {"acc": value, **columns}
        for each in self.epilogue.fulls:
            values[each.name] = self.load(self.place(each.name, i, j, c), mask)
        self.store(self.expression(values), self.place("y", i, j, c), mask)
