"""What dlc tells while it works: the ladder of DLC_DEBUG, progress bars, quantities."""

import doctest
import logging

import numpy as np
import pytest

import dlc
from dlc import config, debug, progress, report


@pytest.fixture
def told(run_python, tmp_path):
    """What a compilation writes to standard error on a rung of the ladder."""
    program = """
        import sys
        sys.stderr = sys.stdout
        import dlc
        dlc.compile(dlc.models.mlp(sizes=(4, 3)).eval(), dlc.TensorSpec((2, 4)), threads=1)
    """

    def run(rung):
        return run_python(program, DLC_DEBUG=str(rung), DLC_CACHE_DIR=str(tmp_path / "cache"))

    return run


def test_every_rung_tells_what_the_ladder_says(told):
    """From the second on, kernels come from the cache, and the choices are told all the same."""
    words = {
        1: "[dlc.driver] MLP for ",
        2: " ms  trace",
        3: "main: Group(matmul",
        4: "thread, threads):\n",
        5: "after canonicalise:\ngraph MLP",
        6: "composite(x) -> its expansion: ",
    }
    assert told(0) == ""
    assert "define void @" not in told(6)
    for rung in words:
        text = told(rung)
        for below, each in words.items():
            assert (each in text) == (below <= rung), (rung, below, text)


def test_the_last_rung_tells_the_llvm_text_of_what_is_compiled(told):
    assert "define void @" in told(7)


def test_a_summary_says_what_it_is_about(told):
    (line,) = told(1).splitlines()
    assert "1 threads: " in line
    assert "kernels, " in line
    assert "FLOP" in line
    assert "; compiled in " in line
    assert "; from the cache in " in told(1)


def test_a_program_with_logging_of_its_own_keeps_it(caplog):
    with config.override(debug=3):
        debug.setup()
        logging.getLogger("dlc.test").log(debug.CHOICES, "chosen")
        logging.getLogger("dlc.test").log(debug.SOURCE, "source")
    debug.setup()
    logging.getLogger("dlc.test").log(debug.CHOICES, "after the block")
    assert caplog.messages == ["chosen"]


def test_the_block_ends(capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger("dlc"), "propagate", False)
    logger = logging.getLogger("dlc.test")
    for value, printed in ((1, "[dlc.test] told\n"), (0, "")):
        with config.override(debug=value):
            debug.setup()
            logger.log(debug.SUMMARY, "told")
            assert capsys.readouterr().err == printed


def test_a_level_that_a_program_has_set_comes_back(monkeypatch):
    logger = logging.getLogger("dlc")
    monkeypatch.setattr(logger, "level", logging.ERROR)
    for rung in (2, 5):
        with config.override(debug=rung):
            debug.setup()
    assert logger.level < logging.ERROR
    debug.setup()
    assert logger.level == logging.ERROR


def test_the_ladder_is_in_order():
    assert list(debug.LADDER) == sorted(debug.LADDER, reverse=True)
    assert len(debug.LADDER) == 7
    assert (debug.SUMMARY, debug.REWRITES) == (logging.INFO, logging.DEBUG)


# Progress.


@pytest.mark.parametrize(("choice", "terminal"), [("always", False), ("auto", True)])
def test_progress_is_shown(choice, terminal, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal, raising=False)
    with config.override(progress=choice):
        assert progress.wanted()
        assert not progress.wanted(False)


@pytest.mark.parametrize(("choice", "terminal"), [("never", True), ("auto", False)])
def test_progress_is_not_shown(choice, terminal, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal, raising=False)
    with config.override(progress=choice):
        assert not progress.wanted()
        assert progress.wanted(True)
        with progress.bar("work") as tell:
            tell("a part", 0, 2)
    assert capsys.readouterr().err == ""


def test_a_bar_says_what_is_done(capsys):
    with progress.bar("compiling Net", True) as tell:
        tell("passes", 0, 0)
        tell("conv2d_direct", 1, 3)
    assert "compiling Net" in capsys.readouterr().err


def test_compile_reports_its_kernels(monkeypatch):
    seen = []
    monkeypatch.setattr("dlc.driver.bar", lambda title, shown: _Recorder(title, shown, seen))
    with config.override(cache_size=0):
        exe = dlc.compile(lambda x: x.exp().sum(-1), np.ones((2, 3), "float32"), progress=True)
    assert seen[0] == ("compiling lambda", True)
    assert seen[1] == ("passes", 0, 0)
    assert [done for _, done, _ in seen[2:]] == sorted(done for _, done, _ in seen[2:])
    assert max(total for _, _, total in seen[2:]) >= len(exe.kernels)


class _Recorder:
    """A bar that keeps what it is told."""

    def __init__(self, title, shown, seen):
        self.seen = seen
        seen.append((title, shown))

    def __enter__(self):
        return lambda *told: self.seen.append(told)

    def __exit__(self, *error):
        pass


# Quantities.


def test_examples():
    assert doctest.testmod(report).failed == 0


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (999, "999 B"), (999.6, "1.00 kB"), (12_345, "12.3 kB"), (2.5, "2.50 B")],
)
def test_quantities(value, text):
    assert report.quantity(value, "B") == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.00 ns"), (9.999e-4, "1.00 ms"), (9.99e-4, "999 µs"), (123, "123 s"), (1e-9, "1.00 ns")],
)
def test_durations(seconds, text):
    assert report.duration(seconds) == text


def test_tables_are_plain_text_outside_a_terminal():
    made = report.table(("name", "size"), [["[bold]", "1"]], title="Title", footer=("all", "1"))
    text = report.text(made, width=40)
    assert text.splitlines()[0] == "Title"
    assert "[bold]" in text
    assert "\x1b" not in text
    assert all(line == line.rstrip() for line in text.splitlines())
