"""Kernel source as the generators of contractions hand it over: text, parameters, native functions.

What the parameters are for a layer is said apart from it, as sizes by name, since one kernel serves
many layers.
"""

from __future__ import annotations

import ast
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from dlc.backends.native.frontend import Extern, Param
from dlc.errors import CompileError
from dlc.ir.sizes import Size

#: Values of integer parameters, by name.
Sizes = dict[str, Size]


class NativeFunction(ABC):
    """A function written in LLVM's text, which kernel source calls by name."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Its symbol."""

    @property
    @abstractmethod
    def params(self) -> tuple[Param, ...]:
        """Its parameters in order."""

    @property
    def extern(self) -> Extern:
        """How kernel source calls it."""
        return Extern(self.name, self.params)

    @abstractmethod
    def text(self) -> str:
        """The LLVM module that defines it."""


@dataclass(frozen=True)
class Kernel:
    """Kernel source.

    Attributes
    ----------
    name : str
        Of the function; another one wherever anything about the kernel is another.
    source : str
        Python source, as `native.frontend.lower` reads it.
    params : tuple of Param
        Its parameters in order, `thread` and `threads` left out.
    tiles : tuple of NativeFunction
        What it calls: their `extern` goes to `lower`, their `text()` to `build`.
    """

    name: str
    source: str
    params: tuple[Param, ...]
    tiles: tuple[NativeFunction, ...] = ()


def make_kernel(
    stem: str, body: str, params: Sequence[Param], tiles: Sequence[NativeFunction] = ()
) -> Kernel:
    """The kernel of a body, indented by four, named by `stem` and a digest of all that it is.

    Raises
    ------
    CompileError
        If two parameters share a name, or the body assigns to one: an operand of an epilogue is
        named like something else in the kernel.
    """
    digest = hashlib.sha256(repr((body, params)).encode()).hexdigest()[:12]
    names = [param.name for param in params]
    source = f"def {stem}_{digest}({', '.join([*names, 'thread', 'threads'])}):\n{body}"
    nodes = ast.walk(ast.parse(source))
    assigned = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    taken = sorted({name for name in names if names.count(name) > 1 or name in assigned})
    if taken:
        raise CompileError(f"a {stem} kernel uses the name {taken[0]} itself; rename the operand")
    return Kernel(f"{stem}_{digest}", source, tuple(params), tuple(tiles))
