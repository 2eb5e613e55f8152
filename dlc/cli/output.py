"""How commands print: tables for people, JSON for programs."""

from __future__ import annotations

import json
import os
import sys
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dlc.errors import ArgumentError, ExecutionError, explain
from dlc.files import kind
from dlc.report import text

#: Columns where there is no terminal to ask.
WIDE = 200


def add_json(parser: ArgumentParser) -> None:
    """Add `--json`."""
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def show(*parts: Any) -> None:
    """Print text and tables: in colour on a terminal, elsewhere plain and as wide as they are."""
    if not sys.stdout.isatty():
        print(text(*parts, width=WIDE))
        return
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    for part in parts:
        console.print(part)


def show_json(value: Any) -> None:
    """Print a value as JSON."""
    print(json.dumps(value, indent=1))


def check_ending(option: str, path: str | None, endings: Sequence[str]) -> None:
    """Complain about a file whose name does not say its format."""
    if path is not None and not path.endswith(tuple(endings)):
        raise ArgumentError(
            explain(option, f"a name that ends in {' or '.join(endings)}", repr(path))
        )


def check_replaced(option: str, path: str | None) -> None:
    """Complain now about a file that could not be written at the end, whole or not at all."""
    check_folder(option, path)
    if path and (strange := kind(path)):
        advice = "Name a file."
        raise ArgumentError(explain(option, "a file", f"{path!r}, {strange}", advice=advice))


def check_folder(option: str, path: str | None) -> None:
    """Complain now about a file whose folder is not there, or may not be written to."""
    if not path:
        return
    folder = Path(os.path.realpath(path)).parent
    if not folder.is_dir():
        raise ArgumentError(f"{option} {path}: there is no folder {str(Path(path).parent)!r}")
    if not os.access(folder, os.W_OK):
        raise ArgumentError(f"{option} {path}: the folder {str(folder)!r} cannot be written to")


def make_folder(option: str, path: str) -> Path:
    """The folder that an option names, made if need be."""
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        advice = "Name another, or move the file away."
        raise ArgumentError(explain(option, "a folder", f"the file {path!r}", advice=advice))
    with to(option, path):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def to(option: str, path: str | None) -> Iterator[None]:
    """Say which option it was, where what it names cannot be written."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise ExecutionError(f"{option}: {path!r} cannot be written: {reason}") from error
