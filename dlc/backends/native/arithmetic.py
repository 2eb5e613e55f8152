"""Floating-point arithmetic on scalars or on vectors, written once for both.

A register tile holds vectors and kernel source holds scalars that LLVM vectorises later; what is
built through `Arithmetic` serves both, with the same operations in the same order and so the same
bits.
"""

from __future__ import annotations

import math
from typing import TypeAlias

from llvmlite import ir

from dlc.backends.native.isa import Isa

Value: TypeAlias = ir.Value

_LETTERS = {"float32": "f32", "float64": "f64"}


class Arithmetic:
    """Builds floating-point operations of one type.

    Parameters
    ----------
    builder : llvmlite.ir.IRBuilder
        Where the instructions go.
    type : llvmlite.ir.Type
        float, double, or a vector of either.
    isa : Isa
        The level; without its `fma`, `fma` multiplies and then adds.

    Attributes
    ----------
    dtype : str
        "float32" or "float64".
    lanes : int
        Elements of a vector; 0 for a scalar.
    digits : int
        Bits of the fraction as it is stored: 23 or 52.
    bias : int
        Bias of the exponent: 127 or 1023.
    integers : llvmlite.ir.Type
        The integer type of the same shape and width.
    """

    def __init__(self, builder: ir.IRBuilder, type: ir.Type, isa: Isa) -> None:
        self.builder, self.type, self.isa = builder, type, isa
        vector = isinstance(type, ir.VectorType)
        self.lanes = type.count if vector else 0
        self.element = type.element if vector else type
        single = isinstance(self.element, ir.FloatType)
        self.dtype = "float32" if single else "float64"
        self.digits, self.bias = (23, 127) if single else (52, 1023)
        self.integers = self._shaped(ir.IntType(32 if single else 64))
        self.booleans = self._shaped(ir.IntType(1))

    def _shaped(self, element: ir.Type) -> ir.Type:
        return ir.VectorType(element, self.lanes) if self.lanes else element

    def wide(self) -> Arithmetic:
        """The same arithmetic in float64, for what float32 cannot hold on the way."""
        return Arithmetic(self.builder, self._shaped(ir.DoubleType()), self.isa)

    # Constants and conversions.

    def constant(self, value: float) -> Value:
        """`value` in every lane, rounded to the type."""
        if self.lanes and value == 0 and math.copysign(1, value) > 0:
            return ir.Constant(self.type, None)  # the same, and shorter to write down
        return ir.Constant(self.type, [float(value)] * self.lanes if self.lanes else float(value))

    def integer(self, value: int) -> Value:
        """`value` in every lane, as an integer of the type's width."""
        return ir.Constant(self.integers, [value] * self.lanes if self.lanes else value)

    def splat(self, scalar: Value) -> Value:
        """A scalar in every lane; the scalar itself where the type is a scalar."""
        if not self.lanes:
            return scalar
        empty = ir.Constant(self.type, ir.Undefined)
        first = self.builder.insert_element(empty, scalar, ir.Constant(ir.IntType(32), 0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(first, empty, zeros)

    def bits(self, x: Value) -> Value:
        """The bit pattern of floats, as integers."""
        return self.builder.bitcast(x, self.integers)

    def from_bits(self, x: Value) -> Value:
        """Floats of a bit pattern."""
        return self.builder.bitcast(x, self.type)

    def extend(self, x: Value) -> Value:
        """float32 to the type of `wide()`."""
        return self.builder.fpext(x, self.wide().type)

    def narrow(self, x: Value) -> Value:
        """A value of `wide()` rounded to this type."""
        return self.builder.fptrunc(x, self.type)

    # Arithmetic.

    def add(self, x: Value, y: Value) -> Value:
        return self.builder.fadd(x, y)

    def sub(self, x: Value, y: Value) -> Value:
        return self.builder.fsub(x, y)

    def mul(self, x: Value, y: Value) -> Value:
        return self.builder.fmul(x, y)

    def div(self, x: Value, y: Value) -> Value:
        return self.builder.fdiv(x, y)

    def neg(self, x: Value) -> Value:
        return self.builder.fneg(x)

    def fma(self, x: Value, y: Value, z: Value) -> Value:
        """x * y + z, rounded once where the level has a fused multiply-add, else twice."""
        if self.isa.fma:
            return self._intrinsic("fma", x, y, z)
        return self.add(self.mul(x, y), z)

    def horner(self, x: Value, coefficients: tuple[float, ...]) -> Value:
        """The polynomial of `coefficients` (constant term first) at x."""
        *rest, last = (self.constant(c) for c in coefficients)
        for coefficient in reversed(rest):
            last = self.fma(last, x, coefficient)
        return last

    def sqrt(self, x: Value) -> Value:
        return self._intrinsic("sqrt", x)

    def abs(self, x: Value) -> Value:
        return self._intrinsic("fabs", x)

    def copysign(self, x: Value, sign: Value) -> Value:
        return self._intrinsic("copysign", x, sign)

    def floor(self, x: Value) -> Value:
        return self._intrinsic("floor", x)

    def ceil(self, x: Value) -> Value:
        return self._intrinsic("ceil", x)

    def trunc(self, x: Value) -> Value:
        return self._intrinsic("trunc", x)

    def round(self, x: Value) -> Value:
        """To the nearest integer, halves to the even one."""
        return self._intrinsic("roundeven", x)

    # Comparison and choice.

    def compare(self, operator: str, x: Value, y: Value) -> Value:
        """x `operator` y (`<`, `<=`, `==`, `!=`, `>=`, `>`) as Python has it.

        A NaN makes every comparison false but `!=`, which it makes true.
        """
        if operator == "!=":
            return self.builder.fcmp_unordered(operator, x, y)
        return self.builder.fcmp_ordered(operator, x, y)

    def select(self, condition: Value, x: Value, y: Value) -> Value:
        """x where `condition`, else y."""
        return self.builder.select(condition, x, y)

    def isnan(self, x: Value) -> Value:
        return self.builder.fcmp_unordered("uno", x, x)

    def fmax(self, x: Value, y: Value) -> Value:
        """The larger one; NaN if either is NaN."""
        larger = self.select(self.compare(">", x, y), x, y)
        return self.select(self.isnan(x), x, larger)

    def fmin(self, x: Value, y: Value) -> Value:
        """The smaller one; NaN if either is NaN."""
        smaller = self.select(self.compare("<", x, y), x, y)
        return self.select(self.isnan(x), x, smaller)

    def relu(self, x: Value) -> Value:
        """0 where x < 0, else x: NaN and -0.0 stay what they are, as in PyTorch."""
        return self.select(self.compare("<", x, self.constant(0.0)), self.constant(0.0), x)

    def clamp(self, x: Value, low: float, high: float) -> Value:
        """x kept within [low, high]; NaN stays NaN."""
        lowest = self.constant(low)
        return self.at_most(self.select(self.compare("<", x, lowest), lowest, x), high)

    def at_most(self, x: Value, high: float) -> Value:
        """x, or `high` where x is larger; NaN stays NaN."""
        highest = self.constant(high)
        return self.select(self.compare(">", x, highest), highest, x)

    def _intrinsic(self, name: str, *operands: Value) -> Value:
        suffix = f"v{self.lanes}" if self.lanes else ""
        symbol = f"llvm.{name}.{suffix}{_LETTERS[self.dtype]}"
        function = self.builder.module.globals.get(symbol)
        if function is None:
            kind = ir.FunctionType(self.type, [self.type] * len(operands))
            function = ir.Function(self.builder.module, kind, symbol)
        return self.builder.call(function, operands)
