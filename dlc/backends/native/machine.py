"""Native programs that are not kernels: Python functions over words, and what Python cannot say.

The step interpreter and the entry from Python need atomic words, system calls and indirect calls.
Those are *primitives*: Python stubs whose body is LLVM text. All else is plain Python over integers
and rows of words, which Numba lowers function by function; `program` collects what its entries
call, and LLVM inlines at will.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any, TypeAlias

from dlc.backends.native import objects
from dlc.backends.native.frontend import Param, lower_function
from dlc.backends.native.isa import Isa
from dlc.runtime.exclusive import exclusive, importing

Words: TypeAlias = Any  # a row of int64 words: int64_t * in C

_TYPES = {"Words": "int64*", "int": "int64"}
_ARCHITECTURES = ("x86_64", "aarch64")


@dataclass(frozen=True)
class Primitive:
    """A function of a program that is written in LLVM's text.

    Attributes
    ----------
    stub : function
        Gives it its name, its parameters and, as annotations, their types.
    bodies : mapping of str to str
        The text, by architecture.
    declarations : tuple of str
        What the text calls.
    """

    stub: FunctionType
    bodies: Mapping[str, str]
    declarations: tuple[str, ...]

    def text(self, architecture: str) -> str:
        """An LLVM module that defines it, always to be inlined."""
        parameters, result = signature(self.stub)
        declared = ", ".join(f"{param.llvm} %{param.name}" for param in parameters)
        head = f"define {result.llvm} @{self.stub.__name__}({declared}) alwaysinline"
        lines = [*self.declarations, f"{head} {{", self.bodies[architecture], "}", ""]
        return "\n".join(lines)


def primitive(
    *declarations: str, body: str = "", **bodies: str
) -> Callable[[FunctionType], Primitive]:
    """Make a stub a primitive: `body` for every architecture, or one text for each."""
    texts = dict.fromkeys(_ARCHITECTURES, body) | bodies
    return lambda stub: Primitive(stub, texts, declarations)


def c_function(symbol: str, returns: str = "i64") -> Callable[[FunctionType], Primitive]:
    """Make a stub a C function, which returns a word ("i64"), an int ("i32") or nothing ("void").

    A parameter that C calls `int` may be declared `int` here too: its upper half is not looked at.
    """
    endings = {
        "i64": "ret i64 %returned",
        "i32": "%wide = sext i32 %returned to i64\nret i64 %wide",
        "void": "ret i64 0",
    }

    def wrap(stub: FunctionType) -> Primitive:
        parameters = signature(stub)[0]
        kinds = ", ".join(param.llvm for param in parameters)
        arguments = ", ".join(f"{param.llvm} %{param.name}" for param in parameters)
        left = "" if returns == "void" else "%returned = "
        body = f"{left}call {returns} @{symbol}({arguments})\n{endings[returns]}"
        texts = dict.fromkeys(_ARCHITECTURES, body)
        return Primitive(stub, texts, (f"declare {returns} @{symbol}({kinds})",))

    return wrap


def system_call(**numbers: int) -> Callable[[FunctionType], Primitive]:
    """Make a stub a system call of Linux, given its number on each architecture."""

    def wrap(stub: FunctionType) -> Primitive:
        arguments = "".join(f", {param.llvm} %{param.name}" for param in signature(stub)[0])
        bodies = {
            name: f"%result = call i64 (i64, ...) @syscall(i64 {number}{arguments})\n"
            "ret i64 %result"
            for name, number in numbers.items()
        }
        return Primitive(stub, bodies, ("declare i64 @syscall(i64, ...)",))

    return wrap


@exclusive()
def program(
    entries: Sequence[FunctionType],
    isa: Isa,
    externs: Sequence[str] = (),
    internal: Sequence[FunctionType] = (),
) -> bytes:
    """Build functions, and all that they call, into one object.

    Parameters
    ----------
    entries : sequence of functions
        What is visible in the object, as C functions of the same names. Parameters and result are
        annotated `Words` or `int` (`int64_t`); the body uses integers, words, loops, branches,
        functions and primitives of its module, and constants.
    isa : Isa
        The level to build for.
    externs : sequence of str
        Symbols that the object may leave undefined.
    internal : sequence of functions
        More functions, called by the text of a primitive only.

    Returns
    -------
    bytes
        A relocatable ELF object.
    """
    with importing():
        import llvmlite.binding as llvm

    architecture = isa.triple.partition("-")[0]
    texts = [
        part.text(architecture) if isinstance(part, Primitive) else _lower(part, isa)
        for part in _reachable([*entries, *internal])
    ]
    module = llvm.parse_assembly("")
    for text in texts:
        module.link_in(llvm.parse_assembly(text))
    return objects.build(str(module), [f.__name__ for f in entries], isa, externs)


def signature(function: FunctionType) -> tuple[list[Param], Param]:
    """A function's parameters and its result, from its annotations."""
    kinds = inspect.get_annotations(function)
    result = Param("result", _TYPES[kinds.pop("return")])
    return [Param(name, _TYPES[kind], noalias=False) for name, kind in kinds.items()], result


def _reachable(entries: Iterable[FunctionType]) -> list[FunctionType | Primitive]:
    """The entries and the functions and primitives that they call, each once."""
    found: list[FunctionType | Primitive] = list(entries)
    for part in found:  # it grows as we go
        if isinstance(part, FunctionType):
            for value in _globals(part).values():
                if isinstance(value, FunctionType | Primitive) and value not in found:
                    found.append(value)
    return found


def _globals(function: FunctionType) -> dict[str, Any]:
    """What the names in a function's body stand for."""
    known = function.__globals__
    return {name: known[name] for name in function.__code__.co_names if name in known}


def _lower(function: FunctionType, isa: Isa) -> str:
    """LLVM text of a function; those it calls are symbols."""
    with importing():
        from numba.core import types

    kinds = {"int64*": types.CPointer(types.int64), "int64": types.int64}
    names: dict[str, Any] = dict.fromkeys(_TYPES)  # its annotations are evaluated, and not needed
    for name, value in _globals(function).items():
        stub = value.stub if isinstance(value, Primitive) else value
        if isinstance(stub, FunctionType):
            params, result = signature(stub)
            typed = kinds[result.type](*(kinds[param.type] for param in params))
            value = types.ExternalFunction(stub.__name__, typed)
        names[name] = value
    params, result = signature(function)
    source = inspect.getsource(function)
    return lower_function(
        source, function.__name__, params, isa, intrinsics=names, result=result.type
    )


# Words that threads share.


@primitive(body="%value = load atomic i64, ptr %word seq_cst, align 8\nret i64 %value")
def load(word: Words) -> int:
    """The word, in one order with every `add` and `swap`; what came before it is seen too."""


@primitive(body="store atomic i64 %value, ptr %word release, align 8\nret i64 0")
def store(word: Words, value: int) -> int:
    """Set the word, after all that this thread wrote before."""


@primitive(body="%old = atomicrmw add ptr %word, i64 %value seq_cst\nret i64 %old")
def add(word: Words, value: int) -> int:
    """Add to the word; what it was before."""


@primitive(
    body="""%pair = cmpxchg ptr %word, i64 %old, i64 %new seq_cst seq_cst
%done = extractvalue { i64, i1 } %pair, 1
%result = zext i1 %done to i64
ret i64 %result"""
)
def swap(word: Words, old: int, new: int) -> int:
    """Set the word to `new` if it is `old`; 1 if it was, else 0."""


@primitive(body="fence seq_cst\nret i64 0")
def fence() -> int:
    """Let every store before be seen before any load after it happens."""


# Addresses.


@primitive(body="%moved = getelementptr i64, ptr %words, i64 %i\nret ptr %moved")
def at(words: Words, i: int) -> Words:
    """The words from the i-th on."""


@primitive(body="%words = inttoptr i64 %location to ptr\nret ptr %words")
def pointer(location: int) -> Words:
    """The words at an address."""


@primitive(body="%location = ptrtoint ptr %words to i64\nret i64 %location")
def address(words: Words) -> int:
    """Where words are."""


@primitive(
    body="""%kernel = inttoptr i64 %code to ptr
call void %kernel(ptr %arguments, i64 %thread, i64 %threads)
ret i64 0"""
)
def run_kernel(code: int, arguments: Words, thread: int, threads: int) -> int:
    """Call the kernel at an address."""


# The processor.


@primitive(
    "declare void @llvm.x86.sse2.pause()",
    "declare void @llvm.aarch64.hint(i32)",
    x86_64="call void @llvm.x86.sse2.pause()\nret i64 0",
    aarch64="call void @llvm.aarch64.hint(i32 1)\nret i64 0",
)
def pause() -> int:
    """Leave the core to its other hardware thread for a moment."""


@primitive(
    "declare void @llvm.x86.sse.stmxcsr(ptr)",
    "declare i64 @llvm.aarch64.get.fpcr()",
    x86_64="""%word = alloca i32
call void @llvm.x86.sse.stmxcsr(ptr %word)
%bits = load i32, ptr %word
%mode = zext i32 %bits to i64
ret i64 %mode""",
    aarch64="%mode = call i64 @llvm.aarch64.get.fpcr()\nret i64 %mode",
)
def float_mode() -> int:
    """This thread's floating-point mode: MXCSR or FPCR."""


@primitive(
    "declare void @llvm.x86.sse.ldmxcsr(ptr)",
    "declare void @llvm.aarch64.set.fpcr(i64)",
    x86_64="""%word = alloca i32
%bits = trunc i64 %mode to i32
store i32 %bits, ptr %word
call void @llvm.x86.sse.ldmxcsr(ptr %word)
ret i64 0""",
    aarch64="call void @llvm.aarch64.set.fpcr(i64 %mode)\nret i64 0",
)
def set_float_mode(mode: int) -> int:
    """Set this thread's floating-point mode."""


@primitive(x86_64=f"ret i64 {0x1F80}", aarch64="ret i64 0")
def ieee_mode() -> int:
    """The mode of IEEE 754: round to nearest, denormals kept, exceptions masked, no flag set."""


# The system.


@primitive(
    "declare i32 @clock_gettime(i32, ptr)",
    body="""%time = alloca [2 x i64]
%kind = trunc i64 %which to i32
%status = call i32 @clock_gettime(i32 %kind, ptr %time)
%at = getelementptr i64, ptr %time, i64 1
%seconds = load i64, ptr %time
%rest = load i64, ptr %at
%whole = mul i64 %seconds, 1000000000
%result = add i64 %whole, %rest
ret i64 %result""",
)
def nanoseconds(which: int) -> int:
    """The time on one of the system's clocks."""


@c_function("sched_yield", "i32")
def give_way() -> int:
    """Let another thread have the processor."""


@c_function("sched_getcpu", "i32")
def processor() -> int:
    """The number of the processor that this thread runs on."""


@primitive(
    "declare i32 @pthread_create(ptr, ptr, ptr, ptr)",
    "declare i64 @worker(ptr)",
    body="""%status = call i32 @pthread_create(ptr %handle, ptr null, ptr @worker, ptr %line)
%result = zext i32 %status to i64
ret i64 %result""",
)
def spawn(handle: Words, line: Words) -> int:
    """Start a thread in the program's function `worker(line)`; 0, or the number of the error."""


@c_function("pthread_join", "i32")
def join(handle: int, result: Words) -> int:
    """Wait for a thread to end; its result goes to `result`, if that is not null."""


@system_call(x86_64=202, aarch64=98)
def futex(word: Words, operation: int, value: int, timeout: int) -> int:
    """Sleep while the low half of a word is `value`, or wake up to `value` sleepers."""


@system_call(x86_64=186, aarch64=178)
def thread_id() -> int:
    """The kernel's number of this thread."""


@system_call(x86_64=35, aarch64=101)
def nanosleep(duration: Words, rest: int) -> int:
    """Sleep for `duration[0]` seconds and `duration[1]` nanoseconds."""


@system_call(x86_64=14, aarch64=135)
def signal_mask(how: int, mask: Words, old: Words, size: int) -> int:
    """Change which signals this thread takes; `size` bytes a mask."""


@system_call(x86_64=203, aarch64=122)
def set_affinity(thread: int, size: int, mask: Words) -> int:
    """Say which processors a thread may use."""


@system_call(x86_64=204, aarch64=123)
def affinity(thread: int, size: int, mask: Words) -> int:
    """Which processors a thread (0: this one) may use; the bytes of the mask, or -1."""
