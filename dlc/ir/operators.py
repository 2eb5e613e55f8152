"""Operators of symbolic tensors, and their functions of single elements; one op each.

They stand apart from the other methods so that either list reads as a table.
"""

from __future__ import annotations

from types import FunctionType
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

from dlc.errors import ArgumentError, DTypeError, explain

if TYPE_CHECKING:
    from dlc.ir.node import Node

# Methods named `float` and `int` hide the types in subclasses, so annotations use these.
Int: TypeAlias = int
Real: TypeAlias = float


def applied(op: str, *inputs: object, **attrs: Any) -> Node:
    """`dlc.ir.node.apply`, which is defined after this."""
    from dlc.ir.node import apply

    return apply(op, *inputs, **attrs)


K = TypeVar("K", bound=type)


def public(kind: K) -> K:
    """Let messages of Python name a class's methods as users know them: ``Tensor.sum()``."""
    for value in vars(kind).values():
        if isinstance(value, FunctionType):
            value.__qualname__ = f"Tensor.{value.__name__}"
    return kind


def where(condition: object, a: object, b: object) -> Node:
    """``a`` where ``condition`` holds, ``b`` elsewhere.

    Parameters
    ----------
    condition : Node
        Of bool; broadcasts with ``a`` and ``b``.
    a, b : Node, array or number
        Cast to their common element type; a number takes that of the tensor beside it.
    """
    from dlc.ir.node import Node, current_builder
    from dlc.ir.types import promote

    condition, a, b = (v._node if isinstance(v, Operators) else v for v in (condition, a, b))
    first = next((value for value in (condition, a, b) if isinstance(value, Node)), None)
    builder = current_builder() if first is None else first.builder
    x = builder.operand(a, b if isinstance(b, Node) else None)
    y = builder.operand(b, a if isinstance(a, Node) else None)
    common = promote(x.dtype, y.dtype)
    return builder.node("where", (builder.operand(condition), x.to(common), y.to(common)))


@public
class Operators:
    """Operators and elementwise methods that build nodes."""

    __slots__ = ()

    @property
    def _node(self) -> Node:
        return cast("Node", self)

    # Arithmetic operators.

    def __add__(self, other: object) -> Node:
        return applied("add", self, other)

    def __radd__(self, other: object) -> Node:
        return applied("add", other, self)

    def __sub__(self, other: object) -> Node:
        return subtract(self, other)

    def __rsub__(self, other: object) -> Node:
        return subtract(other, self)

    def __mul__(self, other: object) -> Node:
        return applied("mul", self, other)

    def __rmul__(self, other: object) -> Node:
        return applied("mul", other, self)

    def __truediv__(self, other: object) -> Node:
        return applied("div", self, other)

    def __rtruediv__(self, other: object) -> Node:
        return applied("div", other, self)

    def __floordiv__(self, other: object) -> Node:
        return applied("floor_divide", self, other)

    def __rfloordiv__(self, other: object) -> Node:
        return applied("floor_divide", other, self)

    def __mod__(self, other: object) -> Node:
        return applied("remainder", self, other)

    def __rmod__(self, other: object) -> Node:
        return applied("remainder", other, self)

    def __pow__(self, other: object) -> Node:
        node = self._node
        if isinstance(other, int) and not isinstance(other, bool) and "float" not in node.dtype:
            return _integer_power(node, other)
        return applied("pow", self, other)

    def __rpow__(self, other: object) -> Node:
        return applied("pow", other, self)

    def __neg__(self) -> Node:
        return applied("neg", self)

    def __pos__(self) -> Node:
        return self._node

    def __abs__(self) -> Node:
        return applied("abs", self)

    def __matmul__(self, other: object) -> Node:
        return applied("matmul", self, other)

    def __rmatmul__(self, other: object) -> Node:
        return applied("matmul", other, self)

    # Comparisons give tensors of bool; identity is `is`, and hashing is by identity.

    def __eq__(self, other: object) -> Any:
        return False if other is None else applied("eq", self, other)

    def __ne__(self, other: object) -> Any:
        return True if other is None else applied("ne", self, other)

    def __lt__(self, other: object) -> Node:
        return applied("lt", self, other)

    def __le__(self, other: object) -> Node:
        return applied("le", self, other)

    def __gt__(self, other: object) -> Node:
        return applied("gt", self, other)

    def __ge__(self, other: object) -> Node:
        return applied("ge", self, other)

    __hash__ = object.__hash__

    # Bit operators are logic on bools and refused elsewhere, where PyTorch works on bits.

    def __and__(self, other: object) -> Node:
        return _logical("logical_and", "&", self._node, other)

    def __or__(self, other: object) -> Node:
        return _logical("logical_or", "|", self._node, other)

    def __xor__(self, other: object) -> Node:
        return _logical("ne", "^", self._node, other)

    def __invert__(self) -> Node:
        return _logical("logical_not", "~", self._node)

    __rand__, __ror__, __rxor__ = __and__, __or__, __xor__

    # Elementwise functions.

    mul, pow, floor_divide, remainder = __mul__, __pow__, __floordiv__, __mod__
    eq, ne, lt, le, gt, ge = __eq__, __ne__, __lt__, __le__, __gt__, __ge__

    def add(self, other: object, *, alpha: Real = 1) -> Node:
        """``self + alpha * other``."""
        return applied("add", self, scaled(other, alpha))

    def sub(self, other: object, *, alpha: Real = 1) -> Node:
        """``self - alpha * other``."""
        return subtract(self, scaled(other, alpha))

    def div(self, other: object, *, rounding_mode: str | None = None) -> Node:
        """``self / other``, or rounded by "floor" or "trunc"."""
        return divide(self, other, rounding_mode)

    def maximum(self, other: object) -> Node:
        return applied("maximum", self, other)

    def minimum(self, other: object) -> Node:
        return applied("minimum", self, other)

    def logical_and(self, other: object) -> Node:
        return applied("logical_and", self, other)

    def logical_or(self, other: object) -> Node:
        return applied("logical_or", self, other)

    def logical_not(self) -> Node:
        return applied("logical_not", self)

    def isnan(self) -> Node:
        return applied("isnan", self)

    def neg(self) -> Node:
        return -self

    def abs(self) -> Node:
        return applied("abs", self)

    def sign(self) -> Node:
        return applied("sign", self)

    def floor(self) -> Node:
        return applied("floor", self)

    def ceil(self) -> Node:
        return applied("ceil", self)

    def round(self, decimals: Int = 0) -> Node:
        """To the nearest integer, or multiple of 10 to the power -``decimals``; halves to even."""
        if not decimals:
            return applied("round", self)
        require_float("round to decimals", self._node)
        scale = 10.0 ** abs(decimals)
        return (self * scale).round() / scale if decimals > 0 else (self / scale).round() * scale

    def trunc(self) -> Node:
        return applied("trunc", self)

    def exp(self) -> Node:
        return applied("exp", self)

    def expm1(self) -> Node:
        return applied("expm1", self)

    def log(self) -> Node:
        return applied("log", self)

    def log1p(self) -> Node:
        return applied("log1p", self)

    def sqrt(self) -> Node:
        return applied("sqrt", self)

    def rsqrt(self) -> Node:
        return applied("rsqrt", self)

    def reciprocal(self) -> Node:
        return applied("reciprocal", self)

    def square(self) -> Node:
        return applied("square", self)

    def sin(self) -> Node:
        return applied("sin", self)

    def cos(self) -> Node:
        return applied("cos", self)

    def tanh(self) -> Node:
        return applied("tanh", self)

    def sigmoid(self) -> Node:
        return applied("sigmoid", self)

    def erf(self) -> Node:
        return applied("erf", self)

    def relu(self) -> Node:
        return applied("relu", self)

    def clamp(self, min: Node | Real | None = None, max: Node | Real | None = None) -> Node:
        """Elements held between ``min`` and ``max``, either of which may be absent."""
        if isinstance(min, Operators) or isinstance(max, Operators):
            raised = self._node if min is None else self.maximum(min)
            return raised if max is None else raised.minimum(max)
        return applied("clamp", self, low=min, high=max)

    def where(self, condition: Node, other: object) -> Node:
        """This tensor where ``condition`` holds, ``other`` elsewhere."""
        return where(condition, self, other)

    def masked_fill(self, mask: Node, value: Real) -> Node:
        """``value`` where ``mask`` holds, this tensor elsewhere."""
        return where(mask, value, self)


def _logical(op: str, symbol: str, node: Node, *others: object) -> Node:
    for value in (node, *others):
        dtype = getattr(value, "dtype", "bool" if isinstance(value, bool) else type(value).__name__)
        if str(dtype) != "bool":
            raise DTypeError(
                f"{symbol} expects bool tensors, got {dtype} ({node.describe()}); "
                "compare first, as in (x != 0)"
            )
    return applied(op, node, *others)


def _integer_power(node: Node, exponent: int) -> Node:
    """``node ** exponent`` on integers as products, by repeated squaring."""
    if exponent < 0:
        raise DTypeError(
            f"pow expects an exponent >= 0 for {node.dtype}, got {exponent} ({node.describe()}); "
            "cast with x.float()"
        )
    node = applied("cast", node, dtype="int64") if node.dtype == "bool" else node
    result, base = None, node
    while exponent:
        if exponent & 1:
            result = base if result is None else result * base
        exponent >>= 1
        base = base * base if exponent else base
    return node * 0 + 1 if result is None else result


def subtract(a: object, b: object) -> Node:
    """``a - b`` of numbers; of bools PyTorch has no difference either."""
    for value in (a, b):
        if isinstance(value, bool) or str(getattr(value, "dtype", "")) == "bool":
            raise DTypeError(
                f"sub expects numbers, got a bool{_place(a, b)}; invert a mask with ~mask, compare "
                "two with mask != other, or cast with mask.long() or mask.float()"
            )
    return applied("sub", a, b)


def scaled(value: Any, alpha: Real) -> Any:
    """``alpha * value``, where ``alpha`` may be a float only beside floats."""
    if alpha == 1:
        return value
    if isinstance(alpha, float) and isinstance(value, Operators):
        require_float(f"alpha={alpha}", value._node)
    return value * alpha


def divide(a: object, b: object, rounding_mode: str | None = None) -> Node:
    """``a / b``, or rounded down ("floor") or towards zero ("trunc")."""
    if rounding_mode is None:
        return applied("div", a, b)
    if rounding_mode not in ("floor", "trunc"):
        expected, got = "rounding_mode None, 'floor' or 'trunc'", repr(rounding_mode)
        raise ArgumentError(explain("div", expected, got, where=_place(a, b).strip()))
    down = applied("floor_divide", a, b)
    if rounding_mode == "floor":
        return down
    if "float" in down.dtype:
        return applied("div", a, b).trunc()
    short: Node = (applied("remainder", a, b) != 0) & (applied("lt", a, 0) ^ applied("lt", b, 0))
    return down + short


def require_float(what: str, node: Node) -> None:
    """Refuse element types that are not floats."""
    if "float" not in node.dtype:
        raise DTypeError(
            f"{what} expects floats, got {node.dtype}{node._here()}; cast with x.float(). The "
            f"tensor is {node.describe()}"
        )


def _place(*values: object) -> str:
    """Where the user's program is, as a tensor among the values knows."""
    tensors = [value for value in values if isinstance(value, Operators)]
    return tensors[0]._node._here() if tensors else ""
