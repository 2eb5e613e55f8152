"""Run benchmarks by name, or all of them, and print their tables."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import Options, warn_if_busy
from dlc.cli.doctor import machine, versions
from dlc.errors import Error

NAMES = (
    "compile_time",
    "models",
    "steps",
    "memory",
    "contractions",
    "winograd",
    "gradients",
    "waiting",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)} (all)")
    parser.add_argument("--threads", type=int, default=2, help="of every side (2)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of every side (5)")
    parser.add_argument("--seconds", type=float, default=0.3, help="length of a turn (0.3)")
    parser.add_argument("--only", default="", help="words: cases whose name contains one")
    parser.add_argument("--best", action="store_true", help="the fastest call, not the median")
    parser.add_argument("--json", metavar="FILE", help="write all numbers there")
    parser.add_argument("--isa", default="", help="level of instructions of dlc's kernels")
    given = parser.parse_args(arguments)
    if unknown := set(given.names) - set(NAMES):
        parser.error(f"there is no benchmark {min(unknown)!r}; there are {', '.join(NAMES)}")
    options = Options(given.threads, given.rounds, given.seconds, given.only, given.best)
    if given.isa:
        os.environ["DLC_ISA"] = given.isa
    warn_if_busy()
    found = {}
    for name in given.names or NAMES:
        try:
            result = importlib.import_module(f"benchmarks.{name}").run(options)
        except Error as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 1
        print(f"\n{result}\n", flush=True)
        found[name] = {"title": result.title, "cases": list(result.values)}
    if given.json:
        about = {"machine": machine(), "versions": versions()}
        text = json.dumps({**about, "benchmarks": found}, indent=1)
        Path(given.json).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
