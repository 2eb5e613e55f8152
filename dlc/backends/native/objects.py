"""LLVM text into one relocatable object for one instruction-set level.

The pipeline is ours rather than Numba's, so that one text serves every level and the object depends
on nothing of Python: its only visible symbols are its entries, and what it may leave undefined is a
short list that is checked in the object itself.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from dlc.backends.native.isa import Isa
from dlc.errors import CompileError

LIBC = frozenset({"memcpy", "memmove", "memset", "pthread_create", "pthread_join", "syscall"})

# Called where a kernel raises; only a call that the optimiser cannot drop reaches the object.
RAISED = "dlc_kernel_raised"


def build(text: str, entries: Sequence[str], isa: Isa, externs: Sequence[str] = ()) -> bytes:
    """Optimise LLVM text for `isa` and emit a relocatable, position-independent ELF object.

    Parameters
    ----------
    text : str
        An LLVM module; its triple and data layout are replaced by those of `isa`.
    entries : sequence of str
        Functions that stay visible; all else becomes internal, and goes where unused.
    isa : Isa
        The level to build for; it need not be one this machine can run.
    externs : sequence of str
        Symbols the object may leave undefined, besides `LIBC`.

    Raises
    ------
    CompileError
        If the text does not parse, an entry is missing, or the object needs a symbol that is
        neither an extern nor in `LIBC`.
    """
    machine = _machine(isa)
    module = optimise(text, entries, isa)
    code: bytes = machine.emit_object(module)
    _check_symbols(code, frozenset(entries), LIBC.union(externs))
    return code


def assembly(text: str, entries: Sequence[str], isa: Isa) -> str:
    """The assembly that `build` would put into its object, for people and tests to read."""
    result: str = _machine(isa).emit_assembly(optimise(text, entries, isa))
    return result


def optimise(text: str, entries: Sequence[str], isa: Isa) -> Any:
    """The optimised module (an `llvmlite.binding.ModuleRef`) of an LLVM text; as for `build`."""
    import llvmlite.binding as llvm

    machine = _machine(isa)
    text = re.sub(r"^target (triple|datalayout) = .*\n", "", text, flags=re.MULTILINE)
    try:
        module = llvm.parse_assembly(
            f'target triple = "{isa.triple}"\ntarget datalayout = "{machine.target_data}"\n{text}'
        )
        module.verify()
    except RuntimeError as error:
        raise CompileError(f"LLVM refuses the text of {', '.join(entries)}: {error}") from error
    defined = {
        symbol.name: symbol
        for symbol in (*module.functions, *module.global_variables)
        if not symbol.is_declaration
    }
    for entry in entries:
        if entry not in defined:
            raise CompileError(f"the LLVM text defines {sorted(defined)}, but no entry {entry}")
    for name in defined.keys() - set(entries):
        defined[name].linkage = "internal"
    tuning = llvm.create_pipeline_tuning_options(speed_level=3)
    tuning.loop_vectorization = tuning.slp_vectorization = True
    builder = llvm.create_pass_builder(machine, tuning)
    builder.getModulePassManager().run(module, builder)
    return module


@cache
def _machine(isa: Isa) -> Any:
    """LLVM's target machine of a level."""
    import llvmlite.binding as llvm

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    target = llvm.Target.from_triple(isa.triple)
    return target.create_target_machine(
        cpu=isa.cpu, features=isa.features, opt=3, reloc="pic", codemodel="default"
    )


def _check_symbols(code: bytes, entries: frozenset[str], allowed: frozenset[str]) -> None:
    symbols = dict(visible_symbols(code))
    defined = {name for name, is_defined in symbols.items() if is_defined}
    undefined = set(symbols) - defined
    if defined != entries:
        raise CompileError(f"expected an object of {sorted(entries)}, got {sorted(defined)}")
    if RAISED in undefined:
        raise CompileError(
            f"the source of {', '.join(sorted(entries))} can raise, and a kernel must never leave "
            f"early: divide by div() and mod(), and step ranges by a constant"
        )
    if foreign := undefined - allowed:
        raise CompileError(
            f"{', '.join(sorted(entries))} would need {', '.join(sorted(foreign))} at run time; a "
            f"kernel may call {', '.join(sorted(allowed))} and what dlc's intrinsics offer"
        )


def visible_symbols(code: bytes) -> Iterator[tuple[str, bool]]:
    """Names of an ELF object's non-local symbols, and whether each is defined in it.

    The layout is that of the ELF-64 specification, little-endian: section headers of 64 bytes
    whose offset and count the file header gives, symbols of 24 bytes, names in a string table.
    """
    (section_table,) = struct.unpack_from("<Q", code, 40)
    (section_count,) = struct.unpack_from("<H", code, 60)
    sections = [
        struct.unpack_from("<IIQQQQIIQQ", code, section_table + 64 * i)
        for i in range(section_count)
    ]
    for _, kind, _, _, offset, size, link, *_ in sections:
        if kind != 2:  # SHT_SYMTAB
            continue
        names = sections[link][4]
        for at in range(offset, offset + size, 24):
            name, info, _, section = struct.unpack_from("<IBBH", code, at)
            if info >> 4:  # not STB_LOCAL
                start = names + name
                yield code[start : code.index(b"\0", start)].decode(), section != 0
