"""`dlc cache`: the compiled kernels on disk."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import asdict

from dlc.cli import output
from dlc.report import quantity

HELP = "the compiled kernels on disk: how many, where, and away with them"
ABOUT = """\
The cache only saves time: what is not in it is compiled again. Its directory is DLC_CACHE_DIR, else
$XDG_CACHE_HOME/dlc, else ~/.cache/dlc; DLC_CACHE_SIZE bounds its size, and 0 turns it off.

examples:
  dlc cache                 what is in it
  du -sh $(dlc cache path)
  dlc cache clear"""


def configure(parser: ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "action",
        nargs="?",
        choices=("stats", "path", "clear"),
        default="stats",
        help="stats (the default), path or clear",
    )
    output.add_json(parser)


def run(arguments: Namespace) -> int:
    """Do what was asked."""
    from dlc.runtime import cache

    kept = cache.default()
    if arguments.action == "path":
        output.show_json(kept.path) if arguments.json else print(kept.path)
        return 0
    kept.check()
    before = kept.stats()
    if arguments.action == "clear":
        kept.clear()
    if arguments.json:
        after = kept.stats()
        output.show_json({name: asdict(after)[name] for name in ("entries", "bytes", "path")})
        return 0
    size, limit = quantity(before.bytes, "B"), quantity(kept.limit, "B")
    if arguments.action == "clear":
        print(f"removed {before.entries} entries, {size}, from {kept.path}")
    else:
        print(f"{before.entries} entries, {size} of at most {limit}, in {kept.path}")
    return 0
