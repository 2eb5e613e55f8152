"""Runs a plan: memory, argument words, and one entry into native code for each call.

A call checks its arguments, binds the named dimensions, leases a frame (arena and argument words),
writes the caller's addresses into it, and enters native code once. Frames are kept, one set for
each binding of dimensions, so that a repeated call only writes addresses.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from dlc.errors import DTypeError, IndexError, ShapeError
from dlc.ir.plan import SLACK, Address, Buffer, Plan, Scratch, Step, align
from dlc.ir.sizes import Dim, Poly, Size, bounds, dims, evaluate, shape_text
from dlc.ir.types import ITEMSIZE
from dlc.runtime import frame
from dlc.runtime.entry import DONE, FAILED, Argument, make_entry
from dlc.runtime.loader import Linked
from dlc.runtime.pool import Pool

Array: TypeAlias = "np.ndarray[Any, Any]"
#: Calls of fewer floating-point operations run on the calling thread: sharing would cost more.
SHARED_FLOPS = 500_000
#: Calls of fewer keep the GIL, which another thread would give back after milliseconds only.
HELD_FLOPS = 5_000_000
#: Bindings of dimensions whose frames are kept.
KEPT_BINDINGS = 16


class Memory:
    """Bytes at a cache-line boundary, with slack behind."""

    def __init__(self, nbytes: int):
        self._raw = np.empty(nbytes + 2 * SLACK, np.uint8)
        start = self._raw.ctypes.data
        self.address = align(start)

    def read(self, buffer: Buffer) -> Array:
        """A copy of a buffer of known size that lies here in row-major order."""
        assert buffer.layout.plain, f"{buffer.name} has the layout {buffer.layout}"
        start = self.address - self._raw.ctypes.data + buffer.offset
        flat = self._raw[start : start + int(buffer.nbytes)].view(buffer.type.dtype)
        return flat.reshape(buffer.type.shape).copy()


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

    Attributes
    ----------
    recent : Fast or None
        Repeats the last call, if only arrays go in and out.
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
        self.recent: Fast | None = None
        self._lock = threading.Lock()
        self._state: _State | None = None
        self._read = _parameters_of(plan)
        self._specs = [plan.buffers[i] for i in plan.inputs]
        self._makers = [plan.buffers[i] for i in plan.outputs]

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
            _bind_shape(buffer, array.shape, values)
        for dim in self.plan.dims:
            if dim.name not in values:
                raise ShapeError(
                    f"no argument has the dimension {dim.name!r} alone, so its size is unknown"
                )
        return values

    def refresh(self, parameters: Mapping[str, Array]) -> None:
        """Take new values of all parameters, by name, and recompute what depends on them only."""
        state = _State(parameters, self.plan.prepared)
        if self.plan.prepare:
            values = {dim.name: dim.max for dim in self.plan.dims}
            self._run(self._frame(state, self.plan.prepare, values), self.plan.prepare)
        state.parameters = {name: parameters[name] for name in self._read}
        self._state, self.recent = state, None

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
            self._run(leased, self.plan.main)
        finally:
            self._release(state, key, leased)
        self.recent = self._fast(state, key, values)
        given = dict(zip(self.plan.input_names, sources, strict=True))
        return [self._result(buffer, fresh, given, state) for buffer in self._makers]

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

    def _fast(self, state: _State, key: tuple[int, ...], values: Mapping[str, int]) -> Fast | None:
        """The fast form of calls with these sizes, made once and kept."""
        names = [buffer.name for buffer in self._makers]
        plain = len(set(names)) == len(names) and all(b.role == "output" for b in self._makers)
        if self._entry is None or not plain:
            return None
        if key not in state.fast:
            if len(state.fast) >= KEPT_BINDINGS:
                state.fast.clear()
            made = self._frame(state, self.plan.main, values)
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
            long = self._flops(values) > HELD_FLOPS
            entry = make_entry(
                self._entry,
                self.pool,
                made.address,
                arguments,
                keep=(made, state),
                release_gil=long,
            )
            outputs = [(a.shape, np.dtype(a.dtype)) for a in arguments if a.writable]
            state.fast[key] = Fast(entry, outputs, made.words)
        return state.fast[key]

    def _flops(self, values: Mapping[str, int]) -> int:
        return sum(evaluate(step.flops, values) for step in self.plan.main)

    def _run(self, leased: _Frame, steps: Sequence[Step]) -> None:
        leased.words[frame.ERROR] = 0
        self.pool.call(leased.address)
        site = int(leased.words[frame.ERROR])
        if site:
            position = int(leased.words[frame.ERROR_POSITION])
            raise IndexError(f"{steps[site - 1].label}: the index {position} is out of range")

    def _lease(self, state: _State, key: tuple[int, ...], values: Mapping[str, int]) -> _Frame:
        with self._lock:
            idle = state.idle.get(key)
            if idle:
                return idle.pop()
        return self._frame(state, self.plan.main, values)

    def _release(self, state: _State, key: tuple[int, ...], leased: _Frame) -> None:
        with self._lock:
            if key not in state.idle and len(state.idle) >= KEPT_BINDINGS:
                state.idle.pop(next(iter(state.idle)))
            state.idle.setdefault(key, []).append(leased)

    def _frame(self, state: _State, steps: Sequence[Step], values: Mapping[str, int]) -> _Frame:
        count = sum(len(step.args) for step in steps)
        start = frame.HEADER_WORDS + frame.STEP_WORDS * len(steps)
        memory = Memory(8 * (start + count))
        words = _words_at(memory, start + count)
        scratch_bytes = evaluate(self.plan.scratch, values) * self.pool.threads
        made = _Frame(
            words, memory.address, [], Memory(self.plan.arena), Memory(scratch_bytes), memory
        )
        made.words[: frame.HEADER_WORDS] = 0
        words[frame.STEP_COUNT] = len(steps)
        words[frame.STEPS] = memory.address + 8 * frame.HEADER_WORDS
        alone = self._flops(values) < SHARED_FLOPS
        words[frame.THREADS] = 1 if alone else self.pool.threads
        numbers = {
            name: i for i, name in enumerate((*self.plan.input_names, *self._output_names()))
        }
        at = start
        for i, step in enumerate(steps):
            row = frame.HEADER_WORDS + frame.STEP_WORDS * i
            words[row + frame.STEP_KERNEL] = self.linked.address(step.kernel)
            words[row + frame.STEP_ARGUMENTS] = memory.address + 8 * at
            words[row + frame.STEP_FLAGS] = frame.BARRIER if step.barrier else 0
            for arg in step.args:
                words[at] = self._word(arg, at, made, state, values, numbers)
                at += 1
        return made

    def _output_names(self) -> list[str]:
        return list(dict.fromkeys(b.name for b in self._makers if b.role == "output"))

    def _word(
        self,
        arg: Any,
        at: int,
        made: _Frame,
        state: _State,
        values: Mapping[str, int],
        numbers: Mapping[str, int],
    ) -> int:
        if isinstance(arg, Scratch):
            return made.scratch.address
        if not isinstance(arg, Address):
            return evaluate(arg, values)
        buffer = self.plan.buffers[arg.buffer]
        offset = evaluate(arg.elements, values) * ITEMSIZE[buffer.type.dtype]
        if buffer.role in ("input", "output"):
            made.patches.append((at, numbers[buffer.name], offset))
            return 0
        return self._base(buffer, made, state) + offset

    def _base(self, buffer: Buffer, made: _Frame, state: _State) -> int:
        if buffer.role == "arena":
            return made.arena.address + buffer.offset
        if buffer.role == "prepared":
            return state.prepared.address + buffer.offset
        if buffer.role == "header":
            return made.address
        source = (state.parameters if buffer.role == "parameter" else self._constants)[buffer.name]
        return int(source.ctypes.data)


def _patch(made: _Frame, sources: Sequence[Array], fresh: Mapping[str, Array]) -> None:
    """Write the addresses of a call's arrays into its frame."""
    addresses = [a.ctypes.data for a in sources] + [a.ctypes.data for a in fresh.values()]
    for word, number, offset in made.patches:
        made.words[word] = addresses[number] + offset


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


def _bind_shape(buffer: Buffer, shape: tuple[int, ...], values: dict[str, int]) -> None:
    expected = buffer.type.shape
    text = f"the argument {buffer.name!r} expects shape {shape_text(expected)}, got {shape}"
    if len(expected) != len(shape):
        raise ShapeError(text)
    for size, came in zip(expected, shape, strict=True):
        dim = _single(size)
        if dim is not None and dim.name not in values:
            if not dim.min <= came <= dim.max:
                raise ShapeError(
                    f"{text}: {dim.name} is declared as {dim.min}..{dim.max}; compile with a wider "
                    f"Dim"
                )
            values[dim.name] = came
    for size, came in zip(expected, shape, strict=True):
        if all(d.name in values for d in dims(size)) and evaluate(size, values) != came:
            raise ShapeError(text)


def _single(size: Size) -> Dim | None:
    """The dimension that a size is, if it is one by itself."""
    if isinstance(size, Poly) and len(size.terms) == 1:
        ((monomial, factor),) = size.terms.items()
        if factor == 1 and len(monomial) == 1 and isinstance(monomial[0], Dim):
            return monomial[0]
    return None


def _readable(array: Array) -> Array:
    """The array itself if it is C-contiguous and aligned, else a copy that is."""
    return array if array.flags.c_contiguous and array.flags.aligned else np.array(array, order="C")


def arena_bytes(plan: Plan) -> int:
    """Bytes of memory that one concurrent call holds, without the caller's arrays."""
    return plan.arena + bounds(plan.scratch)[1]
