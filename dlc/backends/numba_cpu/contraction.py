"""Contractions of a group: which kernel of the generators, its epilogue, and what its parameters
are here.

The pointwise nodes behind the contraction become one expression over the accumulator, evaluated as
the tile is stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dlc.backends.native.isa import Isa
from dlc.backends.numba_cpu.contract import (
    Contraction,
    conv2d_sizes,
    matmul_sizes,
    scratch_elements,
    tile_vectors,
)
from dlc.backends.numba_cpu.depthwise import Depthwise, DepthwiseTile, depthwise_sizes
from dlc.backends.numba_cpu.kernel import Kernel, Sizes
from dlc.backends.numba_cpu.planes import Planes, PlanesTile
from dlc.backends.numba_cpu.vectors import Epilogue, Operand
from dlc.backends.numba_cpu.winograd import Winograd, winograd_sizes
from dlc.backends.numba_cpu.writer import SCRATCH, KernelSource, Value, literal, scalar_text
from dlc.ir.node import Node
from dlc.ir.op import Kind
from dlc.ir.plan import Layout
from dlc.ir.schedule import Group
from dlc.ir.sizes import Size, as_size
from dlc.ir.types import ITEMSIZE

Layouts = Mapping[Node, Layout]
Operands = Mapping[str, Node]


def contract_kernel(group: Group, layouts: Layouts, isa: Isa) -> KernelSource:
    """The kernel of a group anchored by a contraction."""
    epilogue, operands = epilogue_of(group)
    make = _KERNELS[group.anchor.op.name]
    kernel, sizes, start = make(group, layouts, isa, epilogue, operands)
    x, w = group.anchor.inputs
    named: dict[str, Any] = {
        "x": Value(x, start),
        "w": Value(w),
        "y": Value(group.outputs[0]),
        "scratch": SCRATCH,
        **sizes,
    }
    named |= {name: Value(node) for name, node in operands.items()}
    args = tuple(named[param.name] for param in kernel.params)
    externs = tuple(tile.extern for tile in kernel.tiles)
    # Named by its form: a convolution and a matrix product share a kernel.
    stem = kernel.name.rsplit("_", 1)[0]
    scratch = sizes.get("share", 0) * ITEMSIZE[group.anchor.dtype]
    return KernelSource(
        kernel.name, kernel.source, kernel.params, args, externs, kernel.tiles, scratch, stem
    )


def epilogue_of(group: Group) -> tuple[Epilogue, Operands]:
    """The expression stored in place of the accumulator, and the values in memory that it reads, by
    name.
    """
    texts: dict[Node, str] = {group.anchor: "acc"}
    operands: dict[Operand, Node] = {}
    out = group.outputs[0]
    last = group.anchor
    for node in group.inside:
        if node is group.anchor or node.op.kind is Kind.WINDOW:  # a maximum behind the expression
            continue
        for source in node.inputs:
            if source not in texts:
                texts[source] = _operand_text(source, out, operands)
        texts[node] = scalar_text(node, [texts[source] for source in node.inputs])
        last = node
    return Epilogue(texts[last], tuple(operands)), {o.name: node for o, node in operands.items()}


def _operand_text(node: Node, out: Node, operands: dict[Operand, Node]) -> str:
    if node.op.name == "constant" and node.tensor_type.count == 1:
        return literal(node.attrs["value"].reshape(())[()].item(), node.dtype)
    kind = "full" if node.shape == out.shape else "column"
    operand = Operand(f"{kind}{len(operands)}", kind)
    operands[operand] = node
    return operand.name


def _image_strides(node: Node, layouts: Layouts) -> tuple[Size, Size, Size]:
    """Strides of image, row and pixel."""
    image, _, row, pixel = layouts[node].strides(node.shape)
    return image, row, pixel


def _fulls(
    epilogue: Epilogue, operands: Operands, layouts: Layouts
) -> dict[str, tuple[Size, Size, Size]]:
    return {each.name: _image_strides(operands[each.name], layouts) for each in epilogue.fulls}


def _corner(x: Node, layouts: Layouts, padding: Any) -> Size:
    """Where the padding begins, in elements from the first one inside the halo."""
    _, row, pixel = _image_strides(x, layouts)
    return as_size(row) * -padding[0][0] + as_size(pixel) * -padding[1][0]


def _direct(
    group: Group, layouts: Layouts, isa: Isa, epilogue: Epilogue, operands: Operands
) -> tuple[Kernel, Sizes, Size]:
    node, out = group.anchor, group.outputs[0]
    (x, w), attrs, shape = node.inputs, node.attrs, node.shape
    image, channel, row, pixel = layouts[x].strides(x.shape)
    columns = attrs["channels"] // attrs["groups"]
    sizes = conv2d_sizes(
        epilogue,
        shape=(shape[0], shape[2], shape[3]),
        columns=columns,
        channels=w.shape[2] if attrs["planes"] else w.shape[4],
        kernel=w.shape[3:5] if attrs["planes"] else w.shape[2:4],
        x_strides=(image, row, pixel, channel),
        y_strides=_image_strides(out, layouts),
        stride=attrs["stride"],
        dilation=attrs["dilation"],
        groups=attrs["groups"],
        fulls=_fulls(epilogue, operands, layouts),
    )
    contraction = Contraction(isa, node.dtype, epilogue, tile_vectors(isa, node.dtype, columns))
    return contraction.kernel, sizes, _corner(x, layouts, attrs["padding"])


def _depthwise(
    group: Group, layouts: Layouts, isa: Isa, epilogue: Epilogue, operands: Operands
) -> tuple[Kernel, Sizes, Size]:
    node, out = group.anchor, group.outputs[0]
    (x, w), attrs, shape = node.inputs, node.attrs, node.shape
    sizes = depthwise_sizes(
        epilogue,
        shape=(shape[0], shape[2], shape[3]),
        columns=shape[1],
        lines=w.shape[0],
        x_strides=_image_strides(x, layouts),
        y_strides=_image_strides(out, layouts),
        stride=attrs["stride"][0],
        dilation=attrs["dilation"][0],
        fulls=_fulls(epilogue, operands, layouts),
    )
    tile = DepthwiseTile(
        isa, node.dtype, w.shape[1], attrs["stride"][1], attrs["dilation"][1], epilogue
    )
    return Depthwise(tile).kernel, sizes, _corner(x, layouts, attrs["padding"])


def _planes(
    group: Group, layouts: Layouts, isa: Isa, epilogue: Epilogue, operands: Operands
) -> tuple[Kernel, Sizes, Size]:
    node, out = group.anchor, group.outputs[0]
    x, w = node.inputs
    parts, inputs, lines, taps, channels = w.shape
    image, plane, line, _ = layouts[x].strides(x.shape)
    y = layouts[out].strides(out.shape)
    sizes: Sizes = {"images": node.shape[0], "height": node.shape[2], "width": node.shape[3]}
    sizes |= {"inputs": inputs, "lines": lines, "w_group": inputs * lines * taps * channels}
    sizes |= {"x_image": image, "x_line": line, "x_plane": plane}
    sizes |= {"y_image": y[0], "y_channel": y[1], "y_line": y[2], "y_pixel": y[3]}
    tile = PlanesTile(isa, node.dtype, channels, taps, out.op.kind is Kind.WINDOW, epilogue)
    (top, _), (left, _) = node.attrs["padding"]
    return Planes(tile, parts).kernel, sizes, as_size(line) * -top - left


def _winograd(
    group: Group, layouts: Layouts, isa: Isa, epilogue: Epilogue, operands: Operands
) -> tuple[Kernel, Sizes, Size]:
    node, out = group.anchor, group.outputs[0]
    (x, w), attrs, shape = node.inputs, node.attrs, node.shape
    winograd = Winograd(isa, node.dtype, attrs["m"], epilogue)
    sizes = winograd_sizes(
        winograd,
        shape=(shape[0], shape[2], shape[3]),
        columns=attrs["channels"],
        depth=w.shape[2],
        x_strides=_image_strides(x, layouts),
        y_strides=_image_strides(out, layouts),
        fulls=_fulls(epilogue, operands, layouts),
    )
    return winograd.kernel, sizes, _corner(x, layouts, attrs["padding"])


def _matmul(
    group: Group, layouts: Layouts, isa: Isa, epilogue: Epilogue, operands: Operands
) -> tuple[Kernel, Sizes, Size]:
    node = group.anchor
    a, _ = node.inputs
    columns = node.attrs["columns"]
    batch = a.shape[0] if a.ndim == 3 else 1
    sizes = matmul_sizes(
        epilogue, rows=a.shape[-2], columns=columns, depth=a.shape[-1], batch=batch
    )
    vectors = tile_vectors(isa, node.dtype, columns)
    return Contraction(isa, node.dtype, epilogue, vectors).kernel, sizes, 0


def _matmul_direct(
    group: Group, layouts: Layouts, isa: Isa, epilogue: Epilogue, operands: Operands
) -> tuple[Kernel, Sizes, Size]:
    node = group.anchor
    a, b = node.inputs
    *_, depth, columns = b.shape
    batch = a.shape[0] if a.ndim == 3 else 1
    strides = (as_size(depth) * columns, columns, 1)
    sizes = matmul_sizes(
        epilogue,
        rows=a.shape[-2],
        columns=columns,
        depth=depth,
        batch=batch,
        w_strides=strides,
    )
    sizes["share"] = scratch_elements(depth)
    vectors = tile_vectors(isa, node.dtype, columns)
    return Contraction(isa, node.dtype, epilogue, vectors, packs=True).kernel, sizes, 0


_KERNELS = {
    "matmul_direct": _matmul_direct,
    "conv2d_direct": _direct,
    "conv2d_planes": _planes,
    "conv2d_depthwise": _depthwise,
    "conv2d_winograd": _winograd,
    "matmul_packed": _matmul,
}
