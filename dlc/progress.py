"""A progress bar for long work: what is being done, how far it is, and how long it will take.

One place decides whether it is shown (the option `progress`: on a terminal, unless told otherwise),
and the package that draws it is loaded only then.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from dlc import config

__all__ = ["Report", "bar", "wanted"]

#: Called with what comes next, how many parts are done, and of how many (0: not known yet).
Report: TypeAlias = Callable[[str, int, int], None]


def wanted(shown: bool | None = None) -> bool:
    """Whether to show progress: as the caller says, else as the option `progress` does."""
    if shown is not None:
        return shown
    choice = config.get("progress")
    return sys.stderr.isatty() if choice == "auto" else bool(choice == "always")


@contextmanager
def bar(title: str, shown: bool | None = None) -> Iterator[Report]:
    """A bar on standard error for the length of a block; on a terminal it is gone afterwards.

    Parameters
    ----------
    title : str
    shown : bool, optional
        Whether it is shown; by default as `wanted` says.

    Yields
    ------
    Report
        To be called before each part.
    """
    if not wanted(shown):
        yield lambda what, done, total: None
        return
    live = _live()
    task = live.add_task(title, total=None, what="")
    with live:
        yield lambda what, done, total: live.update(
            task, what=what, completed=done, total=total or None
        )


def _live() -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[what]}", style="dim"),
        console=console,
        transient=console.is_terminal,  # elsewhere all that is printed is the end
    )
