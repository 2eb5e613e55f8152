"""A library on disk: its objects, their linking by a C compiler, and the files beside it.

The C compiler is a linker here: what it links are the very objects that the JIT runs, the step
interpreter, the native program of `program.py`, and one object of tables and C functions.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from dlc.backends.aot import program
from dlc.backends.aot.interface import Interface, interface_of
from dlc.backends.aot.tables import (
    Data,
    bytes_row,
    library_row,
    llvm_text,
    model_rows,
    with_copies,
)
from dlc.backends.native import interpreter, objects
from dlc.backends.native.isa import LEVELS, Isa
from dlc.errors import (
    ArgumentError,
    CompileError,
    DependencyError,
    ExecutionError,
    TargetError,
    WeightsError,
    explain,
)
from dlc.files import destination, to_disk
from dlc.ir.plan import Plan, align
from dlc.ir.types import TensorType
from dlc.runtime.bundle import Compiled

Array: TypeAlias = "np.ndarray[Any, Any]"

# Nothing left undefined, no executable stack, read-only tables once the addresses in them are set.
_LINK = (
    "-shared",
    "-pthread",
    "-Wl,-z,defs",
    "-Wl,-z,noexecstack",
    "-Wl,-z,relro",
    "-Wl,-z,now",
    "-Wl,--as-needed",
)
# LLVM's name for any processor of an architecture: for what runs before a level is chosen.
_ANY = {"x86_64": "x86-64", "aarch64": "generic"}


def write_library(
    levels: Mapping[str, Compiled],
    parameters: Mapping[str, Array],
    path: str | os.PathLike[str],
    name: str | None = None,
    *,
    compiler: str | None = None,
) -> None:
    """Write a compiled model as a library, with `NAME.h` and `NAME.safetensors` beside it.

    Each file is written whole or stays as it was; the library comes last.

    Parameters
    ----------
    levels : mapping of str to Compiled
        The same model compiled for one or more levels of one architecture (`LEVELS`), by the
        level's name. Where the library runs, it takes the best one that the processor has.
    parameters : mapping of str to array
        By name in the state dict. All of them are stored, those that the model does not read too.
    path : path
        Of the library, usually `NAME.so`; its folder must exist.
    name : str, optional
        What the names of its C functions begin with; by default that of the library's file.
    compiler : str, optional
        The C compiler that links; by default `cc`, or for another architecture GCC's for that one.

    Raises
    ------
    ArgumentError
        `name` is no C identifier, or running the model would change its parameters.
    TargetError
        There is no such level, or the levels are of several architectures.
    WeightsError
        A parameter is missing, or is not of the type and shape that the model was compiled for.
    DependencyError
        There is no C compiler.
    CompileError
        The C compiler refuses the objects.
    ExecutionError
        The files cannot be written.
    """
    path = Path(path).absolute()
    name = path.stem if name is None else name
    ordered = _best_first(levels)
    for compiled in ordered.values():
        _check(compiled.plan, parameters)
    final = {"weights": f"{name}.safetensors", "header": f"{name}.h", "library": path.name}
    try:
        places = {made: destination(path.with_name(called)) for made, called in final.items()}
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as aside:
            folder = Path(aside)
            contents = assemble(ordered, write_weights(folder / "weights", parameters), name)
            (folder / "header").write_text(contents.interface.header())
            _link(contents, folder, path.name, compiler or _compiler(next(iter(ordered))))
            for made in final:
                to_disk(folder / made)
            for made, place in places.items():
                (folder / made).replace(place)
    except OSError as error:
        message = f"cannot write the library {str(path)!r}: {error}. Files of before are unchanged."
        raise ExecutionError(message) from error


@dataclass(frozen=True)
class Weights:
    """A file of parameters: how it begins, its bytes, and where in it each array is."""

    header: bytes
    nbytes: int
    offsets: Mapping[str, int]


@dataclass(frozen=True)
class Contents:
    """What a library is linked from, and the functions that it shows."""

    interface: Interface
    objects: Mapping[str, bytes]


def assemble(levels: Mapping[Isa, Compiled], weights: Weights, name: str) -> Contents:
    """The objects of a library; any linker makes one of them.

    Parameters
    ----------
    levels : mapping of Isa to Compiled
        The best level first.
    weights : Weights
    name : str
        What the names of the C functions begin with.
    """
    isas = list(levels)
    plans = {isa: with_copies(compiled.plan) for isa, compiled in levels.items()}
    interface = interface_of(plans[isas[0]], name, isas[-1].name)
    rows = {"library": library_row(isas), "header": bytes_row(weights.header)}
    constants = b""
    for isa, plan in plans.items():
        offsets, constants = _append(constants, levels[isa].constants)
        data = Data(weights.header, weights.nbytes, weights.offsets, offsets)
        rows |= model_rows(plan, isa, data)
    rows["constants"] = bytes_row(constants)
    kernels = sorted({kernel for plan in plans.values() for kernel in plan.kernels})
    declared = "".join(f"declare void @{kernel}(ptr, i64, i64)\n" for kernel in kernels)
    text = declared + llvm_text(rows) + interface.code()
    base = replace(isas[0], cpu=_ANY[_architecture(isas[0])], features="")
    tables = objects.build(text, interface.functions, base, (*kernels, *program.ENTRIES))
    parts = {name: code for compiled in levels.values() for name, code in compiled.objects.items()}
    return Contents(interface, {**parts, **_native(base), "tables": tables})


@cache
def _native(base: Isa) -> Mapping[str, bytes]:
    """The objects that are the same for all models."""
    return {"interpreter": interpreter.build(base), "program": program.build(base)}


def _append(blob: bytes, arrays: Mapping[str, Array]) -> tuple[dict[str, int], bytes]:
    """Bytes with arrays behind them, each where vectors are loaded best, and their offsets."""
    offsets = {}
    for name, array in arrays.items():
        blob += bytes(align(len(blob)) - len(blob))
        offsets[name] = len(blob)
        blob += array.tobytes()
    return offsets, blob


# Checks.


def _best_first(levels: Mapping[str, Compiled]) -> dict[Isa, Compiled]:
    """The levels with what was compiled for them, the best one first."""
    known = ", ".join(LEVELS)
    for level in levels:
        if level not in LEVELS:
            raise TargetError(explain("a library", f"levels among {known}", repr(level)))
    ordered = {LEVELS[level]: levels[level] for level in reversed(LEVELS) if level in levels}
    if len({isa.triple for isa in ordered}) != 1:
        got = ", ".join(levels) or "none"
        advice = "Write one library for each architecture."
        raise TargetError(explain("a library", "levels of one architecture", got, advice=advice))
    return ordered


def _check(plan: Plan, parameters: Mapping[str, Array]) -> None:
    """Refuse what a library cannot do, and parameters that do not fit."""
    changed = ", ".join(state.name for state in plan.states)
    if changed:
        raise ArgumentError(
            f"a library does not change its parameters, but running this model gives new values "
            f"to {changed}. Call eval() on the model before compiling it."
        )
    for buffer in plan.buffers:
        if buffer.role != "parameter":
            continue
        array = parameters.get(buffer.name)
        found = "none" if array is None else str(TensorType(array.dtype.name, array.shape))
        if found != str(buffer.type):
            subject = f"the parameter {buffer.name!r} of the library"
            raise WeightsError(explain(subject, str(buffer.type), found))


# Files.


def write_weights(path: Path, parameters: Mapping[str, Array]) -> Weights:
    """Write parameters as a safetensors file; two with the same header hold the same layout."""
    from safetensors.numpy import save_file

    path.touch()
    mode = path.stat().st_mode
    save_file({name: np.asarray(a, order="C") for name, a in parameters.items()}, path)
    path.chmod(mode)  # safetensors lets its owner alone read a file
    with path.open("rb") as file:
        length = file.read(8)
        header = length + file.read(int.from_bytes(length, "little"))
    entries = json.loads(header[8:])
    offsets = {name: len(header) + entries[name]["data_offsets"][0] for name in parameters}
    return Weights(header, path.stat().st_size, offsets)


def _link(contents: Contents, folder: Path, soname: str, compiler: str) -> None:
    """Link `folder / "library"`."""
    inputs = []
    for number, code in enumerate(contents.objects.values()):
        inputs.append(folder / f"{number}.o")
        inputs[-1].write_bytes(code)
    shown = "".join(f" {function};" for function in contents.interface.functions)
    (folder / "symbols").write_text(f"{{ global:{shown} local: *; }};\n")
    command: Sequence[str | Path] = (
        compiler,
        *_LINK,
        # Not by -Wl, which would split a name at its commas.
        *("-Xlinker", f"--version-script={folder / 'symbols'}"),
        *("-Xlinker", f"-soname={soname}"),
        *("-o", folder / "library"),
        *inputs,
    )
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (FileNotFoundError, PermissionError) as error:
        raise DependencyError(
            f"a library is linked by a C compiler, but {compiler} cannot be run. Install one (on "
            f"Debian: apt-get install gcc libc6-dev), or name yours with compiler=."
        ) from error
    except subprocess.CalledProcessError as error:
        raise CompileError(f"{compiler} does not link the library:\n{error.stderr}") from error


def _compiler(isa: Isa) -> str:
    """The C compiler for a level's architecture."""
    architecture = _architecture(isa)
    return "cc" if architecture == platform.machine() else f"{architecture}-linux-gnu-gcc"


def _architecture(isa: Isa) -> str:
    return isa.triple.partition("-")[0]
