"""Transforms of images: what changes nothing, what is exact, and what PyTorch computes too."""

import math

import numpy as np
import pytest
import torch

import dlc
from dlc import data
from dlc.frontend.data.chance import Draws
from dlc.frontend.data.warp import gaussian, resize, sample

SQUARE = np.random.default_rng(0).normal(size=(5, 2, 9, 9)).astype(np.float32)
WIDE = np.random.default_rng(1).normal(size=(24, 3, 8, 11)).astype(np.float32)

IDENTITIES = [
    data.Flip(p=0),
    data.Shift(0),
    data.Pad(0),
    data.Crop((8, 11)),
    data.Contrast(0),
    data.Noise(0),
    data.Rotate(0),
    data.Scale(0),
    data.Affine(),
    data.Affine(30, (0.1, 0.1), 0.2, 10, p=0),
    data.Perspective(0),
    data.Elastic(0),
    data.Normalize(0, 1),
    data.ToFloat(),
    data.Compose([]),
]

CHANGES = [
    data.Flip(),
    data.Shift(2),
    data.Pad(1),
    data.Crop(8, padding=2),
    data.Contrast(0.3),
    data.Noise(0.1),
    data.Rotate(20),
    data.Scale(0.2),
    data.Affine(10, (0.1, 0.2), 0.1, 5, fill="edge"),
    data.Perspective(0.3, p=0.5),
    data.Elastic(10, 2, fill=1.0),
    data.Normalize((0.1, 0.2, 0.3), (1, 2, 3)),
    data.Compose([data.Rotate(5), np.abs]),
]


@pytest.mark.parametrize("transform", IDENTITIES, ids=repr)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_parameters_that_change_nothing_change_nothing(transform, dtype):
    images = WIDE.astype(dtype)
    result = transform(images)
    assert result.dtype == dtype
    assert np.array_equal(result, images)


@pytest.mark.parametrize("transform", CHANGES, ids=repr)
def test_a_change_is_seeded_and_leaves_its_input_alone(transform):
    images = WIDE.copy()
    first = transform(images, seed=5, epoch=2)
    assert np.array_equal(images, WIDE)
    assert first.dtype == np.float32
    assert len(first) == len(images)
    assert not np.array_equal(first, images)
    assert np.array_equal(first, transform(images, seed=5, epoch=2))
    if not isinstance(transform, (data.Pad, data.Normalize)):
        assert not np.array_equal(first, transform(images, seed=6, epoch=2))
        assert not np.array_equal(first, transform(images, seed=5, epoch=3))


@pytest.mark.parametrize("direction", ["horizontal", "vertical"])
def test_a_flip_twice_is_the_identity(direction):
    flip = data.Flip(direction, p=1)
    assert np.array_equal(
        flip(WIDE), WIDE[..., ::-1] if direction == "horizontal" else WIDE[:, :, ::-1]
    )
    assert np.array_equal(flip(flip(WIDE)), WIDE)


@pytest.mark.parametrize("quarters", [-1, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("make", [data.Rotate, data.Affine])
def test_a_rotation_by_right_angles_is_exact(quarters, make):
    turned = make((90 * quarters, 90 * quarters))(SQUARE)
    assert np.array_equal(turned, np.rot90(SQUARE, quarters, axes=(2, 3)))


def test_chance_picks_about_its_share():
    images = np.arange(2000, dtype=np.float32).reshape(1000, 1, 1, 2)
    changed = np.any(data.Flip(p=0.3)(images) != images, axis=(1, 2, 3))
    assert 0.25 < changed.mean() < 0.35


def test_a_shift_moves_whole_pixels():
    images = np.zeros((200, 1, 7, 9), np.float32)
    images[:, :, 3, 4] = 1
    shifted = data.Shift(2, fill=-1)(images)
    _, _, rows, columns = np.nonzero(shifted == 1)
    assert set(rows - 3) == set(columns - 4) == {-2, -1, 0, 1, 2}
    for image, row, column in zip(shifted[:, 0], rows, columns):
        moved = np.roll(images[0, 0], (row - 3, column - 4), (0, 1))
        assert np.array_equal(image[image >= 0], moved[image >= 0])
        assert (image < 0).sum() == 63 - (7 - abs(row - 3)) * (9 - abs(column - 4))


def test_crop_and_pad():
    padded = data.Pad(2, fill=3)(WIDE)
    assert padded.shape == (24, 3, 12, 15)
    assert np.array_equal(padded[:, :, 2:-2, 2:-2], WIDE)
    assert (padded[:, :, :2] == 3).all()
    cropped = data.Crop((5, 4))(WIDE)
    assert cropped.shape == (24, 3, 5, 4)
    for image, whole in zip(cropped, WIDE):
        places = np.lib.stride_tricks.sliding_window_view(whole, (5, 4), (1, 2))
        assert (places == image[:, None, None]).all((0, 3, 4)).sum() == 1


def test_contrast_keeps_the_mean():
    changed = data.Contrast((0.5, 0.5))(WIDE)
    mean = WIDE.mean((1, 2, 3), keepdims=True)
    np.testing.assert_allclose(changed - mean, 0.5 * (WIDE - mean), rtol=1e-5, atol=1e-6)


def test_noise_has_its_deviation():
    noise = data.Noise(0.25)(np.zeros((50, 1, 28, 28), np.float32))
    assert abs(noise.std() - 0.25) < 0.005
    assert abs(noise.mean()) < 0.005


@pytest.mark.parametrize("angle", [-30.0, 12.5, 100.0])
def test_an_affine_map_agrees_with_pytorch(angle):
    """PyTorch's grid_sample from the same map, in its normalised coordinates."""
    ours = data.Affine((angle, angle), scale=(1.3, 1.3))(SQUARE)
    cos, sin = math.cos(math.radians(angle)) / 1.3, math.sin(math.radians(angle)) / 1.3
    theta = torch.tensor([[[cos, -sin, 0], [sin, cos, 0]]], dtype=torch.float64).expand(5, 2, 3)
    images = torch.from_numpy(SQUARE.astype(np.float64))
    grid = torch.nn.functional.affine_grid(theta, images.shape, align_corners=False)
    theirs = torch.nn.functional.grid_sample(images, grid, align_corners=False)
    np.testing.assert_allclose(ours, theirs.numpy(), atol=2e-6)


def test_a_whole_affine_map():
    """A straight line of three points goes where the documented matrix sends it."""
    degrees, factor, shear = 25.0, 1.2, 15.0
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    lean = math.tan(math.radians(shear))
    forward = np.array([[cos, sin], [-sin, cos]]) @ [[1, lean], [0, 1]] * factor
    rows, columns = np.mgrid[:41, :41] - 20.0
    blob = np.exp(-((columns - 6) ** 2 + (rows + 4) ** 2) / 8)[None, None]
    moved = data.Affine((degrees, degrees), scale=(factor, factor), shear=(shear, shear))(blob)
    weights = moved[0, 0] / moved.sum()
    centre = [(weights * columns).sum(), (weights * rows).sum()]
    np.testing.assert_allclose(centre, forward @ [6, -4], atol=0.05)


def test_translation_is_in_parts_of_the_image():
    images = np.zeros((300, 1, 20, 10), np.float64)
    images[:, :, 10, 5] = 1
    moved = data.Affine(translate=(0.1, 0.2))(images)[:, 0]
    down = (moved.sum(2) * np.arange(20)).sum(1) - 10
    right = (moved.sum(1) * np.arange(10)).sum(1) - 5
    assert 1.9 < np.abs(down).max() <= 2 + 1e-9
    assert 1.9 < np.abs(right).max() <= 2 + 1e-9


def test_scaling_up_and_down():
    image = np.zeros((1, 1, 21, 21))
    image[:, :, 5:16, 5:16] = 1
    larger, smaller = (data.Scale((f, f))(image).sum() for f in (1.5, 0.5))
    assert abs(larger / image.sum() - 2.25) < 0.1
    assert abs(smaller / image.sum() - 0.25) < 0.05


def test_perspective_keeps_straight_lines_straight():
    """Sampling the coordinates themselves shows the map: it is projective, corner to corner."""
    height, width = 12, 20
    rows, columns = data.Perspective(0.3).places(Draws(0, 0, np.arange(50), 2), height, width)
    for grid, extent in ((rows, height), (columns, width)):
        corners = grid[:, [0, 0, -1, -1], [0, -1, 0, -1]]
        still = np.array([0, 0, 1, 1] if extent == height else [0, 1, 0, 1]) * (extent - 1)
        moved = np.abs(corners - still)
        assert moved.max() <= 0.15 * extent + 1e-9
        assert moved.max() > 0.12 * extent
    along = np.stack([rows, columns], -1)
    first, second = np.diff(along, axis=2)[:, :, :-1], np.diff(along, axis=2)[:, :, 1:]
    cross = first[..., 0] * second[..., 1] - first[..., 1] * second[..., 0]
    assert np.abs(cross).max() < 1e-9


def test_an_elastic_field_is_smooth_and_as_strong_as_it_says():
    rows, columns = data.Elastic(20, 3).places(Draws(0, 0, np.arange(40), 2), 32, 32)
    field = rows - np.arange(32)[:, None]
    inner = field[:, 10:-10, 10:-10]
    # The variance of uniform numbers is 1/3; smoothing multiplies it by 1 / (4 pi sigma^2).
    assert abs(inner.std() / (20 * math.sqrt(1 / 3 / (4 * math.pi * 9))) - 1) < 0.15
    assert np.abs(np.diff(field, axis=1)).max() < 2
    assert abs((rows - np.arange(32)[:, None]).mean() - (columns - np.arange(32)).mean()) < 0.5
    assert np.allclose(gaussian(41, 3.0)[20].sum(), 1)


def test_fill_is_seen_beyond_the_frame():
    far = np.full((1, 1, 1), 100.0)
    image = np.arange(6.0).reshape(1, 1, 2, 3) + 1
    assert sample(image, far, far, fill=7)[0, 0, 0, 0] == 7
    assert sample(image, far, far, fill="edge")[0, 0, 0, 0] == 6
    assert sample(image, -far, -far, fill="edge")[0, 0, 0, 0] == 1
    half = sample(image, np.full((1, 1, 1), -0.5), np.zeros((1, 1, 1)), fill=7)
    assert half[0, 0, 0, 0] == 4


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (13, 20)])
def test_resizing_agrees_with_pytorch(size):
    images = np.random.default_rng(0).random((3, 2, 8, 8)).astype(np.float32)
    theirs = torch.nn.functional.interpolate(torch.from_numpy(images), size, mode="bilinear")
    np.testing.assert_allclose(resize(images, *size), theirs.numpy(), atol=1e-6)


def test_normalisation():
    images = 3 + 2 * WIDE
    fitted = data.Normalize.fit(images)
    np.testing.assert_allclose(fitted.mean, images.mean((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(fitted.std, images.std((0, 2, 3)), rtol=1e-5)
    result = fitted(images)
    np.testing.assert_allclose(result.mean((0, 2, 3)), 0, atol=1e-6)
    np.testing.assert_allclose(result.std((0, 2, 3)), 1, atol=1e-6)
    np.testing.assert_allclose(fitted.undo(result), images, rtol=1e-5, atol=1e-5)


def test_normalisation_is_fitted_in_pieces():
    features = np.random.default_rng(0).normal(1e4, 1, (3000, 5))
    features[:, 2] = 7  # constant: its deviation is set to 1
    fitted = data.Normalize.fit((features, np.zeros(3000)))
    np.testing.assert_allclose(fitted.mean, features.mean(0), rtol=1e-12)
    np.testing.assert_allclose(fitted.std, np.where(features.std(0) > 0, features.std(0), 1))


def test_transforms_change_inputs_alone_and_in_order():
    images, labels = SQUARE, np.arange(5) % 3
    dataset = data.ArrayDataset(images, labels, classes=("a", "b", "c"))
    changed = dataset.transform(lambda x: x + 1, lambda x: x * 2).transform(data.Pad(1))
    assert np.array_equal(changed[:][0], data.Pad(1)((images + 1) * 2))
    assert np.array_equal(changed[:][1], labels)
    assert changed.classes == dataset.classes
    assert np.array_equal(changed.targets, labels)
    first, _ = changed.split(0.5)
    assert first[0][0].shape == (2, 11, 11)


def test_stacked_data_sets_draw_numbers_of_their_own():
    zeros = data.ArrayDataset(np.zeros((4, 1, 3, 3), np.float32))
    once, twice = zeros.transform(data.Noise(1)), zeros.transform(data.Noise(1))
    assert np.array_equal(once[:][0], twice[:][0])
    twice = twice.transform(lambda x: -x, data.Noise(1))
    assert not np.array_equal(once[:][0], -twice[:][0])
    assert np.abs(twice[:][0]).min() > 0  # equal numbers would cancel


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: data.Flip("sideways"), '"horizontal" or "vertical"'),
        (lambda: data.Flip(p=1.5), "a probability"),
        (lambda: data.Shift(1.5), "pixels expects an integer"),
        (lambda: data.Shift(-1), "pixels expects an integer"),
        (lambda: data.Crop(0), "size expects an integer of at least 1"),
        (lambda: data.Rotate((20, 10)), "a pair of numbers in order"),
        (lambda: data.Rotate(float("nan")), "degrees"),
        (lambda: data.Scale(1.0), "above 0"),
        (lambda: data.Scale((0, 1)), "above 0"),
        (lambda: data.Contrast(1.5), "at least 0"),
        (lambda: data.Affine(shear=90), "above -90 and below 90"),
        (lambda: data.Perspective(0.5), "below 0.5"),
        (lambda: data.Elastic(-1), "alpha, sigma"),
        (lambda: data.Elastic(1, 0), "alpha, sigma"),
        (lambda: data.Noise(-1), "at least 0"),
        (lambda: data.Rotate(5, fill="black"), '"edge"'),
        (lambda: data.Normalize(0, 0), "numbers above 0"),
        (lambda: data.Normalize(np.inf, 1), "finite numbers"),
        (lambda: data.Normalize("a", 1), "Normalize's mean expects finite numbers, got 'a'"),
        (lambda: data.Rotate("a"), "degrees expects a range about 0, or a pair .* got 'a'"),
        (lambda: data.Rotate((1, 2, 3)), r"a pair of numbers in order, got \(1, 2, 3\)"),
        (lambda: data.Scale(None), "factor expects a range about 1, .* got None"),
        (lambda: data.Contrast(("a", "b")), r"got \('a', 'b'\)"),
        (lambda: data.Affine(translate=0.1), "translate expects a pair .* got 0.1"),
        (lambda: data.Perspective("a"), "got 'a'"),
        (lambda: data.Elastic("a"), "alpha, sigma .* got 'a' and"),
        (lambda: data.Noise("a"), "got 'a'"),
        (lambda: data.Flip(p="a"), "a probability, got 'a'"),
        (
            lambda: data.Compose(data.Flip(), data.Shift(1)),
            r"Compose expects a list of transforms .* Write Compose\(\[Flip\(.*, Shift\(.*\]\)\.",
        ),
        (lambda: data.Compose(data.Flip()), r"a list of transforms .* Write Compose\(\[Flip\("),
        (lambda: data.Compose([3]), "a list of transforms or callables, got 3"),
        (lambda: data.Crop(12)(WIDE), "images of at least 12 x 12"),
        (lambda: data.Flip()(WIDE[0]), r"images \(N, C, H, W\)"),
        (lambda: data.Rotate(5)(WIDE.astype(np.uint8)), r"Put ToFloat\(\) before it"),
        (lambda: data.ToFloat()(WIDE.astype(np.int32)), "unsigned integers or floats"),
        (lambda: data.Normalize((1, 2), 1)(WIDE), "2 channels along axis 1"),
        (lambda: data.Compose([lambda x: x[1:]])(WIDE), "as many samples as it gets"),
        (lambda: data.as_dataset(WIDE).transform("flip"), "transforms or callables"),
    ],
)
def test_wrong_transforms(make, words):
    with pytest.raises(dlc.Error, match=words):
        make()
