"""`dlc bench`: a model's time, its share of the machine's peak, and PyTorch's time beside it."""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from typing import Any

from dlc.cli import datasets, naming, output
from dlc.cli.turns import Side, Times, take_turns
from dlc.errors import ArgumentError, DependencyError
from dlc.report import duration, percent, quantity, table

HELP = "time a model, beside PyTorch if you like"
ABOUT = f"""\
{naming.ABOUT}

Every side runs in a process of its own, and they take turns; what is shown is the median of the
turns' medians, the fastest and the slowest turn, and the ratio to the first row. The peak is
measured in the same turns: multiply-adds on registers, on as many threads. --torch names a PyTorch
model as MODEL does (alone: the zoo's twin in PyTorch), which runs eagerly, contiguous and
channels_last.

examples:
  dlc bench resnet18 --torch
  dlc bench lenet5 --dim batch=1..64 --at batch=64 --torch --json
  dlc bench model.py:Net 1x3x32x32 --torch model.py:TorchNet --rounds 9"""


def configure(parser: ArgumentParser) -> None:
    """Add the arguments."""
    naming.add_arguments(parser)
    parser.add_argument(
        "--torch", nargs="?", const="", metavar="MODEL", help="a PyTorch model to compare with"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="threads of every side")
    parser.add_argument("--opt", choices=("O0", "O1", "O2"), default="O2", help="passes (O2)")
    parser.add_argument(
        "--rounds", type=datasets.positive, default=5, help="turns of each side (5)"
    )
    add = parser.add_argument
    add("--seconds", type=naming.seconds, default=0.3, help="length of a turn (0.3)")
    output.add_json(parser)


def run(arguments: Namespace) -> int:
    """Measure and print."""
    from dlc.progress import bar
    from dlc.runtime.threads import count

    naming.check_file(arguments.torch or "")
    naming.model(arguments)  # its errors come before any process is started
    threads = count(arguments.threads)
    chosen = sides(arguments, threads)
    with bar(f"timing {arguments.model}") as tell:
        times = take_turns(chosen, rounds=arguments.rounds, seconds=arguments.seconds, tell=tell)
    found = compare(times)
    if arguments.json:
        output.show_json({"model": arguments.model, "threads": threads, **found})
    else:
        output.show(comparison(found, f"{arguments.model} on {threads} threads"))
    return 0


def sides(arguments: Namespace, threads: int) -> dict[str, Side]:
    """The sides of a comparison: dlc, PyTorch if asked for, and the peak."""
    fields = ("model", "inputs", "dim", "weights", "train")
    model = {name: getattr(arguments, name) for name in fields}
    common = {"model": model, "at": dict(arguments.at), "threads": threads}
    chosen = {"dlc": Side("dlc.cli.sides:compiled", {**common, "opt": arguments.opt})}
    if arguments.torch is not None:
        twin = {**common, "twin": arguments.torch or torch_twin(arguments.model)}
        theirs = {"OMP_NUM_THREADS": str(threads)}
        chosen["PyTorch"] = Side("dlc.cli.sides:torch", twin, theirs)
        last = {**twin, "channels_last": True}
        chosen["PyTorch, channels_last"] = Side("dlc.cli.sides:torch", last, theirs)
    return {**chosen, "peak": Side("dlc.cli.sides:peak", {"threads": threads})}


def torch_twin(model: str) -> str:
    """The name of a zoo model's twin in PyTorch."""
    import importlib.util

    if importlib.util.find_spec("torch") is None:
        raise DependencyError("--torch needs PyTorch: pip install 'dlc[torch]'")
    from dlc.frontend.models import in_torch

    if ":" in model or not hasattr(in_torch, model):
        raise ArgumentError(f"{model} has no twin in PyTorch here; name one: --torch file.py:Name")
    return f"{in_torch.__name__}:{model}"


def compare(times: Mapping[str, Times]) -> dict[str, Any]:
    """The numbers of a comparison as JSON values: times in seconds, rates a second."""
    flops, peak = times["dlc"].info["flops"], times["peak"].median("flops")
    first = times["dlc"].median()
    rows = []
    for name, each in times.items():
        if name == "peak":
            continue
        seconds, (fastest, slowest) = each.median(), each.spread()
        rate = flops / seconds
        rows.append(
            {
                "side": name,
                "seconds": seconds,
                "fastest": fastest,
                "slowest": slowest,
                "flops": rate,
                "share": rate / peak,
                "ratio": seconds / first,
            }
        )
    return {"flops": flops, "peak": peak, "sides": rows}


def comparison(found: Mapping[str, Any], title: str) -> Any:
    """The comparison as a table."""
    rows = [
        [
            each["side"],
            duration(each["seconds"]),
            f"{duration(each['fastest'])} … {duration(each['slowest'])}",
            quantity(each["flops"], "FLOP/s"),
            percent(each["share"]),
            f"{each['ratio']:.2f}",
        ]
        for each in found["sides"]
    ]
    peak = quantity(found["peak"], "FLOP/s")
    title = f"{title}: {quantity(found['flops'], 'FLOP')} a call, peak {peak}"
    title = "\n".join(filter(None, (title, busy())))
    columns = ("side", "median", "turns", "rate", "of peak", "× the first")
    return table(columns, rows, title=title)


def busy() -> str:
    """A warning, if the machine has other work; empty if not."""
    load = os.getloadavg()[0]
    return f"The machine was busy (load {load:.1f}): do not quote these." if load > 1.5 else ""
