"""Derive the polynomials of `dlc/backends/native/elementary.py`, and write them as a table.

Each row of `FITS` is a function that is smooth on an interval, the weight by which its error
counts, and a degree. A discrete Remez exchange in many digits finds the polynomial whose largest
weighted error is least; its coefficients are then rounded to the format they are used in. The forms
are such that a coefficient's rounding counts little: the polynomial is what is left of a function
after its first terms, which the code adds exactly.

Run: python tools/fit_elementary.py > dlc/backends/native/coefficients.py   (needs mpmath)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mpmath as mp
import numpy as np

mp.mp.dps = 50
GRID = 600

Function = Callable[[mp.mpf], mp.mpf]


@dataclass(frozen=True)
class Fit:
    """What to fit: `rest` on [low, high], its error weighed by `weight`, at a degree a format.

    The largest weighted error is that of the whole function, relative to it: at most half a unit
    in the last place, 2**-25 or 2**-54, leaves the rounding of the operations to dominate.
    """

    name: str
    form: str
    rest: Function
    weight: Function
    low: mp.mpf
    high: mp.mpf
    degree: dict[str, int]


@dataclass(frozen=True)
class Split:
    """A constant as a sum of `count` numbers of `bits` bits each, the largest first.

    A product with one of them is exact where the other factor is short enough. The last of two
    holds all its format can. With `integers`, each is given as the integer of its bits.
    """

    name: str
    value: Callable[[], mp.mpf]
    dtype: str
    bits: int
    count: int
    integers: bool = False

    def parts(self) -> list[mp.mpf]:
        """The numbers, from enough digits for all of them."""
        with mp.workdps(420):
            parts, rest = [], self.value()
            place = mp.mpf(2) ** (mp.floor(mp.log(rest, 2)) + 1)
            for i in range(self.count):
                unit = place * mp.mpf(2) ** (-self.bits * (i + 1))
                last_of_two = self.count == 2 and i == 1
                part = rest if last_of_two else mp.floor(rest / unit) * unit
                parts.append(part / unit if self.integers else part)
                rest -= part
            return parts


def log_rest(z: mp.mpf) -> mp.mpf:
    """What follows 2 s in log((1 + s) / (1 - s)), over s^3, at z = s^2."""
    s = mp.sqrt(z)
    return (mp.log((1 + s) / (1 - s)) / s - 2) / z


HALF_LN2 = mp.log(2) / 2
S_MAX = (mp.sqrt(2) - 1) / (mp.sqrt(2) + 1)
QUARTER = mp.pi / 4

FITS = (
    Fit(
        "exp",
        "exp(r) = 1 + r + r^2 P(r), |r| <= ln 2 / 2",
        lambda r: (mp.exp(r) - 1 - r) / r**2,
        lambda r: r**2 / mp.exp(r),
        -HALF_LN2 * 1.0001,
        HALF_LN2 * 1.0001,
        {"float32": 4, "float64": 9},
    ),
    Fit(
        "log",
        "log(1 + f) = f - f^2 / 2 + f^3 P(f), sqrt(1/2) <= 1 + f <= sqrt(2)",
        lambda f: (mp.log(1 + f) - f + f**2 / 2) / f**3,
        lambda f: f**3 / mp.log(1 + f),
        mp.sqrt(0.5) - 1,
        mp.sqrt(2) - 1,
        {"float32": 7},
    ),
    Fit(
        "atanh",
        "log((1 + s) / (1 - s)) = 2 s + s^3 P(s^2), |s| <= (sqrt(2) - 1) / (sqrt(2) + 1)",
        log_rest,
        lambda z: z / (2 + z * log_rest(z)),
        mp.mpf(0),
        S_MAX**2,
        {"float64": 6},
    ),
    Fit(
        "atanh_tail",
        "log((1 + s) / (1 - s)) = 2 s + 2/3 s^3 + s^5 P(s^2), the same s",
        lambda z: (log_rest(z) - mp.mpf(2) / 3) / z,
        lambda z: z**2 / (2 + z * log_rest(z)),
        mp.mpf(0),
        S_MAX**2,
        {"float64": 7},
    ),
    Fit(
        "tanh_small",
        "tanh(x) = x + x^3 P(x^2), |x| <= 0.55",
        lambda z: (mp.tanh(mp.sqrt(z)) / mp.sqrt(z) - 1) / z,
        lambda z: z * mp.sqrt(z) / mp.tanh(mp.sqrt(z)),
        mp.mpf(0),
        mp.mpf(0.55) ** 2,
        {"float32": 4, "float64": 10},
    ),
    Fit(
        "erf_small",
        "erf(x) = x + x P(x^2), |x| <= 1",
        lambda z: mp.erf(mp.sqrt(z)) / mp.sqrt(z) - 1,
        lambda z: mp.sqrt(z) / mp.erf(mp.sqrt(z)),
        mp.mpf(0),
        mp.mpf(1),
        {"float32": 6, "float64": 11},
    ),
    Fit(
        "erfc_log",
        "log(1 - erf(x)) = P(x - 2), 1 <= x <= 6 (float32: 4)",
        lambda t: mp.log(mp.erfc(t + 2)),
        lambda t: mp.erfc(t + 2) / mp.erf(t + 2),
        mp.mpf(-1),
        mp.mpf(4),
        {"float32": 6, "float64": 17},
    ),
    Fit(
        "sin",
        "sin(r) = r + r^3 P(r^2), |r| <= pi / 4",
        lambda z: (mp.sin(mp.sqrt(z)) / mp.sqrt(z) - 1) / z,
        lambda z: z * mp.sqrt(z) / mp.sin(mp.sqrt(z)),
        mp.mpf(0),
        QUARTER**2 * 1.0001,
        {"float32": 2, "float64": 5},
    ),
    Fit(
        "cos",
        "cos(r) = 1 - r^2 / 2 + r^4 P(r^2), |r| <= pi / 4",
        lambda z: (mp.cos(mp.sqrt(z)) - 1 + z / 2) / z**2,
        lambda z: z**2 / mp.cos(mp.sqrt(z)),
        mp.mpf(0),
        QUARTER**2 * 1.0001,
        {"float32": 2, "float64": 5},
    ),
)

SPLITS = (
    Split("ln2", lambda: mp.log(2), "float32", 15, 2),
    Split("ln2", lambda: mp.log(2), "float64", 42, 2),
    Split("two_thirds", lambda: mp.mpf(2) / 3, "float64", 53, 2),
    Split("two_pi", lambda: 2 * mp.pi, "float64", 53, 2),
    Split("turn", lambda: 1 / (2 * mp.pi), "float64", 28, 7),
    Split("turn_bits", lambda: 1 / (2 * mp.pi), "float64", 26, 46, integers=True),
)


def remez(fit: Fit, degree: int, high: mp.mpf) -> tuple[list[mp.mpf], mp.mpf]:
    """The best polynomial on a grid, constant term first, and its largest weighted error."""
    middle, half = (fit.low + high) / 2, (high - fit.low) / 2
    points = [middle - half * mp.cos(mp.pi * (i + 0.5) / GRID) for i in range(GRID)]
    values, weights = [fit.rest(t) for t in points], [fit.weight(t) for t in points]
    nodes = [(2 * i + 1) * GRID // (2 * (degree + 2)) for i in range(degree + 2)]
    for _ in range(30):
        system = mp.matrix(degree + 2, degree + 2)
        for row, node in enumerate(nodes):
            for column in range(degree + 1):
                system[row, column] = points[node] ** column
            system[row, degree + 1] = (-1) ** row / weights[node]
        solution = mp.lu_solve(system, mp.matrix([values[node] for node in nodes]))
        coefficients = list(solution[: degree + 1])
        reverse = coefficients[::-1]
        errors = [
            (v - mp.polyval(reverse, t)) * w
            for t, v, w in zip(points, values, weights, strict=True)
        ]
        largest = max(abs(error) for error in errors)
        if largest <= abs(solution[degree + 1]) * 1.001:
            break
        nodes = exchange(errors, degree + 2)
    return coefficients, largest


def exchange(errors: list[mp.mpf], count: int) -> list[int]:
    """Where the error is extreme: one place in each run of one sign, the best `count` in a row."""
    places: list[int] = []
    for i, error in enumerate(errors):
        if places and (error > 0) == (errors[places[-1]] > 0):
            if abs(error) > abs(errors[places[-1]]):
                places[-1] = i
        else:
            places.append(i)
    while len(places) > count:
        places.pop(0 if abs(errors[places[0]]) < abs(errors[places[-1]]) else -1)
    return places


def rounded(coefficient: mp.mpf, dtype: str) -> float:
    """The nearest number of the format."""
    if dtype == "float64":
        return float(coefficient)
    return float(np.float32(float(coefficient)))


HEADER = '''"""Polynomial coefficients, constant term first, as tools/fit_elementary.py prints them.

They are apart from the code that uses them so that the program that derived them can do so again.
"""

from __future__ import annotations

COEFFICIENTS: dict[tuple[str, str], tuple[float, ...]] = {'''


def main() -> None:
    """Print the module of coefficients."""
    print(HEADER)
    for fit in FITS:
        print(f"    # {fit.form}")
        for dtype, degree in fit.degree.items():
            high = mp.mpf(2) if (fit.name, dtype) == ("erfc_log", "float32") else fit.high
            coefficients, error = remez(fit, degree, high)
            print(f"    # Largest error 2^{float(mp.log(error, 2)):.1f}.")
            print_row(fit.name, dtype, coefficients)
    for split in SPLITS:
        print(f"    # {split.count} numbers of {split.bits} bits whose sum is {split.name}.")
        print_row(split.name, split.dtype, split.parts())
    print("}")


def print_row(name: str, dtype: str, numbers: list[mp.mpf]) -> None:
    """Print one row of the table."""
    print(f'    ("{name}", "{dtype}"): (')
    for number in numbers:
        print(f"        {rounded(number, dtype)!r},")
    print("    ),")


if __name__ == "__main__":
    main()
