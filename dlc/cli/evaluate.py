"""`dlc evaluate`: a trained model on data: its figures, and what it mistakes for what."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING, Any, TypeAlias

from dlc.cli import datasets, naming, output
from dlc.errors import ArgumentError, WeightsError, explain
from dlc.report import table

if TYPE_CHECKING:
    import numpy as np

    from dlc.frontend.data import Dataset
    from dlc.frontend.module import Module

    Array: TypeAlias = np.ndarray[Any, Any]

HELP = "a trained model on data: its figures, and what it mistakes for what"
ABOUT = f"""\
{naming.ABOUT_MODEL}

{datasets.ABOUT}

The weights are those of a file, or of a checkpoint of `dlc train`: its last ones, or with --best
those of its best epoch. For each class, recall is the share of its samples that are found, and
precision the share of what is taken for it that is right.

examples:
  dlc evaluate lenet5 --data digits --checkpoint run.ckpt
  dlc evaluate model.py:Net --data mnist:mnist --weights net.safetensors --json"""


def configure(parser: ArgumentParser) -> None:
    """Add the arguments."""
    naming.add_model(parser)
    datasets.add_arguments(parser)
    add = parser.add_argument
    add("--checkpoint", metavar="FILE", help="a checkpoint to take the weights from")
    add("--best", action="store_true", help="the weights of the checkpoint's best epoch")
    add("--part", choices=datasets.PARTS, default="test", help="of the data (test)")
    add(
        "--batch-size",
        type=datasets.positive,
        default=256,
        metavar="N",
        help="samples of a call (256)",
    )
    add("--threads", type=int, metavar="N", help="threads of a call")
    output.add_json(parser)


def run(arguments: Namespace) -> int:
    """Judge, and print."""
    import numpy as np

    from dlc.frontend import nn, optim
    from dlc.runtime.threads import count
    from dlc.training.trainer import Trainer

    threads = count(arguments.threads)
    model = _model(arguments)
    data = getattr(datasets.parts(arguments), arguments.part)
    if data is None:
        raise ArgumentError("--part validation needs a share of the data: --validation 0.1")
    trainer = Trainer(model, nn.CrossEntropyLoss(), optim.SGD(), ("accuracy",), threads=threads)
    figures = trainer.evaluate(data, arguments.batch_size)
    logits = trainer.predict(data, arguments.batch_size)
    found = confusion(np.asarray(data.targets), logits.argmax(1), logits.shape[1])
    if arguments.json:
        facts = {"model": arguments.model, "data": arguments.data, "part": arguments.part}
        output.show_json({**facts, "samples": len(data), **figures, "confusion": found.tolist()})
    else:
        words = f"loss {figures['loss']:.4f}, accuracy {100 * figures['accuracy']:.2f} %"
        title = f"{arguments.model} on {len(data)} samples of {arguments.data} ({arguments.part})"
        output.show(f"{title}: {words}", _by_class(found, _names(data, len(found))))
    return 0


def _model(arguments: Namespace) -> Module:
    """The model with the weights asked for."""
    given = [name for name in ("weights", "checkpoint") if getattr(arguments, name)]
    if len(given) != 1:
        got = " and ".join(f"--{name}" for name in given) or "neither"
        raise naming.UsageError(explain("dlc evaluate", "--weights or --checkpoint", got))
    if arguments.best and not arguments.checkpoint:
        raise naming.UsageError("--best is for the best epoch of a --checkpoint")
    model = naming.model(Namespace(**vars(arguments), train=False))
    if arguments.checkpoint:
        _load_checkpoint(model, arguments.checkpoint, arguments.best)
    return model


def _load_checkpoint(model: Module, path: str, best: bool) -> None:
    from dlc.runtime import checkpoint

    arrays, notes = checkpoint.read(path)
    prefix = "best." if best else "model."
    weights = {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
    if best and not weights:
        raise ArgumentError(f"{path!r} was saved before the end of its first epoch: none is best")
    try:
        model.load_state_dict(weights)
    except WeightsError as error:
        raise WeightsError(f"{path!r} is a checkpoint of {notes['model']}: {error}") from None


def confusion(targets: Array, found: Array, classes: int) -> Array:
    """How often each class (row) is taken for each (column), int64 (classes, classes).

    Parameters
    ----------
    targets, found : array
        Labels, int (N,).
    classes : int
    """
    import numpy as np

    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (targets, found), 1)
    return counts


def _names(data: Dataset, classes: int) -> list[str]:
    return list(map(str, getattr(data, "classes", ()) or range(classes)))


def _by_class(counts: Array, names: list[str]) -> Any:
    """A row for each class: how many, how many are found, and what they are taken for instead."""
    rows = []
    for own, name in enumerate(names):
        samples, taken, right = counts[own].sum(), counts[:, own].sum(), counts[own, own]
        wrong = sorted((-n, other) for other, n in enumerate(counts[own]) if n and other != own)
        rows.append(
            [
                name,
                str(samples),
                f"{100 * right / samples:.1f} %" if samples else "",
                f"{100 * right / taken:.1f} %" if taken else "",
                ", ".join(f"{names[other]} ({-n})" for n, other in wrong[:4]),
            ]
        )
    return table(("class", "samples", "recall", "precision", "taken for"), rows)
