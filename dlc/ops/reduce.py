"""Reductions: sums, products, extrema and their positions; variance and logsumexp.

A reduction combines the elements along ``axes``. The last group is made of simpler ops and stays
whole in the graph only so that rules, and a backend with a kernel for it, see it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from dlc.errors import DTypeError, ShapeError
from dlc.ir.node import Node
from dlc.ir.op import Array, ErrorSample, Kind, OpDef, Reduction, Sample
from dlc.ir.sizes import Size, bounds, product
from dlc.ir.types import TensorType, is_float
from dlc.ops.common import (
    normal_axes,
    normal_axis,
    plain,
    require_float,
    specials,
    twin,
    uniform,
    where,
)

# Axes and shapes.


def _axes(x: TensorType, axes: Any = None, keepdims: bool = False) -> dict[str, Any]:
    none = isinstance(axes, Sequence) and not axes  # all of them, as in PyTorch
    return {"axes": normal_axes(None if none else axes, x.ndim), "keepdims": bool(keepdims)}


def reduced_shape(
    shape: Sequence[Size], axes: Sequence[int], keepdims: bool = False
) -> tuple[Size, ...]:
    """``shape`` without the dimensions ``axes``, or with size 1 there."""
    if keepdims:
        return tuple(1 if axis in axes else size for axis, size in enumerate(shape))
    return tuple(size for axis, size in enumerate(shape) if axis not in axes)


def _count(x: Node, axes: Sequence[int]) -> Size:
    return product(x.shape[axis] for axis in axes)


def _kept(value: Node, x: Node, axes: Sequence[int]) -> Node:
    """A reduced ``value`` with the lost dimensions back, of size 1: it broadcasts against ``x``."""
    return value.reshape(reduced_shape(x.shape, axes, keepdims=True))


def _same_dtype(x: TensorType, axes: tuple[int, ...], keepdims: bool) -> TensorType:
    return TensorType(x.dtype, reduced_shape(x.shape, axes, keepdims))


def _wide_dtype(x: TensorType, axes: tuple[int, ...], keepdims: bool) -> TensorType:
    """Sums and products of integers and bools are int64, as in PyTorch."""
    result = _same_dtype(x, axes, keepdims)
    return result if is_float(x.dtype) else result.with_dtype("int64")


def _float_dtype(x: TensorType, axes: tuple[int, ...], keepdims: bool, **_: Any) -> TensorType:
    require_float(x)
    return _same_dtype(x, axes, keepdims)


def _bool_dtype(x: TensorType, axes: tuple[int, ...], keepdims: bool) -> TensorType:
    if x.dtype != "bool":
        raise DTypeError(f"expects a bool tensor, got {x.dtype}; compare first, as in x != 0")
    return _same_dtype(x, axes, keepdims)


def not_empty(x: TensorType, axes: Iterable[int]) -> None:
    """Refuse to reduce over an axis that may have no elements."""
    for axis in axes:
        if bounds(x.shape[axis])[0] < 1:
            raise ShapeError(
                f"expects at least one element along axis {axis}, got the size {x.shape[axis]}"
            )


def _extremum_dtype(x: TensorType, axes: tuple[int, ...], keepdims: bool) -> TensorType:
    not_empty(x, axes)
    return _same_dtype(x, axes, keepdims)


# Samples.

SHAPES: tuple[tuple[tuple[int, ...], dict[str, Any]], ...] = (
    ((4, 3), {"axes": None}),
    ((4, 3), {"axes": (1,)}),
    ((2, 3, 5), {"axes": (0, -1), "keepdims": True}),
    ((2, 3, 5), {"axes": 1}),
    ((2, 1, 3), {"axes": (1,)}),
    ((), {"axes": None}),
    ((7,), {"axes": (0,), "keepdims": True}),
)


def _samples(*more: Callable[[np.random.Generator], Sample]) -> Callable[..., Iterable[Sample]]:
    def samples(rng: np.random.Generator) -> Iterable[Sample]:
        for shape, attrs in SHAPES:
            yield Sample(uniform(rng, shape), attrs)
        yield plain(np.stack([np.roll(specials()[:6], k) for k in range(3)]), axes=(1,))
        yield from (make(rng) for make in more)

    return samples


def _integers(rng: np.random.Generator) -> Sample:
    return plain(rng.integers(-4, 5, (3, 4)).astype(np.int32), axes=(0,))


def _bytes(rng: np.random.Generator) -> Sample:
    return plain(rng.integers(0, 256, (3, 4)).astype(np.uint8), axes=(1,))


def _bools(rng: np.random.Generator) -> Sample:
    return plain(rng.integers(0, 2, (3, 4)) > 0, axes=(1,), keepdims=True)


def _long_rows(rng: np.random.Generator) -> Sample:
    return plain(rng.uniform(0, 1, (2, 2500)), axes=(1,))  # more than backends sum in one block


def _long_columns(rng: np.random.Generator) -> Sample:
    return plain(rng.uniform(0, 1, (1300, 3)), axes=(0,))


def _away_from_zero(rng: np.random.Generator) -> Sample:
    return plain(rng.normal(1000.0, 1.0, (3, 2100, 2)), axes=(1,))


def _empty(rng: np.random.Generator) -> Sample:
    return plain(np.zeros((2, 0, 3)), axes=(1,))


def _no_rows(rng: np.random.Generator) -> Sample:
    return Sample((np.zeros((0, 3)),), {"axes": (1,)})


def _axes_errors() -> Iterable[ErrorSample]:
    matrix = TensorType("float32", (2, 3))
    yield ErrorSample((matrix,), {"axes": (2,)}, ShapeError, "an axis from -2 to 1")
    yield ErrorSample((matrix,), {"axes": (1, -1)}, ShapeError, "each axis once")
    yield ErrorSample((matrix,), {"axes": ("rows",)}, ShapeError, "integer axis")


def _float_errors() -> Iterable[ErrorSample]:
    yield from _axes_errors()
    yield ErrorSample((TensorType("int64", (3,)),), {"axes": None}, DTypeError, "floats")


def _extremum_errors() -> Iterable[ErrorSample]:
    yield from _axes_errors()
    yield ErrorSample((TensorType("bool", (0,)),), {"axes": None}, ShapeError, "at least one")


def _bool_errors() -> Iterable[ErrorSample]:
    yield ErrorSample((TensorType("float32", (3,)),), {"axes": None}, DTypeError, "compare first")


# Sums and products.


def _accumulated(function: Callable[..., Any]) -> Callable[..., Array]:
    def ref(x: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
        dtype = x.dtype if x.dtype.kind == "f" else np.int64
        return np.asarray(function(x, axis=axes, keepdims=keepdims, dtype=dtype))

    return ref


def _sum_grad(g: Node, y: Node, x: Node, axes: Any, keepdims: bool) -> tuple[Node]:
    return (_kept(g, x, axes).expand(x.shape),)


sum_ = OpDef(
    "sum",
    Kind.REDUCE,
    infer=_wide_dtype,
    ref=_accumulated(np.sum),
    doc="the sum over axes; of integers and bools an int64",
    attrs=_axes,
    reduction=Reduction("{a} + {b}", 0.0),
    grad=_sum_grad,
    samples=_samples(_integers, _bytes, _bools, _empty, _no_rows, _long_rows, _long_columns),
    errors=_axes_errors,
    torch=twin("sum", axes="dim", keepdims="keepdim"),
)


def _mean_ref(x: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
    count = math.prod(x.shape[axis] for axis in axes)
    total = np.sum(x, axis=axes, keepdims=keepdims, dtype=x.dtype)
    return np.asarray(np.divide(total, x.dtype.type(count)))


def _mean_grad(g: Node, y: Node, x: Node, axes: Any, keepdims: bool) -> tuple[Node]:
    return ((_kept(g, x, axes) / _count(x, axes)).expand(x.shape),)


mean = OpDef(
    "mean",
    Kind.REDUCE,
    infer=_float_dtype,
    ref=_mean_ref,
    doc="the mean over axes; NaN of no elements",
    attrs=_axes,
    reduction=Reduction("{a} + {b}", 0.0, "{acc} / {n}"),
    grad=_mean_grad,
    samples=_samples(_empty, _no_rows, _long_rows, _long_columns),
    errors=_float_errors,
    torch=twin("mean", axes="dim", keepdims="keepdim"),
)


def _variance_ref(x: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
    away = x - _mean_ref(x, axes, keepdims=True)
    return _mean_ref(away * away, axes, keepdims)


def _variance_grad(g: Node, y: Node, x: Node, axes: Any, keepdims: bool) -> tuple[Node]:
    away = x - x.mean(axes, keepdim=True)
    return (_kept(g, x, axes) * 2.0 / _count(x, axes) * away,)


variance = OpDef(
    "variance",
    Kind.REDUCE,
    infer=_float_dtype,
    ref=_variance_ref,
    doc="the mean squared distance from the mean over axes; NaN of no elements",
    attrs=_axes,
    reduction=Reduction("{a} + {b}", 0.0, "{acc} / {n}", centred=True),
    grad=_variance_grad,
    flops=lambda y, x, axes, keepdims: x.count * 3,
    samples=_samples(_empty, _no_rows, _long_rows, _long_columns, _away_from_zero),
    errors=_float_errors,
    torch=lambda torch, x, axes, keepdims=False: torch.var(
        x, normal_axes(axes, x.dim()), correction=0, keepdim=keepdims
    ),
    ulp=8.0,
)


def _prod_grad(g: Node, y: Node, x: Node, axes: Any, keepdims: bool) -> tuple[Node]:
    # The product of all other elements, by no division: right at zeros, and to any order.
    others, part = None, x
    for axis in reversed(axes):
        along = _before(part, axis) * _before(part.flip(axis), axis).flip(axis)
        others = along if others is None else others * along
        part = part.prod(axis, keepdim=True)
    kept = _kept(g, x, axes).expand(x.shape)
    return (kept if others is None else kept * others,)


def _before(x: Node, axis: int) -> Node:
    """Along ``axis``, the product of what is before each element, in logarithmically many steps."""
    size, most = x.shape[axis], bounds(x.shape[axis])[1]
    product_before = _shifted(x, axis, 1, size)
    distance = 1
    while distance < most:
        product_before = product_before * _shifted(product_before, axis, distance, size)
        distance *= 2
    return product_before


def _shifted(x: Node, axis: int, distance: int, size: Size) -> Node:
    low = tuple(distance if k == axis else 0 for k in range(x.ndim))
    attrs = {"low": low, "high": (0,) * x.ndim, "value": 1.0}
    return x.builder.node("pad", (x,), attrs).narrow(axis, 0, size)


def _prod_torch(torch: Any, x: Any, axes: Any, keepdims: bool = False) -> Any:
    for axis in reversed(normal_axes(axes, x.dim())):
        x = torch.prod(x, axis, keepdim=keepdims)
    return x


prod = OpDef(
    "prod",
    Kind.REDUCE,
    infer=_wide_dtype,
    ref=_accumulated(np.prod),
    doc="the product over axes; of integers and bools an int64",
    attrs=_axes,
    reduction=Reduction("{a} * {b}", 1.0),
    grad=_prod_grad,
    samples=_samples(
        _integers,
        _bools,
        _empty,
        _no_rows,
        lambda rng: Sample((np.array([[1.5, 0, 2], [0, 3, 0]]),), {"axes": (1,)}),
        lambda rng: Sample((np.array([[1.5, 0, 2], [1, 3, 2]]),), {"axes": None}),
    ),
    errors=_axes_errors,
    torch=_prod_torch,
    ulp=4.0,
)


# Extrema. All equal elements share the gradient evenly, as in PyTorch.


def _extremum_grad(g: Node, y: Node, x: Node, axes: Any, keepdims: bool) -> tuple[Node]:
    won = (x == _kept(y, x, axes)).to(x.dtype)
    return (_kept(g, x, axes) * won / won.sum(axes, keepdim=True),)


def _extremum(name: str, doc: str, combine: str, init: float, ref: Callable[..., Any]) -> OpDef:
    return OpDef(
        name,
        Kind.REDUCE,
        infer=_extremum_dtype,
        ref=lambda x, axes, keepdims: np.asarray(ref(x, axis=axes, keepdims=keepdims)),
        doc=doc,
        attrs=_axes,
        reduction=Reduction(combine, init),
        grad=_extremum_grad,
        samples=_samples(
            _integers,
            _bytes,
            _bools,
            _no_rows,
            _long_rows,
            _long_columns,
            lambda rng: plain(np.array([[3.0, 3.0], [1.0, 2.0], [2.0, 3.0]]), axes=None),
            lambda rng: plain(np.full((2, 3), -init), axes=(1,)),
            lambda rng: plain(np.full((2, 3), init), axes=(1,)),
        ),
        errors=_extremum_errors,
        torch=_amax_torch(name),
        ulp=0.0,
    )


def _amax_torch(name: str) -> Callable[..., Any]:
    def call(torch: Any, x: Any, axes: Any, keepdims: bool = False) -> Any:
        axes = normal_axes(axes, x.dim())
        return getattr(torch, name)(x, axes, keepdim=keepdims) if axes else x.clone()

    return call


amax = _extremum("amax", "the greatest over axes; NaN wins", "fmax({a}, {b})", -math.inf, np.max)
amin = _extremum("amin", "the least over axes; NaN wins", "fmin({a}, {b})", math.inf, np.min)

any_ = OpDef(
    "any",
    Kind.REDUCE,
    infer=_bool_dtype,
    ref=lambda x, axes, keepdims: np.asarray(np.any(x, axis=axes, keepdims=keepdims)),
    doc="whether any element over axes is true",
    attrs=_axes,
    reduction=Reduction("{a} or {b}", 0.0),
    no_grad="its result is bool",
    samples=lambda rng: [
        _bools(rng),
        *(plain(rng.integers(0, 3, shape) == 0, **attrs) for shape, attrs in SHAPES),
        plain(np.zeros((2, 0), bool), axes=(1,)),
    ],
    errors=_bool_errors,
    torch=twin("any", axes="dim", keepdims="keepdim"),
    ulp=0.0,
)

all_ = OpDef(
    "all",
    Kind.REDUCE,
    infer=_bool_dtype,
    ref=lambda x, axes, keepdims: np.asarray(np.all(x, axis=axes, keepdims=keepdims)),
    doc="whether all elements over axes are true",
    attrs=_axes,
    reduction=Reduction("{a} and {b}", 1.0),
    no_grad="its result is bool",
    samples=lambda rng: [
        _bools(rng),
        *(plain(rng.integers(0, 3, shape) > 0, **attrs) for shape, attrs in SHAPES),
        plain(np.zeros((2, 0), bool), axes=(1,)),
    ],
    errors=_bool_errors,
    torch=twin("all", axes="dim", keepdims="keepdim"),
    ulp=0.0,
)


# Positions. `combine` says whether {b}, the later element, takes the place of {a}; a backend that
# combines out of order lets the lower position win a tie. NaN, which differs from itself, wins.


def _axis_or_all(x: TensorType, axis: int | None = None, keepdims: bool = False) -> dict[str, Any]:
    return {
        "axis": None if axis is None else normal_axis(axis, x.ndim),
        "keepdims": bool(keepdims),
    }


def _position_type(x: TensorType, axis: int | None, keepdims: bool) -> TensorType:
    if x.dtype == "bool":
        raise DTypeError("expects a tensor of numbers, got bool; cast with x.to(dtype)")
    axes = normal_axes(axis, x.ndim)
    not_empty(x, axes)
    return TensorType("int64", reduced_shape(x.shape, axes, keepdims))


def _position(name: str, doc: str, symbol: str, init: float, ref: Callable[..., Any]) -> OpDef:
    def samples(rng: np.random.Generator) -> Iterable[Sample]:
        yield Sample(uniform(rng, (4, 3)), {"axis": 1})
        yield Sample(uniform(rng, (4, 3)), {})
        yield Sample(uniform(rng, (2, 3, 5)), {"axis": -2, "keepdims": True})
        yield Sample(uniform(rng, (0, 3)), {"axis": 1})
        yield Sample(uniform(rng, ()), {})
        yield plain(rng.integers(0, 2, (5, 4)), axis=0)
        yield plain(np.stack([np.roll(specials()[:6], k) for k in range(6)]), axis=1)
        yield plain(np.full((2, 3), init), axis=1)
        yield plain([[1.0, 3.0, 3.0], [1.0, 1.0, 0.0]], axis=1)
        yield plain(rng.integers(0, 9, (2, 2500)).astype(float), axis=1)

    return OpDef(
        name,
        Kind.REDUCE,
        infer=_position_type,
        ref=lambda x, axis, keepdims: np.asarray(ref(x, axis=axis, keepdims=keepdims), np.int64),
        doc=doc,
        attrs=_axis_or_all,
        reduction=Reduction(
            f"{{b}} {symbol} {{a}} or ({{b}} != {{b}} and {{a}} == {{a}})", init, position=True
        ),
        no_grad="its result is a position",
        samples=samples,
        errors=lambda: [
            ErrorSample((TensorType("float32", (2,)),), {"axis": 1}, ShapeError, "an axis from"),
            ErrorSample((TensorType("float32", (2, 0)),), {"axis": 1}, ShapeError, "at least one"),
            ErrorSample((TensorType("bool", (2,)),), {"axis": 0}, DTypeError, "got bool"),
        ],
        torch=twin(name, axis="dim", keepdims="keepdim"),
        ulp=0.0,
    )


argmax = _position("argmax", "position of the greatest; first of equals", ">", -math.inf, np.argmax)
argmin = _position("argmin", "position of the least; first of equals", "<", math.inf, np.argmin)


# Composites.


def _var_attrs(
    x: TensorType, axes: Any = None, correction: int = 1, keepdims: bool = False
) -> dict[str, Any]:
    return {**_axes(x, axes, keepdims), "correction": correction}


def _freedom(x: Node, axes: Sequence[int], correction: int) -> Size:
    count = _count(x, axes)
    return max(count - correction, 0) if isinstance(count, int) else count - correction


def _var_ref(x: Array, axes: tuple[int, ...], correction: int, keepdims: bool) -> Array:
    count = math.prod(x.shape[axis] for axis in axes)
    away = x - _mean_ref(x, axes, keepdims=True)
    total = np.sum(away * away, axis=axes, keepdims=keepdims, dtype=x.dtype)
    return np.asarray(np.divide(total, x.dtype.type(max(count - correction, 0))))


def _var_expand(x: Node, axes: Any, correction: int, keepdims: bool) -> Node:
    spread = x.builder.node("variance", (x,), {"axes": axes, "keepdims": keepdims})
    if correction == 0:
        return spread
    return spread * _count(x, axes) / _freedom(x, axes, correction)


def _var_grad(g: Node, y: Node, x: Node, axes: Any, correction: int, keepdims: bool) -> tuple[Node]:
    away = x - x.mean(axes, keepdim=True)
    return (_kept(g, x, axes) * 2.0 / _freedom(x, axes, correction) * away,)


var = OpDef(
    "var",
    Kind.COMPOSITE,
    infer=_float_dtype,
    ref=_var_ref,
    doc="the sum of squared distances from the mean, divided by (number of elements - correction)",
    attrs=_var_attrs,
    grad=_var_grad,
    expand=_var_expand,
    samples=lambda rng: [
        *(Sample(uniform(rng, s), {"correction": 0, **a}) for s, a in SHAPES),
        Sample(uniform(rng, (4, 3)), {"axes": (0,)}),
        Sample(uniform(rng, (4, 3)), {"axes": (0, 1), "correction": 2, "keepdims": True}),
        plain(np.ones((2, 1)), axes=(1,)),
        _no_rows(rng),
    ],
    errors=_float_errors,
    torch=twin("var", axes="dim", keepdims="keepdim"),
    ulp=8.0,
)


def _logsumexp_ref(x: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
    top = np.max(x, axis=axes, keepdims=True)
    top = np.where(np.isinf(top), x.dtype.type(0), top)
    total = np.log(np.sum(np.exp(x - top), axis=axes, keepdims=True, dtype=x.dtype)) + top
    return np.asarray(total.reshape(reduced_shape(x.shape, axes, keepdims)))


def _logsumexp_expand(x: Node, axes: Any, keepdims: bool) -> Node:
    top = x.amax(axes, keepdim=True)
    top = where(abs(top) == math.inf, 0.0, top)  # inf - inf would be NaN
    total = (x - top).exp().sum(axes, keepdim=True).log() + top
    return total if keepdims else total.reshape(reduced_shape(x.shape, axes))


def _logsumexp_type(x: TensorType, axes: tuple[int, ...], keepdims: bool) -> TensorType:
    not_empty(x, axes)
    return _float_dtype(x, axes, keepdims)


logsumexp = OpDef(
    "logsumexp",
    Kind.COMPOSITE,
    infer=_logsumexp_type,
    ref=_logsumexp_ref,
    doc="log(sum(exp(x))) over axes, without overflow",
    attrs=_axes,
    grad=lambda g, y, x, axes, keepdims: (_kept(g, x, axes) * (x - _kept(y, x, axes)).exp(),),
    expand=_logsumexp_expand,
    samples=_samples(
        _no_rows,
        lambda rng: plain(np.array([[-np.inf] * 2, [np.inf, 1.0], [900.0, 901.0]]), axes=(1,)),
    ),
    errors=_float_errors,
    torch=lambda torch, x, axes, keepdims=False: torch.logsumexp(
        x, normal_axes(axes, x.dim()), keepdim=keepdims
    ),
    ulp=8.0,
)
