"""Winograd convolution: transform tiles of the input, multiply, transform the products back.

Between the transforms lie (m + 2)^2 matrix products, one for each point, by the register tiles of
all contractions. They are done for a block of tiles and a panel of output channels at a time, so
that what the transforms write is still in the cache when it is read. The mathematics is that of
`dlc.ops.winograd`.

Each tile of results is computed by itself, in an order that its depth alone decides: results have
the same bits for every block and number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from textwrap import indent
from typing import Any

import numpy as np
from llvmlite import ir

from dlc.backends.native.frontend import Param
from dlc.backends.native.isa import Isa
from dlc.backends.native.python_twin import python_namespace
from dlc.backends.numba_cpu.kernel import Kernel, NativeFunction, Sizes, make_kernel
from dlc.backends.numba_cpu.tiles import Tile
from dlc.backends.numba_cpu.vectors import (
    PLAIN,
    WORD,
    Epilogue,
    VectorFunction,
    declare,
    word,
)
from dlc.ir.sizes import Size
from dlc.ir.types import ITEMSIZE
from dlc.ops.packed import PANEL
from dlc.ops.winograd import matrices, tiles_along

#: Bytes of a cache line.
LINE = 64
#: The longest chain of multiply-adds. The transforms amplify the rounding of the products, and this
#: halves it for a few percent of time.
CHAIN = 64
#: Tiles of a block: two register tiles of the widest level.
BLOCK = 28

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
        level = self.isa.name.replace("-", "_")
        return f"winograd_input_{level}_{self.m}_{self.dtype}"

    @property
    def params(self) -> tuple[Param, ...]:
        """The parameters in order."""
        pointer = f"{self.dtype}*"
        x = (Param("x", pointer), Param("x_row", "int64"), Param("x_pixel", "int64"))
        return (*x, Param("v", pointer), Param("v_plane", "int64"), Param("depth", "int64"))

    def text(self) -> str:
        """The LLVM module that defines it."""
        module = ir.Module(self.name)
        _InputBody(self, declare(module, self.name, self.params)).emit()
        return str(module)

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
        level = self.isa.name.replace("-", "_")
        return f"winograd_output_{level}_{self.m}_{self.epilogue.digest(self.dtype)}"

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
        module = ir.Module(self.name)
        _OutputBody(self, declare(module, self.name, self.params)).emit()
        return str(module)

    def twin(self) -> Callable[..., None]:
        """The same function in plain Python, for `python_twin.run`."""
        names, at = [param.name for param in self.params], matrices(self.m)[0]
        expression = compile(self.epilogue.expression, f"<{self.name}>", "eval")

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
                        result = eval(expression, dict(python_namespace()), values)
                        arg["y"][i * arg["y_row"] + j * arg["y_pixel"] + c] = result

        return transform


class _Transform(VectorFunction):
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


class _InputBody(_Transform):
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


class _OutputBody(_Transform):
    """Emits the output transform."""

    def __init__(self, tile: OutputTransform, function: ir.Function) -> None:
        super().__init__(function, tile.params, tile.isa, tile.dtype, tile.epilogue)
        self.m, self.size = tile.m, tile.m + 2
        # A^T after a butterfly: the transposed factors, in turn.
        self.halves = np.array(_halves(matrices(tile.m)[0].T)).T.tolist()
        self.memory = self.builder.alloca(self.vector, word(tile.m**2))
        self.memory.align = LINE
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


@dataclass(frozen=True)
class Winograd:
    """A kernel of 3x3 convolutions of stride 1.

    The result has `images` x `height` x `width` pixels of `columns` channels, contiguous; pixel
    (n, h, v) begins at n y_image + h y_row + v y_pixel. x begins at the corner of the padding; it
    must hold the `tall` m + 2 lines of `wide` m + 2 pixels that `tall` x `wide` tiles read, zeros
    beyond the image. The weights are `[(m + 2)^2][ceil(columns / 32)][depth][32]`. The parameters
    are x, w, y, the operands, `scratch`, and `sizes`, in this order; every thread takes `share`
    elements of the scratch memory.

    Attributes
    ----------
    isa : Isa
    dtype : str
        "float32" or "float64".
    m : int
        Width of a tile of results: 2 or 4.
    epilogue : Epilogue
    """

    isa: Isa
    dtype: str
    m: int
    epilogue: Epilogue = PLAIN

    @property
    def points(self) -> int:
        """Points of a tile."""
        return (self.m + 2) ** 2

    @property
    def product(self) -> Tile:
        """What multiplies."""
        return Tile(self.isa, self.dtype, chain=CHAIN)

    @property
    def transforms(self) -> tuple[InputTransform, OutputTransform]:
        """What lies before and behind the products."""
        kind = (self.isa, self.dtype, self.m)
        return InputTransform(*kind), OutputTransform(*kind, self.epilogue)

    @property
    def sizes(self) -> tuple[str, ...]:
        """Names of the integer parameters."""
        names = ["images", "height", "width", "tall", "wide", "columns", "depth", "block"]
        names += ["v_row", "v_plane", "p_plane", "share"]
        for name in ("x", "y", *(operand.name for operand in self.epilogue.fulls)):
            names += [f"{name}_image", f"{name}_row", f"{name}_pixel"]
        return tuple(names)

    @property
    def kernel(self) -> Kernel:
        """The kernel."""
        names = ["x", "w", "y", *(operand.name for operand in self.epilogue.operands), "scratch"]
        # A full operand may be y itself.
        params = [Param(name, f"{self.dtype}*", noalias=False) for name in names]
        params += [Param(name, "int64") for name in self.sizes]
        return make_kernel("winograd", _body(self), params, (self.product, *self.transforms))


def winograd_sizes(
    winograd: Winograd,
    *,
    shape: tuple[Size, Size, Size],
    columns: int,
    depth: int,
    x_strides: tuple[Size, Size, Size],
    y_strides: tuple[Size, Size, Size],
    fulls: Mapping[str, tuple[Size, Size, Size]] | None = None,
    block: int = BLOCK,
) -> Sizes:
    """Sizes of a Winograd convolution of zero-padded NHWC input.

    Parameters
    ----------
    winograd : Winograd
    shape : tuple of Size
        Images, height and width of the result.
    columns, depth : int
        Channels of the result and of the input.
    x_strides, y_strides : tuple of Size
        Of image, row and pixel.
    fulls : mapping of str to tuple of Size, optional
        The same of each full operand; by default those of y.
    block : int, optional
        The most tiles of a block; results do not depend on it.
    """
    line = LINE // ITEMSIZE[winograd.dtype]
    v_row = _odd_lines(depth, line)
    v_plane = _odd_lines(block * v_row, line)
    p_plane = _odd_lines(block * winograd.product.columns, line)
    sizes: Sizes = {"images": shape[0], "height": shape[1], "width": shape[2]}
    sizes |= {"tall": tiles_along(shape[1], winograd.m), "wide": tiles_along(shape[2], winograd.m)}
    sizes |= {"columns": columns, "depth": depth, "block": block}
    sizes |= {"v_row": v_row, "v_plane": v_plane, "p_plane": p_plane}
    sizes |= {"share": _odd_lines(winograd.points * (v_plane + p_plane), line)}
    places = {
        operand.name: (fulls or {}).get(operand.name, y_strides)
        for operand in winograd.epilogue.fulls
    }
    for name, place in ({"x": x_strides, "y": y_strides} | places).items():
        sizes |= dict(zip((f"{name}_image", f"{name}_row", f"{name}_pixel"), place))
    return sizes


def _odd_lines(elements: int, line: int) -> int:
    """So many elements or more, an odd number of cache lines: what lies so far apart spreads over
    all sets of a cache.
    """
    return (-(-elements // line) | 1) * line


def _body(winograd: Winograd) -> str:
    """The source below the `def` line."""
    tile, (to_points, from_points), m = winograd.product, winograd.transforms, winograd.m

    def place(name: str) -> str:
        return f"at({name}, n * {name}_image + h * {m} * {name}_row + c * {m} * {name}_pixel"

    call = ["rows, pixels, count", f"at(products, t * {tile.columns}), p_plane"]
    call.append(f"{place('y')} + column), y_row, y_pixel")
    for each in winograd.epilogue.operands:
        name = each.name
        full = f"{place(name)} + column), {name}_row, {name}_pixel"
        call.append(full if each.kind == "full" else f"at({name}, column)")
    store = indent(",\n".join(call), " " * 20)
    return f"""\
    tiles = images * tall * wide
    blocks = div(tiles + block - 1, block)
    parts = div(columns + {tile.columns - 1}, {tile.columns})
    # Threads that cannot share the parts evenly share the tiles: a multiple of them in blocks.
    if mod(parts, threads) != 0:
        blocks = div(blocks + threads - 1, threads) * threads
        blocks = blocks if blocks < tiles else tiles
    w_point = div(columns + {PANEL - 1}, {PANEL}) * depth * {PANEL}
    chains = div(depth + {CHAIN - 1}, {CHAIN}) if depth > 0 else 1
    chunk = div(depth + chains - 1, chains)
    v = at(scratch, thread * share)
    products = at(scratch, thread * share + {winograd.points} * v_plane)
    v_rows = local({tile.rows}, i64)
    p_rows = local({tile.rows}, i64)
    for i in range({tile.rows}):
        v_rows[i] = i * v_row
        p_rows[i] = i * {tile.columns}
    # Units of work: a block of tiles and a part of the columns; blocks are of equal size.
    begin = div(blocks * parts * thread, threads)
    end = div(blocks * parts * (thread + 1), threads)
    first = div(begin, parts)
    last = div(end + parts - 1, parts) if begin < end else first
    for b in range(first, last):
        start = div(tiles * b, blocks)
        size = div(tiles * (b + 1), blocks) - start
        line = div(start, wide)
        start_c = start - line * wide
        start_n = div(line, tall)
        start_h = line - start_n * tall
        n = start_n
        h = start_h
        c = start_c
        for t in range(size):
            {to_points.name}(
                {place("x")}), x_row, x_pixel, at(v, t * v_row), v_plane, depth
            )
{_next_tile()}
        pieces = div(size + {tile.rows - 1}, {tile.rows})
        low = begin - b * parts if begin > b * parts else 0
        high = end - b * parts if end < (b + 1) * parts else parts
        for part in range(low, high):
            column = part * {tile.columns}
            weights = div(column, {PANEL}) * depth * {PANEL} + mod(column, {PANEL})
            for point in range({winograd.points}):
                for piece in range(pieces):
                    row = div(size * piece, pieces)
                    {tile.name}(
                        div(size * (piece + 1), pieces) - row, {tile.columns},
                        at(v, point * v_plane + row * v_row), v_rows,
                        at(w, point * w_point + weights),
                        at(products, point * p_plane + row * {tile.columns}), p_rows,
                        1, 0, 1, 0, depth, chunk
                    )
            count = columns - column if columns - column < {tile.columns} else {tile.columns}
            n = start_n
            h = start_h
            c = start_c
            for t in range(size):
                rows = height - h * {m} if height - h * {m} < {m} else {m}
                pixels = width - c * {m} if width - c * {m} < {m} else {m}
                {from_points.name}(
{store}
                )
{indent(_next_tile(), " " * 4)}
"""


def _next_tile() -> str:
    """Advance (n, h, c) to the next tile of a line, of an image, of the next image."""
    lines = ["c += 1", "if c == wide:", "    c = i64(0)", "    h += 1"]
    lines += ["    if h == tall:", "        h = i64(0)", "        n += 1"]
    return indent("\n".join(lines), " " * 12)
