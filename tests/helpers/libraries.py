"""Models compiled for one level, run by the JIT, and the C functions of a library from Python."""

import ctypes
from functools import cache, partial

import numpy as np

import dlc
from dlc import passes
from dlc.backends.native import interpreter
from dlc.backends.native.isa import LEVELS, host
from dlc.backends.numba_cpu.lower import Lowering
from dlc.frontend.trace import trace
from dlc.passes.schedule import schedule
from dlc.runtime.cache import CodeStore
from dlc.runtime.loader import link
from dlc.runtime.pool import ENTRIES, shared
from dlc.runtime.runner import Runner

BATCH = dlc.Dim("batch", 1, 64)
IMAGES = dlc.TensorSpec((BATCH, 1, 28, 28))


@cache
def lenet():
    """LeNet with the same random parameters in every test."""
    dlc.seed(0)
    return dlc.models.lenet5().eval()


def lenet_graph():
    return passes.run(trace(lenet(), IMAGES).graph, "O2")


@cache
def compiled_lenet(level):
    return compiled(lenet(), IMAGES, level=level)


def images(count):
    """The same random images in every test."""
    return np.random.default_rng(count).normal(size=(count, 1, 28, 28)).astype(np.float32)


def compiled(function, *specs, level=None):
    """A function or module compiled for a level, by default this machine's best one."""
    graph = passes.run(trace(function, *specs).graph, "O2")
    return Lowering(LEVELS[level] if level else host(), CodeStore()).compile(*schedule(graph))


def jit(compiled, parameters, threads=2):
    """A function of arrays that runs what was compiled, linked by ORC."""
    linked = link(list(compiled.objects.values()), compiled.plan.kernels)
    pool = shared(threads, lambda: link([interpreter.build(host())], ENTRIES))
    runner = Runner(compiled.plan, linked, pool, compiled.constants)
    runner.refresh(parameters)
    return runner


class Net:
    """An open model of a library.

    `function(symbol, prototype)` makes a ctypes function; `shapes` gives the shapes of the results
    for the named dimensions.
    """

    def __init__(self, function, weights, shapes, threads=2, name="lenet"):
        pointer, number, text = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p
        get = partial(_get, function, name)
        self.error = get("error", text, number)
        self.level = get("level", text, pointer)
        self.function, self.shapes, self.handle = get, shapes, pointer()
        create = get("create", number, pointer, text, number)
        self.status = create(ctypes.byref(self.handle), str(weights).encode(), threads)

    def run(self, dims, *arrays):
        """The status of one call."""
        words = [ctypes.c_int64] * len(dims) + [ctypes.c_void_p] * len(arrays)
        function = self.function("run", ctypes.c_int, ctypes.c_void_p, *words)
        return function(self.handle, *dims, *(a if a is None else a.ctypes.data for a in arrays))

    def __call__(self, dims, *arrays):
        """The results of one call, in arrays that held NaN or -1 before."""
        results = [
            np.full(shape, -1 if kind == "int64" else np.nan, kind)
            for shape, kind in self.shapes(*dims)
        ]
        status = self.run(dims, *arrays, *results)
        assert status == 0, self.error(status)
        return results

    def close(self):
        self.function("destroy", None, ctypes.c_void_p)(self.handle)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def _get(function, name, kind, *types):
    return function(f"{name}_{kind}", ctypes.CFUNCTYPE(*types))


def logits(batch):
    """The shape and type of LeNet's result."""
    return [((batch, 10), "float32")]


def shared_library(path):
    """The functions of a library on disk, for `Net`."""
    library = ctypes.CDLL(str(path))
    return lambda symbol, prototype: prototype((symbol, library))
