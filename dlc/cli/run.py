"""`dlc run`: a model on arrays from files, or on random numbers."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from dlc.cli import naming, output
from dlc.errors import ArgumentError
from dlc.report import table

if TYPE_CHECKING:
    import numpy as np

    Array: TypeAlias = np.ndarray[Any, Any]

HELP = "compile a model and run it on arrays or random numbers"
ABOUT = f"""\
{naming.ABOUT}

Arrays come from .npy files; where a shape is given, they are random, the same in every run, and so
are weights that the model draws. With --check, the outputs are compared with the same graph in
float64, element by element, within the tolerances of torch.testing.assert_close; beyond them the
exit code is 1.

examples:
  dlc run lenet5 digits.npy --weights lenet.safetensors --output logits.npy
  dlc run model.py:Net batchx3x32x32 --dim batch=1..64 --at batch=8 --check
  dlc run resnet18 --profile --trace resnet18.json"""

#: Defaults of torch.testing.assert_close: relative and absolute, by element type.
TOLERANCES = {"float32": (1.3e-6, 1e-5), "float64": (1e-7, 1e-7)}


def configure(parser: ArgumentParser) -> None:
    """Add the arguments."""
    naming.add_arguments(parser)
    parser.add_argument("--output", metavar="FILE", help="where to write the outputs: .npy or .npz")
    parser.add_argument("--check", action="store_true", help="compare with float64")
    parser.add_argument("--profile", action="store_true", help="time every kernel")
    parser.add_argument("--trace", metavar="FILE", help="write the profile for chrome://tracing")
    add_compiler_arguments(parser)
    output.add_json(parser)


def add_compiler_arguments(parser: ArgumentParser) -> None:
    """Add what `dlc.compile` takes besides the model."""
    parser.add_argument("--target", choices=("cpu", "reference"), default="cpu", help="backend")
    parser.add_argument("--opt", choices=("O0", "O1", "O2"), default="O2", help="passes (O2)")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of a call")


def run(arguments: Namespace) -> int:
    """Compile, run, and say what came out."""
    from dlc.driver import compile
    from dlc.frontend.random import seed
    from dlc.runtime.threads import count

    output.check_ending("--output", arguments.output, (".npy", ".npz"))
    threads = count(arguments.threads)
    specs = naming.inputs(arguments)
    seed(0)
    model = naming.model(arguments)
    options = {"target": arguments.target, "opt": arguments.opt, "threads": threads}
    exe = compile(model, *specs, **options)
    arrays = naming.arrays(specs, dict(arguments.at))
    outputs = named(exe(*arrays))
    errors = _errors(model, arrays, outputs) if arguments.check else {}
    profile = exe.profile(*arrays) if arguments.profile or arguments.trace else None
    if arguments.output:
        with output.to("--output", arguments.output):
            _save(arguments.output, outputs)
    if profile and arguments.trace:
        with output.to("--trace", arguments.trace):
            profile.chrome_trace(arguments.trace)
    if arguments.json:
        found = {"outputs": {name: _facts(each) for name, each in outputs.items()}}
        found |= {"errors": errors} if arguments.check else {}
        found |= {"profile": profile.as_dict()} if profile else {}
        output.show_json(found)
    else:
        output.show(_table(outputs), *_verdicts(errors), *([profile] if profile else []))
    return int(any(not each["within"] for each in errors.values()))


def named(result: Any) -> dict[str, Array]:
    """The arrays in a result by name: its keys, its places, or ``output``."""
    if isinstance(result, Mapping):
        items = [(str(key), value) for key, value in result.items()]
    elif isinstance(result, (tuple, list)):
        items = [(f"output{i}", value) for i, value in enumerate(result)]
    else:
        return {"output": result}
    found: dict[str, Array] = {}
    for name, value in items:
        inner = named(value)
        found |= {name if key == "output" else f"{name}.{key}": a for key, a in inner.items()}
    return found


def _facts(array: Array) -> dict[str, Any]:
    facts: dict[str, Any] = {"shape": list(array.shape), "dtype": array.dtype.name}
    if array.size:
        numbers = array.astype("float64")
        facts |= {"min": numbers.min(), "mean": numbers.mean(), "max": numbers.max()}
        facts["first"] = numbers.ravel()[:4].tolist()
    return facts


def _table(outputs: Mapping[str, Array]) -> Any:
    rows = []
    for name, array in outputs.items():
        facts = _facts(array)
        shape = " × ".join(map(str, facts["shape"])) or "scalar"
        numbers = [f"{facts[key]:.6g}" if array.size else "" for key in ("min", "mean", "max")]
        first = ", ".join(f"{value:.6g}" for value in facts.get("first", ()))
        rows.append([name, shape, facts["dtype"], *numbers, f"{first}, …" if first else ""])
    columns = ("output", "shape", "type", "lowest", "mean", "highest", "begins with")
    return table(columns, rows, left=3)


def _errors(
    model: Any, arrays: Sequence[Array], outputs: Mapping[str, Array]
) -> dict[str, dict[str, Any]]:
    """Each output against the model's graph in float64."""
    exact = named(in_float64(model, arrays))
    return {name: difference(array, exact[name]) for name, array in outputs.items()}


def in_float64(model: Any, arrays: Sequence[Array]) -> Any:
    """What a model gives when all its arithmetic is done in float64 by NumPy."""
    from dlc.backends import reference
    from dlc.frontend.trace import trace

    traced = trace(model, *arrays)
    values = {name: variable.numpy() for name, variable in traced.parameters.items()}
    values |= {str(n.name): a for n, a in zip(traced.graph.inputs, arrays, strict=True)}
    found = reference.run(traced.graph, values, dtype="float64")
    return traced.structure.build(found[: len(found) - len(traced.graph.aliases)])


def difference(array: Array, expected: Array) -> dict[str, Any]:
    """How far an array is from what was expected: ``largest``, ``allowed`` there, ``within``."""
    import numpy as np

    relative, absolute = TOLERANCES.get(array.dtype.name, (0.0, 0.0))
    expected = np.asarray(expected, "float64")
    error = np.abs(array.astype("float64") - expected)
    allowed = absolute + relative * np.abs(expected)
    within = (error <= allowed) | (array == expected) | (np.isnan(array) & np.isnan(expected))
    largest = np.nanmax(error, initial=0.0)
    return {
        "largest": float(largest),
        "scale": float(np.nanmax(np.abs(expected), initial=0.0)),
        "within": bool(within.all()),
    }


def _verdicts(errors: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [
        f"{name} differs from float64 by {each['largest']:.3g} at most (its largest value is "
        f"{each['scale']:.3g}): {'within' if each['within'] else 'BEYOND'} the tolerances"
        for name, each in errors.items()
    ]


def _save(path: str, outputs: Mapping[str, Array]) -> None:
    import numpy as np

    if path.endswith(".npz"):
        np.savez(path, allow_pickle=False, **outputs)
        return
    if len(outputs) != 1:
        raise ArgumentError(f"--output {path} holds one array, and there are {len(outputs)}: .npz")
    np.save(path, next(iter(outputs.values())), allow_pickle=False)
