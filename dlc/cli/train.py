"""`dlc train`: a model learns a data set, with figures as it goes, and checkpoints to resume."""

from __future__ import annotations

import ast
import os
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from dlc.cli import datasets, naming, output
from dlc.errors import ArgumentError, explain
from dlc.report import duration

if TYPE_CHECKING:
    from dlc.frontend.optim import Optimizer
    from dlc.training.callbacks import Callback
    from dlc.training.history import History
    from dlc.training.trainer import Trainer

HELP = "train a model on images, with checkpoints to go on from"
ABOUT = f"""\
{naming.ABOUT_MODEL}

{datasets.ABOUT}

Each epoch prints a line: figures of the training data while the model changed, then those of the
validation data. The test data are used once, at the end. Optimisers and schedules have PyTorch's
arguments and numbers: --set gives an optimiser what is not its default. --seed decides the first
weights, the order of samples and the augmentation: the same command gives the same bits, also when
it was killed in between and --resume went on from the checkpoint, which is always a whole file.

--augment takes names with a comma between them, each with `=` and a strength if it is not the usual
one, as in `affine=0.5,noise`:

{datasets.about_augmentations()}

examples:
  dlc train lenet5 --data digits --augment affine
  dlc train model.py:Net --data mnist:mnist --optimizer sgd --lr 0.1 --set momentum=0.9
  dlc train lenet5 --data digits --epochs 30 --checkpoint run.ckpt --resume --plot curve.png
  dlc train resnet18 --data images:photos --size 224 --scheduler cosine --weights old.safetensors"""

OPTIMIZERS = {
    "sgd": "SGD",
    "adagrad": "Adagrad",
    "adadelta": "Adadelta",
    "rmsprop": "RMSprop",
    "adam": "Adam",
    "adamw": "AdamW",
}
SCHEDULERS = ("none", "cosine", "onecycle", "step", "plateau")
#: Formats of curves.
DRAWINGS = (".png", ".svg", ".pdf")


def configure(parser: ArgumentParser) -> None:
    """Add the arguments."""
    naming.add_model(parser)
    datasets.add_arguments(parser)
    add = parser.add_argument
    add("--augment", default="", metavar="NAMES", help="random changes of the training images")
    add(
        "--epochs",
        type=datasets.positive,
        default=10,
        metavar="N",
        help="passes over the data (10)",
    )
    add(
        "--batch-size",
        type=datasets.positive,
        default=64,
        metavar="N",
        help="samples of a step (64)",
    )
    add("--optimizer", choices=OPTIMIZERS, default="adamw", help="optimiser (adamw)")
    add("--lr", type=rate, metavar="RATE", help="learning rate, by default the optimiser's own")
    add(
        "--set",
        type=setting,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="another argument of the optimiser, as in Python",
    )
    add("--scheduler", choices=SCHEDULERS, default="none", help="schedule (none)")
    add("--warmup", type=datasets.whole, default=0, metavar="N", help="epochs of rising rate (0)")
    add(
        "--label-smoothing",
        type=datasets.share,
        default=0.0,
        metavar="SHARE",
        help="of the loss (0)",
    )
    add("--clip-grad-norm", type=rate, metavar="NORM", help="bound on the gradients' norm")
    add(
        "--patience",
        type=datasets.positive,
        metavar="N",
        help="stop after N epochs without progress",
    )
    add("--seed", type=datasets.whole, default=0, metavar="N", help="of all that is random (0)")
    add("--checkpoint", metavar="FILE", help="saved behind each epoch, whole or not at all")
    add("--resume", action="store_true", help="go on from the checkpoint, if there is one")
    add("--output", metavar="FILE", help="write the weights of the best epoch: .safetensors")
    add("--plot", metavar="FILE", help="draw the curves: .png, .svg or .pdf")
    add("--threads", type=int, metavar="N", help="threads of a step")
    output.add_json(parser)


def rate(text: str) -> float:
    """A number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ArgumentTypeError(f"expects a number above 0, got {text!r}")
    return value


def setting(text: str) -> tuple[str, Any]:
    """`betas=(0.9, 0.99)`."""
    name, _, value = text.partition("=")
    try:
        return name, ast.literal_eval(value.strip())
    except (ValueError, SyntaxError):
        raise ArgumentTypeError(f"expects a name and a value: momentum=0.9, got {text!r}") from None


def run(arguments: Namespace) -> int:
    """Train, and tell."""
    from dlc.frontend.random import seed
    from dlc.runtime.threads import count

    _check_files(arguments)
    threads = count(arguments.threads)
    parts = datasets.parts(arguments)
    train = datasets.augmented(parts.train, arguments.augment)
    seed(arguments.seed)
    made = trainer(arguments, len(train), threads)
    made.notes = _recipe(arguments)
    resumed = _resume(made, arguments)
    tell = _Lines(arguments, parts, resumed)
    history = made.fit(
        train,
        parts.validation,
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        patience=arguments.patience,
        restore_best=True,
        checkpoint=arguments.checkpoint,
        callbacks=[] if arguments.json else [_at_epochs(tell.epoch)],
    )
    test = made.evaluate(parts.test)
    if arguments.output:
        from dlc.frontend.weights import save_weights

        save_weights(made.model, arguments.output)
    if arguments.plot:
        history.plot(arguments.plot)
    if arguments.json:
        output.show_json(_facts(arguments, parts, history, test))
    else:
        tell.end(history, test)
    return 0


def trainer(arguments: Namespace, samples: int, threads: int) -> Trainer:
    """The trainer that a command line describes, for so many training samples."""
    from dlc.frontend import nn
    from dlc.training.trainer import Trainer

    model = naming.model(Namespace(**vars(arguments), train=True))
    optimizer = _optimizer(arguments)
    return Trainer(
        model,
        nn.CrossEntropyLoss(label_smoothing=arguments.label_smoothing),
        optimizer,
        metrics=("accuracy",),
        scheduler=_scheduler(arguments, optimizer, samples),
        clip_grad_norm=arguments.clip_grad_norm,
        threads=threads,
    )


def _optimizer(arguments: Namespace) -> Optimizer:
    from dlc.frontend import optim

    settings = dict(arguments.set)
    if arguments.lr is not None:
        settings["lr"] = arguments.lr
    made: Optimizer = getattr(optim, OPTIMIZERS[arguments.optimizer])(**settings)
    return made


def _scheduler(arguments: Namespace, optimizer: Optimizer, samples: int) -> Any:
    """The schedule: by epochs, but for one cycle, which goes by steps."""
    from dlc.frontend.optim import lr_scheduler as schedules

    kind, epochs, warmup = arguments.scheduler, arguments.epochs, arguments.warmup
    if warmup and (warmup >= epochs or kind in ("onecycle", "plateau")):
        expected = f"fewer than {epochs} epochs, with none, cosine or step"
        got = f"{warmup} with --scheduler {kind}"
        raise ArgumentError(explain("--warmup", expected, got))
    if kind == "plateau":
        return schedules.ReduceLROnPlateau(optimizer, factor=0.3, patience=max(1, epochs // 10))
    if kind == "onecycle":
        top = optimizer.param_groups[0]["lr"]
        steps = -(-samples // arguments.batch_size)
        return schedules.OneCycleLR(optimizer, top, epochs=epochs, steps_per_epoch=steps)
    rise = schedules.LinearLR(optimizer, 1 / (warmup + 1), 1.0, warmup) if warmup else None
    if kind == "none":
        return rise
    if kind == "cosine":
        rest: Any = schedules.CosineAnnealingLR(optimizer, epochs - warmup)
    else:
        rest = schedules.StepLR(optimizer, max(1, (epochs - warmup) // 3))
    return schedules.SequentialLR(optimizer, [rise, rest], [warmup]) if rise else rest


def _resume(made: Trainer, arguments: Namespace) -> bool:
    """Take up the run of the checkpoint, if there is one and that is wanted."""
    path = arguments.checkpoint
    if not path or not os.path.exists(path):
        return False
    if not arguments.resume:
        raise ArgumentError(
            f"the checkpoint {path!r} exists; go on from it with --resume, or name another file"
        )
    lasts, options = _lengths(made.scheduler), _options(made)
    made.resume(path)
    if lasts != _lengths(made.scheduler):
        raise ArgumentError(
            f"{path!r} is a checkpoint of a run with a schedule of other epochs or steps; resume "
            "with the same --epochs, --batch-size and --warmup"
        )
    if differing := [name for name, value in _options(made).items() if value != options[name]]:
        was = ", ".join(f"{name}={_options(made)[name]}" for name in differing)
        raise ArgumentError(f"{path!r} is a checkpoint of a run with {was}; resume with the same")
    ours, theirs = _recipe(arguments), made.notes
    if differing := [option for option in ours if theirs.get(option, ours[option]) != ours[option]]:
        was = ", ".join(_given(option, theirs[option]) for option in differing)
        raise ArgumentError(f"{path!r} is a checkpoint of a run {was}; resume with the same")
    return True


#: Options that decide what a run is, and are in no other part of its checkpoint.
RECIPE = (
    *("seed", "batch_size", "augment", "label_smoothing", "clip_grad_norm"),
    *("validation", "size", "grey"),
)


def _recipe(arguments: Namespace) -> dict[str, str]:
    """These options as they are written, to be kept in checkpoints; empty where one is not set."""
    given = {name: getattr(arguments, name) for name in RECIPE}
    return {
        f"--{name.replace('_', '-')}": "" if value is None or value is False else str(value)
        for name, value in given.items()
    }


def _given(option: str, value: str) -> str:
    return f"with {option} {value}" if value else f"without {option}"


def _options(made: Trainer) -> dict[str, Any]:
    """The optimiser's options, but for those that schedules move, and where these began."""
    group = made.optimizer.param_groups[0]
    moved = ("lr", "momentum", "betas") if made.scheduler else ()
    return {name: value for name, value in group.options().items() if name not in moved}


def _lengths(scheduler: Any) -> list[Any]:
    """How long a schedule is, and its parts: a checkpoint brings its own."""
    if scheduler is None:
        return []
    names = ("T_max", "step_size", "total_iters", "total_steps", "_milestones")
    own = [getattr(scheduler, name, None) for name in names]
    return own + [_lengths(each) for each in getattr(scheduler, "_schedulers", ())]


def _check_files(arguments: Namespace) -> None:
    """Complain now about what could not be written at the end."""
    naming.check_file(arguments.model)
    if arguments.resume and not arguments.checkpoint:
        raise ArgumentError("--resume goes on from a checkpoint; name it: --checkpoint run.ckpt")
    output.check_ending("--plot", arguments.plot, DRAWINGS)
    output.check_ending("--output", arguments.output, (".safetensors",))
    places: dict[str, str] = {}
    for option in ("--checkpoint", "--output", "--plot"):
        path = getattr(arguments, option.removeprefix("--"))
        output.check_replaced(option, path)
        if path and (other := places.setdefault(os.path.realpath(path), option)) != option:
            expected = f"another file than {other}, which it would overwrite"
            raise ArgumentError(explain(option, expected, repr(path)))


# Telling.


#: Figures of an epoch: what stands above a column, how wide that is, and how it is written.
COLUMNS = {
    "epoch": ("epoch", 7, str),
    "loss": ("loss", 7, "{:.4f}".format),
    "accuracy": ("accuracy", 8, "{:.1%}".format),
    "val_loss": ("val loss", 8, "{:.4f}".format),
    "val_accuracy": ("val accuracy", 12, "{:.1%}".format),
    "lr": ("rate", 8, "{:.3g}".format),
    "seconds": ("time", 7, duration),
}


class _Lines:
    """A line for each epoch, as soon as it is over."""

    def __init__(self, arguments: Namespace, parts: datasets.Parts, resumed: bool):
        self._headed = False
        # With a progress bar on a terminal, `rich` stands in for standard output.
        self._out = None if sys.stdout.isatty() else sys.stdout
        if not arguments.json:
            counts = ", ".join(f"{n} for {name}" for name, n in parts.counts().items())
            self._say(f"{arguments.model} on {arguments.data}: {counts}")
            if resumed:
                self._say(f"going on from {arguments.checkpoint}")

    def _say(self, line: str) -> None:
        print(line, file=self._out, flush=True)

    def epoch(self, figures: Mapping[str, Any]) -> None:
        """The line of an epoch that is over."""
        told = [(*COLUMNS[name], value) for name, value in figures.items()]
        if not self._headed:
            self._say("  ".join(f"{title:>{width}}" for title, width, _, _ in told))
            self._headed = True
        self._say("  ".join(f"{write(value):>{width}}" for _, width, write, value in told))

    def end(self, history: History, test: Mapping[str, float]) -> None:
        """What came out."""
        if not self._headed:
            self._say(f"it was over: {len(history)} epochs, the best was {history.best_epoch}")
        figures = ", ".join(f"{name} {COLUMNS[name][2](value)}" for name, value in test.items())
        self._say(f"test, with the weights of epoch {history.best_epoch}: {figures}")


def _at_epochs(tell: Callable[[Mapping[str, Any]], None]) -> Callback:
    from dlc.training.callbacks import Callback

    class AtEpochs(Callback):
        def on_epoch_end(self, trainer: Trainer, figures: Mapping[str, Any]) -> None:
            tell(figures)

    return AtEpochs()


def _facts(
    arguments: Namespace, parts: datasets.Parts, history: History, test: Mapping[str, float]
) -> dict[str, Any]:
    return {
        "model": arguments.model,
        "data": arguments.data,
        "samples": parts.counts(),
        "history": history.epochs,
        "best_epoch": history.best_epoch,
        "test": dict(test),
    }
