"""Many kernels compiled at once: the same objects with helpers as without, and whatever they do."""

import subprocess
import sys

import numpy as np
import pytest

import dlc
from dlc import config
from dlc.backends.native import crew
from dlc.backends.native.crew import FEWEST, Job, compile_all
from dlc.backends.native.frontend import Param
from dlc.backends.native.isa import host
from dlc.backends.numba_cpu import lower
from dlc.errors import CompileError
from dlc.runtime import threads

PARAMS = (Param("x", "float32*"), Param("n", "int64"))
BODY = """def {name}(x, n, thread, threads):
    for i in range(n):
        x[i] = x[i] {change}
"""


def job(name, change="+ 1.0"):
    return Job(name, host().name, BODY.format(name=name, change=change), PARAMS)


JOBS = {f"kernel{i}": job(f"kernel{i}", f"+ {i}.0") for i in range(FEWEST)}


@pytest.fixture(scope="module")
def alone():
    """The objects that this process makes."""
    return compile_all(JOBS)


def helper(program):
    """A function that starts a program in place of a helper."""

    def start():
        command = [sys.executable, "-c", program]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    return start


def test_a_job_is_the_same_behind_a_pipe():
    for each in (*JOBS.values(), Job("entry", "aarch64", module="dlc.backends.native.entry")):
        assert Job.from_json(each.to_json()) == each


def test_helpers_make_the_same_objects(alone, monkeypatch, tmp_path):
    """Even where the directory at hand has modules of the names of Python's own."""
    (tmp_path / "struct.py").write_text("raise SystemExit('the wrong module')")
    monkeypatch.chdir(tmp_path)
    from_helpers = []
    read = crew._read
    monkeypatch.setattr(crew, "_read", lambda stream: from_helpers.append(read(stream)) or b"")
    assert compile_all(JOBS, helpers=1) == alone
    assert set(from_helpers) <= set(alone.values())
    assert len(from_helpers) > 0


def test_an_option_says_how_many_help(monkeypatch):
    asked = []

    def compiled(jobs, helpers, report):
        asked.append(helpers)
        return compile_all(jobs)

    monkeypatch.setattr(lower, "compile_all", compiled)
    for number, wanted in enumerate((0, 3, None)):
        with config.override(compile_helpers=wanted):
            dlc.compile(lambda x, k=number: x * (0.125 + k), np.ones(3, np.float32))
    assert asked == [0, 3, threads.count() - 1]


DEATHS = {
    "at once": "import sys; sys.stdin.close()",
    "without an answer": "import sys; sys.stdin.buffer.read(8)",
    "in the middle of an answer": "import sys; sys.stdin.buffer.read(8); print('half', end='')",
}


@pytest.mark.parametrize("how", DEATHS)
@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_helper_that_dies_takes_no_job_with_it(how, alone, monkeypatch, caplog):
    monkeypatch.setattr(crew, "_start", helper(DEATHS[how]))
    assert compile_all(JOBS, helpers=2) == alone
    assert "a compile helper ended with status 0" in caplog.text


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_helper_that_does_not_start(alone, monkeypatch, caplog):
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    assert compile_all(JOBS, helpers=1) == alone
    assert "a compile helper does not start" in caplog.text


@pytest.mark.parametrize("helpers", [0, 2])
def test_a_kernel_that_cannot_be_compiled_raises_here(helpers):
    jobs = JOBS | {"wrong": job("wrong", "+ nothing")}
    with pytest.raises(CompileError, match="kernel wrong cannot be lowered"):
        compile_all(jobs, helpers)


def test_progress_names_what_comes_next(alone):
    reports = []
    jobs = dict(list(JOBS.items())[:3])
    compile_all(jobs, report=lambda *given: reports.append(given))
    assert [(done, total) for _, done, total in reports] == [(0, 3), (1, 3), (2, 3)]
    assert {name for name, *_ in reports} == set(jobs)
