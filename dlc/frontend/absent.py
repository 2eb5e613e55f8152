"""What to say of a name that a public module does not have: users come with PyTorch's names.

A layer that is not there yet and a slip of the pen look alike to Python; the error tells both.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import NoReturn

from dlc.errors import AttributeError

__all__ = ["explained"]


def explained(
    module: str, known: Iterable[str], instead: Mapping[str, str] | None = None
) -> Callable[[str], NoReturn]:
    """The ``__getattr__`` of a module.

    Parameters
    ----------
    module : str
        What users call it.
    known : iterable of str
        Its public names.
    instead : mapping of str to str, optional
        What to use for names of PyTorch's that are called otherwise here.
    """
    by_letters = {name.lower(): name for name in known}

    def absent(name: str) -> NoReturn:
        if name.startswith("_"):
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        found = difflib.get_close_matches(name.lower(), by_letters, 3)
        near = [by_letters[each] for each in found]
        if other := (instead or {}).get(name):
            advice = f"use {other}"
        else:
            advice = "docs/dsl.md lists what PyTorch has and dlc has not yet"
            advice = f"nearest: {', '.join(near)}; {advice}" if near else advice
        raise AttributeError(f"{module} has no {name!r}; {advice}")

    return absent
