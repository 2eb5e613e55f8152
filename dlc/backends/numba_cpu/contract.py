"""Contractions as kernel source: matrix products and convolutions are one loop nest around a register tile.

All of them sum, for each row of the result, over a few runs of the input; they differ in where rows
and runs lie, which is a handful of strides. So there is one kernel for an epilogue and a level, and
it serves every layer of every model: `conv2d_sizes` and `matmul_sizes` say what its parameters are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from textwrap import indent

from dlc.backends.native.frontend import Param
from dlc.backends.native.isa import Isa
from dlc.backends.numba_cpu.tiles import CHAIN, PANEL, Epilogue, Tile
from dlc.ir.sizes import Size

#: Rows of the result that are computed for all columns before the next ones are.
BLOCK = 56
#: Rows whose addresses differ by multiples of this many bytes evict each other from a first-level cache.
ALIAS = 4096

Sizes = dict[str, Size]


@dataclass(frozen=True)
class Kernel:
    """Kernel source with the tiles it calls.

    Attributes
    ----------
    name : str
        Of the function; another one wherever anything about the kernel is another.
    source : str
        Python source, as `native.frontend.lower` reads it.
    params : tuple of Param
        Its parameters in order, `thread` and `threads` left out.
    tiles : tuple of Tile
        Native functions that it calls; their `extern` goes to `lower`, their `text()` to `build`.
    """

    name: str
    source: str
    params: tuple[Param, ...]
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class Contraction:
    """A contraction kernel.

    The result has `groups` x `images` x `height` x `width` rows of `columns` columns; row
    (g, n, h, v) begins at g y_group + n y_image + h y_row + v y_pixel. With `x_at` likewise,

        acc[j] = sum over a < outer, b < inner, c < depth of
                 x[x_at + a outer_step + b inner_step + c] * w[g w_group + (panel of j)...]

    where the weights of a group lie in panels of 32 columns, `[ceil(columns / 32)][outer][inner]
    [depth][32]`. A full operand has strides of its own, a column operand o its g o_group + j. All
    strides are in elements. The parameters are x, w, y, the operands, and `sizes`, in this order.

    Attributes
    ----------
    isa : Isa
    dtype : str
        "float32" or "float64".
    epilogue : Epilogue
    narrow : bool
        Whether a tile of one vector computes what is left of the columns where one vector holds it;
        see `is_narrow`. Results do not depend on it.
    """

    isa: Isa
    dtype: str
    epilogue: Epilogue = Epilogue()
    narrow: bool = False

    @property
    def tiles(self) -> tuple[Tile, ...]:
        """The tile of two vectors and, for a narrow end, that of one."""
        widths = (2, 1) if self.narrow else (2,)
        return tuple(Tile(self.isa, self.dtype, vectors, self.epilogue) for vectors in widths)

    @property
    def sizes(self) -> tuple[str, ...]:
        """Names of the integer parameters."""
        names = ["groups", "images", "height", "width", "columns"]
        names += ["outer", "outer_step", "inner", "inner_step", "depth"]
        names += _strides("x") + ["w_group"] + _strides("y")
        names += [f"{operand.name}_group" for operand in self.epilogue.columns]
        for operand in self.epilogue.fulls:
            names += _strides(operand.name)
        return tuple(names)

    @property
    def kernel(self) -> Kernel:
        """The kernel."""
        source, pointer = _source(self), f"{self.dtype}*"
        pointers = ["x", "w", "y", *(operand.name for operand in self.epilogue.operands)]
        # A full operand may be y itself.
        params = [Param(name, pointer, noalias=False) for name in pointers]
        params += [Param(name, "int64") for name in self.sizes]
        identity = repr((source, params)).encode()
        name = f"contract_{hashlib.sha256(identity).hexdigest()[:12]}"
        return Kernel(name, source.format(name=name), tuple(params), self.tiles)


def _strides(name: str) -> list[str]:
    return [f"{name}_{unit}" for unit in ("group", "image", "row", "pixel")]


def is_narrow(isa: Isa, dtype: str, columns: int) -> bool:
    """Whether a tile of one vector holds what is left of `columns` behind whole tiles."""
    return 0 < columns % Tile(isa, dtype).columns <= isa.lanes(dtype)


_BYTES = {"float32": 4, "float64": 8}


def matmul_sizes(rows: Size, columns: Size, depth: Size, batch: Size = 1) -> Sizes:
    """Sizes of y[b, m, n] = sum over k of x[b, m, k] w[b, k, n], all contiguous, w in panels.

    Parameters
    ----------
    rows, columns, depth : Size
        M, N and K.
    batch : Size
        B. Set `w_group` to 0 for weights that all batches share.
    """
    panels = (columns + (PANEL - 1)) // PANEL
    sizes = {"groups": batch, "images": 1, "height": 1, "width": rows, "columns": columns}
    sizes |= {"outer": 1, "outer_step": 0, "inner": 1, "inner_step": 0}
    sizes |= {"depth": depth, "x_group": rows * depth, "x_image": 0, "x_row": 0, "x_pixel": depth}
    sizes |= {"w_group": panels * depth * PANEL}
    return sizes | {"y_group": rows * columns, "y_image": 0, "y_row": 0, "y_pixel": columns}


def conv2d_sizes(
    *,
    shape: tuple[Size, Size, Size],
    columns: Size,
    channels: int,
    kernel: tuple[int, int],
    x_strides: tuple[Size, Size, Size, Size],
    y_strides: tuple[Size, Size, Size],
    stride: tuple[int, int] = (1, 1),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> Sizes:
    """Sizes of a convolution of zero-padded input.

    Parameters
    ----------
    shape : tuple
        Images, height and width of the result.
    columns, channels : Size, int
        Channels of the result and of the input, in one group.
    kernel, stride, dilation : tuple of int
    x_strides : tuple
        Of image, row, pixel and channel, from an x that begins at the corner of the padding. Either
        the channels are contiguous (NHWC), or the pixels (NCHW; then for one group, without
        dilation across, and with weights in the order (I, KH, KW)).
    y_strides : tuple
        Of image, row and pixel; the channels are contiguous.
    groups : int
        Their channels follow each other in x, y and column operands.
    """
    (kh, kw), (image, row, pixel, channel) = kernel, x_strides
    down, across = row * dilation[0], pixel * dilation[1]
    if channel != 1:
        runs = (channels, channel, kh, down, kw)
    elif groups == 1 and across == channels:  # a line of the kernel is one run
        runs = (kh, down, 1, 0, kw * channels)
    else:
        runs = (kh, down, kw, across, channels)
    panels = (columns + (PANEL - 1)) // PANEL
    sizes = {"groups": groups, "images": shape[0], "height": shape[1], "width": shape[2]}
    sizes |= {"columns": columns}
    sizes |= zip(("outer", "outer_step", "inner", "inner_step", "depth"), runs)
    sizes |= {"x_group": channels, "x_image": image}
    sizes |= {"x_row": row * stride[0], "x_pixel": pixel * stride[1]}
    sizes |= {"w_group": panels * kh * kw * channels * PANEL, "y_group": columns}
    return sizes | dict(zip(("y_image", "y_row", "y_pixel"), y_strides))


# The source.


def _source(contraction: Contraction) -> str:
    """The kernel's source, its name left open as `{name}`."""
    fulls = [operand.name for operand in contraction.epilogue.fulls]
    pointers = ["x", "w", "y", *(operand.name for operand in contraction.epilogue.operands)]
    arguments = ", ".join([*pointers, *contraction.sizes, "thread", "threads"])
    tile, bytes = contraction.tiles[0], _BYTES[contraction.dtype]
    return f'''def {{name}}({arguments}):
    # Rows that evict each other from the cache are taken fewer at a time.
    aliased = mod(x_pixel * {bytes}, {ALIAS}) == 0
    most = {-(-tile.rows // 2)} if aliased else {tile.rows}
    # Rows are cut into tiles of equal size, the first `longer` of them one longer; columns into parts.
    pixels = images * height * width
    tiles = div(pixels + most - 1, most) if pixels > 0 else 1
    size = div(pixels, tiles)
    longer = pixels - size * tiles
    blocks = div(tiles * most + {BLOCK - 1}, {BLOCK})
    parts = div(columns + {tile.columns - 1}, {tile.columns})
    chains = div(depth + {CHAIN - 1}, {CHAIN}) if depth > 0 else 1
    chunk = div(depth + chains - 1, chains)
    panel = outer * inner * depth * {PANEL}
{_tables(["x", "y", *fulls], tile.rows)}
    # Units of work, one tile each, in the order of the loops; every thread takes equally many.
    units = groups * parts * tiles if pixels > 0 else 0
    begin = div(units * thread, threads)
    end = div(units * (thread + 1), threads)
    unit = 0
    for g in range(groups):
        for block in range(blocks):
            first = div(tiles * block, blocks)
            last = div(tiles * (block + 1), blocks)
            for part in range(parts):
                low = first + begin - unit
                low = low if low > first else first
                high = first + end - unit
                high = high if high < last else last
                unit += last - first
                if low < high:
                    column = part * {tile.columns}
                    count = columns - column if columns - column < {tile.columns} else {tile.columns}
                    weights = at(w, g * w_group + div(column, {PANEL}) * panel + mod(column, {PANEL}))
                    pixel = low * size + (low if low < longer else longer)
                    line = div(pixel, width)
                    n = div(line, height)
                    h = line - n * height
                    v = pixel - line * width
                    for t in range(low, high):
                        rows = size + 1 if t < longer else size
                        straight = v + rows <= width
                        if not straight:
{_bend(["x", "y", *fulls])}
{_call(contraction)}
                        v += rows
                        while v >= width:
                            v -= width
                            h += 1
                            if h == height:
                                h = 0
                                n += 1
'''


def _tables(names: Iterable[str], rows: int) -> str:
    """Tables of offsets: of rows in one line of an image, and room for rows across its end."""
    lines = []
    for name in names:
        lines += [f"{name}_line = local({rows}, i64)", f"{name}_bent = local({rows}, i64)"]
        lines += [f"for i in range({rows}):", f"    {name}_line[i] = i * {name}_pixel"]
    return indent("\n".join(lines), " " * 4)


def _bend(names: Iterable[str]) -> str:
    """Fill the tables for rows that run over the end of a line of pixels, or of an image."""
    names = list(names)
    lines = ["h_i = h", "v_i = v", *(f"{name}_i = i64(0)" for name in names)]
    lines += ["for i in range(rows):"]
    lines += [f"    {name}_bent[i] = {name}_i" for name in names]
    lines += [f"    {name}_i += {name}_pixel" for name in names]
    lines += ["    v_i += 1", "    if v_i == width:", "        v_i = i64(0)", "        h_i += 1"]
    lines += [f"        {name}_i += {name}_row - width * {name}_pixel" for name in names]
    lines += ["        if h_i == height:", "            h_i = i64(0)"]
    lines += [f"            {name}_i += {name}_image - height * {name}_row" for name in names]
    return indent("\n".join(lines), " " * 28)


def _call(contraction: Contraction) -> str:
    """Call the tile for `rows` rows from (g, n, h, v) on and `count` columns."""
    epilogue, (tile, *narrow) = contraction.epilogue, contraction.tiles

    def place(name: str) -> str:
        return f"g * {name}_group + n * {name}_image + h * {name}_row + v * {name}_pixel"

    lines = [f"x_base = at(x, {place('x')})", "x_rows = x_line if straight else x_bent"]
    written = ["y", *(operand.name for operand in epilogue.fulls)]
    for name in written:
        lines += [f"{name}_base = at({name}, {place(name)} + column)"]
        lines += [f"{name}_rows = {name}_line if straight else {name}_bent"]
    for operand in epilogue.columns:
        lines += [f"{operand.name}_base = at({operand.name}, g * {operand.name}_group + column)"]
    operands = ["y_base, y_rows"]
    for operand in epilogue.operands:
        rows = f", {operand.name}_rows" if operand.kind == "full" else ""
        operands.append(f"{operand.name}_base{rows}")
    arguments = ", ".join(
        ["rows, count, x_base, x_rows, weights", *operands]
        + ["outer, outer_step, inner, inner_step, depth, chunk"]
    )
    if narrow:
        lines += [f"if count <= {narrow[0].columns}:", f"    {narrow[0].name}({arguments})", "else:"]
    lines += [f"{'    ' * len(narrow)}{tile.name}({arguments})"]
    return indent("\n".join(lines), " " * 24)
