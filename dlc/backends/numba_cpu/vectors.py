"""What functions written in LLVM share: vectors in memory, masks, loops, and the epilogue.

Tiles are built from these few pieces, so that each of them shows its loops and little else.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from llvmlite import ir

from dlc.backends.native.emit import Emitter, emit_expression
from dlc.backends.native.frontend import Param
from dlc.backends.native.isa import Isa
from dlc.backends.native.python_twin import python_namespace
from dlc.backends.numba_cpu.kernel import NativeFunction
from dlc.errors import CompileError
from dlc.ir.sizes import Size
from dlc.ir.types import ITEMSIZE

#: An expression of more operations than this is emitted in a loop rather than for each accumulator.
SHORT = 8
_CALLS = frozenset({"relu", "abs", "fma", "fmax", "fmin"})

WORD = ir.IntType(64)
POINTER = ir.PointerType()
_LANE = ir.IntType(32)


@dataclass(frozen=True)
class Operand:
    """A value in an epilogue besides `acc`.

    Attributes
    ----------
    name : str
        Its name in the expression, and of its parameter.
    kind : str
        "column": one element for each column, contiguous. "full": one for each row and column,
        contiguous along the columns. "scalar": one for all, where a contraction can read it.
    """

    name: str
    kind: str

    def __post_init__(self) -> None:
        if self.kind not in ("column", "full", "scalar"):
            kinds = '"column", "full" or "scalar"'
            raise CompileError(f"operand {self.name} is {kinds}, not {self.kind!r}")


@dataclass(frozen=True)
class Epilogue:
    """What becomes of a sum at the store.

    Attributes
    ----------
    expression : str
        Over `acc`, the operands' names and numbers, as `emit.emit_expression` reads it.
    operands : tuple of Operand
        A full operand may be y itself: `acc + y` accumulates.
    also : tuple of str
        Expressions of further results, where a store writes several.
    """

    expression: str = "acc"
    operands: tuple[Operand, ...] = ()
    also: tuple[str, ...] = ()

    @property
    def results(self) -> dict[str, str]:
        """The expressions by the names of what they are written to: y, y1, y2 and so on."""
        more = {f"y{number}": text for number, text in enumerate(self.also, start=1)}
        return {"y": self.expression} | more

    @property
    def columns(self) -> tuple[Operand, ...]:
        """The operands of kind "column"."""
        return tuple(operand for operand in self.operands if operand.kind == "column")

    @property
    def fulls(self) -> tuple[Operand, ...]:
        """The operands of kind "full"."""
        return tuple(operand for operand in self.operands if operand.kind == "full")

    @property
    def scalars(self) -> tuple[Operand, ...]:
        """The operands of kind "scalar"."""
        return tuple(operand for operand in self.operands if operand.kind == "scalar")

    @property
    def short(self) -> bool:
        """Whether the expression is cheap enough to be repeated for every accumulator."""
        nodes = list(ast.walk(ast.parse(self.expression, mode="eval")))
        calls = {ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)}
        operations = sum(isinstance(node, ast.operator | ast.Call | ast.Compare) for node in nodes)
        return calls <= _CALLS and operations <= SHORT

    def digest(self, *more: object) -> str:
        """A name for this epilogue and whatever else makes a function another one."""
        return hashlib.sha256(repr((self, more)).encode()).hexdigest()[:12]

    def places(
        self, y: tuple[Size, ...], given: Mapping[str, tuple[Size, ...]] | None
    ) -> dict[str, tuple[Size, ...]]:
        """Strides of y and of each full operand, by name: those given, else those of y."""
        return {"y": y} | {each.name: (given or {}).get(each.name, y) for each in self.fulls}

    def twin(self) -> Callable[[Mapping[str, Any]], Any]:
        """The expression in plain Python: a function of `acc` and the operands by name."""
        return self.twins()["y"]

    def twins(self) -> dict[str, Callable[[Mapping[str, Any]], Any]]:
        """The same for each result."""
        names = python_namespace()

        def function(text: str) -> Callable[[Mapping[str, Any]], Any]:
            code = compile(text, "<epilogue>", "eval")
            return lambda values: eval(code, dict(names), values)

        return {name: function(text) for name, text in self.results.items()}


#: The sum as it is.
PLAIN = Epilogue()


class Tiled(Protocol):
    """A function that computes rows of columns, and what becomes of them."""

    @property
    def params(self) -> tuple[Param, ...]:
        """Its parameters, among them `rows` and `columns`."""

    @property
    def epilogue(self) -> Epilogue:
        """What is stored."""


class Emits(Protocol):
    """What emits the body of a function."""

    def emit(self) -> None:
        """Emit all of it."""


def tile_twin(
    tile: Tiled,
    total: Callable[[Mapping[str, Any], int, int], Any],
    row: Callable[[Mapping[str, Any], str, int], int],
) -> Callable[..., None]:
    """A tile of rows and columns in plain Python, for `python_twin.run`.

    Of its arguments by name and of i and j, ``total(arg, i, j)`` gives the sum, and
    ``row(arg, name, i)`` where row i of y or of a full operand begins.
    """
    names, epilogue = [param.name for param in tile.params], tile.epilogue
    expression = epilogue.twin()

    def run(*arguments: Any) -> None:
        arg = dict(zip(names, arguments, strict=True))
        for i in range(arg["rows"]):
            for j in range(arg["columns"]):
                values = {"acc": total(arg, i, j)}
                values |= {each.name: arg[each.name][j] for each in epilogue.columns}
                for each in epilogue.fulls:
                    values[each.name] = arg[each.name][row(arg, each.name, i) + j]
                arg["y"][row(arg, "y", i) + j] = expression(values)

    return run


def word(value: int) -> ir.Constant:
    """An int64 constant."""
    return ir.Constant(WORD, value)


def declare(module: ir.Module, name: str, params: Sequence[Param]) -> ir.Function:
    """A function without a result, of `params`, in `module`."""
    kinds = [POINTER if param.is_pointer else WORD for param in params]
    return ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), name)


def module_text(native: NativeFunction, body: Callable[[ir.Function], Emits]) -> str:
    """The LLVM module of a function that is one body."""
    module = ir.Module(native.name)
    body(declare(module, native.name, native.params)).emit()
    return str(module)


def declare_internal(module: ir.Module, name: str, params: Sequence[Param]) -> ir.Function:
    """The same, not visible outside the object and never inlined."""
    function = declare(module, name, params)
    function.linkage = "internal"
    function.attributes.add("noinline")
    return function


class VectorFunction:
    """Emits one function over vectors of `dtype`, as long as registers or of `lanes` elements; its
    arguments are in `arg` by name.
    """

    def __init__(
        self,
        function: ir.Function,
        params: Sequence[Param],
        isa: Isa,
        dtype: str,
        epilogue: Epilogue,
        lanes: int = 0,
    ) -> None:
        self.function, self.epilogue = function, epilogue
        self.arg = {param.name: value for param, value in zip(params, function.args, strict=True)}
        self.lanes, self.bytes = lanes or isa.lanes(dtype), ITEMSIZE[dtype]
        self.element = ir.FloatType() if dtype == "float32" else ir.DoubleType()
        self.vector = ir.VectorType(self.element, self.lanes)
        self.zero = ir.Constant(self.vector, None)
        self.builder = ir.IRBuilder(function.append_basic_block("entry"))
        self.emitter = Emitter(self.builder, self.vector, isa)

    # Memory.

    def at(self, pointer: ir.Value, offset: ir.Value | int) -> ir.Value:
        """`pointer` moved by `offset` elements."""
        offset = word(offset) if isinstance(offset, int) else offset
        return self.builder.gep(pointer, [offset], source_etype=self.element)

    def load(self, pointer: ir.Value, mask: ir.Value | None = None) -> ir.Value:
        """The vector at a pointer; zero where `mask` is not set, and not read there."""
        if mask is not None:
            return self._masked("load", self.vector, [pointer, mask, self.zero])
        value = self.builder.load(pointer, typ=self.vector)
        value.align = self.bytes
        return value

    def store(self, value: ir.Value, pointer: ir.Value, mask: ir.Value | None = None) -> None:
        """Write a vector, where `mask` is set."""
        if mask is not None:
            self._masked("store", ir.VoidType(), [value, pointer, mask])
        else:
            self.builder.store(value, pointer).align = self.bytes

    def masks(self, count: ir.Value, vectors: int = 1) -> list[ir.Value]:
        """For each of `vectors`, which of its lanes are among the first `count`."""
        b, kind = self.builder, ir.VectorType(_LANE, self.lanes)
        empty, zeros = ir.Constant(kind, ir.Undefined), ir.Constant(kind, None)
        first = b.insert_element(empty, b.trunc(count, _LANE), ir.Constant(_LANE, 0))
        limit = b.shuffle_vector(first, empty, zeros)
        starts = range(0, vectors * self.lanes, self.lanes)
        numbers = [list(range(start, start + self.lanes)) for start in starts]
        return [b.icmp_signed("<", ir.Constant(kind, each), limit) for each in numbers]

    def _masked(self, name: str, result: ir.Type, operands: Sequence[ir.Value]) -> ir.Value:
        symbol = f"llvm.masked.{name}.v{self.lanes}f{8 * self.bytes}.p0"
        module = self.builder.module
        function = module.globals.get(symbol)
        if function is None:
            kind = ir.FunctionType(result, [operand.type for operand in operands])
            function = ir.Function(module, kind, symbol)
        return self.builder.call(function, operands)

    # Control.

    def blocks(self, *names: str) -> list[ir.Block]:
        """New basic blocks."""
        return [self.function.append_basic_block(name) for name in names]

    def phi(self, kind: ir.Type) -> Any:
        """A value that depends on where control comes from; `feed` says what it is."""
        return self.builder.phi(kind)

    def feed(self, phis: Sequence[Any], values: Sequence[ir.Value], block: ir.Block) -> None:
        """What the phis are when control comes from `block`."""
        for phi, value in zip(phis, values, strict=True):
            phi.add_incoming(value, block)

    def rolled(self, branch: Any) -> None:
        """Forbid LLVM to unroll the loop that `branch` closes: unrolled, accumulators spill."""
        module = self.builder.module
        disable = module.add_metadata([ir.MetaDataString(module, "llvm.loop.unroll.disable")])
        loop = ir.MDValue(module, [disable], name=str(len(module.metadata)))
        loop.operands = (loop, disable)  # a loop's name is a node that holds itself
        branch.set_metadata("llvm.loop", loop)

    # The epilogue.

    def expression(self, values: Mapping[str, ir.Value]) -> ir.Value:
        """The epilogue's expression over vectors."""
        return emit_expression(self.emitter, self.epilogue.expression, values)

    def expressions(self, values: Mapping[str, ir.Value]) -> dict[str, ir.Value]:
        """All results of the epilogue over vectors, by name."""
        texts = self.epilogue.results
        return {name: emit_expression(self.emitter, text, values) for name, text in texts.items()}
