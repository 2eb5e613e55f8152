"""`dlc diff`: a model beside its PyTorch twin, layer by layer; and where they first differ."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from typing import Any

from dlc.cli import bench, naming, output
from dlc.errors import ArgumentError, explain

HELP = "where a model first differs from its PyTorch twin: rounding, or a bug?"
ABOUT = f"""\
{naming.ABOUT}

Every layer is compiled and fed with what PyTorch's layer reads; its error against float64 is
compared with PyTorch's own, with what rounding can do and, for linear layers, with the bound that
no rounding can exceed. --torch names the PyTorch model as MODEL does; a model of the zoo knows its
twin. The model takes the twin's weights, unless --keep-weights leaves it its own (or those of
--weights). The exit code is 0 only if the two are equal up to rounding.

examples:
  dlc diff lenet5
  dlc diff resnet18 2x3x64x64 --gradients --html diff.html
  dlc diff model.py:Net 1x3x32x32 --torch model.py:TorchNet --json"""


def configure(parser: ArgumentParser) -> None:
    """Add the arguments."""
    naming.add_arguments(parser)
    parser.add_argument("--torch", metavar="MODEL", default="", help="the PyTorch model")
    parser.add_argument("--keep-weights", action="store_true", help="leave each its own weights")
    parser.add_argument("--gradients", action="store_true", help="compare gradients, too")
    parser.add_argument("--html", metavar="FILE", help="write the report as a page for a browser")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of compiled code")
    output.add_json(parser)


def run(arguments: Namespace) -> int:
    """Compare and print."""
    from dlc.progress import bar
    from dlc.runtime.threads import count

    naming.check_file(arguments.torch)
    output.check_folder("--html", arguments.html)
    threads = count(arguments.threads)
    model = naming.model(arguments)
    twin = _twin(arguments.torch or bench.torch_twin(arguments.model))
    twin.train(arguments.train)
    if not arguments.keep_weights and not arguments.weights:
        own = model.state_dict()
        fitting = {
            name: tensor
            for name, tensor in twin.state_dict().items()
            if name in own and own[name].shape == tuple(tensor.shape)
        }
        model.load_state_dict(fitting, strict=False)
    arrays = naming.arrays(naming.inputs(arguments), dict(arguments.at))
    from dlc.testing.diff import diff

    with bar(f"comparing {arguments.model}"):
        report = diff(model, twin, *arrays, gradients=arguments.gradients, threads=threads)
    if arguments.html:
        report.html(arguments.html)
    if arguments.json:
        output.show_json(report.as_dict())
    else:
        output.show(report)
    return 0 if report.ok else 1


def _twin(name: str) -> Any:
    """The PyTorch model of a name; only a module that loads PyTorch can hold one."""
    made, torch = naming.make(name), sys.modules.get("torch")
    if torch is None or not isinstance(made, torch.nn.Module):
        expected = "a torch.nn.Module, or a function that returns one"
        raise ArgumentError(explain(f"--torch {name}", expected, type(made).__name__))
    return made
