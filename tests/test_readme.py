"""The README is true: its programs run, its commands work, and its links lead somewhere."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
PROGRAMS = [code for language, code in BLOCKS if language == "python"]
LINES = [line for language, code in BLOCKS if language == "sh" for line in code.splitlines()]
COMMANDS = [line for line in LINES if line.startswith("dlc ")]
TARGETS = [line.removeprefix("make ") for line in LINES if line.startswith("make ")]

# A benchmark in a test shows that it runs, and takes no longer than that needs.
SHORTER = {"bench": ["--rounds", "1", "--seconds", "0.01"]}


def run(arguments, folder):
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_block_is_of_a_kind_that_is_tested():
    assert {language for language, _ in BLOCKS} == {"python", "sh"}
    assert len(COMMANDS) + len(TARGETS) == len(LINES)


@pytest.mark.parametrize("code", PROGRAMS, ids=range(len(PROGRAMS)))
def test_programs_run(code, tmp_path):
    run(["-c", code], tmp_path)


def test_the_first_program_is_short_and_shows_a_profile(tmp_path):
    assert len([line for line in PROGRAMS[0].splitlines() if line.strip()]) <= 20
    printed = run(["-c", PROGRAMS[0]], tmp_path)
    assert printed.startswith("(8, 10)\n(3, 10)\nA call takes ")


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_work(line, tmp_path):
    _, name, *rest = shlex.split(line)
    assert run(["-m", "dlc", name, *rest, *SHORTER.get(name, [])], tmp_path)


@pytest.mark.parametrize("target", TARGETS)
def test_make_targets_exist(target):
    subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


def test_links_lead_somewhere():
    found = re.findall(r"\]\(([^)#]+)\)", TEXT)
    assert found
    assert not [link for link in found if not (ROOT / link).exists()]


def test_options_named_are_options():
    from dlc import config

    known = {option.variable for option in config.OPTIONS}
    assert set(re.findall(r"DLC_[A-Z]+(?:_[A-Z]+)*", TEXT)) <= known
