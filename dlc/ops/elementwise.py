"""Elementwise arithmetic: operators, comparisons, logic, bounds, choice, casts; inputs broadcast.

A record gives the expression that backends compile, the NumPy reference and the gradient in three
neighbouring lines, so that a reader can compare them. Integer divisions by zero give 0, as in
NumPy, because a trap would end the process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from dlc.errors import ArgumentError, DTypeError, ShapeError
from dlc.ir.node import Node
from dlc.ir.op import Array, ErrorSample, Kind, OpDef, Sample
from dlc.ir.types import FLOATS, INTEGERS, TensorType, as_dtype, is_float
from dlc.ops.common import (
    broadcast,
    comparison,
    number_in,
    only_floats,
    plain,
    specials,
    twin,
    unbroadcast,
    uniform,
    where,
)

Samples = Callable[[np.random.Generator], Iterable[Sample]]


# How a record is made.


def only_numbers(*types: TensorType, **_: object) -> TensorType:
    """The type rule of arithmetic that bools have no part in."""
    if any(t.dtype == "bool" for t in types):
        raise DTypeError("expects tensors of numbers, got bool; cast with x.to(dtype)")
    return broadcast(*types)


def by_kind(floats: str, integers: str, bools: str = "") -> Callable[..., str]:
    """One expression for each kind of element type."""

    def scalar(dtype: str, /, **_: object) -> str:
        return floats if is_float(dtype) else bools if bools and dtype == "bool" else integers

    return scalar


def unary_samples(low: float = -3.0, high: float = 3.0, integers: bool = True) -> Samples:
    """Reals between ``low`` and ``high`` in several shapes, the special values, and integers."""

    def samples(rng: np.random.Generator) -> Iterable[Sample]:
        for shape in ((4, 3), (), (0, 3), (2, 1, 5)):
            yield Sample(uniform(rng, shape, low=low, high=high))
        yield plain(specials())
        if integers:
            yield plain(rng.integers(max(int(low), -4), int(high) + 1, (3, 2)))

    return samples


def binary_samples(low: float = -2.0, high: float = 2.0, integers: bool = True) -> Samples:
    """Arrays that broadcast in every way, all pairs of special values, and integers."""

    def samples(rng: np.random.Generator) -> Iterable[Sample]:
        shapes = (
            ((4, 3), (4, 3)),
            ((4, 1), (3,)),
            ((), (2, 3)),
            ((2, 1, 3), (5, 1)),
            ((0, 3), (1,)),
        )
        for shape, other in shapes:
            yield Sample(uniform(rng, shape, other, low=low, high=high))
        yield plain(specials()[:, None], specials())
        if integers:
            yield plain(rng.integers(-9, 10, (5, 4)), rng.integers(1, 5, 4))
            yield plain(rng.integers(0, 9, 6).astype(np.uint8), np.array(3, np.uint8))

    return samples


def _bool_error(count: int) -> ErrorSample:
    return ErrorSample((TensorType("bool", (2,)),) * count, {}, DTypeError, "got bool")


def _binary_errors(infer: Callable[..., TensorType]) -> Iterable[ErrorSample]:
    types = TensorType("float32", (2, 3)), TensorType("float32", (4,))
    yield ErrorSample(types, {}, ShapeError, "expects shapes that broadcast")
    if infer in (only_numbers, only_floats):
        yield _bool_error(2)


def unary(
    name: str,
    doc: str,
    scalar: str | Callable[..., str],
    ref: Callable[..., Any],
    grad: Callable[..., Any] | None = None,
    *,
    infer: Callable[..., TensorType] = only_numbers,
    **fields: Any,
) -> OpDef:
    """A function of one variable; ``fields`` go to the record, in place of what is usual."""
    fields.setdefault("torch", twin(name))
    fields.setdefault("samples", unary_samples())
    if infer is only_numbers:
        fields.setdefault("errors", lambda: [_bool_error(1)])
    return OpDef(name, Kind.POINTWISE, infer, ref, doc, scalar=scalar, grad=grad, **fields)


def _binary(
    name: str,
    doc: str,
    scalar: str | Callable[..., str],
    ref: Callable[..., Any],
    grad: Callable[[Node, Node, Node, Node], tuple[Node, Node]] | None = None,
    *,
    infer: Callable[..., TensorType] = only_numbers,
    **fields: Any,
) -> OpDef:
    """A function of two variables; ``grad`` may leave the broadcast axes unsummed."""

    def summed(g: Node, y: Node, a: Node, b: Node) -> tuple[Node, Node]:
        assert grad is not None
        da, db = grad(g, y, a, b)
        return unbroadcast(da, a), unbroadcast(db, b)

    fields.setdefault("torch", twin(name))
    fields.setdefault("samples", binary_samples())
    fields.setdefault("promotes", True)
    fields.setdefault(
        "errors", lambda: _binary_errors(broadcast if fields["promotes"] == "float" else infer)
    )
    return OpDef(
        name,
        Kind.POINTWISE,
        infer,
        ref,
        doc,
        arity=2,
        scalar=scalar,
        grad=summed if grad else None,
        **fields,
    )


STEPS = "it is constant by pieces, so its derivative is zero"
BOOL = "its result is bool"


# Arithmetic.

add = _binary(
    "add",
    "x + y; on bools, or",
    by_kind("{0} + {1}", "{0} + {1}", "{0} or {1}"),
    np.add,
    lambda g, y, a, b: (g, g),
    infer=broadcast,
    ulp=0.5,
)

sub = _binary("sub", "x - y", "{0} - {1}", np.subtract, lambda g, y, a, b: (g, -g), ulp=0.5)

mul = _binary(
    "mul",
    "x * y; on bools, and",
    by_kind("{0} * {1}", "{0} * {1}", "{0} and {1}"),
    np.multiply,
    lambda g, y, a, b: (g * b, g * a),
    infer=broadcast,
    ulp=0.5,
)

div = _binary(
    "div",
    "x / y, a float for integers too",
    "{0} / {1}",
    np.divide,
    lambda g, y, a, b: (g / b, -g * (y / b)),
    infer=only_floats,
    promotes="float",
    samples=binary_samples(0.5, 2.0),
    ulp=0.5,
)


def _divisor(dtype: str) -> str:
    """``{1}``, or 1 where an integer division by it would trap."""
    trap = "{1} == 0" if dtype == "uint8" else "({1} == 0 or {1} == -1)"
    return f"(1 if {trap} else {{1}})"


# Floats divide in float64, so that the rest is exact while the quotient is below 2**53.
_X, _Y = "f64({0})", "f64({1})"
_REST = f"({_X} if abs({_Y}) == inf and abs({_X}) != inf else fma(-trunc({_X} / {_Y}), {_Y}, {_X}))"
_BELOW = f"{_REST} != 0.0 and ({_REST} < 0.0) != ({_Y} < 0.0)"  # the rest has the wrong sign


def _remainder(dtype: str, /) -> str:
    if not is_float(dtype):
        return f"{{0}} % {_divisor(dtype)}"
    return _single(dtype, f"({_REST} + {_Y}) if {_BELOW} else {_REST}")


def _floor_divide(dtype: str, /) -> str:
    if dtype == "uint8":
        return f"0 if {{1}} == 0 else {{0}} // {_divisor(dtype)}"
    if not is_float(dtype):
        return f"0 if {{1}} == 0 else (-{{0}} if {{1}} == -1 else {{0}} // {_divisor(dtype)})"
    whole = f"round(({_X} - {_REST}) / {_Y}) - (1.0 if {_BELOW} else 0.0)"
    return _single(dtype, f"{_X} / {_Y} if {_Y} == 0.0 else {whole}")


def _single(dtype: str, text: str) -> str:
    return f"f32({text})" if dtype == "float32" else text


remainder = _binary(
    "remainder",
    "x - y * floor(x / y), of the sign of y; an integer remainder by 0 is 0",
    _remainder,
    np.remainder,
    lambda g, y, a, b: (g, -g * a.floor_divide(b)),
    samples=binary_samples(0.3, 2.0),
)

floor_divide = _binary(
    "floor_divide",
    "floor(x / y); an integer divided by 0 is 0",
    _floor_divide,
    np.floor_divide,
    no_grad=STEPS,
    samples=binary_samples(0.3, 2.0),
)


def _pow_grad(g: Node, y: Node, a: Node, b: Node) -> tuple[Node, Node]:
    # At exponent 0 the power is flat; at base 0 with an exponent >= 0 so is the exponential.
    slope = b * a.pow(where(b == 0, 1.0, b - 1.0))
    base = where((a == 0) & (b >= 0), 1.0, a)
    return g * slope, g * y * base.log()


pow_ = _binary(
    "pow",
    "x to the power y, of floats (`x ** n` on integers with a known n is written as products)",
    "pow({0}, {1})",
    np.power,
    _pow_grad,
    infer=only_floats,
    samples=lambda rng: [
        *binary_samples(0.5, 2.0, integers=False)(rng),
        Sample(
            (np.array([[-1.5, 2.0, 0.5]]), np.array([[2.0], [3.0], [0.0]])), differentiable=(0,)
        ),
        Sample((np.array([-1.5, 0.0, 0.0]), np.array([2.0, 2.0, 1.0])), differentiable=()),
    ],
    ulp=4.0,
)


def _maximum_grad(g: Node, y: Node, a: Node, b: Node) -> tuple[Node, Node]:
    half = where(a == b, g * 0.5, g)  # equal values share the gradient, as in PyTorch
    return where(a < b, 0.0, half), where(b < a, 0.0, half)


maximum = _binary(
    "maximum",
    "the larger of x and y; NaN where either is",
    by_kind("fmax({0}, {1})", "{0} if {0} > {1} else {1}", "{0} or {1}"),
    np.maximum,
    _maximum_grad,
    infer=broadcast,
    ulp=0.0,
)

minimum = _binary(
    "minimum",
    "the smaller of x and y; NaN where either is",
    by_kind("fmin({0}, {1})", "{0} if {0} < {1} else {1}", "{0} and {1}"),
    np.minimum,
    lambda g, y, a, b: _maximum_grad(g, y, b, a),
    infer=broadcast,
    ulp=0.0,
)

neg = unary("neg", "-x", "-{0}", np.negative, lambda g, y, x: (-g,), ulp=0.0)

square = unary("square", "x * x", "{0} * {0}", np.square, lambda g, y, x: (g * x * 2.0,), ulp=0.5)

abs_ = unary("abs", "|x|", "abs({0})", np.abs, lambda g, y, x: (g * x.sign(),), ulp=0.0)

sign = unary(
    "sign",
    "-1, 0 or 1; 0 for NaN, as in PyTorch",
    lambda dtype: (
        "1 if {0} > 0 else 0" if dtype == "uint8" else "1 if {0} > 0 else (-1 if {0} < 0 else 0)"
    ),
    lambda x: np.where(np.isnan(x), 0, np.sign(x)).astype(x.dtype),
    no_grad=STEPS,
    ulp=0.0,
)


# Comparisons and logic.


def _compare(name: str, symbol: str, ref: Callable[..., Any]) -> OpDef:
    return _binary(
        name,
        f"x {symbol} y",
        f"{{0}} {symbol} {{1}}",
        ref,
        infer=comparison,
        no_grad=BOOL,
        samples=lambda rng: [
            *binary_samples()(rng),
            plain(np.array([True, False]), np.array([[True], [False]])),
        ],
        ulp=0.0,
    )


eq = _compare("eq", "==", np.equal)
ne = _compare("ne", "!=", np.not_equal)
lt = _compare("lt", "<", np.less)
le = _compare("le", "<=", np.less_equal)
gt = _compare("gt", ">", np.greater)
ge = _compare("ge", ">=", np.greater_equal)


def _logical(name: str, word: str, ref: Callable[..., Any]) -> OpDef:
    numbers = f"({{0}} != 0) {word} ({{1}} != 0)"
    return _binary(
        name,
        f"x {word} y; what is not zero is true",
        by_kind(numbers, numbers, f"{{0}} {word} {{1}}"),
        ref,
        infer=comparison,
        no_grad=BOOL,
        samples=lambda rng: [
            plain(rng.integers(0, 2, (4, 1)) > 0, rng.integers(0, 2, 3) > 0),
            plain(rng.integers(0, 2, (4, 3)), rng.integers(0, 2, 3)),
            plain(specials()[:, None], specials()),
            plain(np.zeros((0, 2), bool), np.array(True)),
        ],
        ulp=0.0,
    )


logical_and = _logical("logical_and", "and", np.logical_and)
logical_or = _logical("logical_or", "or", np.logical_or)

logical_not = unary(
    "logical_not",
    "not x; what is not zero is true",
    by_kind("{0} == 0", "{0} == 0", "not {0}"),
    np.logical_not,
    infer=comparison,
    no_grad=BOOL,
    samples=lambda rng: [
        plain([[True, False]]),
        plain([0, 2, 0]),
        plain(specials()),
        plain(np.zeros((0, 2))),
    ],
    ulp=0.0,
)

isnan = unary(
    "isnan",
    "whether x is NaN",
    by_kind("isnan({0})", "False"),
    np.isnan,
    infer=comparison,
    no_grad=BOOL,
    ulp=0.0,
)


# Bounds.


def _clamp_attrs(x: TensorType, low: Any = None, high: Any = None) -> dict[str, Any]:
    if low is None and high is None:
        raise ArgumentError("expects a bound, low or high or both, got none")
    return {"low": _bound(low, x.dtype), "high": _bound(high, x.dtype)}


def _bound(value: Any, dtype: str) -> float | int | None:
    return None if value is None else number_in(dtype, value, "bounds")


def _clamp(dtype: str, /, low: Any, high: Any) -> str:
    text = "{0}" if low is None else "({low} if {0} < {low} else {0})"
    return text if high is None else f"{{high}} if {text} > {{high}} else {text}"


def _clamp_ref(x: Array, low: Any, high: Any) -> Array:
    y = x if low is None else np.where(x < low, x.dtype.type(low), x)
    return y.copy() if high is None else np.where(y > high, x.dtype.type(high), y)


def _clamp_grad(g: Node, y: Node, x: Node, low: Any, high: Any) -> tuple[Node]:
    if low is not None:
        g = where(x >= low, g, 0.0)
    return (g if high is None else where(x <= high, g, 0.0),)


clamp = unary(
    "clamp",
    "x held between two bounds, either of which may be absent",
    _clamp,
    _clamp_ref,
    _clamp_grad,
    attrs=_clamp_attrs,
    samples=lambda rng: [
        *(
            Sample(s.arrays, {"low": -1.0, "high": 0.5}, s.differentiable)
            for s in unary_samples(integers=False)(rng)
        ),
        Sample(uniform(rng, (3, 4)), {"low": 0.25}),
        Sample(uniform(rng, (3, 4)), {"high": 0.25}),
        Sample(uniform(rng, (3,)), {"low": 1.0, "high": -1.0}, differentiable=()),
        plain(rng.integers(-9, 9, (3, 4)), low=-2, high=3),
    ],
    errors=lambda: [
        ErrorSample((TensorType("int64", (2,)),), {"low": 0.5}, DTypeError, "bounds of type int64"),
        ErrorSample((TensorType("int32"),), {"low": -math.inf}, DTypeError, "got -inf"),
        ErrorSample((TensorType("uint8"),), {"low": -1}, DTypeError, "(0 to 255), got -1"),
        ErrorSample((TensorType("bool", (2,)),), {"low": 0}, DTypeError, "got bool"),
        ErrorSample((TensorType("float32", (2,)),), {}, ArgumentError, "expects a bound"),
    ],
    torch=twin("clamp", low="min", high="max"),
    ulp=0.0,
)


# Choice and casts.


def _where_type(condition: TensorType, a: TensorType, b: TensorType) -> TensorType:
    if condition.dtype != "bool":
        raise DTypeError(
            f"expects a bool condition, got {condition.dtype}; compare first, as in x != 0"
        )
    return broadcast(condition.with_dtype(a.dtype), a, b)


where_ = OpDef(
    "where",
    Kind.POINTWISE,
    arity=3,
    infer=_where_type,
    ref=np.where,
    doc="a where the condition holds, b elsewhere",
    scalar="{1} if {0} else {2}",
    grad=lambda g, y, condition, a, b: (
        None,
        unbroadcast(where(condition, g, 0.0), a),
        unbroadcast(where(condition, 0.0, g), b),
    ),
    samples=lambda rng: [
        Sample((rng.integers(0, 2, (4, 3)) > 0, *uniform(rng, (4, 3), (4, 3)))),
        Sample((rng.integers(0, 2, (4, 1)) > 0, *uniform(rng, (3,), ()))),
        Sample((np.array(True), *uniform(rng, (2, 3), (2, 1)))),
        plain(np.zeros((0, 2), bool), np.zeros(2), np.ones(())),
        plain([[True], [False]], specials(), -specials()),
        plain([True, False], [1, 2], [[3], [4]]),
        plain([True, False], [True, True], [False, False]),
    ],
    errors=lambda: [
        ErrorSample((TensorType("float32"),) * 3, {}, DTypeError, "bool condition"),
        ErrorSample(
            (TensorType("bool"), TensorType("float32"), TensorType("int64")),
            {},
            DTypeError,
            "one element type",
        ),
        ErrorSample(
            (TensorType("bool", (2,)), TensorType("bool", (3,)), TensorType("bool")),
            {},
            ShapeError,
            "broadcast",
        ),
    ],
    torch=twin("where"),
    ulp=0.0,
)


_CONVERT = {"uint8": "u8", "int32": "i32", "int64": "i64", "float32": "f32", "float64": "f64"}


def _cast(source: str, /, dtype: str) -> str:
    if dtype == source:
        return "{0}"
    if dtype == "bool":
        return "{0} != 0"
    return _CONVERT[dtype] + "({0})"


def _cast_grad(g: Node, y: Node, x: Node, dtype: str) -> tuple[Node | None]:
    return (g.to(x.dtype) if is_float(x.dtype) and is_float(dtype) else None,)


cast = OpDef(
    "cast",
    Kind.POINTWISE,
    infer=lambda x, dtype: x.with_dtype(dtype),
    ref=lambda x, dtype: x.astype(dtype),
    doc="x in another element type; floats lose their fraction on the way to integers",
    attrs=lambda x, dtype: {"dtype": as_dtype(dtype)},
    scalar=_cast,
    grad=_cast_grad,
    samples=lambda rng: [
        Sample(uniform(rng, (4, 3)), {"dtype": "float64"}),
        plain(*uniform(rng, (4, 3)), dtype="float32"),  # its rounding hides a central difference
        *(plain(rng.uniform(0, 9, (2, 3)), dtype=dtype) for dtype in INTEGERS),
        *(plain(specials(), dtype=dtype) for dtype in ("bool", *FLOATS)),
        *(plain(rng.integers(-9, 9, 5), dtype=d) for d in ("bool", "int32", *FLOATS)),
        *(plain([True, False], dtype=d) for d in (*INTEGERS, *FLOATS)),
        plain(np.zeros((0, 2)), dtype="int64"),
    ],
    errors=lambda: [
        ErrorSample((TensorType("float32"),), {"dtype": "float16"}, DTypeError, "element types are")
    ],
    torch=lambda torch, x, dtype: x.to(getattr(torch, dtype)),
    ulp=0.5,
)
