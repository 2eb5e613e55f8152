"""How commands print: tables for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from typing import Any

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
