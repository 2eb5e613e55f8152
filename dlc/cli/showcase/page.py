"""The demo as one HTML page: no script, no font, no picture from anywhere else.

It reads downward as one would tell it: who reads best, how they learned, what they get wrong, how
the numbers compare with PyTorch's, and what the compiler made of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from dlc.cli.showcase import charts, figures, in_c
from dlc.cli.showcase.beside import TIMED, Twins
from dlc.cli.showcase.contest import BATCH, TRAINING_SHARE, Contest
from dlc.cli.showcase.in_c import Answer
from dlc.cli.showcase.style import STYLE
from dlc.report import duration, percent, quantity

if TYPE_CHECKING:
    from dlc.runtime.profile import Profile
    from dlc.testing.diff_report import DiffReport, Row

Array: TypeAlias = "np.ndarray[Any, Any]"
NAMES = [str(n) for n in range(10)]
MOST_MISREAD = 24
#: LeNet-5 and MLP, each on training and on test data.
CURVES = ("a faint", "b faint", "a", "b")


@dataclass
class Story:
    """What the demo has found out; None or empty is what could not be found out here.

    Attributes
    ----------
    contest : Contest
    threads : int
    twins : Twins or None
        The losses beside PyTorch's.
    diff : DiffReport or None
    times : dict
        Seconds by side and by what is timed.
    busy : str
        A warning, if the machine had other work while it was timed.
    answer : Answer or None
        What the C program read.
    drawing : str
        The optimised graph as SVG.
    profiles : dict of str to Profile
    """

    contest: Contest
    threads: int
    twins: Twins | None = None
    diff: DiffReport | None = None
    times: dict[str, dict[str, float]] = field(default_factory=dict)
    busy: str = ""
    answer: Answer | None = None
    drawing: str = ""
    profiles: dict[str, Profile] = field(default_factory=dict)

    def look_inside(self) -> None:
        """Draw the trained network's optimised graph, and profile its kernels."""
        from dlc.driver import compile
        from dlc.ir.draw import svg
        from dlc.ir.sizes import Dim
        from dlc.ir.types import TensorSpec
        from dlc.training.step import TrainStep

        star, (images, labels) = self.contest.star, self.contest.tests[0][:BATCH]
        spec = TensorSpec((Dim("batch", 1, BATCH), *images.shape[1:]))
        exe = compile(star.model, spec, threads=self.threads)
        self.drawing = svg(exe.graph)
        self.profiles["Inference"] = exe.profile(images)
        star.model.train()
        trainer = star.trainer
        options: dict[str, Any] = {"metrics": trainer.metrics, "max_batch": BATCH}
        step = TrainStep(
            star.model, trainer.loss, trainer.optimizer, threads=self.threads, **options
        )
        self.profiles["Training step"] = step.executable(images, labels).profile(images, labels)
        star.model.eval()


def page(story: Story) -> str:
    """The page as HTML."""
    sections = [
        _contest(story.contest),
        _learning(story.contest),
        _mistakes(story.contest),
        _inside(story.contest),
        _beside(story),
        _compiled(story),
        _in_c(story),
    ]
    mean = 100 * story.contest.mean("LeNet-5")
    digits = sum(map(len, story.contest.tests))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>dlc reads handwritten digits</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
</head>
<body><main>
<h1>Reading handwriting, compiled whole</h1>
<p class="lead">LeNet-5, written in Python, learned on this machine from real scans. Its forward
pass, its gradients and its update are one native call. On {digits} test digits it is right in
{mean:.1f} %.</p>
{_tiles(story)}
{"".join(sections)}
<footer>Written by <code>dlc demo</code>. The digits are those that scikit-learn brings along: the
test half of the UCI set “Optical recognition of handwritten digits”.</footer>
</main></body>
</html>
"""


# What it comes to.


def _tiles(story: Story) -> str:
    best = max(story.contest.mean(n) for n in story.contest.accuracies if n != "LeNet-5")
    mean = story.contest.mean("LeNet-5")
    tiles = [(f"{100 * mean:.1f} %", f"LeNet-5; the best of the others {100 * best:.1f} %")]
    doubt = ", on a busy machine" if story.busy else ""
    step = f"a training step of {BATCH} images{doubt}"
    tiles.append((duration(story.times["dlc"]["step"]), step))
    theirs = story.times.get("PyTorch")
    for name, words in (("step", "a training step"), ("one", "reading one image")):
        if theirs:
            ratio = theirs[name] / story.times["dlc"][name]
            tiles.append((f"{ratio:.1f} ×", f"PyTorch's time for {words}{doubt}"))
    if story.diff:
        words = "no layer differs from PyTorch by more than rounding"
        tiles.append(("equal", words) if story.diff.ok else ("differs", story.diff.summary()))
    items = "".join(f'<div class="tile"><b>{b}</b><span>{escape(s)}</span></div>' for b, s in tiles)
    return f'<div class="tiles">{items}</div>'


def _section(title: str, words: str, *parts: str) -> str:
    return f"<section><h2>{title}</h2><p>{words}</p>{''.join(parts)}</section>"


def _cards(*cards: str) -> str:
    inner = "".join(f'<div class="card">{card}</div>' for card in cards if card)
    return f'<div class="grid2">{inner}</div>'


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[int] = ()) -> str:
    """A table; cells are HTML, the first of a row is its heading."""
    right = set(numbers)
    aligned = [' class="number"' if n in right else "" for n in range(len(heads))]
    head = "".join(f'<th scope="col"{c}>{h}</th>' for c, h in zip(aligned, heads))
    body = "".join(
        f'<tr><th scope="row">{first}</th>'
        + "".join(f"<td{c}>{cell}</td>" for c, cell in zip(aligned[1:], rest))
        + "</tr>"
        for first, *rest in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


# The contest and the learning.


def _contest(held: Contest) -> str:
    shown = {name: [100 * value for value in values] for name, values in held.accuracies.items()}
    splits = len(held.tests)
    rows = [
        [name, *(f"{value:.1f}" for value in values), f"<b>{np.mean(values):.2f}</b>"]
        for name, values in shown.items()
    ]
    heads = ("", *(f"split {n + 1}" for n in range(splits)), "mean")
    words = (
        f"In each split {percent(TRAINING_SHARE)} of the digits are to learn from and the others "
        "to be judged by, each class by its share. The networks see their digits slightly turned, "
        "moved and slanted, otherwise in every pass; the recipe is the same for both networks and "
        "for all splits. Each dot is one split."
    )
    return _section(
        "Who reads best?",
        words,
        _cards(
            charts.dots(shown, across="test accuracy, %", colours="cdba"),
            _table(heads, rows, range(1, splits + 2)),
        ),
    )


def _learning(held: Contest) -> str:
    mlp, lenet = (held.networks[name][0] for name in ("MLP", "LeNet-5"))
    losses = {
        "LeNet-5, training": lenet.history["loss"],
        "MLP, training": mlp.history["loss"],
        "LeNet-5, test": lenet.history["val_loss"],
        "MLP, test": mlp.history["val_loss"],
    }
    wrong = {
        "LeNet-5, training": [100 * (1 - v) for v in lenet.history["accuracy"]],
        "MLP, training": [100 * (1 - v) for v in mlp.history["accuracy"]],
        "LeNet-5, test": [100 * (1 - v) for v in lenet.history["val_accuracy"]],
        "MLP, test": [100 * (1 - v) for v in mlp.history["val_accuracy"]],
    }
    seconds = sum(epoch["seconds"] for epoch in list(lenet.history)[1:]) / max(1, held.epochs - 1)
    words = (
        f"The first split: {held.epochs} epochs of AdamW, the learning rate up and down in one "
        f"cycle, {duration(seconds)} an epoch of LeNet-5. Training digits are warped, which makes "
        "them harder than the test digits."
    )
    return _section(
        "How they learned",
        words,
        _cards(
            charts.lines(losses, across="epoch", up="loss", log=True, colours=CURVES),
            charts.lines(wrong, across="epoch", up="misread, %", log=True, colours=CURVES),
        ),
    )


# What it gets wrong, and what it sees.


def _mistakes(held: Contest) -> str:
    counts = np.zeros((10, 10), np.int64)
    misread = []
    for test, trained in zip(held.tests, held.networks["LeNet-5"]):
        images, labels = test[:]
        read = trained.logits.argmax(1)
        np.add.at(counts, (labels, read), 1)
        sure = _softmax(trained.logits)
        misread += [
            (images[n, 0], labels[n], read[n], sure[n, read[n]])
            for n in np.flatnonzero(read != labels)
        ]
    shown = "".join(
        f"<figure>{figures.digit(ink, f'a {label}, read as {read}')}<figcaption>{label}, read as "
        f"<b>{read}</b><br>{percent(sure)} sure</figcaption></figure>"
        for ink, label, read, sure in misread[:MOST_MISREAD]
    )
    more = len(misread) - MOST_MISREAD
    rest = f'<p class="quiet">… and {more} more.</p>' if more > 0 else ""
    total = int(counts.sum())
    words = (
        f"Of {total} test digits in {len(held.tests)} splits, LeNet-5 misreads {len(misread)}. "
        "Rows are what a digit is, columns what it was read as."
    )
    strip = f'<h3>Misread</h3><div class="strip">{shown or "none"}</div>{rest}'
    return _section("What it gets wrong", words, _cards(figures.confusions(counts, NAMES), strip))


def _inside(held: Contest) -> str:
    """The filters of the first layer, and what each makes of one digit."""
    model: Any = held.star.model
    image = held.tests[0][:1][0]
    values = model.state_dict()["conv1.weight"][:, 0]
    maps = np.maximum(model.conv1(image)[0], 0)
    scale, brightest = float(np.abs(values).max()), float(maps.max()) or 1.0
    pairs = "".join(
        f"<figure>{figures.weights(each, f'filter {n + 1}', scale)}"
        f"{figures.digit(seen / brightest, f'where filter {n + 1} responds')}</figure>"
        for n, (each, seen) in enumerate(zip(values, maps))
    )
    first = f"<figure>{figures.digit(image[0, 0], 'a test digit')}"
    first += "<figcaption>a test<br>digit</figcaption></figure>"
    words = (
        "The six filters of the first layer, 5 × 5 each, as they were learned: "
        '<span class="key a">ink wanted</span>, <span class="key b">ink not wanted</span>. Below '
        "each, where it responds to the digit."
    )
    strip = f'<div class="card"><div class="strip maps">{first}{pairs}</div></div>'
    return _section("What it looks for", words, strip)


def _softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    found: Array = powers / powers.sum(1, keepdims=True)
    return found


# Beside PyTorch.


def _beside(story: Story) -> str:
    threads = f"{story.threads} thread{'s' * (story.threads > 1)}"
    races = "".join(_race(story.times, name, words) for name, words in TIMED.items())
    cards = [f"<h3>Time, on {threads}</h3>{races}{_busy(story)}"]
    words = "PyTorch is not installed here; <code>pip install 'dlc[torch]'</code> puts it beside."
    if story.twins:
        ours, theirs = story.twins.apart()
        drawn = {"dlc": _most(ours, story), "PyTorch": _most(theirs, story)}
        up = "|loss − float64’s|, the largest of an epoch"
        chart = charts.lines(drawn, across="epoch", up=up, log=True)
        said = escape(story.twins.summary())
        cards.append(
            "<h3>How far the losses part</h3>"
            f'{chart}<p class="quiet">The same training by PyTorch in float64 is the measure: '
            f"{said}. Training amplifies any rounding; it does so in both alike.</p>"
        )
        words = (
            "The same network in PyTorch: each side timed in a process of its own, in turn; and "
            "trained from the same weights, on the same batches, with the same optimiser and "
            "schedule."
        )
    return _section("Beside PyTorch", words, _cards(*cards), _diff(story.diff))


def _busy(story: Story) -> str:
    """A warning beside times that the machine's other work may have spoilt."""
    return f'<p class="bad">{escape(story.busy)}</p>' if story.busy else ""


def _most(values: Sequence[float], story: Story) -> list[float]:
    """The largest value of each epoch."""
    return [float(max(part)) for part in np.array_split(values, story.contest.epochs)]


def _race(times: dict[str, dict[str, float]], name: str, words: str) -> str:
    """Bars for the time of one thing on each side."""
    slowest = max(each[name] for each in times.values())
    rows = "".join(
        f'<span>{side}</span><div><i class="{"ours" if side == "dlc" else ""}" '
        f'style="width:{70 * each[name] / slowest:.1f}%"></i>{duration(each[name])}</div>'
        for side, each in times.items()
    )
    return f'<div>{escape(words)}</div><div class="race">{rows}</div>'


def _diff(report: DiffReport | None) -> str:
    """The table of a diff."""
    if report is None:
        return ""
    heads = (
        *("module", "layer", "verdict", "dlc", "PyTorch", "of tolerance", "of bound"),
        *("dlc, through the net", "PyTorch"),
    )
    values, gradients = (
        _table(heads, [_diff_row(each) for each in report.rows if each.kind in kinds], range(3, 9))
        for kinds in (("layer", "model"), ("gradient", "gradients"))
    )
    good = "good" if report.ok else "bad"
    return (
        '<div class="card"><h3>Layer by layer</h3>'
        f'<p class="quiet">The trained weights in both. Each layer is fed with what PyTorch’s '
        "layer reads in float64; shown is the largest distance from float64, what part of the "
        "tolerance dlc uses, and for linear layers what part of the bound that no rounding can "
        f'exceed. <b class="{good}">{escape(report.summary())}.</b></p>'
        f"{values}<details><summary>The gradients</summary>{gradients}</details></div>"
    )


def _diff_row(each: Row) -> list[str]:
    from dlc.testing.diff_report import number, share

    verdict = "bad" if each.verdict == "WRONG" else "good"
    return [
        f"<code>{escape(each.title.strip().split(': ')[0])}</code>",
        escape(each.name),
        f'<span class="{verdict}">{each.verdict}</span>',
        *(number(each.local), number(each.torch_local), share(each.used)),
        "" if each.share is None else share(each.share),
        *(number(each.accumulated), number(each.torch_accumulated)),
    ]


# What the compiler made.


def _compiled(story: Story) -> str:
    words = (
        "The network after the passes, as a graph. A few kernels compute it: bias, ReLU and "
        "pooling join the store of the layer before them. Beside each kernel is the share that it "
        "reaches of the multiply-add peak, which is measured in the same minute."
    )
    doubt = _busy(story)
    inference, training = (_kernels(name, each, doubt) for name, each in story.profiles.items())
    more = f"<details><summary>The training step, kernel by kernel</summary>{training}</details>"
    drawing = f'<div class="drawing">{story.drawing}</div>'
    return _section("What the compiler made", words, drawing, inference, more)


def _kernels(name: str, profile: Profile, doubt: str) -> str:
    """The kernels of a profile, with a warning if there is one."""
    rows = list(_kernel_rows(profile))
    peak = quantity(profile.peak.flops, "FLOP/s")
    title = f"{name} of {BATCH} images: {len(rows)} kernels, {duration(profile.seconds)}"
    share = profile.flops / profile.seconds / profile.peak.flops
    words = (
        f"All kernels together reach {percent(share)} of the peak of {peak} on "
        f"{profile.peak.threads} threads ({profile.peak.isa}). Times are medians of "
        f"{profile.repeats} calls, each with about {duration(profile.clock)} for the clock."
    )
    heads = ("kernel", "time", "of all", "FLOPs", "bytes", "of peak", "")
    return (
        f'<div class="card"><h3>{escape(title)}</h3><p class="quiet">{escape(words)}</p>{doubt}'
        f"{_table(heads, rows, range(1, 6))}</div>"
    )


def _kernel_rows(profile: Profile) -> Iterator[list[str]]:
    for kernel in profile.kernels:
        share = min(1.0, kernel.share)
        bar = f'<span class="bar"><i style="width:{100 * share:.0f}%"></i></span>'
        yield [
            f'<span class="code">{escape(kernel.label or kernel.name)}</span>',
            duration(kernel.seconds),
            percent(kernel.seconds / profile.seconds),
            quantity(kernel.flops) if kernel.flops else "",
            quantity(kernel.bytes, "B") if kernel.bytes else "",
            percent(kernel.share) if kernel.flops else "",
            bar if kernel.flops else "",
        ]


def _in_c(story: Story) -> str:
    if story.answer is None:
        words = "There is no C compiler on this machine, so no C program could be built."
        return _section("Without Python", words)
    images, labels = story.contest.tests[0][: len(story.answer.labels)]
    read = "".join(
        f"<figure>{figures.digit(image[0], f'a {label}')}<figcaption>reads "
        f'<b class="{"good" if label == own else "bad"}">{own}</b></figcaption></figure>'
        for image, label, own in zip(images, labels, story.answer.labels)
    )
    bits = (
        "Its logits have the very bits that Python gets."
        if story.answer.same
        else '<b class="bad">Its logits differ from those that Python gets.</b>'
    )
    words = (
        "The trained network as a shared library of "
        f"{quantity(story.answer.library_bytes, 'B')}, which needs libc and nothing else, and a C "
        f"program that reads digits with it. {bits}"
    )
    program = f"<pre>{escape(in_c.PROGRAM)}</pre><pre>{escape(' '.join(in_c.COMMAND))}</pre>"
    more = f"<details><summary>The whole program</summary>{program}</details>"
    card = f'<div class="card"><div class="strip">{read}</div>{more}</div>'
    return _section("Without Python", words, card)
