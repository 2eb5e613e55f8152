"""`assert_close`: are two arrays, or two structures of arrays, equal up to rounding?

The arguments, the default tolerances and the verdict are those of `torch.testing.assert_close`, so
that a test moves between the two libraries by its imports.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from dlc.errors import ArgumentError, Error, explain
from dlc.frontend.parameter import Variable, as_array

__all__ = ["TOLERANCES", "NotCloseError", "assert_close", "tolerances"]

Array: TypeAlias = "np.ndarray[Any, Any]"
Message: TypeAlias = str | Callable[[str], str] | None

#: PyTorch's default tolerances, relative and absolute, by element type; others must be equal.
TOLERANCES = {"float16": (1e-3, 1e-5), "float32": (1.3e-6, 1e-5), "float64": (1e-7, 1e-7)}


class NotCloseError(Error, AssertionError):
    """Two values differ by more than the tolerances."""


def assert_close(
    actual: Any,
    expected: Any,
    *,
    allow_subclasses: bool = True,
    rtol: float | None = None,
    atol: float | None = None,
    equal_nan: bool = False,
    check_device: bool = True,
    check_dtype: bool = True,
    check_layout: bool = True,
    check_stride: bool = False,
    msg: Message = None,
) -> None:
    """Check that ``|actual - expected| <= atol + rtol * |expected|`` in every element.

    Parameters
    ----------
    actual, expected : array, number, sequence or mapping
        NumPy arrays, parameters, torch tensors, Python numbers; or sequences and mappings of these,
        compared item by item.
    allow_subclasses : bool
        Whether the types may differ, apart from what they hold.
    rtol, atol : float, optional
        Both or none; by default PyTorch's for the element type, the laxer where the types differ.
    equal_nan : bool
        Whether two NaNs are equal.
    check_device, check_layout : bool
        Taken for PyTorch's sake: arrays of NumPy have one device and one layout.
    check_dtype, check_stride : bool
        Also compare element types; strides.
    msg : str or callable, optional
        In place of the message, or a function of the message.

    Raises
    ------
    NotCloseError
        They differ (an `AssertionError`): the message has the worst elements and where they are.
    ArgumentError
        Only one of ``rtol`` and ``atol`` is given.

    Examples
    --------
    >>> assert_close([1.0, np.zeros(3)], [1.0 + 1e-8, np.zeros(3)])
    """
    if (rtol is None) != (atol is None):
        got = "only " + ("atol" if rtol is None else "rtol")
        raise ArgumentError(explain("assert_close", "both rtol and atol, or none", got))
    given = None if rtol is None or atol is None else (rtol, atol)
    checks = _Checks(given, equal_nan, allow_subclasses, check_dtype, check_stride)
    if problem := checks.compare(actual, expected, ()):
        raise NotCloseError(msg(problem) if callable(msg) else msg or problem)


def tolerances(*dtypes: str) -> tuple[float, float]:
    """PyTorch's default relative and absolute tolerances, the laxest of several element types."""
    pairs = [TOLERANCES.get(dtype, (0.0, 0.0)) for dtype in dtypes]
    return max(r for r, _ in pairs), max(a for _, a in pairs)


class _Checks:
    """What is asked of two values; `compare` says what is wrong with them, or nothing."""

    def __init__(
        self,
        given: tuple[float, float] | None,
        equal_nan: bool,
        subclasses: bool,
        dtype: bool,
        stride: bool,
    ):
        self._given, self._equal_nan, self._subclasses = given, equal_nan, subclasses
        self._dtype, self._stride = dtype, stride

    def compare(self, actual: Any, expected: Any, path: tuple[Any, ...]) -> str:
        """Why two values are not close; empty if they are."""
        if not self._subclasses and type(actual) is not type(expected):
            names = f"{type(actual).__name__} and {type(expected).__name__}"
            return f"The types of the values do not match: {names}.{_where(path)}"
        if isinstance(actual, Mapping) and isinstance(expected, Mapping):
            if set(actual) != set(expected):
                unequal = sorted(map(repr, set(actual) ^ set(expected)))
                return f"The keys of the mappings do not match: {', '.join(unequal)}.{_where(path)}"
            return self._first([(key, actual[key], expected[key]) for key in expected], path)
        if _is_sequence(actual) and _is_sequence(expected):
            if len(actual) != len(expected):
                lengths = f"{len(actual)} != {len(expected)}"
                return f"The length of the sequences do not match: {lengths}{_where(path)}"
            return self._first(list(zip(range(len(actual)), actual, expected)), path)
        problem = self._arrays(actual, expected)
        return problem + _where(path) if problem else ""

    def _first(self, items: Sequence[tuple[Any, Any, Any]], path: tuple[Any, ...]) -> str:
        problems = (self.compare(a, b, (*path, key)) for key, a, b in items)
        return next(filter(None, problems), "")

    def _arrays(self, actual: Any, expected: Any) -> str:
        a, b = _array(actual), _array(expected)
        if a.shape != b.shape:
            return f"The values for attribute 'shape' do not match: {a.shape} != {b.shape}."
        typed = hasattr(actual, "dtype") and hasattr(expected, "dtype")
        if self._dtype and typed and a.dtype != b.dtype:
            return f"The values for attribute 'dtype' do not match: {a.dtype} != {b.dtype}."
        if self._stride and a.strides != b.strides:
            return f"The values for attribute 'strides' do not match: {a.strides} != {b.strides}."
        rtol, atol = self._given or tolerances(a.dtype.name, b.dtype.name)
        return _difference(a, b, rtol, atol, self._equal_nan)


def _difference(actual: Array, expected: Array, rtol: float, atol: float, equal_nan: bool) -> str:
    """The message about two arrays of one shape; empty where they are close."""
    wide = "complex128" if "c" in (actual.dtype.kind, expected.dtype.kind) else "float64"
    whole = actual.dtype.kind in "biu" and expected.dtype.kind in "biu"
    a, b = (x if whole else x.astype(wide) for x in (actual, expected))
    with np.errstate(all="ignore"):
        error = np.abs(a.astype(wide) - b.astype(wide))
        close = (a == b) | (np.isfinite(error) & (error <= atol + rtol * np.abs(b)))
        if equal_nan:
            close |= np.isnan(a) & np.isnan(b)
        if close.all():
            return ""
        relative = np.where(close, 0.0, error / np.abs(b))
    error = np.where(close, 0.0, error)
    if not a.ndim:
        return (
            f"Scalars are not close!\n\nExpected {expected.item()} but got {actual.item()}.\n"
            f"Absolute difference: {error.item()} (up to {atol} allowed)\n"
            f"Relative difference: {relative.item()} (up to {rtol} allowed)"
        )
    wrong = int((~close).sum())
    return (
        f"Tensor-likes are not {'equal' if not (rtol or atol) else 'close'}!\n\n"
        f"Mismatched elements: {wrong} / {close.size} ({100 * wrong / close.size:.1f}%)\n"
        f"Greatest absolute difference: {_greatest(error)} (up to {atol} allowed)\n"
        f"Greatest relative difference: {_greatest(relative)} (up to {rtol} allowed)"
    )


def _greatest(error: Array) -> str:
    """The greatest element and where it is; NaN, which no tolerance allows, before all others."""
    flat = np.where(np.isnan(error), np.inf, error)
    place = tuple(int(i) for i in np.unravel_index(int(flat.argmax()), error.shape))
    return f"{error[place]} at index {place}"


def _array(value: Any) -> Array:
    return value.numpy() if isinstance(value, Variable) else as_array(value)


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _where(path: tuple[Any, ...]) -> str:
    items = "".join(f"[{key!r}]" for key in path)
    return f"\n\nThe failure occurred for item {items}" if path else ""
