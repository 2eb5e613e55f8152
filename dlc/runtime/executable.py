"""What `dlc.compile` gives: a compiled function that follows the parameters of its model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from dlc.errors import ArgumentError

if TYPE_CHECKING:
    from dlc.runtime.profile import Profile

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


class Profiler(Protocol):
    """Profiles a runner on arrays, beside an ordinary call on the same arguments."""

    def __call__(
        self, arrays: Sequence[Array], call: Callable[[], object], repeats: int | None
    ) -> Profile:
        """The profile."""


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
        profiler: Profiler | None = None,
    ):
        self._graph = graph
        self.kernels = tuple(kernels)
        self._runner, self._sources = runner, sources
        self._flatten, self._finish, self._newest = flatten, finish, newest
        self._flat = flat  # arrays by position in, one array out
        self._profiler = profiler
        self._lock = threading.Lock()
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
            self._follow(newest)
        return self._finish(self._runner(*arrays))

    def profile(self, *args: Any, repeats: int | None = None, **kwargs: Any) -> Profile:
        """Time each kernel in calls on given arrays, and compare it with the machine's peak.

        Parameters
        ----------
        *args, **kwargs
            As of a call.
        repeats : int, optional
            Number of calls; by default as many as fit into about 0.3 s.

        Returns
        -------
        Profile
            As text a table; ``.kernels``, ``.chrome_trace(path)``.

        Raises
        ------
        ArgumentError
            The executable runs on the reference backend, which has no kernels.
        """
        if self._profiler is None:
            raise ArgumentError(
                'profile expects native kernels, got target="reference"; compile with target="cpu"'
            )
        self(*args, **kwargs)
        arrays = self._flatten(args, kwargs)
        return self._profiler(arrays, lambda: self(*args, **kwargs), repeats)

    def freeze(self) -> None:
        """Keep the present values of the parameters, whatever becomes of the model; what only they
        were needed for is let go.
        """
        self._follow(0)
        self._sources, self._newest = {}, lambda: 0

    def _follow(self, newest: int) -> None:
        """Hand new parameter values to the runner, if any has changed up to version ``newest``.

        One thread at a time: values that came later must not be followed by earlier ones.
        """
        with self._lock:
            versions = tuple(source.version for source in self._sources.values())
            if versions != self._versions:
                values = {name: source.numpy() for name, source in self._sources.items()}
                self._runner.refresh(values)
                self._versions = versions
            self._seen = newest
