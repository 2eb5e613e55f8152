"""What MODEL and INPUT on a command line stand for.

One way for all commands: a model is found in a file, in a package or in the zoo, and an input is a
shape or a file of numbers.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import math
import os
import re
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from dlc.errors import ArgumentError, explain

if TYPE_CHECKING:
    import numpy as np

    from dlc.frontend.module import Module
    from dlc.ir.types import TensorSpec

    Array: TypeAlias = np.ndarray[Any, Any]


class UsageError(ArgumentError):
    """The command line itself is wrong."""


#: The sides of an image, with its channels, that models of the zoo take; others take the last.
IMAGES = {"lenet5": (1, 28, 28), "mlp": (1, 28, 28), "": (3, 224, 224)}

#: What every command with a model says about it, and about its inputs.
ABOUT_MODEL = """\
MODEL is `file.py:Name`, `package.module:Name`, or a name of the zoo such as `resnet18`. Name is a
Module, an instance of one, or a function without arguments that returns one."""
ABOUT = f"""\
{ABOUT_MODEL} INPUT is a shape such
as `1x3x224x224`, with an element type if it is not float32 (`1x128:int64`), or a file `x.npy`. A
size may have a name, and a range: `batchx1x28x28 --dim batch=1..64`. Models of the zoo know their
input."""


def add_arguments(parser: ArgumentParser, sizes: bool = True) -> None:
    """Add MODEL, INPUT and what goes with them; `sizes` where actual sizes are needed, too."""
    add_model(parser)
    parser.add_argument("inputs", metavar="INPUT", nargs="*", help="an input, see below")
    parser.add_argument(
        "--dim",
        metavar="NAME=LOW..HIGH",
        action="append",
        default=[],
        type=dim,
        help="a named size and its range",
    )
    if sizes:
        parser.add_argument(
            "--at",
            metavar="NAME=SIZE",
            action="append",
            default=[],
            type=size,
            help="a size to run at, by default the lowest",
        )
    parser.add_argument("--train", action="store_true", help="in training mode")


def add_model(parser: ArgumentParser) -> None:
    """Add MODEL and its weights."""
    parser.add_argument("model", metavar="MODEL", help="a model, see below")
    parser.add_argument("--weights", metavar="FILE", help="a safetensors file to load")


def dim(text: str) -> tuple[str, int, int]:
    """`batch=1..64`."""
    match = re.fullmatch(r"([A-Za-z_]\w*)=(\d+)\.\.(\d+)", text)
    if match is None or "x" in match[1] or int(match[2]) > int(match[3]):
        raise ArgumentTypeError(
            f"expects a name without an x, and a range: batch=1..64, got {text!r}"
        )
    return match[1], int(match[2]), int(match[3])


def size(text: str) -> tuple[str, int]:
    """`batch=8`."""
    match = re.fullmatch(r"([A-Za-z_]\w*)=(\d+)", text)
    if match is None:
        raise ArgumentTypeError(f"expects a name and a size: batch=8, got {text!r}")
    return match[1], int(match[2])


def seconds(text: str) -> float:
    """A duration."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ArgumentTypeError(f"expects a number of seconds above 0, got {text!r}")
    return value


def model(arguments: Namespace) -> Module:
    """The model of a command line, with its weights, in the mode asked for."""
    from dlc.frontend.module import Module
    from dlc.frontend.weights import load_weights

    made = make(arguments.model)
    if not isinstance(made, Module):
        expected = "a Module, an instance of one, or a function that returns one"
        raise ArgumentError(explain(arguments.model, expected, type(made).__name__))
    if arguments.weights:
        try:
            load_weights(made, arguments.weights)
        except FileNotFoundError:
            raise ArgumentError(f"--weights names no file: {arguments.weights!r}") from None
    return made.train(arguments.train)


def make(name: str) -> Any:
    """What a name stands for; called, if it is a class or a function."""
    check_file(name)
    found = of_zoo(name) if ":" not in name else _attribute(name)
    if not (inspect.isclass(found) or inspect.isroutine(found)):
        return found
    try:
        inspect.signature(found).bind()
    except TypeError as error:
        raise ArgumentError(
            f"{name} cannot be called without arguments ({error}); name a function that returns "
            "the model"
        ) from None
    return found()


def zoo() -> list[str]:
    """Names of the models that dlc brings along."""
    from dlc.frontend import models

    return [name for name in models.__all__ if name.islower()]


def of_zoo(name: str) -> Any:
    """The model of a name that dlc brings along."""
    from dlc.frontend import models

    if name in zoo():
        return getattr(models, name)
    near = difflib.get_close_matches(name, zoo(), 1)
    advice = f"did you mean {near[0]}?" if near else "a model of yours is file.py:Name."
    raise ArgumentError(f"there is no model {name!r} in the zoo ({', '.join(zoo())}); {advice}")


def _attribute(name: str) -> Any:
    """The object that `file.py:Name` or `package.module:Name` names."""
    place, _, path = name.rpartition(":")
    found = _file(place) if place.endswith(".py") else _module(place)
    for word in path.split("."):
        if not hasattr(found, word):
            known = [each for each in vars(found) if not each.startswith("_")]
            near = difflib.get_close_matches(word, known, 3) or known
            raise ArgumentError(f"{place} has no {word!r}; it has {', '.join(near) or 'nothing'}")
        found = getattr(found, word)
    return found


def check_file(name: str) -> None:
    """Complain about a model in a file that is not there, before anything else is done."""
    path = name.rpartition(":")[0]
    if path.endswith(".py") and not os.path.isfile(path):
        raise ArgumentError(f"there is no file {path!r} to take a model from")


def _file(path: str) -> Any:
    folder, name = os.path.split(os.path.abspath(path))
    if folder not in sys.path:  # as for a script: its neighbours can be imported
        sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location(name.removesuffix(".py"), path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(spec.name, module)
    spec.loader.exec_module(module)
    return module


def _module(name: str) -> Any:
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise ArgumentError(
            f"there is no module {name!r}, seen from {os.getcwd()}; a file is named file.py:Name"
        ) from None


# Inputs.


def inputs(arguments: Namespace) -> list[TensorSpec | Array]:
    """The inputs of a command line: shapes, and arrays from files."""
    dims = {name: (low, high) for name, low, high in arguments.dim}
    texts = arguments.inputs or [_default_input(arguments.model, dims)]
    words = {word for text in texts for word in text.partition(":")[0].split("x")}
    if unused := [name for name in dims if name not in words]:
        raise UsageError(_unknown("--dim", unused[0], [w for w in words if w.isidentifier()]))
    return [_array(text) if text.endswith(".npy") else _spec(text, dims) for text in texts]


def _unknown(option: str, name: str, known: Iterable[str]) -> str:
    names = ", ".join(sorted(known))
    expected = f"a name that an input has ({names})" if names else "an input with a named size"
    return explain(option, expected, repr(name), advice="Such an input is batchx1x28x28.")


def _default_input(name: str, dims: Mapping[str, object]) -> str:
    """The input of a model of the zoo; with a range for one name, that is its batch."""
    if ":" in name:
        raise UsageError(f"{name} has inputs that only you know; name a shape: 1x3x224x224")
    sides = IMAGES.get(name, IMAGES[""])
    batch = next(iter(dims), "1")
    return "x".join([batch, *map(str, sides)])


def _array(path: str) -> Array:
    import numpy as np

    try:
        found = np.load(path, allow_pickle=False)
    except OSError as error:
        raise ArgumentError(f"the input {path!r} cannot be read: {error.strerror}") from None
    except (ValueError, EOFError) as error:
        raise ArgumentError(f"{path} is no file of one array: {error}") from None
    if not isinstance(found, np.ndarray):
        raise ArgumentError(f"{path} is no file of one array, but an archive of several (.npz)")
    return found


def _spec(text: str, dims: Mapping[str, tuple[int, int]]) -> TensorSpec:
    from dlc.ir.sizes import Dim
    from dlc.ir.types import TensorSpec

    shape, _, dtype = text.partition(":")
    sizes: list[int | Dim] = []
    for word in shape.split("x") if shape else ():
        if word.isdigit():
            sizes.append(int(word))
        elif word in dims:
            sizes.append(Dim(word, *dims[word]))
        else:
            advice = f"Give it a range: --dim {word}=1..64." if word.isidentifier() else ""
            expected = "numbers and named sizes with an x between them"
            raise UsageError(explain(f"the input {text!r}", expected, repr(word), advice=advice))
    return TensorSpec(tuple(sizes), dtype or "float32")


def arrays(
    specs: Sequence[TensorSpec | Array], at: Mapping[str, int], seed: int = 0
) -> list[Array]:
    """Arrays to run on: normal numbers where only a shape is given, zeros and ones for integers.

    Parameters
    ----------
    specs : sequence of TensorSpec or array
    at : mapping of str to int
        Actual sizes; the lowest of a range where none is given.
    seed : int
    """
    import numpy as np

    from dlc.ir.sizes import dims, evaluate

    known = {
        d.name: d for s in specs if not isinstance(s, np.ndarray) for n in s.shape for d in dims(n)
    }
    if unknown := [name for name in at if name not in known]:
        raise UsageError(_unknown("--at", unknown[0], known))
    sizes = {name: at.get(name, each.min) for name, each in known.items()}
    rng = np.random.default_rng(seed)
    found = []
    for spec in specs:
        if isinstance(spec, np.ndarray):
            found.append(spec)
            continue
        shape = tuple(evaluate(n, sizes) for n in spec.shape)
        floats = spec.dtype.startswith("float")
        values = rng.normal(size=shape) if floats else rng.integers(0, 2, shape)
        found.append(values.astype(spec.dtype))
    return found
