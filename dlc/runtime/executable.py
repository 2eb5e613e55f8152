"""What `dlc.compile` gives: a compiled function that follows the parameters of its model."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeAlias

import numpy as np

from dlc.errors import ArgumentError, ExecutionError

if TYPE_CHECKING:
    from dlc.runtime.profile import Profile
    from dlc.runtime.runner import Kept

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
    kept: Kept | None
    memory: Mapping[str, int]

    def refresh(self, parameters: Mapping[str, Array]) -> None:
        """Take new values of all parameters that calls do not change."""

    def __call__(self, *arrays: Array) -> list[Array]:
        """Outputs of one call."""


class Source(Protocol):
    """Where a parameter's value comes from."""

    @property
    def version(self) -> int:
        """Grows with every new value."""

    def latest(self) -> tuple[int, Array]:
        """The version and the value of one moment."""

    def lend(self, keeper: Kept, name: str, version: int) -> bool:
        """Let a runner keep the value, if it is still that of ``version``."""

    def settled(self) -> tuple[int, Array]:
        """The value and its version, when no call is at work on the next one."""

    def lent_to(self, keeper: Kept) -> bool:
        """Whether a runner keeps the value."""


@dataclass(frozen=True)
class Clock:
    """Versions of values: ``newest()`` in the process, and ``advance()`` to a new one."""

    newest: Callable[[], int]
    advance: Callable[[], int]


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
        clock: Clock,
        flat: bool = False,
        profiler: Profiler | None = None,
    ):
        self._graph = graph
        self.kernels = tuple(kernels)
        kept = runner.kept.names if runner.kept else ()
        self._runner, self._kept = runner, runner.kept
        self._sources = {name: each for name, each in sources.items() if name not in kept}
        self._lent = {name: sources[name] for name in kept}
        self._flatten, self._finish, self._clock = flatten, finish, clock
        self._flat = flat  # arrays by position in, one array out
        self._profiler = profiler
        self._lock = threading.Lock()
        self._seen = self._losses = -1
        self._versions: tuple[int, ...] | None = None

    @property
    def memory(self) -> dict[str, int]:
        """Bytes that it holds at the largest sizes: for each concurrent ``call``, of them for the
        ``values`` that it makes on its way (activations, gradients, packed weights), for what is
        ``prepared`` from parameters, and for the ``state`` that calls change.
        """
        return dict(self._runner.memory)

    def __repr__(self) -> str:
        return f"<Executable of {len(self.kernels)} kernels>"

    def __reduce__(self) -> NoReturn:
        raise ExecutionError(
            "an Executable holds native code of this process, so it is neither copied nor pickled; "
            "pickle the model and compile it there, which the cache makes quick"
        )

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
        if self._kept is not None:
            return self._changing(self._kept, args, kwargs)
        newest = self._clock.newest()
        if self._flat and newest == self._seen and not kwargs:
            fast = self._runner.recent
            outputs = fast(args) if fast is not None else None
            if outputs is not None:
                return outputs[0]
        arrays = self._flatten(args, kwargs)
        if newest != self._seen:
            self._follow(newest)
        return self._finish(self._runner(*arrays))

    def _changing(self, kept: Kept, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """A call that gives parameters new values: one at a time, and if it fails it gives none."""
        while True:
            newest, losses = self._clock.newest(), kept.losses
            followed = newest == self._seen
            assigned = {} if followed and losses == self._losses else self._assigned(kept)
            changed = None if followed else self._changed()
            with kept.lock:
                if not self._take(kept, assigned) or losses != kept.losses:
                    continue  # somebody assigned values, or took some, meanwhile
                if newest != self._clock.newest() and not self._is_current(kept, changed):
                    continue
                self._losses, outputs = losses, None
                if self._flat and followed and not kwargs:
                    fast = self._runner.recent
                    outputs = fast(args) if fast is not None else None
                if outputs is None:
                    arrays = self._flatten(args, kwargs)
                    self._take_over(newest, changed)
                    outputs = self._runner(*arrays)
                kept.version = self._clock.advance()
                if kept.version == newest + 1:
                    self._seen = kept.version
            return self._finish(outputs)

    def _assigned(self, kept: Kept) -> dict[str, tuple[int, Array]]:
        """Values, with their versions, that the runner does not keep yet. Nobody's lock is held
        meanwhile, since another runner may keep them.
        """
        missing = {n: each for n, each in self._lent.items() if not each.lent_to(kept)}
        return {name: each.settled() for name, each in missing.items()}

    def _take(self, kept: Kept, assigned: dict[str, tuple[int, Array]]) -> bool:
        """Let the runner keep these values; False if one of them has changed since, or is about to.

        They are taken out one by one, so that no more than one of them is in memory twice.
        """
        while assigned:
            name, (version, value) = assigned.popitem()
            kept.write(name, value)
            kept.version = max(kept.version, version)  # that of a value never falls
            if not self._lent[name].lend(kept, name, version):
                return False
        return True

    def profile(self, *args: Any, repeats: int | None = None, **kwargs: Any) -> Profile:
        """Time each kernel in calls on given arrays, and compare it with the machine's peak.

        Where calls give parameters new values, all have their old ones again afterwards.

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
        with self._unchanged():
            self(*args, **kwargs)
            arrays = self._flatten(args, kwargs)
            return self._profiler(arrays, lambda: self(*args, **kwargs), repeats)

    @contextlib.contextmanager
    def _unchanged(self) -> Iterator[None]:
        """Take back, behind a block, all new values that calls in it give."""
        kept = self._kept
        if kept is None:
            yield
            return
        with self._holding(kept):
            values = {name: kept.read(name)[1] for name in kept.names}
            try:
                yield
            finally:
                for name, value in values.items():
                    kept.write(name, value)
                kept.version = self._clock.advance()

    @contextlib.contextmanager
    def _holding(self, kept: Kept) -> Iterator[None]:
        """A block in which the runner keeps all the values that its calls change."""
        while True:
            assigned = self._assigned(kept)
            with kept.lock:
                if self._take(kept, assigned):
                    yield
                    return

    def freeze(self) -> None:
        """Keep the present values of the parameters, whatever becomes of the model; what only they
        were needed for is let go.
        """
        if self._kept is not None:
            for name, (_, value) in self._assigned(self._kept).items():
                self._kept.write(name, value)
        self._follow(0)
        self._sources, self._lent = {}, {}
        self._clock = Clock(lambda: 0, lambda: 0)

    def _follow(self, newest: int) -> None:
        """Hand new parameter values to the runner, if any has changed up to version ``newest``.

        One thread at a time: values that came later must not be followed by earlier ones.
        """
        with self._lock:
            self._take_over(newest, self._changed())

    def _changed(self) -> dict[str, tuple[int, Array]] | None:
        """All parameters that calls do not change, with their versions; None if none is new.

        No runner's lock may be held: a call that changes them may be waiting for the values that
        calls of this one change.
        """
        if self._versions == tuple(source.version for source in self._sources.values()):
            return None
        return {name: source.latest() for name, source in self._sources.items()}

    def _is_current(self, kept: Kept, changed: Mapping[str, tuple[int, Array]] | None) -> bool:
        """Whether the runner keeps what its calls change, and knows the newest of the others once
        it takes over what has ``changed``.
        """
        known = self._versions if changed is None else _versions_of(changed)
        versions = tuple(source.version for source in self._sources.values())
        return versions == known and all(each.lent_to(kept) for each in self._lent.values())

    def _take_over(self, newest: int, changed: Mapping[str, tuple[int, Array]] | None) -> None:
        """Hand these to the runner; then all is known up to version ``newest``."""
        if changed is not None:
            values = {
                name: np.asarray(value, order="C")  # one value all over has no rows
                for name, (_, value) in changed.items()
            }
            self._runner.refresh(values)
            self._versions = _versions_of(changed)
        self._seen = newest


def _versions_of(values: Mapping[str, tuple[int, Array]]) -> tuple[int, ...]:
    return tuple(version for version, _ in values.values())
