"""How many threads a program may use: what was asked for, cut to the CPUs it has been given.

A thread too many is not slow, it is a disaster: all others spin at the barrier for the one that the
kernel keeps off the CPU. Numba and OpenMP look at the machine or the affinity mask; a container's
CPU quota, which both ignore, is what binds in practice.
"""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path, PurePosixPath

from dlc import config
from dlc.errors import ArgumentError, explain

__all__ = ["allowed", "count"]


def count(requested: int | None = None) -> int:
    """Return the number of threads for a compiled program.

    Parameters
    ----------
    requested : int, optional
        How many the caller wants. The default is `DLC_NUM_THREADS`, then `OMP_NUM_THREADS`, then
        all that are allowed.

    Returns
    -------
    int
        At least 1, at most `allowed()`.

    Raises
    ------
    ArgumentError
        When `requested` is no integer of at least 1.
    OptionError
        When an environment variable holds no number of threads.
    """
    if requested is not None and not (isinstance(requested, int) and requested >= 1):
        raise ArgumentError(explain("threads", "an integer of at least 1", repr(requested)))
    wanted = requested or config.get("num_threads") or config.get("omp_num_threads")
    return min(wanted, allowed()) if wanted else allowed()


def allowed(root: str | Path = "/") -> int:
    """Return how many CPUs this process may use now, by affinity and cgroup quota.

    Parameters
    ----------
    root : str or Path
        Where `proc` and `sys` are.

    Returns
    -------
    int
        At least 1. A quota of two and a half CPUs counts as three.
    """
    return math.ceil(min(len(os.sched_getaffinity(0)), quota(root)))


def quota(root: str | Path = "/") -> float:
    """Return the CPUs' worth of time that the cgroups of this process get; infinite without limit.

    A group is bound by its own quota and by that of every group above it. Inside a container the
    path may be the host's, which is not to be seen there: then the groups above are what counts.

    Parameters
    ----------
    root : str or Path
        Where `proc` and `sys` are.
    """
    limits = [math.inf]
    mounts = Path(root, "sys/fs/cgroup")
    for line in _read(Path(root, "proc/self/cgroup")).splitlines():
        _, controllers, path = line.split(":", 2)
        group = PurePosixPath(path.lstrip("/"))
        for name in (group, *group.parents):
            if not controllers:
                limits.append(_limit_v2(mounts / name))
            elif "cpu" in controllers.split(","):
                limits.append(_limit_v1(mounts / "cpu" / name))
    return min(limits)


def _limit_v2(group: Path) -> float:
    """`cpu.max` is "quota period" in microseconds, or "max period"."""
    words = _read(group / "cpu.max").split()
    return int(words[0]) / int(words[1]) if words and words[0] != "max" else math.inf


def _limit_v1(group: Path) -> float:
    """`cpu.cfs_quota_us` is -1 where there is no limit."""
    time = int(_read(group / "cpu.cfs_quota_us") or -1)
    return time / int(_read(group / "cpu.cfs_period_us")) if time > 0 else math.inf


def _read(path: Path) -> str:
    """The text of a file; empty where the kernel, or the container, does not show it."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        return path.read_text()
    return ""
