"""Contractions of a group: which kernel of the generator, its epilogue, and what its parameters are here.

The pointwise nodes behind the contraction become one expression over the accumulator, evaluated as the tile is stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dlc.backends.native.isa import Isa
from dlc.backends.numba_cpu.contract import (
    Contraction,
    Sizes,
    conv2d_sizes,
    is_narrow,
    matmul_sizes,
)
from dlc.backends.numba_cpu.depthwise import depthwise_kernel
from dlc.backends.numba_cpu.tiles import Epilogue, Operand
from dlc.backends.numba_cpu.writer import KernelSource, Value, literal, scalar_text
from dlc.ir.node import Node
from dlc.ir.plan import Layout
from dlc.ir.schedule import Group
from dlc.ir.sizes import Size, as_size

Layouts = Mapping[Node, Layout]


def contract_kernel(group: Group, layouts: Layouts, isa: Isa) -> KernelSource:
    """The kernel of a group anchored by a contraction."""
    if group.anchor.op.name == "conv2d_depthwise":
        return depthwise_kernel(group, layouts, isa)
    sizes, start = _SIZES[group.anchor.op.name](group, layouts)
    epilogue, operands = epilogue_of(group)
    for operand, node in operands.items():
        sizes |= _operand_sizes(operand, node, group, layouts, sizes)
    dtype, columns = group.anchor.dtype, sizes["columns"]
    narrow = isinstance(columns, int) and is_narrow(isa, dtype, columns)
    contraction = Contraction(isa, dtype, epilogue, narrow)
    kernel = contraction.kernel
    x, w = group.anchor.inputs
    named: dict[str, Any] = {"x": Value(x, start), "w": Value(w), "y": Value(group.outputs[0]), **sizes}
    named |= {operand.name: Value(node) for operand, node in operands.items()}
    args = tuple(named[param.name] for param in kernel.params)
    externs = tuple(tile.extern for tile in kernel.tiles)
    return KernelSource(kernel.name, kernel.source, kernel.params, args, externs, kernel.tiles)


def epilogue_of(group: Group) -> tuple[Epilogue, dict[Operand, Node]]:
    """The expression stored in place of the accumulator, and the values in memory that it reads."""
    texts: dict[Node, str] = {group.anchor: "acc"}
    operands: dict[Operand, Node] = {}
    out = group.outputs[0]
    for node in group.inside:
        if node is group.anchor:
            continue
        for source in node.inputs:
            if source not in texts:
                texts[source] = _operand_text(source, out, operands)
        texts[node] = scalar_text(node, [texts[source] for source in node.inputs])
    return Epilogue(texts[out], tuple(operands)), operands


def _operand_text(node: Node, out: Node, operands: dict[Operand, Node]) -> str:
    if node.op.name == "constant" and node.tensor_type.count == 1:
        return literal(node.attrs["value"].reshape(())[()].item(), node.dtype)
    kind = "full" if node.shape == out.shape else "column"
    operand = Operand(f"{kind}{len(operands)}", kind)
    operands[operand] = node
    return operand.name


def _operand_sizes(operand: Operand, node: Node, group: Group, layouts: Layouts, sizes: Sizes) -> Sizes:
    if operand.kind == "column":
        return {f"{operand.name}_group": sizes["columns"] if group.anchor.op.name == "conv2d_direct" else 0}
    if group.anchor.op.name == "conv2d_direct":
        image, _, row, pixel = layouts[node].strides(node.shape)
        units = (sizes["columns"], image, row, pixel)
    else:
        units = tuple(sizes[f"y_{unit}"] for unit in ("group", "image", "row", "pixel"))
    names = (f"{operand.name}_{unit}" for unit in ("group", "image", "row", "pixel"))
    return dict(zip(names, units, strict=True))


def _conv_sizes(group: Group, layouts: Layouts) -> tuple[Sizes, Size]:
    node, out = group.anchor, group.outputs[0]
    x, w = node.inputs
    attrs, shape = node.attrs, node.shape
    strides, y = layouts[x].strides(x.shape), layouts[out].strides(out.shape)
    kernel = w.shape[3:5] if attrs["planes"] else w.shape[2:4]
    sizes = conv2d_sizes(
        shape=(shape[0], shape[2], shape[3]),
        columns=attrs["channels"] // attrs["groups"],
        channels=w.shape[2] if attrs["planes"] else w.shape[4],
        kernel=kernel,
        x_strides=(strides[0], strides[2], strides[3], strides[1]),
        y_strides=(y[0], y[2], y[3]),
        stride=attrs["stride"],
        dilation=attrs["dilation"],
        groups=attrs["groups"],
    )
    (top, _), (left, _) = attrs["padding"]
    corner = as_size(strides[2]) * -top + as_size(strides[3]) * -left
    return sizes, corner


def _matmul_sizes(group: Group, layouts: Layouts) -> tuple[Sizes, Size]:
    a, _ = group.anchor.inputs
    batch = a.shape[0] if a.ndim == 3 else 1
    return matmul_sizes(a.shape[-2], group.anchor.attrs["columns"], a.shape[-1], batch), 0


_SIZES = {"conv2d_direct": _conv_sizes, "matmul_packed": _matmul_sizes}
