"""Sizes: normal form, evaluation, bounds and decisions against brute force over small ranges."""

import itertools
import math
import operator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlc.errors import ShapeError
from dlc.ir.sizes import (
    Dim,
    Poly,
    as_size,
    atoms,
    bounds,
    dims,
    equal,
    evaluate,
    less,
    product,
    quotient,
    shape_text,
    substitute,
)

N, M, K = Dim("n", 0, 5), Dim("m", 1, 4), Dim("k", 3, 9)
DIMS = (N, M, K)
POINTS = [
    dict(zip("nmk", values, strict=True))
    for values in itertools.product(*(range(d.min, d.max + 1) for d in DIMS))
]


class Expression:
    """A size, and how to compute it with plain integers."""

    def __init__(self, size, value):
        self.size = size
        self.value = value

    def __repr__(self):
        return f"Expression({self.size})"


def binary(symbol):
    def make(pair):
        a, b = pair
        return Expression(symbol(a.size, b.size), lambda at: symbol(a.value(at), b.value(at)))

    return make


def divided(symbol):
    def make(pair):
        a, d = pair
        return Expression(symbol(a.size, d), lambda at: symbol(a.value(at), d))

    return make


LEAVES = st.one_of(
    st.integers(-6, 6).map(lambda i: Expression(i, lambda at: i)),
    st.sampled_from(DIMS).map(lambda d: Expression(as_size(d), lambda at: at[d.name])),
)


def grown(inner):
    pairs, divisors = st.tuples(inner, inner), st.tuples(inner, st.integers(1, 12))
    return st.one_of(
        *(pairs.map(binary(symbol)) for symbol in (operator.add, operator.sub, operator.mul)),
        *(divisors.map(divided(symbol)) for symbol in (operator.floordiv, operator.mod)),
    )


EXPRESSIONS = st.recursive(LEAVES, grown, max_leaves=6)


# Values.


@given(EXPRESSIONS)
def test_a_size_evaluates_to_its_integer_arithmetic(e):
    for at in POINTS:
        assert evaluate(e.size, at) == e.value(at)


@given(EXPRESSIONS)
def test_the_text_of_a_size_is_python_for_it(e):
    text = str(e.size)
    for at in POINTS[::7]:
        assert eval(text, {}, dict(at)) == e.value(at)


@given(EXPRESSIONS)
def test_a_constant_is_an_int_and_no_term_is_zero(e):
    if isinstance(e.size, Poly):
        assert set(e.size.terms) - {()}
        assert all(e.size.terms.values())
    else:
        assert type(e.size) is int


@given(EXPRESSIONS, EXPRESSIONS)
def test_one_normal_form_means_one_value(a, b):
    if a.size == b.size:
        assert hash(a.size) == hash(b.size)
        assert all(a.value(at) == b.value(at) for at in POINTS)


@given(EXPRESSIONS, EXPRESSIONS, EXPRESSIONS)
def test_the_normal_form_knows_the_laws_of_arithmetic(a, b, c):
    a, b, c = a.size, b.size, c.size
    assert a + b == b + a
    assert a * b == b * a
    assert (a + b) + c == a + (b + c)
    assert (a * b) * c == a * (b * c)
    assert a * (b + c) == a * b + a * c
    assert a - a == 0
    assert a + b - b == a


@given(EXPRESSIONS, st.integers(1, 9), st.integers(1, 9))
def test_the_normal_form_knows_the_laws_of_division(a, d, e):
    a = a.size
    assert (a * d) // d == a
    assert (a * d) % d == 0
    assert (a * d) // (d * e) == a // e
    assert (a + d * e) // d == a // d + e
    assert (a // d) * d + a % d == a


@given(EXPRESSIONS, EXPRESSIONS)
def test_substitution_is_evaluation_in_two_steps(a, b):
    made = substitute(a.size, {N: b.size % 6})  # of n's range
    for at in POINTS[::7]:
        assert evaluate(made, at) == a.value({**at, "n": b.value(at) % 6})


@given(EXPRESSIONS, EXPRESSIONS)
def test_a_quotient_is_exact(a, b):
    found = quotient(a.size * b.size, b.size)
    if b.size == 0:
        assert found is None
    else:
        assert found == a.size
    other = quotient(a.size, b.size)
    assert other is None or other * b.size == a.size


# Decisions.


@given(EXPRESSIONS)
def test_bounds_hold_everywhere(e):
    low, high = bounds(e.size)
    values = [e.value(at) for at in POINTS]
    assert low <= min(values)
    assert max(values) <= high


@given(EXPRESSIONS, EXPRESSIONS)
def test_what_is_decided_is_true_everywhere(a, b):
    for decide, symbol in (
        (equal, operator.eq),
        (less, operator.lt),
        (operator.lt, operator.lt),
        (operator.le, operator.le),
        (operator.gt, operator.gt),
        (operator.ge, operator.ge),
    ):
        try:
            answer = decide(a.size, b.size)
        except ShapeError:
            continue
        values = {symbol(a.value(at), b.value(at)) for at in POINTS}
        assert values == {answer}


def test_what_cannot_be_decided_names_both_sides():
    ranges = r"the sizes n \(n from 0 to 5\) and m \(m from 1 to 4\) are equal"
    with pytest.raises(ShapeError, match=ranges):
        equal(as_size(N), as_size(M))
    with pytest.raises(ShapeError, match="whether n < 3"):
        less(as_size(N), 3)
    with pytest.raises(ShapeError, match="equal"):
        bool(as_size(N))
    assert as_size(M)
    assert not equal(as_size(N), 6)


def test_distances_from_the_minimum_decide_what_intervals_do_not():
    n, m = as_size(Dim("n", 1, 8)), as_size(Dim("m", 0, 3))
    assert bounds(n * n - n) == (0, 56)
    assert bounds((n - 1) * (m + 2)) == (0, 35)
    assert not less(n * n, n)


def test_a_remainder_is_no_dim_of_the_users():
    n, m = as_size(Dim("remainder_0", 0, 1)), as_size(Dim("m", 0, 3))
    even = 2 * ((m + n) // 2)
    assert evaluate(even, {"remainder_0": 1, "m": 3}) == 4
    assert bounds(even)[1] >= 4


def test_a_remainder_decides_what_intervals_do_not():
    n = as_size(Dim("n", 1, 64))
    assert not less(2 * ((n + 1) // 2), n)
    assert less(2 * (n // 2), n + 1)
    assert bounds(n % 4) == (0, 3)
    assert bounds(n - n // 2 - n // 3) == (1, 11)


# Normal forms that kernels rely on.


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((as_size(Dim("i", 0, 63)) * 64 + Dim("j", 0, 63)) // 64, "i"),
        ((as_size(Dim("i", 0, 63)) * 64 + Dim("j", 0, 63)) % 64, "j"),
        ((as_size(Dim("i", 0, 63)) * 4 + Dim("j", 0, 3)) // 8, "((i) // 2)"),
        ((63 - as_size(Dim("i", 0, 63))) // 64, "0"),
        (as_size(K) * 6 // 4, "((k) // 2) + k"),
        ((as_size(K) // 2) // 3, "((k) // 6)"),
        ((as_size(K) * 2 + 3) // 4, "((k + 1) // 2)"),
        ((as_size(K) - 1) // 2, "((k + 1) // 2) - 1"),
    ],
)
def test_floor_division_is_in_lowest_terms(size, expected):
    assert str(size) == expected


# Types of what is mixed.


def test_sizes_mix_with_dims_and_numpy_integers():
    n = as_size(N)
    assert n == N
    assert Dim("n", 0, 5) == n
    assert hash(n) == hash(N)
    assert n + M == M + n == N + M
    assert n * 2 == 2 * N == np.int64(2) * n
    assert 7 - n == np.int64(7) - n == 7 - N
    assert -n == -N
    assert n % 2 == N % 2
    assert n != as_size(M)
    assert isinstance(n + np.int32(1), Poly)
    assert type(as_size(np.int64(3))) is int


def test_a_dim_of_one_size_is_an_integer():
    assert as_size(Dim("one", 4, 4)) == 4
    assert Dim("one", 4, 4) * 3 == 12


def test_what_is_no_size_leaves_the_operator_to_the_other_side():
    class Tensor:
        def __radd__(self, other):
            return "radd"

        def __rmul__(self, other):
            return "rmul"

        def __rsub__(self, other):
            return "rsub"

        def __add__(self, other):
            return "add"

    n, x = as_size(N), Tensor()
    assert (n + x, n * x, n - x, x + n) == ("radd", "rmul", "rsub", "add")
    assert (N + x, N * x, N - x) == ("radd", "rmul", "rsub")
    with pytest.raises(TypeError):
        n + "3"


# Errors.


@pytest.mark.parametrize("value", [1.5, "3", None, True, [1]])
def test_what_is_no_size_is_refused(value):
    with pytest.raises(ShapeError, match=r"a size is an integer or a dlc\.Dim"):
        as_size(value)


@pytest.mark.parametrize(
    ("name", "low", "high", "message"),
    [
        ("a b", 1, 2, "other than Python's keywords, such as 'batch'; got 'a b'"),
        ("for", 1, 2, "got 'for'"),
        ("None", 1, 2, "got 'None'"),
        ("", 1, 2, "got ''"),
        (3, 1, 2, "got 3"),
        ("n", 3, 2, r"expects integers 0 <= min <= max, got 3\.\.2"),
        ("n", -1, 2, r"got -1\.\.2"),
        ("n", 1.0, 2, r"got 1\.0\.\.2"),
    ],
)
def test_a_dim_is_checked(name, low, high, message):
    with pytest.raises(ShapeError, match=message):
        Dim(name, low, high)


@pytest.mark.parametrize("divisor", [0, -2, 1.5, as_size(M)])
def test_sizes_divide_by_positive_integers(divisor):
    with pytest.raises(ShapeError, match="positive integers only"):
        as_size(N) // divisor


def test_an_integer_divided_by_a_size_is_refused():
    with pytest.raises(ShapeError, match="positive integers only"):
        12 // as_size(M)
    with pytest.raises(ShapeError, match="positive integers only"):
        12 % as_size(M)


def test_a_size_has_no_python_integer():
    with pytest.raises(ShapeError, match="known only at call time"):
        range(as_size(N))


def test_beyond_64_bits_is_an_error():
    n = as_size(Dim("n", 0, 2**40))
    assert evaluate(n * n, {"n": 2**31}) == 2**62
    with pytest.raises(ShapeError, match="64 bits"):
        evaluate(n * n, {"n": 2**32})
    with pytest.raises(ShapeError, match="needs a value for n"):
        evaluate(n, {"m": 1})


# Small helpers.


def test_products_and_texts():
    n = as_size(N)
    assert product([]) == 1
    assert product([2, n, 3]) == n * 6
    assert shape_text((n, 3)) == "(n, 3)"
    assert shape_text((3,)) == "(3,)"
    assert shape_text(()) == "()"
    assert str(3 * n - M - 1) == "-1*m + 3*n - 1"


def test_atoms_and_dims():
    size = as_size(N) * M + (as_size(K) + N) // 2
    assert len(atoms(size)) == 3
    assert dims(size) == {N, M, K}
    assert dims(4) == set()


def test_brute_force_of_a_typical_convolution():
    h = as_size(Dim("h", 7, 40))
    out = (h + 2 * 1 - 3) // 2 + 1
    for value in range(7, 41):
        assert evaluate(out, {"h": value}) == math.floor((value + 2 - 3) / 2) + 1
