"""Measure the elementary functions against mpmath, and print `docs/elementary_functions.md`.

Errors are in units in the last place (ulp) of the exact result rounded to its format, so that a
correctly rounded function has 0.5.

Run: python tools/elementary_errors.py > docs/elementary_functions.md   (needs mpmath)
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import mpmath as mp
import numpy as np

from dlc.backends.native.emit import FUNCTIONS
from dlc.backends.native.frontend import Param, lower
from dlc.backends.native.isa import LEVELS, Isa, runnable
from dlc.backends.native.objects import build
from dlc.runtime.loader import link

EXACT: dict[str, Callable[..., mp.mpf]] = {
    "cos": mp.cos,
    "erf": mp.erf,
    "exp": mp.exp,
    "expm1": mp.expm1,
    "log": mp.log,
    "log1p": mp.log1p,
    "pow": mp.power,
    "rsqrt": lambda x: 1 / mp.sqrt(x),
    "sigmoid": lambda x: 1 / (1 + mp.exp(-x)),
    "sin": mp.sin,
    "tanh": mp.tanh,
}
mp.mp.prec = 160
DTYPES = ("float32", "float64")


def source(name: str) -> str:
    """A kernel that applies the function to each element."""
    operands = ", ".join(("x[i]", "w[i]")[: FUNCTIONS[name][0]])
    return (
        "def apply(x, w, y, n, thread, threads):\n"
        "    for i in range(n):\n"
        f"        y[i] = {name}({operands})\n"
    )


def lowered(name: str, dtype: str, isa: Isa) -> str:
    """LLVM text of that kernel."""
    params = [Param(each, f"{dtype}*") for each in "xwy"]
    return lower(source(name), "apply", [*params, Param("n", "int64")], isa)


def evaluate(name: str, isa: Isa, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """The function at x (and w, where it takes two operands), run on this machine."""
    y = np.full_like(x, np.nan)
    words = np.array([x.ctypes.data, w.ctypes.data, y.ctypes.data, x.size])
    with link([build(lowered(name, x.dtype.name, isa), ["apply"], isa)], ["apply"]) as linked:
        kernel = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
        kernel(linked.address("apply"))(words.ctypes.data, 0, 1)
    return y


def samples(name: str, dtype: str, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Operands: every magnitude with either sign, and evenly over the usual intervals."""
    rng = np.random.default_rng(seed)
    info = np.finfo(dtype)
    low, high = int(info.minexp) - info.nmant, int(info.maxexp)
    magnitudes = rng.choice([-1.0, 1.0], count) * 2.0 ** rng.uniform(low, high - 1, count)
    intervals = [rng.uniform(-bound, bound, count) for bound in (1, 3, 20, 105, 750)]
    quarters = rng.integers(-1000, 1000, count) * (np.pi / 2)
    x = np.concatenate([magnitudes, *intervals, quarters]).astype(dtype)
    if name != "pow":
        return x, x
    # Exponents such that the result is anywhere in the format's range.
    x = np.abs(x)
    steepness = np.maximum(np.abs(np.log(np.maximum(x.astype("float64"), 1e-300))), 1e-6)
    w = rng.uniform(low, high, x.size) * np.log(2) / steepness
    return x, np.clip(w, -info.max / 2, info.max / 2).astype(dtype)


def errors(name: str, x: np.ndarray, w: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Errors of y in ulp; infinite where y is finite and should not be, or the other way round."""
    result = np.zeros(x.size)
    for i in range(x.size):
        operands = [mp.mpf(float(v[i])) for v in (x, w)[: FUNCTIONS[name][0]]]
        exact = limit(name, operands)
        if not isinstance(exact, mp.mpf) or mp.isnan(exact):
            result[i] = 0.0 if np.isnan(y[i]) else np.inf
            continue
        with np.errstate(over="ignore"):
            nearest = y.dtype.type(float(exact))
        if np.isinf(nearest) or not np.isfinite(y[i]):
            result[i] = 0.0 if nearest == y[i] else np.inf
        else:
            unit = mp.mpf(float(np.spacing(np.abs(nearest))))
            result[i] = float(abs(mp.mpf(float(y[i])) - exact) / unit)
    return result


def limit(name: str, operands: list[mp.mpf]) -> mp.mpf | mp.mpc:
    """The exact value; at a pole, its limit."""
    x = operands[0]
    if (name, x) in (("log", 0), ("log1p", -1)):
        return -mp.inf
    if (name, x) == ("rsqrt", 0):
        return mp.inf
    return EXACT[name](*operands)


def rows(count: int) -> list[str]:
    """Rows of the table: the largest error found for each function, format and level."""
    result = []
    for name in EXACT:
        for dtype in DTYPES:
            x, w = samples(name, dtype, count)
            with np.errstate(invalid="ignore"):
                worst = [errors(name, x, w, evaluate(name, isa, x, w)).max() for isa in runnable()]
            result.append(f"| `{name}` | {dtype} | " + " | ".join(f"{e:.2f}" for e in worst) + " |")
    return result


PAGE = """\
# Elementary functions

Kernels compute these functions inline, as arithmetic without branches, so that loops over them
become vector code on every level (`dlc/backends/native/elementary.py`). Largest errors found, in
units in the last place, over {count} operands of every magnitude and of the usual intervals:

| function | format | {levels} |
| --- | --- | {rules} |
{rows}

`sqrt`, `floor`, `ceil`, `trunc`, `round`, `abs`, `copysign`, `fmax`, `fmin`, `relu` and, where the
level has it, `fma` are exact or correctly rounded. On x86-64-v2, which has no fused multiply-add,
`fma(x, y, z)` is `x * y + z`. A level's results do not depend on the machine, nor on whether a
function runs on a scalar or on a vector.

## How they are made

- The argument is reduced exactly or nearly so: `exp` by multiples of ln 2 in two parts, the first
  short enough for an exact product; `log` by its exponent bits; `sin` and `cos` by the method of
  Payne and Hanek, so that they hold for arguments of any magnitude.
- On what is left, a polynomial stands for the function's tail. `tools/fit_elementary.py` derives
  them: a Remez exchange minimises the largest error relative to the function, in 50 digits, and the
  coefficients are rounded to the format.
- The terms are put together small ones first, so that the last rounding dominates. Where a format
  is too short for that, it is doubled: `pow` and the reduction of `sin` and `cos` work in float64
  for float32, and in pairs of float64 for float64.
- Every choice is a select. NaN, infinities, signed zeros and denormals follow C99; `exp` underflows
  gradually.

This page is printed by `python tools/elementary_errors.py`; the tests hold float32 to 2 and float64
to 3 units.
"""


def main(count: int = 700) -> None:
    """Print the page."""
    levels = [isa.name for isa in LEVELS.values() if isa in runnable()]
    print(
        PAGE.format(
            count=f"{7 * count:,}",
            levels=" | ".join(levels),
            rules=" | ".join("---" for _ in levels),
            rows="\n".join(rows(count)),
        ),
        end="",
    )


if __name__ == "__main__":
    main()
