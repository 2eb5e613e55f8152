"""Memory of training steps beside PyTorch's: what a process grows by while it trains.

That is the most of its memory that was resident during a few steps, less what was before the model
was made: parameters, gradients, moments, activations, workspace and the batch, on every side. All
of it is done twice in a process, and the second time counts, so that code, pools of threads and
caches of a library are no part of it. Nor is the compilation: the counter of the most is set back
behind it, and the code comes from the cache. It is set back once more behind the first step, in
which a compiled step takes over the parameters and the C library keeps some of what they leave;
"with the first" counts that, too. Beside it stands what `Executable.memory` says of dlc's: values
on the way, and what steps change (parameters and moments).

    python -m benchmarks memory [--only resnet18]
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.__main__ import main
from benchmarks.common import Options, Result, environment
from benchmarks.steps import CASES, WAYS, Case, dlc_step, torch_step
from dlc.cli.turns import Side, Subject, take_turns
from dlc.progress import bar
from dlc.report import quantity

STEPS = 4
#: Of PyTorch's ways those without a compiler, whose memory would not be told from the steps'.
SIDES = ("dlc", *(name for name, way in WAYS.items() if not way.inductor))
TARGET = 1.0


def run(options: Options) -> Result:
    """Measure every case."""
    values = [measured(case, options) for case in CASES if options.wants(case.name)]
    planned = ["with the first", "on the way", "state"]
    columns = ["case", "dlc", *planned, *SIDES[1:], "ratio", "target"]
    title = f"Memory of training steps on {options.threads} threads"
    return Result(title, columns, [row(value) for value in values], values)


def measured(case: Case, options: Options) -> dict[str, Any]:
    """Bytes of every side, as JSON values."""
    common = {"case": CASES.index(case), "threads": options.threads}
    sides = {"cache": Side("benchmarks.memory:filled", common)}
    for side in SIDES:
        if side == "dlc" or WAYS[side].suits(case):
            given, variables = {**common, "side": side}, environment(options.threads)
            sides[side] = Side("benchmarks.memory:subject", given, variables)
    with bar(f"memory of {case.name}") as tell:
        found = take_turns(sides, rounds=1, tell=tell)
    del found["cache"]
    grown = {side: each.median("bytes") for side, each in found.items()}
    least = min(nbytes for side, nbytes in grown.items() if side != "dlc")
    return {
        "name": case.name,
        "bytes": grown,
        "first": {side: each.median("first") for side, each in found.items()},
        "planned": found["dlc"].info,
        "ratio": least / grown["dlc"],
        "target": TARGET,
    }


def row(value: Mapping[str, Any]) -> list[str]:
    """A case as it is printed."""
    grown, planned = value["bytes"], value["planned"]
    return [
        value["name"],
        quantity(grown["dlc"], "B"),
        quantity(value["first"]["dlc"], "B"),
        quantity(planned["call"], "B"),
        quantity(planned["state"], "B"),
        *(quantity(grown[side], "B") if side in grown else "" for side in SIDES[1:]),
        f"{value['ratio']:.2f} ×",
        f"{value['target']:g} ×",
    ]


def filled(case: int, threads: int) -> Subject:
    """A process that leaves a step's code in the cache."""
    step, batch = dlc_step(CASES[case], threads)
    step.executable(*batch)
    return Subject(lambda seconds: {})


def subject(side: str, case: int, threads: int) -> Subject:
    """One side's process."""
    planned: dict[str, int] = {}

    def make() -> Callable[[], object]:
        if side != "dlc":
            return torch_step(CASES[case], threads, WAYS[side])
        step, batch = dlc_step(CASES[case], threads)
        planned.update(step.executable(*batch).memory)
        return lambda: step(*batch)

    grown(make)
    return Subject(lambda seconds: grown(make), planned)


def grown(make: Callable[[], Callable[[], object]]) -> dict[str, float]:
    """Bytes by which the process grows at most: in the first step, and in a few that follow."""
    before = resident()
    step = make()
    found = {}
    for name, count in (("first", 1), ("bytes", STEPS)):
        resident()
        for _ in range(count):
            step()
        found[name] = status("VmHWM") - before
    return found | {"first": max(found.values())}


def resident() -> float:
    """Bytes of the process in memory without garbage; sets the counter of the most back to it."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back to the system
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def status(name: str) -> float:
    """Bytes that the system counts for the process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024.0 * float(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    sys.exit(main(["memory", *sys.argv[1:]]))
