"""Winograd convolution: transform tiles of the input, multiply, transform the products back.

Between the transforms lie (m + 2)^2 matrix products, one for each point, by the register tiles of
all contractions. They are done for a block of tiles and a panel of output channels at a time, so
that what the transforms write is still in the cache when it is read. The mathematics is that of
`dlc.ops.winograd`.

Each tile of results is computed by itself, in an order that its depth alone decides: results have
the same bits for every block and number of threads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from textwrap import indent

from dlc.backends.native.frontend import Param
from dlc.backends.native.isa import CACHE_LINE, Isa
from dlc.backends.numba_cpu.kernel import Kernel, Sizes, make_kernel
from dlc.backends.numba_cpu.tiles import Tile
from dlc.backends.numba_cpu.transforms import InputTransform, OutputTransform
from dlc.backends.numba_cpu.vectors import PLAIN, Epilogue
from dlc.ir.sizes import Size
from dlc.ir.types import ITEMSIZE
from dlc.ops.packed import PANEL
from dlc.ops.winograd import tiles_along

#: The longest chain of multiply-adds. The transforms amplify the rounding of the products, and this
#: halves it for a few percent of time.
CHAIN = 64
#: What it costs, in multiply-adds, to transform an element of a tile, and to read a weight: half as
#: much as one that no cache holds, by which algorithms are chosen.
TRANSFORM, READ = 5, 4
#: Tiles of a block: two register tiles of the widest level.
BLOCK = 28


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
    line = CACHE_LINE // ITEMSIZE[winograd.dtype]
    v_row = _odd_lines(depth, line)
    v_plane = _odd_lines(block * v_row, line)
    p_plane = _odd_lines(block * winograd.product.columns, line)
    sizes: Sizes = {"images": shape[0], "height": shape[1], "width": shape[2]}
    sizes |= {"tall": tiles_along(shape[1], winograd.m), "wide": tiles_along(shape[2], winograd.m)}
    sizes |= {"columns": columns, "depth": depth, "block": block}
    sizes |= {"v_row": v_row, "v_plane": v_plane, "p_plane": p_plane}
    sizes |= {"share": _odd_lines(winograd.points * (v_plane + p_plane), line)}
    places = {"x": x_strides} | winograd.epilogue.places(y_strides, fulls)
    for name, place in places.items():
        sizes |= dict(zip((f"{name}_image", f"{name}_row", f"{name}_pixel"), place))
    return sizes


def _odd_lines(elements: int, line: int) -> int:
    """So many elements or more, an odd number of cache lines: what lies so far apart spreads over
    all sets of a cache.
    """
    return (-(-elements // line) | 1) * line


# The source.


def _body(winograd: Winograd) -> str:
    """The source below the `def` line."""
    return f"""\
{_shares(winograd)}
    for b in range(first, last):
        start = div(tiles * b, blocks)
        size = div(tiles * (b + 1), blocks) - start
        line = div(start, wide)
        start_c = start - line * wide
        start_n = div(line, tall)
        start_h = line - start_n * tall
{_transformed(winograd)}
        pieces = div(size + {winograd.product.rows - 1}, {winograd.product.rows})
        low = begin - b * parts if begin > b * parts else 0
        high = end - b * parts if end < (b + 1) * parts else parts
        for part in range(first_part + low, first_part + high):
{_multiplied(winograd)}
{_stored(winograd)}
"""


def _shares(winograd: Winograd) -> str:
    """What this thread does: its blocks, from `first` to `last`, its parts, and its memory."""
    tile = winograd.product
    return f"""\
    tiles = images * tall * wide
    blocks = div(tiles + block - 1, block)
    parts = div(columns + {tile.columns - 1}, {tile.columns})
    # Threads lie in a grid: `across` of them share the parts, so that each reads fewer weights but
    # transforms more tiles.
    across = i64(1)
    least = div(tiles * {TRANSFORM}, threads) + columns * {READ}
    for count in range(2, threads + 1):
        if mod(threads, count) == 0 and mod(parts, count) == 0:
            cost = div(tiles * count * {TRANSFORM}, threads) + div(columns * {READ}, count)
            if cost < least:
                least = cost
                across = count
    down = div(threads, across)
    parts = div(parts, across)
    first_part = parts * mod(thread, across)
    # Those that cannot share their parts evenly share the tiles: a multiple of them in blocks.
    if mod(parts, down) != 0:
        blocks = div(blocks + down - 1, down) * down
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
    row = div(thread, across)
    begin = div(blocks * parts * row, down)
    end = div(blocks * parts * (row + 1), down)
    first = div(begin, parts)
    last = div(end + parts - 1, parts) if begin < end else first"""


def _transformed(winograd: Winograd) -> str:
    """Transform the input tiles of a block."""
    body = f"""\
{winograd.transforms[0].name}(
    {_place(winograd, "x")}), x_row, x_pixel, at(v, t * v_row), v_plane, depth
)"""
    return indent(_for_tiles(body), " " * 8)


def _multiplied(winograd: Winograd) -> str:
    """Multiply a block with the weights of a part of the columns, point by point."""
    tile = winograd.product
    text = f"""\
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
count = columns - column if columns - column < {tile.columns} else {tile.columns}"""
    return indent(text, " " * 12)


def _stored(winograd: Winograd) -> str:
    """Transform the products of a block and a part back, and store what lies in the image."""
    m = winograd.m
    call = ["rows, pixels, count", f"at(products, t * {winograd.product.columns}), p_plane"]
    call.append(f"{_place(winograd, 'y')} + column), y_row, y_pixel")
    for each in winograd.epilogue.operands:
        name = each.name
        full = f"{_place(winograd, name)} + column), {name}_row, {name}_pixel"
        call.append(full if each.kind == "full" else f"at({name}, column)")
    arguments = indent(",\n".join(call), " " * 4)
    body = f"""\
rows = height - h * {m} if height - h * {m} < {m} else {m}
pixels = width - c * {m} if width - c * {m} < {m} else {m}
{winograd.transforms[1].name}(
{arguments}
)"""
    return indent(_for_tiles(body), " " * 12)


def _place(winograd: Winograd, name: str) -> str:
    """Where tile (n, h, c) of an image begins; without the closing parenthesis."""
    m = winograd.m
    return f"at({name}, n * {name}_image + h * {m} * {name}_row + c * {m} * {name}_pixel"


def _for_tiles(body: str) -> str:
    """A loop over the tiles t of a block, which lie at (n, h, c): on a line, line by line, image by
    image.
    """
    return f"""\
n = start_n
h = start_h
c = start_c
for t in range(size):
{indent(body, " " * 4)}
    c += 1
    if c == wide:
        c = i64(0)
        h += 1
        if h == tall:
            h = i64(0)
            n += 1"""
