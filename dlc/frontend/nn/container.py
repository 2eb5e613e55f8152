"""Modules that hold modules: in a chain, in a list, by name.

Children are registered under "0", "1" and so on, as in PyTorch, which is what state dicts show.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self, TypeAlias

from dlc.errors import ArgumentError, explain
from dlc.frontend.module import Module

#: Modules by name.
Modules: TypeAlias = Mapping[str, Module] | Iterable[tuple[str, Module]]


class _Ordered(Module):
    """Children numbered in order."""

    def _fill(self, modules: Iterable[Module]) -> None:
        for name in list(self._modules):
            delattr(self, name)
        for i, module in enumerate(modules):
            self.add_module(str(i), module)

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[Module]:
        return iter(self._modules.values())

    def __getitem__(self, index: int | slice) -> Any:
        """One child, or a container of some of them."""
        if isinstance(index, slice):
            return type(self)(self._of(dict(list(self._modules.items())[index])))
        return list(self._modules.values())[index]

    def __setitem__(self, index: int, module: Module) -> None:
        setattr(self, list(self._modules)[index], module)

    def __delitem__(self, index: int | slice) -> None:
        children = list(self._modules.values())
        del children[index]
        self._fill(children)

    def _of(self, children: dict[str, Module]) -> Any:
        """What a container of some of the children is made from: here, they keep their names."""
        return children

    def pop(self, key: int = -1) -> Module:
        """Take a child out, the last by default, and return it."""
        child: Module = self[key]
        del self[key]
        return child

    def append(self, module: Module) -> Self:
        """Add a child at the end; returns the container."""
        numbers = map(str, itertools.count(len(self)))  # the first may be taken: slices keep names
        self.add_module(next(n for n in numbers if n not in self._modules), module)
        return self

    def extend(self, modules: Iterable[Module]) -> Self:
        """Add children at the end; returns the container."""
        for module in modules:
            self.append(module)
        return self

    def insert(self, index: int, module: Module) -> Self:
        """Add a child before the one at ``index``; returns the container."""
        children = list(self._modules.values())
        children.insert(index, module)
        self._fill(children)
        return self


class Sequential(_Ordered):
    """A chain: each child takes what the one before gives.

    Parameters
    ----------
    *modules : Module
        Or a single mapping of names to modules.
    """

    def __init__(self, *modules: Module | Mapping[str, Module]):
        super().__init__()
        if len(modules) == 1 and isinstance(modules[0], Mapping):
            for name, module in modules[0].items():
                self.add_module(name, module)
        else:
            self._fill(modules)  # type: ignore[arg-type]

    def forward(self, input: Any) -> Any:
        """Through all children, in order."""
        for module in self:
            input = module(input)
        return input


class ModuleList(_Ordered):
    """A list of modules, for ``forward`` to use as it likes.

    Parameters
    ----------
    modules : iterable of Module
    """

    def __init__(self, modules: Iterable[Module] = ()):
        super().__init__()
        self._fill(modules)

    def _of(self, children: dict[str, Module]) -> Any:
        return children.values()

    def __add__(self, other: Iterable[Module]) -> ModuleList:
        return ModuleList([*self, *other])


class ModuleDict(Module):
    """Modules by name.

    Parameters
    ----------
    modules : mapping of str to Module, or pairs of these
    """

    def __init__(self, modules: Modules | None = None):
        super().__init__()
        self.update(modules or {})

    def update(self, modules: Modules) -> None:
        """Add or replace modules."""
        for name, module in dict(modules).items():
            self[name] = module

    def __setitem__(self, name: str, module: Module) -> None:
        self.add_module(name, module)

    def __getitem__(self, name: str) -> Module:
        if name not in self._modules:
            known = ", ".join(self._modules) or "none"
            raise ArgumentError(explain("ModuleDict", f"one of its names ({known})", repr(name)))
        return self._modules[name]

    def __delitem__(self, name: str) -> None:
        delattr(self, name)

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __contains__(self, name: str) -> bool:
        return name in self._modules

    def pop(self, key: str) -> Module:
        """Take a module out and return it."""
        module = self[key]
        del self[key]
        return module

    def clear(self) -> None:
        """Take all modules out."""
        for name in list(self):
            del self[name]

    def keys(self) -> Iterable[str]:
        """The names."""
        return self._modules.keys()

    def values(self) -> Iterable[Module]:
        """The modules."""
        return self._modules.values()

    def items(self) -> Iterable[tuple[str, Module]]:
        """Names and modules."""
        return self._modules.items()
