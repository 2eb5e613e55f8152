"""A square block of a matrix transposed in registers.

What is contiguous on one side of a movement is often apart on the other. A block as wide as a
vector is loaded by rows and stored by columns, so that memory sees whole vectors on both sides; in
between its rows are interleaved with each other, log2 of its width times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from dlc.backends.native.frontend import Param
from dlc.backends.native.isa import Isa
from dlc.backends.numba_cpu.kernel import NativeFunction
from dlc.backends.numba_cpu.vectors import PLAIN, VectorFunction, module_text, word


@dataclass(frozen=True)
class TransposeTile(NativeFunction):
    """A native function that transposes a block of as many rows and columns as a vector has lanes.

    In C: `void name(x, x_row, y, y_row)`, which for all i and j below `width` does
    y[j y_row + i] = x[i x_row + j].

    Attributes
    ----------
    isa : Isa
    dtype : str
        "float32" or "float64".
    """

    isa: Isa
    dtype: str

    @property
    def width(self) -> int:
        """Rows and columns of the block."""
        return self.isa.lanes(self.dtype)

    @property
    def name(self) -> str:
        """The symbol."""
        return f"transpose_{self.isa.symbol}_{self.width}_{self.dtype}"

    @property
    def params(self) -> tuple[Param, ...]:
        """The parameters in order."""
        pointer = f"{self.dtype}*"
        x = (Param("x", pointer), Param("x_row", "int64"))
        return (*x, Param("y", pointer), Param("y_row", "int64"))

    def text(self) -> str:
        """The LLVM module that defines it."""
        return module_text(self, lambda function: _Body(self, function))

    def twin(self) -> Callable[..., None]:
        """The same function in plain Python, for `python_twin.run`."""

        def transpose(x: Any, x_row: int, y: Any, y_row: int) -> None:
            for i in range(self.width):
                for j in range(self.width):
                    y[j * y_row + i] = x[i * x_row + j]

        return transpose


class _Body(VectorFunction):
    """Emits the function."""

    def __init__(self, tile: TransposeTile, function: ir.Function) -> None:
        super().__init__(function, tile.params, tile.isa, tile.dtype, PLAIN)

    def emit(self) -> None:
        """Loads, rounds of interleaving, stores; log2 of the lanes is the number of rounds."""
        rows = [self.load(self._row("x", i)) for i in range(self.lanes)]
        for _ in range(self.lanes.bit_length() - 1):
            half = self.lanes // 2
            pairs = zip(rows[:half], rows[half:], strict=True)
            rows = [each for a, b in pairs for each in self._interleaved(a, b)]
        for j, value in enumerate(rows):
            self.store(value, self._row("y", j))
        self.builder.ret_void()

    def _interleaved(self, a: ir.Value, b: ir.Value) -> Sequence[ir.Value]:
        """a0 b0 a1 b1 ..., as two vectors."""
        lanes, kind = self.lanes, ir.VectorType(ir.IntType(32), self.lanes)
        order = [lane for i in range(lanes) for lane in (i, lanes + i)]
        masks = (ir.Constant(kind, order[:lanes]), ir.Constant(kind, order[lanes:]))
        return [self.builder.shuffle_vector(a, b, mask) for mask in masks]

    def _row(self, name: str, i: int) -> ir.Value:
        return self.at(self.arg[name], self.builder.mul(self.arg[f"{name}_row"], word(i)))
