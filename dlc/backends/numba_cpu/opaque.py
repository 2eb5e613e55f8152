"""Kernels of ops that fit no common form: pooling's indices and gradients, and scattered sums.

Each thread owns what it writes: the gradients of pooling go plane by plane, scattered sums line by
line, in the order of the data, so that the bits do not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

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


def _max_pool2d_grad(writer: Writer, node: Node) -> None:
    x, g = node.inputs
    with _planes(writer, node) as (n, c):
        _clear(writer, node, n, c)
        with _windows(writer, g) as (oh, ow):
            _winner(writer, node, x, n, c)
            share = writer.value(g, (n, c, oh, ow))
            best = (n, c, as_size(_any(writer, "best_h")), as_size(_any(writer, "best_w")))
            _add(writer, node, best, share)


def _avg_pool2d_grad(writer: Writer, node: Node) -> None:
    g, attrs = node.inputs[0], node.attrs
    with _planes(writer, node) as (n, c):
        _clear(writer, node, n, c)
        with _windows(writer, g) as (oh, ow):
            for axis in range(2):
                before, after = attrs["padding"][axis] if attrs["count_include_pad"] else (0, 0)
                extent = writer.size(node.shape[2 + axis] + after)
                writer.line(f"low{axis} = start{axis} if start{axis} > {-before} else {-before}")
                writer.line(f"high{axis} = start{axis} + {attrs['kernel'][axis]}")
                writer.line(f"high{axis} = high{axis} if high{axis} < {extent} else {extent}")
            count = cast("(high0 - low0) * (high1 - low1)", "int64", node.dtype)
            writer.line(f"share = {writer.value(g, (n, c, oh, ow))} / {count}")
            with _taps(writer, node, node.shape) as (h, w):
                _add(writer, node, (n, c, h, w), "share")


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


def _clear(writer: Writer, node: Node, n: Size, c: Size) -> None:
    h, w = (
        _loop(writer, name, size) for name, size in zip(("zh", "zw"), node.shape[2:], strict=True)
    )
    with (
        writer.block(f"for zh in range({writer.size(h.extent)}):"),
        writer.block(f"for zw in range({writer.size(w.extent)}):"),
    ):
        writer.store(node, (n, c, as_size(h.var), as_size(w.var)), "0.0")


def _add(writer: Writer, node: Node, index: Sequence[Size], text: str) -> None:
    """Add to an element of the output."""
    address = writer.index_text(writer.element(node, index))
    pointer = writer.pointer(node)
    writer.line(f"{pointer}[{address}] = {pointer}[{address}] + {text}")


# Scattered sums.


def _scatter_add(writer: Writer, node: Node) -> None:
    """Lines along the axis are independent; each is copied, then added to in the order of the
    source.
    """
    x, which, source = node.inputs
    axis = node.attrs["axis"]
    others = [_loop(writer, f"i{d}", size) for d, size in enumerate(x.shape) if d != axis]
    index = [as_size(loop_over(f"i{d}", size).var) for d, size in enumerate(x.shape)]
    with rows(writer, others):
        j = _loop(writer, "j", x.shape[axis])
        with writer.block(f"for j in range({writer.size(x.shape[axis])}):"):
            here = tuple(as_size(j.var) if d == axis else i for d, i in enumerate(index))
            writer.store(node, here, writer.value(x, here))
        inside = [
            f"i{d} < {writer.size(which.shape[d])}"
            for d in range(x.ndim)
            if d != axis and which.shape[d] != x.shape[d]
        ]
        with writer.block(f"if {' and '.join(inside) or 'True'}:"):
            k = _loop(writer, "k", which.shape[axis])
            with writer.block(f"for k in range({writer.size(which.shape[axis])}):"):
                there = tuple(as_size(k.var) if d == axis else i for d, i in enumerate(index))
                writer.line(f"to = i64({writer.value(which, there)})")
                extent = writer.size(x.shape[axis])
                with writer.block(f"if to < 0 or to >= {extent}:"):
                    writer.report(node, which, there, "to")
                with writer.block("else:"):
                    to = as_size(_any(writer, "to"))
                    target = tuple(to if d == axis else i for d, i in enumerate(index))
                    _add(writer, node, target, writer.value(source, there))


OPAQUE: dict[str, Callable[[Writer, Node], None]] = {
    "max_pool2d_index": _max_pool2d_index,
    "max_pool2d_grad": _max_pool2d_grad,
    "avg_pool2d_grad": _avg_pool2d_grad,
    "scatter_add": _scatter_add,
}
