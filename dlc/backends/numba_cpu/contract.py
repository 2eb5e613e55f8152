"""Contractions as kernel source: matrix products and convolutions are one loop nest around a tile.

All of them sum, for each row of the result, over a few runs of the input; they differ in where rows
and runs lie, which is a handful of strides. So there is one kernel for an epilogue and a level, and
it serves every layer of every model: `conv2d_sizes` and `matmul_sizes` say what its parameters are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from textwrap import indent

from dlc.backends.native.frontend import Param
from dlc.backends.native.isa import Isa
from dlc.backends.numba_cpu.kernel import Kernel, NativeFunction, Sizes, make_kernel
from dlc.backends.numba_cpu.tiles import CHAIN, Tile
from dlc.backends.numba_cpu.transpose import TransposeTile
from dlc.backends.numba_cpu.vectors import PLAIN, Epilogue
from dlc.errors import CompileError
from dlc.ir.sizes import Size
from dlc.ir.types import ITEMSIZE
from dlc.ops.packed import PANEL

#: Rows of the result that are computed for all columns before the next ones are: so many, or one
#: for every `STRETCH` products of a sum, as the more weights there are, the more use of each pays.
BLOCK = 56
STRETCH = 8
#: Rows that lie a multiple of this many bytes apart evict each other from a first-level cache of
#: eight ways; `FEW` of them fit.
ALIAS = 4096
FEW = 7
#: Elements of a column that are packed before the next column's: they and their targets fit the
#: cache.
PIECE = 64


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
    vectors : tuple of int
        Widths of its tiles in vectors, the widest first; `tile_vectors` says which ones suit a
        number of columns. Results do not depend on it.
    packs : bool
        w is a matrix with any strides, w_column and w_depth, rather than panels; each thread packs
        the panels that it reads, where no later call would find them. For outer = inner = 1. A
        parameter `scratch` follows the operands, of `scratch_elements` for each thread.
    """

    isa: Isa
    dtype: str
    epilogue: Epilogue = PLAIN
    vectors: tuple[int, ...] = (2,)
    packs: bool = False

    @property
    def tiles(self) -> tuple[Tile, ...]:
        """The tiles, the widest first."""
        return tuple(Tile(self.isa, self.dtype, each, self.epilogue) for each in self.vectors)

    @property
    def sizes(self) -> tuple[str, ...]:
        """Names of the integer parameters."""
        names = ["groups", "images", "height", "width", "columns"]
        names += ["outer", "outer_step", "inner", "inner_step", "depth"]
        names += [*_strides("x"), "w_group", *(["w_column", "w_depth"] if self.packs else [])]
        names += _strides("y")
        for operand in self.epilogue.operands:
            full = operand.kind == "full"
            names += _strides(operand.name) if full else [f"{operand.name}_group"]
        return tuple(names)

    @property
    def kernel(self) -> Kernel:
        """The kernel."""
        pointers = ["x", "w", "y", *(operand.name for operand in self.epilogue.operands)]
        # A full operand may be y itself.
        params = [Param(name, f"{self.dtype}*", noalias=False) for name in pointers]
        params += [Param("scratch", f"{self.dtype}*")] if self.packs else []
        params += [Param(name, "int64") for name in self.sizes]
        natives: tuple[NativeFunction, ...] = self.tiles
        if self.packs:
            natives = (*natives, TransposeTile(self.isa, self.dtype))
        return make_kernel("contract", _body(self), params, natives)


def _strides(name: str) -> list[str]:
    return [f"{name}_{unit}" for unit in ("group", "image", "row", "pixel")]


def tile_vectors(isa: Isa, dtype: str, columns: Size) -> tuple[int, ...]:
    """The tiles for a number of columns: two vectors, one for a narrow end, or one alone."""
    lanes = isa.lanes(dtype)
    if not isinstance(columns, int):
        return (2,)
    if columns <= lanes:
        return (1,)
    return (2, 1) if 0 < columns % (2 * lanes) <= lanes else (2,)


def scratch_elements(depth: Size) -> Size:
    """Elements of scratch memory for each thread of a contraction that packs."""
    return depth * PANEL


def matmul_sizes(
    epilogue: Epilogue,
    *,
    rows: Size,
    columns: Size,
    depth: Size,
    batch: Size = 1,
    x_strides: tuple[Size, Size] | None = None,
    y_strides: tuple[Size, Size] | None = None,
    w_strides: tuple[Size, Size, Size] | None = None,
    fulls: Mapping[str, tuple[Size, Size]] | None = None,
) -> Sizes:
    """Sizes of y[b, m, n] = sum over k of x[b, m, k] w[b, k, n].

    Parameters
    ----------
    epilogue : Epilogue
        Its column operands are shared by all batches.
    rows, columns, depth, batch : Size
        M, N, K and B. Weights that all batches share have `w_group` 0.
    x_strides, y_strides : tuple of Size, optional
        Of batch and row; by default x and y are contiguous.
    w_strides : tuple of Size, optional
        Of batch, k and n, for a contraction that packs; by default w lies in panels.
    fulls : mapping of str to tuple of Size, optional
        The same of each full operand; by default those of y.
    """
    panels = (columns + (PANEL - 1)) // PANEL
    x = x_strides or (rows * depth, depth)
    y = y_strides or (rows * columns, columns)
    sizes: Sizes = {"groups": batch, "images": 1, "height": 1, "width": rows, "columns": columns}
    sizes |= {"outer": 1, "outer_step": 0, "inner": 1, "inner_step": 0, "depth": depth}
    w = w_strides or (panels * depth * PANEL, PANEL, 1)
    sizes |= dict(zip(("w_group", "w_depth", "w_column"), w))
    sizes |= {f"{operand.name}_group": 0 for operand in epilogue.columns}
    for name, (group, row) in ({"x": x} | epilogue.places(y, fulls)).items():
        sizes |= dict(zip(_strides(name), (group, 0, 0, row)))
    return sizes


def conv2d_sizes(
    epilogue: Epilogue,
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
    fulls: Mapping[str, tuple[Size, Size, Size]] | None = None,
) -> Sizes:
    """Sizes of a convolution of zero-padded input.

    Parameters
    ----------
    epilogue : Epilogue
    shape : tuple of Size
        Images, height and width of the result.
    columns, channels : Size, int
        Channels of the result and of the input, in one group.
    kernel, stride, dilation : tuple of int
        Along the height and the width.
    x_strides : tuple of Size
        Of image, row, pixel and channel, from an x that begins at the corner of the padding. Either
        the channels are contiguous (NHWC), or the pixels (NCHW: for one group, without dilation
        along the width, and with weights in the order (I, KH, KW)).
    y_strides : tuple of Size
        Of image, row and pixel; the channels are contiguous.
    groups : int
        Their channels follow each other in x, y and all operands.
    fulls : mapping of str to tuple of Size, optional
        Strides of image, row and pixel of each full operand; by default those of y.

    Raises
    ------
    CompileError
        If neither the channels nor the pixels are contiguous.
    """
    panels = (columns + (PANEL - 1)) // PANEL
    image, row, pixel, _ = x_strides
    x = (image, row * stride[0], pixel * stride[1])
    sizes: Sizes = {"groups": groups, "images": shape[0], "height": shape[1], "width": shape[2]}
    sizes |= {"columns": columns, **_runs(channels, kernel, x_strides, dilation, groups)}
    sizes |= {"w_group": panels * kernel[0] * kernel[1] * channels * PANEL}
    sizes |= {f"{operand.name}_group": columns for operand in epilogue.columns}
    for name, place in ({"x": x} | epilogue.places(y_strides, fulls)).items():
        sizes |= dict(zip(_strides(name), (channels if name == "x" else columns, *place)))
    return sizes


def _runs(
    channels: int,
    kernel: tuple[int, int],
    strides: tuple[Size, Size, Size, Size],
    dilation: tuple[int, int],
    groups: int,
) -> Sizes:
    """The runs of the input that a convolution sums over."""
    (kh, kw), (_, row, pixel, channel) = kernel, strides
    down, across = row * dilation[0], pixel * dilation[1]
    runs: tuple[Size, ...]
    if channel == 1 and across == channels:  # a line of the kernel is one run
        runs = (kh, down, 1, 0, kw * channels)
    elif channel == 1:
        runs = (kh, down, kw, across, channels)
    elif across == 1 and groups == 1:
        runs = (channels, channel, kh, down, kw)
    else:
        raise CompileError(
            f"a convolution reads contiguous channels, or contiguous pixels of one group without "
            f"dilation; got strides {strides} of {groups} groups, dilation {dilation}"
        )
    return dict(zip(("outer", "outer_step", "inner", "inner_step", "depth"), runs))


# The source.


def _body(contraction: Contraction) -> str:
    """The source below the `def` line."""
    tile = contraction.tiles[0]
    tables = ["x", "y", *(operand.name for operand in contraction.epilogue.fulls)]
    return f"""\
    # Rows that evict each other from the cache are taken fewer at a time.
    aliased = mod(x_pixel * {ITEMSIZE[tile.dtype]}, {ALIAS}) == 0
    most = {min(tile.rows, FEW)} if aliased else {tile.rows}
    # Rows are cut into tiles of equal size, the first `longer` of them one longer.
    pixels = images * height * width
    tiles = div(pixels + most - 1, most) if pixels > 0 else 1
    size = div(pixels, tiles)
    longer = pixels - size * tiles
{_blocks(contraction)}
    parts = div(columns + {tile.columns - 1}, {tile.columns})
    chains = div(depth + {CHAIN - 1}, {CHAIN}) if depth > 0 else 1
    chunk = div(depth + chains - 1, chains)
{_tables(tables, tile.rows)}
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
                    count = columns - column
                    count = count if count < {tile.columns} else {tile.columns}
{_weights(contraction)}
                    pixel = low * size + (low if low < longer else longer)
                    line = div(pixel, width)
                    n = div(line, height)
                    h = line - n * height
                    v = pixel - line * width
                    for t in range(low, high):
                        rows = size + 1 if t < longer else size
                        straight = v + rows <= width
                        if not straight:
{_bend(tables)}
{_call(contraction)}
                        v += rows
                        while v >= width:
                            v -= width
                            h += 1
                            if h == height:
                                h = 0
                                n += 1
"""


def _blocks(contraction: Contraction) -> str:
    """Into how many blocks the tiles are cut."""
    if contraction.packs:
        text = """\
# One block, so that each panel is packed once, by the thread that reads it.
blocks = 1
packed = at(scratch, thread * depth * {PANEL})
held = i64(-1)
"""
    else:
        text = """\
stretch = div(outer * inner * depth, {STRETCH})
stretch = stretch if stretch > {BLOCK} else {BLOCK}
blocks = div(tiles * most + stretch - 1, stretch)
panel = outer * inner * depth * {PANEL}
"""
    return indent(text.format(PANEL=PANEL, STRETCH=STRETCH, BLOCK=BLOCK).rstrip(), " " * 4)


def _weights(contraction: Contraction) -> str:
    """Find the weights of a part, or pack them."""
    if not contraction.packs:
        text = f"""\
place = div(column, {PANEL}) * panel + mod(column, {PANEL})
weights = at(w, g * w_group + place)"""
        return indent(text, " " * 20)
    text = f"""\
panel = div(column, {PANEL})
number = g * div(columns + {PANEL - 1}, {PANEL}) + panel
if held != number:
    held = number
    steps = depth
    place = i64(0)
    origin = g * w_group + panel * {PANEL} * w_column
    filled = columns - panel * {PANEL}
    filled = filled if filled < {PANEL} else {PANEL}
{indent(_fill(TransposeTile(contraction.isa, contraction.dtype)), " " * 4)}
weights = at(packed, mod(column, {PANEL}))"""
    return indent(text, " " * 20)


def _fill(turn: TransposeTile) -> str:
    """Copy `steps` steps of the sum of `filled` columns into a panel; zeros for columns there are
    not. Whole panels are copied row by row, or turned block by block.
    """
    return f"""\
if w_column == 1 and filled == {PANEL}:
    for c in range(steps):
        for j in range({PANEL}):
            packed[place + c * {PANEL} + j] = w[origin + c * w_depth + j]
elif w_depth == 1 and filled == {PANEL}:
    whole = steps - mod(steps, {turn.width})
    for c in range(0, whole, {turn.width}):
        for j in range(0, {PANEL}, {turn.width}):
            block = place + c * {PANEL} + j
            {turn.name}(at(w, origin + j * w_column + c), w_column, at(packed, block), {PANEL})
    for c in range(whole, steps):
        for j in range({PANEL}):
            packed[place + c * {PANEL} + j] = w[origin + j * w_column + c]
else:
    for near in range(0, steps, {PIECE}):
        far = near + {PIECE} if near + {PIECE} < steps else steps
        for j in range(filled):
            for c in range(near, far):
                taken = w[origin + j * w_column + c * w_depth]
                packed[place + c * {PANEL} + j] = taken
        for j in range(filled, {PANEL}):
            for c in range(near, far):
                packed[place + c * {PANEL} + j] = 0"""


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

    def row(name: str, column: str) -> list[str]:
        base = f"g * {name}_group + n * {name}_image + h * {name}_row + v * {name}_pixel{column}"
        table = f"{name}_rows = {name}_line if straight else {name}_bent"
        return [f"{name}_base = at({name}, {base})", table]

    lines = [*row("x", ""), *row("y", " + column")]
    arguments = ["rows", "count", "x_base", "x_rows", "weights", "y_base", "y_rows"]
    for operand in epilogue.operands:
        name = operand.name
        arguments.append(f"{name}_base")
        if operand.kind == "full":
            lines += row(name, " + column")
            arguments.append(f"{name}_rows")
        else:
            lines.append(f"{name}_base = at({name}, g * {name}_group + column)")
    arguments += ["outer", "outer_step", "inner", "inner_step", "depth", "chunk"]
    calls = [f"{each.name}({', '.join(arguments)})" for each in (tile, *narrow)]
    if narrow:
        lines += [
            f"if count <= {narrow[0].columns}:",
            f"    {calls[1]}",
            "else:",
            f"    {calls[0]}",
        ]
    else:
        lines.append(calls[0])
    return indent("\n".join(lines), " " * 24)
