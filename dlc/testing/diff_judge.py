"""Is a difference rounding or a bug? The tolerances of a diff, and why they are what they are.

Everything is compared with float64. A sum of products obeys a bound that holds for any order of
summation, element by element: |y - y64| <= gamma_n (|x| * |w|), gamma_n = n u / (1 - n u) for n
roundings of unit u each (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section
3.1). Beyond it is a bug. It grows with n as rounding errors do not, so that a small bug can hide
below it; therefore every result, of a linear layer or not, must also keep within what rounding is
seen to do to it:

    |y - y64| <= ULPS u max|y64| + SLACK max(d, t)

d is how far the float64 result moves when inputs and parameters move by one rounding unit at
random, which no algorithm in that precision can be asked to undercut; t is PyTorch's own error in
that precision. Of both the 99th percentile is taken, in which one element on the edge of a jump (a
value that a layer rounds or compares) has no say.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from dlc.ops import winograd

Array: TypeAlias = "np.ndarray[Any, Any]"

#: Rounding units of the largest element that any result may be off by: a formula of some ten
#: operations (batch norm, GELU) rounds as often, and elementary functions err by up to 4 units.
ULPS = 16
#: How much worse than PyTorch's, or than what rounding the inputs does: the largest of a million
#: normal errors is twice their 99th percentile, and summing in another order may double them again.
SLACK = 8
#: Winograd's algorithm errs 3.5 times as much as a direct sum (`dlc.ops.winograd` measures it).
WINOGRAD = 4
#: Roundings of a linear layer besides its products: the bias, and the product of the first term.
EXTRA = 2

OK, ROUNDING, WRONG, NOTHING = "ok", "rounding", "WRONG", "nothing"


@dataclass(frozen=True)
class Judgement:
    """What came of a comparison.

    Attributes
    ----------
    verdict : str
        "ok": as near to float64 as PyTorch, or within a rounding unit of the largest element;
        "rounding": farther, as rounding explains; "WRONG"; "nothing": there is no number to
        compare.
    error, torch_error : float
        Largest distance from float64, of dlc and of PyTorch.
    tolerance, scale : float
        What is allowed; the largest element.
    share : float, optional
        For linear layers: the largest part of the bound that an element's error takes.
    why : str
        The worst element and what was expected there, or what else is wrong, or why there is
        nothing to compare; empty if all is well.
    """

    verdict: str
    error: float
    torch_error: float
    tolerance: float
    scale: float
    share: float | None = None
    why: str = ""


def judge(
    ours: Array,
    exact: Array,
    theirs: Array,
    disturbed: Array,
    bound: Array | None = None,
    factor: float = 1.0,
) -> Judgement:
    """Compare a result with float64.

    Parameters
    ----------
    ours, theirs : array
        Of dlc and of PyTorch.
    exact, disturbed : array
        In float64, the latter with inputs and parameters one rounding unit off.
    bound : array, optional
        What the error of each element must not exceed.
    factor : float
        How much more than otherwise is allowed.
    """
    if ours.shape != exact.shape:
        return _broken(f"has shape {ours.shape}, PyTorch's {exact.shape}")
    if ours.dtype != theirs.dtype:
        return _broken(f"has type {ours.dtype}, PyTorch's {theirs.dtype}")
    error, torch_error = distance(ours, exact), distance(theirs, exact)
    largest, scale = _largest(error), _largest(np.abs(exact))
    tolerance, unit = 0.0, 0.0
    if ours.dtype.kind == "f":
        unit = rounding_unit(ours.dtype) * scale
        spread = max(_most(distance(disturbed, exact)), _most(torch_error))
        tolerance = factor * (ULPS * unit + SLACK * spread)
    share = None if bound is None else _share(error, bound)
    beyond = share is not None and share > 1
    if largest > tolerance or beyond:
        allowed = None if largest > tolerance else bound
        why = worst(ours, exact, error if allowed is None else _relative(error, allowed))
        return Judgement(WRONG, largest, _largest(torch_error), tolerance, scale, share, why)
    if why := _no_number(exact):
        return Judgement(NOTHING, 0.0, 0.0, 0.0, 0.0, why=why)
    verdict = OK if largest <= max(_largest(torch_error), unit) else ROUNDING
    return Judgement(verdict, largest, _largest(torch_error), tolerance, scale, share)


def judge_norm(ours: Array, exact: Array, theirs: Array, disturbed: Array) -> Judgement:
    """Compare a result that came through a whole net, where an element may jump: by its norm."""
    if ours.shape != exact.shape:
        return _broken(f"has shape {ours.shape}, PyTorch's {exact.shape}")
    error, torch_error = distance(ours, exact), distance(theirs, exact)
    norms = [float(np.linalg.norm(e)) for e in (error, torch_error, distance(disturbed, exact))]
    unit = rounding_unit(ours.dtype) * float(np.linalg.norm(exact[np.isfinite(exact)]))
    allowed = ULPS * unit + SLACK * max(norms[1:])
    largest = _largest(error)
    tolerance = largest * allowed / norms[0] if norms[0] else allowed  # the same part is used
    numbers = largest, _largest(torch_error), tolerance, _largest(np.abs(exact))
    if norms[0] <= allowed:
        if why := _no_number(exact):
            return Judgement(NOTHING, 0.0, 0.0, 0.0, 0.0, why=why)
        return Judgement(OK if norms[0] <= max(norms[1], unit) else ROUNDING, *numbers)
    norm = f"has an error of norm {norms[0]:.3g}, PyTorch's of {norms[1]:.3g};"
    return Judgement(WRONG, *numbers, why=f"{norm} {worst(ours, exact, error)}")


def merge(parts: Iterable[tuple[str, Judgement]]) -> Judgement | None:
    """The worst of several results of one layer; its name comes before what is wrong with it."""
    found = list(parts)
    if not found:
        return None
    order = (NOTHING, OK, ROUNDING, WRONG)

    def badness(part: tuple[str, Judgement]) -> tuple[int, float]:
        each = part[1]
        return order.index(each.verdict), each.error / (each.tolerance or 1.0)

    name, chosen = max(found, key=badness)
    why = f"{name} {chosen.why}" if name and chosen.why else chosen.why
    shares = [each.share for _, each in found if each.share is not None]
    return Judgement(
        *(chosen.verdict, chosen.error, chosen.torch_error, chosen.tolerance, chosen.scale),
        share=max(shares, default=None),
        why=why,
    )


def _no_number(exact: Array) -> str:
    """Why there is nothing to compare with, in words; empty where there is a number."""
    if not exact.size:
        return "has no elements"
    return "is NaN in every element, of PyTorch too" if _nan(exact).all() else ""


def failed(why: str) -> Judgement:
    """The judgement of what does not compute at all."""
    return _broken(why)


def _broken(why: str) -> Judgement:
    return Judgement(WRONG, float("inf"), 0.0, 0.0, 0.0, why=why)


def distance(array: Array, exact: Array) -> Array:
    """|array - exact| in float64; none where both are NaN or the same infinity in the array's
    type.
    """
    if array.shape != exact.shape:
        return np.full(array.shape, np.inf)
    with np.errstate(all="ignore"):
        error = np.abs(array.astype(np.float64) - exact.astype(np.float64))
        rounded = exact.astype(array.dtype)
    same = (array == rounded) | (_nan(array) & _nan(rounded))
    strange = ~np.isfinite(error)
    return np.where(strange, np.where(same, 0.0, np.inf), error)


def worst(ours: Array, exact: Array, error: Array) -> str:
    """The element with the largest error, and how many are off as far as a tenth of it."""
    place = tuple(int(i) for i in np.unravel_index(int(np.argmax(error)), error.shape))
    largest = float(error[place])
    many = int((error > 0.1 * largest).sum()) if np.isfinite(largest) else int((error > 0).sum())
    at = ", ".join(map(str, place))
    return (
        f"at [{at}] is {float(ours[place]):.9g}, expected {float(exact[place]):.9g} "
        f"({many} of {error.size} elements are off as far as that, or a tenth of it)"
    )


def linear_bound(size: Array, products: int, dtype: Any) -> Array:
    """gamma_(products + EXTRA) times ``size``, and as much in float64 for the reference."""
    return (gamma(products + EXTRA, dtype) + gamma(products + EXTRA, np.float64)) * size


def winograd_bound(x: Array, w: Array, padding: tuple[int, int], dtype: Any) -> Array:
    """The bound of a 3x3 convolution, of stride 1, that Winograd's algorithm may have computed."""
    pairs = ((padding[0], padding[0]), (padding[1], padding[1]))
    bounds = [
        gamma(x.shape[1] + winograd.ROUNDINGS[m] + EXTRA, dtype)
        * winograd.magnitude(x, w, pairs, m)
        for m in winograd.POINTS
    ]
    return np.maximum(*bounds)


def gamma(n: int, dtype: Any) -> float:
    """n u / (1 - n u)."""
    unit = n * rounding_unit(dtype)
    return unit / (1 - unit)


def rounding_unit(dtype: Any) -> float:
    """Half the distance from 1 to the next number: 2^-24 for float32."""
    return float(np.finfo(dtype).eps) / 2


def _share(error: Array, bound: Array) -> float:
    return _largest(_relative(error, bound))


def _relative(error: Array, bound: Array) -> Array:
    with np.errstate(all="ignore"):
        return np.where(error == 0, 0.0, error / bound)


def _largest(values: Array) -> float:
    return float(np.nanmax(values, initial=0.0))


def _most(values: Array) -> float:
    """The 99th percentile of what is finite."""
    finite = values[np.isfinite(values)]
    return float(np.quantile(finite, 0.99)) if finite.size else 0.0


def _nan(array: Array) -> Array:
    return np.isnan(array) if array.dtype.kind == "f" else np.zeros(array.shape, bool)
