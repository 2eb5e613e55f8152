"""A group of parameters and its options, such as the learning rate.

A compiled step reads numbers from memory, so that a schedule changes them and compiles nothing.
Only what decides which arithmetic there is (a flag, whether a number is zero) is compiled in.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dlc.errors import ArgumentError, explain
from dlc.frontend.parameter import Buffer, Parameter, touch
from dlc.frontend.scope import Scope
from dlc.ir.node import Node

#: What schedules note in a group beside its options.
NOTES = ("initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum")
#: Options that are True or False.
FLAGS = ("nesterov", "maximize", "centered", "amsgrad", "decoupled_weight_decay")
#: Numbers for which zero leaves arithmetic out of the step.
SWITCHES = ("weight_decay", "momentum", "dampening", "lr_decay")
#: Least and greatest value of a number, where the least is not 0 or there is a greatest.
LIMITS = {"betas": (0.0, np.nextafter(1.0, 0.0)), "rho": (0.0, 1.0)}


class Group(Mapping[str, Any]):
    """Parameters and their options, by PyTorch's names: ``group["lr"]`` reads and writes a float.

    Parameters
    ----------
    owner : str
        The optimiser's name, for messages.
    params : list of Parameter
    options : mapping of str to number, pair of numbers or bool
    """

    def __init__(self, owner: str, params: list[Parameter], options: Mapping[str, Any]):
        self.params = params
        self._steps: dict[Parameter, Buffer] = {}
        self._unstepped = _count(0)
        self._owner = owner
        self._flags = {
            name: self._flag(name, value) for name, value in options.items() if name in FLAGS
        }
        self._numbers = {
            name: tuple(map(Buffer, self._within(name, value)))
            for name, value in options.items()
            if name not in FLAGS
        }
        self._notes: dict[str, float] = {}

    # The options as a user sees them.

    def __getitem__(self, name: str) -> Any:
        if name == "params":
            return self.params
        if name in self._flags:
            return self._flags[name]
        if name in self._notes:
            return self._notes[name]
        values = tuple(number.item() for number in self._numbers[name])
        return values if name == "betas" else values[0]

    def __setitem__(self, name: str, value: Any) -> None:
        if name in self._numbers:
            for buffer, number in zip(
                self._numbers[name], self._numbers_of(name, value), strict=True
            ):
                buffer.data = number
        elif name in self._flags:
            self._flags[name] = self._flag(name, value)
        elif name in NOTES:
            self._notes[name] = float(value)
        else:
            known = ", ".join((*self._numbers, *self._flags))
            expected = f"an option of {known}"
            raise ArgumentError(explain(f"a group of {self._owner}", expected, repr(name)))

    def __iter__(self) -> Iterator[str]:
        return iter(("params", *self._numbers, *self._flags, *self._notes))

    def __len__(self) -> int:
        return 1 + len(self._numbers) + len(self._flags) + len(self._notes)

    def options(self) -> dict[str, Any]:
        """All of it but the parameters."""
        return {name: self[name] for name in self if name != "params"}

    # The options as a step sees them.

    def number(self, name: str) -> Node:
        """A number as a float64 scalar, in a trace."""
        return self.numbers(name)[0]

    def numbers(self, name: str) -> tuple[Node, ...]:
        """The numbers of an option that has several, as `number`."""
        return tuple(buffer._node for buffer in self._numbers[name])

    def on(self, name: str) -> bool:
        """Whether a flag is set, or a number is not zero: what is compiled in."""
        if name in self._flags:
            return self._flags[name]
        return any(buffer._array != 0 for buffer in self._numbers[name])

    def now(self, name: str) -> float:
        """A number as it is now, even in a trace: for what is made once, such as a first value."""
        return float(self._numbers[name][0]._array)

    def structure(self) -> tuple[object, ...]:
        """What of the options is compiled in."""
        switches = [name for name in SWITCHES if name in self._numbers]
        return tuple((name, self.on(name)) for name in (*self._flags, *switches))

    def introduce(self, scope: Scope, prefix: str) -> None:
        """Name the numbers in a trace."""
        for number, steps in enumerate(self._cohorts()):
            scope.name(steps, f"{prefix}.step" + (f".{number}" if number else ""))
        for name, buffers in self._numbers.items():
            for i, buffer in enumerate(buffers):
                scope.name(buffer, f"{prefix}.{name}" + (f".{i}" if len(buffers) > 1 else ""))

    # How many steps each parameter has taken: one number for all that took the same ones, so that
    # what a step computes from it is computed once.

    def steps_of(self, parameter: Parameter) -> int:
        """The number of steps that a parameter has taken."""
        return int(self._counter(parameter).item())

    def set_steps(self, numbers: Mapping[Parameter, int]) -> None:
        """Say how many steps each parameter has taken. Counters stay where they can, because
        compiled steps write to them.
        """
        for steps, members in self._cohorts().items():
            counters = {numbers[members[0]]: steps}
            for parameter in members:
                number = numbers[parameter]
                if number not in counters:
                    counters[number] = _count(number)
                    touch(steps)
                self._steps[parameter] = counters[number]
            steps.data = np.array(numbers[members[0]], np.int64)

    def cohorts(self, trained: Collection[Parameter]) -> list[tuple[Buffer, list[Parameter]]]:
        """What a step trains, by counter. The rest of a cohort gets one of its own, as it is now:
        as in PyTorch, a parameter without a gradient takes no step. What was compiled for the whole
        cohort is compiled anew.
        """
        found = []
        for steps, members in self._cohorts().items():
            ours = [parameter for parameter in members if parameter in trained]
            if ours:
                found.append((steps, ours))
            if 0 < len(ours) < len(members):
                rest = [parameter for parameter in members if parameter not in trained]
                self._steps.update(dict.fromkeys(rest, _count(steps._array)))
                touch(steps)
        return found

    def _cohorts(self) -> dict[Buffer, list[Parameter]]:
        """The parameters of each counter."""
        self._steps = {parameter: self._counter(parameter) for parameter in self.params}
        found: dict[Buffer, list[Parameter]] = {}
        for parameter, steps in self._steps.items():
            found.setdefault(steps, []).append(parameter)
        return found

    def _counter(self, parameter: Parameter) -> Buffer:
        """The counter of a parameter; all new ones share one that says 0."""
        if parameter in self._steps:
            return self._steps[parameter]
        if self._unstepped._array != 0:
            self._unstepped = _count(0)
        return self._steps.setdefault(parameter, self._unstepped)

    # Checks.

    def _numbers_of(self, name: str, value: Any) -> tuple[np.ndarray[Any, Any], ...]:
        """The numbers of an option, each a float64 scalar."""
        count = 2 if name == "betas" else 1
        given = value if count > 1 and isinstance(value, Sequence) else (value,)
        try:
            texts = any(isinstance(number, (str, bytes)) for number in given)
            numbers = () if texts else tuple(np.array(float(n), np.float64) for n in given)
        except (TypeError, ValueError):
            numbers = ()
        if len(numbers) != count or not np.isfinite(numbers).all():
            expected = "two finite numbers" if count > 1 else "a finite number"
            raise ArgumentError(explain(f"{name} of {self._owner}", expected, repr(value)))
        return numbers

    def _within(self, name: str, value: Any) -> tuple[np.ndarray[Any, Any], ...]:
        """The same, within the limits of what a user may ask for (schedules may pass them)."""
        numbers, (low, high) = self._numbers_of(name, value), LIMITS.get(name, (0.0, np.inf))
        if not all(low <= number <= high for number in numbers):
            limit = "below 1" if name == "betas" else f"at most {high:g}"
            expected = f"at least {low:g}" + (f" and {limit}" if high < np.inf else "")
            raise ArgumentError(explain(f"{name} of {self._owner}", expected, repr(value)))
        return numbers

    def _flag(self, name: str, value: Any) -> bool:
        if not isinstance(value, bool):
            raise ArgumentError(explain(f"{name} of {self._owner}", "True or False", repr(value)))
        return value


def _count(number: Any) -> Buffer:
    """A counter of steps."""
    return Buffer(np.array(number, np.int64))
