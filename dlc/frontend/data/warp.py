"""Geometric transforms: where each pixel comes from, and bilinear sampling there.

Each is a map from pixels of the result to places in the image, so that one sampler serves all of
them. The map of parameters that change nothing gives whole numbers, and the sampler then gives the
very pixels.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from dlc.errors import ArgumentError, explain
from dlc.frontend.data.augment import Augmentation, Range, interval
from dlc.frontend.data.chance import Array, Draws
from dlc.frontend.data.transforms import check_floats
from dlc.frontend.numeric import is_number

#: What is beyond the frame: a value, or the pixel at the edge.
Fill: TypeAlias = float | Literal["edge"]


@dataclass(frozen=True, kw_only=True)
class Warp(Augmentation):
    """A geometric transform of images (N, C, H, W) of floats.

    Parameters
    ----------
    fill : float or "edge"
        What is seen beyond the frame.
    p : float
        The probability with which an image is changed.
    """

    fill: Fill = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.fill, str) and self.fill != "edge":
            raise ArgumentError(explain("fill", 'a number or "edge"', repr(self.fill)))

    def change(self, images: Array, draws: Draws) -> Array:
        """The images, sampled at the places that `places` draws."""
        check_floats(images, type(self).__name__, 4)
        return sample(images, *self.places(draws, *images.shape[2:]), self.fill)

    @abstractmethod
    def places(self, draws: Draws, height: int, width: int) -> tuple[Array, Array]:
        """Rows and columns, (N, height, width), at which pixels of the result look."""


@dataclass(frozen=True)
class Rotate(Warp):
    """Turn by a random angle about the centre, counter-clockwise.

    Parameters
    ----------
    degrees : float or pair of float
        A range; 15 is (-15, 15).
    """

    degrees: Range

    def __post_init__(self) -> None:
        super().__post_init__()
        interval("degrees", self.degrees)

    def places(self, draws: Draws, height: int, width: int) -> tuple[Array, Array]:
        """A turned frame."""
        turn = draws.uniform(*interval("degrees", self.degrees))
        return affine(height, width, turn=turn)


@dataclass(frozen=True)
class Scale(Warp):
    """Enlarge by a random factor about the centre.

    Parameters
    ----------
    factor : float or pair of float
        A range above 0; 0.1 is (0.9, 1.1).
    """

    factor: Range

    def __post_init__(self) -> None:
        super().__post_init__()
        interval("factor", self.factor, about=1, above=0)

    def places(self, draws: Draws, height: int, width: int) -> tuple[Array, Array]:
        """A smaller or larger frame."""
        factor = draws.uniform(*interval("factor", self.factor, about=1, above=0))
        return affine(height, width, factor=factor)


@dataclass(frozen=True)
class Affine(Warp):
    """Enlarge, shear, turn and move, in this order, about the centre, with one interpolation.

    Parameters
    ----------
    degrees : float or pair of float
        Range of the angle; 15 is (-15, 15).
    translate : pair of float
        Largest moves down and to the right, in parts of height and width.
    scale : float or pair of float
        Range of the factor, above 0; 0.1 is (0.9, 1.1).
    shear : float or pair of float
        Range of the angle, in degrees, by which columns lean.
    """

    degrees: Range = 0.0
    translate: tuple[float, float] = (0.0, 0.0)
    scale: Range = 0.0
    shear: Range = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (isinstance(self.translate, (tuple, list)) and len(self.translate) == 2):
            expected = "a pair of numbers, down and to the right"
            raise ArgumentError(explain("translate", expected, repr(self.translate)))
        self._ranges()

    def _ranges(self) -> list[tuple[float, float]]:
        down, right = self.translate
        return [
            interval("degrees", self.degrees),
            interval("scale", self.scale, about=1, above=0),
            interval("shear", self.shear, above=-90, below=90),
            interval("translate", down),
            interval("translate", right),
        ]

    def places(self, draws: Draws, height: int, width: int) -> tuple[Array, Array]:
        """A frame that is moved, turned, sheared and smaller or larger."""
        turn, factor, shear, down, right = (draws.uniform(*r) for r in self._ranges())
        return affine(
            height,
            width,
            turn=turn,
            factor=factor,
            shear=shear,
            move=(down * height, right * width),
        )


@dataclass(frozen=True)
class Perspective(Warp):
    """See the image at a slant: the four corners of the frame move, each on its own.

    Parameters
    ----------
    distortion : float
        How far at most, in each direction, in parts of half the height and width; below 0.5, where
        the frame stays convex.
    """

    distortion: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (is_number(self.distortion) and 0 <= self.distortion < 0.5):
            expected = "a number from 0 to below 0.5"
            raise ArgumentError(explain("distortion", expected, repr(self.distortion)))

    def places(self, draws: Draws, height: int, width: int) -> tuple[Array, Array]:
        """The map of a square to a quadrilateral (Heckbert, Texture mapping, 1989)."""
        half = np.array([[height], [width]]) / 2
        last = np.maximum([height - 1, width - 1], 1)
        corners = np.array([[0, 0, 1, 1], [0, 1, 1, 0]]) * last[:, None]
        moved = corners + draws.uniform(-self.distortion, self.distortion, (2, 4)) * half
        first, second, third, fourth = np.moveaxis(moved, -1, 0)  # clockwise, each (N, 2)
        bend, right, down = first - second + third - fourth, second - third, fourth - third
        g = _cross(bend, down) / _cross(right, down)
        h = _cross(right, bend) / _cross(right, down)
        x, y = np.arange(width) / last[1], np.arange(height)[:, None] / last[0]
        depth = _planes(g, x) + _planes(h, y) + 1
        across = second - first + g[:, None] * second
        along = fourth - first + h[:, None] * fourth
        rows, columns = (
            (_planes(across[:, i], x) + _planes(along[:, i], y) + _planes(first[:, i], 1)) / depth
            for i in (0, 1)
        )
        return rows, columns


@dataclass(frozen=True)
class Elastic(Warp):
    """Move each pixel by a smooth random field (Simard, Steinkraus, Platt, 2003).

    Parameters
    ----------
    alpha : float
        The strength: displacements, in pixels, are `alpha` times smoothed uniform numbers from -1
        to 1.
    sigma : float
        Standard deviation, in pixels, of the Gaussian that smooths them.
    """

    alpha: float = 34.0
    sigma: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        numbers = is_number(self.alpha) and is_number(self.sigma)
        if not (numbers and 0 <= self.alpha < np.inf and 0 < self.sigma < np.inf):
            got = f"{self.alpha!r} and {self.sigma!r}"
            raise ArgumentError(explain("alpha, sigma", "at least 0, and above 0", got))

    def places(self, draws: Draws, height: int, width: int) -> tuple[Array, Array]:
        """The frame plus the field."""
        noise = draws.uniform(-1, 1, (2, height, width))
        smooth = gaussian(height, self.sigma) @ noise @ gaussian(width, self.sigma)
        rows, columns = np.moveaxis(smooth * self.alpha, 1, 0)
        return rows + np.arange(height)[:, None], columns + np.arange(width)


def affine(
    height: int,
    width: int,
    *,
    turn: Any = 0.0,
    factor: Any = 1.0,
    shear: Any = 0.0,
    move: tuple[Any, Any] = (0.0, 0.0),
) -> tuple[Array, Array]:
    """Rows and columns, (N, height, width), of an affine map about the centre.

    With x to the right and y downward from the centre, the result at p shows the image at
    M^-1 (p - move), where M = R(turn) S(shear) factor, R(t) = [[cos t, sin t], [-sin t, cos t]] and
    S(s) = [[1, tan s], [0, 1]]. Angles are in degrees; each argument is a number or (N,).
    """
    cos, sin = quarter_exact(np.asarray(turn, np.float64))
    lean = np.tan(np.deg2rad(shear))
    y = np.arange(height)[:, None] - (height - 1) / 2 - _planes(move[0], 1)
    x = np.arange(width) - (width - 1) / 2 - _planes(move[1], 1)
    rows = _planes(sin / factor, x) + _planes(cos / factor, y) + (height - 1) / 2
    columns = (
        _planes((cos - lean * sin) / factor, x)
        + _planes((-sin - lean * cos) / factor, y)
        + (width - 1) / 2
    )
    return rows, columns


def quarter_exact(degrees: Array) -> tuple[Array, Array]:
    """Cosine and sine, exact at multiples of a right angle."""
    quarters = np.rint(degrees / 90)
    rest = np.deg2rad(degrees - 90 * quarters)
    cos, sin = np.cos(rest), np.sin(rest)
    turned = [(cos, sin), (-sin, cos), (-cos, -sin), (sin, -cos)]
    which = quarters.astype(np.int64) % 4
    return np.choose(which, [c for c, _ in turned]), np.choose(which, [s for _, s in turned])


def gaussian(size: int, sigma: float) -> Array:
    """The matrix, (size, size), that smooths along an axis; zero is beyond its ends."""
    place = np.arange(size)
    distance = (place[:, None] - place) / sigma
    return np.exp(-(distance**2) / 2) / (sigma * math.sqrt(2 * math.pi))


def resize(images: Array, height: int, width: int) -> Array:
    """Images (N, C, H, W) enlarged to (N, C, height, width), bilinear, as PyTorch's interpolate."""
    tall, wide = images.shape[2:]
    rows = (np.arange(height) + 0.5) * (tall / height) - 0.5
    columns = (np.arange(width) + 0.5) * (wide / width) - 0.5
    return sample(images, rows[None, :, None], columns[None, None], "edge")


def sample(images: Array, rows: Array, columns: Array, fill: Fill = 0.0) -> Array:
    """Bilinear interpolation of images between pixels.

    Parameters
    ----------
    images : array of floats
        (N, C, H, W).
    rows, columns : array of float
        Broadcast to (N, h, w): places in pixels, from the centre of the first one.
    fill : float or "edge"
        What is around the image.

    Returns
    -------
    array
        (N, C, h, w), of the images' element type; at whole places the very pixels.
    """
    n, channels, height, width = images.shape
    # The frame around the image is as wide as the interpolation reaches beyond clamped places.
    frame = ((0, 0), (0, 0), (1, 2), (1, 2))
    edge = fill == "edge"
    padded = np.pad(images, frame, "edge") if edge else np.pad(images, frame, constant_values=fill)
    beyond = 0 if edge else 1
    top, down = _cells(rows, height, beyond, images.dtype)
    left, right = _cells(columns, width, beyond, images.dtype)
    tall, wide = padded.shape[2:]
    plane = np.arange(n * channels).reshape(n, channels, 1, 1) * (tall * wide)
    corner = plane + (top * wide + left)[:, None]
    down, right, pixels = down[:, None], right[:, None], padded.reshape(-1)
    upper = _between(pixels[corner], pixels[corner + 1], right)
    corner += wide
    lower = _between(pixels[corner], pixels[corner + 1], right)
    return _between(upper, lower, down)


def _cells(places: Array, size: int, beyond: int, dtype: np.dtype[Any]) -> tuple[Array, Array]:
    """The padded image's pixel before each place, and how far behind it the place is."""
    clamped = np.clip(places, -beyond, size - 1 + beyond)
    before = np.floor(clamped)
    return before.astype(np.int64) + 1, (clamped - before).astype(dtype)


def _between(first: Array, second: Array, share: Array) -> Array:
    """first + (second - first) * share, in place of what was gathered for it."""
    second -= first
    second *= share
    second += first
    return second


def _planes(numbers: Any, along: Any) -> Array:
    """Numbers (N,), or one, times a row or column of the frame: broadcasts to (N, h, w)."""
    return np.asarray(np.reshape(numbers, (-1, 1, 1)) * along)


def _cross(first: Array, second: Array) -> Array:
    return np.asarray(first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0])
