"""`dlc demo`: handwritten digits, learned, compared with PyTorch and told on a page."""

from __future__ import annotations

import importlib.util
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlc.cli import bench, datasets, naming, output
from dlc.files import whole
from dlc.report import duration, percent, quantity, table

if TYPE_CHECKING:
    from dlc.cli.showcase.contest import Contest
    from dlc.cli.showcase.page import Story

HELP = "handwritten digits, learned, compared with PyTorch and told on a page"
ABOUT = """\
LeNet-5 and a multilayer perceptron learn to read 1797 real handwritten digits, beside k-NN and an
SVM on the same splits. The same training runs in PyTorch where that is installed, from the same
weights on the same batches; steps and calls are timed beside PyTorch's. The trained network becomes
a C library, and a C program reads digits with it. The page build/demo/index.html tells all of it.
The exit code is 1 if a layer differs from PyTorch by more than rounding, or the C program from
Python.

With names of the zoo, each model is compiled for one image, drawn, timed and compared with PyTorch;
the exit code is 1 if an output is beyond the tolerances of torch.testing.assert_close.

examples:
  dlc demo
  dlc demo --seeds 1 --epochs 5 --folder digits
  dlc demo resnet18 vgg16 --rounds 9"""


def configure(parser: ArgumentParser) -> None:
    """Add the arguments."""
    add = parser.add_argument
    add("models", metavar="MODEL", nargs="*", help="names of the zoo; without any, the digits")
    add("--folder", default="build/demo", help="for what is written (build/demo)")
    add("--seeds", type=datasets.positive, default=5, metavar="N", help="splits of the digits (5)")
    add("--epochs", type=datasets.positive, default=24, metavar="N", help="of training (24)")
    add("--threads", type=int, metavar="N", help="threads of every side")
    add("--rounds", type=datasets.positive, default=3, help="turns of each side in timings (3)")
    add("--seconds", type=naming.seconds, default=0.3, help="length of a turn (0.3)")
    output.add_json(parser)


def run(arguments: Namespace) -> int:
    """Show what dlc does."""
    if arguments.models:
        from dlc.cli.showcase import zoo

        for name in arguments.models:
            naming.of_zoo(name)
        return zoo.show(arguments)
    from dlc.cli.showcase import page

    start = time.perf_counter()
    folder = output.make_folder("--folder", arguments.folder)
    found = _story(arguments, folder)
    with whole(folder / "index.html") as aside:
        aside.write_text(page.page(found), encoding="utf-8")
    if arguments.json:
        output.show_json(_facts(found, folder))
    else:
        output.show(f"\n{folder / 'index.html'} tells it all, after {_since(start)}")
    agrees = (found.diff is None or found.diff.ok) and (found.answer is None or found.answer.same)
    return 0 if agrees else 1


def _since(start: float) -> str:
    return duration(time.perf_counter() - start)


def _story(arguments: Namespace, folder: Path) -> Story:
    """All that the demo finds out, told as it comes."""
    from dlc.cli.showcase import beside, contest, in_c
    from dlc.cli.showcase.page import Story
    from dlc.frontend import data
    from dlc.progress import bar
    from dlc.runtime.threads import count

    def say(*parts: Any) -> None:
        if not arguments.json:
            output.show(*parts)

    busy = bench.busy()  # before this program keeps the machine busy itself
    threads, torch = count(arguments.threads), importlib.util.find_spec("torch") is not None
    times = f"{arguments.seeds} time{'s' * (arguments.seeds > 1)}"
    share = percent(contest.TRAINING_SHARE)
    say(f"{len(data.digits())} handwritten digits, learned {times} on {share} of them")
    with bar("learning to read digits") as tell:
        held = contest.contest(arguments.seeds, arguments.epochs, threads, tell)
    say(_accuracies(held))
    found = Story(held, threads, busy=busy)
    star, test = held.star, held.tests[0]
    if torch:
        train, _ = data.digits(28).split(contest.TRAINING_SHARE, stratify=True, seed=0)
        with bar("the same in PyTorch") as tell:
            found.twins = beside.retrain(star, train, arguments.epochs, tell)
        say(f"LeNet-5 and PyTorch: {found.twins.summary()}")
        found.diff = _diff(star.model, test[:16][0], threads)
        say(f"layer by layer, gradients too: {found.diff.summary()}")
    with bar("timing") as tell:
        options = {"rounds": arguments.rounds, "seconds": arguments.seconds, "tell": tell}
        found.times = beside.times(torch, threads, **options)
    say(_times(found.times, threads), *filter(None, [found.busy]))
    found.look_inside()
    images, labels = test[:10]
    if in_c.compiler():
        found.answer = in_c.classify(star.model, images, folder / "c")
        size = quantity(found.answer.library_bytes, "B")
        say(f"{folder}/c/classify, a C program with lenet.so ({size}),")
        say(f"  {in_c.shown(found.answer, labels.tolist())}")
    else:
        say("There is no C compiler here (cc), so no C program reads digits: apt install gcc")
    if not torch:
        say("PyTorch is not installed: pip install 'dlc[torch]' puts it beside.")
    return found


def _diff(model: Any, images: Any, threads: int) -> Any:
    """The trained network and its PyTorch twin with the same weights."""
    import torch

    from dlc.frontend.models import in_torch
    from dlc.testing.diff import diff

    twin = in_torch.lenet5().eval()
    state = {name: torch.from_numpy(array) for name, array in model.state_dict().items()}
    twin.load_state_dict(state)
    return diff(model, twin, images, gradients=True, threads=threads)


def _accuracies(held: Contest) -> Any:
    rows = [
        [name, *(f"{100 * value:.1f}" for value in values), f"{100 * held.mean(name):.2f}"]
        for name, values in held.accuracies.items()
    ]
    splits = [f"split {n + 1}" for n in range(len(held.tests))]
    count = len(held.tests[0])
    title = f"Test accuracy in %, on {count} digits that none of them has seen"
    return table(("", *splits, "mean"), rows, title=title)


def _times(times: dict[str, dict[str, float]], threads: int) -> Any:
    from dlc.cli.showcase.beside import TIMED

    rows = []
    for name, label in TIMED.items():
        seconds = [each[name] for each in times.values()]
        ratios = [f"{each / seconds[0]:.1f} ×" for each in seconds[1:]]
        rows.append([label, *map(duration, seconds), *ratios])
    title = f"LeNet-5 on {threads} thread{'s' * (threads > 1)}"
    return table((title, *times, *(["PyTorch / dlc"] if len(times) > 1 else [])), rows)


def _facts(found: Story, folder: Path) -> dict[str, Any]:
    """The story as JSON values."""
    apart = found.twins.apart() if found.twins else ((), ())
    return {
        "accuracy": found.contest.accuracies,
        "apart": {"dlc": max(apart[0]), "PyTorch": max(apart[1])} if found.twins else None,
        "diff": found.diff.ok if found.diff else None,
        "times": found.times,
        "c": found.answer.same if found.answer else None,
        "page": str(folder / "index.html"),
    }
