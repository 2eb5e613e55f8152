"""Elementary functions as branch-free arithmetic, so that loops over them vectorise.

Each reduces its argument exactly, or as good as, to where a short polynomial of `coefficients.py`
holds, and puts the result together in an order that leaves the last rounding to dominate. Choices
are selects. All of them keep NaN, infinities, signed zeros and denormals as IEEE 754 and C have
them; `docs/elementary_functions.md` has the errors measured and how the polynomials came about.
"""

from __future__ import annotations

import math

from llvmlite import ir

from dlc.backends.native.arithmetic import Arithmetic, Value
from dlc.backends.native.coefficients import COEFFICIENTS

# Beyond these exp is infinite or rounds to 0, the others round to their limits.
_EXP_LOW = {"float32": -104.0, "float64": -746.0}
_EXP_HIGH = {"float32": 89.0, "float64": 710.0}
_EXPM1_LOW = {"float32": -18.0, "float64": -40.0}
_TANH_HIGH = {"float32": 10.0, "float64": 20.0}
_SIGMOID_HIGH = {"float32": 30.0, "float64": 60.0}
_ERF_HIGH = {"float32": 4.0, "float64": 6.0}

# Below these f(x) = x to the last bit, for f(x) = x + O(x^2) and for f(x) = x + O(x^3).
_TINY_SQUARE = {"float32": 2.0**-25, "float64": 2.0**-54}
_TINY_CUBE = {"float32": 2.0**-13, "float64": 2.0**-27}

_SMALLEST_NORMAL = {"float32": 2.0**-126, "float64": 2.0**-1022}
_BITS_SQRT_HALF = {"float32": 0x3F3504F3, "float64": 0x3FE6A09E667F3BCD}


def exp(e: Arithmetic, x: Value) -> Value:
    """e^x; underflow is gradual."""
    n, r, rest = _exp_reduce(e, e.clamp(x, _EXP_LOW[e.dtype], _EXP_HIGH[e.dtype]))
    return _scale(e, e.add(e.constant(1.0), _exp_minus_one(e, r, rest)), n)


def expm1(e: Arithmetic, x: Value) -> Value:
    """e^x - 1, with the precision of x near 0: 2^n (e^r - 1) + (2^n - 1).

    At half size, so that 2^n may be beyond the largest number.
    """
    n, r, rest = _exp_reduce(e, e.clamp(x, _EXPM1_LOW[e.dtype], _EXP_HIGH[e.dtype]))
    scale = _power_of_two(e, e.sub(n, e.constant(1.0)))
    half = e.fma(scale, _exp_minus_one(e, r, rest), e.sub(scale, e.constant(0.5)))
    return _unless_tiny(e, x, _TINY_SQUARE[e.dtype], e.add(half, half))


def tanh(e: Arithmetic, x: Value) -> Value:
    """Hyperbolic tangent: a polynomial to 0.55, beyond it 1 - 2 / (e^(2 |x|) + 1)."""
    a = e.at_most(e.abs(x), _TANH_HIGH[e.dtype])
    square = e.mul(a, a)
    near = e.fma(e.mul(square, a), e.horner(square, _coefficients(e, "tanh_small")), a)
    one, two = e.constant(1.0), e.constant(2.0)
    far = e.sub(one, e.div(two, e.add(_exp_in_range(e, e.mul(two, a)), one)))
    return e.copysign(e.select(e.compare("<", a, e.constant(0.55)), near, far), x)


def sigmoid(e: Arithmetic, x: Value) -> Value:
    """1 / (1 + e^-x) as 2^k / (2^k + 1 + (e^-r - 1)), where x = k ln 2 + r.

    2^k + 1 is exact unless k is far below 0; there 2^k goes to the small term first. Where 2^k
    would be a denormal number, a part of it comes last, so that underflow is gradual.
    """
    k, r, rest = _exp_reduce(e, e.clamp(x, _EXP_LOW[e.dtype], _SIGMOID_HIGH[e.dtype]))
    lowest = e.constant(-100.0 if e.dtype == "float32" else -1000.0)
    first = e.select(e.compare("<", k, lowest), lowest, k)
    power = _power_of_two(e, first)
    one, small = e.constant(1.0), _exp_minus_one(e, e.neg(r), e.neg(rest))
    far = e.compare("<", k, e.constant(-20.0))
    bottom = e.add(e.add(power, e.select(far, small, one)), e.select(far, one, small))
    return e.mul(e.div(power, bottom), _power_of_two(e, e.sub(k, first)))


def log(e: Arithmetic, x: Value) -> Value:
    """Natural logarithm; NaN below 0, -inf at 0."""
    k, f = _log_reduce(e, x)
    return _log_limits(e, x, _log_sum(e, k, f, None))


def log1p(e: Arithmetic, x: Value) -> Value:
    """log(1 + x): what 1 + x rounds off comes back as a first-order term."""
    one = e.constant(1.0)
    u = e.add(one, x)
    k, f = _log_reduce(e, u)
    lost = e.div(e.sub(x, e.sub(u, one)), u)
    result = _log_limits(e, u, _log_sum(e, k, f, lost))
    return _unless_tiny(e, x, _TINY_SQUARE[e.dtype], result)


def erf(e: Arithmetic, x: Value) -> Value:
    """Error function: a polynomial to 1, beyond it 1 - e^P(|x|)."""
    a = e.at_most(e.abs(x), _ERF_HIGH[e.dtype])
    one = e.constant(1.0)
    near = e.fma(a, e.horner(e.mul(a, a), _coefficients(e, "erf_small")), a)
    power = e.horner(e.sub(a, e.constant(2.0)), _coefficients(e, "erfc_log"))
    far = e.sub(one, _exp_in_range(e, power))
    return e.copysign(e.select(e.compare("<", a, one), near, far), x)


def rsqrt(e: Arithmetic, x: Value) -> Value:
    """1 / sqrt(x), rounded twice."""
    return e.div(e.constant(1.0), e.sqrt(x))


def sin(e: Arithmetic, x: Value) -> Value:
    """Sine of radians, of any magnitude."""
    quadrant, r = _trigonometric_reduce(e, x)
    result = _sin_or_cos(e, quadrant, r)
    return _unless_tiny(e, x, _TINY_CUBE[e.dtype], result)


def cos(e: Arithmetic, x: Value) -> Value:
    """Cosine of radians, of any magnitude."""
    quadrant, r = _trigonometric_reduce(e, x)
    return _sin_or_cos(e, e.builder.add(quadrant, e.integer(1)), r)


def pow(e: Arithmetic, x: Value, y: Value) -> Value:
    """x^y, with all the special cases of C99."""
    magnitude = _pow_single(e, x, y) if e.dtype == "float32" else _pow_double(e, x, y)
    zero, one = e.constant(0.0), e.constant(1.0)
    half = e.mul(y, e.constant(0.5))
    whole = e.compare("==", e.floor(y), y)
    odd = e.builder.and_(whole, e.compare("!=", e.floor(half), half))
    negative = e.builder.icmp_signed("<", e.bits(x), e.integer(0))
    magnitude = e.select(e.compare("==", e.abs(x), one), one, magnitude)
    result = e.select(e.builder.and_(negative, odd), e.neg(magnitude), magnitude)
    finite = e.compare(">", x, e.constant(-math.inf))
    below = e.builder.and_(e.compare("<", x, zero), finite)
    undefined = e.builder.and_(below, e.builder.not_(whole))
    result = e.select(undefined, e.constant(math.nan), result)
    result = e.select(e.builder.or_(e.isnan(x), e.isnan(y)), e.add(x, y), result)
    certain = e.builder.or_(e.compare("==", x, one), e.compare("==", y, zero))
    return e.select(certain, one, result)


# Shared pieces.


def _coefficients(e: Arithmetic, name: str) -> tuple[float, ...]:
    return COEFFICIENTS[name, e.dtype]


def _unless_tiny(e: Arithmetic, x: Value, bound: float, result: Value) -> Value:
    """x where |x| < bound (a zero keeps its sign, a denormal its bits), else `result`."""
    return e.select(e.compare("<", e.abs(x), e.constant(bound)), x, result)


def _nearest(e: Arithmetic, x: Value, factor: float = 1.0) -> Value:
    """The integer nearest to x * factor, below 2^22 (float32) or 2^51 (float64).

    Adding 1.5 * 2^digits leaves no room for a fraction. It needs no instruction of its own.
    """
    magic = e.constant(1.5 * 2.0**e.digits)
    return e.sub(e.fma(x, e.constant(factor), magic), magic)


def _power_of_two(e: Arithmetic, n: Value) -> Value:
    """2^n for an integral n whose power is a normal number.

    The sum holds n + bias in its low bits; shifted up, they are the exponent.
    """
    magic = e.constant(1.5 * 2.0**e.digits + e.bias)
    return e.from_bits(e.builder.shl(e.bits(e.add(n, magic)), e.integer(e.digits)))


def _scale(e: Arithmetic, p: Value, n: Value) -> Value:
    """p * 2^n in two steps, so that n may overflow or underflow; the last one rounds."""
    first = _nearest(e, n, 0.5)
    p = e.mul(p, _power_of_two(e, first))
    return e.mul(p, _power_of_two(e, e.sub(n, first)))


def _exp_reduce(e: Arithmetic, x: Value) -> tuple[Value, Value, Value]:
    """n, r and rest with x = n ln 2 + r + rest: |r| <= ln 2 / 2, rest is what r rounds off.

    n times the high part of ln 2 is exact, and so is its difference from x.
    """
    high, low = (e.constant(-part) for part in _coefficients(e, "ln2"))
    n = _nearest(e, x, 1 / math.log(2))
    exact = e.fma(n, high, x)
    r = e.fma(n, low, exact)
    return n, r, e.fma(n, low, e.sub(exact, r))


def _exp_minus_one(e: Arithmetic, r: Value, rest: Value) -> Value:
    """e^(r + rest) - 1 for a reduced r and a rest that is nothing beside 1."""
    return e.add(r, e.fma(e.mul(r, r), e.horner(r, _coefficients(e, "exp")), rest))


def _exp_in_range(e: Arithmetic, x: Value) -> Value:
    """e^x where that is a normal number."""
    n, r, rest = _exp_reduce(e, x)
    return e.mul(e.add(e.constant(1.0), _exp_minus_one(e, r, rest)), _power_of_two(e, n))


def _log_reduce(e: Arithmetic, x: Value) -> tuple[Value, Value]:
    """k and f with x = 2^k (1 + f), sqrt(1/2) <= 1 + f < sqrt(2), for a positive x."""
    normal = e.compare(">=", x, e.constant(_SMALLEST_NORMAL[e.dtype]))
    up = e.digits + 1
    x = e.select(normal, x, e.mul(x, e.constant(2.0**up)))
    # Shift the exponent's steps from 1 to sqrt(1/2) before taking it off.
    offset = (e.bias << e.digits) - _BITS_SQRT_HALF[e.dtype]
    exponent = e.builder.lshr(e.builder.add(e.bits(x), e.integer(offset)), e.integer(e.digits))
    shifted = e.builder.sub(exponent, e.integer(e.bias))
    mantissa = e.builder.sub(e.bits(x), e.builder.shl(shifted, e.integer(e.digits)))
    # An integer below 2^digits becomes a float by way of the fraction of 2^digits.
    base = 2.0**e.digits
    fraction = e.builder.or_(exponent, e.bits(e.constant(base)))
    bias = e.select(normal, e.constant(base + e.bias), e.constant(base + e.bias + up))
    k = e.sub(e.from_bits(fraction), bias)
    return k, e.sub(e.from_bits(mantissa), e.constant(1.0))


def _log_sum(e: Arithmetic, k: Value, f: Value, more: Value | None) -> Value:
    """k ln 2 + log(1 + f) + more, the small terms first."""
    high, low = _coefficients(e, "ln2")
    if more is None:
        small = e.mul(k, e.constant(low))
    else:
        small = e.fma(k, e.constant(low), more)
    square = e.mul(f, f)
    half = e.constant(0.5)
    if e.dtype == "float32":
        tail = e.fma(e.mul(square, f), e.horner(f, _coefficients(e, "log")), small)
        tail = e.fma(square, e.neg(half), tail)
    else:
        # With s = f / (2 + f): log(1 + f) = f - f^2 / 2 + s (f^2 / 2 + s^2 P(s^2)).
        s = e.div(f, e.add(e.constant(2.0), f))
        z = e.mul(s, s)
        square = e.mul(half, square)
        inner = e.fma(z, e.horner(z, _coefficients(e, "atanh")), square)
        tail = e.sub(e.fma(s, inner, small), square)
    return e.fma(k, e.constant(high), e.add(f, tail))


def _log_limits(e: Arithmetic, x: Value, result: Value) -> Value:
    """The logarithm where x is no positive finite number."""
    zero = e.constant(0.0)
    finite = e.compare("<", x, e.constant(math.inf))
    result = e.select(finite, result, x)
    result = e.select(e.compare("<", x, zero), e.constant(math.nan), result)
    return e.select(e.compare("==", x, zero), e.constant(-math.inf), result)


# Sine and cosine.


def _trigonometric_reduce(e: Arithmetic, x: Value) -> tuple[Value, Value]:
    """q and r with x = q pi / 2 + r modulo 2 pi, |r| <= pi / 4, for x of any magnitude.

    x / (2 pi) is a sum of exact products of short numbers, each of which loses its whole turns
    before they add up; that is the method of Payne and Hanek in floating point. It is done in
    float64, where a float32 of 24 bits and 28 bits of 1 / (2 pi) multiply exactly.
    """
    single = e.dtype == "float32"
    wide = e.wide() if single else e
    products = _turn_products_single(e, x) if single else _turn_products_double(e, x)
    turns = [wide.sub(product, wide.round(product)) for product in products]
    total = turns[0]
    for turn in turns[1:]:
        total = wide.add(total, turn)
    quarters = _nearest(wide, total, 4.0)
    rest, lost = wide.fma(quarters, wide.constant(-0.25), turns[0]), wide.constant(0.0)
    for turn in turns[1:]:
        if single:
            rest = wide.add(rest, turn)
        else:
            rest, rounding = _sum(e, rest, turn)
            lost = e.add(lost, rounding)
    high, low = (wide.constant(part) for part in COEFFICIENTS["two_pi", "float64"])
    r = wide.fma(rest, high, wide.fma(lost, high, wide.mul(rest, low)))
    if single:
        quarters, r = e.narrow(quarters), e.narrow(r)
    small = e.compare("==", quarters, e.constant(0.0))
    near = e.compare("<", e.abs(x), e.constant(1.0))
    r = e.select(e.builder.and_(small, near), x, r)
    return e.bits(e.add(quarters, e.constant(1.5 * 2.0**e.digits))), r


def _turn_products_single(e: Arithmetic, x: Value) -> list[Value]:
    """x / (2 pi) as a sum: all 28-bit parts of 1 / (2 pi) that a float32 can need."""
    wide = e.wide()
    x = e.extend(x)
    return [wide.mul(x, wide.constant(part)) for part in COEFFICIENTS["turn", "float64"]]


def _turn_products_double(e: Arithmetic, x: Value) -> list[Value]:
    """x / (2 pi) as a sum, without the parts that only make whole turns.

    Eight parts of 26 bits, looked up from the first that can leave a fraction, times the upper 26
    and the lower 27 bits of x.
    """
    width, parts = 26, COEFFICIENTS["turn_bits", "float64"]
    exponent = e.builder.and_(e.builder.lshr(e.bits(x), e.integer(52)), e.integer(0x7FF))
    # The last bit of x weighs 2^(exponent - 1075), of part j 2^(-28 - 26 j).
    beyond = e.builder.sub(exponent, e.integer(1075 + 2))
    beyond = e.select(e.builder.icmp_signed("<", beyond, e.integer(0)), e.integer(0), beyond)
    # Division by 26, exact up to 1000 and beyond.
    first = e.builder.lshr(e.builder.mul(beyond, e.integer(2521)), e.integer(16))
    shift = e.builder.mul(first, e.integer(-width))
    scale = e.builder.shl(e.builder.add(shift, e.integer(e.bias)), e.integer(e.digits))
    x = e.mul(x, e.from_bits(scale))
    upper = e.from_bits(e.builder.and_(e.bits(x), e.integer(-(1 << 27))))
    lower = e.sub(x, upper)
    products = []
    for i in range(8):
        part = _lookup(e, "dlc.turn_bits", parts, e.builder.add(first, e.integer(i)))
        part = e.mul(part, e.constant(2.0 ** (-2 - width * (i + 1))))
        products += [e.mul(upper, part), e.mul(lower, part)]
    return products


def _lookup(e: Arithmetic, name: str, table: tuple[float, ...], index: Value) -> Value:
    """table[index], lane by lane; the table becomes a constant of the module."""
    memory = e.builder.module.globals.get(name)
    kind = ir.ArrayType(e.element, len(table))
    if memory is None:
        memory = ir.GlobalVariable(e.builder.module, kind, name)
        memory.linkage, memory.global_constant = "internal", True
        memory.initializer = ir.Constant(kind, list(table))
    zero = ir.Constant(ir.IntType(64), 0)
    if not e.lanes:
        return e.builder.load(e.builder.gep(memory, [zero, index]))
    result: Value = ir.Constant(e.type, ir.Undefined)
    for lane in range(e.lanes):
        place = ir.Constant(ir.IntType(32), lane)
        address = e.builder.gep(memory, [zero, e.builder.extract_element(index, place)])
        result = e.builder.insert_element(result, e.builder.load(address), place)
    return result


def _sin_or_cos(e: Arithmetic, quadrant: Value, r: Value) -> Value:
    """sin(r + quadrant pi / 2) for |r| <= pi / 4."""
    z = e.mul(r, r)
    sine = e.fma(e.mul(z, r), e.horner(z, _coefficients(e, "sin")), r)
    # 1 - z / 2 rounds; what it loses goes with the small terms.
    half = e.mul(z, e.constant(0.5))
    one = e.constant(1.0)
    head = e.sub(one, half)
    lost = e.sub(e.sub(one, head), half)
    cosine = e.add(head, e.fma(e.mul(z, z), e.horner(z, _coefficients(e, "cos")), lost))
    odd = e.builder.and_(quadrant, e.integer(1))
    swap = e.builder.icmp_signed("!=", odd, e.integer(0))
    chosen = e.select(swap, cosine, sine)
    width = e.digits + (9 if e.dtype == "float32" else 12)
    sign = e.builder.shl(e.builder.and_(quadrant, e.integer(2)), e.integer(width - 2))
    return e.from_bits(e.builder.xor(e.bits(chosen), sign))


# Powers.


def _pow_single(e: Arithmetic, x: Value, y: Value) -> Value:
    """|x|^y in float64 on the way, which has bits to spare."""
    wide = e.wide()
    logarithm = log(wide, wide.abs(e.extend(x)))
    return e.narrow(exp(wide, wide.mul(e.extend(y), logarithm)))


def _pow_double(e: Arithmetic, x: Value, y: Value) -> Value:
    """|x|^y through a logarithm and a product of twice the precision.

    y log|x| is up to 745, so that its rounding would cost ten bits of the result.
    """
    a = e.abs(x)
    zero, infinity = e.constant(0.0), e.constant(math.inf)
    high, low = _log_double(e, a)
    # Beyond 2^66 every power of every number but 1 is 0 or infinite.
    y = e.clamp(y, -(2.0**66), 2.0**66)
    product, tail = _product(e, y, high)
    tail = e.fma(y, low, tail)
    power = e.clamp(product, _EXP_LOW[e.dtype], _EXP_HIGH[e.dtype])
    tail = e.select(e.compare("==", power, product), tail, zero)
    n, r, rest = _exp_reduce(e, power)
    result = _exp_minus_one(e, e.add(r, tail), rest)
    result = _scale(e, e.add(e.constant(1.0), result), n)
    rising = e.compare(">", y, zero)
    result = e.select(e.compare("==", a, zero), e.select(rising, zero, infinity), result)
    return e.select(e.compare("==", a, infinity), e.select(rising, infinity, zero), result)


def _log_double(e: Arithmetic, x: Value) -> tuple[Value, Value]:
    """log(x) for a positive finite x as the sum of two numbers.

    With s = f / (2 + f): k ln 2 + 2 s + (2 / 3) s^3 + s^5 P(s^2), all but the last term in pairs.
    """
    k, f = _log_reduce(e, x)
    two = e.constant(2.0)
    bottom = e.add(two, f)
    bottom_low = e.add(e.sub(two, bottom), f)
    s = e.div(f, bottom)
    back, back_low = _product(e, s, bottom)
    remainder = e.sub(e.sub(e.sub(f, back), back_low), e.mul(s, bottom_low))
    s_low = e.div(remainder, bottom)
    z, z_low = _product(e, s, s)
    z_low = e.fma(e.add(s, s), s_low, z_low)
    third_high, third_low = _coefficients(e, "two_thirds")
    tail = e.fma(z, e.horner(z, _coefficients(e, "atanh_tail")), e.constant(third_low))
    c, c_low = _short_sum(e, e.constant(third_high), tail)
    cubic, cubic_low = _product(e, z, c)
    cubic_low = e.add(cubic_low, e.fma(z, c_low, e.mul(z_low, c)))
    factor, factor_low = _short_sum(e, two, cubic)
    factor_low = e.add(factor_low, cubic_low)
    log_f, log_f_low = _product(e, s, factor)
    log_f_low = e.add(log_f_low, e.fma(s, factor_low, e.mul(s_low, factor)))
    ln2_high, ln2_low = _coefficients(e, "ln2")
    # k times the high part is exact, and larger than log(1 + f) unless it is 0.
    high, low = _short_sum(e, e.mul(k, e.constant(ln2_high)), log_f)
    low = e.add(low, e.fma(k, e.constant(ln2_low), log_f_low))
    return _short_sum(e, high, low)


def _sum(e: Arithmetic, a: Value, b: Value) -> tuple[Value, Value]:
    """a + b exactly, as its rounding and the rest (Knuth's two-sum)."""
    total = e.add(a, b)
    from_b = e.sub(total, a)
    from_a = e.sub(total, from_b)
    return total, e.add(e.sub(a, from_a), e.sub(b, from_b))


def _short_sum(e: Arithmetic, a: Value, b: Value) -> tuple[Value, Value]:
    """The same for |a| >= |b| or a = 0 (Dekker's)."""
    total = e.add(a, b)
    return total, e.sub(b, e.sub(total, a))


def _product(e: Arithmetic, a: Value, b: Value) -> tuple[Value, Value]:
    """a * b exactly, as its rounding and the rest."""
    total = e.mul(a, b)
    if e.isa.fma:
        return total, e.fma(a, b, e.neg(total))
    # Halves of 26 and 27 bits multiply exactly.
    mask = e.integer(-(1 << 27))
    a_high, b_high = (e.from_bits(e.builder.and_(e.bits(v), mask)) for v in (a, b))
    a_low, b_low = e.sub(a, a_high), e.sub(b, b_high)
    rest = e.sub(e.mul(a_high, b_high), total)
    rest = e.add(e.add(rest, e.mul(a_high, b_low)), e.mul(a_low, b_high))
    return total, e.add(rest, e.mul(a_low, b_low))
