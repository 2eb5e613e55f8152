"""`dlc summary`: what each module of a model takes, gives, holds and costs."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from dlc.cli import datasets, naming, output

HELP = "what each module of a model takes, gives, holds and costs"
ABOUT = f"""\
{naming.ABOUT}

Counts of a module include the modules inside it. Bytes are those that have to be read and written
if each module computes its part by itself; a compiled model moves fewer.

examples:
  dlc summary resnet50 --depth 2
  dlc summary model.py:Net 1x3x32x32 --json"""


def configure(parser: ArgumentParser) -> None:
    """Add the arguments."""
    naming.add_arguments(parser, sizes=False)
    parser.add_argument(
        "--depth", type=datasets.positive, metavar="N", help="levels of modules to list"
    )
    output.add_json(parser)


def run(arguments: Namespace) -> int:
    """Print the summary."""
    from dlc.frontend.summary import summary

    made = summary(naming.model(arguments), *naming.inputs(arguments), depth=arguments.depth)
    if arguments.json:
        output.show_json(made.as_dict())
    else:
        output.show(made)
    return 0
