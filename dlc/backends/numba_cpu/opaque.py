"""Kernels of ops that fit no common form: pooling's indices, and scattered sums.

Each thread owns what it writes: indices go plane by plane, scattered sums line by line, in the
order of the data, so that the bits do not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from dlc.backends.numba_cpu.loops import rows
from dlc.backends.numba_cpu.writer import KernelSource, Loop, Var, Writer, cast, loop_over
from dlc.ir.node import Node
from dlc.ir.plan import Layout
from dlc.ir.schedule import Group
from dlc.ir.sizes import Size, as_size


def opaque_kernel(group: Group, layouts: Mapping[Node, Layout], name: str) -> KernelSource:
    """The kernel of a group anchored by an op of `OPAQUE`."""
    writer = Writer(group, layouts)
    OPAQUE[group.anchor.op.name](writer, group.anchor)
    return writer.finish(name)


def _loop(writer: Writer, name: str, extent: Size) -> Loop:
    made = loop_over(name, extent)
    writer.loops.add(made.var)
    return made


def _any(writer: Writer, name: str) -> Var:
    """A variable that the source sets; nobody asks for its range, as all operands are in memory."""
    var = Var(name, 0, 1)
    writer.loops.add(var)
    return var


# Pooling.


def _max_pool2d_index(writer: Writer, node: Node) -> None:
    x = node.inputs[0]
    with _planes(writer, node) as (n, c), _windows(writer, node) as (oh, ow):
        _winner(writer, node, x, n, c)
        writer.store(node, (n, c, oh, ow), f"i64(best_h * {writer.size(x.shape[3])} + best_w)")


@contextmanager
def _planes(writer: Writer, node: Node) -> Iterator[tuple[Size, Size]]:
    """This thread's share of the planes (image, channel)."""
    n, c = (_loop(writer, name, size) for name, size in zip("nc", node.shape[:2], strict=True))
    with rows(writer, [n, c]):
        yield as_size(n.var), as_size(c.var)


@contextmanager
def _windows(writer: Writer, y: Node) -> Iterator[tuple[Size, Size]]:
    """Loops over the windows of a plane; sets ``start0`` and ``start1``, where a window begins."""
    attrs = writer.group.anchor.attrs

    oh, ow = (
        _loop(writer, name, size) for name, size in zip(("oh", "ow"), y.shape[2:], strict=True)
    )
    with (
        writer.block(f"for oh in range({writer.size(oh.extent)}):"),
        writer.block(f"for ow in range({writer.size(ow.extent)}):"),
    ):
        for axis, name in enumerate(("oh", "ow")):
            writer.line(
                f"start{axis} = {name} * {attrs['stride'][axis]} - {attrs['padding'][axis][0]}"
            )
        yield as_size(oh.var), as_size(ow.var)


@contextmanager
def _taps(writer: Writer, node: Node, shape: Sequence[Size]) -> Iterator[tuple[Size, Size]]:
    """Loops over the elements of a window that lie inside the image."""
    attrs = node.attrs
    dilation = attrs.get("dilation", (1, 1))

    h, w = (_any(writer, name) for name in "hw")
    with writer.block(f"for tap0 in range({attrs['kernel'][0]}):"):
        writer.line(f"h = start0 + tap0 * {dilation[0]}")
        with (
            writer.block(f"if h >= 0 and h < {writer.size(shape[2])}:"),
            writer.block(f"for tap1 in range({attrs['kernel'][1]}):"),
        ):
            writer.line(f"w = start1 + tap1 * {dilation[1]}")
            with writer.block(f"if w >= 0 and w < {writer.size(shape[3])}:"):
                yield as_size(h), as_size(w)


def _winner(writer: Writer, node: Node, x: Node, n: Size, c: Size) -> None:
    """Set ``best_h`` and ``best_w``: the last NaN of the window, else the first of the greatest."""
    writer.line(f"best = {cast('-1e999', x.dtype, x.dtype)}")
    writer.line("best_h = -1")
    writer.line("best_w = -1")
    with _taps(writer, node, x.shape) as (h, w):
        value = writer.value(x, (n, c, h, w))
        with writer.block(f"if best_h < 0 or {value} > best or {value} != {value}:"):
            writer.line(f"best = {value}")
            writer.line("best_h = h")
            writer.line("best_w = w")


def _add(writer: Writer, node: Node, index: Sequence[Size], text: str) -> None:
    """Add to an element of the output."""
    address = writer.index_text(writer.element(node, index))
    pointer = writer.pointer(node)
    writer.line(f"{pointer}[{address}] = {pointer}[{address}] + {text}")


# Scattered sums.


def _scatter_add(writer: Writer, node: Node) -> None:
    """Lines along the axis are independent; where there is one only, each thread owns a part of it
    and looks at every index. What is there is copied, then added to in the order of the source.
    """
    x, axis = node.inputs[0], node.attrs["axis"]
    loops = [_loop(writer, f"i{d}", size) for d, size in enumerate(x.shape)]
    before, extent = loops[:axis], writer.size(x.shape[axis])
    if before:
        with rows(writer, before):
            writer.line("low = 0")
            writer.line(f"high = {extent}")
            _scatter_line(writer, node, loops)
        return
    writer.line(f"low = div({extent} * thread, threads)")
    writer.line(f"high = div({extent} * (thread + 1), threads)")
    _scatter_line(writer, node, loops)


def _scatter_line(writer: Writer, node: Node, loops: Sequence[Loop]) -> None:
    """The part from ``low`` to ``high`` of one line, with all that lies behind the axis."""
    x, which, source = node.inputs
    axis = node.attrs["axis"]
    index = tuple(as_size(loop.var) for loop in loops)
    with (
        writer.block(f"for i{axis} in range(low, high):"),
        _behind(writer, x, axis),
    ):
        writer.store(node, index, writer.value(x, index))
    inside = [
        f"i{d} < {writer.size(which.shape[d])}" for d in range(axis) if which.shape[d] != x.shape[d]
    ]
    k = _loop(writer, "k", which.shape[axis])
    there = (*index[:axis], as_size(k.var), *index[axis + 1 :])
    to = (*index[:axis], as_size(_any(writer, "to")), *index[axis + 1 :])
    with (
        writer.block(f"if {' and '.join(inside) or 'True'}:"),
        writer.block(f"for k in range({writer.size(which.shape[axis])}):"),
    ):
        if _same_behind(which, axis):
            _destination(writer, node, there)
            with writer.block("if to >= low and to < high:"), _behind(writer, which, axis):
                _add(writer, node, to, writer.value(source, there))
        else:
            with _behind(writer, which, axis):
                _destination(writer, node, there)
                with writer.block("if to >= low and to < high:"):
                    _add(writer, node, to, writer.value(source, there))


def _destination(writer: Writer, node: Node, there: Sequence[Size]) -> None:
    """Set ``to``, and report it if it is outside."""
    x, which, _ = node.inputs
    writer.line(f"to = i64({writer.value(which, tuple(there))})")
    outside = f"to < 0 or to >= {writer.size(x.shape[node.attrs['axis']])}"
    with writer.block(f"if {outside}:"):
        writer.report(node, which, there, "to")


def _same_behind(which: Node, axis: int) -> bool:
    """Whether an index says the same for all that lies behind the axis."""
    shape = which.shape
    if which.op.name == "expand":
        source = which.inputs[0].shape
        shape = (*(1 for _ in range(which.ndim - len(source))), *source)
    return all(size == 1 for size in shape[axis + 1 :])


@contextmanager
def _behind(writer: Writer, node: Node, axis: int) -> Iterator[None]:
    """Loops over the dimensions behind the axis."""
    with ExitStack() as stack:
        for d in range(axis + 1, node.ndim):
            size = writer.size(node.shape[d])
            stack.enter_context(writer.block(f"for i{d} in range({size}):"))
        yield


OPAQUE: dict[str, Callable[[Writer, Node], None]] = {
    "max_pool2d_index": _max_pool2d_index,
    "scatter_add": _scatter_add,
}
