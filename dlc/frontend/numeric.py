"""What users give for numbers: whether it is one, and errors that say so.

True and False are none, though Python counts them among its integers.
"""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import TypeGuard

from dlc.errors import ArgumentError, explain

__all__ = ["check_whole", "is_number", "is_whole"]


def is_number(value: object) -> bool:
    """Whether it is a real number."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_whole(value: object, least: float = -math.inf) -> TypeGuard[int]:
    """Whether it is an integer of at least so much."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def check_whole(name: str, value: object, least: int = 1) -> int:
    """The integer of at least so much that was given.

    Raises
    ------
    ArgumentError
        It is none.
    """
    if not is_whole(value, least):
        raise ArgumentError(explain(name, f"an integer of at least {least}", repr(value)))
    return int(value)
