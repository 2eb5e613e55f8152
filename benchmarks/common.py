"""What all benchmarks share: their options, and the one way in which sides are measured and shown.

Every side runs in a process of its own and they take turns (`dlc.cli.turns`), so that a slow minute
of the machine is everybody's. A result is the median of the turns' medians, with the spread of the
turns beside it: where that is wide, the machine had something else to do, and nothing of it should
be quoted.
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dlc.cli.turns import Side, Times, take_turns
from dlc.progress import bar
from dlc.report import duration, percent, quantity, table, text

#: A machine with more to do than this, beside the benchmark itself, gives no numbers to quote.
QUIET_LOAD = 0.5


@dataclass(frozen=True)
class Options:
    """What the command line says.

    Attributes
    ----------
    threads : int
        Of every side.
    rounds : int
        Turns of every side.
    seconds : float
        Length of a turn.
    only : str
        Words with commas between them: runs the cases whose name contains one of them.
    best : bool
        Show the fastest call of each side, which on a busy machine comes closest to a quiet one.
    """

    threads: int = 2
    rounds: int = 5
    seconds: float = 0.3
    only: str = ""
    best: bool = False

    def wants(self, name: str) -> bool:
        """Whether to run a case."""
        return any(word in name for word in self.only.split(","))


@dataclass(frozen=True)
class Result:
    """What a benchmark found.

    Attributes
    ----------
    title : str
    columns : sequence of str
    rows : sequence of sequences of str
        As they are printed.
    values : list of dict
        The same as JSON values, times in seconds.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    values: Sequence[Mapping[str, Any]] = field(default_factory=list)

    def __str__(self) -> str:
        return text(table(self.columns, self.rows, title=self.title), width=200)


@dataclass(frozen=True)
class Compared:
    """Something that several sides did.

    Attributes
    ----------
    name : str
    flops : int
        Floating-point operations, two for each multiply-add.
    times : dict of str to (float, float, float)
        For each side: what counts, the fastest and the slowest turn, in seconds.
    machine : Times
        Its peak and how long threads took to meet, in the same turns.
    target : float
        The ratio to the best other side that is to be reached; 0 where there is none.
    """

    name: str
    flops: int
    times: Mapping[str, tuple[float, float, float]]
    machine: Times
    target: float = 0.0

    @property
    def ratio(self) -> float:
        """Time of the best other side over dlc's."""
        others = [median for side, (median, _, _) in self.times.items() if side != "dlc"]
        return min(others) / self.times["dlc"][0]

    @property
    def share(self) -> float:
        """Of the measured peak."""
        return self.flops / self.times["dlc"][0] / self.machine.median("flops")

    def row(self, sides: Sequence[str]) -> list[str]:
        """As it is printed."""
        median, fastest, slowest = self.times["dlc"]
        return [
            self.name,
            quantity(self.flops, "FLOP"),
            duration(median),
            percent((slowest - fastest) / median),
            *(duration(self.times[side][0]) if side in self.times else "" for side in sides),
            f"{self.ratio:.2f} ×",
            f"{self.target:g} ×" if self.target else "",
            percent(self.share),
            duration(self.machine.median("meeting")),
        ]

    def value(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "name": self.name,
            "flops": self.flops,
            "seconds": {side: median for side, (median, _, _) in self.times.items()},
            "ratio": self.ratio,
            "target": self.target,
            "share": self.share,
            "meeting": self.machine.median("meeting"),
        }


def comparison(title: str, cases: Sequence[Compared]) -> Result:
    """A table of cases."""
    sides = list(dict.fromkeys(s for case in cases for s in case.times if s != "dlc"))
    columns = ["case", "FLOPs", "dlc", "spread", *sides, "ratio", "target", "of peak", "to meet"]
    if cases:
        peak = statistics.median(case.machine.median("flops") for case in cases)
        title = f"{title}, peak {quantity(peak, 'FLOP/s')}"
    return Result(
        title, columns, [case.row(sides) for case in cases], [case.value() for case in cases]
    )


def measure(name: str, sides: Mapping[str, Side], options: Options) -> dict[str, Times]:
    """The turns of all sides, among them the machine's peak, with a progress bar."""
    peak = Side("dlc.cli.sides:peak", {"threads": options.threads})
    with bar(name) as tell:
        return take_turns(
            {**sides, "peak": peak}, rounds=options.rounds, seconds=options.seconds, tell=tell
        )


def measure_all(
    name: str, sides: Sequence[str], chosen: Sequence[int], options: Options
) -> dict[str, Times]:
    """The turns of sides whose processes measure all chosen cases in each of them.

    Such a process is what ``subject(side, chosen, threads)`` of the benchmark of that name makes.
    """
    common, variables = {"chosen": chosen, "threads": options.threads}, environment(options.threads)
    factory = f"benchmarks.{name}:subject"
    made = {side: Side(factory, {**common, "side": side}, variables) for side in sides}
    return measure(name, made, options)


def summary(times: Times, options: Options) -> tuple[float, float, float]:
    """Median, fastest and slowest turn; of the fastest calls, the fastest of all comes first."""
    fastest, slowest = times.spread("fastest" if options.best else "seconds")
    return (fastest if options.best else times.median(), fastest, slowest)


def environment(threads: int) -> dict[str, str]:
    """Variables for a side that is not dlc's."""
    return {"OMP_NUM_THREADS": str(threads)}


def warn_if_busy() -> None:
    """Say so if something else is running."""
    busy = os.getloadavg()[0]
    if busy > QUIET_LOAD:
        print(f"The machine is busy (load {busy:.1f}): numbers not to quote.", file=sys.stderr)
