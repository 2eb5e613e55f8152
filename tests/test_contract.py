"""Contraction kernels: products and convolutions against float64, threads, edges."""

import itertools

import numpy as np
import pytest
import torch
from helpers.native_kernels import LEVELS, bound, guarded, panels, run

from dlc.backends.native.isa import LEVELS as ALL_LEVELS
from dlc.backends.native.python_twin import run as run_twin
from dlc.backends.numba_cpu.contract import (
    Contraction,
    conv2d_sizes,
    matmul_sizes,
    scratch_elements,
    tile_vectors,
)
from dlc.backends.numba_cpu.vectors import PLAIN, Epilogue, Operand
from dlc.errors import CompileError

BIAS = Epilogue("relu(acc + bias)", (Operand("bias", "column"),))
RESIDUAL = Epilogue(
    "relu(acc + bias + shortcut)", (Operand("bias", "column"), Operand("shortcut", "full"))
)
ACCUMULATE = Epilogue("acc + old", (Operand("old", "full"),))
HOST = LEVELS[-1]

levels = pytest.mark.parametrize("isa", LEVELS, ids=lambda isa: isa.name)
dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


def strides(array):
    return tuple(step // array.itemsize for step in array.strides)


def all_threads(contraction, values, y):
    """The result with 1 thread, after checking that 2 and 3 give the same bits."""
    results = []
    for threads in (1, 2, 3):
        y[...] = np.nan
        run(contraction.kernel, contraction.isa, values, threads)
        results.append(y.copy())
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])
    return results[0]


# Matrix products.


def matmul(rng, isa, dtype, batch, rows, columns, depth, vectors=None):
    """Run x w + bias with ReLU and compare it element by element."""
    vectors = vectors or tile_vectors(isa, dtype, columns)
    contraction = Contraction(isa, dtype, BIAS, vectors)
    x = rng.standard_normal((batch, rows, depth)).astype(dtype)
    w = rng.standard_normal((batch, depth, columns)).astype(dtype)
    bias = rng.standard_normal(columns).astype(dtype)
    y, check = guarded((batch, rows, columns), dtype)
    packed = panels(w.transpose(0, 2, 1)[:, :, None, None])
    values = {"x": x, "w": packed, "y": y, "bias": bias}
    values |= matmul_sizes(BIAS, rows=rows, columns=columns, depth=depth, batch=batch)
    result = all_threads(contraction, values, y)
    check()
    exact = [each.astype(np.float64) for each in (x, w, bias)]
    expected = np.maximum(exact[0] @ exact[1] + exact[2], 0)
    size = np.abs(exact[0]) @ np.abs(exact[1]) + np.abs(exact[2])
    assert (np.abs(result - expected) <= bound(size, depth, dtype, roundings=1)).all()
    return result


@levels
@dtypes
def test_matmul_of_every_width(rng, isa, dtype):
    for columns in range(1, 71):
        matmul(rng, isa, dtype, 1, 5, columns, 7)


@levels
def test_matmul_of_every_height(rng, isa):
    rows = Contraction(isa, "float32").tiles[0].rows
    heights = {0, 1, 2, rows - 1, rows, rows + 1, 2 * rows - 1, 57, 100}
    for height, columns, depth in itertools.product(heights, (33, 64), (1, 300)):
        matmul(rng, isa, "float32", 1, height, columns, depth)


@levels
def test_batched_matmul(rng, isa):
    for batch, rows, columns, depth in ((3, 4, 40, 17), (2, 20, 5, 64), (0, 3, 3, 3), (7, 1, 1, 1)):
        matmul(rng, isa, "float32", batch, rows, columns, depth)


def test_matmul_with_rows_that_alias_in_the_cache(rng):
    matmul(rng, HOST, "float32", 1, 29, 65, 1024)


def test_matmul_of_no_products_is_the_epilogue_of_zero(rng):
    assert (matmul(rng, HOST, "float32", 1, 3, 33, 0) >= 0).all()


@levels
@pytest.mark.parametrize("transposed", [False, True])
def test_matmul_that_packs_has_the_bits_of_one_that_does_not(rng, isa, transposed):
    for batch, rows, columns, depth in (
        (1, 29, 71, 130),
        (3, 5, 64, 300),
        (2, 1, 9, 1),
        (1, 3, 4, 0),
    ):
        x = rng.standard_normal((batch, rows, depth)).astype("float32")
        w = rng.standard_normal((batch, columns, depth)).astype("float32")
        bias = rng.standard_normal(columns).astype("float32")
        sizes = {"rows": rows, "columns": columns, "depth": depth, "batch": batch}
        packed, plain = np.empty((2, batch, rows, columns), "float32")
        values = {"x": x, "w": panels(w[:, :, None, None]), "y": packed, "bias": bias}
        values |= matmul_sizes(BIAS, **sizes)
        run(Contraction(isa, "float32", BIAS).kernel, isa, values)
        vectors = tile_vectors(isa, "float32", columns)
        contraction = Contraction(isa, "float32", BIAS, vectors, packs=True)
        right = w if transposed else np.ascontiguousarray(w.transpose(0, 2, 1))
        step, column = (1, depth) if transposed else (columns, 1)
        scratch, check = guarded((3 * scratch_elements(depth),), "float32")
        values = {"x": x, "w": right, "y": plain, "bias": bias, "scratch": scratch}
        values |= matmul_sizes(BIAS, **sizes, w_strides=(columns * depth, step, column))
        np.testing.assert_array_equal(all_threads(contraction, values, plain), packed)
        check()


def test_tiles_do_not_change_bits(rng):
    for columns in (5, 40, 48):
        widths = [(2,), (2, 1), (1,)]
        results = [
            matmul(np.random.default_rng(1), HOST, "float32", 1, 9, columns, 300, each)
            for each in widths
        ]
        assert all(np.array_equal(results[0], each) for each in results)


@levels
def test_narrow_tiles(isa):
    lanes = isa.lanes("float32")
    widths = {1: (1,), lanes: (1,), lanes + 1: (2,), 2 * lanes: (2,), 2 * lanes + 1: (2, 1)}
    for columns, vectors in widths.items():
        assert tile_vectors(isa, "float32", columns) == vectors


@levels
def test_matmul_of_strided_rows_with_shared_weights(rng, isa):
    """Two batches in the columns of wider rows; the weights are one matrix."""
    x, memory = rng.standard_normal((2, 5, 2, 20)).astype("float32")
    w = rng.standard_normal((20, 12)).astype("float32")
    wide, check = guarded((5, 2, 15), "float32")
    bias, shortcut = rng.standard_normal(12).astype("float32"), memory[:, :, :12]
    values = {"x": x, "w": panels(w.T[None, :, None, None]), "y": wide, "bias": bias}
    values |= {"shortcut": shortcut}
    values |= matmul_sizes(
        RESIDUAL,
        rows=5,
        columns=12,
        depth=20,
        batch=2,
        x_strides=(20, 40),
        y_strides=(15, 30),
        fulls={"shortcut": (20, 40)},
    )
    values["w_group"] = 0
    run(Contraction(isa, "float32", RESIDUAL).kernel, isa, values, threads=2)
    check()
    expected = np.maximum(x.astype(np.float64) @ w + bias + shortcut, 0)
    np.testing.assert_allclose(wide[:, :, :12], expected, 1e-5, 1e-5)
    assert np.isnan(wide[:, :, 12:]).all()


@levels
def test_accumulating_in_place(rng, isa):
    x = rng.standard_normal((20, 30)).astype("float32")
    w = rng.standard_normal((30, 37)).astype("float32")
    y, check = guarded((20, 37), "float32")
    y[...] = before = rng.standard_normal((20, 37)).astype("float32")
    values = {"x": x, "w": panels(w.T[None, :, None, None]), "y": y, "old": y}
    values |= matmul_sizes(ACCUMULATE, rows=20, columns=37, depth=30)
    run(Contraction(isa, "float32", ACCUMULATE).kernel, isa, values, threads=3)
    check()
    np.testing.assert_allclose(y, before + x @ w, 1e-5, 1e-5)


# Convolutions.


def convolve(
    rng, isa, dtype, *, shape, columns, kernel, stride, dilation, groups, planes=False, pitch=0
):
    """Run a convolution with bias, shortcut and ReLU, NHWC or NCHW to NHWC; compare it."""
    images, channels = shape[:2]
    x = rng.standard_normal(shape).astype(dtype)
    w = rng.standard_normal((columns, channels // groups, *kernel)).astype(dtype)
    bias = rng.standard_normal(columns).astype(dtype)
    image = x.copy() if planes else widened(x.transpose(0, 2, 3, 1), pitch)
    order = [0, 3, 1, 2] if not planes else [0, 1, 2, 3]
    expected, size = reference(x, w, bias, stride, dilation, groups)
    lines, pixels = expected.shape[1:3]
    # The result lies inside a larger image, its halo, which stays as it is.
    outer, check = guarded((images, lines + 2, pixels + 3, columns), dtype)
    y = outer[:, 1 : lines + 1, 2 : pixels + 2]
    shortcut = rng.standard_normal(expected.shape).astype(dtype)
    grouped = w.reshape(groups, columns // groups, *w.shape[1:])
    packed = panels(grouped if planes else grouped.transpose(0, 1, 3, 4, 2))
    steps = [strides(image)[axis] for axis in order]
    values = {"x": image, "w": packed, "y": y, "bias": bias, "shortcut": shortcut}
    values |= conv2d_sizes(
        RESIDUAL,
        shape=(images, lines, pixels),
        columns=columns // groups,
        channels=channels // groups,
        kernel=kernel,
        x_strides=(steps[0], steps[2], steps[3], steps[1]),
        y_strides=strides(outer)[:3],
        stride=stride,
        dilation=dilation,
        groups=groups,
        fulls={"shortcut": strides(shortcut)[:3]},
    )
    contraction = Contraction(isa, dtype, RESIDUAL, tile_vectors(isa, dtype, columns // groups))
    result = all_threads(contraction, values, y)
    check()
    outside = np.ones(outer.shape, bool)
    outside[:, 1 : lines + 1, 2 : pixels + 2] = False
    assert np.isnan(outer[outside]).all()
    expected = np.maximum(expected + shortcut, 0)
    products = w[0].size
    limit = bound(size + np.abs(shortcut), products, dtype, roundings=2)
    assert (np.abs(result - expected) <= limit).all()


def widened(x, pitch):
    """NHWC with `pitch` more elements from pixel to pixel, NaN in between."""
    *shape, channels = x.shape
    memory = np.full((*shape, channels + pitch), np.nan, x.dtype)
    memory[..., :channels] = x
    return memory[..., :channels]


def reference(x, w, bias, stride, dilation, groups):
    """NHWC result in float64, and that of the absolute values."""
    options = {"stride": stride, "dilation": dilation, "groups": groups}
    results = []
    for convert in (np.asarray, np.abs):
        arrays = [torch.from_numpy(convert(each).astype(np.float64)) for each in (x, w, bias)]
        result = torch.nn.functional.conv2d(*arrays, **options)
        results.append(result.numpy().transpose(0, 2, 3, 1))
    return results


GRID = [
    # images, channels, height, width; columns; kernel; stride; dilation; groups
    ((1, 3, 15, 17), 40, (7, 7), (2, 2), (1, 1), 1),
    ((2, 16, 9, 9), 33, (3, 3), (1, 1), (1, 1), 1),
    ((3, 32, 5, 5), 64, (3, 3), (2, 2), (1, 1), 1),
    ((1, 64, 7, 7), 32, (1, 1), (1, 1), (1, 1), 1),
    ((2, 24, 9, 8), 20, (1, 1), (2, 2), (1, 1), 1),
    ((1, 8, 12, 11), 12, (3, 3), (1, 2), (2, 2), 1),
    ((1, 8, 6, 20), 70, (2, 5), (2, 1), (1, 3), 1),
    ((2, 12, 7, 7), 24, (3, 3), (1, 1), (1, 1), 4),
    ((1, 64, 6, 6), 66, (3, 1), (1, 1), (1, 1), 2),
    ((5, 4, 3, 3), 6, (3, 3), (1, 1), (1, 1), 1),
    ((1, 130, 4, 33), 5, (3, 3), (1, 1), (1, 1), 1),
]


@levels
@pytest.mark.parametrize("case", GRID, ids=lambda case: "x".join(map(str, case[0])))
def test_conv2d(rng, isa, case):
    shape, columns, kernel, stride, dilation, groups = case
    sizes = {"shape": shape, "columns": columns, "kernel": kernel, "stride": stride}
    sizes |= {"dilation": dilation, "groups": groups}
    convolve(rng, isa, "float32", **sizes)
    convolve(rng, isa, "float32", **sizes, pitch=5)


@levels
@pytest.mark.parametrize("case", GRID[1::4], ids=lambda case: "x".join(map(str, case[0])))
def test_conv2d_in_float64(rng, isa, case):
    shape, columns, kernel, stride, dilation, groups = case
    sizes = {"shape": shape, "columns": columns, "kernel": kernel, "stride": stride}
    convolve(rng, isa, "float64", **sizes, dilation=dilation, groups=groups)


@levels
def test_conv2d_of_planes(rng, isa):
    for shape, kernel, stride in (
        ((2, 1, 12, 13), (5, 5), (1, 1)),
        ((1, 3, 15, 14), (7, 7), (2, 2)),
    ):
        sizes = {"shape": shape, "columns": 6, "kernel": kernel, "stride": stride}
        convolve(rng, isa, "float32", **sizes, dilation=(2, 1), groups=1, planes=True)


def test_conv2d_of_pixels_that_alias_in_the_cache(rng):
    sizes = {"shape": (1, 1024, 6, 6), "columns": 33, "kernel": (1, 1), "stride": (1, 1)}
    convolve(rng, HOST, "float32", **sizes, dilation=(1, 1), groups=1)


def test_conv2d_refuses_what_it_cannot_read():
    sizes = {"shape": (1, 4, 4), "columns": 8, "channels": 4, "kernel": (3, 3)}
    with pytest.raises(CompileError, match="contiguous channels, or contiguous pixels"):
        conv2d_sizes(PLAIN, **sizes, x_strides=(64, 16, 2, 32), y_strides=(128, 32, 8))
    with pytest.raises(CompileError, match="of 2 groups"):
        conv2d_sizes(PLAIN, **sizes, x_strides=(64, 4, 1, 16), y_strides=(128, 32, 8), groups=2)


# The source.


def test_source_runs_as_python(rng):
    """A convolution whose tiles run over the ends of lines and images, statement by statement."""
    contraction = Contraction(ALL_LEVELS["x86-64-v3"], "float64", BIAS, (2, 1))
    x = rng.standard_normal((2, 5, 5, 3))
    w = rng.standard_normal((18, 3, 3, 3))
    bias = rng.standard_normal(18)
    y = np.full((2, 3, 3, 18), np.nan)
    packed = panels(w.transpose(0, 2, 3, 1)[None])
    values = {"x": x, "w": packed, "y": y, "bias": bias}
    values |= conv2d_sizes(
        BIAS,
        shape=(2, 3, 3),
        columns=18,
        channels=3,
        kernel=(3, 3),
        x_strides=strides(x),
        y_strides=strides(y)[:3],
    )
    kernel = contraction.kernel
    arguments = [values[param.name] for param in kernel.params]
    twins = {tile.name: tile.twin() for tile in contraction.tiles}
    for thread in range(2):
        run_twin(kernel.source, kernel.name, arguments, thread, 2, twins)
    image = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    expected, _ = reference(image, w, bias, (1, 1), (1, 1), 1)
    np.testing.assert_allclose(y, np.maximum(expected, 0), 1e-12, 1e-12)


def test_one_kernel_serves_all_sizes_and_names_tell_kernels_apart():
    kernels = [
        Contraction(isa, dtype, epilogue, vectors).kernel
        for isa in ALL_LEVELS.values()
        for dtype in ("float32", "float64")
        for epilogue in (PLAIN, BIAS, RESIDUAL)
        for vectors in ((2,), (2, 1), (1,))
    ]
    assert len({kernel.name for kernel in kernels}) == len(kernels)
    assert Contraction(HOST, "float32").kernel == Contraction(HOST, "float32").kernel


def test_operands_may_not_take_the_kernels_names():
    for name in ("x", "parts", "bias_group"):
        operands = (Operand("bias", "column"), Operand(name, "column"))
        with pytest.raises(CompileError, match=f"the name {name} itself; rename the operand"):
            _ = Contraction(HOST, "float32", Epilogue(f"acc + {name}", operands)).kernel


def test_nothing_outside_the_arrays_is_read(run_python):
    """Every array ends where the process has no memory: reading on would kill it."""
    assert run_python(FENCED) == "read nothing else\n"


FENCED = """
    import sys
    sys.path[:0] = ["tests", "."]
    import numpy as np
    from helpers.fenced import fenced
    from helpers.native_kernels import LEVELS, panels, run
    from dlc.backends.numba_cpu.contract import Contraction, matmul_sizes, tile_vectors
    from dlc.backends.numba_cpu.vectors import Epilogue, Operand

    epilogue = Epilogue("acc + bias + r", (Operand("bias", "column"), Operand("r", "full")))
    for isa in LEVELS:
        for rows, columns, depth in ((1, 1, 1), (3, 5, 7), (15, 35, 16), (7, 17, 3)):
            rng = np.random.default_rng(0)
            shapes = ((rows, depth), (columns,), (rows, columns), (rows, columns))
            x, bias, r, y = (fenced(rng.standard_normal(s).astype("float32")) for s in shapes)
            w = rng.standard_normal((1, columns, 1, 1, depth)).astype("float32")
            values = {"x": x, "w": fenced(panels(w)), "y": y, "bias": bias, "r": r}
            values |= matmul_sizes(epilogue, rows=rows, columns=columns, depth=depth)
            vectors = tile_vectors(isa, "float32", columns)
            run(Contraction(isa, "float32", epilogue, vectors).kernel, isa, values)
            np.testing.assert_allclose(y, x @ w[0, :, 0, 0].T + bias + r, 1e-4, 1e-4)
    print("read nothing else")
"""
