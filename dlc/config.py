"""The options of dlc: one table, read from the environment, printed as the docs page.

One table, so that an option cannot exist without a check, a default and a line of documentation.
`python -m dlc.config` prints `docs/configuration.md`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dlc.errors import OptionError, explain

__all__ = ["OPTIONS", "Kind", "Option", "get", "override"]


@dataclass(frozen=True)
class Kind:
    """A kind of value: how it is described, and how it is read from text.

    `parse` raises `ValueError` or `KeyError` for text that is no such value; `text` then tells the
    user what would have been.
    """

    text: str
    parse: Callable[[str], Any]


def integer(low: int, high: int | None = None) -> Kind:
    """Return the kind of integers from `low` to `high`, both included."""

    def parse(text: str) -> int:
        value = int(text)
        if value < low or (high is not None and value > high):
            raise ValueError
        return value

    text = f"an integer of at least {low}" if high is None else f"an integer from {low} to {high}"
    return Kind(text, parse)


def choice(*names: str) -> Kind:
    """Return the kind of one name out of `names`, in either case."""
    lookup = {name: name for name in names}
    return Kind(" or ".join(names), lambda text: lookup[text.lower()])


def parse_size(text: str) -> int:
    """Read a number of bytes such as `500M` or `2G` (powers of 1024)."""
    match = re.fullmatch(r"(\d+)\s*([KMGT]?)(?:i?B)?", text, re.IGNORECASE)
    if match is None:
        raise ValueError
    return int(match[1]) << (10 * " KMGT".index(match[2].upper() or " "))


def parse_threads(text: str) -> int:
    """Read a number of threads; of OpenMP's list for nested regions, the first."""
    count: int = integer(1).parse(text.split(",")[0])
    return count


SIZE = Kind("a number of bytes, such as 500M or 2G", parse_size)
PATH = Kind("a path", lambda text: os.path.abspath(os.path.expanduser(text)))


@dataclass(frozen=True)
class Option:
    """A row of the table: one option, its environment variable and what it means."""

    name: str
    variable: str
    kind: Kind
    default: Any
    doc: str

    def read(self, value: object) -> Any:
        """Check `value`, given as text or as what `get` returns.

        Raises
        ------
        OptionError
            When it is no value of this option's kind.
        """
        if value is None and self.default is None:
            return None
        try:
            return self.kind.parse(str(value).strip())
        except (ValueError, KeyError):
            advice = "Unset it to get the default; `python -m dlc.config` explains every option."
            message = explain(self.variable, self.kind.text, repr(value), advice=advice)
            raise OptionError(message) from None


OPTIONS = (
    Option(
        "debug",
        "DLC_DEBUG",
        integer(0, 7),
        0,
        "How much dlc tells while it works; a level includes those below it: "
        "1 a summary, 2 timings, 3 choices, 4 kernel source, 5 the IR, 6 every rewrite, "
        "7 LLVM or PTX.",
    ),
    Option(
        "isa",
        "DLC_ISA",
        choice("x86-64-v2", "x86-64-v3", "x86-64-v4", "aarch64"),
        None,
        "The instruction set to compile for, in place of the best that this machine has.",
    ),
    Option(
        "num_threads",
        "DLC_NUM_THREADS",
        integer(1),
        None,
        "The number of threads of a compiled program; never more than the CPUs allowed to it by "
        "affinity and cgroup quota, which is also the default.",
    ),
    Option(
        "omp_num_threads",
        "OMP_NUM_THREADS",
        Kind("a number of threads, or a list of them", parse_threads),
        None,
        "The number of threads where `DLC_NUM_THREADS` is not set, for programs that set it for "
        "every library at once.",
    ),
    Option(
        "compile_helpers",
        "DLC_COMPILE_HELPERS",
        integer(0),
        None,
        "How many processes compile kernels beside the program; by default one less than it has "
        "threads. 0 where others need the CPUs or the memory.",
    ),
    Option(
        "cache_dir",
        "DLC_CACHE_DIR",
        PATH,
        None,
        "The directory of compiled kernels, private to the user, in place of "
        "`$XDG_CACHE_HOME/dlc` or `~/.cache/dlc`.",
    ),
    Option(
        "cache_size",
        "DLC_CACHE_SIZE",
        SIZE,
        1 << 30,
        "The size to which the cache is kept by removing what was not used for longest; "
        "0 turns it off.",
    ),
    Option(
        "verify",
        "DLC_VERIFY",
        integer(0, 2),
        0,
        "How much the compiler checks itself: 1 verifies the graph after every pass, 2 also "
        "evaluates it before and after in float64; the passes then run for cached models too.",
    ),
    Option(
        "progress",
        "DLC_PROGRESS",
        choice("auto", "always", "never"),
        "auto",
        "Whether long work shows a progress bar; `auto` shows it on a terminal.",
    ),
)

_BY_NAME = {option.name: option for option in OPTIONS}
_values: dict[str, Any] = {}


def get(name: str) -> Any:
    """Return the value of an option; the environment is read at its first use.

    Parameters
    ----------
    name : str
        Its name in the table, such as `debug`.

    Returns
    -------
    Any
        The value; None where the option is not set and has no default.

    Raises
    ------
    OptionError
        When the environment holds a bad value, or there is no such option.
    """
    if name not in _values:
        option = _option(name)
        text = os.environ.get(option.variable, "")
        _values[name] = option.read(text) if text.strip() else option.default
    return _values[name]


@contextmanager
def override(**values: object) -> Iterator[None]:
    """Give options other values inside a `with` block, in every thread.

    Parameters
    ----------
    **values
        Values by option name, as text or as `get` returns them; None stands for "not set" where
        the option has no default.

    Raises
    ------
    OptionError
        When a value is bad or there is no such option; nothing is changed then.

    Examples
    --------
    >>> with override(isa="x86-64-v3", debug=4):
    ...     get("isa"), get("debug")
    ('x86-64-v3', 4)
    """
    global _values
    checked = {name: _option(name).read(value) for name, value in values.items()}
    before, _values = _values, {**_values, **checked}
    try:
        yield
    finally:
        _values = before


def _option(name: str) -> Option:
    if name not in _BY_NAME:
        raise OptionError(explain("dlc.config", f"one of {', '.join(_BY_NAME)}", repr(name)))
    return _BY_NAME[name]


def page() -> str:
    """Return the docs page of the table, as Markdown."""
    rows = [
        f"| `{option.variable}` | `{option.name}` | {option.kind.text} | {_shown(option)} "
        f"| {option.doc} |"
        for option in OPTIONS
    ]
    return "\n".join([_HEAD, *rows, ""])


def _shown(option: Option) -> str:
    if option.default is None:
        return ""
    if option.kind is SIZE:
        return f"`{option.default >> 30}G`"
    return f"`{option.default}`"


_HEAD = """\
# Configuration

Options are environment variables, read at their first use. A bad value is an error that says what
would be a good one; an empty one counts as not set. In Python, `dlc.config.get("debug")` reads one
by the name in the second column, and `with dlc.config.override(debug=4): ...` sets it for a block.

This page is printed by `python -m dlc.config` from the table in `dlc/config.py`.

| variable | name | value | default | meaning |
| --- | --- | --- | --- | --- |"""


if __name__ == "__main__":
    print(page(), end="")
