"""The names that kernel source may use, as Numba intrinsics.

Pointwise functions come from `emit.FUNCTIONS`, so that kernels and tiles compute the same bits;
what touches memory is written here. They are chosen per level: `fma` is a fused multiply-add only
where the level has one.

The pointwise functions take operands of one type, float32 or float64; `abs` takes integers too.
Besides them:

==============================  ===================================================================
`inf`, `nan`                    constants
`f32(x)`, `f64(x)`              conversion to float32, float64
`i64(x)`, `i32(x)`, `u8(x)`     conversion to an integer, towards zero
`plus`, `minus`, `times`        of two integers, as int64 that wraps around; + - * must not
`div(a, b)`, `mod(a, b)`        quotient and remainder of int64, a >= 0 and b > 0
`philox(index, key, call)`      63 random bits, as int64
`at(p, offset)`                 the pointer `p` moved by `offset` elements
`local(n, dtype)`               scratch of n elements on the stack; n a literal, dtype `f32`...
`claim(p, offset)`              ask for the cache line of p[offset], to write it
`raise_error(words, code, at)`  words[0], words[1] = code, at; the first error wins
==============================  ===================================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from dlc.backends.native.emit import FUNCTIONS, Emitter
from dlc.backends.native.isa import CACHE_LINE, Isa

_FLOATS = (types.float32, types.float64)


@cache
def namespace(isa: Isa) -> Mapping[str, Any]:
    """What kernel source for `isa` finds under the names above."""
    pointwise = {name: _pointwise(name, arity, isa) for name, (arity, _) in FUNCTIONS.items()}
    return MappingProxyType(
        pointwise
        | {"f32": types.float32, "f64": types.float64}
        | {"i64": types.int64, "i32": types.int32, "u8": types.uint8}
        | {"inf": math.inf, "nan": math.nan}
        | {name: _wrapping(name, how) for name, how in _WRAPPING.items()}
        | {"div": _div, "mod": _mod, "at": _at, "local": _local}
        | {"claim": _claim, "raise_error": _raise_error, "philox": _philox}
    )


def _pointwise(name: str, arity: int, isa: Isa) -> Any:
    """The function `name` of `emit.FUNCTIONS` as an intrinsic on scalars."""

    def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
        return Emitter(builder, operands[0].type, isa).call(name, *operands)

    def signature(*operands: Any) -> Any:
        if name == "abs" and isinstance(operands[0], types.Integer):
            return operands[0](*operands), _integer_abs
        if operands[0] not in _FLOATS or len(set(operands)) > 1:
            return None
        result = types.boolean if name == "isnan" else operands[0]
        return result(*operands), generate

    # Numba reads the number of operands off the definition.
    definitions: dict[int, Callable[..., Any]] = {
        1: lambda typing, x: signature(x),
        2: lambda typing, x, y: signature(x, y),
        3: lambda typing, x, y, z: signature(x, y, z),
    }
    definition = definitions[arity]
    definition.__name__ = definition.__qualname__ = name
    return intrinsic(definition)


def _integer_abs(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
    [x] = operands
    if not signature.return_type.signed:
        return x
    negative = builder.icmp_signed("<", x, x.type(0))
    return builder.select(negative, builder.neg(x), x)


#: Of integers, by the method of the builder.
_WRAPPING = {"plus": "add", "minus": "sub", "times": "mul"}


def _wrapping(name: str, how: str) -> Any:
    """Arithmetic on int64 whose result may overflow."""

    def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
        return getattr(builder, how)(*operands)

    def definition(typing: Any, a: Any, b: Any) -> Any:
        return types.int64(types.int64, types.int64), generate

    definition.__name__ = definition.__qualname__ = name
    return intrinsic(definition)


@intrinsic
def _div(typing: Any, a: Any, b: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
        return builder.sdiv(*operands)

    return types.int64(types.int64, types.int64), generate


@intrinsic
def _mod(typing: Any, a: Any, b: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
        return builder.srem(*operands)

    return types.int64(types.int64, types.int64), generate


@intrinsic
def _at(typing: Any, pointer: Any, offset: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
        return builder.gep(operands[0], [operands[1]])

    return pointer(pointer, types.int64), generate


@intrinsic(prefer_literal=True)
def _local(typing: Any, count: Any, dtype: Any) -> Any:
    if not isinstance(count, types.IntegerLiteral) or not isinstance(dtype, types.NumberClass):
        return None
    element = dtype.instance_type

    def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
        # In the entry block, so that a loop around the call does not grow the stack.
        array = ir.ArrayType(context.get_data_type(element), count.literal_value)
        with builder.goto_entry_block():
            memory = builder.alloca(array)
            memory.align = CACHE_LINE
        return builder.bitcast(memory, array.element.as_pointer())

    return types.CPointer(element)(count, dtype), generate


@intrinsic
def _claim(typing: Any, pointer: Any, offset: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
        byte = ir.IntType(8).as_pointer()
        address = builder.bitcast(builder.gep(operands[0], [operands[1]]), byte)
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        function = builder.module.globals.get("llvm.prefetch.p0")
        if function is None:
            function = ir.Function(builder.module, kind, "llvm.prefetch.p0")
        # Write; keep in every cache level; data rather than instructions.
        builder.call(function, [address, *(ir.Constant(number, value) for value in (1, 3, 1))])
        return context.get_dummy_value()

    return types.void(pointer, types.int64), generate


@intrinsic
def _raise_error(typing: Any, words: Any, code: Any, position: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
        words, code, position = operands
        old = builder.cmpxchg(words, ir.Constant(ir.IntType(64), 0), code, "acq_rel", "monotonic")
        with builder.if_then(builder.extract_value(old, 1), likely=False):
            builder.store(position, builder.gep(words, [ir.Constant(ir.IntType(64), 1)]))
        return context.get_dummy_value()

    return types.void(words, types.int64, types.int64), generate


@intrinsic
def _philox(typing: Any, index: Any, key: Any, call: Any) -> Any:
    """Philox 4x32 with ten rounds, as `dlc.ops.random` has it: the first two words of four."""

    def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
        def half(x: Any) -> Any:
            return builder.lshr(x, x.type(32))

        def low(x: Any) -> Any:
            return builder.and_(x, x.type(0xFFFFFFFF))

        index, key, call = operands
        a, b, c, d = low(index), half(index), low(call), half(call)
        for turn in range(10):
            first, second = (
                builder.mul(x, x.type(m)) for x, m in ((a, 0xD2511F53), (c, 0xCD9E8D57))
            )
            keys = [
                low(builder.add(k, k.type(turn * step)))
                for k, step in ((low(key), 0x9E3779B9), (half(key), 0xBB67AE85))
            ]
            mixed = [
                builder.xor(builder.xor(half(product), x), k)
                for product, x, k in ((second, b, keys[0]), (first, d, keys[1]))
            ]
            a, b, c, d = mixed[0], low(second), mixed[1], low(first)
        return builder.or_(builder.shl(a, a.type(31)), builder.lshr(b, b.type(1)))

    return types.int64(types.int64, types.int64, types.int64), generate
