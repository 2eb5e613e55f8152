"""Compiling beside a fork and under Ctrl-C, each in a process of its own."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from dlc.runtime.exclusive import exclusive, importing

COMMON = """
import os, signal, sys, threading, time
import numpy as np
import dlc

x = np.ones((4, 3), "float32")

def compiled(number):
    return dlc.compile(lambda x: x * (1.0 + number) + 1, x, threads=1)(x)
"""

FORKS = """
stop, first = threading.Event(), threading.Event()

def busy():
    number = 0
    while not stop.is_set():
        number += 1
        compiled(number)
        first.set()

thread = threading.Thread(target=busy)
thread.start()
codes = []
for k in range(4):  # the first while modules are imported, the others while kernels are made
    time.sleep(0.2 + 0.03 * k)
    child = os.fork()
    if not child:
        signal.alarm(90)
        os._exit(0 if compiled(0.5 + k)[0, 0] == 2.5 + k else 1)
    codes.append(os.waitpid(child, 0)[1])
    first.wait()
stop.set()
thread.join()
print(codes)
"""

INTERRUPTED = """
class Found:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1] and not pressed:
            pressed.append(name)
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(1000):  # time to take it
                pass

pressed = []
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Found())
try:
    compiled(1)
    print("went through")
except KeyboardInterrupt:
    print("interrupted at", *pressed)
print(compiled(2)[0, 0])
"""


def run(text, folder, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", COMMON + text, *arguments],
        env={**os.environ, "DLC_CACHE_DIR": str(folder / "cache")},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_child_forked_while_another_thread_compiles_can_compile(tmp_path):
    assert run(FORKS, tmp_path) == [str([0] * 4)]


@pytest.mark.parametrize(
    "module", ["numba.core.types", "numba.core.typing", "llvmlite.binding.orcjit"]
)
def test_ctrl_c_during_the_imports_leaves_the_process_whole(tmp_path, module):
    assert run(INTERRUPTED, tmp_path, module) == [f"interrupted at {module}", "4.0"]


@pytest.fixture
def heard():
    """SIGINT is heard, also where the tests run in the background of a shell, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_comes_at_the_end_of_the_block(heard):
    done = []

    def work():
        with importing():
            signal.raise_signal(signal.SIGINT)
            time.sleep(0.01)
            done.append(1)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == [1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_fork_waits_until_nobody_is_inside():
    events = []

    def work():
        with exclusive():
            entered.set()
            time.sleep(0.3)
            events.append("left")

    entered = threading.Event()
    thread = threading.Thread(target=work)
    thread.start()
    entered.wait()
    child = os.fork()
    if not child:
        os._exit(0)
    events.append("forked")
    os.waitpid(child, 0)
    thread.join()
    assert events == ["left", "forked"]


def test_another_thread_imports_without_a_handler():
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def work():
        with importing():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
