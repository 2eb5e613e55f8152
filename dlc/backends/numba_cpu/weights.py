"""The weights of Winograd's algorithm: G w G^T of every kernel, in panels for each point.

In training they change from step to step, so this runs in every call. A panel's 32 output channels
are in the vector lanes; where they are apart in memory, a few input channels of a panel are first
brought together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import ir

from dlc.backends.native.frontend import Param
from dlc.backends.native.isa import Isa
from dlc.backends.numba_cpu.kernel import Kernel, NativeFunction, Sizes, make_kernel
from dlc.backends.numba_cpu.transforms import Transform
from dlc.backends.numba_cpu.transpose import TransposeTile
from dlc.backends.numba_cpu.vectors import PLAIN, module_text, word
from dlc.backends.numba_cpu.writer import TYPES, KernelSource, Value
from dlc.ir.node import Node
from dlc.ir.plan import Layout
from dlc.ir.schedule import Group
from dlc.ir.sizes import as_size
from dlc.ops.packed import PANEL
from dlc.ops.winograd import TAPS, matrices

#: Input channels that are brought together: as many as the widest vector has lanes.
DEEP = 16


@dataclass(frozen=True)
class WeightTransform(NativeFunction):
    """A native function: G w G^T for a panel of output channels.

    In C: `void name(x, x_row, x_pixel, u, u_plane)`. Tap (i, j) of output channel c is
    x[i x_row + j x_pixel + c], and element (i, j) of the result u[(i a + j) u_plane + c], a being
    m + 2.

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
        return f"winograd_weights_{self.isa.symbol}_{self.m}_{self.dtype}"

    @property
    def params(self) -> tuple[Param, ...]:
        """The parameters in order."""
        pointer = f"{self.dtype}*"
        x = (Param("x", pointer), Param("x_row", "int64"), Param("x_pixel", "int64"))
        return (*x, Param("u", pointer), Param("u_plane", "int64"))

    def text(self) -> str:
        """The LLVM module that defines it."""
        return module_text(self, lambda function: _Body(self, function))

    def twin(self) -> Callable[..., None]:
        """The same function in plain Python, for `python_twin.run`."""
        g = matrices(self.m)[1]

        def transform(x: Any, x_row: int, x_pixel: int, u: Any, u_plane: int) -> None:
            taps = range(TAPS)
            for c in range(PANEL):
                w = [[x[i * x_row + j * x_pixel + c] for j in taps] for i in taps]
                for point, value in enumerate((g @ np.array(w, np.float64) @ g.T).flat):
                    u[point * u_plane + c] = value

        return transform


class _Body(Transform):
    """Emits the function."""

    def __init__(self, tile: WeightTransform, function: ir.Function) -> None:
        super().__init__(function, tile.params, tile.isa, tile.dtype, PLAIN)
        self.g: Sequence[Sequence[float]] = matrices(tile.m)[1].tolist()

    def emit(self) -> None:
        """A loop over the vectors of a panel."""
        self.loop(word(PANEL), self._tile)

    def _tile(self, c: ir.Value) -> None:
        columns = [
            self.matrix(self.g, [self.load(self.place("x", i, j, c)) for i in range(TAPS)])
            for j in range(TAPS)
        ]
        for i in range(len(self.g)):
            for j, value in enumerate(self.matrix(self.g, [column[i] for column in columns])):
                self.store(value, self.plane("u", i * len(self.g) + j, c))


@dataclass(frozen=True)
class WinogradWeights:
    """A kernel that transforms the weights of `outputs` x `depth` channels.

    Tap (i, j) of output channel o and input channel c is w[o w_output + c w_input + i w_row + j
    w_column]; the result is `[(m + 2)^2][ceil(outputs / 32)][depth][32]`, with zeros for output
    channels there are not. The parameters are w, y and `SIZES`, in this order.

    Attributes
    ----------
    isa : Isa
    dtype : str
    m : int
    """

    isa: Isa
    dtype: str
    m: int

    SIZES = ("outputs", "depth", "w_output", "w_input", "w_row", "w_column")

    @property
    def kernel(self) -> Kernel:
        """The kernel."""
        tiles = (
            WeightTransform(self.isa, self.dtype, self.m),
            TransposeTile(self.isa, self.dtype),
        )
        params = [Param(name, f"{self.dtype}*") for name in ("w", "y")]
        params += [Param(name, "int64") for name in self.SIZES]
        return make_kernel("winograd_weights", _body(*tiles, TYPES[self.dtype]), params, tiles)


def weights_kernel(group: Group, layouts: Mapping[Node, Layout], isa: Isa) -> KernelSource:
    """The kernel of a group anchored by `pack_winograd`."""
    node = group.anchor
    (w,), attrs = node.inputs, node.attrs
    strides = layouts[w].strides(w.shape)
    channels, start = w.shape[:2], as_size(0)
    o, i, row, column = strides
    if attrs["turned"]:
        channels, (o, i) = channels[::-1], (i, o)
        start = (row + column) * (TAPS - 1)
        row, column = -row, -column
    sizes: Sizes = dict(zip(WinogradWeights.SIZES, (*channels, o, i, row, column), strict=True))
    kernel = WinogradWeights(isa, node.dtype, attrs["m"]).kernel
    named: dict[str, Any] = {"w": Value(w, start), "y": Value(node), **sizes}
    args = tuple(named[param.name] for param in kernel.params)
    externs = tuple(tile.extern for tile in kernel.tiles)
    return KernelSource(
        kernel.name, kernel.source, kernel.params, args, externs, kernel.tiles, stem="pack_winograd"
    )


def _body(transform: WeightTransform, transpose: TransposeTile, short: str) -> str:
    """The source below the `def` line."""
    width, plane = transpose.width, DEEP * PANEL
    return f"""\
    panels = div(outputs + {PANEL - 1}, {PANEL})
    blocks = div(depth + {DEEP - 1}, {DEEP})
    y_point = panels * depth * {PANEL}
    # Taps of {DEEP} input channels by {PANEL} output channels, where they are apart in memory.
    near = local({TAPS * TAPS * plane}, {short})
    begin = div(panels * blocks * thread, threads)
    end = div(panels * blocks * (thread + 1), threads)
    for unit in range(begin, end):
        panel = div(unit, blocks)
        first = (unit - panel * blocks) * {DEEP}
        deep = depth - first if depth - first < {DEEP} else {DEEP}
        filled = outputs - panel * {PANEL}
        filled = filled if filled < {PANEL} else {PANEL}
        x = at(w, panel * {PANEL} * w_output + first * w_input)
        u = at(y, (panel * depth + first) * {PANEL})
        if w_output == 1 and filled == {PANEL}:
            for c in range(deep):
                {transform.name}(
                    at(x, c * w_input), w_row, w_column, at(u, c * {PANEL}), y_point
                )
        else:
            whole = w_input == 1 and filled == {PANEL} and deep == {DEEP}
            for tap in range({TAPS * TAPS}):
                i = div(tap, {TAPS})
                place = i * w_row + (tap - i * {TAPS}) * w_column
                if whole:
                    for o in range(0, {PANEL}, {width}):
                        for c in range(0, {DEEP}, {width}):
                            {transpose.name}(
                                at(x, place + o * w_output + c), w_output,
                                at(near, tap * {plane} + c * {PANEL} + o), {PANEL}
                            )
                else:
                    for o in range(filled):
                        for c in range(deep):
                            value = x[place + o * w_output + c * w_input]
                            near[tap * {plane} + c * {PANEL} + o] = value
                    for o in range(filled, {PANEL}):
                        for c in range(deep):
                            near[tap * {plane} + c * {PANEL} + o] = 0
            for c in range(deep):
                {transform.name}(
                    at(near, c * {PANEL}), {TAPS * plane}, {plane}, at(u, c * {PANEL}), y_point
                )
"""
