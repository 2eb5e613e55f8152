"""Movement that copies runs, or blocks of a matrix transposed.

A group that only moves one operand is a map from the loops of its result to addresses. Where the
innermost loop walks through the operand too, runs are copied. Where it jumps and another loop
walks, the two are the sides of matrices, which are transposed block by block. A guard that stops
the innermost loop, as behind the last column of a panel, is not asked for each element: it bounds
the loop. Positions advance by counting, without divisions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dlc.backends.native.isa import Isa
from dlc.backends.numba_cpu.loops import coefficient, loop_nest, rows
from dlc.backends.numba_cpu.transpose import TransposeTile
from dlc.backends.numba_cpu.writer import (
    KernelSource,
    Loop,
    Var,
    Writer,
    is_number,
    literal,
    loop_over,
)
from dlc.ir.node import Node
from dlc.ir.op import Kind
from dlc.ir.plan import Layout
from dlc.ir.schedule import Group
from dlc.ir.sizes import Floor, Poly, Size, as_size, atoms, bounds, dims, substitute
from dlc.ir.types import is_float
from dlc.ops.packed import PANEL

Layouts = Mapping[Node, Layout]

#: Rows and columns of a block: both its sides in pieces of whole cache lines, all of it in the
#: first-level cache.
BLOCK = 64
#: Elements that the other side must have in a run for blocks to pay.
SHORT = 16


@dataclass(frozen=True, eq=False)
class Movement:
    """Where the elements of a group's result come from.

    The result's element at ``target`` is the element of ``source`` at ``address`` if
    ``value < high``, else ``fill``; without a guard, ``value`` is None. All are over ``loops``, of
    which the last walks through the result.
    """

    source: Node
    loops: tuple[Loop, ...]
    target: Size
    address: Size
    value: Size | None
    high: Size
    fill: float


def movement_kernel(group: Group, layouts: Layouts, isa: Isa, name: str) -> KernelSource | None:
    """The kernel of a group that copies runs or transposes; None if it does something else."""
    found = movement(group, layouts)
    if found is None:
        return None
    inner = found.loops[-1].var
    if _stride(found.address, inner) == 1:
        return _runs(group, layouts, found, name)
    if not is_float(group.outputs[0].dtype):
        return None
    for loop in reversed(found.loops[:-1]):
        long = bounds(loop.extent)[1] >= SHORT and not _holds(found.value, loop.var)
        if long and _stride(found.address, loop.var) == 1:
            return _transposed(group, layouts, isa, found, loop, name)
    return None


def movement(group: Group, layouts: Layouts) -> Movement | None:
    """A group as the movement of one operand, if that is what it is."""
    out = group.outputs[0]
    if len(group.outputs) > 1 or any(node.op.kind is not Kind.MOVE for node in group.inside):
        return None
    loops = loop_nest(out.shape, layouts[out].order)
    if not loops:
        return None
    by_dim = {int(loop.var.name[1:]): as_size(loop.var) for loop in loops}
    index = tuple(by_dim.get(d, 0) for d in range(out.ndim))
    writer = Writer(group, layouts)
    target = writer.element(out, index)
    node, guards, fill, inside = out, [], 0.0, set(group.inside)
    while node in inside:
        move, types = node.op.move, [source.tensor_type for source in node.inputs]
        assert move is not None, node
        accesses = move.index(index, types, **node.attrs)
        if len(accesses) != 1 or node.op.name == "check_finite":
            return None
        own = [guard for guard in accesses[0].guards if not _always(guard)]
        if own:
            guards += own
            fill = node.attrs[move.fill] if move.fill else 0.0
        node, index = node.inputs[accesses[0].operand], accesses[0].index
    if not _in_memory(node) or len(guards) > 1:
        return None
    address = writer.element(node, index)
    value, high = None, as_size(0)
    if guards:
        low, value, high = guards[0]
        if bounds(as_size(value))[0] < bounds(low)[1] or not _steps(value, loops[-1].var):
            return None
    if not all(_is_affine(size, loops) for size in (target, address)):
        return None
    if _stride(target, loops[-1].var) != 1:  # a halo around a dimension of one element
        return None
    merged, target, address = _merged(loops, target, address, value)
    return Movement(node, merged, target, address, value, high, fill)


def _in_memory(node: Node) -> bool:
    return node.op.name not in ("iota", "size") and not is_number(node)


def _always(guard: tuple[Size, Size, Size]) -> bool:
    low, value, high = guard
    least, most = bounds(as_size(value))
    return least >= bounds(low)[1] and most < bounds(high)[0]


def _steps(value: Size, var: Var) -> bool:
    """Whether a guarded value grows by one with a variable."""
    return not _divides(value) and coefficient(as_size(value), var) == 1


def _holds(value: Size | None, var: Var) -> bool:
    return value is not None and var in dims(as_size(value))


def _divides(size: Size) -> bool:
    return any(isinstance(atom, Floor) for atom in atoms(size))


def _is_affine(size: Size, loops: Sequence[Loop]) -> bool:
    """Whether an address is a sum of loop variables times strides."""
    own = {loop.var for loop in loops}
    if any(isinstance(atom, Floor) and dims(atom.numerator) & own for atom in atoms(size)):
        return False
    terms = size.terms if isinstance(size, Poly) else {}
    return all(sum(atom in own for atom in monomial) <= 1 for monomial in terms)


def _stride(address: Size, var: Var) -> Size:
    """How far apart neighbours along a loop lie."""
    step = coefficient(as_size(address), var)
    assert step is not None, "addresses are affine"
    return step


def _merged(
    loops: Sequence[Loop], target: Size, address: Size, value: Size | None
) -> tuple[tuple[Loop, ...], Size, Size]:
    """Neighbouring loops that both addresses walk as one, made one."""
    merged = list(loops[-1:])
    for outer in reversed(loops[:-1]):
        near = merged[0]
        alike = all(
            _stride(a, outer.var) == as_size(_stride(a, near.var)) * near.extent
            for a in (target, address)
        )
        if not alike or _holds(value, outer.var) or _holds(value, near.var):
            merged.insert(0, outer)
            continue
        both = loop_over(near.var.name, as_size(outer.extent) * near.extent)
        kept = {outer.var: as_size(0), near.var: as_size(both.var)}
        target, address = substitute(target, kept), substitute(address, kept)
        merged[0] = both
    return tuple(merged), target, address


# Kernels.


def _runs(group: Group, layouts: Layouts, move: Movement, name: str) -> KernelSource:
    """Copy run by run; of a single one, every thread a part."""
    *outer, inner = move.loops
    writer = Writer(group, layouts, loops={loop.var for loop in move.loops})
    x, y = writer.pointer(move.source), writer.pointer(group.outputs[0])
    var, begin = inner.var.name, {inner.var: as_size(0)}
    with rows(writer, outer, None if outer else inner):
        first, last = ("0", _extent(writer, inner.extent)) if outer else ("begin", "end")
        writer.line(f"to = {writer.index_text(substitute(move.target, begin))}")
        writer.line(f"of = {writer.index_text(substitute(move.address, begin))}")
        filled = last
        if move.value is not None:
            filled = _bounded(writer, move, substitute(as_size(move.value), begin), first, last)
        with writer.block(f"for {var} in range({first}, {filled}):"):
            writer.line(f"{y}[to + {var}] = {x}[of + {var}]")
        if move.value is not None:
            with writer.block(f"for {var} in range({filled}, {last}):"):
                writer.line(f"{y}[to + {var}] = {_fill(move, group)}")
    return writer.finish(name)


def _transposed(
    group: Group, layouts: Layouts, isa: Isa, move: Movement, across: Loop, name: str
) -> KernelSource:
    """Transpose blocks of the matrices whose rows the operand walks along ``across``, and whose
    columns the result walks along its innermost loop.
    """
    tile = TransposeTile(isa, group.outputs[0].dtype)
    down = move.loops[-1]
    outer = [loop for loop in move.loops[:-1] if loop is not across]
    blocks = [
        loop_over(f"block_{way}", (loop.extent + (BLOCK - 1)) // BLOCK)
        for way, loop in (("down", down), ("across", across))
    ]
    writer = Writer(group, layouts, loops={loop.var for loop in (*move.loops, *blocks)})
    x, y = writer.pointer(move.source), writer.pointer(group.outputs[0])
    with rows(writer, [*outer, *blocks]):
        for way, loop in (("down", down), ("across", across)):
            writer.line(f"{loop.var.name} = block_{way} * {BLOCK}")
            writer.line(f"{way} = {writer.size(loop.extent)} - {loop.var.name}")
            writer.line(f"{way} = {way} if {way} < {BLOCK} else {BLOCK}")
        writer.line(f"to = {writer.index_text(move.target)}")
        writer.line(f"of = {writer.index_text(move.address)}")
        x_row = writer.index_text(_stride(move.address, down.var))
        y_row = writer.index_text(_stride(move.target, across.var))
        writer.line(f"x_row = {x_row}")
        writer.line(f"y_row = {y_row}")
        filled = "down"
        if move.value is not None:
            filled = _bounded(writer, move, as_size(move.value), "0", "down")
        for line in _block(tile, x, y, filled).splitlines():
            writer.line(line)
        if move.value is not None:
            with (
                writer.block("for b in range(across):"),
                writer.block(f"for a in range({filled}, down):"),
            ):
                writer.line(f"{y}[to + b * y_row + a] = {_fill(move, group)}")
    return replace(writer.finish(name), externs=(tile.extern,), objects=(tile,))


def _block(tile: TransposeTile, x: str, y: str, filled: str) -> str:
    """Transpose ``filled`` rows of ``across`` elements: tiles, then what is left of both sides."""
    width = tile.width
    return f"""\
down_whole = {filled} - mod({filled}, {width})
across_whole = across - mod(across, {width})
for b in range(0, across_whole, {width}):
    for a in range(0, down_whole, {width}):
        {tile.name}(at({x}, of + a * x_row + b), x_row, at({y}, to + b * y_row + a), y_row)
for a in range(down_whole, {filled}):
    for b in range(across_whole):
        {y}[to + b * y_row + a] = {x}[of + a * x_row + b]
for a in range({filled}):
    for b in range(across_whole, across):
        {y}[to + b * y_row + a] = {x}[of + a * x_row + b]"""


def _bounded(writer: Writer, move: Movement, value: Size, first: str, last: str) -> str:
    """The name of where a guard ends the loop from ``first`` to ``last``, at whose begin it holds
    for ``value``.
    """
    writer.line(f"filled = {writer.size(move.high)} - ({writer.index_text(value)})")
    writer.line(f"filled = filled if filled > {first} else {first}")
    writer.line(f"filled = filled if filled < {last} else {last}")
    return "filled"


def _extent(writer: Writer, extent: Size) -> str:
    """The length of a run; that of a panel as a number, so that it is copied without a loop."""
    return str(PANEL) if extent == PANEL else writer.size(extent)


def _fill(move: Movement, group: Group) -> str:
    dtype = group.outputs[0].dtype
    return f"u8({int(bool(move.fill))})" if dtype == "bool" else literal(move.fill, dtype)
