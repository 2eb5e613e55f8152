"""Timing several sides in turn, each in a process of its own.

In one process they would disturb each other: threads that spin after a call of one library take the
processors from the next. One after the other would compare one minute of the machine with another.
So every side is started once, and then they take turns of a fraction of a second.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from dlc.errors import ArgumentError, Error, ExecutionError, explain

__all__ = ["Side", "Subject", "Times", "take_turns", "timed"]

#: Between two turns: longer than any library spins while it waits for more work.
PAUSE = 0.25
#: A sample is one call, or as many as take this long.
SAMPLE = 20e-6
FEWEST_SAMPLES = 5

Measurement: TypeAlias = Callable[[float], dict[str, float]]


@dataclass(frozen=True)
class Subject:
    """What a side's process measures.

    Attributes
    ----------
    measure : callable
        From the seconds of a turn to numbers by name; see `timed`.
    info : dict
        JSON values that are known from the start.
    """

    measure: Measurement
    info: Mapping[str, Any] = field(default_factory=dict)


def timed(run: Callable[[], object], warm: float = 0.1) -> Measurement:
    """A measurement of the time of a call: its median in ``seconds``, its least in ``fastest``."""
    _samples(run, warm)

    def measure(seconds: float) -> dict[str, float]:
        samples = _samples(run, seconds)
        return {"seconds": statistics.median(samples), "fastest": min(samples)}

    return measure


def _samples(run: Callable[[], object], seconds: float) -> list[float]:
    """Times of a call, taken for a number of seconds."""
    start = time.perf_counter()
    run()
    once = time.perf_counter() - start
    count = max(1, int(SAMPLE / max(once, 1e-9)))
    found: list[float] = []
    end = start + seconds
    while len(found) < FEWEST_SAMPLES or time.perf_counter() < end:
        start = time.perf_counter()
        for _ in range(count):
            run()
        found.append((time.perf_counter() - start) / count)
    return found


@dataclass(frozen=True)
class Side:
    """One of those that are compared.

    Attributes
    ----------
    factory : str
        ``module:function``; the function makes a `Subject` in the side's process.
    arguments : dict
        JSON values for it, by keyword.
    environment : dict
        Variables of its process, beside this one's.
    """

    factory: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Times:
    """What the turns of one side gave.

    Attributes
    ----------
    turns : tuple of dict
        One measurement a turn.
    info : dict
        The subject's.
    """

    turns: tuple[Mapping[str, float], ...]
    info: Mapping[str, Any]

    def median(self, name: str = "seconds") -> float:
        """The median over the turns."""
        return statistics.median(turn[name] for turn in self.turns)

    def spread(self, name: str = "seconds") -> tuple[float, float]:
        """The lowest and the highest turn."""
        values = [turn[name] for turn in self.turns]
        return min(values), max(values)


def take_turns(
    sides: Mapping[str, Side],
    *,
    rounds: int = 5,
    seconds: float = 0.3,
    tell: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> dict[str, Times]:
    """Measure sides in turn.

    Parameters
    ----------
    sides : mapping of str to Side
    rounds : int
        Turns of each side.
    seconds : float
        Length of a turn.
    tell : callable
        Called with what comes next, how many parts are done, and of how many.

    Raises
    ------
    ArgumentError
        There is no round.
    ExecutionError
        A side failed; the message says why.
    """
    if rounds < 1:
        raise ArgumentError(explain("--rounds", "at least 1", str(rounds)))
    total = len(sides) * (rounds + 1)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    with contextlib.ExitStack() as stack:
        started = {}
        for number, (name, side) in enumerate(sides.items()):
            tell(f"{name}: getting ready", number, total)
            started[name] = stack.enter_context(_started(name, side))
        for number in range(rounds):
            for place, (name, process) in enumerate(started.items()):
                tell(name, (number + 1) * len(sides) + place, total)
                time.sleep(PAUSE)
                found[name].append(_ask(name, process, seconds))
        return {name: Times(tuple(found[name]), process.info) for name, process in started.items()}


class _Process:
    """A side's process and what it said when it was ready."""

    def __init__(self, side: Side) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "dlc.cli.turns"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                **side.environment,
            },
            text=True,
        )
        self.info: Mapping[str, Any] = {}

    def ask(self, question: Any) -> Any:
        """One line there, one line back; None if the process has ended."""
        assert self.popen.stdin is not None
        assert self.popen.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.popen.stdin.write(json.dumps(question) + "\n")
            self.popen.stdin.flush()
        line = self.popen.stdout.readline()
        return json.loads(line) if line else None


@contextlib.contextmanager
def _started(name: str, side: Side) -> Iterator[_Process]:
    process = _Process(side)
    with process.popen:
        try:
            process.info = _ask(name, process, [side.factory, dict(side.arguments)])
            yield process
        finally:
            process.popen.kill()


def _ask(name: str, process: _Process, question: Any) -> Any:
    answer = process.ask(question)
    if answer is None:
        raise ExecutionError(f"the process of {name} ended (exit code {process.popen.wait()})")
    if "error" in answer:
        raise ExecutionError(f"{name}: {answer['error']}")
    return answer


def _serve() -> None:
    """The side's process: make the subject, then measure as often as asked."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a model prints

    def answer(value: Mapping[str, Any]) -> None:
        print(json.dumps(value), file=answers, flush=True)

    factory, arguments = json.loads(sys.stdin.readline())
    module, _, function = factory.partition(":")
    try:
        subject = getattr(importlib.import_module(module), function)(**arguments)
        answer(dict(subject.info))
        for line in sys.stdin:
            answer(subject.measure(json.loads(line)))
    except (Error, OSError) as error:
        answer({"error": str(error)})


if __name__ == "__main__":
    _serve()
