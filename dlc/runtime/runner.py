"""Runs a plan: memory, argument words, and one entry into native code for each call.

A call checks its arguments, binds the named dimensions, leases a frame (arena and argument words),
writes the caller's addresses into it, and enters native code once. Frames are kept, one set for
each binding of dimensions, so that a repeated call only writes addresses.
"""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from dlc.errors import (
    DTypeError,
    Error,
    ExecutionError,
    IndexError,
    NumericsError,
    ShapeError,
    explain,
)
from dlc.ir.plan import SITES, SLACK, Address, Buffer, Plan, Scratch, Step, align
from dlc.ir.sizes import Dim, Poly, Size, bounds, dims, evaluate, shape_text
from dlc.ir.types import ITEMSIZE, TensorType
from dlc.runtime import frame
from dlc.runtime.entry import DONE, FAILED, Argument, make_entry
from dlc.runtime.loader import Linked
from dlc.runtime.pool import Pool

Array: TypeAlias = "np.ndarray[Any, Any]"
#: Calls of fewer floating-point operations run on the calling thread: sharing would cost more.
SHARED_FLOPS = 500_000
#: Calls of fewer keep the GIL, which another thread would give back after milliseconds only.
HELD_FLOPS = 5_000_000
#: Frames that are kept for later calls, and bytes of memory in them; the newest frame is kept
#: whatever its size.
KEPT_FRAMES, KEPT_BYTES = 32, 1 << 30


class Memory:
    """Bytes at a cache-line boundary, with slack behind."""

    def __init__(self, nbytes: int):
        try:
            self._raw = np.empty(nbytes + 2 * SLACK, np.uint8)
        except (MemoryError, ValueError):
            raise ExecutionError(
                f"a call needs {nbytes / 1e9:.3g} GB of memory at the largest sizes that were "
                "declared, and the system does not grant it; compile for smaller sizes, or with a "
                "narrower Dim"
            ) from None
        start = self._raw.ctypes.data
        self.address = align(start)

    def read(self, buffer: Buffer) -> Array:
        """A copy, in row-major order, of a buffer of known size without a halo."""
        return self.view(buffer).copy(order="C")

    def view(self, buffer: Buffer) -> Array:
        """The buffer itself as an array."""
        order = buffer.layout.order
        assert not any(map(any, buffer.layout.halo)), f"{buffer.name} has a halo"
        start = self.address - self._raw.ctypes.data + buffer.offset
        flat = self._raw[start : start + int(buffer.nbytes)].view(buffer.type.dtype)
        extents = [int(buffer.type.shape[dim]) for dim in order]
        return flat.reshape(extents).transpose(np.argsort(order))


@dataclass
class _Frame:
    """Words of one call and the memory that they point into."""

    words: Array
    address: int
    patches: list[
        tuple[int, int, int]
    ]  # word, argument number (outputs behind inputs), byte offset
    arena: Memory
    scratch: Memory
    memory: Memory


class Kept:
    """Parameters and buffers that calls give new values, in memory of their own.

    Whoever reads or writes them holds the lock, so that no value is read half written.

    Attributes
    ----------
    names : tuple of str
    version : int
        Of the newest values, for their readers.
    losses : int
        How often a value went to another keeper.
    """

    def __init__(self, plan: Plan):
        self.lock = threading.RLock()
        self.version = self.losses = 0
        self.memory = Memory(plan.state)
        self._buffers = {buffer.name: buffer for buffer in plan.states}
        self.names = tuple(self._buffers)

    def read(self, name: str) -> tuple[int, Array]:
        """The version, and a copy of a value."""
        with self.lock:
            return self.version, self.memory.read(self._buffers[name])

    def let_go(self, version: int) -> bool:
        """Give up a value, unless it is no longer that of ``version``, or a call is at work on the
        next one, which would be lost.
        """
        if not self.lock.acquire(blocking=False):
            return False
        same = self.version == version
        self.losses += same
        self.lock.release()
        return same

    def write(self, name: str, value: Array) -> None:
        """Take over a value."""
        _check_type(self._buffers[name], value)
        with self.lock:
            self.memory.view(self._buffers[name])[...] = value


_runners: weakref.WeakSet[Runner] = weakref.WeakSet()
_waiting: list[Kept] = []  # for a fork to be over


def _before_fork() -> None:
    """Let calls that change values end: a child would find half of the new ones, and the lock held
    by a thread that it does not have.
    """
    for kept in [runner.kept for runner in list(_runners) if runner.kept is not None]:
        kept.lock.acquire()
        _waiting.append(kept)


def _after_fork() -> None:
    while _waiting:
        _waiting.pop().lock.release()


def _in_child() -> None:
    for runner in list(_runners):
        runner._lock = threading.Lock()
    _after_fork()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_in_child)


class _State:
    """One version of the parameters: their arrays, what was prepared from them, and idle frames
    that point there.

    A new version gets a state of its own, so that calls under way finish on the old one.
    """

    def __init__(self, parameters: Mapping[str, Array], prepared: int):
        self.parameters = parameters
        self.prepared = Memory(prepared)
        self.idle: dict[tuple[int, ...], list[_Frame]] = {}
        self.fast: dict[tuple[int, ...], Fast] = {}
        self.recent: Fast | None = None

    def make_room(self, most: int) -> None:
        """Let the oldest frames go, so that at most so many are left."""
        while len(self.fast) + sum(map(len, self.idle.values())) > most:
            frames = next(filter(None, self.idle.values()), None)
            if frames:
                frames.pop()
            else:
                del self.fast[next(iter(self.fast))]


class Fast:
    """A repeated call: the same sizes and the same parameters as the last, on plain arrays.

    Attributes
    ----------
    entry : callable
        ``entry(*inputs, *outputs)`` gives a status; `DONE` only if everything fitted and ran.
    """

    __slots__ = ("_outputs", "_words", "entry")

    def __init__(
        self,
        entry: Callable[..., int],
        outputs: Sequence[tuple[tuple[int, ...], Any]],
        words: Array,
    ):
        self.entry = entry
        self._outputs = tuple(outputs)
        self._words = words

    def __call__(self, arrays: Sequence[Any]) -> list[Array] | None:
        """Outputs of the call; None if it is not such a call, or failed, and nothing is done."""
        fresh = [np.empty(shape, dtype) for shape, dtype in self._outputs]
        status = self.entry(*arrays, *fresh)
        if status == FAILED:  # the general way runs again and says what is wrong
            self._words[frame.LEASED] = 0
        return fresh if status == DONE else None


class Runner:
    """Runs a plan.

    Parameters
    ----------
    plan : Plan
    linked : Linked
        Where the plan's kernels are.
    pool : Pool
    constants : mapping of str to array
    entry : Linked, optional
        Holds the native entry, for `recent`.
    """

    def __init__(
        self,
        plan: Plan,
        linked: Linked,
        pool: Pool,
        constants: Mapping[str, Array],
        entry: Linked | None = None,
    ):
        self.plan, self.linked, self.pool = plan, linked, pool
        self._constants = constants
        self._entry = entry
        self._lock = threading.Lock()
        self._state: _State | None = None
        self.kept = Kept(plan) if plan.state else None
        _runners.add(self)
        self._arena: Memory | None = None  # of calls that come one by one
        self._read = _parameters_of(plan)
        self._specs = [plan.buffers[i] for i in plan.inputs]
        self._makers = [plan.buffers[i] for i in plan.outputs]
        plain = len(set(self._makers)) == len(self._makers)
        self._repeats = (
            entry is not None and plain and all(b.role == "output" for b in self._makers)
        )
        self._kept = max(1, min(KEPT_FRAMES, KEPT_BYTES // max(1, self.memory["call"])))

    @property
    def recent(self) -> Fast | None:
        """Repeats the last call with the parameters of now, if only arrays go in and out."""
        return None if self._state is None else self._state.recent

    @property
    def memory(self) -> dict[str, int]:
        """Bytes at the largest sizes, without the caller's arrays: of one ``call`` (``values`` on
        the way, scratch of all threads), of what is ``prepared`` from parameters, and of the
        ``state`` that calls change.
        """
        scratch = bounds(self.plan.scratch)[1] * self.pool.threads
        return {
            "call": self.plan.arena + scratch,
            "values": self.plan.arena,
            "prepared": self.plan.prepared,
            "state": self.plan.state,
        }

    def bind(self, arrays: Sequence[Array]) -> dict[str, int]:
        """Check arguments against the plan's inputs and solve the named dimensions; raises before
        any kernel runs.
        """
        if len(arrays) != len(self._specs):
            names = ", ".join(self.plan.input_names)
            raise ShapeError(f"expects {len(self._specs)} arguments ({names}), got {len(arrays)}")
        values: dict[str, int] = {}
        for buffer, array in zip(self._specs, arrays, strict=True):
            if array.dtype.name != buffer.type.dtype:
                raise DTypeError(
                    f"the argument {buffer.name!r} expects {buffer.type.dtype}, got "
                    f"{array.dtype.name}; "
                    f"convert it with {buffer.name}.astype('{buffer.type.dtype}')"
                )
            _solve(buffer, array.shape, values)
        for dim in self.plan.dims:
            if dim.name not in values:
                raise ShapeError(
                    f"no argument has the dimension {dim.name!r} alone, so its size is unknown"
                )
        for buffer, array in zip(self._specs, arrays, strict=True):
            expected = tuple(evaluate(size, values) for size in buffer.type.shape)
            if expected != array.shape:
                raise ShapeError(_shape_message(buffer, array.shape, values))
        return values

    def refresh(self, parameters: Mapping[str, Array]) -> None:
        """Take new values of all parameters that calls do not change, by name, and recompute what
        depends on them only.
        """
        for buffer in self.plan.buffers:
            if buffer.role == "parameter":
                _check_type(buffer, parameters[buffer.name])
        state = _State(parameters, self.plan.prepared)
        if self.plan.prepare:
            values = {dim.name: dim.max for dim in self.plan.dims}
            self._run(self._frame(state, self.plan.prepare, values), values)
        state.parameters = {name: parameters[name] for name in self._read}
        self._state = state

    def __call__(self, *arrays: Array) -> list[Array]:
        """Outputs as fresh arrays, in the plan's order."""
        state = self._state
        assert state is not None, "refresh() comes before the first call"
        values = self.bind(arrays)
        sources = [_readable(a) for a in arrays]
        key = tuple(values[dim.name] for dim in self.plan.dims)
        fresh = self._fresh(values)
        leased = self._lease(state, key, values)
        _patch(leased, sources, fresh)
        try:
            self._run(leased, values)
        finally:
            self._release(state, key, leased, values)
        given = dict(zip(self.plan.input_names, sources, strict=True))
        results: list[Array] = []
        for number, buffer in enumerate(self._makers):
            result = self._result(buffer, fresh, given, state)
            results.append(result.copy() if buffer in self._makers[:number] else result)
        return results

    def frame(self, arrays: Sequence[Array]) -> tuple[Array, object]:
        """The words of a call of its own, ready to run, and what must live as long."""
        assert self._state is not None, "refresh() comes before the first call"
        values = self.bind(arrays)
        sources, fresh = [_readable(a) for a in arrays], self._fresh(values)
        made = self._frame(self._state, self.plan.main, values)
        _patch(made, sources, fresh)
        return made.words, (made, self._state, sources, fresh)

    def _fresh(self, values: Mapping[str, int]) -> dict[str, Array]:
        """New arrays for the outputs that kernels write, by name."""
        fresh: dict[str, Array] = {}
        for buffer in self._makers:
            if buffer.role == "output" and buffer.name not in fresh:
                shape = tuple(evaluate(size, values) for size in buffer.type.shape)
                fresh[buffer.name] = np.empty(shape, buffer.type.dtype)
        return fresh

    def _result(
        self, buffer: Buffer, fresh: Mapping[str, Array], given: Mapping[str, Array], state: _State
    ) -> Array:
        """What a kernel wrote for an output, or a copy of what no kernel of a call writes."""
        if buffer.role == "output":
            return fresh[buffer.name]
        if buffer.role == "prepared":
            return state.prepared.read(buffer)
        held = {"input": given, "parameter": state.parameters, "constant": self._constants}
        return np.array(held[buffer.role][buffer.name])

    def _fast(self, state: _State, made: _Frame, values: Mapping[str, int]) -> Fast:
        """The fast form of calls with these sizes, which takes over a frame."""
        patches: dict[int, list[tuple[int, int]]] = {}
        for word, number, offset in made.patches:
            patches.setdefault(number, []).append((word, offset))
        arguments = [
            Argument(
                buffer.type.dtype,
                tuple(evaluate(size, values) for size in buffer.type.shape),
                patches.get(number, []),
                buffer.role == "output",
            )
            for number, buffer in enumerate((*self._specs, *self._makers))
        ]
        assert self._entry is not None
        entry = make_entry(
            self._entry,
            self.pool,
            made.address,
            arguments,
            keep=(made, self.linked, state.prepared, state.parameters, self.kept),  # no way back
            release_gil=self._flops(values) > HELD_FLOPS,
        )
        outputs = [(a.shape, np.dtype(a.dtype)) for a in arguments if a.writable]
        return Fast(entry, outputs, made.words)

    def _flops(self, values: Mapping[str, int]) -> int:
        return sum(evaluate(step.flops, values) for step in self.plan.main)

    def _run(self, leased: _Frame, values: Mapping[str, int]) -> None:
        leased.words[frame.ERROR] = 0
        self.pool.call(leased.address)
        code = int(leased.words[frame.ERROR])
        if code:
            got = int(leased.words[frame.ERROR_POSITION])
            raise self._error(code, got, values)

    def _error(self, code: int, got: int, values: Mapping[str, int]) -> Error:
        """Which op found an error in data, where in its operand, and what was expected."""
        site, position = self.plan.sites[code % SITES - 1], code // SITES
        shape = tuple(evaluate(size, values) for size in site.shape)
        place = tuple(int(i) for i in np.unravel_index(position, shape)) if shape else ()
        if site.op == "check_finite":
            message = explain(site.op, "a finite value", f"another at {place}", where=site.module)
            return NumericsError(message)
        expected = f"{site.what} from 0 to {evaluate(site.extent, values) - 1}"
        message = explain(site.op, expected, f"{got} at {place}", where=site.module)
        return IndexError(message, got, place)

    def _lease(self, state: _State, key: tuple[int, ...], values: Mapping[str, int]) -> _Frame:
        with self._lock:
            idle = state.idle.get(key)
            if idle:
                return idle.pop()
        return self._frame(state, self.plan.main, values)

    def _release(
        self, state: _State, key: tuple[int, ...], leased: _Frame, values: Mapping[str, int]
    ) -> None:
        """Keep a frame: in the fast form of such calls, or for whoever comes while that is busy."""
        with self._lock:
            if self._repeats and key not in state.fast:
                state.fast[key] = self._fast(state, leased, values)
            else:
                state.idle.setdefault(key, []).append(leased)
            state.make_room(self._kept)
            state.recent = state.fast.get(key)

    def _frame(self, state: _State, steps: Sequence[Step], values: Mapping[str, int]) -> _Frame:
        count = sum(len(step.args) for step in steps)
        start = frame.HEADER_WORDS + frame.STEP_WORDS * len(steps)
        memory = Memory(8 * (start + count))
        words = _words_at(memory, start + count)
        scratch_bytes = evaluate(self.plan.scratch, values) * self.pool.threads
        made = _Frame(words, memory.address, [], self._new_arena(), Memory(scratch_bytes), memory)
        made.words[: frame.HEADER_WORDS] = 0
        words[frame.STEP_COUNT] = len(steps)
        words[frame.STEPS] = memory.address + 8 * frame.HEADER_WORDS
        alone = self._flops(values) < SHARED_FLOPS
        words[frame.THREADS] = 1 if alone else self.pool.threads
        given = [("input", name) for name in self.plan.input_names]
        filled = dict.fromkeys(("output", b.name) for b in self._makers if b.role == "output")
        numbers = {key: i for i, key in enumerate((*given, *filled))}
        at = start
        for i, step in enumerate(steps):
            row = frame.HEADER_WORDS + frame.STEP_WORDS * i
            words[row + frame.STEP_KERNEL] = self.linked.address(step.kernel)
            words[row + frame.STEP_ARGUMENTS] = memory.address + 8 * at
            words[row + frame.STEP_FLAGS] = frame.flags(step.barrier, step.guarded)
            for arg in step.args:
                words[at] = self._word(arg, at, made, state, values, numbers)
                at += 1
        return made

    def _new_arena(self) -> Memory:
        """Memory for the values of a call; calls that change parameters come one by one and share
        it.
        """
        if self.kept is None:
            return Memory(self.plan.arena)
        self._arena = self._arena or Memory(self.plan.arena)
        return self._arena

    def _word(
        self,
        arg: Any,
        at: int,
        made: _Frame,
        state: _State,
        values: Mapping[str, int],
        numbers: Mapping[tuple[str, str], int],
    ) -> int:
        if isinstance(arg, Scratch):
            return made.scratch.address
        if not isinstance(arg, Address):
            return evaluate(arg, values)
        buffer = self.plan.buffers[arg.buffer]
        offset = evaluate(arg.elements, values) * ITEMSIZE[buffer.type.dtype]
        if buffer.role in ("input", "output"):
            made.patches.append((at, numbers[buffer.role, buffer.name], offset))
            return 0
        return self._base(buffer, made, state) + offset

    def _base(self, buffer: Buffer, made: _Frame, state: _State) -> int:
        if buffer.role == "arena":
            return made.arena.address + buffer.offset
        if buffer.role == "prepared":
            return state.prepared.address + buffer.offset
        if buffer.role == "header":
            return made.address
        if buffer.role == "state":
            assert self.kept is not None
            return self.kept.memory.address + buffer.offset
        source = (state.parameters if buffer.role == "parameter" else self._constants)[buffer.name]
        return int(source.ctypes.data)


def _patch(made: _Frame, sources: Sequence[Array], fresh: Mapping[str, Array]) -> None:
    """Write the addresses of a call's arrays into its frame."""
    addresses = [a.ctypes.data for a in sources] + [a.ctypes.data for a in fresh.values()]
    for word, number, offset in made.patches:
        made.words[word] = addresses[number] + offset


def _check_type(buffer: Buffer, value: Array) -> None:
    """Refuse a parameter that is no longer of the type that kernels read. They may read it in
    another shape: a reshape of a parameter is a view of it.
    """
    if value.dtype.name != buffer.type.dtype or value.size != math.prod(buffer.type.shape):
        expected, got = str(buffer.type), str(TensorType(value.dtype.name, value.shape))
        advice = "The model has changed since it was compiled; compile it again."
        raise DTypeError(explain(f"the parameter {buffer.name!r}", expected, got, advice=advice))


def _parameters_of(plan: Plan) -> list[str]:
    """Names of the parameters that a call itself reads or returns."""
    used = {arg.buffer for step in plan.main for arg in step.args if isinstance(arg, Address)}
    buffers = [plan.buffers[i] for i in sorted(used | set(plan.outputs))]
    return [buffer.name for buffer in buffers if buffer.role == "parameter"]


def _words_at(memory: Memory, count: int) -> Array:
    raw = memory._raw
    start = memory.address - raw.ctypes.data
    words: Array = raw[start : start + 8 * count].view(np.int64)
    return words


def _solve(buffer: Buffer, shape: tuple[int, ...], values: dict[str, int]) -> None:
    """Bind the dimensions that are a size of an argument by themselves."""
    expected = buffer.type.shape
    if len(expected) != len(shape):
        raise ShapeError(_shape_message(buffer, shape, values))
    for size, came in zip(expected, shape, strict=True):
        dim = _single(size)
        if dim is not None and dim.name not in values:
            if not dim.min <= came <= dim.max:
                text = _shape_message(buffer, shape, values)
                raise ShapeError(
                    f"{text}: {dim.name} is declared as {dim.min}..{dim.max}; "
                    "compile with a wider Dim"
                )
            values[dim.name] = came


def _shape_message(buffer: Buffer, shape: tuple[int, ...], values: Mapping[str, int]) -> str:
    expected = buffer.type.shape
    text = f"the argument {buffer.name!r} expects shape {shape_text(expected)}, got {shape}"
    bound = {dim.name for size in expected for dim in dims(size)} & values.keys()
    known = " and ".join(f"{name} is {values[name]}" for name in sorted(bound))
    return f"{text}, where {known}" if known else text


def _single(size: Size) -> Dim | None:
    """The dimension that a size is, if it is one by itself."""
    if isinstance(size, Poly) and len(size.terms) == 1:
        ((monomial, factor),) = size.terms.items()
        if factor == 1 and len(monomial) == 1 and isinstance(monomial[0], Dim):
            return monomial[0]
    return None


def _readable(array: Array) -> Array:
    """The array itself if kernels can read it (C-contiguous, aligned, in this machine's byte
    order), else a copy that they can.
    """
    if array.flags.c_contiguous and array.flags.aligned and array.dtype.isnative:
        return array
    return array.astype(array.dtype.newbyteorder("="), order="C")
