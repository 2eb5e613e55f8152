"""The machine's peak: how many floating-point operations a second its cores can do at all, and how
long its threads take to meet.

Shares of the peak are what profiles and benchmarks quote, so it is measured, on this machine, at
this level of instructions, on as many threads; a number from a data sheet knows neither the clock
of today nor the neighbours on the machine. Nor does it know which cache a virtual machine's
processors share today: threads that share none meet several times as slowly, and read as slowly
what others wrote.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from dlc.runtime import frame
from dlc.runtime.loader import Linked
from dlc.runtime.pool import Pool

__all__ = ["Bursts", "Meetings", "Peak", "PeakKernels", "measure"]

BURST = (
    2e-3  # seconds of one call: many times a wake-up, and short against a slice of the scheduler
)
BURSTS = 25  # of which the first few find out how many rounds a burst has
FIRST_ROUNDS = 1000
MEETINGS = 1000  # of one call: together many times as long as its way there and back
RESULT_WORDS = 8  # for each thread
ARGUMENTS = frame.HEADER_WORDS + 3 * frame.STEP_WORDS


@dataclass(frozen=True)
class PeakKernels:
    """The kernels that a measurement runs.

    Attributes
    ----------
    work : Linked
        Holds a kernel that does multiply-adds on registers.
    clock : Linked
        Holds one that writes down every thread's processor time.
    isa, dtype : str
    flops_per_round : int
        Operations of one thread in one round of the work.
    """

    work: Linked
    clock: Linked
    isa: str
    dtype: str
    flops_per_round: int


@dataclass(frozen=True)
class Peak:
    """What a number of cores can do.

    Attributes
    ----------
    flops : float
        Floating-point operations a second of all threads together; a multiply-add counts as two.
    threads : int
    isa : str
        The level of instructions.
    dtype : str
        "float32" or "float64".
    """

    flops: float
    threads: int
    isa: str
    dtype: str


def measure(bursts: Bursts) -> Peak:
    """The peak of a number of threads: the fastest of a few bursts of some milliseconds."""
    for _ in range(BURSTS):
        bursts.run()
    kernels = bursts.kernels
    return Peak(bursts.fastest, bursts.pool.threads, kernels.isa, kernels.dtype)


class Bursts:
    """Calls in which all threads do multiply-adds at once, of about `BURST` seconds each.

    Each thread's rate is taken over its own processor time: a neighbour that takes the processor
    away for a while must not make the machine look slower than it is, for that would flatter every
    share of its peak. For the same reason the fastest burst is what counts.

    Parameters
    ----------
    pool : Pool
        One whose calls wait for the whole team (`whole_team`).
    kernels : PeakKernels

    Attributes
    ----------
    fastest : float
        Operations a second of all threads together in the fastest call so far.
    """

    def __init__(self, pool: Pool, kernels: PeakKernels) -> None:
        self.pool, self.kernels = pool, kernels
        # A factor of one keeps the products as they are, and sums far from infinity and zero.
        self._elements = np.linspace(1, 2, 64, dtype=kernels.dtype)
        self._elements[:2] = 1, 1e-3
        self._results = np.zeros(RESULT_WORDS * pool.threads, np.int64)
        self._times = np.zeros((2, pool.threads), np.int64)
        self._words = np.zeros(ARGUMENTS + 5, np.int64)
        self._fill()
        self._rounds = FIRST_ROUNDS
        self.fastest = 0.0

    def run(self) -> float:
        """One call; operations a second in it."""
        self._words[ARGUMENTS] = self._rounds
        self.pool.call(int(self._words.ctypes.data))
        seconds = 1e-9 * (self._times[1] - self._times[0])
        flops = float((self._rounds * self.kernels.flops_per_round / seconds).sum())
        self.fastest = max(self.fastest, flops)
        rounds = BURST * self.fastest / (self.kernels.flops_per_round * self.pool.threads)
        self._rounds = max(FIRST_ROUNDS, int(rounds))
        return flops

    def _fill(self) -> None:
        """Three steps: the clock, the work, the clock."""
        words, address = self._words, int(self._words.ctypes.data)
        words[frame.STEP_COUNT] = 3
        words[frame.STEPS] = address + 8 * frame.HEADER_WORDS
        words[frame.THREADS] = self.pool.threads
        words[ARGUMENTS + 1 :] = [
            self._elements.ctypes.data,
            self._results.ctypes.data,
            *(row.ctypes.data for row in self._times),
        ]
        clock = self.kernels.clock.address("dlc_cpu_stamp")
        work = self.kernels.work.address(f"dlc_peak_{self.kernels.dtype}")
        steps = [(clock, 3), (work, 0), (clock, 4)]
        for number, (kernel, argument) in enumerate(steps):
            step = frame.HEADER_WORDS + frame.STEP_WORDS * number
            words[step + frame.STEP_KERNEL] = kernel
            words[step + frame.STEP_ARGUMENTS] = address + 8 * (ARGUMENTS + argument)


class Meetings:
    """Calls of many steps that do nothing, behind each of which all threads meet.

    Parameters
    ----------
    pool : Pool
        One whose calls wait for the whole team (`whole_team`).
    nothing : int
        The address of the step.
    """

    def __init__(self, pool: Pool, nothing: int) -> None:
        self.pool = pool
        self._words = np.zeros(frame.HEADER_WORDS + MEETINGS * frame.STEP_WORDS, np.int64)
        address = int(self._words.ctypes.data)
        self._words[frame.STEP_COUNT] = MEETINGS
        self._words[frame.STEPS] = address + 8 * frame.HEADER_WORDS
        self._words[frame.THREADS] = pool.threads
        steps = self._words[frame.HEADER_WORDS :].reshape(MEETINGS, frame.STEP_WORDS)
        steps[:, frame.STEP_KERNEL] = nothing
        steps[:, frame.STEP_ARGUMENTS] = address
        steps[:, frame.STEP_FLAGS] = frame.flags(barrier=True)

    def run(self) -> float:
        """One call; seconds for each meeting."""
        start = time.perf_counter()
        self.pool.call(int(self._words.ctypes.data))
        return (time.perf_counter() - start) / MEETINGS
