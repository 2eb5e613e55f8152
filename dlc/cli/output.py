"""How commands print: tables for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from typing import Any


def add_json(parser: ArgumentParser) -> None:
    """Add `--json`."""
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def show(*parts: Any) -> None:
    """Print text and tables, in colour on a terminal; as wide as they need where it is none."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else 200
    console = Console(highlight=False, markup=False, width=width)
    for part in parts:
        console.print(part)


def show_json(value: Any) -> None:
    """Print a value as JSON."""
    print(json.dumps(value, indent=1))
