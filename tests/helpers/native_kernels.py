"""Run generated kernels and tiles on NumPy arrays, with guards around everything they may write.

Objects are kept where compiled models keep theirs, so that each is made once for all tests.
"""

import ctypes
from functools import cache

import numpy as np

from dlc.backends.native import objects
from dlc.backends.native.frontend import lower
from dlc.backends.native.isa import runnable
from dlc.runtime.cache import CodeStore
from dlc.runtime.loader import link

LEVELS = runnable()
GUARD = 96  # elements on each side


@cache
def tile_object(tile):
    def build():
        return objects.build(tile.text(), [tile.name], tile.isa, speed=0)

    return CodeStore().get_or(("object", tile.isa.name, tile.name), build)


def kernel_object(kernel, isa):
    externs = [tile.extern for tile in kernel.tiles]

    def build():
        text = lower(kernel.source, kernel.name, kernel.params, isa, externs)
        return objects.build(text, [kernel.name], isa, [extern.name for extern in externs])

    return CodeStore().get_or(("kernel", isa.name, kernel.source, kernel.params, externs), build)


@cache
def entry(kernel, isa):
    """The linked kernel, as `f(words, thread, threads)`."""
    linked = link([kernel_object(kernel, isa), *map(tile_object, kernel.tiles)], [kernel.name])
    prototype = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
    function = prototype(linked.address(kernel.name))
    function.linked = linked
    return function


@cache
def tile_entry(tile):
    """The linked tile, as a C function of words."""
    linked = link([tile_object(tile)], [tile.name])
    function = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * len(tile.params))(
        linked.address(tile.name)
    )
    function.linked = linked
    return function


def words(params, values):
    """The argument words: addresses of arrays, and integers."""
    chosen = [values[param.name] for param in params]
    return [v.ctypes.data if isinstance(v, np.ndarray) else int(v) for v in chosen]


def run(kernel, isa, values, threads=1):
    """Run a kernel's share of every thread, one after the other, the last one first."""
    row = np.array(words(kernel.params, values), np.int64)
    function = entry(kernel, isa)
    for thread in reversed(range(threads)):
        function(row.ctypes.data, thread, threads)


def guarded(shape, dtype):
    """An array of NaN, and a check that nothing was written around it."""
    count = int(np.prod(shape))
    kind = {"float32": (np.uint32, 0x7FC0BEEF), "float64": (np.uint64, 0x7FF80000DEADBEEF)}
    bits, pattern = kind[dtype]
    memory = np.full(count + 2 * GUARD, pattern, bits)
    inside = memory[GUARD : GUARD + count].view(dtype).reshape(shape)
    inside[...] = np.nan

    def check():
        assert (memory[:GUARD] == pattern).all(), "written before the array"
        assert (memory[GUARD + count :] == pattern).all(), "written behind the array"

    return inside, check


def bound(x_abs_w_abs, products, dtype, roundings=0):
    """gamma_(K + c) times the product of absolute values."""
    u = np.finfo(dtype).eps / 2
    n = products + roundings
    return n * u / (1 - n * u) * x_abs_w_abs


def panels(w):
    """[G, N, A, B, C] in panels: [G, ceil(N / 32), A, B, C, 32]."""
    groups, columns, *rest = w.shape
    count = -(-columns // 32)
    full = np.zeros((groups, count * 32, *rest), w.dtype)
    full[:, :columns] = w
    return np.ascontiguousarray(np.moveaxis(full.reshape(groups, count, 32, *rest), 2, -1))
