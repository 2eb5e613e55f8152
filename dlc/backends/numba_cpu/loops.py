"""Loops over pointwise and movement groups: each output element is one expression.

Dimensions that every operand walks in the same way are merged, so that work on whole tensors is one
long loop, which LLVM turns into vectors. Threads take equal parts of the rows, or of a single loop
in blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from dlc.backends.numba_cpu.writer import KernelSource, Loop, Var, Writer, loop_over
from dlc.ir.node import Node
from dlc.ir.plan import Layout
from dlc.ir.schedule import Group
from dlc.ir.sizes import Dim, Poly, Size, as_size, dims, product, substitute

#: A single loop is shared between threads in blocks of this many elements.
BLOCK = 64


def pointwise_kernel(group: Group, layouts: Mapping[Node, Layout], name: str) -> KernelSource:
    """The kernel of a group whose outputs have one shape, each element computed by itself."""
    out = group.outputs[0]

    def body(writer: Writer, index: Sequence[Size]) -> None:
        values = [writer.value(node, index) for node in group.outputs]
        for node, value in zip(group.outputs, values, strict=True):  # behind all that reads
            writer.store(node, index, value)

    loops = loop_nest(out.shape, layouts[out].order)
    loops = collapse(group, layouts, loops, out.ndim, body)
    writer = Writer(group, layouts, loops={loop.var for loop in loops})
    index = index_of(loops, out.ndim)
    with rows(writer, loops[:-1], loops[-1] if len(loops) == 1 else None), inner(writer, loops):
        body(writer, index)
    return writer.finish(name)


def loop_nest(shape: Sequence[Size], order: Sequence[int]) -> list[Loop]:
    """Loops over the dimensions of more than one element, slowest first in memory."""
    return [loop_over(f"i{d}", shape[d]) for d in order if shape[d] != 1]


def index_of(loops: Sequence[Loop], ndim: int) -> tuple[Size, ...]:
    """The logical index that loop variables named by dimension stand for."""
    by_dim = {int(loop.var.name[1:]): loop.var for loop in loops}
    return tuple(as_size(by_dim[d]) if d in by_dim else 0 for d in range(ndim))


def collapse(
    group: Group,
    layouts: Mapping[Node, Layout],
    loops: list[Loop],
    ndim: int,
    body: Callable[[Writer, Sequence[Size]], None],
    apart: Sequence[Var] = (),
) -> list[Loop]:
    """Merge neighbouring loops that all addresses walk as one; loops in ``apart`` merge only with
    their like.
    """
    probe = Writer(group, layouts, loops={loop.var for loop in loops})
    body(probe, index_of(loops, ndim))
    if not probe.affine:
        return loops
    together = {var.name for var in apart}
    merged = loops[-1:]
    for outer in reversed(loops[:-1]):
        innermost = merged[0]
        alike = (outer.var.name in together) == (innermost.var.name in together)
        walks = alike and all(
            coefficient(a, outer.var) == as_size(coefficient(a, innermost.var)) * innermost.extent
            for a in probe.addresses
        )
        if walks:
            extent = as_size(outer.extent) * innermost.extent
            merged[0] = loop_over(innermost.var.name, extent)
        else:
            merged.insert(0, outer)
        if walks:
            probe.addresses = [_renamed(a, innermost.var, merged[0].var) for a in probe.addresses]
    again = Writer(group, layouts, loops={loop.var for loop in merged})
    body(again, index_of(merged, ndim))
    return (
        merged if again.affine else loops
    )  # a guard that always held may not hold for the longer loop


def _renamed(address: Size, old: Var, new: Var) -> Size:
    return substitute(address, {old: as_size(new)})


def coefficient(address: Size, var: Var) -> Size | None:
    """What an address grows by when a loop variable grows by one; None if not constant."""
    total: Size = 0
    for monomial, factor in address.terms.items() if isinstance(address, Poly) else ():
        times = sum(atom == var for atom in monomial)
        if times > 1 or any(not isinstance(a, Dim) and var in dims(a.numerator) for a in monomial):
            return None
        if times:
            rest = tuple(atom for atom in monomial if atom != var)
            total = total + (Poly({rest: factor}) if rest else factor)
    return total


@contextmanager
def rows(writer: Writer, outer: Sequence[Loop], single: Loop | None = None) -> Iterator[None]:
    """This thread's part of the rounds of ``outer`` (or of ``single``), with the loop variables
    set.

    For a single loop the variables ``begin`` and ``end`` bound the thread's part.
    """
    if single is not None:
        total = writer.size(single.extent)
        writer.line(f"blocks = div({total} + {BLOCK - 1}, {BLOCK})")
        writer.line(f"begin = div(blocks * thread, threads) * {BLOCK}")
        writer.line(f"end = div(blocks * (thread + 1), threads) * {BLOCK}")
        writer.line(f"end = end if end < {total} else {total}")
        yield
        return
    if not outer:
        with writer.block("if thread == 0:"):
            yield
        return
    total = writer.size(product(loop.extent for loop in outer))
    writer.line(f"row_begin = div({total} * thread, threads)")
    writer.line(f"row_end = div({total} * (thread + 1), threads)")
    names = [(loop.var.name, writer.size(loop.extent)) for loop in outer]
    with writer.block("if row_begin < row_end:"):
        rest = "row_begin"
        for number, (name, extent) in enumerate(reversed(names[1:])):
            writer.line(f"{name} = mod({rest}, {extent})")
            writer.line(f"rest{number} = div({rest}, {extent})")
            rest = f"rest{number}"
        writer.line(f"{names[0][0]} = {rest}")
        with writer.block("for row in range(row_begin, row_end):"):
            yield
            _advance(writer, names)


def _advance(writer: Writer, names: Sequence[tuple[str, str]]) -> None:
    """Count the variables of nested loops one round on, without divisions."""
    name, extent = names[-1]
    writer.line(f"{name} += 1")
    if len(names) > 1:
        with writer.block(f"if {name} == {extent}:"):
            writer.line(f"{name} = i64(0)")
            _advance(writer, names[:-1])


@contextmanager
def inner(writer: Writer, loops: Sequence[Loop]) -> Iterator[None]:
    """The innermost loop: over a row, or over this thread's part of a single loop."""
    if not loops:
        yield
    elif len(loops) == 1:
        with writer.block(f"for {loops[0].var.name} in range(begin, end):"):
            yield
    else:
        with writer.block(f"for {loops[-1].var.name} in range({writer.size(loops[-1].extent)}):"):
            yield
