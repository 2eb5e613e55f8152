"""The trace under way: which node stands for a parameter, which module runs, where the user is.

Parameters and modules ask for it (`active`), so that the same `forward` is ordinary Python outside
a trace and builds a graph inside one. It lives in a context variable: threads trace side by side.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
import sys
from collections.abc import Collection, Iterator
from types import FrameType
from typing import TYPE_CHECKING

import dlc.ops  # noqa: F401  (fills the op table)
from dlc.errors import DTypeError, ShapeError, TraceError, explain
from dlc.ir.arithmetic import Arithmetic
from dlc.ir.node import Builder, Node, Origin, building
from dlc.ir.sizes import shape_text

if TYPE_CHECKING:
    from dlc.frontend.module import Module
    from dlc.frontend.parameter import Variable

_ACTIVE: contextvars.ContextVar[Scope | None] = contextvars.ContextVar("dlc.scope", default=None)


def active() -> Scope | None:
    """The trace under way in this thread, None outside one."""
    return _ACTIVE.get()


class Scope:
    """What one trace knows.

    Attributes
    ----------
    builder : Builder
    parameters : dict of str to Variable
        Every parameter and buffer that the computation has met, by the name of its node.
    updates : dict of Variable to Node
        New values that the computation has given to parameters and buffers.
    training : bool
        Whether a module in training mode has run.
    modes : dict of Module to bool
        Every module that the function has called or asked for a part, with its training flag then.
    """

    def __init__(self) -> None:
        self.builder = Builder()
        self.parameters: dict[str, Variable] = {}
        self.updates: dict[Variable, Node] = {}
        self.training = False
        self.modes: dict[Module, bool] = {}
        self._nodes: dict[Variable, Node] = {}
        self._names: dict[Variable, str] = {}
        self._paths: dict[Module, list[str]] = {}
        self._roots: dict[str, Module] = {}
        self._taken: set[str] = set()
        self._path = ""

    @contextlib.contextmanager
    def open(self) -> Iterator[Scope]:
        """Make this the active trace; afterwards the builder belongs to the passes."""
        self.builder.origin = self.place
        token = _ACTIVE.set(self)
        try:
            with building(self.builder):
                yield self
        finally:
            _ACTIVE.reset(token)
            self.builder.origin = None

    # What parameters ask for.

    def value(self, variable: Variable) -> Node:
        """The node of a parameter or buffer: its value so far in this trace."""
        if variable in self.updates:
            return self.updates[variable]
        if variable not in self._nodes:
            name = self.name(variable)
            self.parameters[name] = variable
            self._nodes[variable] = self.builder.parameter(name, variable.type, variable.role)
        return self._nodes[variable]

    def assign(self, variable: Variable, value: object) -> None:
        """Give a variable a new value, an output of the graph that replaces the old one."""
        old = self.value(variable)
        new = self.node(value, like=old)
        subject, where = f"{variable.role} {self.name(variable)!r}", self.place()
        if new.shape != old.shape:
            expected = f"a new value of shape {shape_text(old.shape)}"
            raise ShapeError(explain(subject, expected, shape_text(new.shape), where=where))
        if new.dtype != old.dtype:
            expected, advice = f"a new value of type {old.dtype}", "Convert it with dlc.cast."
            raise DTypeError(explain(subject, expected, new.dtype, where=where, advice=advice))
        self.updates[variable] = new

    def node(self, value: object, like: Node | None = None) -> Node:
        """Anything that stands for a tensor as a node; a number gets its type from ``like``."""
        node = self.builder.operand(value._node if isinstance(value, Arithmetic) else value, like)
        if node.builder is not self.builder:
            raise TraceError(
                f"a symbolic tensor ({node.describe()}) left the trace that made it; pass it to "
                "the function as an argument, or compute it again"
            )
        return node

    def new_values(self) -> dict[str, Node]:
        """The new values of variables that have changed, by their names."""
        changed = {v: node for v, node in self.updates.items() if node is not self._nodes[v]}
        return {self.name(variable): node for variable, node in changed.items()}

    def name(self, variable: Variable, wish: str = "") -> str:
        """The name of a variable in the graph: its path, or for one in no module ``wish``."""
        if variable not in self._names:
            self._reindex()
        if variable not in self._names:
            self._names[variable] = self.unique(wish or variable.role)
        return self._names[variable]

    # Which module runs.

    @contextlib.contextmanager
    def inside(self, module: Module) -> Iterator[None]:
        """Push the path of a module that is being called."""
        outer = self._path
        self._path = self._path_of(module)
        self.training |= module.training
        self.meet(module)
        try:
            yield
        finally:
            self._path = outer

    def meet(self, *modules: Module) -> None:
        """Note that the function uses modules as they are now."""
        for module in modules:
            self.modes.setdefault(module, module.training)

    def adopt(self, module: Module, prefix: str) -> None:
        """Name the parameters of a module, and its submodules, from ``prefix`` on."""
        self._roots[prefix] = module
        self._index(prefix, module)

    def unique(self, name: str, known: Collection[str] = ()) -> str:
        """``name``, or with a number where the graph has it already or it is ``known``; it is taken
        from now on.
        """
        found, number = name, 1
        while found in self._taken or found in known:
            found, number = f"{name}_{number}", number + 1
        self._taken.add(found)
        return found

    def _path_of(self, module: Module) -> str:
        """The path by which a module is known here; of several, one below the caller's path."""
        if module not in self._paths:
            self._reindex()
        if module not in self._paths:  # not part of any module called so far
            known = {path for paths in self._paths.values() for path in paths}
            self.adopt(module, self.unique(type(module).__name__.lower(), known))
        below = f"{self._path}."
        return max(self._paths[module], key=lambda path: path.startswith(below))

    def _reindex(self) -> None:
        """Look again: modules and parameters may have been registered during the trace."""
        for prefix, module in self._roots.items():
            self._index(prefix, module)

    def _index(self, prefix: str, root: Module) -> None:
        for path, module in root.named_modules(prefix=prefix, remove_duplicate=False):
            known = self._paths.setdefault(module, [])
            if path not in known:
                known.append(path)
        for name, variable in root.named_variables(prefix=prefix):
            if variable not in self._names:
                self._names[variable] = self.unique(name)

    # Where the user is.

    def place(self) -> Origin:
        """The module that runs, and the user's line."""
        file, line = user_place()
        return Origin(self._path, file, line)


_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_ZOO = os.path.join(_PACKAGE, "frontend", "models") + os.sep
_COMMANDS = os.path.join(_PACKAGE, "cli") + os.sep


def user_place() -> tuple[str, int]:
    """File and line of the innermost frame that is a model's: outside dlc, or in its zoo."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith(_PACKAGE) or file.startswith(_ZOO):
            return file, frame.f_lineno
        if file.startswith(_COMMANDS):  # behind it is the script that is called dlc, nobody's model
            break
        frame = frame.f_back
    return "", 0


def here() -> str:
    """The place in the user's program that is being traced, for messages; else nothing."""
    scope = active()
    return "" if scope is None else str(scope.place())


def refuse_in_trace(what: str, advice: str) -> None:
    """Raise `TraceError` where a trace is under way, as reading a value there would freeze it."""
    if active() is not None:
        raise TraceError(f"{what} has no value while the model is traced ({here()}); {advice}")
