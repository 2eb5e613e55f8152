"""Models of the zoo compiled, drawn, timed and compared with PyTorch."""

from __future__ import annotations

import importlib.util
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlc.cli import bench, naming, output
from dlc.cli.run import difference, in_float64
from dlc.cli.turns import take_turns
from dlc.report import duration, percent, quantity, table

if TYPE_CHECKING:
    from dlc.frontend.module import Module


@dataclass(frozen=True)
class Result:
    """What the demo found out about one model."""

    model: str
    kernels: int
    nodes: tuple[int, int]
    compile_seconds: float
    drawing: str
    differences: dict[str, dict[str, Any]]
    times: dict[str, Any]

    @property
    def right(self) -> bool:
        """Whether every difference is within the tolerances."""
        return all(each["within"] for each in self.differences.values())


def show(arguments: Namespace) -> int:
    """Show what dlc makes of the models of a command line; the exit code."""
    from dlc.runtime.threads import count

    threads = count(arguments.threads)
    torch = importlib.util.find_spec("torch") is not None
    folder = output.make_folder("--folder", arguments.folder)
    results = []
    for name in arguments.models:
        results.append(_show(name, threads, torch, folder, arguments))
        if not arguments.json:
            _tell(results[-1])
    if arguments.json:
        output.show_json([asdict(each) for each in results])
    else:
        output.show("", _table(results, threads))
        if not torch:
            output.show("PyTorch is not installed: pip install 'dlc[torch]' puts it beside.")
    return 0 if all(each.right for each in results) else 1


def _show(name: str, threads: int, torch: bool, folder: Path, arguments: Namespace) -> Result:
    """Compile a model, draw it, compare what it computes, and time it."""
    from dlc.driver import compile, trace_graph

    given = _arguments(name, torch)
    twin = naming.make(bench.torch_twin(name)) if torch else None
    model: Module = naming.model(given)
    if twin is not None:
        model.load_state_dict(twin.state_dict())
    specs = naming.inputs(given)
    arrays = naming.arrays(specs, {})
    start = time.perf_counter()
    exe = compile(model, *specs, threads=threads)
    seconds = time.perf_counter() - start
    y = exe(*arrays)
    drawing = folder / f"{name}.svg"
    exe.graph.draw(drawing)
    differences = {"float64": difference(y, in_float64(model, arrays))}
    if twin is not None:
        differences["PyTorch"] = difference(y, _torch_output(twin, arrays))
    nodes = (len(trace_graph(model, *specs).nodes), len(exe.graph.nodes))
    times = _times(given, threads, arguments)
    return Result(name, len(exe.kernels), nodes, seconds, str(drawing), differences, times)


def _arguments(name: str, torch: bool) -> Namespace:
    """The command line that `dlc bench` would get."""
    return Namespace(
        model=name,
        inputs=[],
        dim=[],
        at=[],
        weights=None,
        train=False,
        opt="O2",
        torch="" if torch else None,
    )


def _torch_output(twin: Any, arrays: Sequence[Any]) -> Any:
    import torch

    with torch.inference_mode():
        return twin(*map(torch.from_numpy, arrays)).numpy()


def _times(given: Namespace, threads: int, arguments: Namespace) -> dict[str, Any]:
    from dlc.progress import bar

    with bar(f"timing {given.model}") as tell:
        sides = bench.sides(given, threads)
        times = take_turns(sides, rounds=arguments.rounds, seconds=arguments.seconds, tell=tell)
    return bench.compare(times)


def _tell(result: Result) -> None:
    """A few lines about one model."""
    before, after = result.nodes
    output.show(
        f"{result.model}: {before} nodes traced, {after} after the passes, {result.kernels} "
        f"kernels, compiled in {duration(result.compile_seconds)}",
        f"  drawing: {result.drawing}",
        *(
            f"  largest difference from {other}: {each['largest']:.2g}, where values reach "
            f"{each['scale']:.2g}: {'within' if each['within'] else 'BEYOND'} the tolerances"
            for other, each in result.differences.items()
        ),
    )


def _table(results: Sequence[Result], threads: int) -> Any:
    """Times of all models, one a row."""
    rows = []
    for result in results:
        sides: dict[str, Mapping[str, Any]] = {s["side"]: s for s in result.times["sides"]}
        ours, others = sides.pop("dlc"), list(sides.values())
        seconds = [duration(each["seconds"]) for each in others]
        best = min((each["ratio"] for each in others), default=None)
        rows.append(
            [
                result.model,
                duration(ours["seconds"]),
                percent(ours["share"]),
                *seconds,
                *([f"{best:.2f} ×"] if best else []),
            ]
        )
    theirs = [s["side"] for s in results[0].times["sides"][1:]]
    columns = ["one image", "dlc", "of peak", *theirs, *(["PyTorch's best"] if theirs else [])]
    peak = quantity(results[0].times["peak"], "FLOP/s")
    return table(columns, rows, title=f"{threads} threads, measured peak {peak}")
