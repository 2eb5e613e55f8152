"""Convolution with few output channels: neighbouring pixels of a line in the vector lanes.

With channels in the lanes, 6 output channels would leave most of a vector idle. Here a tile takes
two lines of the result, a few vectors of pixels and all its channels; weights are broadcast. Where
a 2x2 maximum follows, it is taken before the store, so that three quarters of the result never
reach memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from textwrap import indent
from typing import Any, TypeAlias

import numpy as np
from llvmlite import ir

from dlc.backends.native.frontend import Param
from dlc.backends.native.isa import Isa
from dlc.backends.numba_cpu.kernel import Kernel, NativeFunction, make_kernel
from dlc.backends.numba_cpu.vectors import (
    PLAIN,
    WORD,
    Epilogue,
    VectorFunction,
    module_text,
    word,
)
from dlc.ir.sizes import Size, bounds

#: Lines of the result in a tile: a pair, for the 2x2 maximum.
LINES = 2
#: Most accumulators, by number of vector registers.
ACCUMULATORS = {32: 24, 16: 12}
#: Vectors of a line from which one that is half empty costs less than loading weights more often.
SHORT = 5


def vectors_for(isa: Isa, dtype: str, channels: int, width: Size) -> int:
    """How many vectors of pixels a tile takes: two where the registers hold their sums, unless
    lines of ``width`` pixels would leave most of a second one empty.
    """
    lanes, least = isa.lanes(dtype), bounds(width)[0]
    fits = 2 * LINES * channels <= ACCUMULATORS[isa.registers]
    odd = -(-least // lanes) % 2 and least < SHORT * lanes
    return 2 if fits and not odd else 1


#: Vectors of pixels, by line and channel.
Lines: TypeAlias = list[list[list[ir.Value]]]


@dataclass(frozen=True)
class PlanesTile(NativeFunction):
    """A native function for two lines, some pixels and all channels of a convolution of stride 1.

    In C: `void name(valid, x, x_line, x_plane, w, w_plane, y, y_line, y_pixel, y_channel,
    operands..., inputs, lines)`. For line r < 2, pixel p < `valid` and channel c < `channels`

        acc[r, p, c] = sum over i < inputs, a < lines, b < taps of
                       x[i x_plane + (r + a) x_line + p + b]
                       * w[i w_plane + (a taps + b) channels + c]
        y[r y_line + p y_pixel + c y_channel] = expression(acc[r, p, c], operands[c])

    or, pooled, the maximum of each 2x2 of these, of which there are valid / 2 in one line. x is
    read in whole vectors, beyond the last pixel.

    Attributes
    ----------
    isa : Isa
    dtype : str
    channels, taps : int
    vectors : int
        Of pixels in a line, one or two; see `vectors_for`.
    pooled : bool
    woven : bool
        y_channel is 1 and y_pixel is `channels`: the channels of the pixels are woven into vectors,
        and a line is stored as one run. Else each element is stored alone.
    epilogue : Epilogue
        Its operands are of kind "column".
    """

    isa: Isa
    dtype: str
    channels: int
    taps: int
    vectors: int = 1
    pooled: bool = False
    woven: bool = False
    epilogue: Epilogue = PLAIN

    @property
    def pixels(self) -> int:
        """Pixels of a line in a tile."""
        return self.vectors * self.isa.lanes(self.dtype)

    @property
    def name(self) -> str:
        """The symbol: level and shape in words, what else there is as a digest."""
        digest = self.epilogue.digest(self.dtype, self.pooled, self.woven)
        return f"planes_{self.isa.symbol}_{self.channels}x{self.pixels}x{self.taps}_{digest}"

    @property
    def params(self) -> tuple[Param, ...]:
        """The parameters in order."""
        pointer = f"{self.dtype}*"
        params = [Param("valid", "int64"), Param("x", pointer)]
        params += [Param(name, "int64") for name in ("x_line", "x_plane")]
        params += [Param("w", pointer), Param("w_plane", "int64"), Param("y", pointer)]
        params += [Param(name, "int64") for name in ("y_line", "y_pixel", "y_channel")]
        params += [Param(operand.name, pointer) for operand in self.epilogue.operands]
        return (*params, Param("inputs", "int64"), Param("lines", "int64"))

    def twin(self) -> Callable[..., None]:
        """The same function in plain Python, for `python_twin.run`."""
        names = [param.name for param in self.params]
        expression = self.epilogue.twin()

        def tile(*arguments: Any) -> None:
            arg = dict(zip(names, arguments, strict=True))
            for c in range(self.channels):
                operands = {each.name: arg[each.name][c] for each in self.epilogue.operands}
                result = np.empty((LINES, arg["valid"]), self.dtype)
                for r, p in np.ndindex(result.shape):
                    values = {"acc": self._sum(arg, r, p, c), **operands}
                    result[r, p] = expression(values)
                if self.pooled:
                    pairs = result[:, : arg["valid"] // 2 * 2].reshape(LINES, -1, 2)
                    result = np.max(pairs, (0, 2))[None]
                for r, p in np.ndindex(result.shape):
                    place = r * arg["y_line"] + p * arg["y_pixel"] + c * arg["y_channel"]
                    arg["y"][place] = result[r, p]

        return tile

    def _sum(self, arg: Mapping[str, Any], r: int, p: int, c: int) -> Any:
        """acc[r, p, c] of the formula."""
        total = arg["w"][c] * 0
        for i, a, b in np.ndindex(arg["inputs"], arg["lines"], self.taps):
            tap = i * arg["w_plane"] + (a * self.taps + b) * self.channels + c
            pixel = i * arg["x_plane"] + (r + a) * arg["x_line"] + p + b
            total += arg["x"][pixel] * arg["w"][tap]
        return total

    def text(self) -> str:
        """The LLVM module that defines it."""
        return module_text(self, lambda function: _Body(self, function))


class _Body(VectorFunction):
    """Emits the tile."""

    def __init__(self, tile: PlanesTile, function: ir.Function) -> None:
        super().__init__(function, tile.params, tile.isa, tile.dtype, tile.epilogue)
        self.tile = tile
        self.keys = [
            (c, r, v)
            for c in range(tile.channels)
            for r in range(LINES)
            for v in range(tile.vectors)
        ]
        self.valid = self.arg["valid"]
        if tile.pooled:
            self.valid = self.builder.lshr(self.valid, word(1))

    def emit(self) -> None:
        """The sum, the expression, the maximum where pooled, and the store."""
        values = dict(zip(self.keys, self._sum(), strict=True))
        for c in range(self.tile.channels):
            operands = {
                operand.name: self._splat(self.at(self.arg[operand.name], c))
                for operand in self.epilogue.operands
            }
            for key in self.keys:
                if key[0] == c:
                    values[key] = self.expression({"acc": values[key], **operands})
        lines = self._maxima(values) if self.tile.pooled else self._lines(values)
        if self.tile.woven:
            self._store_woven(lines)
        else:
            self._store(lines)
        self.builder.ret_void()

    def _sum(self) -> list[ir.Value]:
        """Loops over input planes and lines of the kernel; its taps are written out."""
        b, arg = self.builder, self.arg
        entry = b.block
        planes, lines, next_plane, done = self.blocks("planes", "lines", "next_plane", "done")
        b.branch(planes)
        b.position_at_end(planes)
        plane, outer = self.phi(WORD), [self.phi(self.vector) for _ in self.keys]
        x_plane = self.at(arg["x"], b.mul(plane, arg["x_plane"]))
        w_plane = self.at(arg["w"], b.mul(plane, arg["w_plane"]))
        b.branch(lines)
        b.position_at_end(lines)
        line, acc = self.phi(WORD), [self.phi(self.vector) for _ in self.keys]
        taps = self.phi(WORD)
        new = self._taps(self.at(x_plane, b.mul(line, arg["x_line"])), self.at(w_plane, taps), acc)
        line_next = b.add(line, word(1))
        taps_next = b.add(taps, word(self.tile.taps * self.tile.channels))
        self.rolled(b.cbranch(b.icmp_signed("<", line_next, arg["lines"]), lines, next_plane))
        b.position_at_end(next_plane)
        plane_next = b.add(plane, word(1))
        self.rolled(b.cbranch(b.icmp_signed("<", plane_next, arg["inputs"]), planes, done))
        zeros = [self.zero] * len(self.keys)
        self.feed([plane, *outer], [word(0), *zeros], entry)
        self.feed([plane, *outer], [plane_next, *new], next_plane)
        self.feed([line, taps, *acc], [word(0), word(0), *outer], planes)
        self.feed([line, taps, *acc], [line_next, taps_next, *new], lines)
        b.position_at_end(done)
        return new

    def _taps(self, x: ir.Value, w: ir.Value, acc: list[Any]) -> list[ir.Value]:
        """One line of the kernel multiplied into the accumulators."""
        sums = dict(zip(self.keys, acc, strict=True))
        for tap in range(self.tile.taps):
            pixels = {}
            for r in range(LINES):
                start = self.at(x, self.arg["x_line"]) if r else x
                for v in range(self.tile.vectors):
                    pixels[r, v] = self.load(self.at(start, tap + v * self.lanes))
            for c in range(self.tile.channels):
                weight = self._splat(self.at(w, tap * self.tile.channels + c))
                for (r, v), pixel in pixels.items():
                    sums[c, r, v] = self.emitter.call("fma", pixel, weight, sums[c, r, v])
        return list(sums.values())

    def _splat(self, pointer: ir.Value) -> ir.Value:
        return self.emitter.splat(self.builder.load(pointer, typ=self.element))

    def _lines(self, values: Mapping[tuple[int, int, int], ir.Value]) -> Lines:
        tile = self.tile
        return [
            [[values[c, r, v] for v in range(tile.vectors)] for c in range(tile.channels)]
            for r in range(LINES)
        ]

    def _maxima(self, values: Mapping[tuple[int, int, int], ir.Value]) -> Lines:
        """The maximum of each 2x2: one line of one vector."""
        found = []
        for upper, lower in zip(*self._lines(values), strict=True):
            tall = [self.emitter.call("fmax", *pair) for pair in zip(upper, lower, strict=True)]
            even, odd = (
                self._shuffled(tall[0], tall[-1], range(start, 2 * self.lanes, 2))
                for start in (0, 1)
            )
            found.append([self.emitter.call("fmax", even, odd)])
        return [found]

    def _shuffled(self, a: ir.Value, b: ir.Value, lanes: Iterable[int]) -> ir.Value:
        """Lanes of two vectors, those of the second behind those of the first."""
        kind = ir.VectorType(ir.IntType(32), self.lanes)
        return self.builder.shuffle_vector(a, b, ir.Constant(kind, list(lanes)))

    def _store_woven(self, lines: Lines) -> None:
        """Store each line as one run, channels innermost."""
        b, channels = self.builder, self.tile.channels
        vectors = channels * len(lines[0][0])
        masks = self.masks(b.mul(self.valid, word(channels)), vectors)
        for r, line in enumerate(lines):
            y = self.at(self.arg["y"], self.arg["y_line"]) if r else self.arg["y"]
            for number in range(vectors):
                v, part = divmod(number, channels)
                value = self._woven([channel[v] for channel in line], part)
                self.store(value, self.at(y, number * self.lanes), masks[number])

    def _woven(self, channels: Sequence[ir.Value], part: int) -> ir.Value:
        """Of as many vectors with the channels innermost, number `part`."""
        places = range(part * self.lanes, (part + 1) * self.lanes)
        pixels = [divmod(place, len(channels)) for place in places]
        value = self._shuffled(channels[0], channels[0], (pixel for pixel, _ in pixels))
        for c, channel in enumerate(channels[1:], start=1):
            taken = (self.lanes + p if own == c else k for k, (p, own) in enumerate(pixels))
            value = self._shuffled(value, channel, taken)
        return value

    def _store(self, lines: Lines) -> None:
        """Store pixel by pixel, by way of memory."""
        b, arg, vectors = self.builder, self.arg, len(lines[0][0])
        with b.goto_entry_block():
            memory = b.alloca(self.vector, word(len(lines) * self.tile.channels * vectors))
            memory.align = 64
        starts = {}
        for r, line in enumerate(lines):
            for c, channel in enumerate(line):
                first = (r * self.tile.channels + c) * vectors
                starts[r, c] = b.gep(memory, [word(first)], source_etype=self.vector)
                for v, value in enumerate(channel):
                    self.store(value, self.at(starts[r, c], v * self.lanes))
        before = b.block
        pixels, done = self.blocks("pixels", "stored")
        b.cbranch(b.icmp_signed(">", self.valid, word(0)), pixels, done)
        b.position_at_end(pixels)
        pixel = self.phi(WORD)
        for (r, c), start in starts.items():
            offset = b.add(b.mul(pixel, arg["y_pixel"]), b.mul(arg["y_channel"], word(c)))
            if r:
                offset = b.add(offset, arg["y_line"])
            value = b.load(self.at(start, pixel), typ=self.element)
            b.store(value, self.at(arg["y"], offset))
        following = b.add(pixel, word(1))
        self.feed([pixel], [word(0)], before)
        self.feed([pixel], [following], pixels)
        self.rolled(b.cbranch(b.icmp_signed("<", following, self.valid), pixels, done))
        b.position_at_end(done)


@dataclass(frozen=True)
class Planes:
    """A convolution kernel over channel planes.

    The convolution has `images` x `height` x `width` pixels and at least two lines; x begins at the
    corner of the padding, of which there are `top` lines above `rows` lines of pixels: lines of the
    kernel that meet zeros only are left out. y is the result, or its 2x2 maximum. Channels beyond
    those of a tile are further tiles, `w_group` weights apart, with strides in elements.

    Attributes
    ----------
    tile : PlanesTile
    groups : int
        Tiles that make up all output channels.
    """

    tile: PlanesTile
    groups: int = 1

    sizes = (
        *("images", "height", "width", "inputs", "lines", "top", "rows"),
        *("x_image", "x_line", "x_plane", "w_group", "w_plane"),
        *("y_image", "y_line", "y_pixel", "y_channel"),
    )

    @property
    def kernel(self) -> Kernel:
        """The kernel."""
        tile = self.tile
        pointers = ["x", "w", "y", *(operand.name for operand in tile.epilogue.operands)]
        params = [Param(name, f"{tile.dtype}*") for name in pointers]
        params += [Param(name, "int64") for name in self.sizes]
        return make_kernel("planes", _body(self), params, (tile,))


def _body(planes: Planes) -> str:
    """The source below the `def` line."""
    tile, step = planes.tile, 1 if planes.tile.pooled else LINES
    columns = [f"at({o.name}, g * {tile.channels})" for o in tile.epilogue.operands]
    x = "at(x, n * x_image + (line + first) * x_line + v)"
    w = f"at(w, g * w_group + first * {tile.taps * tile.channels}), w_plane"
    place = "n * y_image + row * y_line + out * y_pixel"
    y = f"at(y, {place} + g * {tile.channels} * y_channel)"
    call = [f"valid, {x}, x_line, x_plane", w, y, "y_line, y_pixel, y_channel"]
    arguments = indent(",\n".join([*call, *columns, "inputs, behind - first"]), " " * 20)
    row = "pair" if tile.pooled else "line"
    last = "" if tile.pooled else "\n        line = line if line < height - 1 else height - 2"
    return f"""\
    # A unit of work is a pair of lines; the last pair of an odd height begins a line earlier.
    pairs = div(height + {1 if step == LINES else 0}, {LINES})
    units = images * pairs
    for unit in range(div(units * thread, threads), div(units * (thread + 1), threads)):
        n = div(unit, pairs)
        pair = unit - n * pairs
        line = pair * {LINES}{last}
        row = {row}
        # The lines of the kernel that meet pixels for either line, or one that meets zeros.
        first = top - line - 1 if top - line - 1 < lines - 1 else lines - 1
        first = first if first > 0 else 0
        behind = rows + top - line if rows + top - line < lines else lines
        behind = behind if behind > first else first + 1
        for v in range(0, width, {tile.pixels}):
            valid = width - v if width - v < {tile.pixels} else {tile.pixels}
            out = {"div(v, 2)" if tile.pooled else "v"}
            for g in range({planes.groups}):
                {tile.name}(
{arguments},
                )
"""
