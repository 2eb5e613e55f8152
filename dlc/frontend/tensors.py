"""Functions of tensors, the ones that PyTorch has at its top level: dlc.exp, dlc.cat, dlc.zeros.

Most are methods of tensors too (`dlc.ir.arithmetic`), and are made from them here, so that function
and method cannot drift apart. They build graphs: outside a trace only the creation functions and
`rand` and `randn` work, and give NumPy arrays, ready for a Parameter or a buffer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np

from dlc.errors import ArgumentError, ShapeError, explain
from dlc.frontend.parameter import Variable
from dlc.frontend.random import rand as rand
from dlc.frontend.random import randn as randn
from dlc.frontend.scope import active, here
from dlc.ir.arithmetic import Arithmetic
from dlc.ir.arithmetic import where as where
from dlc.ir.node import Node, apply, current_builder
from dlc.ir.operators import divide, scaled, subtract
from dlc.ir.sizes import Dim, Poly, Size, as_size
from dlc.ir.types import as_dtype

#: The functions that `dlc` has at its top level.
EXPORTS = (
    *("abs", "ceil", "clamp", "cos", "erf", "exp", "expm1", "floor", "isnan", "log", "log1p"),
    *("logical_not", "neg", "reciprocal", "relu", "round", "rsqrt", "sigmoid", "sign", "sin"),
    *("sqrt", "square", "tanh", "trunc", "cast"),
    *("all", "amax", "amin", "any", "argmax", "argmin", "logsumexp", "max", "mean", "min", "prod"),
    *("std", "sum", "var", "softmax", "log_softmax"),
    *("chunk", "flatten", "flip", "gather", "index_select", "permute", "reshape", "scatter_add"),
    *("split", "squeeze", "transpose", "unbind", "unsqueeze", "cat", "stack"),
    *("add", "sub", "mul", "div", "floor_divide", "remainder", "pow", "maximum", "minimum"),
    *("eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "where"),
    *("matmul", "mm", "bmm"),
    *("tensor", "full", "zeros", "ones", "full_like", "zeros_like", "ones_like", "arange", "eye"),
    *("rand", "randn"),
)
__all__ = ["EXPORTS", "as_tensor", *EXPORTS]

P = ParamSpec("P")
R = TypeVar("R")
Array = np.ndarray[Any, Any]


def as_tensor(value: object) -> Node:
    """``value`` as a symbolic tensor: a tensor itself, a parameter, an array or a number."""
    return value._node if isinstance(value, Arithmetic) else current_builder().operand(value)


def _function(method: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[object, P], R]:
    """The function that ``method`` is of its tensor, which may also be an array or a number."""

    @functools.wraps(method)
    def function(input: object, *args: P.args, **kwargs: P.kwargs) -> R:
        return method(as_tensor(input), *args, **kwargs)

    return function


# Of one tensor, element by element.
abs = _function(Arithmetic.abs)
ceil = _function(Arithmetic.ceil)
clamp = _function(Arithmetic.clamp)
cos = _function(Arithmetic.cos)
erf = _function(Arithmetic.erf)
exp = _function(Arithmetic.exp)
expm1 = _function(Arithmetic.expm1)
floor = _function(Arithmetic.floor)
isnan = _function(Arithmetic.isnan)
log = _function(Arithmetic.log)
log1p = _function(Arithmetic.log1p)
logical_not = _function(Arithmetic.logical_not)
neg = _function(Arithmetic.neg)
reciprocal = _function(Arithmetic.reciprocal)
relu = _function(Arithmetic.relu)
round = _function(Arithmetic.round)
rsqrt = _function(Arithmetic.rsqrt)
sigmoid = _function(Arithmetic.sigmoid)
sign = _function(Arithmetic.sign)
sin = _function(Arithmetic.sin)
sqrt = _function(Arithmetic.sqrt)
square = _function(Arithmetic.square)
tanh = _function(Arithmetic.tanh)
trunc = _function(Arithmetic.trunc)

# Reductions.
all = _function(Arithmetic.all)
amax = _function(Arithmetic.amax)
amin = _function(Arithmetic.amin)
any = _function(Arithmetic.any)
argmax = _function(Arithmetic.argmax)
argmin = _function(Arithmetic.argmin)
logsumexp = _function(Arithmetic.logsumexp)
max = _function(Arithmetic.max)
mean = _function(Arithmetic.mean)
min = _function(Arithmetic.min)
prod = _function(Arithmetic.prod)
std = _function(Arithmetic.std)
sum = _function(Arithmetic.sum)
var = _function(Arithmetic.var)

softmax = _function(Arithmetic.softmax)
log_softmax = _function(Arithmetic.log_softmax)

# Shapes and parts.
chunk = _function(Arithmetic.chunk)
flatten = _function(Arithmetic.flatten)
gather = _function(Arithmetic.gather)
index_select = _function(Arithmetic.index_select)
scatter_add = _function(Arithmetic.scatter_add)
split = _function(Arithmetic.split)
squeeze = _function(Arithmetic.squeeze)
transpose = _function(Arithmetic.transpose)
unbind = _function(Arithmetic.unbind)
unsqueeze = _function(Arithmetic.unsqueeze)


def flip(input: object, dims: Sequence[int]) -> Node:
    """``input`` backwards along some dimensions."""
    return as_tensor(input).flip(dims)


def permute(input: object, dims: Sequence[int]) -> Node:
    """``input`` with its dimensions in another order."""
    return as_tensor(input).permute(dims)


def reshape(input: object, shape: Sequence[Any]) -> Node:
    """The same elements in another shape; one size may be -1."""
    return as_tensor(input).reshape(shape)


def cast(input: object, dtype: object) -> Node:
    """``input`` in another element type; integers are truncated from floats."""
    return as_tensor(input).to(dtype)


# Of two tensors, broadcast.


def _binary(op: str, doc: str) -> Callable[[object, object], Node]:
    def function(input: object, other: object) -> Node:
        return apply(op, input, other)

    function.__name__ = function.__qualname__ = op
    function.__doc__ = f"{doc}, element by element; shapes broadcast, element types promote."
    return function


mul = _binary("mul", "``input * other``")
floor_divide = _binary("floor_divide", "``input // other``")
remainder = _binary("remainder", "``input % other``")
maximum = _binary("maximum", "The greater of two (NaN wins)")
minimum = _binary("minimum", "The lesser of two (NaN wins)")
eq = _binary("eq", "``input == other``")
ne = _binary("ne", "``input != other``")
lt = _binary("lt", "``input < other``")
le = _binary("le", "``input <= other``")
gt = _binary("gt", "``input > other``")
ge = _binary("ge", "``input >= other``")
logical_and = _binary("logical_and", "Whether both hold")
logical_or = _binary("logical_or", "Whether one holds or both")


def add(input: object, other: object, *, alpha: float = 1) -> Node:
    """``input + alpha * other``, element by element; shapes broadcast, element types promote."""
    return apply("add", input, scaled(other, alpha))


def sub(input: object, other: object, *, alpha: float = 1) -> Node:
    """``input - alpha * other``, element by element; shapes broadcast, element types promote."""
    return subtract(input, scaled(other, alpha))


def div(input: object, other: object, *, rounding_mode: str | None = None) -> Node:
    """``input / other``, or rounded by "floor" or "trunc", element by element."""
    return divide(input, other, rounding_mode)


def pow(input: object, exponent: object) -> Node:
    """``input ** exponent``, element by element."""
    if isinstance(input, Arithmetic):
        return input**exponent
    return apply("pow", input, exponent)


def matmul(input: object, other: object) -> Node:
    """The matrix product over the last two dimensions, the others broadcast, as `numpy.matmul`."""
    return apply("matmul", input, other)


def mm(input: object, mat2: object) -> Node:
    """The product of two matrices (M, K) and (K, N)."""
    return _product("mm", input, mat2, 2)


def bmm(input: object, mat2: object) -> Node:
    """The products of two batches of matrices (B, M, K) and (B, K, N)."""
    return _product("bmm", input, mat2, 3)


def _product(name: str, a: object, b: object, ndim: int) -> Node:
    left, right = as_tensor(a), as_tensor(b)
    if left.ndim != ndim or right.ndim != ndim:
        got = f"{left.type} and {right.type}"
        advice = "Use matmul for products that broadcast."
        raise ShapeError(explain(name, f"two tensors of {ndim} dimensions", got, advice=advice))
    return apply("matmul", left, right)


# Of several tensors.


def cat(tensors: Sequence[object], dim: int = 0) -> Node:
    """Tensors one after the other along an existing dimension."""
    return apply("concat", *_several("cat", tensors), axis=dim)


def stack(tensors: Sequence[object], dim: int = 0) -> Node:
    """Tensors of one shape side by side along a new dimension."""
    return cat([tensor.unsqueeze(dim) for tensor in _several("stack", tensors)], dim)


def _several(name: str, tensors: Sequence[object]) -> list[Node]:
    if isinstance(tensors, (Arithmetic, np.ndarray)) or not tensors:
        got = "one tensor" if isinstance(tensors, Arithmetic) else repr(tensors)
        raise ArgumentError(explain(name, "a list of one or more tensors", got))
    return [as_tensor(tensor) for tensor in tensors]


# New tensors: symbolic inside a trace, NumPy arrays outside.


def tensor(data: object, dtype: object = None) -> Any:
    """A tensor with given values; Python floats become float32.

    Inside a trace they are a constant of the graph.
    """
    if isinstance(data, (Poly, Dim)):
        data = current_builder().operand(data)
    if isinstance(data, Arithmetic):
        return data._node if dtype is None else data._node.to(dtype)
    array = np.array(data, dtype=None if dtype is None else as_dtype(dtype))
    if dtype is None and array.dtype == np.float64 and not hasattr(data, "dtype"):
        array = array.astype(np.float32)
    return array if active() is None else current_builder().constant(array)


def full(size: Any, fill_value: float, dtype: object = None) -> Any:
    """A tensor of one value; ``size`` is a sequence of sizes, each an int, a Dim or a shape's."""
    value = tensor(fill_value, dtype)
    shape = tuple(as_size(n) for n in (size if isinstance(size, (tuple, list)) else (size,)))
    if active() is None:
        return np.full(shape, value)
    return value.expand(shape)


def zeros(*size: Any, dtype: object = "float32") -> Any:
    """A tensor of zeros; sizes one by one or as one sequence."""
    return full(_sizes(size), 0, dtype)


def ones(*size: Any, dtype: object = "float32") -> Any:
    """A tensor of ones; sizes one by one or as one sequence."""
    return full(_sizes(size), 1, dtype)


def full_like(input: Any, fill_value: float, dtype: object = None) -> Any:
    """A tensor of one value with the shape of ``input``, and its element type unless told."""
    shape, own = (input.shape, input.dtype) if _has_type(input) else (np.shape(input), None)
    return full(tuple(shape), fill_value, own if dtype is None else dtype)


def zeros_like(input: object, dtype: object = None) -> Any:
    """Zeros with the shape of ``input``, and its element type unless told."""
    return full_like(input, 0, dtype)


def ones_like(input: object, dtype: object = None) -> Any:
    """Ones with the shape of ``input``, and its element type unless told."""
    return full_like(input, 1, dtype)


def arange(start: Any, end: Any = None, step: float = 1, dtype: object = None) -> Any:
    """The numbers from ``start`` to before ``end`` (from 0 to before ``start``, if alone).

    They are int64 where all three are integers and float32 otherwise, unless told. Inside a trace
    the ends may be symbolic sizes, if ``step`` is a positive integer.

    Raises
    ------
    ArgumentError
        The step does not lead from ``start`` to ``end``.
    """
    first, last = (0, start) if end is None else (start, end)
    symbolic = isinstance(first, (Poly, Dim)) or isinstance(last, (Poly, Dim))
    whole = not {float, np.float32, np.float64} & {type(first), type(last), type(step)}
    kind = ("int64" if whole else "float32") if dtype is None else as_dtype(dtype)
    if step == 0 or (not symbolic and (last - first) * step < 0):
        expected, got = f"a step that leads from {first} to {last}", repr(step)
        raise ArgumentError(explain("arange", expected, got, where=here()))
    if active() is not None and whole and step > 0:
        return _range(first, last, int(step), kind)
    if symbolic:
        expected = "a step of 1, 2, ... where an end is a symbolic size"
        raise ArgumentError(explain("arange", expected, repr(step), where=here()))
    return tensor(np.arange(first, last, step), kind)


def _range(first: Any, last: Any, step: int, dtype: str) -> Node:
    """`arange` in a graph: a count by index arithmetic, so that no array of it is stored."""
    count: Size = (as_size(last) - as_size(first) + (step - 1)) // step
    numbers = apply("iota", size=count, dtype=dtype)
    numbers = numbers if step == 1 else numbers * step
    return numbers if isinstance(first, int) and first == 0 else numbers + first


def eye(n: Any, m: Any = None, dtype: object = "float32") -> Any:
    """The identity matrix of n rows and m columns (n, unless told)."""
    if isinstance(n, (Poly, Dim)) or isinstance(m, (Poly, Dim)):
        columns = arange(n if m is None else m)
        return (arange(n).unsqueeze(1) == columns).to(dtype)
    return tensor(np.eye(n, m, dtype=as_dtype(dtype)))


def _sizes(size: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(size[0]) if len(size) == 1 and isinstance(size[0], (tuple, list)) else size


def _has_type(value: object) -> bool:
    return isinstance(value, (Arithmetic, Variable, np.ndarray))
