"""What all tests share: a kernel cache of their own, fresh interpreters, command lines, random
numbers.

A cache of their own, so that a run never depends on what an earlier one left; set `DLC_CACHE_DIR`
to keep compiled kernels between runs.
"""

import os
import subprocess
import sys
import tempfile
import textwrap
import warnings

import numpy as np
import pytest
from hypothesis import settings

from dlc import cli

# Compiling inside an example takes what it takes, and a failure must be the same for everybody.
settings.register_profile("dlc", deadline=None, derandomize=True)
settings.load_profile("dlc")


def pytest_configure(config):
    if "DLC_CACHE_DIR" not in os.environ:  # xdist's workers inherit it
        directory = tempfile.TemporaryDirectory(prefix="dlc-test-")
        os.environ["DLC_CACHE_DIR"] = directory.name
        config.add_cleanup(directory.cleanup)
    os.environ.setdefault("DLC_COMPILE_HELPERS", "0")  # xdist's workers have the CPUs already


@pytest.fixture
def rng():
    """Random numbers, the same in every run."""
    return np.random.default_rng(0)


@pytest.fixture
def run_python():
    """Run a program in a fresh interpreter and return what it prints; environment by keyword."""

    def run(program, *arguments, **environment):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def line(capsys, monkeypatch):
    """Run a command line in this process: exit code, standard output, standard error."""
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)

    def run(*arguments):
        try:
            code = cli.main([str(each) for each in arguments])
        except SystemExit as end:
            code = end.code
        out, err = capsys.readouterr()
        return code, out, err

    return run
