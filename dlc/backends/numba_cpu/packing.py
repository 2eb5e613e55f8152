"""Copies that bring matrices into the order in which contractions read them.

Weights go into panels of 32 columns, so that a tile reads them in one stream, whole vectors at a
time; a transposed left side goes into rows, so that its sums run along contiguous memory.
"""

from __future__ import annotations

from textwrap import indent

from dlc.backends.native.frontend import Param
from dlc.backends.numba_cpu.kernel import Kernel, Sizes, make_kernel
from dlc.ir.sizes import Size
from dlc.ops.packed import PANEL

#: Elements of a row that are copied before the next row's: they and their targets fit the cache.
PIECE = 64


def fill_panel(target: str, source: str, level: int) -> str:
    """Source that copies `steps` steps of the sum of `filled` columns into a panel, at a level.

    It reads `source` from offset `origin` on, with strides {source}_depth and {source}_column,
    writes `target` from offset `place` on, and zeros for the columns that there are not.
    """
    text = f"""\
if {source}_column == 1 and filled == {PANEL}:
    for c in range(steps):
        for j in range({PANEL}):
            {target}[place + c * {PANEL} + j] = {source}[origin + c * {source}_depth + j]
else:
    for near in range(0, steps, {PIECE}):
        far = near + {PIECE} if near + {PIECE} < steps else steps
        for j in range(filled):
            for c in range(near, far):
                taken = {source}[origin + j * {source}_column + c * {source}_depth]
                {target}[place + c * {PANEL} + j] = taken
        for j in range(filled, {PANEL}):
            for c in range(near, far):
                {target}[place + c * {PANEL} + j] = 0
"""
    return indent(text, " " * 4 * level)


_PANELS = f"""\
    panels = div(columns + {PANEL - 1}, {PANEL})
    runs = outer * inner
    pieces = div(depth + {PIECE - 1}, {PIECE})
    units = groups * panels * runs * pieces
    for unit in range(div(units * thread, threads), div(units * (thread + 1), threads)):
        run = div(unit, pieces)
        begin = (unit - run * pieces) * {PIECE}
        steps = depth - begin if depth - begin < {PIECE} else {PIECE}
        place = (run * depth + begin) * {PANEL}
        panel = div(run, runs)
        run = run - panel * runs
        group = div(panel, panels)
        column = (panel - group * panels) * {PANEL}
        a = div(run, inner)
        b = run - a * inner
        origin = group * x_group + column * x_column + a * x_outer + b * x_inner + begin * x_depth
        filled = columns - column if columns - column < {PANEL} else {PANEL}
{fill_panel("y", "x", 2)}"""

_ROWS = f"""\
    lines = div(rows + {PIECE - 1}, {PIECE})
    pieces = div(depth + {PIECE - 1}, {PIECE})
    units = groups * lines * pieces
    for unit in range(div(units * thread, threads), div(units * (thread + 1), threads)):
        line = div(unit, pieces)
        c_0 = (unit - line * pieces) * {PIECE}
        c_1 = c_0 + {PIECE} if c_0 + {PIECE} < depth else depth
        group = div(line, lines)
        i_0 = (line - group * lines) * {PIECE}
        i_1 = i_0 + {PIECE} if i_0 + {PIECE} < rows else rows
        for i in range(i_0, i_1):
            target = group * y_group + i * y_row
            source = group * x_group + i * x_row
            for c in range(c_0, c_1):
                y[target + c] = x[source + c * x_depth]
"""


def pack_panels(dtype: str) -> Kernel:
    """A kernel that packs weights: y[g, panel, a, b, c, j] = x[g, panel * 32 + j, a, b, c].

    Behind the last column y is 0. The parameters are x and y, then the integers `groups`,
    `columns`, `outer`, `inner`, `depth` of y, and the strides of x, `x_group`, `x_column`,
    `x_outer`, `x_inner`, `x_depth`: any order of the dimensions of x will do.
    """
    sizes = ("groups", "columns", "outer", "inner", "depth")
    strides = ("x_group", "x_column", "x_outer", "x_inner", "x_depth")
    return _kernel("pack_panels", _PANELS, dtype, (*sizes, *strides))


def pack_rows(dtype: str) -> Kernel:
    """A kernel that gathers rows: y[g, i, c] = x[g, i, c], the strides of x being arbitrary.

    The parameters are x and y, then the integers `groups`, `rows`, `depth`, and the strides
    `x_group`, `x_row`, `x_depth`, `y_group`, `y_row`.
    """
    sizes = ("groups", "rows", "depth")
    strides = ("x_group", "x_row", "x_depth", "y_group", "y_row")
    return _kernel("pack_rows", _ROWS, dtype, (*sizes, *strides))


def _kernel(stem: str, body: str, dtype: str, sizes: tuple[str, ...]) -> Kernel:
    pointers = (Param("x", f"{dtype}*"), Param("y", f"{dtype}*"))
    return make_kernel(stem, body, (*pointers, *(Param(size, "int64") for size in sizes)))


def conv2d_panels(shape: tuple[int, int, int, int], groups: int = 1, planes: bool = False) -> Sizes:
    """Sizes for `pack_panels` of convolution weights OIHW.

    Parameters
    ----------
    shape : tuple of int
        O (of all groups), I (of one group), KH, KW.
    groups : int
    planes : bool
        Whether the sum runs in the order (I, KH, KW), as for NCHW input, rather than (KH, KW, I).
    """
    columns, channels, kh, kw = shape
    column, channel, line, tap = channels * kh * kw, kh * kw, kw, 1
    order = ((channels, channel), (kh, line), (kw, tap))
    outer, inner, depth = order if planes else (order[1], order[2], order[0])
    sizes: Sizes = {"groups": groups, "columns": columns // groups}
    sizes |= {"x_group": columns // groups * column, "x_column": column}
    for name, (size, step) in (("outer", outer), ("inner", inner), ("depth", depth)):
        sizes |= {name: size, f"x_{name}": step}
    return sizes


def matmul_panels(depth: Size, columns: Size, batch: Size = 1, transposed: bool = False) -> Sizes:
    """Sizes for `pack_panels` of contiguous right sides [batch, depth, columns].

    `transposed`: they are [batch, columns, depth], as the weights of a linear layer.
    """
    column, step = (depth, 1) if transposed else (1, columns)
    sizes: Sizes = {"groups": batch, "columns": columns, "outer": 1, "inner": 1, "depth": depth}
    sizes |= {"x_group": depth * columns, "x_column": column, "x_depth": step}
    return sizes | {"x_outer": 0, "x_inner": 0}
