"""`dlc doctor`: all that a report of a problem should say about machine, versions and options."""

from __future__ import annotations

import os
import platform
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from dlc import config
from dlc.cli import output
from dlc.errors import Error
from dlc.report import duration, quantity

HELP = "a report of machine, versions and options, to paste into an issue"
ABOUT = """\
It also compiles a small function, runs it and compares the result: if that fails, the exit code is
1 and the report says why.

examples:
  dlc doctor
  dlc doctor --json > report.json"""

PACKAGES = ("numpy", "numba", "llvmlite", "networkx", "safetensors", "rich", "torch", "onnx")


def configure(parser: ArgumentParser) -> None:
    """Add the arguments."""
    output.add_json(parser)


def run(arguments: Namespace) -> int:
    """Print the report."""
    sections = {
        "machine": machine(),
        "versions": versions(),
        "native code": native(),
        "cache": cache(),
        "options": options(),
    }
    healthy = sections["native code"]["self-test"].startswith("passed")
    if arguments.json:
        output.show_json(sections)
    else:
        for title, facts in sections.items():
            width = max(map(len, facts))
            print(f"{title}\n" + "\n".join(f"  {k:{width}}  {v}" for k, v in facts.items()))
    return 0 if healthy else 1


def machine() -> dict[str, Any]:
    """What this process runs on."""
    from dlc.runtime.threads import allowed, count, quota

    limit = quota()
    return {
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "processor": _processor(),
        "processors": f"{os.cpu_count()} there, {len(os.sched_getaffinity(0))} by affinity, "
        + (f"quota {limit:g}, " if limit != float("inf") else "no quota, ")
        + f"{allowed()} allowed",
        "threads": count(),
        "load": f"{os.getloadavg()[0]:.2f}",
        "memory": quantity(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "B"),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "not known"


def versions() -> dict[str, str]:
    """Of dlc, Python, and the packages that matter."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"dlc": sys.modules["dlc"].__version__, "Python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def native() -> dict[str, str]:
    """Levels of instructions, the peak, and whether a compiled function computes what it should."""
    from dlc.backends.native.isa import host, runnable
    from dlc.driver import peak

    try:
        levels = ", ".join(isa.name for isa in runnable())
        isa = host()
        chosen = f"{isa.name}, vectors of {isa.vector_bytes} bytes, {isa.registers} registers"
        one, all_ = (quantity(peak(threads).flops, "FLOP/s") for threads in (1, None))
        test = self_test()
    except Error as error:
        return {"self-test": f"failed: {error}"}
    return {
        "levels": levels,
        "chosen": chosen,
        "peak": f"{one} on one thread, {all_} on all (float32)",
        "self-test": test,
    }


def self_test() -> str:
    """Compile a matrix product with an epilogue, and compare it with NumPy."""
    import time

    import numpy as np

    from dlc.driver import compile
    from dlc.frontend.functional import relu

    x = np.linspace(-1, 1, 12 * 33, dtype="float32").reshape(12, 33)
    start = time.perf_counter()
    found = compile(lambda a: relu(a @ a.mT), x, progress=False)(x)
    seconds = time.perf_counter() - start
    exact = np.maximum(x.astype("float64") @ x.T.astype("float64"), 0)
    if not np.allclose(found, exact, rtol=1e-5, atol=1e-5):
        return f"failed: off by {np.abs(found - exact).max():.3g}"
    return f"passed in {duration(seconds)}"


def cache() -> dict[str, Any]:
    """Where compiled kernels are kept, and whether they are."""
    from dlc.runtime.cache import default

    kept = default()
    home = os.path.expanduser("~")
    facts: dict[str, Any] = {"directory": kept.path.replace(home, "~", 1)}
    try:
        there = kept.check()
    except Error as error:
        return {**facts, "state": f"not used: {error}"}
    if not kept.limit:
        return {**facts, "state": "turned off by DLC_CACHE_SIZE=0"}
    stats = kept.stats()
    size = f"{quantity(stats.bytes, 'B')} of at most {quantity(kept.limit, 'B')}"
    return {**facts, "state": f"{stats.entries} entries, {size}" if there else "not made yet"}


def options() -> dict[str, str]:
    """Every option, and whether the environment sets it."""
    found = {}
    for option in config.OPTIONS:
        given = os.environ.get(option.variable, "").strip()
        value = config.get(option.name)
        shown = "not set" if value is None else str(value)
        found[option.variable] = shown if given or value is None else f"{shown} (default)"
    return found
