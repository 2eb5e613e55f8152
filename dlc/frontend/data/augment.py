"""Augmentations: random changes of images that leave their labels true.

They change a whole batch at once; what they do to an image depends on seed, epoch and sample alone.
This file has those that move or change single pixels; `warp` has those that interpolate.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np

from dlc.errors import ArgumentError, ShapeError, explain
from dlc.frontend.data.chance import Array, Draws
from dlc.frontend.data.transforms import Transform, check_floats
from dlc.frontend.numeric import check_whole, is_number

#: A range: a pair, or how far it goes on both sides of what changes nothing.
Range: TypeAlias = float | tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Augmentation(Transform):
    """A random change of images (N, C, H, W) that keeps their shape.

    Parameters
    ----------
    p : float
        The probability with which an image is changed.
    """

    p: float = 1.0

    def __post_init__(self) -> None:
        if not (is_number(self.p) and 0 <= self.p <= 1):
            raise ArgumentError(explain("p", "a probability", repr(self.p)))

    def apply(self, inputs: Array, draws: Draws) -> Array:
        """Change the images that chance picks."""
        check_images(inputs, type(self).__name__)
        picked = draws.chance(self.p)
        changed = self.change(inputs, draws)
        return changed if picked.all() else np.where(along_batch(picked), changed, inputs)

    @abstractmethod
    def change(self, images: Array, draws: Draws) -> Array:
        """All images changed."""


@dataclass(frozen=True)
class Flip(Augmentation):
    """Mirror an image.

    Parameters
    ----------
    direction : "horizontal" or "vertical"
        Which way pixels go.
    p : float
        The probability with which an image is mirrored.
    """

    direction: Literal["horizontal", "vertical"] = "horizontal"
    p: float = field(default=0.5, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.direction not in ("horizontal", "vertical"):
            expected = '"horizontal" or "vertical"'
            raise ArgumentError(explain("Flip", expected, repr(self.direction)))

    def change(self, images: Array, draws: Draws) -> Array:
        """Each image mirrored."""
        return np.flip(images, -1 if self.direction == "horizontal" else -2)


@dataclass(frozen=True)
class Shift(Augmentation):
    """Move an image by whole pixels, in both directions.

    Parameters
    ----------
    pixels : int
        How far at most.
    fill : float
        What comes in at the other side.
    """

    pixels: int
    fill: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("pixels", self.pixels, 0)

    def change(self, images: Array, draws: Draws) -> Array:
        """A window of each padded image."""
        padded = pad(images, self.pixels, self.fill)
        return windows(padded, draws, *images.shape[2:])


@dataclass(frozen=True)
class Pad(Transform):
    """Put a frame around images.

    Parameters
    ----------
    pixels : int
        Its width on each side.
    fill : float
    """

    pixels: int
    fill: float = 0.0

    def __post_init__(self) -> None:
        check_whole("pixels", self.pixels, 0)

    def apply(self, inputs: Array, draws: Draws) -> Array:
        """(N, C, H, W) to (N, C, H + 2 pixels, W + 2 pixels)."""
        check_images(inputs, "Pad")
        return pad(inputs, self.pixels, self.fill)


@dataclass(frozen=True)
class Crop(Transform):
    """Cut a random window out of images, which may have got a frame first.

    Parameters
    ----------
    size : int or pair of int
        Height and width of the window.
    padding : int
        Width of the frame.
    fill : float
        What the frame shows.
    """

    size: int | tuple[int, int]
    padding: int = 0
    fill: float = 0.0

    def __post_init__(self) -> None:
        check_whole("padding", self.padding, 0)
        for size in self._window():
            check_whole("size", size)

    def apply(self, inputs: Array, draws: Draws) -> Array:
        """(N, C, H, W) to (N, C, *size)."""
        check_images(inputs, "Crop")
        padded, (height, width) = pad(inputs, self.padding, self.fill), self._window()
        if height > padded.shape[2] or width > padded.shape[3]:
            got = f"{inputs.shape} with {self.padding} pixels of padding"
            raise ShapeError(explain("Crop", f"images of at least {height} x {width}", got))
        return windows(padded, draws, height, width)

    def _window(self) -> tuple[int, int]:
        return self.size if isinstance(self.size, tuple) else (self.size, self.size)


@dataclass(frozen=True)
class Contrast(Augmentation):
    """Move an image's values away from their mean, or toward it. Nothing is clipped.

    Parameters
    ----------
    factor : float or pair of float
        A range, at least 0; 0.2 is (0.8, 1.2).
    """

    factor: Range

    def __post_init__(self) -> None:
        super().__post_init__()
        interval("factor", self.factor, about=1, least=0)

    def change(self, images: Array, draws: Draws) -> Array:
        """factor * image + (1 - factor) * mean."""
        check_floats(images, "Contrast", 4)
        factor = draws.uniform(*interval("factor", self.factor, about=1, least=0))
        factor = along_batch(factor.astype(images.dtype))
        mean: Array = images.mean((1, 2, 3), keepdims=True)
        return factor * images + (1 - factor) * mean


@dataclass(frozen=True)
class Noise(Augmentation):
    """Add normal noise to each pixel.

    Parameters
    ----------
    std : float
        Its standard deviation.
    """

    std: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (is_number(self.std) and 0 <= self.std < np.inf):
            raise ArgumentError(explain("std", "a number of at least 0", repr(self.std)))

    def change(self, images: Array, draws: Draws) -> Array:
        """image + std * noise."""
        check_floats(images, "Noise", 4)
        noise = draws.normal(images.shape[1:]) * self.std
        noisy: Array = np.add(images, noise, dtype=images.dtype)
        return noisy


def interval(
    name: str,
    value: Range,
    about: float = 0.0,
    *,
    least: float = -np.inf,
    above: float = -np.inf,
    below: float = np.inf,
) -> tuple[float, float]:
    """The two ends of a range, checked: of 0.1 about 1, they are 0.9 and 1.1."""
    both = value if isinstance(value, (tuple, list)) else (value, value)
    given = len(both) == 2 and all(map(is_number, both))
    low, high = both if given else (np.nan, np.nan)  # which is in no range
    if both is not value:
        low, high = about - low, about + high
    if not (low <= high and low >= least and above < low and high < below):
        limits = [f"at least {least:g}"] if least > -np.inf else []
        limits += [f"above {above:g}"] if above > -np.inf else []
        limits += [f"below {below:g}"] if below < np.inf else []
        expected = " and ".join(
            [f"a range about {about:g}, or a pair of numbers in order", *limits]
        )
        raise ArgumentError(explain(name, expected, repr(value)))
    return float(low), float(high)


def pad(images: Array, pixels: int, fill: float) -> Array:
    """A frame of some pixels around each image."""
    frame = (pixels, pixels)
    return np.pad(images, ((0, 0), (0, 0), frame, frame), constant_values=fill)


def windows(images: Array, draws: Draws, height: int, width: int) -> Array:
    """A random window of each image: (N, C, height, width)."""
    top = draws.integers(0, images.shape[2] - height)
    left = draws.integers(0, images.shape[3] - width)
    every = np.lib.stride_tricks.sliding_window_view(images, (height, width), (2, 3))
    return every[np.arange(len(images)), :, top, left]


def along_batch(numbers: Array) -> Array:
    """Numbers (N,) that broadcast against images."""
    return numbers.reshape(-1, 1, 1, 1)


def check_images(inputs: Array, whose: str) -> None:
    """Refuse what is no batch of images."""
    if inputs.ndim != 4:
        raise ShapeError(explain(whose, "images (N, C, H, W)", str(inputs.shape)))
