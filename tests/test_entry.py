"""The native entry: which arguments it takes, what it refuses, and that it holds on to nothing."""

import array
import gc
import resource
import sys
import threading
import time
import weakref

import numpy as np
import pytest
from helpers import frames

from dlc.errors import DTypeError
from dlc.runtime import frame
from dlc.runtime.entry import BUSY, DONE, FAILED, MISFIT, Argument, make_entry
from dlc.runtime.pool import Pool


@pytest.fixture(scope="module")
def linked():
    return frames.load()


@pytest.fixture(scope="module")
def pool(linked):
    pool = Pool(linked, 2, whole_team=True)
    yield pool
    pool.close()


class Scale:
    """y = x * 2 for arrays of 2 x 3 float32, as an entry."""

    def __init__(self, linked, pool, threads=1, **options):
        factor = int(np.float32(2).view(np.int32))
        self.frame = frames.Frame(linked, threads, [("scale", [0, 0, 6, factor], False)])
        at = self.frame.arguments[0]
        arguments = (
            Argument("float32", (2, 3), [(at, 0)]),
            Argument("float32", (2, 3), [(at + 1, 0)], writable=True),
        )
        keep = self.frame
        self.call = make_entry(linked, pool, keep.address, arguments, keep=keep, **options)


@pytest.fixture
def scale(linked, pool):
    return Scale(linked, pool)


@pytest.fixture
def x():
    return np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture
def y():
    return np.full((2, 3), np.nan, np.float32)


@pytest.mark.parametrize("release_gil", [True, False])
@pytest.mark.parametrize("threads", [1, 2])
def test_runs_the_frame(linked, pool, x, y, threads, release_gil):
    call = Scale(linked, pool, threads, release_gil=release_gil).call
    assert call(x, y) == DONE
    assert (y == 2 * x).all()
    assert call(y, x) == DONE  # any arrays that fit, in any call
    assert (x == 2 * y).all()


def test_patches_add_bytes_and_may_be_many(linked, pool):
    counts = np.zeros((4, 16), np.int64)
    step = frames.Frame(linked, 1, [("count", [0], True), ("count", [0], True)])
    first, second = step.arguments
    patches = [(first, 0), (second, 16 * 8 * 3)]
    call = make_entry(linked, pool, step.address, [Argument("int64", (4, 16), patches)], keep=step)
    assert call(counts) == DONE
    assert counts[:, 0].tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int32", "float64", "float16", "uint64"])
def test_element_types(linked, pool, dtype):
    empty = frames.Frame(linked, 1, [])
    call = make_entry(linked, pool, empty.address, [Argument(dtype, (3,), [])], keep=empty)
    assert call(np.zeros(3, dtype)) == DONE
    assert call(np.zeros(3, "int8")) == MISFIT
    assert call(np.zeros(3, ">f4")) == MISFIT


def test_letters_for_the_same_type_are_one(linked, pool):
    empty = frames.Frame(linked, 1, [])
    call = make_entry(linked, pool, empty.address, [Argument("int64", (3,), [])], keep=empty)
    assert call(np.zeros(3, "l")) == call(np.zeros(3, "q")) == DONE
    assert call(array.array("q", [1, 2, 3])) == DONE  # no NumPy needed


def test_complex_numbers_are_refused(linked, pool):
    empty = frames.Frame(linked, 1, [])
    with pytest.raises(DTypeError, match="real types, got complex64"):
        make_entry(linked, pool, empty.address, [Argument("complex64", (3,), [])])


UNFIT = {
    "shape": np.zeros((3, 2), np.float32),
    "rank": np.zeros((2, 3, 1), np.float32),
    "fewer dimensions": np.zeros(6, np.float32),
    "type": np.zeros((2, 3), np.float64),
    "type of the same size": np.zeros((2, 3), np.int32),
    "byte order": np.zeros((2, 3), ">f4"),
    "record": np.zeros((2, 3), [("a", "f4")]),
    "Fortran order": np.zeros((2, 3), np.float32, order="F"),
    "strides": np.zeros((4, 3), np.float32)[::2],
    "negative strides": np.zeros((2, 3), np.float32)[::-1],
    "broadcast": np.broadcast_to(np.zeros(3, np.float32), (2, 3)),
    "alignment": np.frombuffer(b"\0" * 25, np.uint8)[1:].view(np.float32).reshape(2, 3),
    "a list": [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]],
    "None": None,
    "bytes": b"\0" * 24,
    "text": "",
    "a NumPy scalar": np.float32(1),
}


@pytest.mark.parametrize("what", UNFIT)
def test_misfit_runs_nothing(scale, y, what):
    assert scale.call(UNFIT[what], y) == MISFIT
    assert np.isnan(y).all()
    assert scale.call(np.ones((2, 3), np.float32), y) == DONE


def test_number_of_arguments(scale, x, y):
    assert scale.call() == scale.call(x) == scale.call(x, y, y) == MISFIT
    assert np.isnan(y).all()
    with pytest.raises(TypeError):
        scale.call(x, y, z=x)


def test_read_only(scale, x, y):
    x.flags.writeable = False
    assert scale.call(x, y) == DONE
    y.flags.writeable = False
    before = y.copy()
    assert scale.call(x, y) == MISFIT
    assert y.tobytes() == before.tobytes()


def test_strides_that_do_not_matter(linked, pool):
    empty = frames.Frame(linked, 1, [])

    def fits(array):
        argument = Argument("float32", array.shape, [])
        return make_entry(linked, pool, empty.address, [argument], keep=empty)(array) == DONE

    assert fits(np.zeros((4, 3), np.float32)[::4])  # one row
    assert fits(np.zeros((3, 4), np.float32)[1:2, 2:3])  # one element
    assert fits(np.zeros((0, 3), np.float32)[::2])  # no element
    assert fits(np.zeros((4, 0), np.float32)[::2])
    assert fits(np.array(1, np.float32))


def test_frame_in_use(scale, x, y):
    scale.frame.words[frame.LEASED] = 1
    assert scale.call(x, y) == BUSY
    assert np.isnan(y).all()
    scale.frame.words[frame.LEASED] = 0
    assert scale.call(x, y) == DONE


def test_error_keeps_the_frame_until_it_is_read(linked, pool):
    step = frames.Frame(linked, 1, [("report", [0, 3, 41], False)])
    step.words[step.arguments[0]] = step.address
    call = make_entry(linked, pool, step.address, [], keep=step)
    assert call() == FAILED
    assert step.words[[frame.ERROR, frame.ERROR_POSITION]].tolist() == [3, 41]
    assert call() == BUSY
    step.words[frame.LEASED] = 0
    assert call() == FAILED


def test_holds_on_to_nothing(scale, x, y):
    wrong = np.zeros((3, 2), np.float32)
    everything = (x, y, wrong, scale.call, None)
    calls = ((x, y), (x, wrong), (wrong, y), (x, None), (x, "no"), (x,))
    for arguments in calls:
        scale.call(*arguments)
    counts = [sys.getrefcount(value) for value in everything[:4]]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(20_000):
        for arguments in calls:
            scale.call(*arguments)
    assert [sys.getrefcount(value) for value in everything[:4]] == counts
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2048  # KiB
    x.resize((6,), refcheck=False)  # a buffer still held would forbid it


def test_fresh_arrays_are_freed(scale, x):
    y = np.empty((2, 3), np.float32)
    scale.call(x, y)
    gone = weakref.ref(y)
    del y
    assert gone() is None


def test_entry_owns_what_it_needs(linked, pool, x, y):
    scale = Scale(linked, pool)
    call, gone = scale.call, weakref.ref(scale.frame)
    del scale
    gc.collect()
    assert gone() is not None
    assert call(x, y) == DONE
    del call
    gc.collect()
    assert gone() is None


def test_other_threads_run_meanwhile(linked, pool):
    cells = np.zeros((2, 16), np.int64)
    step = frames.Frame(linked, 2, [("burn", [0, 30_000_000], False)])
    argument = Argument("int64", (2, 16), [(step.arguments[0], 0)])
    call = make_entry(linked, pool, step.address, [argument], keep=step)
    statuses = []
    threads = [threading.Thread(target=lambda: statuses.append(call(cells))) for _ in range(2)]
    threads[0].start()
    while not step.words[frame.LEASED]:
        time.sleep(0)
    threads[1].start()  # finds the frame in use
    threads[1].join()
    assert statuses == [BUSY]
    threads[0].join()
    assert statuses == [BUSY, DONE]


def test_one_entry_for_eight_threads(linked, pool):
    calls = [Scale(linked, pool, 2) for _ in range(8)]
    wrong = []

    def work(scale):
        x = np.full((2, 3), id(scale) % 1000, np.float32)
        for _ in range(12_500):
            y = np.empty((2, 3), np.float32)
            if scale.call(x, y) != DONE or y[1, 2] != 2 * x[1, 2]:
                wrong.append(y)

    threads = [threading.Thread(target=work, args=(scale,)) for scale in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
