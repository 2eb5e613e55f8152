"""Pointwise arithmetic as instructions: named functions, and expressions in text.

Kernel source reaches these functions one by one as intrinsics on scalars; a tile's epilogue is an
expression in the same spelling, emitted here on whole vectors.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from functools import cache

from dlc.backends.native import elementary
from dlc.backends.native.arithmetic import Arithmetic, Value
from dlc.errors import CompileError

__all__ = ["FUNCTIONS", "Emitter", "emit_expression"]


class Emitter(Arithmetic):
    """`Arithmetic` with the elementary functions: all that an expression may call, by name."""

    def call(self, name: str, *operands: Value) -> Value:
        """The function `name` of `FUNCTIONS` at `operands`.

        Raises
        ------
        CompileError
            If there is no such function, or it takes another number of operands.
        """
        if name not in FUNCTIONS:
            raise CompileError(
                f"no function {name}; kernels may call {', '.join(sorted(FUNCTIONS))}"
            )
        arity, function = FUNCTIONS[name]
        if len(operands) != arity:
            raise CompileError(
                f"{name} takes {arity} operand{'s' * (arity > 1)}, got {len(operands)}"
            )
        return function(self, *operands)


# Name -> number of operands, builder.
FUNCTIONS: Mapping[str, tuple[int, Callable[..., Value]]] = {
    "abs": (1, Arithmetic.abs),
    "ceil": (1, Arithmetic.ceil),
    "copysign": (2, Arithmetic.copysign),
    "cos": (1, elementary.cos),
    "erf": (1, elementary.erf),
    "exp": (1, elementary.exp),
    "expm1": (1, elementary.expm1),
    "floor": (1, Arithmetic.floor),
    "fma": (3, Arithmetic.fma),
    "fmax": (2, Arithmetic.fmax),
    "fmin": (2, Arithmetic.fmin),
    "isnan": (1, Arithmetic.isnan),
    "log": (1, elementary.log),
    "log1p": (1, elementary.log1p),
    "pow": (2, elementary.pow),
    "relu": (1, Arithmetic.relu),
    "round": (1, Arithmetic.round),
    "rsqrt": (1, elementary.rsqrt),
    "sigmoid": (1, elementary.sigmoid),
    "sin": (1, elementary.sin),
    "sqrt": (1, Arithmetic.sqrt),
    "tanh": (1, elementary.tanh),
    "trunc": (1, Arithmetic.trunc),
}

_COMPARISONS = {
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.GtE: ">=",
    ast.Gt: ">",
}
_ARITHMETIC = {ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "div"}


def emit_expression(emitter: Emitter, expression: str, names: Mapping[str, Value]) -> Value:
    """Emit a Python expression.

    Parameters
    ----------
    emitter : Emitter
        Gives the type: of every name, and of every number in the expression.
    expression : str
        `+ - * /`, unary minus, one comparison at a time, `and`, `or`, `not`, `a if c else b`,
        numbers, and calls of `FUNCTIONS`; a choice evaluates both its sides.
    names : mapping of str to llvmlite.ir.Value
        The values of the names in it.

    Raises
    ------
    CompileError
        If it uses anything else, or a name that is not given.
    """
    tree = _parsed(expression)

    def emit(node: ast.expr) -> Value:
        match node:
            case ast.Constant(value=bool()):
                pass
            case ast.Constant(value=int() | float() as value):
                return emitter.constant(value)
            case ast.Name(id=name) if name in names:
                return names[name]
            case ast.Name(id="inf" | "nan" as name):
                return emitter.constant(float(name))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return emitter.neg(emit(operand))
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return emitter.builder.not_(emit(operand))
            case ast.BinOp(left=left, op=operator, right=right) if type(operator) in _ARITHMETIC:
                return getattr(emitter, _ARITHMETIC[type(operator)])(emit(left), emit(right))
            case ast.BoolOp(op=operator, values=values):
                both = isinstance(operator, ast.And)
                join = emitter.builder.and_ if both else emitter.builder.or_
                result, *rest = map(emit, values)
                for value in rest:
                    result = join(result, value)
                return result
            case ast.Compare(left=left, ops=[operator], comparators=[right]) if (
                type(operator) in _COMPARISONS
            ):
                return emitter.compare(_COMPARISONS[type(operator)], emit(left), emit(right))
            case ast.IfExp(test=test, body=body, orelse=orelse):
                return emitter.select(emit(test), emit(body), emit(orelse))
            case ast.Call(func=ast.Name(id=name), args=operands, keywords=[]):
                return emitter.call(name, *map(emit, operands))
        raise CompileError(
            f"a pointwise expression cannot hold {ast.unparse(node)!r} (in {expression!r}); it may "
            f"use {', '.join(sorted(names))}, numbers, + - * /, comparisons, and, or, not, "
            f"a if c else b, and {', '.join(sorted(FUNCTIONS))}"
        )

    return emit(tree.body)


@cache
def _parsed(expression: str) -> ast.Expression:
    """An expression's tree; a tile emits one expression hundreds of times."""
    try:
        return ast.parse(expression, mode="eval")
    except SyntaxError as error:
        raise CompileError(f"{expression!r} is no expression: {error}") from error
