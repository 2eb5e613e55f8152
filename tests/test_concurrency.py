"""Threads, processes, disks and memory: what a compiled model meets in a long life."""

import gc
import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import dlc
from dlc import config, nn
from dlc.errors import CacheWarning
from dlc.frontend.scope import active
from dlc.ir.pattern import op
from dlc.runtime import runner

SIZE = 4


def in_threads(count, work):
    """Run ``work(number)`` in threads at once; what one raises is raised here."""
    gate = threading.Barrier(count)

    def run(number):
        gate.wait()
        work(number)

    with ThreadPoolExecutor(count) as pool:
        for future in [pool.submit(run, number) for number in range(count)]:
            future.result()


# Threads.


def test_a_hundred_thousand_calls_from_eight_threads():
    function = dlc.jit(lambda x, y: x * y + 1)

    def work(number):
        rng = np.random.default_rng(number)
        shape = (SIZE + number % 3,)  # some have a shape of their own, some share one
        for _ in range(125):
            x, y = rng.integers(-9, 9, (2, *shape)).astype("float32")
            expected = x * y + 1
            for _ in range(100):
                assert (function(x, y) == expected).all()

    in_threads(8, work)


def test_threads_compile_and_call_a_model_at_once(rng):
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    inputs = rng.normal(size=(8, 3, 6)).astype("float32")
    results = [None] * 8

    def work(number):
        results[number] = [model(inputs[number]) for _ in range(50)]

    in_threads(8, work)
    for x, got in zip(inputs, results, strict=True):
        for each in got:
            np.testing.assert_array_equal(each, model(x))


def version(number):
    """A weight that is a number all over."""
    return np.full((SIZE, SIZE), number, "float32")


class Versions(nn.Module):
    """Every element of both results is the version of the weight; one of them is prepared."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(version(0))

    def forward(self, x):
        return x @ self.weight, self.weight + 0 * x


@pytest.mark.parametrize("one", [True, False])  # a single result goes through the native entry
def test_a_call_sees_one_version_of_the_parameters(one):
    model = Versions()
    x = np.eye(SIZE, dtype="float32")
    exe = dlc.compile((lambda x: model(x)[0]) if one else model, x)
    assigned, done = 0, threading.Event()

    def assign():
        nonlocal assigned
        try:
            for number in range(1, 401):
                model.weight.data = version(number)
                assigned = number
        finally:
            done.set()

    def call():
        seen = 0
        while not done.is_set():
            oldest = assigned
            (number,) = set(np.ravel(exe(x)))
            assert number >= max(seen, oldest), "an old version came back"
            seen = number

    in_threads(4, lambda thread: assign() if thread == 0 else call())
    for _ in range(3):
        assert (np.array(exe(x)) == 400).all()


def test_an_old_version_does_not_come_back_with_the_frame_of_a_slow_call(monkeypatch):
    """A call that began before an assignment, and ends after it, leaves nothing behind."""
    model = Versions()
    x = np.eye(SIZE, dtype="float32")
    exe = dlc.compile(lambda x: model(x)[0], x)
    exe(x)
    run, inside, go = runner.Runner._run, threading.Event(), threading.Event()

    def slow(self, *arguments):
        if threading.current_thread() is old:
            inside.set()
            go.wait(10)
        run(self, *arguments)

    monkeypatch.setattr(runner.Runner, "_run", slow)
    old = threading.Thread(target=exe, args=(x[::-1],))  # no array for the native entry
    old.start()
    assert inside.wait(10)
    model.weight.data = version(1)
    assert (exe(x) == 1).all()
    go.set()
    old.join()
    for _ in range(3):
        assert (exe(x) == 1).all()


class Follower(nn.Module):
    """Two numbers, each of which follows the other in a step of its own."""

    def __init__(self):
        super().__init__()
        self.register_buffer("a", np.zeros((), np.int64))
        self.register_buffer("b", np.zeros((), np.int64))

    def step(self, own, other):
        """A compiled call that makes ``own`` one more than the larger of both, and gives it."""

        def follow(x):
            new = dlc.maximum(own, other) + 1
            active().assign(own, new)
            return new + x

        return dlc.compile(follow, np.int64(0))


def test_a_step_that_waits_for_a_value_holds_none(monkeypatch):
    """Else two steps that read what the other changes would wait for each other for ever."""
    model = Follower()
    first, second = model.step(model.a, model.b), model.step(model.b, model.a)
    assert [int(step(np.int64(0))) for step in (first, second)] == [1, 2]
    keepers = [variable._keeper[0] for variable in (model.a, model.b)]
    read, reading = runner.Kept.read, threading.Event()

    def told(self, name):
        reading.set()
        return read(self, name)

    monkeypatch.setattr(runner.Kept, "read", told)
    thread = threading.Thread(target=first, args=(np.int64(0),))
    with keepers[1].lock:  # as long as the second is at work
        thread.start()
        assert reading.wait(10)
        assert keepers[0].lock.acquire(timeout=10)
        keepers[0].lock.release()
    thread.join()
    assert (model.a.item(), model.b.item()) == (3, 2)


# Processes.


@pytest.fixture(scope="module")
def wide():
    """Enough work that the pool's threads take part."""
    shape = (192, 256)
    return dlc.compile(
        lambda x, w: dlc.relu(x @ w) + 1, *[dlc.TensorSpec(shape[::s]) for s in (1, -1)], threads=2
    )


def test_a_child_computes_after_a_fork(wide, rng):
    x, w = (rng.normal(size=shape).astype("float32") for shape in ((192, 256), (256, 192)))
    expected = wide(x, w)
    for _ in range(2):
        wide(x, w)
    child = os.fork()
    if not child:  # pytest must not see the child go on
        same = all((wide(a, w) == expected).all() for a in (x, np.asfortranarray(x), x))
        again = dlc.jit(lambda x: x + 1)(x)
        os._exit(0 if same and (again == x + 1).all() else 1)
    assert os.waitpid(child, 0)[1] == 0
    np.testing.assert_array_equal(wide(x, w), expected)


def test_a_fork_waits_for_calls_that_change_values(monkeypatch):
    """The child finds all new values or none, and may read them."""
    model = Follower()
    step = model.step(model.a, model.b)
    step(np.int64(0))
    run, inside = runner.Runner._run, threading.Event()

    def slow(self, *arguments):
        inside.set()
        time.sleep(0.3)
        run(self, *arguments)

    monkeypatch.setattr(runner.Runner, "_run", slow)
    model.b.data = np.int64(6)  # so that the call is no repeated one
    other = threading.Thread(target=step, args=(np.int64(0),))
    other.start()
    assert inside.wait(10)
    child = os.fork()
    if not child:
        signal.alarm(20)
        os._exit(int(model.a.numpy()))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    other.join()
    assert model.a.item() == 7


FILL = textwrap.dedent(
    """
    import os, sys, time
    import numpy as np
    import dlc
    from dlc import nn
    from dlc.runtime import cache

    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    for variable in model.parameters():
        variable.data = np.ones(variable.shape, "float32")
    x = np.ones((2, 3), "float32")
    sys.stdin.readline()
    exe = dlc.compile(model, x)
    assert (exe(x) == 17).all()
    print(cache.default().stats().misses, "numba" in sys.modules)
    """
)


def test_processes_fill_one_cache_from_cold(tmp_path):
    environment = {**os.environ, "DLC_CACHE_DIR": str(tmp_path / "cache")}

    def start():
        return subprocess.Popen(
            [sys.executable, "-W", "error", "-c", FILL],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    together = [start(), start()]
    for process in together:
        process.stdin.write("\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=120)[0] for process in together]
    assert [process.returncode for process in together] == [0, 0]
    assert all(int(text.split()[0]) > 0 for text in outputs)
    assert start().communicate("\n", timeout=60)[0].split() == ["0", "False"]


# The cache, as a user of compiled functions meets it.


@pytest.fixture
def cache_in():
    """Compile in a cache directory of one's own."""

    def use(path):
        return config.override(cache_dir=str(path))

    return use


def compiles(number):
    x = np.arange(SIZE, dtype="float32")
    exe = dlc.compile(lambda x: op.square(x) + float(number), x)
    np.testing.assert_array_equal(exe(x), x * x + number)


def warnings_of(work):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        work()
    return [str(each.message) for each in caught if each.category is CacheWarning]


def test_a_full_disk_costs_a_warning(tmp_path, cache_in):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    with cache_in(tmp_path / "cache"):

        def work():
            resource.setrlimit(resource.RLIMIT_FSIZE, (512, limit[1]))  # no file may grow beyond
            try:
                compiles(101)
                compiles(102)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limit)

        (message,) = warnings_of(work)
        assert "dlc compiles afresh" in message
        assert not list((tmp_path / "cache").iterdir())
        assert warnings_of(lambda: compiles(103)) == []
        assert list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize("place", ["/proc/self/task", "/proc/self/task/kernels", "/dev/null/x"])
def test_a_cache_that_cannot_be_written_costs_a_warning(cache_in, place):
    with cache_in(place):
        (message,) = warnings_of(lambda: [compiles(104), compiles(105)])
        assert place in message


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "replaced"])
def test_a_damaged_cache_is_compiled_again(tmp_path, cache_in, damage):
    def spoil(data, number):
        if damage == "flipped":
            middle = len(data) // 2
            return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        return {"cut": data[:-7], "emptied": b"", "replaced": entries[number - 1][1]}[damage]

    with cache_in(tmp_path / "cache"):
        compiles(106)
        entries = [(path, path.read_bytes()) for path in sorted((tmp_path / "cache").iterdir())]
        assert len(entries) > 1
        for number, (path, data) in enumerate(entries):
            path.write_bytes(spoil(data, number))
        assert warnings_of(lambda: compiles(106)) == []
        for path, data in entries:
            assert path.read_bytes() == data


# Memory.


def resident():
    """Bytes of memory that this process holds."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def compile_and_drop():
    x = np.ones(SIZE, "float32")
    weight = nn.Parameter(np.ones((SIZE, SIZE)))
    exe = dlc.compile(lambda x: x @ weight + 1, x)
    for _ in range(2):
        exe(x)
    native = exe._runner
    held = (exe, native, native.linked, native._state, native._state.recent)
    return [weakref.ref(each) for each in held if hasattr(each, "__weakref__")]


def test_an_executable_goes_with_its_memory_at_once():
    """Without waiting for the garbage collector, which does not know how large it is."""
    gc.collect()
    gc.disable()
    try:
        assert [reference() for reference in compile_and_drop()] == [None] * 4
    finally:
        gc.enable()


def test_compiling_fifty_times_leaks_nothing():
    for _ in range(15):
        compile_and_drop()
    gc.collect()
    before = resident()
    for _ in range(50):
        compile_and_drop()
    gc.collect()
    assert resident() - before < 4 << 20


def test_freezing_lets_the_parameters_go():
    model = nn.Linear(3, 2).eval()
    x = np.ones((1, 3), "float32")
    expected = model(x)
    exe, weight = dlc.compile(model, x, freeze=True), weakref.ref(model.weight)
    del model
    gc.collect()
    assert weight() is None
    np.testing.assert_array_equal(exe(x), expected)


def test_frames_are_not_kept_without_bound(monkeypatch):
    monkeypatch.setattr(runner, "KEPT_BYTES", 3 << 20)
    n = dlc.Dim("n", 1, 64)
    exe = dlc.compile(
        lambda x: op.softmax(op.tanh(x) @ op.transpose(x, axes=(1, 0)), axis=0),
        dlc.TensorSpec((n, 4096)),
    )
    arena = exe._runner.plan.arena
    assert 1 << 20 < arena < 2 << 20
    x = np.ones((64, 4096), "float32")
    exe(x), exe(x)
    tracemalloc.start()
    try:
        for rows in range(1, 65):
            for _ in range(2):
                np.testing.assert_allclose(exe(x[:rows]), 1 / rows, 1e-5)
        in_threads(4, lambda number: [exe(x[: 10 + number]) for _ in range(20)])
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] < 4 << 20
    finally:
        tracemalloc.stop()


def test_a_frame_is_kept_however_large(monkeypatch):
    monkeypatch.setattr(runner, "KEPT_BYTES", 1)
    exe = dlc.compile(lambda x: op.softmax(x @ x, axis=0), dlc.TensorSpec((SIZE, SIZE)))
    x = np.eye(SIZE, dtype="float32")
    exe(x)
    fast = exe._runner.recent
    exe(x)
    assert exe._runner.recent is fast is not None
