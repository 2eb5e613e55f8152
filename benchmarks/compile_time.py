"""How long it takes to begin: `import dlc`, a cold compilation, a warm one in a new process.

Cold means an empty cache, warm the one that the cold start has filled; every start is a process of
its own. A warm start must not load Numba, which alone takes longer than all of it.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from typing import Any

from benchmarks.common import Options, Result
from dlc.errors import ExecutionError
from dlc.report import duration

#: Model, limit of its cold compilation, and of its warm one, in seconds.
LIMITS = (("lenet5", 3.0, 0.3), ("resnet18", 8.0, 0.3))
IMPORT_LIMIT = 0.1

START = """
import json, sys, time
start = time.perf_counter()
import dlc
imported = time.perf_counter()
model = getattr(dlc.models, {name!r})().eval()
built = time.perf_counter()
exe = dlc.compile(model, dlc.TensorSpec({shape!r}), progress=False)
compiled = time.perf_counter()
print(json.dumps({{"import": imported - start, "compile": compiled - built,
                  "numba": "numba" in sys.modules, "kernels": len(exe.kernels)}}))
"""


def run(options: Options) -> Result:
    """Measure every start."""
    values: list[dict[str, Any]] = []
    imports: list[float] = []
    for name, cold_limit, warm_limit in LIMITS:
        if not options.wants(name):
            continue
        starts = [_cold_and_warm(name) for _ in range(options.rounds)]
        imports += [each["import"] for pair in starts for each in pair]
        for place, (kind, limit) in enumerate((("cold", cold_limit), ("warm", warm_limit))):
            times = [pair[place]["compile"] for pair in starts]
            numba = any(pair[place]["numba"] for pair in starts)
            values.append(_value(f"{name}, {kind}", times, limit, numba))
    if imports:
        values.insert(0, _value("import dlc", imports, IMPORT_LIMIT, False))
    rows = [
        [
            each["name"],
            duration(each["seconds"]),
            f"{duration(each['fastest'])} … {duration(each['slowest'])}",
            duration(each["limit"]),
            "yes" if each["numba"] else "no",
        ]
        for each in values
    ]
    columns = ["start", "median", "range", "limit", "loads Numba"]
    return Result("Starting, each in a new process", columns, rows, values)


def _value(name: str, times: list[float], limit: float, numba: bool) -> dict[str, Any]:
    return {
        "name": name,
        "seconds": statistics.median(times),
        "fastest": min(times),
        "slowest": max(times),
        "limit": limit,
        "numba": numba,
    }


def _cold_and_warm(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A start with an empty cache, and one with the cache that it leaves."""
    shape = (1, 1, 28, 28) if name == "lenet5" else (1, 3, 224, 224)
    program = START.format(name=name, shape=shape)
    with tempfile.TemporaryDirectory() as folder:
        return _start(program, folder), _start(program, folder)


def _start(program: str, cache: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "DLC_CACHE_DIR": os.path.join(cache, "dlc")},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise ExecutionError(f"a start failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found
