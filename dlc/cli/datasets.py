"""What DATA on a command line stands for: a data set, its parts, and what is done to its images.

One way for `dlc train` and `dlc evaluate`, so that a model is judged on samples that it was not
trained on: the parts of a data set are the same in every run.
"""

from __future__ import annotations

import difflib
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dlc.errors import ArgumentError, explain

if TYPE_CHECKING:
    from dlc.frontend.data import Dataset, Transform

#: The share of samples kept for the test, where a data set does not come in two parts.
TEST = 0.2
SOURCES = ("digits", "mnist", "fashion_mnist", "images")
PARTS = ("test", "validation", "train")

#: What every command with data says about it.
ABOUT = """\
DATA is `digits` (real handwritten digits, which scikit-learn brings along; 28x28, or `digits:8` as
they were scanned), `mnist:FOLDER` or `fashion_mnist:FOLDER` (IDX files), or `images:FOLDER` (a
subfolder for each class). A fifth of the samples of each class is kept for the test, unless the
data come with a test set, and --validation says how much of the rest to hold out for validation:
the same samples in every run."""


@dataclass(frozen=True)
class Parts:
    """The parts of a data set, each with inputs and labels; no `validation` if none is held out."""

    train: Dataset
    validation: Dataset | None
    test: Dataset

    def counts(self) -> dict[str, int]:
        """Number of samples, by part."""
        return {name: len(part) for name, part in vars(self).items() if part is not None}


def add_arguments(parser: ArgumentParser) -> None:
    """Add --data and what goes with it."""
    parser.add_argument("--data", required=True, metavar="DATA", help="a data set, see below")
    parser.add_argument("--size", metavar="HxW", type=sides, help="resize images of a folder")
    parser.add_argument(
        "--grey", action="store_true", help="read images of a folder in one channel, not three"
    )
    parser.add_argument(
        "--validation",
        type=share,
        default=0.1,
        metavar="SHARE",
        help="part of the training data held out for validation (0.1)",
    )


def sides(text: str) -> tuple[int, int]:
    """`32` or `32x48`."""
    words = text.split("x")
    if len(words) > 2 or not all(word.isdigit() and int(word) for word in words):
        raise ArgumentTypeError(f"expects a height and a width: 32x48, got {text!r}")
    return int(words[0]), int(words[-1])


def share(text: str) -> float:
    """A share from 0 to below 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise ArgumentTypeError(f"expects a share from 0 to below 1, got {text!r}")
    return value


def positive(text: str) -> int:
    """A number from 1."""
    if not text.isdigit() or not int(text):
        raise ArgumentTypeError(f"expects a number from 1 on, got {text!r}")
    return int(text)


def whole(text: str) -> int:
    """A number from 0."""
    if not text.isdigit():
        raise ArgumentTypeError(f"expects a number from 0 on, got {text!r}")
    return int(text)


def parts(arguments: Namespace) -> Parts:
    """The parts of the data set of a command line."""
    train, test = _source(arguments)
    if not arguments.validation:
        return Parts(train, None, test)
    train, validation = train.split(1 - arguments.validation, stratify=True)
    return Parts(train, validation, test)


def _source(arguments: Namespace) -> tuple[Dataset, Dataset]:
    """Training and test data."""
    from dlc.frontend import data

    name, _, place = arguments.data.partition(":")
    if name not in SOURCES:
        near = difflib.get_close_matches(name, SOURCES, 1)
        advice = f"Did you mean {near[0]}?" if near else ""
        expected = f"one of {', '.join(SOURCES)}"
        raise ArgumentError(explain("--data", expected, repr(name), advice=advice))
    if name != "digits" and not place:
        expected = f"a folder: {name}:FOLDER"
        raise ArgumentError(explain(f"--data {name}", expected, "none"))
    if name != "images" and (arguments.size or arguments.grey):
        raise ArgumentError(f"--size and --grey are for images:FOLDER, not for {name}")
    if name in ("mnist", "fashion_mnist"):
        train, test = getattr(data, name)(place)
        return train, test
    if name == "images":
        mode = "L" if arguments.grey else "RGB"
        whole: Dataset = data.images(place, size=arguments.size, mode=mode)
    else:
        whole = data.digits(_digits_size(place))
    train, test = whole.split(1 - TEST, stratify=True)
    return train, test


def _digits_size(text: str) -> int:
    if text and not text.isdigit():
        raise ArgumentError(explain("--data digits:SIZE", "a number of pixels", repr(text)))
    return int(text or 28)


# Augmentation.


@dataclass(frozen=True)
class Change:
    """A way to augment images: ``make(data, strength, sides)`` gives the transform."""

    make: Callable[[Any, float, tuple[int, int]], Transform]
    usual: float
    unit: str


AUGMENTATIONS: Mapping[str, Change] = {
    "flip": Change(lambda data, p, _: data.Flip(p=p), 0.5, "share that is mirrored"),
    "shift": Change(lambda data, by, _: data.Shift(round(by)), 2, "pixels"),
    "crop": Change(lambda data, by, sides: data.Crop(sides, round(by)), 4, "pixels of padding"),
    "rotate": Change(lambda data, by, _: data.Rotate(by), 10, "degrees"),
    "scale": Change(lambda data, by, _: data.Scale(by), 0.1, "part of the size"),
    "affine": Change(
        lambda data, by, _: data.Affine(10 * by, (0.08 * by, 0.08 * by), 0.1 * by, 5 * by),
        1,
        "times 10°, 8 %, 10 %, and 5° of shear",
    ),
    "perspective": Change(lambda data, by, _: data.Perspective(by), 0.2, "part of the sides"),
    "elastic": Change(lambda data, by, _: data.Elastic(by, 4.0), 20, "pixels before smoothing"),
    "contrast": Change(lambda data, by, _: data.Contrast(by), 0.2, "part of it"),
    "noise": Change(lambda data, by, _: data.Noise(by), 0.05, "standard deviation"),
}


def augmented(train: Dataset, text: str) -> Dataset:
    """A data set with the changes that ``affine,noise=0.1`` names.

    Raises
    ------
    ArgumentError
        There is no such change, its strength is no number, or the samples are no images.
    """
    from dlc.frontend import data

    if not text:
        return train
    shape = train[:1][0].shape
    if len(shape) != 4:
        raise ArgumentError(explain("--augment", "images (N, C, H, W)", f"samples {shape}"))
    changes = []
    for word in text.split(","):
        name, _, strength = word.partition("=")
        if name not in AUGMENTATIONS:
            expected = f"names among {', '.join(AUGMENTATIONS)}"
            advice = "With strengths: affine=0.5,noise=0.1."
            raise ArgumentError(explain("--augment", expected, repr(name), advice=advice))
        change = AUGMENTATIONS[name]
        changes.append(change.make(data, _strength(name, strength, change), shape[2:]))
    return train.transform(*changes)


def _strength(name: str, text: str, change: Change) -> float:
    try:
        return float(text) if text else change.usual
    except ValueError:
        message = explain(f"--augment {name}", f"a number ({change.unit})", repr(text))
        raise ArgumentError(message) from None


def about_augmentations() -> str:
    """Every change with its usual strength, for help texts."""
    rows = (f"    {n:12} {c.usual:<5g} {c.unit}" for n, c in AUGMENTATIONS.items())
    return "\n".join(rows)
