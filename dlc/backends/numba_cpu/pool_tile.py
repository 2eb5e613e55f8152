"""A line of windows of a gradient of pooling, neighbouring channels in the vector lanes.

A window's winner is found, its gradient handed out and what follows computed in registers, so that
memory is read and written once. Few channels share a masked vector, where vectors of LLVM's own
would leave a line of 6 channels to scalars.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
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
    module_text,
    word,
)


@dataclass(frozen=True)
class PoolGradTile(NativeFunction):
    """A native function for the windows of one line, which do not touch.

    In C: `void name(windows, channels, [x, x_pixel, x_line,] g, g_pixel, y, y_pixel, y_line,
    operands...)`, an operand being a pointer with its strides of pixel and line. For window v,
    element (a, b) of it and channel c, with pixel p = v columns + b,

        acc = g[v g_pixel + c], of the maximum where (a, b) is the last NaN of
              x[a x_line + p x_pixel + c] or else the first of the greatest, and 0 elsewhere;
              of the mean g[...] / (lines columns)
        y[a y_line + p y_pixel + c] = expression(acc, operands[a .._line + p .._pixel + c])

    Attributes
    ----------
    isa : Isa
    dtype : str
    lines, columns : int
        Of a window.
    picks : bool
        Of the maximum, else of the mean.
    epilogue : Epilogue
        Its operands are of kind "full".
    """

    isa: Isa
    dtype: str
    lines: int
    columns: int
    picks: bool
    epilogue: Epilogue = PLAIN

    @property
    def name(self) -> str:
        """The symbol: level and window in words, what else there is as a digest."""
        digest = self.epilogue.digest(self.dtype, self.picks)
        return f"pool_grad_{self.isa.symbol}_{self.lines}x{self.columns}_{digest}"

    @property
    def images(self) -> tuple[str, ...]:
        """The parameters that point to images, with a stride of pixels and one of lines."""
        return (*("x",) * self.picks, "y", *(each.name for each in self.epilogue.operands))

    @property
    def params(self) -> tuple[Param, ...]:
        """The parameters in order."""
        pointer = f"{self.dtype}*"
        params = [Param("windows", "int64"), Param("channels", "int64")]
        params += [Param("g", pointer), Param("g_pixel", "int64")]
        for name in self.images:
            params += [Param(name, pointer)]
            params += [Param(f"{name}_{way}", "int64") for way in ("pixel", "line")]
        return tuple(params)

    @property
    def taps(self) -> list[tuple[int, int]]:
        """The elements of a window in order."""
        return list(product(range(self.lines), range(self.columns)))

    def text(self) -> str:
        """The LLVM module that defines it."""
        return module_text(self, lambda function: _Body(self, function))

    def twin(self) -> Callable[..., None]:
        """The same function in plain Python, for `python_twin.run`."""
        names = [param.name for param in self.params]
        expression = self.epilogue.twin()

        def tile(*arguments: Any) -> None:
            arg = dict(zip(names, arguments, strict=True))
            for v, c in product(range(arg["windows"]), range(arg["channels"])):

                def at(name: str, tap: tuple[int, int], v: int = v, c: int = c) -> int:
                    pixel = v * self.columns + tap[1]
                    place = tap[0] * arg[f"{name}_line"] + pixel * arg[f"{name}_pixel"] + c
                    return int(place)

                g = arg["g"][v * arg["g_pixel"] + c]
                best = self.taps[0]
                for tap in self.taps[1:] if self.picks else ():
                    value, greatest = (arg["x"][at("x", each)] for each in (tap, best))
                    best = tap if value > greatest or value != value else best
                for tap in self.taps:
                    share = g / len(self.taps)
                    if self.picks:
                        share = g if tap == best else g * 0
                    values = {"acc": share}
                    for each in self.epilogue.operands:
                        values[each.name] = arg[each.name][at(each.name, tap)]
                    arg["y"][at("y", tap)] = expression(values)

        return tile


class _Body(VectorFunction):
    """Emits the function: a loop over windows, in it one over vectors of channels."""

    def __init__(self, tile: PoolGradTile, function: ir.Function) -> None:
        super().__init__(function, tile.params, tile.isa, tile.dtype, tile.epilogue)
        self.tile = tile

    def emit(self) -> None:
        """All of it."""
        b, arg = self.builder, self.arg
        whole = b.and_(arg["channels"], word(-self.lanes))
        rest = b.sub(arg["channels"], whole)
        (mask,) = self.masks(rest)
        windows, vectors, behind, part, following, done = self.blocks(
            "windows", "vectors", "behind", "part", "following", "done"
        )
        entry = b.block
        b.cbranch(b.icmp_signed(">", arg["windows"], word(0)), windows, done)
        b.position_at_end(windows)
        window, g = self.phi(WORD), self.phi(POINTER)
        corners = {name: self.phi(POINTER) for name in self.tile.images}
        b.cbranch(b.icmp_signed(">", whole, word(0)), vectors, behind)
        b.position_at_end(vectors)
        channel = self.phi(WORD)
        self._window(g, corners, channel, None)
        channel_next = b.add(channel, word(self.lanes))
        self.feed([channel], [word(0)], windows)
        self.feed([channel], [channel_next], b.block)
        self.rolled(b.cbranch(b.icmp_signed("<", channel_next, whole), vectors, behind))
        b.position_at_end(behind)
        b.cbranch(b.icmp_signed(">", rest, word(0)), part, following)
        b.position_at_end(part)
        self._window(g, corners, whole, mask)
        b.branch(following)
        b.position_at_end(following)
        window_next, g_next = b.add(window, word(1)), self.at(g, arg["g_pixel"])
        ahead = [self.at(at, self._across(name)) for name, at in corners.items()]
        phis = [window, g, *corners.values()]
        self.feed(phis, [word(0), arg["g"], *(arg[name] for name in corners)], entry)
        self.feed(phis, [window_next, g_next, *ahead], following)
        self.rolled(b.cbranch(b.icmp_signed("<", window_next, arg["windows"]), windows, done))
        b.position_at_end(done)
        b.ret_void()

    def _across(self, name: str) -> ir.Value:
        """From a window to the next."""
        return self.builder.mul(self.arg[f"{name}_pixel"], word(self.tile.columns))

    def _window(
        self, g: ir.Value, corners: dict[str, Any], channel: ir.Value, mask: ir.Value | None
    ) -> None:
        """A vector of channels of one window."""
        b, tile, taps = self.builder, self.tile, self.tile.taps
        share = self.load(self.at(g, channel), mask)
        shares = [share] * len(taps)
        if tile.picks:
            values = [self.load(self._place("x", corners, tap, channel), mask) for tap in taps]
            shares = [b.select(wins, share, self.zero) for wins in self._winners(values)]
        else:
            count = ir.Constant(self.vector, [float(len(taps))] * self.lanes)
            shares = [b.fdiv(share, count)] * len(taps)
        for tap, acc in zip(taps, shares, strict=True):
            operands = {
                each.name: self.load(self._place(each.name, corners, tap, channel), mask)
                for each in self.epilogue.operands
            }
            result = self.expression({"acc": acc, **operands})
            self.store(result, self._place("y", corners, tap, channel), mask)

    def _place(
        self, name: str, corners: dict[str, Any], tap: tuple[int, int], channel: ir.Value
    ) -> ir.Value:
        b, (line, column) = self.builder, tap
        offset = b.add(channel, b.mul(self.arg[f"{name}_line"], word(line)))
        pixels = b.mul(self.arg[f"{name}_pixel"], word(column))
        return self.at(corners[name], b.add(offset, pixels))

    def _winners(self, values: list[ir.Value]) -> list[ir.Value]:
        """For each element of the window, in which lanes it wins."""
        b, number = self.builder, ir.VectorType(ir.IntType(32), self.lanes)

        def numbered(tap: int) -> ir.Constant:
            return ir.Constant(number, [tap] * self.lanes)

        best, winner = values[0], numbered(0)
        for tap, value in enumerate(values[1:], start=1):
            greater = b.fcmp_ordered(">", value, best)
            wins = b.or_(greater, b.fcmp_unordered("!=", value, value))
            winner = b.select(wins, numbered(tap), winner)
            best = b.select(wins, value, best)
        return [b.icmp_signed("==", winner, numbered(tap)) for tap in range(len(values))]
