"""How long calls take that find their threads awake, asleep, crowded or on one core.

A pool that waits badly is fast back to back and ruins everything else: too short a spin turns every
barrier into a sleep and a wake-up, an endless one keeps the processor from the thread that it waits
for. Each row runs in a process of its own.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.common import Options, Result
from dlc.errors import ExecutionError
from dlc.runtime import frame
from dlc.runtime.entry import Argument, make_entry
from dlc.runtime.loader import Linked, link
from dlc.runtime.pool import Pool

STEPS = 20  # a call: so many kernels, a barrier after each
STEP_US = 10.0  # what one thread takes for each; two take half
TURNS = 10  # a row takes as long as so many turns
LIMIT_US = 1000  # by how much a row's median may exceed the back-to-back time

KERNELS = {
    "work": """
def work(cells, rounds, thread, threads):
    x = cells[thread * 16]
    i = thread
    while i < rounds:
        x = (x ^ (x >> 7)) * 6364136223846793005 + i
        i += threads
    cells[thread * 16] = x
""",
    "nothing": """
def nothing(cells, rounds, thread, threads):
    cells[thread * 16] = rounds
""",
}

BUSY_TORCH = """
import torch
torch.set_num_threads({threads})
a = torch.randn(700, 700)
while True:
    a @ a
"""
BUSY_PYTHON = "while True: pass"


@dataclass(frozen=True)
class Row:
    """One way to call; `one_thread` and `insist` are there to compare with, without a limit."""

    name: str
    idle: float = 0  # seconds between two calls
    busy: bool = False  # beside as many busy threads of another process
    one_core: bool = False
    one_thread: bool = False
    insist: bool = False  # never go on with fewer threads


ROWS = (
    Row("back to back"),
    Row("5 ms idle between calls", idle=0.005),
    Row("beside a busy PyTorch", busy=True),
    Row("beside a busy PyTorch, 5 ms idle", idle=0.005, busy=True),
    Row("one core for all threads", one_core=True),
    Row("(one core, insisting on all)", one_core=True, insist=True),
    Row("(one thread, back to back)", one_thread=True),
    Row("(one thread beside a busy PyTorch)", busy=True, one_thread=True),
)


def run(options: Options) -> Result:
    """What the machinery costs, then every row."""
    chosen = [row for row in ROWS if options.wants(row.name)]
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder))
        costly = apart("costs", folder, options)
        found = {row: apart(str(ROWS.index(row)), folder, options) for row in chosen}
    rows = [[f"{name} (ns)", f"{ns:.1f}", *[""] * 5] for name, ns in costly.items()]
    base = next(iter(found.values()))["median"] if found else 0.0
    for row, each in found.items():
        over = each["median"] - base
        limited = not (row.one_thread or row.insist)
        times = [f"{each[name]:.1f}" for name in ("median", "p90", "p99")]
        verdict = "beyond the limit" if limited and over > LIMIT_US else ""
        rows.append([row.name, *times, f"{over:.1f}", f"{each['threads']:.2f}", verdict])
    title = (
        f"Waiting: {options.threads} threads, {len(os.sched_getaffinity(0))} processors. A call of "
        f"{STEPS} kernels,\n{STEP_US:g} µs each for one thread, and barriers, in µs; no row may be "
        f"{LIMIT_US} µs over the first"
    )
    columns = ("row", "median", "90 %", "99 %", "over", "threads", "")
    values = [{"name": "costs", **costly}]
    values += [{"name": row.name, **each} for row, each in found.items()]
    return Result(title, columns, rows, values)


def apart(row: str, folder: str, options: Options) -> dict[str, float]:
    """Run one row in a process of its own."""
    words = [row, folder, str(options.threads), str(TURNS * options.seconds)]
    command = [sys.executable, "-m", "benchmarks.waiting", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ExecutionError(f"the row {row} failed:\n{done.stderr}")
    result: dict[str, float] = json.loads(done.stdout)
    return result


def main(row: str, folder: str, threads: str, seconds: str) -> None:
    """The process of one row, or of the costs."""
    linked, numbers = load(Path(folder)), (int(threads), float(seconds))
    costly = row == "costs"
    result = costs(linked, *numbers) if costly else measure(ROWS[int(row)], linked, *numbers)
    print(json.dumps(result))


def measure(row: Row, linked: Linked, threads: int, seconds: float) -> dict[str, float]:
    """Call for some seconds; microseconds a call, and how many threads took part on average."""
    others, threads = threads, 1 if row.one_thread else threads
    if row.one_core:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    cells = np.ones((threads, 16), np.int64)
    with ExitStack() as stack:
        pool = stack.enter_context(closing(Pool(linked, threads, whole_team=row.insist)))
        words = make_frame(linked, "work", cells, rounds(linked), STEPS, threads, True)
        if row.busy:
            stack.enter_context(busy(others))
        times, teams = [], []
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            if row.idle:
                time.sleep(row.idle)
            start = time.perf_counter_ns()
            teams.append(pool.call(words.ctypes.data))
            times.append((time.perf_counter_ns() - start) / 1e3)
    median, p90, p99 = np.percentile(times, (50, 90, 99))
    return {"median": median, "p90": p90, "p99": p99, "threads": float(np.mean(teams))}


def costs(linked: Linked, threads: int, seconds: float) -> dict[str, float]:
    """What the machinery itself costs, in nanoseconds."""
    cells = np.zeros((threads, 16), np.int64)
    with closing(Pool(linked, threads, whole_team=True)) as pool:

        def time_of(steps: int, threads: int, barrier: bool, *arrays: np.ndarray) -> float:
            words = make_frame(linked, "nothing", cells, 0, steps, threads, barrier)
            arguments = [Argument(array.dtype.name, array.shape, []) for array in arrays]
            call = make_entry(linked, pool, words.ctypes.data, arguments, keep=words)
            times = []
            for _ in range(int(200 * seconds)):
                start = time.perf_counter_ns()
                for _ in range(10):
                    call(*arrays)
                times.append((time.perf_counter_ns() - start) / 10)
            return float(np.median(times))

        one, all_of_them = time_of(1, 1, False), time_of(1, threads, False)
        return {
            "a call from Python, one thread": one,
            "each array argument": time_of(1, 1, False, np.zeros(16, np.float32)) - one,
            "each step": (time_of(1001, 1, False) - one) / 1000,
            "each step with a barrier": (time_of(1001, threads, True) - all_of_them) / 1000,
            "start and end of spinning threads": all_of_them - one,
        }


def rounds(linked: Linked) -> int:
    """How many rounds of the kernel take a thread `STEP_US`."""
    cells = np.ones((1, 16), np.int64)
    probe = 100_000
    with closing(Pool(linked, 1)) as pool:
        words = make_frame(linked, "work", cells, probe, 1, 1, False)
        times = []
        for _ in range(20):
            start = time.perf_counter()
            pool.call(words.ctypes.data)
            times.append(time.perf_counter() - start)
    return int(probe * STEP_US * 1e-6 / min(times))


@contextmanager
def busy(threads: int) -> Iterator[None]:
    """Keep that many processors busy with PyTorch, or with loops where it is not installed."""
    if importlib.util.find_spec("torch"):
        programs = [BUSY_TORCH.format(threads=threads)]
    else:
        programs = [BUSY_PYTHON] * threads
    others = [subprocess.Popen([sys.executable, "-c", program]) for program in programs]
    time.sleep(3)  # for the import
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def make_frame(
    linked: Linked,
    kernel: str,
    cells: np.ndarray,
    rounds: int,
    steps: int,
    threads: int,
    barrier: bool,
) -> np.ndarray:
    """The words of a frame that runs one kernel so many times."""
    arguments = frame.HEADER_WORDS + frame.STEP_WORDS * steps
    words = np.zeros(arguments + 2, np.int64)
    address = words.ctypes.data
    words[frame.STEP_COUNT] = steps
    words[frame.STEPS] = address + 8 * frame.HEADER_WORDS
    words[frame.THREADS] = threads
    table = words[frame.HEADER_WORDS : arguments].reshape(steps, frame.STEP_WORDS)
    table[:, frame.STEP_KERNEL] = linked.address(kernel)
    table[:, frame.STEP_ARGUMENTS] = address + 8 * arguments
    table[:, frame.STEP_FLAGS] = frame.BARRIER if barrier else 0
    words[arguments:] = cells.ctypes.data, rounds
    return words


def save(folder: Path) -> None:
    """Build the interpreter, the entry and the kernels."""
    from dlc.backends.native import entry, interpreter, objects
    from dlc.backends.native.frontend import Param, lower
    from dlc.backends.native.isa import host

    isa = host()
    params = [Param("cells", "int64*"), Param("rounds", "int64")]
    built = [interpreter.build(isa), entry.build(isa)]
    for name, source in KERNELS.items():
        built.append(objects.build(lower(source, name, params, isa), [name], isa))
    for i, code in enumerate(built):
        (folder / f"{i}.o").write_bytes(code)


def load(folder: Path) -> Linked:
    """Link what `save` wrote."""
    from dlc.runtime import entry, pool

    code = [file.read_bytes() for file in sorted(folder.glob("*.o"))]
    return link(code, [*pool.ENTRIES, *entry.ENTRIES, *KERNELS])


if __name__ == "__main__":
    main(*sys.argv[1:])
