"""IDX files, the format of MNIST and Fashion-MNIST: a short header and the bytes of an array.

Files are checked whole before anything is made of them: downloads break off, and a wrong file
in the right place would train without complaint.
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np

from dlc.errors import ArgumentError, ShapeError, explain
from dlc.frontend.data.chance import Array
from dlc.frontend.data.dataset import ArrayDataset, Dataset
from dlc.frontend.data.transforms import ToFloat

#: Element types by the third byte of a file; numbers are big-endian.
TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}

DIGITS = tuple("0123456789")
CLOTHES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


def mnist(folder: str | os.PathLike[str]) -> tuple[Dataset, Dataset]:
    """The handwritten digits of MNIST: sets for training and test.

    Parameters
    ----------
    folder : path
        Where the four files are (``train-images-idx3-ubyte`` and so on), plain or with ``.gz``;
        torchvision's folder will do too.

    Returns
    -------
    train, test : Dataset
        Images, float32 (1, 28, 28) from 0 to 1, and labels, int64.

    Raises
    ------
    ArgumentError
        A file is missing, truncated or of another kind.
    ShapeError
        Images and labels differ in number.
    """
    return _pair("mnist", folder, "MNIST", DIGITS)


def fashion_mnist(folder: str | os.PathLike[str]) -> tuple[Dataset, Dataset]:
    """The articles of clothing of Fashion-MNIST, in files as MNIST's; see `mnist`."""
    return _pair("fashion_mnist", folder, "FashionMNIST", CLOTHES)


def read_idx(path: str | os.PathLike[str]) -> Array:
    """The array of an IDX file.

    Parameters
    ----------
    path : path
        Plain or compressed by gzip, whatever its name.

    Returns
    -------
    array
        Of the file's shape and element type, in the machine's byte order.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ArgumentError
        It is no IDX file, or has more or fewer bytes than its header says.
    """
    data = _content(path)
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in TYPES or not data[3]:
        expected = "two zero bytes, an element type and a number of axes at the start"
        raise _wrong(path, expected, f"the bytes {data[:4].hex(' ') or '(none)'}")
    start = 4 + 4 * data[3]
    if len(data) < start:
        raise _wrong(path, f"a header of {start} bytes", f"{len(data)}")
    shape = struct.unpack_from(f">{data[3]}I", data, 4)
    dtype = np.dtype(TYPES[data[2]])
    if len(data) - start != (size := math.prod(shape) * dtype.itemsize):
        expected = f"{size} bytes after its header, for {dtype.name} {shape}"
        raise _wrong(path, expected, f"{len(data) - start}")
    return np.frombuffer(data, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))


def _content(path: str | os.PathLike[str]) -> bytes:
    data = Path(path).read_bytes()
    if data[:2] != b"\x1f\x8b":
        return data
    try:
        return gzip.decompress(data)
    except (EOFError, OSError, zlib.error) as error:
        raise _wrong(path, "a whole gzip file", f"one that cannot be read: {error}") from error


def _wrong(path: str | os.PathLike[str], expected: str, got: str) -> ArgumentError:
    advice = "Copy or download it again."
    return ArgumentError(explain(os.fspath(path), expected, got, advice=advice))


def _pair(
    name: str, folder: str | os.PathLike[str], below: str, classes: tuple[str, ...]
) -> tuple[Dataset, Dataset]:
    folders = [Path(folder), Path(folder, "raw"), Path(folder, below, "raw")]
    return _part(name, folders, "train", classes), _part(name, folders, "t10k", classes)


def _part(name: str, folders: list[Path], part: str, classes: tuple[str, ...]) -> Dataset:
    images_path = _find(name, folders, f"{part}-images", "idx3-ubyte")
    labels_path = _find(name, folders, f"{part}-labels", "idx1-ubyte")
    images, labels = read_idx(images_path), read_idx(labels_path)
    for path, array, axes in ((images_path, images, 3), (labels_path, labels, 1)):
        if array.dtype != np.uint8 or array.ndim != axes:
            raise _wrong(path, f"uint8 with {axes} axes", f"{array.dtype} with {array.ndim}")
    if len(images) != len(labels):
        got = f"{len(images)} in {images_path} and {len(labels)} in {labels_path}"
        raise ShapeError(explain(name, "as many images as labels", got))
    if (wrong := np.flatnonzero(labels >= len(classes))).size:
        got = f"{labels[wrong[0]]} at {wrong[0]}"
        raise _wrong(labels_path, f"labels below {len(classes)}", got)
    dataset = ArrayDataset(images[:, None], labels.astype(np.int64), classes=classes)
    return dataset.transform(ToFloat())


def _find(name: str, folders: list[Path], stem: str, kind: str) -> Path:
    """The file of one of its usual names, in one of the folders."""
    names = [f"{stem}{dot}{kind}{end}" for dot in "-." for end in ("", ".gz")]
    for path in (folder / file for folder in folders for file in names):
        if path.is_file():
            return path
    got = "no such file" if folders[0].is_dir() else "no such folder"
    raise ArgumentError(explain(name, f"{names[0]} or {names[1]} in {str(folders[0])!r}", got))
