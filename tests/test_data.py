"""Data: random orders, data sets, splits, and batches prepared in the background."""

import doctest
import json
import math
import multiprocessing
import threading
import time
import traceback

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dlc
from dlc import data
from dlc.frontend.data import splits
from dlc.frontend.data.ahead import NAME
from dlc.frontend.data.chance import Draws, permutation
from dlc.frontend.data.splits import part_sizes
from dlc.ops.random import philox

# Random numbers and orders.


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0, 0, 0, 0], [0, 0], "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([2**32 - 1] * 4, [2**32 - 1] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_published_numbers(counter, key, expected):
    """The known answers that come with Random123, the authors' library."""
    words = philox(key[0] | key[1] << 32, tuple(np.uint64([word]) for word in counter))
    assert " ".join(f"{word[0]:08x}" for word in words) == expected


def test_an_order_is_the_same_on_every_machine():
    assert permutation(10, seed=0).tolist() == [4, 5, 0, 7, 3, 1, 6, 8, 9, 2]
    assert permutation(10, seed=2**63, epoch=7).tolist() == [0, 4, 9, 7, 6, 5, 3, 2, 8, 1]


@given(count=st.integers(1, 300), seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 2**32 - 1))
def test_an_order_has_each_sample_once(count, seed, epoch):
    order = permutation(count, seed, epoch)
    assert np.array_equal(np.sort(order), np.arange(count))
    assert np.array_equal(order, permutation(count, seed, epoch))


def test_orders_are_fair():
    """Each sample comes to each place about equally often: chi-squared, 81 degrees of freedom."""
    counts = np.zeros((10, 10))
    for seed in range(5000):
        counts[np.arange(10), permutation(10, seed)] += 1
    assert ((counts - 500) ** 2 / 500).sum() < 81 + 5 * math.sqrt(2 * 81)


def test_draws_have_their_distributions():
    draws = Draws(3, 0, np.arange(40), 2)
    normal, uniform = draws.normal((1001,)), draws.uniform(-1, 3, (1000,))
    assert normal.shape == (40, 1001)
    assert normal.dtype == np.float32
    assert abs(normal.mean()) < 0.02
    assert abs(normal.std() - 1) < 0.02
    assert abs((normal**4).mean() - 3) < 0.2
    assert -1 < uniform.min() < -0.99
    assert 2.99 < uniform.max() < 3
    whole = np.concatenate([draws.integers(-2, 1) for _ in range(50)])
    assert np.array_equal(np.unique(whole), [-2, -1, 0, 1])


def test_a_sample_draws_the_same_whoever_is_beside_it():
    together, alone = Draws(1, 2, np.arange(8), 2), Draws(1, 2, np.array([5]), 2)
    for _ in range(3):
        assert np.array_equal(together.uniform(size=(3,))[5], alone.uniform(size=(3,))[0])
    others = [Draws(*where).uniform()[0] for where in [(0, 2, [5], 2), (1, 3, [5], 2)]]
    assert len({*others, Draws(1, 2, [5], 3).uniform()[0], Draws(1, 2, [6], 2).uniform()[0]}) == 4


# Data sets.


def images_and_labels(count=10, size=6, channels=2):
    rng = np.random.default_rng(count)
    images = rng.normal(size=(count, channels, size, size)).astype(np.float32)
    return images, np.arange(count) % 3


def test_arrays_as_a_data_set():
    images, labels = images_and_labels()
    dataset = data.ArrayDataset(images, labels, classes=("a", "b", "c"))
    assert len(dataset) == 10
    image, label = dataset[3]
    assert np.array_equal(image, images[3])
    assert label == labels[3]
    assert all(np.array_equal(a, b[2:5]) for a, b in zip(dataset[2:5], (images, labels)))
    assert np.array_equal(dataset[[-1, 0]][0], images[[-1, 0]])
    assert np.array_equal(dataset[labels == 1][1], [1, 1, 1])
    assert dataset.targets is labels
    assert repr(dataset) == "ArrayDataset(10 samples of float32 (2, 6, 6), int64 (); 3 classes)"
    assert len([*dataset]) == 10  # the protocol of sequences ends with IndexError


def test_a_batch_is_a_copy():
    images, labels = images_and_labels()
    batch, _ = data.ArrayDataset(images, labels)[:]
    batch[:] = 0
    assert images.any()


def test_a_memory_map_stays_on_the_disk(tmp_path):
    images, _ = images_and_labels()
    np.save(tmp_path / "images.npy", images)
    dataset = data.ArrayDataset(np.load(tmp_path / "images.npy", mmap_mode="r"))
    assert isinstance(dataset.arrays[0], np.memmap)
    assert type(dataset[:][0]) is np.ndarray


def test_a_subset_of_a_subset():
    dataset = data.ArrayDataset(np.arange(20), classes=("a",))
    part = dataset.subset(slice(10, 20)).subset([1, 3, 5])
    assert part[:][0].tolist() == part.targets.tolist() == [11, 13, 15]
    assert part.classes == ("a",)


@pytest.mark.parametrize(
    ("arrays", "error", "words"),
    [
        ((), dlc.errors.ArgumentError, "one array or more"),
        ((np.zeros((3, 2)), np.zeros(4)), dlc.ShapeError, r"\(3, 2\), \(4,\)"),
        ((np.zeros((0, 2)),), dlc.ShapeError, "one sample or more"),
        ((np.float32(3),), dlc.ShapeError, "one sample or more"),
        ((np.array(["a", "b"]),), dlc.DTypeError, "<U1"),
    ],
)
def test_arrays_that_are_no_data_set(arrays, error, words):
    with pytest.raises(error, match=words):
        data.ArrayDataset(*arrays)


@pytest.mark.parametrize(
    ("index", "error"),
    [
        (10, dlc.IndexError),
        (-11, dlc.IndexError),
        ([3, 10], dlc.IndexError),
        (np.ones(9, bool), dlc.IndexError),
        (1.5, dlc.DTypeError),
        (True, dlc.DTypeError),
        ([[1]], dlc.DTypeError),
    ],
)
def test_a_wrong_index(index, error):
    with pytest.raises(error):
        data.ArrayDataset(np.arange(10))[index]


def test_a_subset_of_nothing():
    with pytest.raises(dlc.ShapeError, match="one sample or more"):
        data.ArrayDataset(np.arange(10)).subset([])


class Squares:
    """A map-style data set, as one writes it for PyTorch."""

    def __len__(self):
        return 7

    def __getitem__(self, index):
        return np.full((2,), index, np.float32), index * index


def test_what_stands_for_a_data_set():
    images, labels = images_and_labels()
    for given_data in (images, (images, labels), (torch.from_numpy(images), torch.arange(10))):
        assert np.array_equal(data.as_dataset(given_data)[4][0], images[4])
    inputs, squares = data.as_dataset(Squares())[[2, 6]]
    assert inputs.tolist() == [[2, 2], [6, 6]]
    assert squares.tolist() == [4, 36]
    ours = data.ArrayDataset(images)
    assert data.as_dataset(ours) is ours
    theirs = torch.utils.data.TensorDataset(torch.arange(5), torch.ones(5))
    assert data.as_dataset(theirs)[[1, 3]][0].tolist() == [1, 3]
    for wrong in (3, "digits", None):
        with pytest.raises(dlc.DTypeError, match="tuple of arrays"):
            data.as_dataset(wrong)


def test_pytorchs_loader_reads_a_data_set():
    images, labels = images_and_labels()
    loader = torch.utils.data.DataLoader(data.ArrayDataset(images, labels), batch_size=4)
    batch, _ = next(iter(loader))
    assert np.array_equal(batch.numpy(), images[:4])


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        ([np.zeros(2), np.zeros(3)], r"\(2,\) in sample 0 and \(3,\) in sample 1"),
        ([(1, 2), (1, 2, 3)], "2 and 3"),
        ([], "one sample or more"),
    ],
)
def test_samples_that_make_no_batch(samples, words):
    with pytest.raises(dlc.ShapeError, match=words):
        data.as_dataset(samples)[:]


# Splits.


@given(
    count=st.integers(20, 400),
    classes=st.integers(1, 7),
    parts=st.sampled_from([(0.8,), (0.5, 0.5), (0.6, 0.2), (0.7, 0.1, 0.1), (3,), (5, 10)]),
    stratify=st.booleans(),
    seed=st.integers(0, 2**64 - 1),
)
def test_parts_are_disjoint_and_complete(count, classes, parts, stratify, seed):
    labels = np.random.default_rng(seed).integers(0, classes, count)
    pieces = data.split((np.arange(count), labels), *parts, stratify=stratify, seed=seed)
    numbers = [piece[:][0] for piece in pieces]
    assert np.array_equal(np.sort(np.concatenate(numbers)), np.arange(count))
    assert all(np.all(np.diff(part) > 0) for part in numbers)
    assert [len(piece) for piece in pieces] == part_sizes(count, parts)
    again = data.split((np.arange(count), labels), *parts, stratify=stratify, seed=seed)
    assert all(np.array_equal(a, b[:][0]) for a, b in zip(numbers, again))
    if stratify:
        whole = np.bincount(labels, minlength=classes)
        for piece in pieces:
            share = whole * len(piece) / count
            found = np.bincount(piece.targets, minlength=classes)
            assert np.all(np.abs(found - share) < max(1, len(pieces) - 1))


def test_sizes_of_parts():
    assert part_sizes(1797, (0.8,)) == [1438, 359]
    assert part_sizes(10, (0.5, 0.2)) == [5, 2, 3]
    assert part_sizes(10, (0.1,) * 10) == [1] * 10
    assert part_sizes(10, (4,)) == [4, 6]
    assert part_sizes(10, (4, 6)) == [4, 6]
    assert part_sizes(10, (np.float64(0.3), np.float64(0.7))) == [3, 7]


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ((), "nothing"),
        ((0.8, 0.3), "at most 1 together"),
        ((8, 3), "at most 10 together"),
        ((0.8, 2), "fractions between 0 and 1, or counts"),
        ((1.0,), "fractions between 0 and 1"),
        ((0,), "counts above 0"),
        ((True,), "counts above 0"),
        ((0.01,), "leaves a part empty"),
    ],
)
def test_wrong_parts(parts, words):
    with pytest.raises(dlc.Error, match=words):
        data.split(np.arange(10), *parts)


def test_the_documented_example():
    assert doctest.testmod(splits) == (0, 3)


def test_another_seed_gives_other_parts():
    first, second = (data.split(np.arange(100), 0.5, seed=seed)[0][:][0] for seed in (0, 1))
    assert not np.array_equal(first, second)


def test_stratify_needs_labels():
    with pytest.raises(dlc.ShapeError, match="integer labels"):
        data.split(np.zeros((10, 3)), 0.5, stratify=True)


# Batches.


def test_batches_in_order():
    loader = data.batches(np.arange(10), 4)
    assert len(loader) == 3
    assert [batch.tolist() for (batch,) in loader] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [len(batch) for (batch,) in data.batches(np.arange(10), 4, drop_last=True)] == [4, 4]
    assert loader.epoch == 1


def test_each_epoch_has_an_order_of_its_own():
    loader = data.ArrayDataset(np.arange(50)).batches(8, shuffle=True, seed=3)
    epochs = [np.concatenate([batch for (batch,) in loader]) for _ in range(3)]
    assert all(np.array_equal(np.sort(epoch), np.arange(50)) for epoch in epochs)
    assert not np.array_equal(epochs[0], epochs[1])
    loader.epoch = 1
    assert np.array_equal(np.concatenate([batch for (batch,) in loader]), epochs[1])


def augmented(count):
    images, labels = images_and_labels(count)
    changes = [data.Flip(), data.Shift(1), data.Rotate(20), data.Elastic(5, 2), data.Noise(0.1)]
    return data.ArrayDataset(images, labels).transform(*changes)


@pytest.mark.parametrize("options", [{"workers": 0}, {"workers": 3, "prefetch": 5}])
def test_batches_do_not_depend_on_threads(options):
    dataset = augmented(37)
    one = [*dataset.batches(8, shuffle=True, seed=1)]
    other = [*dataset.batches(8, shuffle=True, seed=1, **options)]
    assert equal_batches(one, other)


def test_augmentation_does_not_depend_on_the_batch_size():
    dataset = augmented(20)
    whole, one_by_one = ([x for x, _ in dataset.batches(size)] for size in (20, 1))
    assert np.array_equal(whole[0], np.concatenate(one_by_one))


def equal_batches(first, second):
    return len(first) == len(second) and all(
        np.array_equal(a, b) for one, two in zip(first, second) for a, b in zip(one, two)
    )


@given(
    count=st.integers(1, 40),
    size=st.integers(1, 12),
    drop_last=st.booleans(),
    stop=st.integers(0, 80),
    seed=st.integers(0, 2**64 - 1),
)
def test_training_resumes_with_the_very_batches_that_were_to_come(
    count, size, drop_last, stop, seed
):
    dataset = data.ArrayDataset(np.arange(count, dtype=np.float32).reshape(-1, 1, 1, 1))
    dataset = dataset.transform(data.Noise(1.0))
    options = {"shuffle": True, "seed": seed, "drop_last": drop_last and count >= size}

    def run(loader, seen, steps=math.inf):
        while loader.epoch < 3:
            for (batch,) in loader:
                seen.append((batch,))
                if len(seen) == steps:
                    return json.loads(json.dumps(loader.state_dict()))
        return loader.state_dict()

    whole, parts = [], []
    run(data.batches(dataset, size, **options), whole)
    state = run(data.batches(dataset, size, **options), parts, stop)
    resumed = data.batches(dataset, size, **options)
    resumed.load_state_dict(state)
    run(resumed, parts)
    assert equal_batches(whole, parts)


def test_looking_at_one_batch_changes_nothing():
    loader = data.batches(np.arange(10), 4, shuffle=True)
    (peeked,) = next(iter(loader))
    first, *_ = loader
    assert np.array_equal(peeked, first[0])
    assert loader.epoch == 1


def test_the_position_is_that_of_the_iteration_begun_last():
    loader = data.batches(np.arange(10), 2)
    outer = iter(loader)
    next(outer)
    assert len([*loader]) == 5
    next(outer)
    assert (loader.epoch, loader.batch) == (1, 0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 1}, "seed=0, got seed=1"),
        ({"batch_size": 4, "samples": 9}, "samples=10, batch_size=2, got samples=9, batch_size=4"),
        ({"batch": 6}, "at most 5"),
        ({"epoch": -1}, "at least 0"),
        ({"epoch": "1"}, "at least 0"),
    ],
)
def test_a_state_of_other_batches(change, words):
    loader = data.batches(np.arange(10), 2)
    with pytest.raises(dlc.errors.ArgumentError, match=words):
        loader.load_state_dict({**loader.state_dict(), **change})
    assert loader.state_dict()["batch"] == 0
    with pytest.raises(dlc.errors.ArgumentError, match="no batch, "):
        loader.load_state_dict({"epoch": 1})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "batch_size expects an integer of at least 1"),
        ({"batch_size": 2.0}, "batch_size"),
        ({"batch_size": 11, "drop_last": True}, "no batch is left"),
        ({"workers": -1}, "workers"),
        ({"prefetch": 0}, "prefetch"),
        ({"seed": -1}, "seed"),
        ({"seed": True}, "seed"),
    ],
)
def test_wrong_options_of_batches(options, words):
    with pytest.raises(dlc.Error, match=words):
        data.batches(np.arange(10), **options)


class Slow(data.Dataset):
    """Counts the batches asked for, takes a while for each, and fails at one sample."""

    def __init__(self, fails_at=None):
        self.asked, self.fails_at = 0, fails_at

    def __len__(self):
        return 1000

    def take(self, indices, chance=None):
        self.asked += 1
        time.sleep(0.005)
        if self.fails_at in indices:
            raise KeyError("no such sample")
        return (indices,)


def background_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith(NAME)]


def test_batches_are_prepared_while_another_is_used():
    source = Slow()
    loader = iter(source.batches(prefetch=3))
    next(loader)
    assert until(lambda: source.asked == 4)  # the one in use and three ahead
    time.sleep(0.05)
    assert source.asked == 4
    assert len(background_threads()) == 1
    loader.close()


def test_leaving_early_ends_the_thread():
    source = Slow()
    for (batch,) in source.batches():
        if batch[0] == 2:
            break
    assert not background_threads()
    assert source.asked <= 6


def test_a_loop_that_fails_ends_the_thread():
    def loop():
        for _ in Slow().batches(workers=2):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        loop()
    assert until(lambda: not background_threads())


def until(condition):
    """Whether a condition holds within some seconds."""
    return any(condition() or time.sleep(0.01) for _ in range(1000))


def test_a_whole_epoch_ends_the_thread():
    assert len([*data.batches(np.arange(100))]) == 100
    assert not background_threads()


def test_an_iteration_that_never_starts_has_no_thread():
    iteration = iter(data.batches(np.arange(100)))
    assert not background_threads()
    iteration.close()


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_an_exception_comes_with_its_traceback(workers):
    loader = Slow(fails_at=4).batches(2, workers=workers)
    seen = []
    with pytest.raises(KeyError) as caught:
        seen.extend(batch.tolist() for (batch,) in loader)
    assert seen == [[0, 1], [2, 3]]
    assert (loader.epoch, loader.batch) == (0, 2)
    text = "".join(traceback.format_exception(caught.value))
    assert "in take" in text
    assert "while batch 2 of epoch 0 was prepared" in text
    del caught
    assert until(lambda: not background_threads())


def in_child(work, *arguments):
    """Run a function in a forked child and return what it puts into the queue."""
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    child = context.Process(target=lambda: results.put(work(*arguments)))
    child.start()
    child.join(30)
    assert child.exitcode == 0
    return results.get()


def test_a_fork_in_the_middle_of_an_epoch():
    loader = augmented(40).batches(4, shuffle=True)
    expected = [image.tobytes() for image, _ in loader]
    loader.epoch = 0
    iteration = iter(loader)
    next(iteration)
    # The child goes on where the parent was, and has epochs of its own.
    rest, again = in_child(
        lambda: ([x.tobytes() for x, _ in iteration], [x.tobytes() for x, _ in augmented_again()])
    )
    assert rest == expected[1:]
    assert again == expected
    assert [x.tobytes() for x, _ in iteration] == expected[1:]


def augmented_again():
    return augmented(40).batches(4, shuffle=True)


def test_a_child_may_leave_an_iteration_of_its_parent():
    iteration = iter(Slow().batches())
    next(iteration)
    assert in_child(lambda: iteration.close() or "closed") == "closed"
    iteration.close()


def test_an_interpreter_ends_with_an_iteration_under_way(run_python):
    program = """
        import os, sys
        from dlc import data
        import numpy as np
        iteration = iter(data.batches(np.arange(10**6), workers=2))
        next(iteration)
        if child := os.fork():
            print(os.waitpid(child, 0)[1])
        sys.exit(0)
    """
    assert run_python(program) == "0\n"


def test_the_package_is_light(run_python):
    program = """
        import sys
        import dlc
        dlc.data.batches
        print({"sklearn", "scipy", "PIL", "torch", "numba", "llvmlite"} & set(sys.modules))
    """
    assert run_python(program) == "set()\n"
