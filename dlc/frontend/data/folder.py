"""Images in folders: a class per subfolder, read when a batch needs them.

As torchvision's ImageFolder, so that a folder serves both.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from dlc.errors import ArgumentError, DependencyError, ShapeError, explain
from dlc.frontend.data.chance import Array, Chance
from dlc.frontend.data.dataset import NO_CHANCE, Dataset
from dlc.frontend.numeric import check_whole

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
CHANNELS = {"L": 1, "RGB": 3, "RGBA": 4}


class ImageFolder(Dataset):
    """Images in folders, a class per subfolder; they are read as batches need them.

    Their batches are images, float32 (N, C, H, W) from 0 to 1, and labels, int64.

    Parameters
    ----------
    folder : path
        Its subfolders are the classes, in order of their names; images lie in them at any depth.
        Hidden ones, whose names begin with a dot, are passed over.
    size : int or pair of int, optional
        Height and width that each image is resized to. Without it, all must have one size.
    mode : "RGB", "L" or "RGBA"
        3, 1 (grey) or 4 channels, whatever the files have.

    Attributes
    ----------
    classes : tuple of str
        Names of the subfolders: the label of a class is its place here.
    paths : tuple of Path
        The samples' files.

    Raises
    ------
    DependencyError
        Pillow, which reads the files, is not installed.
    ArgumentError
        There is no such folder, or a class without images; in a batch: a file is no image, or one
        whose values have no known range (32 bits, floats).
    ShapeError
        In a batch: images differ in size, and no `size` is given.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        size: int | tuple[int, int] | None = None,
        mode: str = "RGB",
    ):
        _pillow()
        if mode not in CHANNELS:
            raise ArgumentError(explain("mode", " or ".join(CHANNELS), repr(mode)))
        root = Path(folder)
        if not root.is_dir():
            raise ArgumentError(explain("images", "a folder", f"{str(root)!r}, which is none"))
        self.size = None if size is None else _sides(size)
        self.mode = mode
        names = (entry.name for entry in root.iterdir() if entry.is_dir())
        self.classes = tuple(sorted(name for name in names if not name.startswith(".")))
        found = [_files(root / name) for name in self.classes]
        if not found or not all(found):
            empty = [name for name, files in zip(self.classes, found) if not files]
            got = f"none in {', '.join(empty)}" if empty else "no subfolder"
            expected = (
                f"a subfolder a class in {str(root)!r}, each with files {', '.join(SUFFIXES)}"
            )
            raise ArgumentError(explain("images", expected, got))
        self.paths = tuple(path for files in found for path in files)
        self._labels = np.repeat(np.arange(len(found)), [len(files) for files in found])

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, indices: Array, chance: Chance = NO_CHANCE) -> tuple[Array, Array]:
        """The files, decoded."""
        images = [self._read(self.paths[number]) for number in indices.tolist()]
        for image, number in zip(images, indices, strict=True):
            if image.shape != images[0].shape:
                got = f"{_extent(images[0])} in {self.paths[indices[0]]}, "
                got += f"{_extent(image)} in {self.paths[number]}"
                advice = "Give a size: images(folder, size=(height, width)), or --size HxW."
                raise ShapeError(explain("a batch", "images of one size", got, advice=advice))
        pixels = np.stack(images).reshape(len(images), *images[0].shape[:2], CHANNELS[self.mode])
        planes = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32)
        return planes / np.float32(255), self._labels[indices]

    @property
    def targets(self) -> Array:
        """The labels, (N,) int64, without reading an image."""
        return self._labels

    def _read(self, path: Path) -> Array:
        """A file's pixels: uint8, (H, W) or (H, W, C)."""
        image_module = _pillow()
        try:
            with image_module.open(path) as image:
                image = _in_bytes(image, path).convert(self.mode)
                if self.size is not None:
                    height, width = self.size
                    image = image.resize((width, height), image_module.Resampling.BILINEAR)
                return np.asarray(image)
        except (OSError, SyntaxError) as error:  # Pillow says SyntaxError for a broken PNG
            raise ArgumentError(explain(str(path), "an image", f"none: {error}")) from error


#: The name to call it by, beside functions such as `dlc.data.mnist`.
images = ImageFolder


def _in_bytes(image: Any, path: Path) -> Any:
    """An image of 16 bits in 8, which Pillow would cut off at 255 instead."""
    if image.mode.startswith("I;16"):
        return _pillow().fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        got = f"one of {'floats' if image.mode == 'F' else '32 bits'}"
        advice = "Their range is not known: convert the file."
        raise ArgumentError(explain(str(path), "an image of 8 or 16 bits", got, advice=advice))
    return image


def _sides(size: Any) -> tuple[int, int]:
    """Height and width."""
    pair = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(pair) != 2:
        expected = "an integer, or (height, width)"
        raise ArgumentError(explain("size", expected, repr(size)))
    for pixels in pair:
        check_whole("size", pixels)
    return pair


def _files(folder: Path) -> list[Path]:
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    return sorted(p for p in found if not any(n[0] == "." for n in p.relative_to(folder).parts))


def _extent(image: Array) -> str:
    return f"{image.shape[0]} x {image.shape[1]}"


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        message = "dlc.data.images needs Pillow, which reads image files"
        raise DependencyError(f"{message}: pip install 'dlc[examples]'") from error
    return Image
