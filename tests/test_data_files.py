"""Data from outside: scikit-learn's digits, IDX files, folders of images, the page on data."""

import gzip
import re
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

import dlc
from dlc import data


def test_the_digits_are_the_real_ones():
    digits = data.digits()
    images, labels = digits[:]
    assert images.shape == (1797, 1, 8, 8)
    assert images.dtype == np.float32
    assert (images.min(), images.max()) == (0, 1)
    assert labels.dtype == np.int64
    assert labels[:10].tolist() == list(range(10))
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert digits.classes == tuple("0123456789")


def test_the_digits_can_be_told_apart():
    """The nearest of the classes' mean images is right for nine in ten test digits."""
    train, test = data.digits(28).split(0.8, stratify=True)
    images, labels = train[:]
    means = np.stack([images[labels == c].mean(0) for c in range(10)])
    found = [((means - image) ** 2).sum((1, 2, 3)).argmin() for image, _ in test]
    assert images.shape[1:] == (1, 28, 28)
    assert np.mean(found == test.targets) > 0.88


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(dlc.errors.DependencyError, match=r"pip install 'dlc\[examples\]'"):
        data.digits()


@pytest.mark.parametrize("size", [7, 28.0, True])
def test_a_wrong_size_of_digits(size):
    with pytest.raises(dlc.errors.ArgumentError, match="at least 8"):
        data.digits(size)


def idx(array):
    """The bytes of an IDX file, as its description has them."""
    kinds = {"u1": 8, "i1": 9, "i2": 11, "i4": 12, "f4": 13, "f8": 14}
    header = bytes([0, 0, kinds[array.dtype.str[1:]], array.ndim])
    big = array.astype(array.dtype.newbyteorder(">"))
    return header + struct.pack(f">{array.ndim}I", *array.shape) + big.tobytes()


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int32", "float32", "float64"])
@pytest.mark.parametrize("shape", [(4,), (2, 3), (2, 3, 4)])
def test_idx_files_of_every_type(tmp_path, dtype, shape):
    array = (np.arange(np.prod(shape)).reshape(shape) * 5).astype(dtype)
    path = tmp_path / "array"
    for content in (idx(array), gzip.compress(idx(array))):
        path.write_bytes(content)
        found = data.read_idx(path)
        assert found.dtype == dtype
        assert np.array_equal(found, array)


def write_mnist(folder, train=60, test=20, name="{part}-{what}-idx{axes}-ubyte", pack=bytes):
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for part, count in (("train", train), ("t10k", test)):
        pixels = rng.integers(0, 256, (count, 28, 28)).astype(np.uint8)
        labels = rng.integers(0, 10, count).astype(np.uint8)
        arrays[part] = pixels, labels
        for what, array in (("images", pixels), ("labels", labels)):
            path = folder / name.format(part=part, what=what, axes=array.ndim)
            path.write_bytes(pack(idx(array)))
    return arrays


@pytest.mark.parametrize(
    ("below", "options"),
    [
        ("", {}),
        ("", {"name": "{part}-{what}-idx{axes}-ubyte.gz", "pack": gzip.compress}),
        ("", {"name": "{part}-{what}.idx{axes}-ubyte"}),
        ("raw", {}),
        ("MNIST/raw", {}),
    ],
)
def test_mnist_from_files(tmp_path, below, options):
    written = write_mnist(tmp_path / below, **options)
    for dataset, (pixels, labels) in zip(data.mnist(tmp_path), written.values()):
        images, found = dataset[:]
        assert images.dtype == np.float32
        assert np.array_equal(images, pixels[:, None] / np.float32(255))
        assert found.dtype == np.int64
        assert np.array_equal(found, labels)
        assert np.array_equal(dataset.targets, labels)
        assert dataset.classes == tuple("0123456789")


def test_fashion_mnist_has_names(tmp_path):
    write_mnist(tmp_path / "FashionMNIST" / "raw")
    train, test = data.fashion_mnist(tmp_path)
    assert (len(train), len(test)) == (60, 20)
    assert train.classes[0] == "T-shirt/top"
    assert len(train.classes) == 10


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda b: b[:-1], "47040 bytes after its header, for uint8 \\(60, 28, 28\\), got 47039"),
        (lambda b: b + b"\0", "got 47041"),
        (lambda b: b[:10], "a header of 16 bytes, got 10"),
        (lambda b: b"", "none"),
        (lambda b: b"\x89PNG" + b[4:], "the bytes 89 50 4e 47"),
        (lambda b: b[:2] + b"\x0a" + b[3:], "an element type"),
        (lambda b: b[:3] + b"\0" + b[4:], "a number of axes"),
        (lambda b: b[:4] + b"\xff" * 12 + b[16:], r"4294967295, 4294967295\)"),
        (lambda b: gzip.compress(b)[:-40], "a whole gzip file"),
        (lambda b: gzip.compress(b)[:-8] + b"wrongsum", "a whole gzip file"),
        (lambda b: b"\x1f\x8b" + b, "a whole gzip file"),
        (lambda b: idx(np.zeros((60, 784), np.uint8)), "uint8 with 3 axes, got uint8 with 2"),
        (lambda b: idx(np.zeros((60, 28, 28), np.int16)), "uint8 with 3 axes, got int16"),
    ],
)
def test_damaged_files(tmp_path, damage, words):
    write_mnist(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(dlc.errors.ArgumentError, match=words) as caught:
        data.mnist(tmp_path)
    assert str(path) in str(caught.value)


def test_files_that_do_not_belong_together(tmp_path):
    write_mnist(tmp_path)
    labels = tmp_path / "train-labels-idx1-ubyte"
    whole = labels.read_bytes()
    labels.write_bytes(idx(np.zeros(59, np.uint8)))
    with pytest.raises(dlc.ShapeError, match=r"60 in .* and 59 in"):
        data.mnist(tmp_path)
    labels.write_bytes(whole[:20] + b"\x0a" + whole[21:])
    with pytest.raises(dlc.errors.ArgumentError, match="labels below 10, got 10 at 12"):
        data.mnist(tmp_path)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(dlc.errors.ArgumentError, match="no such folder"):
        data.mnist(tmp_path / "nowhere")
    write_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(dlc.errors.ArgumentError, match=r"t10k-labels-idx1-ubyte.* no such file"):
        data.mnist(tmp_path)


def write_images(folder, shape=(6, 8, 3)):
    from PIL import Image

    rng = np.random.default_rng(0)
    written = {}
    for label, name in enumerate(("ant", "bee", "cat")):
        (folder / name / "deep").mkdir(parents=True)
        for file in ("2.png", "1.bmp", "deep/3.PNG"):
            pixels = rng.integers(0, 256, shape).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / file)
            written[folder / name / file] = pixels, label
        (folder / name / "notes.txt").write_text("no image")
    return written


def test_images_in_folders(tmp_path):
    written = write_images(tmp_path)
    dataset = data.images(tmp_path)
    assert dataset.classes == ("ant", "bee", "cat")
    assert set(dataset.paths) == set(written)
    assert [path.name for path in dataset.paths[:3]] == ["1.bmp", "2.png", "3.PNG"]
    images, labels = dataset[:]
    for image, label, path in zip(images, labels, dataset.paths):
        pixels, expected = written[path]
        assert np.array_equal(image, pixels.transpose(2, 0, 1) / np.float32(255))
        assert label == expected
    assert np.array_equal(dataset.targets, labels)
    assert images.flags.c_contiguous
    train, test = dataset.split(6, stratify=True)
    assert np.bincount(train.targets).tolist() == [2, 2, 2]
    assert np.bincount(test.targets).tolist() == [1, 1, 1]
    for one, two in zip(dataset.batches(4), dataset.batches(4, workers=2), strict=True):
        assert all(map(np.array_equal, one, two))


def test_images_are_resized_and_converted(tmp_path):
    write_images(tmp_path)
    assert data.images(tmp_path, size=(5, 4), mode="L")[:][0].shape == (9, 1, 5, 4)
    assert data.images(tmp_path, size=5, mode="RGBA")[0][0].shape == (4, 5, 5)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_images_of_sixteen_bits_are_scaled(tmp_path, mode):
    from PIL import Image

    (tmp_path / "ramp").mkdir()
    ramp = np.linspace(0, 65535, 64).reshape(8, 8)
    Image.fromarray(ramp.astype("u2")).save(tmp_path / "ramp" / "16.png")
    (found,) = data.images(tmp_path, mode=mode)[:][0]
    np.testing.assert_allclose(found, np.broadcast_to(ramp / 65535, found.shape), atol=1 / 255)


@pytest.mark.parametrize(("dtype", "words"), [("f4", "floats"), ("i4", "32 bits")])
def test_images_without_a_known_range_are_refused(tmp_path, dtype, words):
    from PIL import Image

    (tmp_path / "ramp").mkdir()
    path = tmp_path / "ramp" / "wide.tiff"
    Image.fromarray(np.ones((8, 8), dtype)).save(path)
    match = f"{re.escape(str(path))} expects an image of 8 or 16 bits, got one of {words}"
    with pytest.raises(dlc.errors.ArgumentError, match=match):
        data.images(tmp_path)[:]


def test_images_of_several_sizes(tmp_path):
    from PIL import Image

    written = write_images(tmp_path)
    Image.new("RGB", (3, 3)).save(path := [*written][4])
    with pytest.raises(dlc.ShapeError, match=f"6 x 8 in .*, 3 x 3 in .*{path.name}.*Give a size"):
        data.images(tmp_path)[:]
    assert len(data.images(tmp_path, size=6)[:][0]) == 9


@pytest.mark.parametrize("name", ["1.bmp", "2.png"])
def test_a_broken_image_is_named(tmp_path, name):
    write_images(tmp_path, (60, 80, 3))
    path = tmp_path / "ant" / name
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(dlc.errors.ArgumentError, match=re.escape(str(path))):
        [*data.images(tmp_path).batches(2)]


def test_folders_without_images(tmp_path):
    with pytest.raises(dlc.errors.ArgumentError, match="a folder, got"):
        data.images(tmp_path / "nowhere")
    with pytest.raises(dlc.errors.ArgumentError, match="got no subfolder"):
        data.images(tmp_path)
    write_images(tmp_path)
    (tmp_path / "dog").mkdir()
    with pytest.raises(dlc.errors.ArgumentError, match="none in dog"):
        data.images(tmp_path)
    with pytest.raises(dlc.errors.ArgumentError, match="L or RGB or RGBA"):
        data.images(tmp_path, mode="grey")
    for size in (0, (1, 2, 3), (4,), "6x8"):
        with pytest.raises(dlc.errors.ArgumentError, match="size expects"):
            data.images(tmp_path, size=size)


def test_hidden_folders_are_passed_over(tmp_path):
    """Such as those that notebooks leave."""
    written = write_images(tmp_path)
    for folder in (tmp_path / ".ipynb_checkpoints", tmp_path / "ant" / ".old"):
        folder.mkdir()
        (folder / "copy.png").write_bytes(b"")
    dataset = data.images(tmp_path)
    assert dataset.classes == ("ant", "bee", "cat")
    assert set(dataset.paths) == set(written)


def test_images_without_pillow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(dlc.errors.DependencyError, match=r"pip install 'dlc\[examples\]'"):
        data.images(tmp_path)


def test_the_page_is_true(tmp_path, monkeypatch):
    page = Path(__file__).parent.parent / "docs" / "data.md"
    monkeypatch.chdir(tmp_path)
    write_mnist(tmp_path / "mnist")
    write_images(tmp_path / "photos")
    names = {}
    for code in re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
        exec(compile(code, str(page), "exec"), names)
