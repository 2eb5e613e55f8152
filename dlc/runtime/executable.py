"""What `dlc.compile` gives: a compiled function that follows the parameters of its model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np

Array: TypeAlias = "np.ndarray[Any, Any]"


@dataclass(frozen=True)
class Kernel:
    """One kernel call of an executable.

    Attributes
    ----------
    name : str
        The native symbol.
    label : str
        What it computes, and for which modules.
    source : str
        The Python source that was compiled.
    flops, bytes : int
        Floating-point operations, and bytes read and written at least, at the largest sizes.
    """

    name: str
    label: str
    source: str
    flops: int
    bytes: int


class Runs(Protocol):
    """What an executable needs of a backend's runner."""

    recent: Callable[[Sequence[Any]], list[Array] | None] | None

    def refresh(self, parameters: Mapping[str, Array]) -> None:
        """Take new values of all parameters."""

    def __call__(self, *arrays: Array) -> list[Array]:
        """Outputs of one call."""


class Source(Protocol):
    """Where a parameter's value comes from."""

    @property
    def version(self) -> int:
        """Grows with every new value."""

    def numpy(self) -> Array:
        """The value."""


class Executable:
    """A compiled function: call it with arrays.

    Attributes
    ----------
    kernels : tuple of Kernel
        In the order in which they run.
    """

    def __init__(
        self,
        graph: Callable[[], Any],
        runner: Runs,
        kernels: Sequence[Kernel],
        sources: Mapping[str, Source],
        flatten: Callable[..., Sequence[Array]],
        finish: Callable[[Sequence[Array]], Any],
        newest: Callable[[], int],
        flat: bool = False,
    ):
        self._graph = graph
        self.kernels = tuple(kernels)
        self._runner, self._sources = runner, sources
        self._flatten, self._finish, self._newest = flatten, finish, newest
        self._flat = flat  # arrays by position in, one array out
        self._seen = -1
        self._versions: tuple[int, ...] | None = None

    @property
    def graph(self) -> Any:
        """The graph after the passes (made now, if the compiled code came from the cache)."""
        return self._graph()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run on arrays of the declared shapes and element types.

        Returns
        -------
        The traced function's result with fresh NumPy arrays in place of tensors.

        Raises
        ------
        ShapeError, DTypeError
            An argument does not fit; raised before anything runs.
        IndexError
            A kernel met an index or a label out of range.
        """
        newest = self._newest()
        if self._flat and newest == self._seen and not kwargs:
            fast = self._runner.recent
            outputs = fast(args) if fast is not None else None
            if outputs is not None:
                return outputs[0]
        arrays = self._flatten(args, kwargs)
        if newest != self._seen:
            self._follow()
            self._seen = newest
        return self._finish(self._runner(*arrays))

    def _follow(self) -> None:
        """Hand new parameter values to the runner, if any has changed."""
        versions = tuple(source.version for source in self._sources.values())
        if versions != self._versions:
            self._runner.refresh({name: source.numpy() for name, source in self._sources.items()})
            self._versions = versions
