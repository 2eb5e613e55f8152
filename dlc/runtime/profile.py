"""Profiles: where the time of a call goes, kernel by kernel, and how near to the peak each runs.

Kernels are timed inside real calls, the clock read by a step of its own between each two of them:
what a kernel meets (data still in the cache or not, weights that were pushed out) is what it meets
in a call without a profile. All threads take part in each of them, however busy the machine is:
times of some calls with one thread and some with all would be no times of either.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np

from dlc.errors import ArgumentError, explain
from dlc.ir.plan import Plan
from dlc.ir.sizes import evaluate
from dlc.report import duration, percent, quantity, table, text
from dlc.runtime import frame
from dlc.runtime.peak import Peak
from dlc.runtime.pool import Pool

__all__ = ["Profile", "ProfiledKernel", "measure"]

Array: TypeAlias = "np.ndarray[Any, Any]"
#: How long calls are repeated where the caller does not say how often, and at least how often.
SECONDS, FEWEST = 0.3, 7


@dataclass(frozen=True)
class ProfiledKernel:
    """One kernel call of a profile.

    Attributes
    ----------
    name, label : str
        The native symbol, and what it computes for which modules.
    seconds : float
        Median over the calls, with the barrier behind it.
    flops, bytes : int
        Floating-point operations, and bytes read and written at least, at the sizes of this call.
    share : float
        Of the machine's peak in floating-point operations.
    """

    name: str
    label: str
    seconds: float
    flops: int
    bytes: int
    share: float

    @property
    def intensity(self) -> float:
        """Floating-point operations for each byte that must be moved."""
        return self.flops / self.bytes if self.bytes else 0.0


@dataclass(frozen=True)
class Profile:
    """Times of one executable on given arrays; as text, a table.

    Attributes
    ----------
    kernels : tuple of ProfiledKernel
        In the order in which they run.
    call : float
        Median seconds of a whole call without a profile, entry from Python included.
    clock : float
        Seconds that reading the clock adds to each kernel.
    repeats : int
        Number of profiled calls.
    peak : Peak
        What the shares refer to.
    starts : tuple of float
        When each kernel of the call of median length began and when the last one ended, in seconds.
    """

    kernels: tuple[ProfiledKernel, ...]
    call: float
    clock: float
    repeats: int
    peak: Peak
    starts: tuple[float, ...]

    @property
    def seconds(self) -> float:
        """The kernels' times together."""
        return sum(kernel.seconds for kernel in self.kernels)

    @property
    def flops(self) -> int:
        """The kernels' operations together."""
        return sum(kernel.flops for kernel in self.kernels)

    @property
    def share(self) -> float:
        """Share of the peak over a whole call without a profile."""
        return self.flops / self.call / self.peak.flops

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON values; times in seconds."""
        return {
            "kernels": [asdict(kernel) for kernel in self.kernels],
            "call": self.call,
            "clock": self.clock,
            "repeats": self.repeats,
            "peak": asdict(self.peak),
        }

    def chrome_trace(self, path: str | Path) -> None:
        """Write one call as a trace to open in a browser: chrome://tracing, ui.perfetto.dev."""
        events = [
            {
                "name": kernel.label or kernel.name,
                "cat": "kernel",
                "ph": "X",
                "ts": 1e6 * start,
                "dur": 1e6 * (end - start),
                "pid": 0,
                "tid": 0,
                "args": {"kernel": kernel.name, "FLOPs": kernel.flops, "bytes": kernel.bytes},
            }
            for kernel, start, end in zip(self.kernels, self.starts, self.starts[1:])
        ]
        text = json.dumps({"traceEvents": events, "displayTimeUnit": "ns"}, indent=1)
        Path(path).write_text(text, encoding="utf-8")

    def __rich__(self) -> Any:
        return table(
            ("kernel", "time", "of all", "FLOPs", "bytes", "FLOP/B", "FLOP/s", "of peak"),
            [self._row(kernel) for kernel in self.kernels],
            footer=self._totals(),
            title=self._title(),
        )

    def __str__(self) -> str:
        return text(self)

    def _title(self) -> str:
        peak = self.peak
        threads = f"{peak.threads} thread{'s' * (peak.threads > 1)}"
        return (
            f"A call takes {duration(self.call)} on {threads}, "
            f"{percent(self.share)} of the peak of "
            f"{quantity(peak.flops, 'FLOP/s')} ({peak.isa}, {peak.dtype}).\n"
            f"Medians of {self.repeats} calls; each row holds about "
            f"{duration(self.clock)} for the clock."
        )

    def _row(self, kernel: ProfiledKernel) -> list[str]:
        words = [
            kernel.label or kernel.name,
            duration(kernel.seconds),
            percent(kernel.seconds / self.seconds),
            quantity(kernel.flops) if kernel.flops else "",
            quantity(kernel.bytes, "B") if kernel.bytes else "",
            f"{kernel.intensity:.3g}" if kernel.intensity else "",
        ]
        if not kernel.flops:
            return [*words, "", ""]
        rate = quantity(kernel.flops / kernel.seconds)
        return [*words, rate, percent(kernel.share)]

    def _totals(self) -> list[str]:
        nbytes = sum(kernel.bytes for kernel in self.kernels)
        rate = self.flops / max(self.seconds, 1e-9)
        return [
            f"{len(self.kernels)} kernels",
            duration(self.seconds),
            "",
            quantity(self.flops),
            quantity(nbytes, "B"),
            f"{self.flops / nbytes:.3g}" if nbytes else "",
            quantity(rate),
            percent(rate / self.peak.flops),
        ]


class _Runner(Protocol):
    """What is needed of `dlc.runtime.runner.Runner`."""

    plan: Plan

    def bind(self, arrays: Sequence[Array]) -> dict[str, int]:
        """Sizes of the named dimensions."""

    def frame(self, arrays: Sequence[Array]) -> tuple[Array, object]:
        """The words of a call, and what keeps them valid."""


def measure(
    runner: _Runner,
    pool: Pool,
    stamp: int,
    peak: Callable[[str, int], Peak],
    arrays: Sequence[Array],
    call: Callable[[], object],
    repeats: int | None = None,
) -> Profile:
    """Profile calls of a runner.

    Parameters
    ----------
    runner : Runner
    pool : Pool
        With as many threads as the runner's own, whose calls wait for the whole team.
    stamp : int
        Address of the kernel that writes the time where its argument points.
    peak : callable
        From the element type and the number of threads to the machine's peak.
    arrays : sequence of array
        Arguments of the calls.
    call : callable
        Makes an ordinary call on the same arguments; errors of the kernels show here.
    repeats : int, optional
        Number of calls, by default as many as fit into `SECONDS`, and `FEWEST` at least.

    Raises
    ------
    ArgumentError
        If `repeats` is below 1.
    """
    if repeats is not None and repeats < 1:
        raise ArgumentError(explain("profile", "repeats of at least 1", str(repeats)))
    whole = _median_seconds(call, repeats)
    stamped = _Stamped(runner, pool, stamp, arrays)
    times = np.array(_repeated(stamped.run, repeats), np.int64)
    durations = np.median(np.diff(times, axis=1), axis=0) * 1e-9
    clock, seconds = float(durations[0]), durations[1:]
    typical = times[np.argsort(times[:, -1] - times[:, 0])[len(times) // 2], 1:]
    at_peak, sizes = peak(_dtype(runner.plan), stamped.threads), runner.bind(arrays)
    kernels = []
    for step, took in zip(runner.plan.main, seconds, strict=True):
        flops, took = evaluate(step.flops, sizes), float(max(took, 1e-9))
        share = flops / took / at_peak.flops
        moved = evaluate(step.bytes, sizes)
        kernels.append(ProfiledKernel(step.kernel, step.label, took, flops, moved, share))
    starts = tuple(((typical - typical[0]) * 1e-9).tolist())
    return Profile(tuple(kernels), whole, clock, len(times), at_peak, starts)


class _Stamped:
    """A frame of its own in which the clock is read before each step and behind the last.

    It is read twice at the beginning: between the two lies nothing but the reading itself.

    Attributes
    ----------
    threads : int
        How many threads the call wants.
    """

    def __init__(self, runner: _Runner, pool: Pool, stamp: int, arrays: Sequence[Array]) -> None:
        self._words, self._keep = runner.frame(arrays)
        self._pool, self.threads = pool, int(self._words[frame.THREADS])
        count = int(self._words[frame.STEP_COUNT])
        words = self._words[frame.HEADER_WORDS :][: frame.STEP_WORDS * count]
        self._times = np.zeros(count + 2, np.int64)
        places = self._times.ctypes.data + 8 * np.arange(count + 2)
        self._places = places.astype(np.int64)  # the argument of each stamp
        addresses = self._places.ctypes.data + 8 * np.arange(count + 2)
        self._table = np.zeros((2 * count + 2, frame.STEP_WORDS), np.int64)
        # Where two stamps follow each other, the barrier lets the second one wait for all threads.
        stamps = [0, *range(1, 2 * count + 2, 2)]
        self._table[stamps, frame.STEP_KERNEL] = stamp
        self._table[stamps, frame.STEP_ARGUMENTS] = addresses
        self._table[0, frame.STEP_FLAGS] = frame.BARRIER
        self._table[2::2] = words.reshape(count, frame.STEP_WORDS)
        self._table[2::2, frame.STEP_FLAGS] = frame.BARRIER
        self._words[frame.STEP_COUNT] = len(self._table)
        self._words[frame.STEPS] = self._table.ctypes.data

    def run(self) -> Array:
        """One call; the times of its stamps, in nanoseconds."""
        self._pool.call(int(self._words.ctypes.data))
        return self._times.copy()


def _dtype(plan: Plan) -> str:
    """The element type in which most of a plan computes."""
    types = [buffer.type.dtype for buffer in plan.buffers]
    return "float64" if types.count("float64") > types.count("float32") else "float32"


def _median_seconds(call: Callable[[], object], repeats: int | None) -> float:
    def timed() -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    timed()  # the first call makes its frame
    return float(np.median(_repeated(timed, repeats)))


def _repeated(run: Callable[[], Any], repeats: int | None) -> list[Any]:
    """What `run` gives, again and again."""
    run()
    if repeats is not None:
        return [run() for _ in range(repeats)]
    found: list[Any] = []
    end = time.perf_counter() + SECONDS
    while len(found) < FEWEST or time.perf_counter() < end:
        found.append(run())
    return found
