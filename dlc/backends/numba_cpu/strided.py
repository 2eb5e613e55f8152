"""Contractions over strided operands as kernel source: gradients of weights, products of a
transposed matrix.

The sum runs over pixels (or over the rows of both matrices), and the result is small: so the sums
of many tiles are kept in a cache while a few hundred pixels of both operands, which fit there too,
pass through all of them. Neither operand is packed or transposed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import indent

from dlc.backends.native.frontend import Param
from dlc.backends.native.isa import CACHE_LINE, Isa
from dlc.backends.numba_cpu.kernel import Kernel, NativeFunction, Sizes, make_kernel
from dlc.backends.numba_cpu.strided_tiles import StridedStore, StridedTile
from dlc.backends.numba_cpu.tiles import CHAIN
from dlc.backends.numba_cpu.vectors import PLAIN, Epilogue
from dlc.ir.sizes import Size
from dlc.ir.types import ITEMSIZE

#: Rows of a product from which threads share them.
MANY_ROWS = 64
#: Tiles whose sums one thread keeps at a time: of the widest, a quarter of a megabyte.
KEPT = 144


@dataclass(frozen=True)
class Strided:
    """A contraction kernel over strided operands.

    The result has `parts` x `groups` matrices of `lines` x `taps` x `run` rows; row (l, t, i) of
    matrix (p, g) begins at p y_part + g y_group + ((l taps + t) run + i) y_row. It is, from
    x_at = g x_group + l x_line + t x_tap + i x_run on,

        acc[j] = sum over a of part p, b < inner, c < depth of
                 x[x_at + a x_outer + b x_inner + c x_step]
                 * w[g w_group + a w_outer + b w_inner + c w_step + j]

    where the parts share the range of `outer`. The sum is cut into chains of at most `CHAIN`
    products, whole runs along depth where they fit, which are added one after the other: its bits
    depend on sizes only. A full operand has the strides of y by names of its own, a column operand
    o begins at g o_group, further results lie like y. All strides are in elements. The parameters
    are x, w, y, further results, the operands, `scratch` (of `scratch_elements` for each thread),
    and `sizes`, in this order.

    Attributes
    ----------
    isa : Isa
    dtype : str
        "float32" or "float64".
    epilogue : Epilogue
    vectors : tuple of float
        Widths of its tiles in vectors, the widest first; `strided_vectors` says which ones suit a
        number of columns. Results do not depend on it.
    lanewise : bool
        x[x_at + ... + j] rather than x[x_at + ...]: its tiles are.
    by_rows : bool
        Threads share the rows of the result, rather than tiles of any rows and columns.
    """

    isa: Isa
    dtype: str
    epilogue: Epilogue = PLAIN
    vectors: tuple[float, ...] = (2,)
    lanewise: bool = False
    by_rows: bool = False

    @property
    def tiles(self) -> tuple[StridedTile, ...]:
        """The tiles, the widest first."""
        return tuple(
            StridedTile(self.isa, self.dtype, each, self.lanewise) for each in self.vectors
        )

    @property
    def stores(self) -> tuple[StridedStore, ...]:
        """What stores the sums of each tile."""
        widths = [tile.columns for tile in self.tiles]
        return tuple(StridedStore(self.isa, self.dtype, n, self.epilogue) for n in widths)

    @property
    def sizes(self) -> tuple[str, ...]:
        """Names of the integer parameters."""
        names = ["parts", "groups", "lines", "taps", "run", "columns"]
        names += ["x_group", "x_line", "x_tap", "x_run", "w_group"]
        for axis, step in (("outer", "outer"), ("inner", "inner"), ("depth", "step")):
            names += [axis, f"x_{step}", f"w_{step}"]
        for name in _like_the_result(self.epilogue):
            names += [f"{name}_part", f"{name}_group", f"{name}_row"]
        return (*names, *(f"{operand.name}_group" for operand in self.epilogue.columns))

    @property
    def kernel(self) -> Kernel:
        """The kernel."""
        operands = (operand.name for operand in self.epilogue.operands)
        pointers = ["x", "w", *self.epilogue.results, *operands]
        # A full operand may be a result itself.
        params = [Param(name, f"{self.dtype}*", noalias=False) for name in pointers]
        params += [Param("scratch", f"{self.dtype}*")]
        params += [Param(name, "int64") for name in self.sizes]
        natives: tuple[NativeFunction, ...] = (*self.tiles, *self.stores)
        return make_kernel("strided", _body(self), params, natives)

    @property
    def scratch_elements(self) -> int:
        """Elements of scratch memory for each thread."""
        return KEPT * self.tiles[0].rows * self.tiles[0].columns


def strided_vectors(isa: Isa, dtype: str, columns: Size) -> tuple[float, ...]:
    """The tiles for a number of columns: two vectors, one for a narrow end, or one narrow one."""
    lanes = isa.lanes(dtype)
    if not isinstance(columns, int):
        return (2,)
    if columns <= lanes:
        return (0.5,) if columns <= lanes // 2 and lanes > 2 else (1,)
    return (2, 1) if 0 < columns % (2 * lanes) <= lanes else (2,)


def across_sizes(
    epilogue: Epilogue,
    *,
    rows: Size,
    columns: Size,
    depth: Size,
    batch: Size = 1,
) -> Sizes:
    """Sizes of y[b, m, n] = sum over k of x[b, k, m] w[b, k, n].

    Parameters
    ----------
    epilogue : Epilogue
        Its column operands are shared by all batches.
    rows, columns, depth, batch : Size
        M, N, K and B; all arrays are contiguous.
    """
    sizes: Sizes = {"parts": 1, "groups": batch, "lines": 1, "taps": 1, "run": rows}
    sizes |= {"columns": columns, "x_group": rows * depth, "x_line": 0, "x_tap": 0, "x_run": 1}
    sizes |= {"w_group": columns * depth, "depth": depth, "x_step": rows, "w_step": columns}
    for axis in ("outer", "inner"):
        sizes |= {axis: 1, f"x_{axis}": 0, f"w_{axis}": 0}
    return sizes | _result(epilogue, (0, rows * columns, columns), 0)


def weight_grad_sizes(
    epilogue: Epilogue,
    *,
    shape: tuple[Size, Size, Size],
    columns: int,
    channels: int,
    kernel: tuple[int, int],
    x_strides: tuple[Size, Size, Size, Size],
    w_strides: tuple[Size, Size, Size],
    stride: tuple[int, int] = (1, 1),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    parts: int = 1,
) -> Sizes:
    """Sizes of the gradient of a convolution's weight.

    Parameters
    ----------
    epilogue : Epilogue
    shape : tuple of Size
        Images, height and width of the convolution's result.
    columns, channels : int
        Channels of its result and of its input, in one group.
    kernel, stride, dilation : tuple of int
        Along the height and the width.
    x_strides : tuple of Size
        Of image, row, pixel and channel, from the corner of the padding on. Where the channels are
        contiguous, the result is `[parts][KH][KW][channels][columns of all groups]`, else it is
        `[parts][channels][KH][KW][columns]`, of one group.
    w_strides : tuple of Size
        Of image, row and pixel, of the gradient of the convolution's result; its channels are
        contiguous.
    groups : int
        Their channels follow each other in x, w and the columns of the result.
    parts : int
        Into how many results the images are shared, whose sum is the gradient.
    """
    image, line, pixel, channel = x_strides
    kinds = {"kh": (kernel[0], line * dilation[0]), "kw": (kernel[1], pixel * dilation[1])}
    kinds["i"] = (channels, channel)
    order = ("kh", "kw", "i") if channel == 1 else ("i", "kh", "kw")
    rows = [kinds[each] for each in order]
    if rows[1][1] == rows[2][0] * rows[2][1]:  # taps follow each other: one run
        rows = [rows[0], (1, 0), (rows[1][0] * rows[2][0], rows[2][1])]
    sizes: Sizes = {"parts": parts, "groups": groups, "columns": columns}
    for name, step, row in zip(("lines", "taps", "run"), ("line", "tap", "run"), rows):
        sizes |= {name: row[0], f"x_{step}": row[1]}
    sizes |= {"x_group": channels, "w_group": columns}
    sizes |= {"outer": shape[0], "x_outer": image, "w_outer": w_strides[0]}
    sizes |= {"inner": shape[1], "x_inner": line * stride[0], "w_inner": w_strides[1]}
    sizes |= {"depth": shape[2], "x_step": pixel * stride[1], "w_step": w_strides[2]}
    whole = groups * columns
    part = kernel[0] * kernel[1] * channels * whole
    return sizes | _result(epilogue, (part, columns, whole), columns)


def _result(epilogue: Epilogue, y: tuple[Size, Size, Size], column_group: Size) -> Sizes:
    """Strides of the result and of the operands beside it."""
    sizes: Sizes = {f"{operand.name}_group": column_group for operand in epilogue.columns}
    for name in _like_the_result(epilogue):
        sizes |= dict(zip((f"{name}_part", f"{name}_group", f"{name}_row"), y))
    return sizes


def _like_the_result(epilogue: Epilogue) -> list[str]:
    """Names of what has the result's shape."""
    return [*epilogue.results, *(operand.name for operand in epilogue.fulls)]


# The source.


def _body(strided: Strided) -> str:
    """The source below the `def` line."""
    tile, by_rows = strided.tiles[0], strided.by_rows
    tiles = _TILES.format(most=tile.rows)
    before, in_group = (_ROW_UNITS, _OWN_ROWS + tiles) if by_rows else (tiles + _TILE_UNITS, "")
    return f"""\
    rows = lines * taps * run
    panels = div(columns + {tile.columns - 1}, {tile.columns})
    straight = local({tile.rows}, i64)
    bent = local({tile.rows}, i64)
    for i in range({tile.rows}):
        straight[i] = i * x_run
    sums = at(scratch, thread * {strided.scratch_elements})
    first = i64(0)
    own = rows
{indent(before, " " * 4)}
    begin = div(units * thread, threads)
    end = div(units * (thread + 1), threads)
    unit = 0
    for part in range(parts):
        image = div(outer * part, parts)
        images = div(outer * (part + 1), parts) - image
{_CHAINS}
        kept = 1 if chains == 1 else {KEPT}
        for g in range(groups):
{indent(in_group, " " * 12)}
            for panel in range(panels):
{indent(_ALL_TILES if by_rows else _OWN_TILES, " " * 16)}
                column = panel * {tile.columns}
                count = columns - column
                count = count if count < {tile.columns} else {tile.columns}
                # Tiles, as many as have their sums in the cache.
                while low < high:
                    last = low + kept if low + kept < high else high
                    for chain in range(chains):
{indent(_CUT, " " * 24)}
{indent(_tiles(strided), " " * 24)}
                    low = last
"""


# Own rows, from the first one on, are cut into tiles of equal size, some of them one longer.
_TILES = """\
tiles = div(own + {most} - 1, {most}) if own > 0 else 1
size = div(own, tiles)
longer = own - size * tiles
"""

# Units of work that every thread takes equally many of: tiles, and which of them are its own,
_TILE_UNITS = "units = parts * groups * panels * tiles if rows > 0 else 0"
_OWN_TILES = """\
low = begin - unit if begin > unit else 0
high = end - unit if end - unit < tiles else tiles
unit += tiles"""

# or rows, of which it takes all panels.
_ROW_UNITS = "units = parts * groups * rows"
_OWN_ROWS = """\
first = begin - unit if begin > unit else 0
own = end - unit if end - unit < rows else rows
own -= first
unit += rows
"""
_ALL_TILES = """\
low = 0
high = tiles if own > 0 else 0"""

# Chains: runs along depth are cut where they are too long, and else as many as fit make one. Each
# axis is cut into equal pieces.
_CHAINS = f"""\
        deep = div(depth + {CHAIN - 1}, {CHAIN}) if depth > {CHAIN} else 1
        room = div({CHAIN}, depth) if 0 < depth <= {CHAIN} else 1
        wide = div(inner + room - 1, room) if inner > room else 1
        room = div(room, inner) if 0 < inner <= room else 1
        long = div(images + room - 1, room) if images > room else 1
        chains = long * wide * deep"""

# Where a chain is: pieces of the three axes.
_CUT = """\
piece = div(chain, wide * deep)
rest = chain - piece * wide * deep
a = div(images * piece, long)
a_count = div(images * (piece + 1), long) - a
a += image
piece = div(rest, deep)
b = div(inner * piece, wide)
b_count = div(inner * (piece + 1), wide) - b
piece = rest - piece * deep
c = div(depth * piece, deep)
c_count = div(depth * (piece + 1), deep) - c
x_chain = g * x_group + a * x_outer + b * x_inner + c * x_step
w_chain = g * w_group + a * w_outer + b * w_inner + c * w_step + column"""

# The rows of a tile that runs over the end of a run.
_BEND = """\
offset = i64(0)
i_k = i
tap_k = tap
for k in range(height):
    bent[k] = offset
    offset += x_run
    i_k += 1
    if i_k == run:
        i_k = 0
        tap_k += 1
        offset += x_tap - run * x_run
        if tap_k == taps:
            tap_k = 0
            offset += x_line - taps * x_tap"""


def _tiles(strided: Strided) -> str:
    """Add a chain to the sums of tiles `low` to `last`, and store them behind the last chain."""
    tile = strided.tiles[0]
    loops = "a_count, x_outer, w_outer, b_count, x_inner, w_inner, c_count, x_step, w_step"
    arguments = f"height, count, x_base, x_rows, at(w, w_chain), held, chain,\n    {loops},"
    lanewise = " + column" if strided.lanewise else ""
    return f"""\
row = first + low * size + (low if low < longer else longer)
line = div(row, taps * run)
i = row - line * taps * run
tap = div(i, run)
i = i - tap * run
for t in range(low, last):
    height = size + 1 if t < longer else size
    crosses = i + height > run
    if crosses:
{indent(_BEND, " " * 8)}
    x_base = at(x, x_chain + line * x_line + tap * x_tap + i * x_run{lanewise})
    x_rows = bent if crosses else straight
    held = at(sums, (t - low) * {tile.rows * tile.columns})
    if 0 < chain == chains - 1:
{indent(_claim(strided), " " * 8)}
{indent(_widths(strided.tiles, arguments), " " * 4)}
    if chain == chains - 1:
{indent(_store(strided), " " * 8)}
    row += height
    i += height
    while i >= run:
        i -= run
        tap += 1
        if tap == taps:
            tap = 0
            line += 1"""


def _claim(strided: Strided) -> str:
    """Ask for what a tile's store will write, and mostly read, while the last of several chains is
    summed: its rows lie far apart, where no processor foresees them.
    """
    tile, lines = strided.tiles[0], ["for k in range(height):"]
    for name in strided.epilogue.results:
        for start in range(0, tile.columns, CACHE_LINE // ITEMSIZE[tile.dtype]):
            lines.append(f"    claim({_place(name)} + k * {name}_row + {start})")
    return "\n".join(lines)


def _place(name: str) -> str:
    """Where the tile's part of a result or a full operand begins."""
    return f"{name}, part * {name}_part + g * {name}_group + row * {name}_row + column"


def _store(strided: Strided) -> str:
    """Store the sums of a tile."""
    arguments = ["height, count, held"]
    arguments += [f"at({_place(name)}), {name}_row" for name in strided.epilogue.results]
    for each in strided.epilogue.operands:
        column = f"at({each.name}, g * {each.name}_group + column)"
        kinds = {"full": f"at({_place(each.name)}), {each.name}_row", "column": column}
        arguments.append(kinds.get(each.kind, each.name))
    return _widths(strided.stores, ",\n    ".join(arguments))


def _widths(functions: Sequence[StridedTile | StridedStore], arguments: str) -> str:
    """Call the first function, or the second one where that is wide enough."""
    calls = [f"{each.name}(\n    {arguments}\n)" for each in functions]
    if len(calls) == 1:
        return calls[0]
    wide, thin = (indent(call, " " * 4) for call in calls)
    return f"if count <= {functions[1].columns}:\n{thin}\nelse:\n{wide}"
