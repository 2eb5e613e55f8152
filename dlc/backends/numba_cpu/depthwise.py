"""Depthwise convolution: one filter for each channel, channels in the vector lanes.

There is no sum over channels, so nothing to reuse but the neighbourhood: a tile takes a few
neighbouring pixels of a line of the result, loads each input pixel of a line of the kernel once,
and multiplies it into every sum that it belongs to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from textwrap import indent
from typing import Any

from llvmlite import ir

from dlc.backends.native.frontend import Param
from dlc.backends.native.isa import Isa
from dlc.backends.numba_cpu.kernel import Kernel, NativeFunction, Sizes, make_kernel
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
from dlc.ir.sizes import Size

#: Most pixels of a tile: with the weights of a line of a 3x3 kernel they fill 16 registers.
ROWS = 8
#: Channels of a unit of work.
CHANNELS = 128


@dataclass(frozen=True)
class DepthwiseTile(NativeFunction):
    """A native function for up to `ROWS` neighbouring pixels of the result and some channels.

    In C: `void name(rows, columns, x, x_pixel, x_line, w, w_tap, y, y_pixel, operands..., lines)`.
    For i < rows and j < columns

        acc[i, j] = sum over a < lines, b < taps of
                    x[a x_line + (i stride + b dilation) x_pixel + j] * w[(a taps + b) w_tap + j]
        y[i y_pixel + j] = expression(acc[i, j], operands)

    as one chain of multiply-adds in the order of a, b. A full operand is followed by the distance
    of its pixels. Nothing beyond the columns is read or written.

    Attributes
    ----------
    isa : Isa
    dtype : str
        "float32" or "float64".
    taps, stride, dilation : int
        Width of the kernel, and its steps along a line.
    epilogue : Epilogue
    """

    isa: Isa
    dtype: str
    taps: int
    stride: int = 1
    dilation: int = 1
    epilogue: Epilogue = PLAIN

    @property
    def name(self) -> str:
        """The symbol: level and shape in words, what else there is as a digest."""
        digest = self.epilogue.digest(self.dtype, self.stride, self.dilation)
        return f"depthwise_{self.isa.symbol}_{ROWS}x{self.taps}_{digest}"

    @property
    def params(self) -> tuple[Param, ...]:
        """The parameters in order."""
        pointer = f"{self.dtype}*"
        params = [Param("rows", "int64"), Param("columns", "int64")]
        params += [Param("x", pointer), Param("x_pixel", "int64"), Param("x_line", "int64")]
        params += [Param("w", pointer), Param("w_tap", "int64")]
        params += [Param("y", pointer), Param("y_pixel", "int64")]
        for operand in self.epilogue.operands:
            params.append(Param(operand.name, pointer))
            if operand.kind == "full":
                params.append(Param(f"{operand.name}_pixel", "int64"))
        return (*params, Param("lines", "int64"))

    def text(self) -> str:
        """The LLVM module: a body for each number of rows, one for what is left of the columns."""
        module = ir.Module(self.name)
        entry = declare(module, self.name, self.params)
        builder = ir.IRBuilder(entry.append_basic_block("entry"))
        rest, done = (entry.append_basic_block(name) for name in ("rest", "done"))
        switch = builder.switch(entry.args[0], rest)
        for rows in range(1, ROWS + 1):
            body = declare_internal(module, f"{self.name}.{rows}", self.params)
            _Body(self, body).emit_whole(rows)
            block = entry.append_basic_block(f"rows_{rows}")
            switch.add_case(word(rows), block)
            builder.position_at_end(block)
            builder.call(body, entry.args)
            builder.branch(rest)
        builder.position_at_end(rest)
        part = declare_internal(module, f"{self.name}.part", self.params)
        _Body(self, part).emit_part()
        builder.call(part, entry.args, tail="tail")
        builder.branch(done)
        builder.position_at_end(done)
        builder.ret_void()
        return str(module)

    def twin(self) -> Callable[..., None]:
        """The same function in plain Python, for `python_twin.run`."""
        return tile_twin(self, self._sum, lambda arg, name, i: i * arg[f"{name}_pixel"])

    def _sum(self, arg: Mapping[str, Any], i: int, j: int) -> Any:
        """acc[i, j] of the formula."""
        total = arg["w"][j] * 0
        for a in range(arg["lines"]):
            for b in range(self.taps):
                pixel = (i * self.stride + b * self.dilation) * arg["x_pixel"]
                tap = (a * self.taps + b) * arg["w_tap"]
                total += arg["x"][a * arg["x_line"] + pixel + j] * arg["w"][tap + j]
        return total


class _Body(VectorFunction):
    """Emits the function for one number of rows, or for the rest of the columns."""

    def __init__(self, tile: DepthwiseTile, function: ir.Function) -> None:
        super().__init__(function, tile.params, tile.isa, tile.dtype, tile.epilogue)
        self.tile = tile

    def emit_whole(self, rows: int) -> None:
        """A loop over whole vectors of columns."""
        self._loop(
            self._whole_columns(), self.lanes, lambda j: self.vectors(rows, j, word(0), None)
        )

    def emit_part(self) -> None:
        """A loop over the rows, for the columns behind the last whole vector."""
        b, j = self.builder, self._whole_columns()
        rest = b.sub(self.arg["columns"], j)
        (mask,) = self.masks(rest)
        any_left = b.icmp_signed(">", rest, word(0))
        rows = b.select(any_left, self.arg["rows"], word(0))
        self._loop(rows, 1, lambda i: self.vectors(1, j, i, mask))

    def _whole_columns(self) -> ir.Value:
        return self.builder.and_(self.arg["columns"], word(-self.lanes))

    def _loop(self, end: ir.Value, step: int, emit: Callable[[ir.Value], None]) -> None:
        """`for i in range(0, end, step)`, then return."""
        b, before = self.builder, self.builder.block
        body, done = self.blocks("body", "done")
        b.cbranch(b.icmp_signed(">", end, word(0)), body, done)
        b.position_at_end(body)
        i = self.phi(WORD)
        emit(i)
        i_next = b.add(i, word(step))
        self.feed([i], [word(0)], before)
        self.feed([i], [i_next], b.block)
        self.rolled(b.cbranch(b.icmp_signed("<", i_next, end), body, done))
        b.position_at_end(done)
        b.ret_void()

    def vectors(self, rows: int, j: ir.Value, i: ir.Value, mask: ir.Value | None) -> None:
        """`rows` rows from row i on, one vector of columns from column j on."""
        b, arg = self.builder, self.arg
        first = b.add(j, b.mul(i, b.mul(arg["x_pixel"], word(self.tile.stride))))
        acc = self.sum(rows, self.at(arg["x"], first), self.at(arg["w"], j), mask)
        values = {
            each.name: self.load(self.at(arg[each.name], j), mask) for each in self.epilogue.columns
        }
        for row, value in enumerate(acc):
            number = b.add(i, word(row))
            for each in self.epilogue.fulls:
                values[each.name] = self.load(self.place(each.name, number, j), mask)
            result = self.expression({"acc": value, **values})
            self.store(result, self.place("y", number, j), mask)

    def place(self, name: str, i: ir.Value, j: ir.Value) -> ir.Value:
        """Row i, column j of y or of a full operand."""
        offset = self.builder.mul(i, self.arg[f"{name}_pixel"])
        return self.at(self.arg[name], self.builder.add(offset, j))

    def sum(self, rows: int, x: ir.Value, w: ir.Value, mask: ir.Value | None) -> list[ir.Value]:
        """The sums of `rows` pixels: a loop over the lines of the kernel, its taps written out."""
        b, arg, tile = self.builder, self.arg, self.tile
        before = b.block
        line, after = self.blocks("line", "after")
        b.branch(line)
        b.position_at_end(line)
        a, x_at, w_at = self.phi(WORD), self.phi(POINTER), self.phi(POINTER)
        acc = [self.phi(self.vector) for _ in range(rows)]
        self.feed([a, x_at, w_at, *acc], [word(0), x, w, *[self.zero] * rows], before)
        weights, w_next = [], w_at
        for _ in range(tile.taps):
            weights.append(self.load(w_next, mask))
            w_next = self.at(w_next, arg["w_tap"])
        sums: list[ir.Value] = list(acc)
        users = self._users(rows)
        for position in sorted(users):
            pixel = b.mul(arg["x_pixel"], word(position))
            value = self.load(self.at(x_at, pixel), mask)
            for row, tap in users[position]:
                sums[row] = self.emitter.fma(value, weights[tap], sums[row])
        a_next, x_next = b.add(a, word(1)), self.at(x_at, arg["x_line"])
        self.feed([a, x_at, w_at, *acc], [a_next, x_next, w_next, *sums], b.block)
        self.rolled(b.cbranch(b.icmp_signed("<", a_next, arg["lines"]), line, after))
        b.position_at_end(after)
        return sums

    def _users(self, rows: int) -> dict[int, list[tuple[int, int]]]:
        """For each input pixel, the rows and taps that meet there; a row has its taps in order."""
        users: dict[int, list[tuple[int, int]]] = {}
        for row in range(rows):
            for tap in range(self.tile.taps):
                position = row * self.tile.stride + tap * self.tile.dilation
                users.setdefault(position, []).append((row, tap))
        return users


@dataclass(frozen=True)
class Depthwise:
    """A depthwise convolution kernel.

    The result has `images` x `height` x `width` pixels of `columns` channels, contiguous; pixel
    (n, h, v) begins at n y_image + h y_row + v y_pixel, and reads x from n x_image + h x_row +
    v stride x_pixel on, zero padding included. x_pixel leads to the next input pixel, x_line from a
    line of the kernel to the next; the weights are `[lines][taps][columns]`. Full operands have
    strides of their own. The parameters are x, w, y, the operands, and `sizes`, in this order.

    Attributes
    ----------
    tile : DepthwiseTile
    """

    tile: DepthwiseTile

    @property
    def sizes(self) -> tuple[str, ...]:
        """Names of the integer parameters."""
        names = ["images", "height", "width", "columns", "lines", "x_line"]
        for name in ("x", "y", *(operand.name for operand in self.tile.epilogue.fulls)):
            names += [f"{name}_image", f"{name}_row", f"{name}_pixel"]
        return tuple(names)

    @property
    def kernel(self) -> Kernel:
        """The kernel."""
        tile = self.tile
        pointers = ["x", "w", "y", *(operand.name for operand in tile.epilogue.operands)]
        params = [Param(name, f"{tile.dtype}*", noalias=False) for name in pointers]
        params += [Param(name, "int64") for name in self.sizes]
        return make_kernel("depthwise", _body(tile), params, (tile,))


def depthwise_sizes(
    epilogue: Epilogue,
    *,
    shape: tuple[Size, Size, Size],
    columns: Size,
    lines: int,
    x_strides: tuple[Size, Size, Size],
    y_strides: tuple[Size, Size, Size],
    stride: int = 1,
    dilation: int = 1,
    fulls: Mapping[str, tuple[Size, Size, Size]] | None = None,
) -> Sizes:
    """Sizes of a depthwise convolution of zero-padded NHWC input.

    Parameters
    ----------
    epilogue : Epilogue
    shape : tuple of Size
        Images, height and width of the result.
    columns : Size
        Channels.
    lines : int
        Height of the kernel.
    x_strides, y_strides : tuple
        Of image, row and pixel; x begins at the corner of the padding.
    stride, dilation : int
        Along the height; those along the width are the tile's.
    fulls : mapping of str to tuple of Size, optional
        Strides of image, row and pixel of each full operand; by default those of y.
    """
    sizes: Sizes = {"images": shape[0], "height": shape[1], "width": shape[2]}
    sizes |= {"columns": columns, "lines": lines, "x_line": x_strides[1] * dilation}
    x = (x_strides[0], x_strides[1] * stride, x_strides[2])
    for name, place in ({"x": x} | epilogue.places(y_strides, fulls)).items():
        sizes |= dict(zip((f"{name}_image", f"{name}_row", f"{name}_pixel"), place))
    return sizes


def _body(tile: DepthwiseTile) -> str:
    """The source below the `def` line."""

    def place(name: str) -> str:
        return f"at({name}, n * {name}_image + h * {name}_row + v * {name}_pixel + column)"

    x = f"at(x, n * x_image + h * x_row + v * {tile.stride} * x_pixel + column)"
    call = [f"rows, count, {x}, x_pixel, x_line", "at(w, column), columns", place("y"), "y_pixel"]
    for each in tile.epilogue.operands:
        full = f"{place(each.name)}, {each.name}_pixel"
        call.append(full if each.kind == "full" else f"at({each.name}, column)")
    arguments = indent(",\n".join([*call, "lines"]), " " * 16)
    return f"""\
    # A line is cut into pieces of equal size, the first `longer` of them one longer.
    pieces = div(width + {ROWS - 1}, {ROWS}) if width > 0 else 1
    size = div(width, pieces)
    longer = width - size * pieces
    parts = div(columns + {CHANNELS - 1}, {CHANNELS})
    units = images * height * pieces * parts if width > 0 else 0
    begin = div(units * thread, threads)
    end = div(units * (thread + 1), threads)
    if begin < end:
        piece = div(begin, parts)
        part = begin - piece * parts
        h = div(piece, pieces)
        piece = piece - h * pieces
        n = div(h, height)
        h = h - n * height
        for unit in range(begin, end):
            v = piece * size + (piece if piece < longer else longer)
            rows = size + 1 if piece < longer else size
            column = part * {CHANNELS}
            count = columns - column if columns - column < {CHANNELS} else {CHANNELS}
            {tile.name}(
{arguments}
            )
            part += 1
            if part == parts:
                part = 0
                piece += 1
                if piece == pieces:
                    piece = 0
                    h += 1
                    if h == height:
                        h = 0
                        n += 1
"""
