"""The command line: `dlc` and `python -m dlc`, one file a command.

In the order in which a new user meets them:

demo      handwritten digits, learned, compared with PyTorch and told on a page
train     a model learns a data set
evaluate  a trained model on data: its figures, and what it mistakes for what
summary   what each module of a model takes, gives, holds and costs
run       a model on arrays or random numbers
bench     a model's time, its share of the machine's peak, and PyTorch's time beside it
diff      a model beside its PyTorch twin, layer by layer, and where they first differ
opt       passes over a graph in its text form
doctor    a report of machine, versions and options
cache     the compiled kernels on disk

naming    what MODEL and INPUT stand for
datasets  what DATA stands for
turns     timing, each side in its own process
sides     what runs in these processes
page      prints docs/cli.md

A command is loaded when it is named, and what it needs when it runs, so that help comes at once.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import traceback
import warnings
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from types import ModuleType, TracebackType
from typing import Any, TextIO

from dlc import config
from dlc.cli import naming
from dlc.errors import Error, OptionError

__all__ = ["COMMANDS", "command", "main", "overview", "parser"]

COMMANDS = (
    *("demo", "train", "evaluate", "summary", "run", "bench", "diff", "opt", "doctor", "cache"),
)
USAGE = 2  # exit code where the command line itself is wrong


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        Without the program's name; by default those of this process.

    Returns
    -------
    int
        The exit code: 0 for success, 1 for an error, which is one line on standard error unless
        `DLC_DEBUG` is set.

    Raises
    ------
    SystemExit
        With code 2, if the command line is wrong; with 0, after `--help`.
    """
    if arguments is None:
        sys.excepthook = _one_line
        arguments = sys.argv[1:]
    warnings.showwarning = _show_warning
    try:
        return _dispatch(list(arguments))
    except BrokenPipeError:  # the reader, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (Error, OSError) as error:
        if _debugging():
            traceback.print_exc()
        else:
            print(f"dlc: {error}", file=sys.stderr)
        return USAGE if isinstance(error, naming.UsageError) else 1
    except KeyboardInterrupt:
        print("dlc: interrupted", file=sys.stderr)
        return 130


def _dispatch(arguments: list[str]) -> int:
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help", "help"):
        print(overview())
        return 0
    if name == "--version":
        print(sys.modules["dlc"].__version__)
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        advice = f"; did you mean {near[0]}?" if near else f" ({', '.join(COMMANDS)})"
        print(f"dlc: there is no command {name!r}{advice}", file=sys.stderr)
        return USAGE
    given = parser(name).parse_intermixed_args(rest)
    code: int = command(name).run(given)
    return code


def command(name: str) -> Any:
    """The module of a command: `HELP`, `ABOUT`, `configure(parser)` and `run(arguments)`."""
    return importlib.import_module(f"dlc.cli.{name}")


def parser(name: str) -> ArgumentParser:
    """The parser of a command's arguments."""
    module: ModuleType = command(name)
    about = f"{module.HELP[0].upper()}{module.HELP[1:]}"
    made = ArgumentParser(
        prog=f"dlc {name}",
        description=about if about.endswith("?") else f"{about}.",
        epilog=module.ABOUT,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.configure(made)
    return made


def overview() -> str:
    """What `dlc --help` prints."""
    lines = [f"  {name:9} {command(name).HELP}" for name in COMMANDS]
    return _OVERVIEW.format(commands="\n".join(lines))


_OVERVIEW = """\
usage: dlc COMMAND [options]

A deep-learning compiler: models in Python become native kernels.

commands:
{commands}

`dlc COMMAND --help` explains a command, with examples. To begin with:

  dlc demo                           what dlc does, on this machine
  dlc train lenet5 --data digits     a model that learns to read digits
  dlc summary resnet18               a model of the zoo, module by module
  dlc bench lenet5 --torch           its time beside PyTorch's
  dlc run model.py:Net 1x3x32x32     a model of yours, compiled and run

Errors are one line and exit code 1 (2 for a wrong command line); DLC_DEBUG=1 shows where they come
from, and more up to DLC_DEBUG=7. `dlc doctor` lists all environment variables."""


_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


def _debugging() -> bool:
    try:
        return bool(config.get("debug"))
    except OptionError:  # it may be the very error to be reported
        return False


def _one_line(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Report an exception that nobody expected, such as one of the user's model."""
    if _debugging():
        traceback.print_exception(kind, error, trace)
        return
    frames = traceback.extract_tb(trace)
    ours = (_PACKAGE, "<frozen ")
    last = [each for each in frames if not each.filename.startswith(ours)][-1:]
    where = "".join(f" ({os.path.basename(each.filename)}:{each.lineno})" for each in last)
    text = str(error).strip() or "no message"
    if isinstance(error, SyntaxError):  # it names its place, which is not where it was raised
        where = ""
    print(f"dlc: {kind.__name__}: {text}{where}; DLC_DEBUG=1 shows the way there", file=sys.stderr)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    print(f"dlc: warning: {message}", file=sys.stderr)
