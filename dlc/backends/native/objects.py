"""LLVM text into one relocatable object for one instruction-set level.

The pipeline is ours rather than Numba's, so that one text serves every level and the object depends
on nothing of Python: its only visible symbols are its entries, and what it may leave undefined is a
short list that is checked in the object itself.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from dlc.backends.native.isa import Isa
from dlc.errors import CompileError
from dlc.runtime import elf
from dlc.runtime.exclusive import exclusive

LIBC = frozenset({"memcpy", "memmove", "memset", "pthread_create", "pthread_join", "syscall"})

# Called where a kernel raises; only a call that the optimiser cannot drop reaches the object.
RAISED = "dlc_kernel_raised"


@exclusive()
def build(
    text: str, entries: Sequence[str], isa: Isa, externs: Sequence[str] = (), speed: int = 3
) -> bytes:
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
    speed : int
        How much LLVM's passes over the text do: 3, or 0 for text that is as it should be, such as
        that of tiles, which takes a third of the time. Registers are assigned with care either way.

    Raises
    ------
    CompileError
        If the text does not parse, an entry is missing, or the object needs a symbol that is
        neither an extern nor in `LIBC`.
    """
    machine = _machine(isa)
    module = optimise(text, entries, isa, speed)
    code: bytes = machine.emit_object(module)
    _check_symbols(code, frozenset(entries), LIBC.union(externs))
    return code


@exclusive()
def assembly(text: str, entries: Sequence[str], isa: Isa, speed: int = 3) -> str:
    """The assembly that `build` would put into its object, for people and tests to read."""
    result: str = _machine(isa).emit_assembly(optimise(text, entries, isa, speed))
    return result


@exclusive()
def optimise(text: str, entries: Sequence[str], isa: Isa, speed: int = 3) -> Any:
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
    tuning = llvm.create_pipeline_tuning_options(speed_level=speed)
    tuning.loop_vectorization = tuning.slp_vectorization = speed > 0
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
    """Refuse an object that shows other than its entries or needs other than what is allowed."""
    object_ = elf.read(code)
    who = ", ".join(sorted(entries))
    if object_.defined != entries:
        raise CompileError(f"expected an object of {who}, got {', '.join(sorted(object_.defined))}")
    if RAISED in object_.undefined:
        raise CompileError(
            f"the source of {who} can raise, and a kernel must never leave early: divide by div() "
            f"and mod(), and step ranges by a constant"
        )
    if foreign := object_.undefined - allowed:
        raise CompileError(
            f"{who} would need {', '.join(sorted(foreign))} at run time; a kernel may call "
            f"{', '.join(sorted(allowed))} and what dlc's intrinsics offer"
        )
