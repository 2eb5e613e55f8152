"""Kernels of movement: runs, blocks transposed in registers, and what they leave to others."""

import numpy as np
import pytest
from helpers.native_kernels import LEVELS, guarded, tile_entry
from helpers.three_ways import Program

import dlc
from dlc.backends.native import objects
from dlc.backends.native.isa import LEVELS as ALL_LEVELS
from dlc.backends.native.isa import host
from dlc.backends.numba_cpu.transpose import TransposeTile
from dlc.errors import NumericsError
from dlc.ir.pattern import op
from dlc.ir.sizes import Dim
from dlc.runtime import elf

ROWS, COLUMNS = Dim("rows", 0, 200), Dim("columns", 0, 200)
#: Edges of tiles of 4, 8 and 16, and of blocks of 64.
EDGES = [(0, 5), (1, 1), (3, 17), (15, 16), (16, 15), (17, 33), (63, 65), (64, 64), (130, 65)]

#: How the source calls a tile.
TILE = f"{TransposeTile(host(), 'float32').name.rsplit('_', 2)[0]}_"

levels = pytest.mark.parametrize("isa", LEVELS, ids=lambda isa: isa.name)
dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


def turned(x):
    return op.transpose(x, axes=(1, 0))


def state(x):
    """Weights (KH, KW, I, O), as a step keeps them, as OIHW."""
    return op.transpose(x, axes=(3, 2, 0, 1))


def moved(function, arrays, *specs):
    """The result three ways and with several threads, which all agree; and the kernels' source."""
    program = Program(function, *specs)
    named = {node.name: array for node, array in zip(program.graph.inputs, arrays, strict=True)}
    expected = program.reference(named)
    for way, threads in (("compiled", 1), ("compiled", 2), ("compiled", 3), ("python", 2)):
        for got, want in zip(program.run(named, way, threads)[0], expected, strict=True):
            assert got.dtype == want.dtype
            np.testing.assert_array_equal(got, want)
    return "".join(kernel.source for kernel in program.lowered(host())[1].values())


# The tile.


@levels
@dtypes
def test_a_tile_transposes(rng, isa, dtype):
    tile = TransposeTile(isa, dtype)
    n = tile.width
    x = rng.normal(size=(n, n + 3)).astype(dtype)
    y, check = guarded((n, n + 5), dtype)
    tile_entry(tile)(x.ctypes.data, n + 3, y.ctypes.data, n + 5)
    check()
    np.testing.assert_array_equal(y[:, :n], x[:, :n].T)
    assert np.isnan(y[:, n:]).all()


@dtypes
@pytest.mark.parametrize("level", ALL_LEVELS)
def test_tiles_are_built_for_every_level(level, dtype):
    tile = TransposeTile(ALL_LEVELS[level], dtype)
    code = objects.build(tile.text(), [tile.name], tile.isa, speed=0)
    assert elf.read(code).defined == {tile.name}
    assert not elf.read(code).undefined


# Forms.


@dtypes
@pytest.mark.parametrize("size", EDGES, ids=str)
def test_matrices_are_transposed_in_blocks(rng, size, dtype):
    spec = dlc.TensorSpec((ROWS, COLUMNS), dtype)
    x = rng.normal(size=size).astype(dtype)
    assert TILE in moved(turned, [x], spec)


@pytest.mark.parametrize("columns", [1, 31, 32, 33, 64, 120])
@pytest.mark.parametrize("inputs", [16, 40])
def test_packing_bounds_its_loops(rng, columns, inputs):
    """A ragged panel asks for no column one by one, whichever way the matrix lies."""
    for shape, function in (
        ((inputs, columns), op.pack_matrix),
        ((columns, inputs), lambda x: op.pack_matrix(turned(x))),
    ):
        x = rng.normal(size=shape).astype("float32")
        source = moved(function, [x], dlc.TensorSpec(shape))
        assert " if filled < " in source or columns % 32 == 0
        assert "g1 = " not in source


@pytest.mark.parametrize("turn", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_packing_weights_as_a_step_keeps_them(rng, groups, turn):
    def pack(x):
        return op.pack_conv(state(x), groups=groups, planes=False, turned=turn)

    for outputs, inputs in ((64, 32), (66, 33), (2, 70), (40, 1)):
        x = rng.normal(size=(3, 2, inputs, outputs)).astype("float32")
        source = moved(pack, [x], dlc.TensorSpec(x.shape))
        if inputs >= 32:
            assert (TILE in source) == (turn and outputs // groups >= 16)


def test_images_change_their_order(rng):
    for shape, axes in (
        ((2, 20, 5, 7), (0, 2, 3, 1)),
        ((2, 5, 7, 20), (0, 3, 1, 2)),
        ((3, 1, 4, 4), (0, 2, 3, 1)),
    ):
        x = rng.normal(size=shape).astype("float32")
        moved(lambda x, axes=axes: op.transpose(x, axes=axes), [x], dlc.TensorSpec(shape))


def test_elements_of_any_type(rng):
    for dtype in ("bool", "uint8", "int32", "int64"):
        x = rng.integers(0, 2, (20, 35)).astype(dtype)
        moved(turned, [x], dlc.TensorSpec(x.shape, dtype))
        moved(lambda x: op.flip(x[3:, 2:], axes=(0,)), [x], dlc.TensorSpec(x.shape, dtype))


def test_an_element_repeated_is_a_run_of_steps_of_nothing(rng):
    x = rng.normal(size=(20, 1, 30)).astype("float32")
    moved(lambda x: op.expand(x, shape=(20, 17, 30)), [x], dlc.TensorSpec(x.shape))
    y = rng.normal(size=(30, 1)).astype("float32")
    moved(lambda y: op.expand(y, shape=(30, 20)), [y], dlc.TensorSpec(y.shape))


# What has another form.


def test_several_guards_are_asked_one_by_one(rng):
    x = rng.normal(size=(9, 20)).astype("float32")
    for function in (
        lambda x: op.pad(x, low=(1, 2), high=(0, 1), value=3.0),
        lambda x: op.pad(x, low=(0, 2), high=(0, 0), value=3.0),  # one that begins late
        lambda x: op.concat(x, x, axis=1),
    ):
        source = moved(function, [x], dlc.TensorSpec(x.shape))
        assert "filled" not in source


def test_one_guard_fills_with_its_value(rng):
    x = rng.normal(size=(9, 20)).astype("float32")
    for function in (
        lambda x: op.pad(x, low=(0, 0), high=(0, 13), value=3.0),
        lambda x: op.pad(turned(x), low=(0, 0), high=(0, 13), value=-1.0),
    ):
        assert "filled" in moved(function, [x], dlc.TensorSpec(x.shape))


def test_a_halo_around_one_element_is_no_run(rng):
    x = rng.normal(size=(2, 3, 20, 1)).astype("float32")
    halo = ((0, 0), (0, 0), (1, 0), (2, 1))
    moved(
        lambda x: op.relu(op.relayout(x, order=(0, 1, 2, 3), halo=halo)),
        [x],
        dlc.TensorSpec(x.shape),
    )


def test_a_check_is_no_movement():
    exe = dlc.compile(lambda x: op.check_finite(x), dlc.TensorSpec((40,)))
    with pytest.raises(NumericsError):
        exe(np.full(40, np.nan, "float32"))


def test_work_on_the_way_is_a_loop_over_elements(rng):
    x = rng.normal(size=(20, 33)).astype("float32")
    program = Program(lambda x: op.relu(turned(x)), dlc.TensorSpec(x.shape))
    np.testing.assert_array_equal(program.run({"x": x})[0][0], np.maximum(x.T, 0))
