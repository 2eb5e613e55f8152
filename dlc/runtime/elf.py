"""What an ELF object is made for, and which symbols it shows.

Both sides of the native path ask: the compiler, that an object needs nothing it should not; the
loader, so that what cannot be linked is told by name.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from dlc.errors import CompileError

_MACHINES = {62: "x86_64", 183: "aarch64"}
_SYMBOL_TABLE = 2
_LOCAL = 0


@dataclass(frozen=True)
class Elf:
    """An ELF-64 object.

    Attributes
    ----------
    machine : str
        The processor it is for: "x86_64", "aarch64", or "unknown".
    defined, undefined : frozenset of str
        Its non-local symbols: those others may use, and those it needs.
    """

    machine: str
    defined: frozenset[str]
    undefined: frozenset[str]


def read(code: bytes) -> Elf:
    """Read the head and the symbol table of a little-endian ELF-64 object.

    The layout is that of the ELF-64 specification: the file header says where the section headers
    are, 64 bytes each; symbols are 24 bytes each, with names in the table that their section links.

    Raises
    ------
    CompileError
        If the bytes are no such object, or not all of one.
    """
    try:
        return _read(code)
    except (struct.error, ValueError, IndexError) as error:
        raise CompileError(
            f"{len(code)} bytes are no ELF-64 object, or a part of one ({error}); compile it again"
        ) from error


def _read(code: bytes) -> Elf:
    if code[:6] != b"\x7fELF\x02\x01":
        raise ValueError("no little-endian ELF-64 header")
    (machine,) = struct.unpack_from("<H", code, 18)
    (table,) = struct.unpack_from("<Q", code, 40)
    (count,) = struct.unpack_from("<H", code, 60)
    sections = [struct.unpack_from("<IIQQQQIIQQ", code, table + 64 * i) for i in range(count)]
    defined, undefined = set(), set()
    for _, kind, _, _, offset, size, link, *_ in sections:
        if kind != _SYMBOL_TABLE:
            continue
        names = sections[link][4]
        for at in range(offset, offset + size, 24):
            name, info, _, section = struct.unpack_from("<IBBH", code, at)
            if info >> 4 != _LOCAL:
                start = names + name
                text = code[start : code.index(b"\0", start)].decode()
                (defined if section else undefined).add(text)
    return Elf(_MACHINES.get(machine, "unknown"), frozenset(defined), frozenset(undefined))
