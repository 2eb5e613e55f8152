"""Kernels three ways: the reference, their source as plain Python, and compiled.

A program runs step by step on memory that is watched: all that a kernel should write is NaN before,
arguments lie between guards and must not change, and Python raises at the first element outside.
"""

import ctypes

import numpy as np

from dlc.backends import reference
from dlc.backends.native.crew import Job
from dlc.backends.native.isa import host
from dlc.backends.native.python_twin import Pointer
from dlc.backends.native.python_twin import run as run_twin
from dlc.backends.numba_cpu.lower import Lowering
from dlc.driver import optimise
from dlc.frontend.trace import trace
from dlc.ir.plan import SLACK, Address, Scratch, align
from dlc.ir.sizes import evaluate
from dlc.passes.schedule import schedule
from dlc.runtime.cache import CodeStore
from dlc.runtime.loader import link

GUARD = 128  # bytes
_linked = {}


class Known:
    """A store in which every object is there already, so that lowering compiles nothing."""

    def get(self, key):
        return str(key).encode()

    def put(self, key, value):
        raise AssertionError("there was nothing to make")


class Program:
    """A function of arrays whose kernels can be run in Python and compiled."""

    def __init__(self, function, *specs, opt="O2"):
        self.graph = optimise(trace(function, *specs).graph, opt)
        self.schedules = schedule(self.graph)

    def lowered(self, isa):
        lowering = Lowering(isa, Known())
        plan = lowering.compile(*self.schedules).plan
        return plan, lowering.kernels, lowering.constants

    def reference(self, arrays):
        """What NumPy computes; ``arrays`` are those of `run`."""
        return reference.run(self.graph, arrays)

    def run(self, arrays, way="compiled", threads=1, isa=None):
        """The results for arrays by name, computed by the threads one after the other, last first.

        Returns
        -------
        list of array, list of int
            The results, and the header of the call.
        """
        isa = isa or host()
        plan, kernels, constants = self.lowered(isa)
        memory = Memory(plan, {**arrays, **constants}, threads, way)
        for step in (*plan.prepare, *plan.main):
            kernel = kernels[step.kernel]
            words = [
                memory.word(arg, param.type)
                for arg, param in zip(step.args, kernel.params, strict=True)
            ]
            for thread in reversed(range(threads)):
                if way == "python":
                    twins = {tile.name: tile.twin() for tile in kernel.objects}
                    run_twin(kernel.source, kernel.name, words, thread, threads, twins)
                else:
                    row = np.array(words, np.int64)
                    compiled(kernel, isa)(row.ctypes.data, thread, threads)
        memory.check()
        return memory.results(), memory.header.tolist()


class Memory:
    """The buffers of one call."""

    def __init__(self, plan, arrays, threads, way):
        self.plan, self.way = plan, way
        self.sizes = _solve(plan, arrays)
        self.header = np.zeros(16, np.int64)
        self.own = {
            "arena": _filled(plan.arena + SLACK),
            "prepared": _filled(plan.prepared + SLACK),
            "scratch": _filled(evaluate(plan.scratch, self.sizes) * threads + SLACK),
        }
        self.guarded = {}
        for buffer in plan.buffers:
            if buffer.role in ("input", "parameter", "constant", "output"):
                key = buffer.role, buffer.name
                self.guarded.setdefault(key, Guarded(self.nbytes(buffer), arrays, *key))

    def nbytes(self, buffer):
        return evaluate(buffer.nbytes, self.sizes)

    def elements(self, buffer):
        """The memory that a buffer lies in, as elements."""
        if buffer.role == "header":
            return self.header
        if buffer.role in self.own:
            return self.own[buffer.role].view(_stored(buffer))
        return self.guarded[buffer.role, buffer.name].inside.view(_stored(buffer))

    def word(self, arg, kind):
        """An argument: a typed pointer for Python, an address for native code, or a number."""
        if isinstance(arg, Scratch):
            return self.place(self.own["scratch"].view(kind.removesuffix("*")), 0)
        if not isinstance(arg, Address):
            return evaluate(arg, self.sizes)
        buffer = self.plan.buffers[arg.buffer]
        memory = self.elements(buffer)
        return self.place(
            memory, buffer.offset // memory.itemsize + evaluate(arg.elements, self.sizes)
        )

    def place(self, memory, offset):
        if self.way == "python":
            return Pointer(memory, offset)
        return memory.ctypes.data + offset * memory.itemsize

    def check(self):
        for name, guarded in self.guarded.items():
            guarded.check(name)

    def results(self):
        found = []
        for number in self.plan.outputs:
            buffer = self.plan.buffers[number]
            shape = tuple(evaluate(size, self.sizes) for size in buffer.type.shape)
            start, count = buffer.offset // _stored(buffer).itemsize, int(np.prod(shape))
            flat = self.elements(buffer)[start : start + count]
            if buffer.type.dtype == "bool":
                assert np.isin(flat, (0, 1)).all(), f"{buffer.name} holds no truth values"
            found.append(flat.reshape(shape).astype(buffer.type.dtype))
        return found


class Guarded:
    """Bytes between guards: a copy of an array, or what is to be filled in."""

    def __init__(self, nbytes, arrays, role, name):
        self.memory = _filled(align(nbytes) + 2 * GUARD)
        self.inside = self.memory[GUARD : GUARD + nbytes]
        self.given = None
        if role != "output":
            self.given = np.ascontiguousarray(arrays[name]).tobytes()
            assert len(self.given) == nbytes, name
            self.inside[:] = np.frombuffer(self.given, np.uint8)

    def check(self, name):
        outside = self.memory.copy()
        outside[GUARD : GUARD + len(self.inside)] = 255
        assert (outside == 255).all(), f"written outside {name}"
        assert self.given in (None, self.inside.tobytes()), f"{name} was changed"


def _filled(nbytes):
    """Bytes that are NaN as floats, from a cache line on."""
    raw = np.full(align(nbytes) + SLACK, 255, np.uint8)
    skip = -raw.ctypes.data % SLACK
    return raw[skip : skip + align(nbytes)]


def _stored(buffer):
    return np.dtype("uint8" if buffer.type.dtype == "bool" else buffer.type.dtype)


def _solve(plan, arrays):
    sizes = {}
    for number, name in zip(plan.inputs, plan.input_names, strict=True):
        for size, came in zip(plan.buffers[number].type.shape, arrays[name].shape, strict=True):
            if not isinstance(size, int):
                assert sizes.setdefault(str(size), came) == came
    return sizes


def compiled(kernel, isa):
    """A kernel as `f(words, thread, threads)`."""
    if (kernel.name, isa.name) not in _linked:
        jobs = [Job(kernel.name, isa.name, kernel.source, kernel.params, kernel.externs)]
        jobs += [Job(tile.name, isa.name, tile.text(), speed=0) for tile in kernel.objects]
        # Under the keys of compiled models: what one test has made serves the others.
        parts = [CodeStore().get_or(("object", isa.name, job.name), job.run) for job in jobs]
        linked = link(parts, [kernel.name])
        prototype = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
        _linked[kernel.name, isa.name] = prototype(linked.address(kernel.name)), linked
    return _linked[kernel.name, isa.name][0]
