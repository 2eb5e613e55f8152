"""`dlc opt`: passes over a graph, from text to text, to see what they do."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from dlc.cli import naming, output
from dlc.cli.naming import UsageError
from dlc.errors import ArgumentError

if TYPE_CHECKING:
    from dlc.ir.graph import Graph

HELP = "run passes over a graph in its text form, or over a model's"
ABOUT = f"""\
PASSES are names with commas between them, options in parentheses: `simplify,fold-bn`,
`simplify(budget=3)`; O0, O1 and O2 stand for the passes of a level, and '' for none. SOURCE is a
file in the text form, `-` for standard input, or a model:

{naming.ABOUT}

The graph goes to standard output, and is verified after each pass.

examples:
  dlc opt '' lenet5 > lenet.txt
  dlc opt O2 lenet.txt --times
  dlc opt simplify,fold-bn resnet18 --check --draw resnet18.svg
  dlc opt --list"""


def configure(parser: ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("passes", metavar="PASSES", nargs="?", help="which passes, in order")
    parser.add_argument("model", metavar="SOURCE", nargs="?", default="-", help="a graph (-)")
    parser.add_argument("inputs", metavar="INPUT", nargs="*", help="a model's inputs")
    parser.add_argument(
        "--dim",
        metavar="NAME=LOW..HIGH",
        action="append",
        default=[],
        type=naming.dim,
        help="a named size and its range",
    )
    parser.add_argument("--train", action="store_true", help="a model in training mode")
    parser.add_argument("--check", action="store_true", help="compare values after each pass")
    parser.add_argument("--times", action="store_true", help="time the passes, to standard error")
    parser.add_argument("--dump", metavar="FOLDER", help="write the graph after each pass there")
    parser.add_argument("--draw", metavar="FILE.svg", help="draw the result")
    parser.add_argument("--list", action="store_true", help="list the passes, and do nothing")
    parser.set_defaults(weights=None)


def run(arguments: Namespace) -> int:
    """Read, transform, print."""
    from dlc import passes
    from dlc.backends import reference
    from dlc.ir import manager
    from dlc.ir.values import Check

    if arguments.list:
        _list()
        return 0
    if arguments.passes is None:
        raise UsageError("dlc opt expects PASSES, such as simplify,fold-bn; --list names them")
    pipeline = passes.parse(arguments.passes)
    graph = _graph(arguments)
    with output.to("--dump", arguments.dump):
        graph, done = manager.run(
            graph,
            pipeline,
            check=Check(reference.run) if arguments.check else None,
            dump=arguments.dump,
        )
    if arguments.draw:
        with output.to("--draw", arguments.draw):
            graph.draw(arguments.draw)
    print(graph)
    if arguments.times:
        print(done, file=sys.stderr)
    return 0


def _list() -> None:
    from dlc.passes import passes
    from dlc.passes.pipelines import LEVELS

    for level, steps in LEVELS.items():
        print(f"{level:18} {', '.join(map(str, steps))}")
    for name, kind in passes().items():
        print(f"{name:18} {(kind.__doc__ or '').splitlines()[0]}")


def _graph(arguments: Namespace) -> Graph:
    from dlc.driver import trace_graph
    from dlc.ir.text import parse

    source = arguments.model
    if source == "-":
        return parse(sys.stdin.read())
    if os.path.isfile(source):
        with open(source, encoding="utf-8") as file:
            return parse(file.read())
    if not (":" in source or source in naming.zoo()):
        raise ArgumentError(f"there is no file {source!r}, and no such model in the zoo")
    return trace_graph(naming.model(arguments), *naming.inputs(arguments))
