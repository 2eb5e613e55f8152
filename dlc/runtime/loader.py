"""Objects into this process: LLVM's ORC links them, and their entries get addresses.

It is the JIT's counterpart of `cc -shared`: the same objects go in, so the same bits come out, and
nothing of the compiler is needed, only llvmlite.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from dlc.errors import CompileError, ExecutionError
from dlc.runtime import elf
from dlc.runtime.exclusive import exclusive, importing


class Linked:
    """Native code that is loaded into this process; `link` makes it.

    The addresses are valid until `close`, which frees the code; nothing checks that no thread is
    inside it.
    """

    _tracker: Any = None

    def __init__(self, jit: Any, tracker: Any, entries: Sequence[str]) -> None:
        self._jit, self._tracker = jit, tracker
        self._addresses = {entry: int(tracker[entry]) for entry in entries}

    def address(self, name: str) -> int:
        """The address of the entry `name`.

        Raises
        ------
        CompileError
            If `name` was not among the entries given to `link`.
        ExecutionError
            If the code was closed.
        """
        if self._tracker is None:
            raise ExecutionError(f"the code that held {name} was closed; link its objects again")
        if name not in self._addresses:
            known = ", ".join(sorted(self._addresses))
            raise CompileError(f"{name} is not an entry of the linked objects; those are {known}")
        return self._addresses[name]

    @exclusive()
    def close(self) -> None:
        """Free the code; doing so twice is harmless."""
        if self._tracker is not None:
            self._tracker.close()
            self._jit.close()
            self._tracker = self._jit = None

    def __del__(self) -> None:
        if not sys.is_finalizing():
            self.close()

    def __enter__(self) -> Linked:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


@exclusive()
def link(objects: Sequence[bytes], entries: Sequence[str]) -> Linked:
    """Link relocatable objects with one another and with this process.

    Parameters
    ----------
    objects : sequence of bytes
        ELF objects for this machine.
    entries : sequence of str
        Symbols that the objects define and that will be called from outside.

    Raises
    ------
    CompileError
        If an object is damaged or not for this machine, or a symbol is missing or defined twice.
    """
    with importing():
        import llvmlite.binding as llvm

    _check(objects, entries)
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    library = llvm.JITLibraryBuilder()
    for code in objects:
        library.add_object_img(code)
    for entry in entries:
        library.export_symbol(entry)
    library.add_current_process()
    jit = llvm.create_lljit_compiler()
    try:
        tracker = library.link(jit, "dlc")
    except RuntimeError as error:
        jit.close()
        raise CompileError(f"the objects do not link: {error}") from error
    return Linked(jit, tracker, entries)


def _check(objects: Sequence[bytes], entries: Sequence[str]) -> None:
    """Tell by name what LLVM would only fail at."""
    defined: set[str] = set()
    needed = set(entries)
    for code in objects:
        each = elf.read(code)
        if each.machine != platform.machine():
            raise CompileError(
                f"the object of {', '.join(sorted(each.defined))} is for {each.machine}, and this "
                f"machine is {platform.machine()}"
            )
        if twice := defined & each.defined:
            raise CompileError(f"two of the objects define {', '.join(sorted(twice))}")
        defined |= each.defined
        needed |= each.undefined
    process = ctypes.CDLL(None)
    if missing := [name for name in sorted(needed - defined) if not hasattr(process, name)]:
        raise CompileError(f"none of the objects, nor this process, defines {', '.join(missing)}")
