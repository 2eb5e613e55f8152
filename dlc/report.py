"""How dlc prints what it found: quantities with their units, and tables.

One way for all, so that a profile, a summary and a benchmark read alike and can be put side by
side.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import Any

__all__ = ["duration", "percent", "quantity", "table", "text"]

_LARGE = ("", "k", "M", "G", "T", "P")
_SMALL = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6), ("ns", 1e-9))


def quantity(value: float, unit: str = "") -> str:
    """A number to three digits with a unit and its prefix.

    Examples
    --------
    >>> quantity(1814073344, "FLOP"), quantity(61706), quantity(28, "B")
    ('1.81 GFLOP', '61.7 k', '28 B')
    """
    if value < 1000 and value == int(value):
        return f"{int(value)} {unit}".rstrip()
    power = 0
    while abs(value) >= 999.5 and power + 1 < len(_LARGE):
        value, power = value / 1000, power + 1
    return f"{_digits(value)} {_LARGE[power]}{unit}".rstrip()


def duration(seconds: float) -> str:
    """A time to three digits.

    Examples
    --------
    >>> duration(0.0031346), duration(4.7e-6), duration(72.0)
    ('3.13 ms', '4.70 µs', '72.0 s')
    """
    unit, size = next((each for each in _SMALL if seconds >= 0.9995 * each[1]), _SMALL[-1])
    return f"{_digits(seconds / size)} {unit}"


def percent(share: float) -> str:
    """A share as per cent.

    Examples
    --------
    >>> percent(0.8349), percent(0.0042)
    ('83 %', '0.4 %')
    """
    return f"{100 * share:.0f} %" if share >= 0.0995 else f"{100 * share:.1f} %"


def _digits(value: float) -> str:
    """Three digits, as long as they do not end before the point."""
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    title: str = "",
    footer: Sequence[str] = (),
    left: int = 1,
) -> Any:
    """A table for `rich` to print.

    Parameters
    ----------
    columns : sequence of str
        Headings.
    rows : sequence of sequences of str
    title : str
    footer : sequence of str
        A last row, set off from the others.
    left : int
        How many columns hold words, at the left; the others hold numbers.
    """
    from rich import box
    from rich.table import Table

    made = Table(
        title=title or None,
        box=box.SIMPLE_HEAD,
        title_justify="left",
        show_footer=bool(footer),
        pad_edge=False,
    )
    for number, name in enumerate(columns):
        foot = footer[number] if footer else ""
        made.add_column(
            name,
            footer=foot,
            justify="left" if number < left else "right",
            no_wrap=number >= left,
            overflow="fold",
        )
    for row in rows:
        made.add_row(*map(_literal, row))
    return made


def _literal(words: str) -> Any:
    from rich.text import Text

    return Text(words)


def text(*parts: Any, width: int | None = None) -> str:
    """What `rich` would print, as plain text without colours.

    Parameters
    ----------
    *parts : str or renderable
    width : int, optional
        Columns; by default the terminal's, and 120 where there is none.
    """
    from rich.console import Console

    out = io.StringIO()
    columns = width or int(os.environ.get("COLUMNS", 0)) or _terminal_width()
    console = Console(file=out, width=columns, color_system=None, highlight=False, markup=False)
    for part in parts:
        console.print(part)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def _terminal_width() -> int:
    try:
        return os.get_terminal_size().columns
    except OSError:  # the output goes to a file or a pipe
        return 120
