"""Matrix products: `matmul` by PyTorch's rules, and the layer `linear`.

Operands of one dimension are a row on the left and a column on the right; leading dimensions are
batches and broadcast. `linear` stays one node while rules look for it: they fold scales and biases
into its parameters.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dlc.errors import DTypeError, ShapeError
from dlc.ir.node import Node
from dlc.ir.op import Array, ErrorSample, Kind, OpDef, Sample
from dlc.ir.sizes import Size, equal, product, shape_text
from dlc.ir.types import TensorType, tensor
from dlc.ops.common import broadcast_shapes, require_float, unbroadcast
from dlc.ops.window import Shape, check_one_dtype

# Matrix product.


def _matmul_type(a: TensorType, b: TensorType) -> TensorType:
    require_float(a, b)
    if not a.shape or not b.shape:
        raise ShapeError(
            f"expects operands of at least 1 dimension, got {shape_text(a.shape)} and "
            f"{shape_text(b.shape)}; multiply by a scalar with *"
        )
    k = b.shape[-2] if b.ndim > 1 else b.shape[0]
    if not equal(a.shape[-1], k):
        raise ShapeError(
            f"expects as many columns on the left as rows on the right, got {a.shape[-1]} columns "
            f"in {shape_text(a.shape)} and {k} rows in {shape_text(b.shape)}"
        )
    columns = b.shape[-1:] if b.ndim > 1 else ()
    batch = broadcast_shapes(a.shape[:-2], b.shape[:-2])
    return a.with_shape((*batch, *a.shape[-2:-1], *columns))


def _matmul_vjp(g: Node, y: Node, a: Node, b: Node) -> tuple[Node, Node]:
    left = a if a.ndim > 1 else a.reshape((1, *a.shape))
    right = b if b.ndim > 1 else b.reshape((*b.shape, 1))
    batch = broadcast_shapes(left.shape[:-2], right.shape[:-2])
    g = g.reshape((*batch, left.shape[-2], right.shape[-1]))
    for_left = unbroadcast(g @ right.mT, left)
    if right.ndim == 2:  # one product over all rows, rather than one a batch and their sum
        for_right = _rows(left).mT @ _rows(g)
    else:
        for_right = unbroadcast(left.mT @ g, right)
    return for_left.reshape(a.shape), for_right.reshape(b.shape)


def _rows(x: Node) -> Node:
    """All leading dimensions as one: the rows of a matrix."""
    return x if x.ndim == 2 else x.reshape((product(x.shape[:-1]), x.shape[-1]))


def _matmul_flops(y: TensorType, a: TensorType, b: TensorType) -> Size:
    return y.count * a.shape[-1] * 2


def _matmul_samples(rng: np.random.Generator) -> Iterator[Sample]:
    cases: tuple[tuple[Shape, Shape], ...] = (
        ((4, 5), (5, 3)),
        ((1, 7), (7, 9)),
        ((5,), (5,)),
        ((5,), (5, 3)),
        ((4, 5), (5,)),
        ((2, 4, 5), (2, 5, 3)),
        ((2, 4, 5), (5, 3)),
        ((4, 5), (2, 5, 3)),
        ((5,), (2, 5, 3)),
        ((3, 2, 4, 5), (5,)),
        ((3, 1, 4, 5), (2, 5, 3)),
        ((1, 4, 5), (3, 5, 2)),
        ((2, 0), (0, 3)),
        ((0, 2), (2, 3)),
        ((17, 33), (33, 35)),
    )
    for a, b in cases:
        yield Sample((rng.normal(size=a), rng.normal(size=b)))


def _matmul_errors() -> Iterator[ErrorSample]:
    cases: tuple[tuple[Shape, Shape, str], ...] = (
        ((4, 3), (4, 5), "got 3 columns in (4, 3) and 4 rows in (4, 5)"),
        ((3,), (4,), "got 3 columns in (3,) and 4 rows in (4,)"),
        ((), (4, 5), "expects operands of at least 1 dimension, got () and (4, 5); multiply by a"),
        ((2, 4, 3), (3, 3, 5), "expects shapes that broadcast, got (2,) and (3,)"),
    )
    for a, b, match in cases:
        yield ErrorSample((tensor("float32", a), tensor("float32", b)), {}, ShapeError, match)
    integers = tensor("int64", (2, 2))
    yield ErrorSample((integers, integers), {}, DTypeError, "expects a tensor of floats, got int64")


# Linear layer.


def _linear_type(x: TensorType, w: TensorType, *bias: TensorType) -> TensorType:
    require_float(x)
    check_one_dtype(input=x, weight=w, **dict(zip(("bias",), bias)))
    if w.ndim != 2 or not x.shape:
        raise ShapeError(
            "expects an input (..., in_features) and a weight (out_features, in_features), got "
            f"{shape_text(x.shape)} and {shape_text(w.shape)}"
        )
    features, expected = x.shape[-1], w.shape[1]
    if not equal(features, expected):
        raise ShapeError(f"expects {expected} input features, got {features}")
    for b in bias:
        if b.ndim != 1 or not equal(b.shape[0], w.shape[0]):
            raise ShapeError(
                f"expects a bias of the {w.shape[0]} output features, got {shape_text(b.shape)}"
            )
    return x.with_shape((*x.shape[:-1], w.shape[0]))


def _linear_ref(x: Array, w: Array, *bias: Array) -> Array:
    y: Array = x @ w.T
    return y + bias[0] if bias else y


def _linear_expand(x: Node, w: Node, *bias: Node) -> Node:
    y = x @ w.mT
    return y + bias[0] if bias else y


def _linear_vjp(g: Node, y: Node, x: Node, w: Node, *bias: Node) -> tuple[Node, ...]:
    rows, points = (_rows(t if t.ndim > 1 else t.reshape((1, *t.shape))) for t in (g, x))
    return (g @ w, rows.mT @ points, *(unbroadcast(g, b) for b in bias))


def _linear_flops(y: TensorType, x: TensorType, w: TensorType, *bias: TensorType) -> Size:
    return y.count * w.shape[1] * 2 + y.count * len(bias)


def _linear_samples(rng: np.random.Generator) -> Iterator[Sample]:
    for x in ((4, 5), (5,), (2, 3, 5), (0, 5), (1, 5)):
        for bias in ((), (3,)):
            shapes: list[Shape] = [x, (3, 5), *([bias] if bias else [])]
            yield Sample(tuple(rng.normal(size=shape) for shape in shapes))


def _linear_errors() -> Iterator[ErrorSample]:
    cases: tuple[tuple[tuple[Shape, ...], str], ...] = (
        (((1, 784), (10, 512)), "expects 512 input features, got 784"),
        (((1, 784), (784,)), "expects an input (..., in_features) and a weight"),
        (((), (10, 512)), "expects an input (..., in_features) and a weight"),
        (((1, 512), (10, 512), (512,)), "expects a bias of the 10 output features, got (512,)"),
    )
    for shapes, match in cases:
        yield ErrorSample(tuple(tensor("float32", s) for s in shapes), {}, ShapeError, match)
    x, w = tensor("float64", (1, 4)), tensor("float32", (3, 4))
    match = "expects operands of one element type, got input float64, weight float32"
    yield ErrorSample((x, w), {}, DTypeError, match)


# The records.

matmul = OpDef(
    "matmul",
    Kind.CONTRACT,
    arity=2,
    infer=_matmul_type,
    ref=np.matmul,
    doc="matrix product over the last two dimensions, the others broadcast",
    grad=_matmul_vjp,
    flops=_matmul_flops,
    promotes=True,
    samples=_matmul_samples,
    errors=_matmul_errors,
    torch=lambda torch, a, b: torch.matmul(a, b),
)

linear = OpDef(
    "linear",
    Kind.COMPOSITE,
    arity=(2, 3),
    infer=_linear_type,
    ref=_linear_ref,
    doc="a linear layer, x @ w.T + b, with or without the bias",
    grad=_linear_vjp,
    expand=_linear_expand,
    flops=_linear_flops,
    samples=_linear_samples,
    errors=_linear_errors,
    torch=lambda torch, x, w, *bias: torch.nn.functional.linear(x, w, *bias),
)
