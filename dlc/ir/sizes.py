"""Sizes of tensors: integers, or polynomials in named dimensions.

One compiled kernel serves a whole range of batch sizes, so shapes are computed with symbols. A
symbolic size is kept in normal form (a sum of monomials with integer coefficients over atoms),
hence equality of sizes is equality of normal forms. What the normal form and the declared ranges
cannot decide is an error that names both sides, never a guess.

The same polynomials describe addresses in generated kernels, where the atoms are loop variables.
"""

from __future__ import annotations

import keyword
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from dlc.errors import ShapeError


@dataclass(frozen=True, slots=True)
class Dim:
    """A named dimension whose size is known only at call time.

    Parameters
    ----------
    name : str
        An identifier and no keyword; two dimensions of one name in a model are the same dimension.
    min, max : int
        The declared range, both ends included. It is a contract, checked on every call; memory is
        planned at ``max``.
    """

    name: str
    min: int
    max: int

    def __post_init__(self) -> None:
        named = isinstance(self.name, str) and self.name.isidentifier()
        if not named or keyword.iskeyword(self.name):
            raise ShapeError(
                f"a Dim is named by an identifier, other than Python's keywords, such as 'batch'; "
                f"got {self.name!r}"
            )
        if not (
            isinstance(self.min, int) and isinstance(self.max, int) and 0 <= self.min <= self.max
        ):
            raise ShapeError(
                f"Dim {self.name!r} expects integers 0 <= min <= max, got "
                f"{self.min!r}..{self.max!r}"
            )

    def __str__(self) -> str:
        return self.name

    def __add__(self, other: Size | Dim) -> Size:
        return as_size(self) + other

    def __mul__(self, other: Size | Dim) -> Size:
        return as_size(self) * other

    def __sub__(self, other: Size | Dim) -> Size:
        return as_size(self) - other

    def __rsub__(self, other: Size | Dim) -> Size:
        return other - as_size(self)

    def __neg__(self) -> Size:
        return -as_size(self)

    def __floordiv__(self, divisor: int) -> Size:
        return as_size(self) // divisor

    def __mod__(self, divisor: int) -> Size:
        return as_size(self) % divisor

    def __pow__(self, exponent: int) -> Size:
        return as_size(self) ** exponent

    __radd__, __rmul__ = __add__, __mul__


@dataclass(frozen=True, slots=True)
class Floor:
    """The atom ``numerator // divisor`` where the division does not come out even."""

    numerator: Poly
    divisor: int

    def __str__(self) -> str:
        return f"(({self.numerator}) // {self.divisor})"


Atom: TypeAlias = Dim | Floor
Monomial: TypeAlias = tuple[Atom, ...]  # sorted by text, an atom repeated for a power


def _sorted(atoms: Iterable[Atom]) -> Monomial:
    return tuple(sorted(atoms, key=str))


class Poly:
    """A polynomial with integer coefficients over atoms, in normal form; immutable and hashable.

    Build one from a `Dim` with `as_size`; an arithmetic result that is constant comes back as an
    ``int``.
    """

    __slots__ = ("_hash", "terms")
    __array_ufunc__ = None  # NumPy integers leave the operators to this class

    def __init__(self, terms: Mapping[Monomial, int]):
        self.terms: dict[Monomial, int] = {
            m: terms[m] for m in sorted(terms, key=_order) if terms[m]
        }
        dim = self._dim()
        words = tuple((tuple(map(str, m)), c) for m, c in self.terms.items())
        self._hash = hash(words if dim is None else dim)

    def _dim(self) -> Dim | None:
        """The `Dim` that this is, if it is one and nothing else."""
        match list(self.terms.items()):
            case [((Dim() as dim,), 1)]:
                return dim
        return None

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Dim):
            return self._dim() == other
        return isinstance(other, Poly) and self.terms == other.terms

    def __hash__(self) -> int:
        return self._hash

    # What is no size, such as a symbolic tensor, has operators of its own.

    def __add__(self, other: Size | Dim) -> Size:
        if not is_size(other):
            return _not_of_sizes(self, "+", other)
        terms = dict(self.terms)
        for monomial, coefficient in _terms(other).items():
            terms[monomial] = terms.get(monomial, 0) + coefficient
        return _simplest(terms)

    def __neg__(self) -> Size:
        return self * -1

    def __sub__(self, other: Size | Dim) -> Size:
        return self + as_size(other) * -1 if is_size(other) else _not_of_sizes(self, "-", other)

    def __rsub__(self, other: Size | Dim) -> Size:
        return self * -1 + other if is_size(other) else _not_of_sizes(self, "-", other)

    def __mul__(self, other: Size | Dim) -> Size:
        if not is_size(other):
            return _not_of_sizes(self, "*", other)
        terms: dict[Monomial, int] = {}
        for a, x in self.terms.items():
            for b, y in _terms(other).items():
                product = _sorted(a + b)
                terms[product] = terms.get(product, 0) + x * y
        return _simplest(terms)

    __radd__, __rmul__ = __add__, __mul__

    def __floordiv__(self, divisor: int) -> Size:
        if not isinstance(divisor, (int, np.integer)) or divisor <= 0:
            raise ShapeError(
                f"symbolic sizes divide by positive integers only, got ({self}) // {divisor}"
            )
        divisor = int(divisor)
        # floor((d q + r) / d) = q + floor(r / d), where r has what d does not divide.
        whole = _simplest(
            {m: c // divisor for m, c in self.terms.items() if not m or c % divisor == 0}
        )
        rest = _simplest(
            {m: c % divisor if not m else c for m, c in self.terms.items() if c % divisor}
        )
        low, high = bounds(rest)
        if low // divisor == high // divisor:  # the rest never reaches another multiple
            return whole + low // divisor
        assert isinstance(rest, Poly)
        return whole + _floor(rest, divisor)

    def __mod__(self, divisor: int) -> Size:
        return self - (self // divisor) * divisor

    def __rfloordiv__(self, other: object) -> Size:
        raise ShapeError(
            f"symbolic sizes divide by positive integers only, got {other} // ({self})"
        )

    __rmod__ = __rfloordiv__

    def __pow__(self, exponent: int) -> Size:
        if not isinstance(exponent, (int, np.integer)) or exponent < 0:
            raise _no_size(f"({self}) ** {exponent}")
        return product([self] * int(exponent))

    def __truediv__(self, other: object) -> Size:
        if isinstance(other, (int, float, Poly, Dim)):
            raise _no_size(f"({self}) / {other}")
        return NotImplemented

    def __rtruediv__(self, other: object) -> Size:
        if isinstance(other, (int, float)):
            raise _no_size(f"{other} / ({self})")
        return NotImplemented

    def __str__(self) -> str:
        parts = []
        for monomial, coefficient in self.terms.items():
            factors = [str(atom) for atom in monomial]
            if coefficient != 1 or not factors:
                factors.insert(0, str(coefficient))
            parts.append("*".join(factors))
        return " + ".join(parts).replace("+ -1*", "- ").replace("+ -", "- ") or "0"

    __repr__ = __str__

    def __bool__(self) -> bool:
        return not equal(self, 0)

    def __index__(self) -> int:
        raise ShapeError(
            f"the size {self} is known only at call time, so it has no Python integer value here; "
            "use it in shapes (reshape, expand), or compile with an integer in place of the Dim"
        )

    def __lt__(self, other: Size) -> bool:
        return less(self, other)

    def __le__(self, other: Size) -> bool:
        return less(self, other + 1)

    def __gt__(self, other: Size) -> bool:
        return less(other, self)

    def __ge__(self, other: Size) -> bool:
        return less(other, self + 1)


Size: TypeAlias = int | Poly


def _not_of_sizes(size: Poly, symbol: str, other: object) -> Size:
    """Refuse floats; what is neither may have an operator of its own."""
    if isinstance(other, float):
        raise _no_size(f"({size}) {symbol} {other}")
    return NotImplemented  # type: ignore[no-any-return]


def _no_size(text: str) -> ShapeError:
    from dlc.ir.node import place_of_trace

    return ShapeError(
        f"sizes known only at call time are integers, and {text} is none{place_of_trace()}; divide "
        "by // for another size, or compute with a tensor: x / n and x * n work for a tensor x, "
        "and dlc.tensor(n) is one, to cast with .to(x.dtype)"
    )


def _floor(size: Poly, divisor: int) -> Size:
    """``size // divisor`` in lowest terms: ``(4 i + j) // 8`` is ``i // 2`` for ``0 <= j < 4``."""
    for common in sorted({math.gcd(divisor, c) for m, c in size.terms.items() if m}, reverse=True):
        part = {m: c // common for m, c in size.terms.items() if not m or c % common == 0}
        low, high = bounds(size - _simplest(part) * common)
        if common > 1 and low >= 0 and high < common:
            return _simplest(part) // (divisor // common)
    whole = _simplest({m: c // divisor for m, c in size.terms.items()})
    rest = Poly({m: c % divisor for m, c in size.terms.items()})
    for monomial, coefficient in rest.terms.items():
        match monomial:
            case (Floor() as inner,) if coefficient == 1:  # (p // a + q) // d = (p + a q) // (a d)
                outer = (rest - Poly({monomial: 1})) * inner.divisor
                return whole + (inner.numerator + outer) // (inner.divisor * divisor)
    return whole + Poly({(Floor(rest, divisor),): 1})


def _order(monomial: Monomial) -> tuple[int, tuple[str, ...]]:
    return -len(monomial), tuple(map(str, monomial))


def _terms(size: Size | Dim) -> Mapping[Monomial, int]:
    size = as_size(size)
    return size.terms if isinstance(size, Poly) else {(): size}


def _simplest(terms: Mapping[Monomial, int]) -> Size:
    poly = Poly(terms)
    if not poly.terms:
        return 0
    if set(poly.terms) == {()}:
        return poly.terms[()]
    return poly


def is_size(value: object) -> bool:
    """Whether a value is a size: an int, a NumPy integer, a `Dim` or a symbolic size."""
    return isinstance(value, (int, np.integer, Poly, Dim)) and not isinstance(value, bool)


def as_size(value: object) -> Size:
    """``value`` (an int, a NumPy integer, a `Dim` or a size) as a size in normal form."""
    if isinstance(value, Poly):
        return value
    if isinstance(value, Dim):
        return Poly({(value,): 1}) if value.min != value.max else value.min
    if hasattr(value, "__index__") and not isinstance(value, bool):
        return int(value)
    raise ShapeError(
        f"a size is an integer or a dlc.Dim, got {value!r} of type {type(value).__name__}"
    )


def atoms(size: Size) -> set[Atom]:
    """The atoms that a size is written in (the ones inside a `Floor` not included)."""
    return (
        {atom for monomial in size.terms for atom in monomial} if isinstance(size, Poly) else set()
    )


def dims(size: Size) -> set[Dim]:
    """All named dimensions that a size depends on."""
    found: set[Dim] = set()
    for atom in atoms(size):
        found |= {atom} if isinstance(atom, Dim) else dims(atom.numerator)
    return found


def evaluate(size: Size, values: Mapping[str, int]) -> int:
    """The integer that a size has under ``values`` (by name of dimension); raises `ShapeError`
    beyond int64.
    """
    if isinstance(size, int):
        return size
    total = 0
    for monomial, coefficient in size.terms.items():
        for atom in monomial:
            if isinstance(atom, Dim):
                if atom.name not in values:
                    raise ShapeError(
                        f"the size {size} needs a value for {atom}, got {dict(values)}"
                    )
                coefficient *= values[atom.name]
            else:
                coefficient *= evaluate(atom.numerator, values) // atom.divisor
        total += coefficient
    if not -(2**63) <= total < 2**63:
        raise ShapeError(f"the size {size} is {total} here, more than 64 bits hold")
    return total


def substitute(size: Size, values: Mapping[Dim, Size]) -> Size:
    """``size`` with dimensions replaced by other sizes."""
    if isinstance(size, int):
        return size
    total: Size = 0
    for monomial, coefficient in size.terms.items():
        product: Size = coefficient
        for atom in monomial:
            if isinstance(atom, Dim):
                product = product * values.get(atom, as_size(atom))
            else:
                product = product * (substitute(atom.numerator, values) // atom.divisor)
        total = total + product
    return total


def bounds(size: Size, depth: int = 0) -> tuple[int, int]:
    """Least and greatest value that the declared ranges allow, as far as interval arithmetic sees.

    Products are bounded by how far each dimension is from its minimum, too: ``n * n - n`` is
    ``k * k + k`` for ``k = n - 1``, which is not negative. A floor division also bounds by what it
    divides: ``c * (p // d)`` is ``c / d * (p - r)`` for a remainder ``0 <= r < d``, which decides
    ``n <= 2 * ((n + 1) // 2)`` where the interval of each term alone does not.
    """
    if isinstance(size, int):
        return size, size
    low, high = _interval(size)
    if any(len(monomial) > 1 for monomial in size.terms):
        below, above = _interval(_from_minimum(size))
        low, high = max(low, below), min(high, above)
    floor = next((atom for atom in sorted(atoms(size), key=str) if isinstance(atom, Floor)), None)
    if floor is not None and all(monomial.count(floor) <= 1 for monomial in size.terms):
        divisor = floor.divisor
        below, above = bounds(_without(size, floor, depth), depth + 1)  # of size * divisor
        low, high = max(low, -(-below // divisor)), min(high, above // divisor)
    return low, high


def _from_minimum(size: Poly) -> Size:
    """``size`` in terms of how far each dimension is from its minimum."""
    return substitute(
        size,
        {
            dim: as_size(replace(dim, min=0, max=dim.max - dim.min)) + dim.min
            for dim in dims(size)
            if dim.min > 0
        },
    )


class _Remainder(Dim):
    """What a division leaves; equal to no dimension of a user."""


def _without(size: Poly, floor: Floor, depth: int) -> Size:
    """``size * floor.divisor`` with the division written as numerator minus remainder."""
    remainder = as_size(_Remainder(f"remainder_{depth}", 0, floor.divisor - 1))
    exact = floor.numerator - remainder
    total: Size = 0
    for monomial, coefficient in size.terms.items():
        rest = Poly({tuple(atom for atom in monomial if atom != floor): coefficient})
        total = total + rest * (exact if floor in monomial else floor.divisor)
    return total


def _interval(size: Size) -> tuple[int, int]:
    low = high = 0
    for monomial, coefficient in _terms(size).items():
        a, b = coefficient, coefficient
        for atom in monomial:
            c, d = _atom_bounds(atom)
            products = (a * c, a * d, b * c, b * d)
            a, b = min(products), max(products)
        low, high = low + a, high + b
    return low, high


def _atom_bounds(atom: Atom) -> tuple[int, int]:
    if isinstance(atom, Dim):
        return atom.min, atom.max
    low, high = bounds(atom.numerator)
    return low // atom.divisor, high // atom.divisor


def same(a: Size, b: Size) -> bool:
    """Whether two sizes have the same normal form (always equal); False means "not known to be
    equal".
    """
    return a == b


def equal(a: Size, b: Size) -> bool:
    """Whether two sizes are equal for all values in range; raises `ShapeError` where that is not
    decided.
    """
    if a == b:
        return True
    low, high = bounds(a - b)
    if low > 0 or high < 0:
        return False
    raise ShapeError(
        f"cannot decide whether the sizes {_with_ranges(a)} and {_with_ranges(b)} are equal; give "
        "them one Dim, or integers"
    )


def _with_ranges(size: Size) -> str:
    """A size with the ranges of its dimensions: ``n (n from 1 to 8)``."""
    ranges = [f"{d.name} from {d.min} to {d.max}" for d in sorted(dims(size), key=str)]
    return f"{size} ({', '.join(ranges)})" if ranges else str(size)


def less(a: Size, b: Size) -> bool:
    """Whether ``a < b`` for all values in range; raises `ShapeError` where that is not decided."""
    low, high = bounds(a - b)
    if high < 0:
        return True
    if low >= 0:
        return False
    raise ShapeError(
        f"cannot decide whether {a} < {b}; narrow the range of the Dim, or use integers"
    )


def quotient(a: Size, b: Size) -> Size | None:
    """``a / b`` where ``b`` divides ``a`` as a polynomial, else None."""
    if b == 0:
        return None
    result: Size = 0
    (lead, factor), *_ = _terms(b).items()
    while a != 0:
        (monomial, coefficient), *_ = _terms(a).items()
        rest = _removed(monomial, lead)
        if rest is None or coefficient % factor:
            return None
        term = _simplest({rest: coefficient // factor})
        result = result + term
        a = a - term * b
    return result


def _removed(monomial: Monomial, part: Monomial) -> Monomial | None:
    rest = list(monomial)
    for atom in part:
        if atom not in rest:
            return None
        rest.remove(atom)
    return tuple(rest)


def product(sizes: Iterable[Size]) -> Size:
    """The product of sizes; 1 for none."""
    return math.prod(sizes, start=1)


def shape_text(shape: Iterable[Size]) -> str:
    """A shape as a user writes it: ``(batch, 3, 56, 56)``."""
    items = [str(size) for size in shape]
    return f"({items[0]},)" if len(items) == 1 else f"({', '.join(items)})"
