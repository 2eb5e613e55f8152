"""How many threads: what is asked for, cut by affinity and by cgroup quotas of both versions."""

import math
import os

import pytest

from dlc import config
from dlc.errors import ArgumentError, OptionError
from dlc.runtime import threads
from dlc.runtime.threads import allowed, count, quota


@pytest.fixture
def eight_cpus(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))


def write(root, files):
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


V1 = "12:cpuset:/job\n4:cpu,cpuacct:/job/step\n1:name=systemd:/other\n"
SYS = "sys/fs/cgroup"

QUOTAS = {
    "no cgroups at all": ({}, math.inf),
    "v2 without a limit": (
        {"proc/self/cgroup": "0::/job\n", f"{SYS}/job/cpu.max": "max 100000\n"},
        math.inf,
    ),
    "v2": (
        {"proc/self/cgroup": "0::/job\n", f"{SYS}/job/cpu.max": "250000 100000\n"},
        2.5,
    ),
    "v2, bound by a group above": (
        {
            "proc/self/cgroup": "0::/slice/job\n",
            f"{SYS}/slice/job/cpu.max": "600000 100000\n",
            f"{SYS}/slice/cpu.max": "300000 100000\n",
        },
        3.0,
    ),
    "v2, in a container: its group is the root": (
        {"proc/self/cgroup": "0::/\n", f"{SYS}/cpu.max": "50000 100000\n"},
        0.5,
    ),
    "v2, in a container that shows the host's path": (
        {"proc/self/cgroup": "0::/../../docker/abc\n", f"{SYS}/cpu.max": "200000 100000\n"},
        2.0,
    ),
    "v1 without a limit": (
        {
            "proc/self/cgroup": V1,
            f"{SYS}/cpu/job/step/cpu.cfs_quota_us": "-1\n",
            f"{SYS}/cpu/job/step/cpu.cfs_period_us": "100000\n",
        },
        math.inf,
    ),
    "v1": (
        {
            "proc/self/cgroup": V1,
            f"{SYS}/cpu/job/step/cpu.cfs_quota_us": "75000\n",
            f"{SYS}/cpu/job/step/cpu.cfs_period_us": "50000\n",
        },
        1.5,
    ),
    "v1, bound by a group above": (
        {
            "proc/self/cgroup": V1,
            f"{SYS}/cpu/job/step/cpu.cfs_quota_us": "400000\n",
            f"{SYS}/cpu/job/step/cpu.cfs_period_us": "100000\n",
            f"{SYS}/cpu/job/cpu.cfs_quota_us": "100000\n",
            f"{SYS}/cpu/job/cpu.cfs_period_us": "100000\n",
        },
        1.0,
    ),
    "v1, in a container that shows the host's path": (
        {
            "proc/self/cgroup": "4:cpu:/docker/abc\n0::/docker/abc\n",
            f"{SYS}/cpu/cpu.cfs_quota_us": "150000\n",
            f"{SYS}/cpu/cpu.cfs_period_us": "100000\n",
        },
        1.5,
    ),
    "a quota of another controller": (
        {
            "proc/self/cgroup": "4:cpuset:/job\n",
            f"{SYS}/cpu/job/cpu.cfs_quota_us": "100000\n",
            f"{SYS}/cpu/job/cpu.cfs_period_us": "100000\n",
        },
        math.inf,
    ),
}


@pytest.mark.parametrize("case", QUOTAS)
def test_quota(tmp_path, eight_cpus, case):
    files, expected = QUOTAS[case]
    write(tmp_path, files)
    assert quota(tmp_path) == expected
    assert allowed(tmp_path) == min(8, math.ceil(min(expected, 8)))


def test_allowed_here():
    assert 1 <= allowed() <= len(os.sched_getaffinity(0))


def test_affinity_is_read_each_time():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert allowed() == count() == count(64) == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.fixture
def four_allowed(monkeypatch):
    monkeypatch.setattr(threads, "allowed", lambda: 4)


@pytest.mark.parametrize(
    ("requested", "own", "openmp", "expected"),
    [
        (None, None, None, 4),
        (None, None, 3, 3),
        (None, 2, 3, 2),
        (1, 2, 3, 1),
        (4, 1, None, 4),
        (64, None, None, 4),
        (None, 64, None, 4),
        (None, None, 64, 4),
    ],
)
def test_who_asks_first_is_served(four_allowed, requested, own, openmp, expected):
    with config.override(num_threads=own, omp_num_threads=openmp):
        assert count(requested) == expected


@pytest.mark.parametrize("requested", [0, -1])
def test_no_threads_at_all(requested):
    with pytest.raises(ArgumentError, match="at least 1"):
        count(requested)


@pytest.mark.parametrize("variable", ["DLC_NUM_THREADS", "OMP_NUM_THREADS"])
def test_a_bad_environment(monkeypatch, variable):
    monkeypatch.setattr(config, "_values", {})
    monkeypatch.setenv(variable, "many")
    with pytest.raises(OptionError, match=f"{variable} expects .* got 'many'"):
        count()
