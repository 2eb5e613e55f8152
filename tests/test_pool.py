"""Threads that run frames: who takes part, in what order, and what becomes of them at the end."""

import ctypes
import os
import platform
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import frames

from dlc.backends.native import interpreter
from dlc.backends.native.isa import LEVELS
from dlc.errors import ArgumentError
from dlc.runtime import frame
from dlc.runtime.pool import Pool, shared


@pytest.fixture(scope="module")
def linked():
    return frames.load()


@pytest.fixture
def pool(linked):
    """Two threads, always both."""
    pool = Pool(linked, 2, whole_team=True)
    yield pool
    pool.close()


def lines(threads):
    """A line of words for each thread."""
    return np.zeros((threads, 16), np.int64)


def count_frame(linked, threads, steps=1, barrier=False):
    counts = lines(threads)
    step = ("count", [counts.ctypes.data], barrier)
    return frames.Frame(linked, threads, [step] * steps), counts


def worker_words(pool, number=1):
    """The words of one of the pool's threads."""
    return pool._words[frame.POOL_LINES + number * frame.THREAD_WORDS :]


def asleep(pool, number=1):
    """Whether a worker sleeps on its mailbox."""
    worker = worker_words(pool, number)
    if not worker[frame.THREAD_ID]:
        return False
    status = Path(f"/proc/self/task/{worker[frame.THREAD_ID]}/status").read_text()
    return worker[frame.ASLEEP] == 1 and "State:\tS" in status


def wait_until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.001)


# The team.


@pytest.mark.parametrize("barrier", [False, True])
@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_every_thread_does_every_step(linked, threads, barrier):
    pool = Pool(linked, threads, whole_team=True)
    call, counts = count_frame(linked, threads, 25, barrier)
    for _ in range(40):
        assert pool.call(call.address) == threads
    assert (counts[:, 0] == 1000).all()
    pool.close()


@pytest.mark.parametrize("threads", [2, 3, 4])
def test_barrier_orders_steps(linked, threads):
    pool = Pool(linked, threads, whole_team=True)
    cells = lines(threads)
    words = [cells.ctypes.data]
    call = frames.Frame(linked, threads, [("count", words, True), ("compare", words, True)] * 50)
    for _ in range(40):
        pool.call(call.address)
    assert (cells[:, 0] == 2000).all()
    assert (cells[:, 1] == 0).all()
    pool.close()


def test_frame_may_ask_for_fewer_threads(linked):
    pool = Pool(linked, 4, whole_team=True)
    call, counts = count_frame(linked, 2, 10, True)
    assert pool.call(call.address) == 2
    assert counts[:, 0].tolist() == [10, 10]
    call, counts = count_frame(linked, 4, 10, True)
    assert pool.call(call.address) == 4
    pool.close()


def test_frame_may_not_get_more_threads_than_there_are(linked, pool):
    call, counts = count_frame(linked, 5)
    assert pool.call(call.address) == 2
    assert counts[:, 0].tolist() == [1, 1, 0, 0, 0]


def test_one_thread_wakes_nobody(linked, pool):
    worker = worker_words(pool)
    wait_until(lambda: asleep(pool))
    call, counts = count_frame(linked, 1, 10, True)
    for _ in range(1000):
        assert pool.call(call.address) == 1
    assert worker[frame.ASLEEP] == 1
    assert counts[0, 0] == 10_000


def test_sleepers_are_woken(linked, pool):
    call, counts = count_frame(linked, 2, 3, True)
    for _ in range(20):
        wait_until(lambda: asleep(pool))
        assert pool.call(call.address) == 2
    assert (counts[:, 0] == 60).all()


def test_worker_that_does_not_come_is_left_out_for_a_while(linked):
    pool = Pool(linked, 2)
    pool._words[frame.POOL_CPUS] = 2
    pool._words[frame.POOL_CHECKED] = 1 << 62  # as if there were two processors
    worker = worker_words(pool)
    wait_until(lambda: asleep(pool))
    worker[frame.ASLEEP] = 0  # a sleeper that nobody knows of is not woken
    call, counts = count_frame(linked, 2)
    assert pool.call(call.address) == 1
    assert worker[frame.EXCUSED] > 0
    assert worker[frame.MAILBOX] == frame.IDLE
    assert counts[:, 0].tolist() == [1, 0]
    worker[frame.ASLEEP] = 1
    call.words[frame.FRAME_PATIENCE] = 2_000_000_000
    wait_until(lambda: pool.call(call.address) == 2)
    pool.close()


def test_workers_that_come_are_numbered_densely(linked):
    pool = Pool(linked, 3)
    pool._words[frame.POOL_CPUS] = 3
    pool._words[frame.POOL_CHECKED] = 1 << 62
    wait_until(lambda: asleep(pool, 1) and asleep(pool, 2))
    first = worker_words(pool, 1)
    first[frame.ASLEEP] = 0
    call, counts = count_frame(linked, 3, 5, True)
    call.words[frame.FRAME_PATIENCE] = 200_000_000
    assert pool.call(call.address) == 2
    assert counts[:, 0].tolist() == [5, 5, 0]
    assert worker_words(pool, 2)[frame.NUMBER] == 1
    first[frame.ASLEEP] = 1
    pool.close()


def test_one_processor_means_one_thread(linked):
    pool = Pool(linked, 2)
    call, counts = count_frame(linked, 2, 3, True)
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        time.sleep(0.02)  # longer than the pool trusts its last count
        assert [pool.call(call.address) for _ in range(5)] == [1] * 5
    finally:
        os.sched_setaffinity(0, allowed)
    assert counts[:, 0].tolist() == [15, 0]
    pool.close()


def test_bad_number_of_threads(linked):
    with pytest.raises(ArgumentError, match="at least one thread, got 0"):
        Pool(linked, 0)


# Many callers.


def test_eight_threads_call_at_once(linked, pool):
    calls = [count_frame(linked, 2, 2, True) for _ in range(8)]

    def work(call):
        for _ in range(10_000):
            pool.call(call.address)

    threads = [threading.Thread(target=work, args=(call,)) for call, _ in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for _, counts in calls:
        assert counts[0, 0] == 20_000
        assert counts[1, 0] <= 20_000  # a call that found the pool taken ran alone


def test_gil_is_free_during_a_call(linked, pool):
    cells = lines(2)
    call = frames.Frame(linked, 2, [("burn", [cells.ctypes.data, 50_000_000], False)])
    spans = []

    def work():
        start = time.monotonic()
        pool.call(call.address)
        spans.append((start, time.monotonic()))

    thread = threading.Thread(target=work)
    ticks = [time.monotonic()]
    thread.start()
    while thread.is_alive():
        ticks.append(time.monotonic())
        time.sleep(0.0005)
    start, end = spans[0]
    inside = [tick for tick in ticks if start + 0.01 < tick < end - 0.01]
    assert len(inside) > 5, (end - start, len(inside))


def test_shared_pools_are_one_for_each_number(linked):
    loads = []

    def load():
        loads.append(1)
        return linked

    assert shared(1, load) is shared(1, load)
    assert shared(2, load) is not shared(1, load)
    assert shared(2, load).threads == 2
    assert len(loads) <= 1  # none, if another test came first


# The frame's header.


def test_first_error_wins_and_the_next_call_forgets_it(linked, pool):
    call = frames.Frame(linked, 2, [("report", [0, 7, 70], True), ("report", [0, 8, 80], True)])
    for start in call.arguments:
        call.words[start] = call.address
    pool.call(call.address)
    assert call.words[[frame.ERROR, frame.ERROR_POSITION]].tolist() == [7, 70]
    call.words[call.arguments[0] + 1] = 0  # code 0 is no error
    pool.call(call.address)
    assert call.words[[frame.ERROR, frame.ERROR_POSITION]].tolist() == [8, 80]


# Floating point.


@pytest.fixture
def modes(linked):
    """Read and set this thread's floating-point mode; put back at the end."""
    read = ctypes.CFUNCTYPE(ctypes.c_int64)(linked.address("mode"))
    write = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(linked.address("set_mode"))
    usual = read()
    yield read, write
    write(usual)


# The usual mode, and one that flushes denormals to zero and rounds up.
USUAL = {"x86_64": 0x1F80, "aarch64": 0}[platform.machine()]
STRANGE = {"x86_64": 0x1F80 | 0x8040 | 0x4000, "aarch64": (1 << 24) | (1 << 22)}[platform.machine()]


@pytest.mark.parametrize("threads", [1, 2])
def test_callers_mode_changes_no_result_and_is_kept(linked, pool, modes, threads):
    read, write = modes
    x = np.array([1e-38, 1.0, 3.0, -1e-38], np.float32)
    factor = np.float32(0.1)
    expected = x * factor
    assert 0 < expected[0] < np.finfo(np.float32).tiny
    y = np.full(4, np.nan, np.float32)
    words = [x.ctypes.data, y.ctypes.data, 4, int(factor.view(np.int32))]
    call = frames.Frame(linked, threads, [("scale", words, False)])
    write(STRANGE)
    before = read()
    pool.call(call.address)
    after = read()
    write(USUAL)
    assert before == after == STRANGE
    assert y.tobytes() == expected.tobytes()


def test_workers_do_not_inherit_a_mode(linked, modes):
    _, write = modes
    write(STRANGE)
    pool = Pool(linked, 2, whole_team=True)
    write(USUAL)
    x = np.full(2, 1e-38, np.float32)
    y = np.full(2, np.nan, np.float32)
    factor = np.float32(0.1)
    words = [x.ctypes.data, y.ctypes.data, 2, int(factor.view(np.int32))]
    pool.call(frames.Frame(linked, 2, [("scale", words, False)]).address)
    assert y.tobytes() == (x * factor).tobytes()
    pool.close()


# The life of the threads.


def alive(pool):
    """A function that says which of a pool's workers the kernel still knows."""
    wait_until(lambda: all(worker_words(pool, i)[frame.THREAD_ID] for i in (1, 2)))
    workers = {str(worker_words(pool, i)[frame.THREAD_ID]) for i in (1, 2)}
    return lambda: workers & set(os.listdir("/proc/self/task"))


def test_close_twice_then_calls_run_alone(linked):
    pool = Pool(linked, 3, whole_team=True)
    workers = alive(pool)
    assert len(workers()) == 2
    pool.close()
    pool.close()
    wait_until(lambda: not workers())
    call, counts = count_frame(linked, 3, 4, True)
    assert pool.call(call.address) == 1
    assert counts[:, 0].tolist() == [4, 0, 0]


def test_collected_pool_ends_its_threads(linked):
    pool = Pool(linked, 3)
    workers = alive(pool)
    assert len(workers()) == 2
    del pool
    wait_until(lambda: not workers())


def test_closing_waits_by_words_of_its_own(linked):
    """The scratch words belong to the call that is still under way."""
    pool = Pool(linked, 2, whole_team=True)
    cells = lines(2)
    call = frames.Frame(linked, 2, [("burn", [cells.ctypes.data, 100_000_000], False)])
    caller = threading.Thread(target=pool.call, args=(call.address,))
    caller.start()
    wait_until(lambda: pool._words[frame.POOL_BUSY] == 1)
    closer = threading.Thread(target=pool.close)
    closer.start()
    while closer.is_alive() and caller.is_alive():
        pool._words[frame.POOL_SCRATCH : frame.POOL_SCRATCH + 2] = 60, 0  # seconds, as a sleep
    caller.join()
    closer.join(10)
    assert not closer.is_alive()


def test_a_closed_team_looks_like_no_number_of_reports():
    """A sleeping thread compares the low half of a word; late reports still count up from there."""
    low = {(frame.TEAM_CLOSED + late) % (1 << 32) for late in range(1 << 12)}
    assert min(low) >= 1 << 12


def test_signals_are_not_for_workers(pool):
    wait_until(lambda: worker_words(pool)[frame.THREAD_ID] > 0)
    thread = worker_words(pool)[frame.THREAD_ID]
    status = Path(f"/proc/self/task/{thread}/status").read_text()
    blocked = int(status.split("SigBlk:")[1].split()[0], 16)
    assert blocked >> 1 & 1  # SIGINT
    assert not blocked >> 10 & 1  # SIGSEGV, for faulthandler


def test_threads_that_cannot_start(run_python, objects):
    program = """
        import resource, sys
        from helpers.frames import load
        from dlc.errors import ExecutionError
        from dlc.runtime.pool import Pool
        linked = load(sys.argv[1])
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (40 << 20), used + (40 << 20)))
        try:
            Pool(linked, 64)
        except ExecutionError as error:
            print(error)
    """
    text = run_python(program, objects, PYTHONPATH=path())
    assert "of a pool of 64: Resource temporarily unavailable. Set DLC_NUM_THREADS to" in text


@pytest.fixture(scope="module")
def objects(linked, tmp_path_factory):
    """A folder with the objects, for programs of their own."""
    folder = tmp_path_factory.mktemp("objects")
    frames.save(folder)
    return folder


def path():
    """Where such a program finds these helpers."""
    return os.pathsep.join([os.path.dirname(__file__), *filter(None, sys.path)])


HEAD = """
import os, sys, threading, time
import numpy as np
from helpers.frames import Frame, load
from dlc.runtime.pool import Pool
linked = load(sys.argv[1])
counts = np.zeros((2, 16), np.int64)
pool = Pool(linked, 2, whole_team=True)
call = Frame(linked, 2, [("count", [counts.ctypes.data], True)] * 10)
assert pool.call(call.address) == 2
"""


def test_child_of_a_fork_has_threads_of_its_own(run_python, objects):
    program = """
for generation in range(3):
    child = os.fork()
    if child == 0:
        assert len(os.listdir("/proc/self/task")) == 1
        for i in range(5):
            assert pool.call(call.address) == 2
        assert len(os.listdir("/proc/self/task")) == 2
    else:
        break
assert pool.call(call.address) == 2
if child:
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
print(f"generation {generation} is fine", flush=True)
"""
    lines = run_python(HEAD + program, objects, PYTHONPATH=path()).splitlines()
    assert sorted(lines) == [f"generation {i} is fine" for i in (0, 1, 2, 2)]


def test_fork_during_a_call(run_python, objects):
    program = """
cells = np.zeros((2, 16), np.int64)
long = Frame(linked, 2, [("burn", [cells.ctypes.data, 40_000_000], True)])
thread = threading.Thread(target=pool.call, args=(long.address,))
thread.start()
time.sleep(0.02)
child = os.fork()
if child == 0:
    os._exit(0 if pool.call(call.address) == 2 else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
thread.join()
print("fine")
"""
    assert run_python(HEAD + program, objects, PYTHONPATH=path()) == "fine\n"


EXITS = {
    "at the end": "",
    "closed before": "pool.close()",
    "by sys.exit": "sys.exit(0)",
    "by sys.exit in a thread": """
thread = threading.Thread(target=sys.exit)
thread.start()
""",
    "by os._exit": "sys.stdout.flush(); os._exit(0)",
    "asleep": "time.sleep(0.01)",
    "while a thread calls": """
def work():
    for i in range(20000):
        pool.call(call.address)
threading.Thread(target=work).start()
""",
    "while a daemon calls": """
def work():
    while True:
        pool.call(call.address)
threading.Thread(target=work, daemon=True).start()
time.sleep(0.02)
""",
    "while a daemon is in a long call": """
cells = np.zeros((2, 16), np.int64)
long = Frame(linked, 2, [("burn", [cells.ctypes.data, 40_000_000], True)])
threading.Thread(target=pool.call, args=(long.address,), daemon=True).start()
time.sleep(0.02)
""",
    "while a daemon is in a long call alone": """
cells = np.zeros((2, 16), np.int64)
long = Frame(linked, 1, [("burn", [cells.ctypes.data, 40_000_000], True)] * 5)
threading.Thread(target=pool.call, args=(long.address,), daemon=True).start()
time.sleep(0.02)
""",
    "while a daemon calls the entry": """
from dlc.runtime.entry import make_entry
entry = make_entry(linked, pool, call.address, [], keep=call)
def work():
    while True:
        entry()
threading.Thread(target=work, daemon=True).start()
time.sleep(0.02)
""",
    "with several pools": "pools = [Pool(linked, n) for n in (1, 2, 3)]",
}


@pytest.mark.parametrize("how", EXITS)
def test_exit(how, run_python, objects):
    program = HEAD + "print('called')\n" + EXITS[how]
    assert run_python(program, objects, PYTHONPATH=path()) == "called\n"


def test_exit_by_an_exception(objects):
    done = subprocess.run(
        [sys.executable, "-c", HEAD + "raise ValueError('as usual')", str(objects)],
        env={**os.environ, "PYTHONPATH": path()},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.endswith("ValueError: as usual\n")


# The object.


@pytest.mark.parametrize("level", ["x86-64-v2", "aarch64"])
def test_builds_for_every_architecture(level):
    assert interpreter.build(LEVELS[level])[:4] == b"\x7fELF"
