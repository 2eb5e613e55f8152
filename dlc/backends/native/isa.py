"""The instruction-set levels that kernels are built for.

A level fixes the vectors, the registers and whether there is a fused multiply-add; every kernel and
tile is chosen, lowered and cached for one level, so that a level is all a result's bits depend on.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import cache

from dlc import config
from dlc.errors import TargetError
from dlc.runtime.exclusive import exclusive, importing

#: Bytes, at every level.
CACHE_LINE = 64
_ITEM_BYTES = {"float32": 4, "float64": 8, "int32": 4, "int64": 8}


@dataclass(frozen=True)
class Isa:
    """One level: what LLVM is told, and what the generators of kernels need to know.

    Attributes
    ----------
    name : str
        The level's name, as `DLC_ISA` spells it.
    triple, cpu, features : str
        LLVM's target triple, processor and feature string.
    vector_bytes : int
        Bytes of one vector register.
    registers : int
        Number of vector registers.
    fma : bool
        Whether the level has a fused multiply-add.
    requires : tuple of str
        LLVM's names of the features a machine needs to run the level.
    """

    name: str
    triple: str
    cpu: str
    features: str
    vector_bytes: int
    registers: int
    fma: bool
    requires: tuple[str, ...]

    @property
    def symbol(self) -> str:
        """The level's name as a part of symbols."""
        return self.name.replace("-", "_")

    @property
    def weaves(self) -> bool:
        """Whether one instruction takes any lanes of two vectors."""
        return "avx512f" in self.requires

    def lanes(self, dtype: str) -> int:
        """How many elements of `dtype` ("float32", "float64", ...) one vector register holds."""
        return self.vector_bytes // _ITEM_BYTES[dtype]


_X86 = "x86_64-unknown-linux-gnu"
_ARM = "aarch64-unknown-linux-gnu"
_V2 = ("cx16", "popcnt", "sse3", "ssse3", "sse4.1", "sse4.2")
_V3 = (*_V2, "avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe")
_V4 = (*_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")

# LLVM tunes x86-64-v4 for 256-bit vectors unless told otherwise. Asking for a line to write it does
# nothing on the few processors of these levels that do not know how.
LEVELS: dict[str, Isa] = {
    level.name: level
    for level in (
        Isa("x86-64-v2", _X86, "x86-64-v2", "", 16, 16, False, _V2),
        Isa("x86-64-v3", _X86, "x86-64-v3", "+prfchw", 32, 16, True, _V3),
        Isa("x86-64-v4", _X86, "x86-64-v4", "-prefer-256-bit,+prfchw", 64, 32, True, _V4),
        Isa("aarch64", _ARM, "neoverse-n1", "", 16, 32, True, ("neon", "fp-armv8", "lse")),
    )
}
_MACHINES = {"x86_64": _X86, "AMD64": _X86, "aarch64": _ARM, "arm64": _ARM}


def host() -> Isa:
    """The level that kernels for this machine are built for.

    The best one the processor has, unless the option `isa` (`DLC_ISA`) names another.

    Raises
    ------
    TargetError
        Where dlc does not run (not Linux, another processor, one below x86-64-v2), or `isa` names
        a level that this machine cannot run.
    """
    levels = runnable()
    forced = config.get("isa")
    if not forced:
        return levels[-1]
    by_name = {level.name: level for level in levels}
    if forced in by_name:
        return by_name[forced]
    raise TargetError(
        f"DLC_ISA={forced}: this machine cannot run that level ({_missing(LEVELS[forced])}); "
        f"it runs {', '.join(by_name)}"
    )


def runnable() -> tuple[Isa, ...]:
    """The levels this machine can run, the best one last.

    Raises
    ------
    TargetError
        If there is none.
    """
    system, machine = platform.system(), platform.machine()
    if system != "Linux" or machine not in _MACHINES:
        raise TargetError(
            f"dlc's native kernels run on Linux on x86-64 and aarch64; this is {system} on "
            f'{machine}. Use target="reference" here.'
        )
    native = [level for level in LEVELS.values() if level.triple == _MACHINES[machine]]
    levels = tuple(level for level in native if not _missing(level))
    if not levels:
        raise TargetError(
            f"dlc's native kernels need a processor of level {native[0].name} or better; this one "
            f'has {_missing(native[0])}. Use target="reference" here.'
        )
    return levels


def _missing(level: Isa) -> str:
    """What the processor lacks of `level`, in words; empty where it lacks nothing."""
    if level.triple != _MACHINES.get(platform.machine()):
        return f"it is for {level.triple.partition('-')[0]} processors"
    lacking = [feature for feature in level.requires if not _host_features().get(feature)]
    return f"no {', '.join(lacking)}" if lacking else ""


@cache
@exclusive()
def _host_features() -> dict[str, bool]:
    with importing():
        import llvmlite.binding as llvm

    return dict(llvm.get_host_cpu_features())
