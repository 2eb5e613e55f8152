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
from dlc.backends.numba_cpu.planes import Planes, PlanesTile, vectors_for
from dlc.backends.numba_cpu.strided import (
    MANY_ROWS,
    Strided,
    across_sizes,
    strided_vectors,
    weight_grad_sizes,
)
from dlc.backends.numba_cpu.vectors import Epilogue, Operand
from dlc.backends.numba_cpu.winograd import Winograd, winograd_sizes
from dlc.backends.numba_cpu.writer import (
    SCRATCH,
    KernelSource,
    Value,
    is_number,
    literal,
    scalar_text,
)
from dlc.ir.node import Node
from dlc.ir.op import Kind
from dlc.ir.plan import Layout
from dlc.ir.schedule import Group
from dlc.ir.sizes import Size, as_size, bounds, product
from dlc.ir.types import ITEMSIZE
from dlc.ops.across import SCALARS_AT_STORE
from dlc.ops.phases import Phase, phases_with

Layouts = Mapping[Node, Layout]
Operands = Mapping[str, Node]


def contract_kernels(group: Group, layouts: Layouts, isa: Isa) -> list[KernelSource]:
    """The kernels of a group anchored by a contraction, which run one after the other."""
    if group.anchor.op.name == "conv2d_phases":
        return _phases(group, layouts, isa)
    epilogue, operands = epilogue_of(group)
    make = _KERNELS[group.anchor.op.name]
    kernel, sizes, start = make(group, layouts, isa, epilogue, operands)
    x, w = group.anchor.inputs
    results = zip(epilogue.results, map(Value, group.outputs), strict=True)
    named = {"x": Value(x, start), "w": Value(w), **dict(results)}
    named |= {name: Value(node) for name, node in operands.items()}
    return [_source(group, kernel, sizes, named)]


def _source(
    group: Group,
    kernel: Kernel,
    sizes: Sizes,
    places: Mapping[str, Value],
    flops: Size | None = None,
) -> KernelSource:
    """A kernel with its arguments: sizes, and where its operands lie, by name."""
    named: dict[str, Any] = {"scratch": SCRATCH, **sizes, **places}
    args = tuple(named[param.name] for param in kernel.params)
    externs = tuple(tile.extern for tile in kernel.tiles)
    # Named by its form: a convolution and a matrix product share a kernel.
    stem = kernel.name.rsplit("_", 1)[0]
    scratch = sizes.get("share", 0) * ITEMSIZE[group.anchor.dtype]
    parts = (kernel.params, args, externs, kernel.tiles)
    return KernelSource(kernel.name, kernel.source, *parts, scratch, stem, flops)


def epilogue_of(group: Group) -> tuple[Epilogue, Operands]:
    """The expressions stored in place of the accumulator, and the values in memory that they read,
    by name.
    """
    texts: dict[Node, str] = {group.anchor: "acc"}
    operands: dict[Operand, Node] = {}
    for node in group.inside:
        if node is group.anchor:
            continue
        if node.op.kind is Kind.WINDOW:  # a maximum behind the expression
            texts[node] = texts[node.inputs[0]]
            continue
        for source in node.inputs:
            if source not in texts:
                texts[source] = _operand_text(source, group, operands)
        texts[node] = scalar_text(node, [texts[source] for source in node.inputs])
    first, *more = (texts[node] for node in group.outputs)
    epilogue = Epilogue(first, tuple(operands), tuple(more))
    return epilogue, {o.name: node for o, node in operands.items()}


def _operand_text(node: Node, group: Group, operands: dict[Operand, Node]) -> str:
    if is_number(node):
        return literal(node.attrs["value"].reshape(())[()].item(), node.dtype)
    kind = "full" if node.shape == group.outputs[0].shape else "column"
    if node.tensor_type.count == 1 and group.anchor.op.name in SCALARS_AT_STORE:
        kind = "scalar"
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


def _phases(group: Group, layouts: Layouts, isa: Isa) -> list[KernelSource]:
    """For each phase of the stride a convolution of the gradient, whose results lie a stride apart;
    where a phase has no taps, its sum has no terms.
    """
    node, out, attrs = group.anchor, group.outputs[0], group.anchor.attrs
    epilogue, operands = epilogue_of(group)
    weights, made = iter(node.inputs[1:]), []
    for rows, columns in phases_with(attrs, attrs["kernel"]):
        some = bool(rows.taps and columns.taps)
        w = next(weights) if some else node.inputs[1]
        phase = _depthwise_phase if some and attrs["depthwise"] else _dense_phase
        kernel, sizes = phase(group, layouts, isa, epilogue, operands, rows, columns)
        _, row, pixel = _image_strides(node.inputs[0], layouts)
        start = as_size(row) * rows.offset + as_size(pixel) * columns.offset
        named = {"x": Value(node.inputs[0], start), "w": Value(w)}
        for name, place in (("y", out), *operands.items()):
            _, row, pixel = _image_strides(place, layouts) if place.ndim == 4 else (0, 0, 0)
            full = place.shape == out.shape
            first = as_size(row) * rows.start + as_size(pixel) * columns.start if full else 0
            named[name] = Value(place, first)
        count = rows.count(node.shape[2]) * as_size(columns.count(node.shape[3]))
        products = len(rows.taps) * len(columns.taps) * (node.inputs[0].shape[1] // attrs["groups"])
        flops = 2 * node.shape[0] * count * products * attrs["channels"]
        made.append(_source(group, kernel, sizes, named, flops))
    return made


def _dense_phase(
    group: Group,
    layouts: Layouts,
    isa: Isa,
    epilogue: Epilogue,
    operands: Operands,
    rows: Phase,
    columns: Phase,
) -> tuple[Kernel, Sizes]:
    node, out, attrs = group.anchor, group.outputs[0], group.anchor.attrs
    g, groups = node.inputs[0], 1 if attrs["depthwise"] else attrs["groups"]
    channels = attrs["channels"] // groups
    sizes = conv2d_sizes(
        epilogue,
        shape=(node.shape[0], rows.count(node.shape[2]), columns.count(node.shape[3])),
        columns=channels,
        channels=g.shape[1] // groups,
        kernel=(len(rows.taps), len(columns.taps)),
        x_strides=(*_image_strides(g, layouts), 1),
        y_strides=_apart(_image_strides(out, layouts), rows, columns),
        dilation=(rows.step, columns.step),
        groups=groups,
        fulls=_fulls_apart(epilogue, operands, layouts, rows, columns),
    )
    vectors = tile_vectors(isa, node.dtype, channels)
    return Contraction(isa, node.dtype, epilogue, vectors).kernel, sizes


def _depthwise_phase(
    group: Group,
    layouts: Layouts,
    isa: Isa,
    epilogue: Epilogue,
    operands: Operands,
    rows: Phase,
    columns: Phase,
) -> tuple[Kernel, Sizes]:
    node, out = group.anchor, group.outputs[0]
    sizes = depthwise_sizes(
        epilogue,
        shape=(node.shape[0], rows.count(node.shape[2]), columns.count(node.shape[3])),
        columns=node.shape[1],
        lines=len(rows.taps),
        x_strides=_image_strides(node.inputs[0], layouts),
        y_strides=_apart(_image_strides(out, layouts), rows, columns),
        dilation=rows.step,
        fulls=_fulls_apart(epilogue, operands, layouts, rows, columns),
    )
    tile = DepthwiseTile(isa, node.dtype, len(columns.taps), 1, columns.step, epilogue)
    return Depthwise(tile).kernel, sizes


def _apart(
    strides: tuple[Size, Size, Size], rows: Phase, columns: Phase
) -> tuple[Size, Size, Size]:
    """Strides of the image, rows and pixels of one phase."""
    image, row, pixel = strides
    return image, row * rows.stride, pixel * columns.stride


def _fulls_apart(
    epilogue: Epilogue, operands: Operands, layouts: Layouts, rows: Phase, columns: Phase
) -> dict[str, tuple[Size, Size, Size]]:
    fulls = _fulls(epilogue, operands, layouts)
    return {name: _apart(strides, rows, columns) for name, strides in fulls.items()}


def _planes(
    group: Group, layouts: Layouts, isa: Isa, epilogue: Epilogue, operands: Operands
) -> tuple[Kernel, Sizes, Size]:
    node, out = group.anchor, group.outputs[0]
    x, w = node.inputs
    parts, inputs, lines, taps, channels = w.shape
    image, plane, line, _ = layouts[x].strides(x.shape)
    y = layouts[out].strides(out.shape)
    sizes: Sizes = {"images": node.shape[0], "height": node.shape[2], "width": node.shape[3]}
    w_plane = lines * taps * channels
    sizes |= {"inputs": inputs, "lines": lines, "w_group": inputs * w_plane, "w_plane": w_plane}
    sizes |= {"x_image": image, "x_line": line, "x_plane": plane}
    sizes |= {"y_image": y[0], "y_channel": y[1], "y_line": y[2], "y_pixel": y[3]}
    vectors = vectors_for(isa, node.dtype, channels, node.shape[3])
    pooled = out.op.kind is Kind.WINDOW
    woven = isa.weaves and y[1] == 1 and y[3] == channels
    tile = PlanesTile(isa, node.dtype, channels, taps, vectors, pooled, woven, epilogue)
    (top, _), (left, _) = node.attrs["padding"]
    sizes |= {"top": top, "rows": x.shape[2]}
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
    (a, _), parts = node.inputs, node.attrs["parts"]
    rows, columns, whole = a.shape[-2], node.shape[-1], a.shape[-1]
    depth = whole // parts if parts > 1 else whole
    batch = a.shape[0] if a.ndim == 3 else parts
    inner = (1, depth) if node.attrs["turned"] else (columns, 1)
    sizes = matmul_sizes(
        epilogue,
        rows=rows,
        columns=columns,
        depth=depth,
        batch=batch,
        x_strides=(depth if parts > 1 else as_size(rows) * depth, whole),
        w_strides=(as_size(depth) * columns, *inner),
    )
    sizes["share"] = scratch_elements(depth)
    vectors = tile_vectors(isa, node.dtype, columns)
    return Contraction(isa, node.dtype, epilogue, vectors, packs=True).kernel, sizes, 0


def _matmul_across(
    group: Group, layouts: Layouts, isa: Isa, epilogue: Epilogue, operands: Operands
) -> tuple[Kernel, Sizes, Size]:
    node = group.anchor
    a, b = node.inputs
    *batch, depth, rows = a.shape
    columns = b.shape[-1]
    sizes = across_sizes(epilogue, rows=rows, columns=columns, depth=depth, batch=product(batch))
    vectors = strided_vectors(isa, node.dtype, columns)
    # A weight of a linear layer stays with the threads that compute the outputs of its rows.
    by_rows = bounds(rows)[0] >= MANY_ROWS
    strided = Strided(isa, node.dtype, epilogue, vectors, by_rows=by_rows)
    return strided.kernel, sizes | {"share": strided.scratch_elements}, 0


def _weight_grad(
    group: Group, layouts: Layouts, isa: Isa, epilogue: Epilogue, operands: Operands
) -> tuple[Kernel, Sizes, Size]:
    node = group.anchor
    (x, g), attrs = node.inputs, node.attrs
    groups, outputs, inputs = attrs["groups"], g.shape[1], x.shape[1]
    alone = groups == inputs == outputs and groups > 1
    groups = 1 if alone else groups
    columns = outputs // groups
    image, channel, row, pixel = layouts[x].strides(x.shape)
    sizes = weight_grad_sizes(
        epilogue,
        shape=(g.shape[0], *g.shape[2:]),
        columns=columns,
        channels=1 if alone else inputs // groups,
        kernel=attrs["kernel"],
        x_strides=(image, row, pixel, channel),
        w_strides=_image_strides(g, layouts),
        stride=attrs["stride"],
        dilation=attrs["dilation"],
        groups=groups,
        parts=attrs["parts"],
    )
    vectors = strided_vectors(isa, node.dtype, columns)
    strided = Strided(isa, node.dtype, epilogue, vectors, lanewise=alone)
    corner = _corner(x, layouts, attrs["padding"])
    return strided.kernel, sizes | {"share": strided.scratch_elements}, corner


_KERNELS = {
    "matmul_across": _matmul_across,
    "conv2d_weight_direct": _weight_grad,
    "matmul_direct": _matmul_direct,
    "conv2d_direct": _direct,
    "conv2d_planes": _planes,
    "conv2d_depthwise": _depthwise,
    "conv2d_winograd": _winograd,
    "matmul_packed": _matmul,
}
