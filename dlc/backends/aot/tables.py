"""A plan as rows of words: what the native program reads instead of Python objects.

A row is what a linker can fill in: numbers, and addresses of symbols. Sizes that depend on named
dimensions become little programs, so that one library serves every value in their ranges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from dlc.backends.aot import words
from dlc.backends.aot.program import feature_bits
from dlc.backends.native.isa import Isa
from dlc.errors import ShapeError
from dlc.ir.plan import SLACK, Address, Arg, Buffer, Plan, Scratch, Site, Step
from dlc.ir.sizes import Dim, Floor, Poly, Size, as_size, bounds
from dlc.ir.types import ITEMSIZE
from dlc.runtime import frame

#: A row of words: numbers, and symbols that stand for their addresses.
Row: TypeAlias = list["int | str"]
Rows: TypeAlias = Mapping[str, Row]

_BASES = {
    "header": words.BASE_FRAME,
    "arena": words.BASE_ARENA,
    "prepared": words.BASE_PREPARED,
    "parameter": words.BASE_WEIGHTS,
    "constant": words.BASE_CONSTANTS,
}
_ARRAYS = ("input", "output")


@dataclass(frozen=True)
class Data:
    """Where the bytes are that a plan refers to by name.

    Attributes
    ----------
    header : bytes
        How the file of parameters must begin; whole words.
    nbytes : int
        Bytes of that file.
    parameters, constants : mapping of str to int
        Offsets in that file, and in the row of constants.
    """

    header: bytes
    nbytes: int
    parameters: Mapping[str, int]
    constants: Mapping[str, int]


def library_row(levels: Sequence[Isa]) -> Row:
    """The row that the native program chooses a level from; the best one comes first."""
    row: Row = [len(levels)]
    for isa in levels:
        row += [feature_bits(isa), f"{isa.name}.model"]
    return row


def model_rows(plan: Plan, isa: Isa, data: Data) -> dict[str, Row]:
    """The rows of a model for one level, `NAME.model` and what it leads to, by symbol.

    Parameters
    ----------
    plan : Plan
        As `with_copies` makes it.
    isa : Isa
    data : Data

    Raises
    ------
    ShapeError
        If a size can exceed 64 bits.
    """
    sizes = Sizes(plan.dims)
    rows: dict[str, Row] = {}
    for name, steps in (("prepare", plan.prepare), ("main", plan.main)):
        table, arguments = _steps(steps), _arguments(plan, steps, sizes, data)
        rows[f"{isa.name}.{name}.steps"], rows[f"{isa.name}.{name}.arguments"] = table, arguments
        row: Row = [0] * words.PROGRAM_WORDS
        row[words.PROGRAM_STEPS] = len(steps)
        row[words.PROGRAM_STEP_TABLE] = f"{isa.name}.{name}.steps"
        row[words.PROGRAM_ARGUMENTS] = len(arguments) // words.ARGUMENT_WORDS
        row[words.PROGRAM_ARGUMENT_TABLE] = f"{isa.name}.{name}.arguments"
        rows[f"{isa.name}.{name}"] = row
    rows[f"{isa.name}.sizes"] = sizes.table
    rows[f"{isa.name}.ranges"] = [bound for dim in plan.dims for bound in (dim.min, dim.max)]
    texts = {f"{isa.name}.site.{i}": text_row(_expects(site)) for i, site in enumerate(plan.sites)}
    rows |= texts | {f"{isa.name}.sites": list(texts)}
    rows[f"{isa.name}.name"] = text_row(isa.name)
    rows[f"{isa.name}.model"] = _model(plan, isa, data, len(sizes))
    return rows


def _model(plan: Plan, isa: Isa, data: Data, sizes: int) -> Row:
    row: Row = [0] * words.MODEL_WORDS
    row[words.MODEL_NAME] = f"{isa.name}.name"
    row[words.MODEL_HEADER] = "header"
    row[words.MODEL_HEADER_WORDS] = len(data.header) // 8
    row[words.MODEL_WEIGHTS_BYTES] = data.nbytes
    row[words.MODEL_CONSTANTS] = "constants"
    row[words.MODEL_PREPARED_BYTES] = plan.prepared + SLACK
    row[words.MODEL_ARENA_BYTES] = plan.arena
    row[words.MODEL_SCRATCH_BYTES] = bounds(plan.scratch)[1]
    row[words.MODEL_DIMS] = len(plan.dims)
    row[words.MODEL_RANGE_TABLE] = f"{isa.name}.ranges"
    row[words.MODEL_POINTERS] = len(plan.inputs) + len(plan.outputs)
    row[words.MODEL_SIZES] = sizes
    row[words.MODEL_SIZE_TABLE] = f"{isa.name}.sizes"
    row[words.MODEL_PREPARE] = f"{isa.name}.prepare"
    row[words.MODEL_MAIN] = f"{isa.name}.main"
    row[words.MODEL_SITE_TABLE] = f"{isa.name}.sites"
    return row


def _expects(site: Site) -> str:
    """What an op that reads indices expects of them."""
    where = f" ({site.module})" if site.module else ""
    return f"{site.op}{where} expects {site.what} from 0 to {as_size(site.extent) - 1}"


def _steps(steps: Sequence[Step]) -> Row:
    table: Row = []
    arguments = 0
    for step in steps:
        row: Row = [0] * frame.STEP_WORDS
        row[frame.STEP_KERNEL] = step.kernel
        row[frame.STEP_ARGUMENTS] = arguments
        row[frame.STEP_FLAGS] = frame.flags(step.barrier, step.guarded)
        table += row
        arguments += len(step.args)
    return table


def _arguments(plan: Plan, steps: Sequence[Step], sizes: Sizes, data: Data) -> Row:
    """The argument table of a program: a base and a size each."""
    numbers = [*plan.inputs, *plan.outputs]
    keys = [(plan.buffers[number].role, plan.buffers[number].name) for number in numbers]
    arrays = {key: words.BASE_ARRAYS + i for i, key in enumerate(keys)}

    def place(arg: Arg) -> tuple[int, Size]:
        if isinstance(arg, Scratch):
            return words.BASE_SCRATCH, 0
        if not isinstance(arg, Address):
            return words.BASE_NONE, arg
        buffer = plan.buffers[arg.buffer]
        offset = as_size(arg.elements) * ITEMSIZE[buffer.type.dtype] + _start(buffer, data)
        if buffer.role in _ARRAYS:
            return arrays[buffer.role, buffer.name], offset
        return _BASES[buffer.role], offset

    table: Row = []
    for step in steps:
        for arg in step.args:
            base, size = place(arg)
            table += [base, sizes.number(size)]
    return table


def _start(buffer: Buffer, data: Data) -> int:
    """Bytes from a buffer's base to the buffer."""
    if buffer.role == "parameter":
        return data.parameters[buffer.name]
    if buffer.role == "constant":
        return data.constants[buffer.name]
    return buffer.offset


class Sizes:
    """The distinct sizes of a plan, numbered, the dimensions first; `program.evaluate` says how
    the others are written down in `table`."""

    def __init__(self, dims: Sequence[Dim]) -> None:
        self.table: Row = []
        self._numbers: dict[Size | Dim | Floor, int] = {dim: i for i, dim in enumerate(dims)}

    def __len__(self) -> int:
        return len(self._numbers)

    def number(self, size: Size) -> int:
        """The number of a size, which gets one and a program where it has none."""
        return self._number(size, size, 1)

    def _number(self, key: Size | Floor, size: Size, divisor: int) -> int:
        if key not in self._numbers:
            terms = size.terms if isinstance(size, Poly) else {(): size}
            if max(map(abs, bounds(size))) >= 1 << 63:
                raise ShapeError(
                    f"the size {size} can exceed 64 bits; narrow the ranges of its dims"
                )
            program: Row = [divisor, len(terms)]
            for atoms, coefficient in terms.items():
                program += [coefficient, len(atoms), *map(self._atom, atoms)]
            self.table += program
            self._numbers[key] = len(self._numbers)
        return self._numbers[key]

    def _atom(self, atom: Dim | Floor) -> int:
        if isinstance(atom, Floor):
            return self._number(atom, atom.numerator, atom.divisor)
        return self._numbers[atom]


def with_copies(plan: Plan) -> Plan:
    """The plan with an array of the caller's for each result.

    Where a result is an argument, a parameter or another result as it is, a last step copies it.
    """
    buffers, outputs, copies = list(plan.buffers), [], []
    written = set()
    for number in plan.outputs:
        buffer = plan.buffers[number]
        if buffer.role != "output" or buffer.name in written:
            outputs.append(len(buffers))
            buffers.append(Buffer(f"copy {len(buffers)}", "output", buffer.type, buffer.layout))
            args = (Address(outputs[-1]), Address(number), buffer.nbytes)
            copies.append(Step("dlc_copy", args, label="copy"))
        else:
            written.add(buffer.name)
            outputs.append(number)
    main = list(plan.main)
    if copies and main:
        main[-1] = replace(main[-1], barrier=True)
    return replace(plan, buffers=tuple(buffers), outputs=tuple(outputs), main=(*main, *copies))


def text_row(text: str) -> Row:
    """A C string as a row."""
    return bytes_row(text.encode() + b"\0")


def bytes_row(data: bytes) -> Row:
    """Bytes as a row, with zeros behind them up to a whole word."""
    row: Row = np.frombuffer(data + bytes(-len(data) % 8), "<i8").tolist()
    return row


def llvm_text(rows: Rows) -> str:
    """Rows as constants of an LLVM module, each on a line of its own."""
    lines = []
    for name, row in rows.items():
        values = ", ".join(
            f'i64 ptrtoint (ptr @"{word}" to i64)' if isinstance(word, str) else f"i64 {word}"
            for word in row
        )
        kind = f"[{len(row)} x i64]"
        lines.append(f'@"{name}" = internal constant {kind} [{values}], align {8 * frame.LINE}\n')
    return "".join(lines)
