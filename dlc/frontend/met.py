"""What a trace met, and whether it still is as it was.

A graph bakes in what Python read while it was traced: which layers there are, their modes, their
element types. What is compiled for it holds as long as none of that has changed, whether or not
the traced module has registered what it used.
"""

from __future__ import annotations

import contextlib
import inspect
import operator
import os
import threading
import weakref
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from dlc.frontend.module import Module
from dlc.frontend.parameter import Variable, latest_change

#: Compiled variants of one function that are kept, the newest.
KEPT = 64

T = TypeVar("T")


class Met:
    """The modules and variables that a trace met, as they were.

    A module counts with all below it. Values of variables do not count: compiled code reads them
    anew.

    Parameters
    ----------
    function : callable
        What was traced.
    modes : mapping of Module to bool
        The modules that were called or asked for a part, with their training flags at that moment.
    variables : iterable of Variable
        The parameters and buffers that were read.
    since : int
        The moment (`latest_change`) at which the trace began.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        modes: Mapping[Module, bool],
        variables: Iterable[Variable],
        since: int,
    ):
        self._named = [weakref.ref(each) for each in named(function)]
        roots = dict.fromkeys([*modes, *(m for m in named(function) if isinstance(m, Module))])
        modules = dict.fromkeys(part for root in roots for part in root.modules())
        owned = (variable for root in roots for _, variable in root.named_variables())
        self._modules = [
            (weakref.ref(m), m._changed, modes.get(m, m.training), m._born > since) for m in modules
        ]
        self._variables = [(v, v._changed) for v in dict.fromkeys([*variables, *owned])]
        older = [*(m for m in modules if m._born <= since), *(v for v, _ in self._variables)]
        self._moved = any(owner._changed > since for owner in older)  # while it was traced

    def holds(self, function: Callable[..., Any]) -> bool:
        """Whether all is as it was, modes too, and ``function`` names the same modules."""
        return (
            self.may_hold()
            and all(m is None or m.training == mode for m, mode in self._modes())
            and _identical([ref() for ref in self._named], named(function))
        )

    def may_hold(self) -> bool:
        """Whether all but the modes, which may come back, is as it was."""
        modules = ((ref(), changed, made) for ref, changed, _, made in self._modules)
        return (
            not self._moved
            and all(made if m is None else m._changed == then for m, then, made in modules)
            and all(variable._changed == then for variable, then in self._variables)
        )

    def _modes(self) -> Iterable[tuple[Module | None, bool]]:
        return ((ref(), mode) for ref, _, mode, _ in self._modules)


class Variants(Generic[T]):
    """What was compiled for one function: by arguments, and each as long as what it met is as it
    was; the modes of its modules may change and come back.
    """

    def __init__(self) -> None:
        self._building = threading.RLock()
        _all.add(self)
        self._kept: dict[Hashable, tuple[_Variant[T], ...]] = {}

    def find(self, key: Hashable, function: Callable[..., Any]) -> T | None:
        """What was compiled for such arguments and holds now."""
        now = latest_change()
        for variant in self._kept.get(key, ()):
            if variant.holds(now, function):
                return variant.compiled
        return None

    def make(
        self, key: Hashable, function: Callable[..., Any], build: Callable[[], tuple[T, Met]]
    ) -> T:
        """What ``build`` gives, or what another thread has built meanwhile."""
        with self._building:
            found = self.find(key, function)
            if found is None:
                found, met = build()
                others = [each for each in self._kept.pop(key, ()) if each.met.may_hold()]
                while len(self._kept) >= KEPT:
                    del self._kept[next(iter(self._kept))]
                self._kept[key] = (_Variant(found, met), *others[: KEPT - 1])
            return found


_all: weakref.WeakSet[Variants[Any]] = weakref.WeakSet()


def _after_fork() -> None:
    """In a forked child nobody builds: the threads that did are not there."""
    for variants in _all:
        variants._building = threading.RLock()


os.register_at_fork(after_in_child=_after_fork)


@dataclass
class _Variant(Generic[T]):
    compiled: T
    met: Met
    checked: tuple[int, bool] = (-1, False)

    def holds(self, now: int, function: Callable[..., Any]) -> bool:
        """Whether it holds at this moment, at which it is looked at only once."""
        checked = self.checked
        if checked[0] != now:
            checked = self.checked = (now, self.met.holds(function))
        return checked[1]


def named(function: Callable[..., Any]) -> list[Any]:
    """The modules and variables that a function's own code names: in its closure, in globals."""
    inner: Any = inspect.unwrap(function)
    code = getattr(inner, "__code__", None)
    if code is None:
        return []
    values = [inner.__globals__.get(name) for name in code.co_names]
    for cell in inner.__closure__ or ():
        with contextlib.suppress(ValueError):  # a name that has no value yet
            values.append(cell.cell_contents)
    return [value for value in values if isinstance(value, (Module, Variable))]


def _identical(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(map(operator.is_, a, b))
