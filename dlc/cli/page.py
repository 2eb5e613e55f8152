"""Print `docs/cli.md`: every command with its arguments, from the parsers themselves.

A page that is printed cannot fall behind the code; a test compares the two. It is not made of
argparse's help text, whose form depends on Python's version and on the terminal.
"""

from __future__ import annotations

from argparse import Action
from collections.abc import Iterator

from dlc.cli import COMMANDS, command, parser


def page() -> str:
    """The page as Markdown."""
    lines = [_HEAD]
    lines += [f"| [`dlc {name}`](#dlc-{name}) | {command(name).HELP} |" for name in COMMANDS]
    for name in COMMANDS:
        lines += ["", *_section(name)]
    return "\n".join(lines) + "\n"


def _section(name: str) -> Iterator[str]:
    about, _, examples = command(name).ABOUT.partition("examples:\n")
    made, about = parser(name), about.strip()
    yield f"## dlc {name}\n\n{made.description}\n\n{about}\n"
    yield "| argument | meaning |\n| --- | --- |"
    yield from (_row(action) for action in made._actions if action.dest != "help")
    example = "\n".join(line.removeprefix("  ") for line in examples.splitlines())
    yield f"\n```sh\n{example}\n```"


def _row(action: Action) -> str:
    value = action.metavar or (action.dest.upper() if action.nargs != 0 else "")
    if action.choices and not action.metavar:
        value = "{" + ",".join(map(str, action.choices)) + "}"
    if not action.option_strings:
        optional = action.nargs in ("?", "*")
        text = f"[{value}{' ...' if action.nargs == '*' else ''}]" if optional else str(value)
    else:
        shown = f" [{value}]" if action.nargs == "?" else f" {value}" if value else ""
        text = ", ".join(action.option_strings) + (shown if action.nargs != 0 else "")
    return f"| `{text.replace('|', chr(92) + '|')}` | {action.help} |"


_HEAD = """\
# Command line

`dlc COMMAND` or `python -m dlc COMMAND`. Every command explains itself: `dlc COMMAND --help`. With
`--json` a command prints JSON on standard output, and nothing else there. The exit code is 0 for
success, 1 for an error, and 2 where the command line cannot be read: an option that is unknown,
missing or of the wrong form, for which the usage is shown. A word of the right form that means
nothing, such as a data set that there is not, is an error. Errors are on standard error, in one
line (weights that do not fit a model take a line each); `DLC_DEBUG=1` shows where an error comes
from ([configuration](configuration.md)).

This page is printed by `python -m dlc.cli.page`.

| command | what it is for |
| --- | --- |"""


if __name__ == "__main__":
    print(page(), end="")
