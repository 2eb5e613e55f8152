"""Contractions over strided operands: weight gradients and transposed products, against float64."""

import itertools

import numpy as np
import pytest
import torch
from helpers.cases import graph_of
from helpers.native_kernels import LEVELS, bound, guarded, run
from helpers.schedules import main

import dlc
from dlc import functional as F
from dlc import nn, optim
from dlc.backends.native import objects
from dlc.backends.native.isa import LEVELS as ALL_LEVELS
from dlc.backends.native.python_twin import run as run_twin
from dlc.backends.numba_cpu.strided import (
    Strided,
    across_sizes,
    strided_vectors,
    weight_grad_sizes,
)
from dlc.backends.numba_cpu.vectors import PLAIN, Epilogue, Operand
from dlc.driver import run_native
from dlc.ir.pattern import op
from dlc.ir.types import tensor
from dlc.passes.schedule import schedule

UPDATE = Epilogue(
    "p - lr * (acc + scale)",
    (Operand("p", "full"), Operand("lr", "scalar"), Operand("scale", "column")),
)
HOST = LEVELS[-1]

levels = pytest.mark.parametrize("isa", LEVELS, ids=lambda isa: isa.name)
dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


def steps(array):
    return tuple(step // array.itemsize for step in array.strides)


def results(strided, values, y, old, thread_counts=(1, 2, 3)):
    """The result, which takes the place of `old`: the same bits for every number of threads, the
    operands unchanged.
    """
    operands = {n: v.copy() for n, v in values.items() if isinstance(v, np.ndarray)}
    found = []
    for threads in thread_counts:
        y[...] = old
        scratch, check = guarded((strided.scratch_elements * threads,), strided.dtype)
        run(strided.kernel, strided.isa, {**values, "y": y, "p": y, "scratch": scratch}, threads)
        check()
        found.append(y.copy())
    for other in found[1:]:
        np.testing.assert_array_equal(found[0], other)
    for name, before in operands.items():
        np.testing.assert_array_equal(before, values[name])
    return found[0]


def updated(acc, size, products, old, values, dtype):
    """What `UPDATE` makes of exact sums, and how far from it is rounding."""
    lr, scale = values["lr"].astype(float), values["scale"].astype(float)
    whole = lr * (size + np.abs(scale)) + np.abs(old)
    return old - lr * (acc + scale), bound(whole, products, dtype, roundings=4)


# Products.


def across(rng, isa, dtype, batch, rows, columns, depth, vectors=None):
    """Run old - lr (x^T w + scale) in place and compare it element by element; threads share tiles,
    or rows, with the same bits.
    """
    vectors = vectors or strided_vectors(isa, dtype, columns)
    kinds = [Strided(isa, dtype, UPDATE, vectors, by_rows=by_rows) for by_rows in (False, True)]
    x = rng.standard_normal((batch, depth, rows)).astype(dtype)
    w = rng.standard_normal((batch, depth, columns)).astype(dtype)
    old = rng.standard_normal((batch, rows, columns)).astype(dtype)
    values = {"x": x, "w": w, "lr": np.full(1, 0.25, dtype)}
    values["scale"] = rng.standard_normal(columns).astype(dtype)
    values |= across_sizes(UPDATE, rows=rows, columns=columns, depth=depth, batch=batch)
    y, check = guarded(old.shape, dtype)
    found, by_rows = (results(strided, values, y, old) for strided in kinds)
    check()
    np.testing.assert_array_equal(found, by_rows)
    x64, w64 = x.astype(float).swapaxes(1, 2), w.astype(float)
    sizes = np.abs(x64) @ np.abs(w64)
    expected, limit = updated(x64 @ w64, sizes, depth, old.astype(float), values, dtype)
    assert (np.abs(found - expected) <= limit).all()
    return found


@levels
@dtypes
def test_products_of_every_width(rng, isa, dtype):
    for columns in range(1, 71):
        across(rng, isa, dtype, 1, 5, columns, 7)


@levels
def test_products_of_every_height(rng, isa):
    rows = Strided(isa, "float32").tiles[0].rows
    heights = {0, 1, 2, rows - 1, rows, rows + 1, 2 * rows - 1, 57, 100}
    for height, columns, depth in itertools.product(heights, (3, 33, 64), (1, 255, 256, 257, 700)):
        across(rng, isa, "float32", 1, height, columns, depth)


@levels
def test_batches_and_no_products(rng, isa):
    for batch, rows, columns, depth in ((3, 4, 40, 17), (0, 3, 3, 3), (7, 1, 1, 1), (2, 3, 33, 0)):
        across(rng, isa, "float32", batch, rows, columns, depth)


@levels
def test_more_tiles_than_keep_their_sums(rng, isa):
    rows = 150 * Strided(isa, "float32").tiles[0].rows + 3
    across(rng, isa, "float32", 1, rows, 5, 300)


def test_tiles_and_levels_do_not_change_bits():
    fused = [isa for isa in LEVELS if isa.fma]
    found = [
        across(np.random.default_rng(1), isa, "float32", 1, 40, columns, 600, vectors)
        for isa in fused
        for vectors in ((2,), (2, 1), (1,), (0.5,))
        for columns in (20,)
    ]
    assert all(np.array_equal(found[0], each) for each in found)


@levels
def test_tiles_for_columns(isa):
    lanes = isa.lanes("float32")
    narrow = (0.5,)
    expected = {lanes // 2: narrow, lanes // 2 + 1: (1,), lanes: (1,), lanes + 1: (2,)}
    expected |= {2 * lanes: (2,), 2 * lanes + 1: (2, 1), 3 * lanes + 1: (2,)}
    for columns, vectors in expected.items():
        assert strided_vectors(isa, "float32", columns) == vectors


# Weight gradients.


def padded(x, padding, planes, pitch=0):
    """An image NCHW in planes or channels last, zeros around it, NaN between pixels."""
    framed = np.pad(x, ((0, 0), (0, 0), *padding))
    if planes:
        return framed
    memory = np.full((*framed.shape[:1], *framed.shape[2:], x.shape[1] + pitch), np.nan, x.dtype)
    memory[..., : x.shape[1]] = framed.transpose(0, 2, 3, 1)
    return memory[..., : x.shape[1]]


def exact(x, g, kernel, **slide):
    """The gradient (O, I, KH, KW) in float64."""
    (top, bottom), (left, right) = slide.pop("padding")
    framed = np.pad(x.astype(float), ((0, 0), (0, 0), (top, bottom), (left, right)))
    shape = (g.shape[1], x.shape[1] // slide["groups"], *kernel)
    images = torch.from_numpy(framed)
    w = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    y = torch.nn.functional.conv2d(images, w, **slide)
    y.backward(torch.from_numpy(g.astype(float)))
    return w.grad.numpy()


def gradient(rng, isa, dtype, case, planes=False, parts=1, pitch=0, spoil=None):
    """Run the update of a weight with its gradient and compare it element by element."""
    shape, outputs, kernel, slide = case
    groups, (images, inputs) = slide["groups"], shape[:2]
    x = rng.standard_normal(shape).astype(dtype)
    size = conv_shape(shape, kernel, slide)
    g = rng.standard_normal((images, outputs, *size)).astype(dtype)
    if spoil:
        spoil(x, g)
    alone = groups == inputs == outputs and groups > 1
    groups = 1 if alone else groups
    columns, channels = outputs // groups, 1 if alone else inputs // groups
    image, grad = padded(x, slide["padding"], planes, pitch), padded(g, ((1, 0), (0, 2)), False)
    order = (0, 2, 3, 1) if planes else (0, 1, 2, 3)
    strided = Strided(isa, dtype, UPDATE, strided_vectors(isa, dtype, columns), lanewise=alone)
    values = {"x": image, "w": grad[:, 1:], "lr": np.full(1, 0.25, dtype)}
    values["scale"] = rng.standard_normal(outputs).astype(dtype)
    values |= weight_grad_sizes(
        UPDATE,
        shape=(images, *size),
        columns=columns,
        channels=channels,
        kernel=kernel,
        x_strides=tuple(steps(image)[axis] for axis in order),
        w_strides=steps(grad)[:3],
        stride=slide["stride"],
        dilation=slide["dilation"],
        groups=groups,
        parts=parts,
    )
    rows = (channels, *kernel) if planes else (*kernel, channels)
    old = rng.standard_normal((parts, *rows, outputs)).astype(dtype)
    y, check = guarded(old.shape, dtype)
    found = results(strided, values, y, old)
    check()
    turn = (1, 2, 3, 0) if planes else (2, 3, 1, 0)
    for part in range(parts):
        own = slice(images * part // parts, images * (part + 1) // parts)
        acc = exact(x[own], g[own], kernel, **slide).transpose(turn)
        sizes = exact(np.abs(x[own]), np.abs(g[own]), kernel, **slide).transpose(turn)
        products = len(x[own]) * size[0] * size[1]
        want, limit = updated(acc, sizes, products, old[part].astype(float), values, dtype)
        if spoil:
            np.testing.assert_array_equal(np.isnan(found[part]), np.isnan(want))
            np.testing.assert_array_equal(np.isinf(found[part]), np.isinf(want))
        finite = np.isfinite(want)
        assert (np.abs(found[part][finite] - want[finite]) <= limit[finite]).all()
    return found


def conv_shape(shape, kernel, slide):
    """Rows and columns of the result of a convolution."""
    types = tensor("float32", shape), tensor("float32", (1, shape[1], *kernel))
    attrs = {**slide, "groups": 1}
    return graph_of(types, lambda x, w: op.conv2d(x, w, **attrs)).outputs[0].shape[2:]


def sliding(stride=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1), groups=1):
    return {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}


ONE = ((1, 1), (1, 1))
GRID = [
    # x (N, C, H, W); output channels; kernel; stride, padding, dilation, groups
    ((2, 3, 15, 17), 40, (7, 7), sliding((2, 2), ((3, 3), (3, 2)))),
    ((2, 16, 9, 9), 33, (3, 3), sliding((1, 1), ONE)),
    ((3, 32, 5, 5), 64, (3, 3), sliding((2, 2), ONE)),
    ((1, 30, 7, 7), 32, (1, 1), sliding()),
    ((2, 24, 9, 8), 20, (1, 1), sliding((2, 2))),
    ((1, 8, 12, 11), 12, (3, 3), sliding((1, 2), ONE, (2, 2))),
    ((2, 8, 6, 20), 70, (2, 5), sliding((2, 1), ((0, 1), (2, 0)), (1, 3))),
    ((2, 12, 7, 7), 24, (3, 3), sliding((1, 1), ONE, (1, 1), 4)),
    ((1, 10, 6, 6), 6, (3, 1), sliding((1, 1), ((1, 1), (0, 0)), (1, 1), 2)),
    ((5, 1, 3, 3), 6, (3, 3), sliding((1, 1), ((2, 2), (2, 2)))),
    ((1, 5, 4, 300), 5, (3, 3), sliding((1, 1), ONE)),
    ((2, 40, 6, 7), 40, (3, 3), sliding((2, 1), ONE, (1, 1), 40)),
    ((1, 6, 9, 9), 12, (3, 2), sliding((1, 1), ONE, (2, 1), 6)),
    ((0, 4, 5, 5), 6, (3, 3), sliding()),
]


def ids(case):
    return "x".join(map(str, case[0]))


@levels
@pytest.mark.parametrize("case", GRID, ids=ids)
def test_weight_gradient(rng, isa, case):
    gradient(rng, isa, "float32", case)
    gradient(rng, isa, "float32", case, pitch=3, parts=2)


@levels
@pytest.mark.parametrize("case", GRID[::3], ids=ids)
def test_weight_gradient_in_float64(rng, isa, case):
    gradient(rng, isa, "float64", case)


@levels
@pytest.mark.parametrize("case", [c for c in GRID if c[3]["groups"] == 1], ids=ids)
def test_weight_gradient_of_planes(rng, isa, case):
    gradient(rng, isa, "float32", case, planes=True)
    gradient(rng, isa, "float32", case, planes=True, parts=4)


@levels
@pytest.mark.parametrize("case", [GRID[1], GRID[11]], ids=ids)
def test_infinities_and_nan_go_through(rng, isa, case):
    """To the taps that meet them, and nowhere else: padding is not multiplied by them."""

    def spoil(x, g):
        x[0, 2, 0, 0], x[1, 1, 2, 2] = np.nan, np.inf
        g[0, 3, 1, 1] = -np.inf

    gradient(rng, isa, "float32", case, spoil=spoil)


def test_source_runs_as_python(rng):
    """Tiles that run over the ends of runs, several chains, an update, statement by statement."""
    for lanewise, columns, channels in ((False, 5, 3), (True, 5, 1)):
        isa = ALL_LEVELS["x86-64-v3"]
        strided = Strided(isa, "float64", UPDATE, (2, 1), lanewise=lanewise)
        x, g = rng.standard_normal((4, 5, 6, 11)), rng.standard_normal((4, 3, 5, columns))
        inputs = columns if lanewise else channels
        image = np.ascontiguousarray(x[..., :inputs])
        old = rng.standard_normal((2, 3, 2, channels, columns))
        y = old.copy()
        values = {"x": image, "w": g, "y": y, "p": y, "lr": np.full(1, 0.5)}
        values |= {"scale": rng.standard_normal(columns)}
        values["scratch"] = np.full(2 * strided.scratch_elements, np.nan)
        values |= weight_grad_sizes(
            UPDATE,
            shape=g.shape[:3],
            columns=columns,
            channels=channels,
            kernel=(3, 2),
            x_strides=steps(image),
            w_strides=steps(g)[:3],
            parts=2,
        )
        kernel = strided.kernel
        twins = {each.name: each.twin() for each in (*strided.tiles, *strided.stores)}
        for thread in range(2):
            arguments = [values[param.name] for param in kernel.params]
            run_twin(kernel.source, kernel.name, arguments, thread, 2, twins)
        groups = columns if lanewise else 1
        for part, own in enumerate((slice(0, 2), slice(2, 4))):
            nchw = (image[own].transpose(0, 3, 1, 2), g[own].transpose(0, 3, 1, 2))
            acc = exact(*nchw, (3, 2), **sliding(groups=groups))
            acc = acc.transpose(2, 3, 1, 0)
            want = old[part] - 0.5 * (acc + values["scale"])
            np.testing.assert_allclose(y[part], want, 1e-12, 1e-12)


def test_names_tell_kernels_apart():
    kernels = [
        Strided(isa, dtype, epilogue, vectors, lanewise, by_rows)
        for isa in ALL_LEVELS.values()
        for dtype in ("float32", "float64")
        for epilogue in (PLAIN, UPDATE)
        for vectors in ((2,), (2, 1), (1,), (0.5,))
        for lanewise in (False, True)
        for by_rows in (False, True)
    ]
    assert len({each.kernel.name for each in kernels}) == len(kernels)
    natives = {native for each in kernels for native in each.kernel.tiles}
    assert len({native.name for native in natives}) == len(natives)


def test_objects_for_aarch64():
    strided = Strided(ALL_LEVELS["aarch64"], "float32", UPDATE, (2, 1, 0.5))
    for each in (*strided.tiles, *strided.stores):
        assert objects.build(each.text(), [each.name], each.isa, speed=0)


def test_nothing_outside_the_arrays_is_read(run_python):
    """Every array ends where the process has no memory: reading on would kill it."""
    assert run_python(FENCED) == "read nothing else\n"


FENCED = """
    import sys
    sys.path[:0] = ["tests", "."]
    import numpy as np
    from helpers.fenced import fenced
    from helpers.native_kernels import LEVELS, run
    from dlc.backends.numba_cpu.strided import Strided, across_sizes, strided_vectors
    from dlc.backends.numba_cpu.vectors import Epilogue, Operand

    operands = (Operand("p", "full"), Operand("lr", "scalar"), Operand("scale", "column"))
    epilogue = Epilogue("p - lr * (acc + scale)", operands)  # `UPDATE`
    for isa in LEVELS:
        for rows, columns, depth in ((1, 1, 1), (3, 5, 7), (15, 35, 16), (7, 17, 3)):
            rng = np.random.default_rng(0)
            shapes = ((depth, rows), (depth, columns), (columns,), (1,), *[(rows, columns)] * 2)
            arrays = [fenced(rng.standard_normal(s).astype("float32")) for s in shapes]
            values = dict(zip(("x", "w", "scale", "lr", "p", "y"), arrays))
            strided = Strided(isa, "float32", epilogue, strided_vectors(isa, "float32", columns))
            values["scratch"] = np.zeros(strided.scratch_elements, "float32")
            values |= across_sizes(epilogue, rows=rows, columns=columns, depth=depth)
            run(strided.kernel, isa, values)
            x, w, scale, lr, p, y = arrays
            np.testing.assert_allclose(y, p - lr * (x.T @ w + scale), 1e-4, 1e-4)
    print("read nothing else")
"""


# In a graph.


def step_of(model, x):
    """The schedule of a step of SGD."""
    step = dlc.train_step(model.train(), nn.CrossEntropyLoss(), optim.SGD(lr=0.1))
    return main(step._traced(), x, np.zeros(len(x), np.int64))


def labels(made):
    return [group.label for group in made.groups if not group.view]


def test_an_update_joins_the_gradient_of_a_convolution_in_place():
    x = np.zeros((2, 32, 6, 6), np.float32)
    model = nn.Sequential(nn.Conv2d(32, 64, 3), nn.Flatten(), nn.Linear(64 * 16, 10))
    made = step_of(model, x)
    (leaf,) = [node for node in made.graph.parameters if node.name == "0.weight"]
    assert made.layouts[leaf].order == (2, 3, 1, 0)
    assert "conv2d_weight_direct+mul+sub" in labels(made)
    assert any(old is leaf for group in made.groups for _, old in group.in_place)


def test_a_small_gradient_is_a_sum_of_parts():
    x = np.zeros((4, 1, 12, 12), np.float32)
    model = nn.Sequential(nn.Conv2d(1, 6, 5), nn.Flatten(), nn.Linear(6 * 64, 10))
    made = step_of(model, x)
    (direct,) = [g.anchor for g in made.groups if g.anchor.op.name == "conv2d_weight_direct"]
    assert direct.shape == (4, 6, 1, 5, 5)
    assert "sum+mul+sub" in labels(made)


@pytest.mark.parametrize(("images", "size", "parts"), [(8, 28, 2), (1, 28, 1), (8, 7, 1)])
def test_threads_keep_their_images_where_these_are_more_than_the_weight(images, size, parts):
    """The sum of the parts, and so the weight, lies as they do."""
    x = np.zeros((images, 64, size, size), np.float32)
    made = step_of(nn.Sequential(nn.Conv2d(64, 128, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), x)
    (direct,) = [g.anchor for g in made.groups if g.anchor.op.name == "conv2d_weight_direct"]
    assert direct.attrs["parts"] == parts
    (weight,) = [node for node in made.graph.parameters if node.name == "0.weight"]
    assert made.layouts[weight].order == (2, 3, 1, 0)
    assert ("sum+mul+sub" in labels(made)) == (parts > 1)


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("axes", [None, (0,), (3,), (2, 3), (0, 2, 3)])
def test_sums_of_a_gradient_over_any_axes(rng, images, axes):
    """Those of its parts lie as the weight does; those that a user takes are rows."""
    x, w = rng.standard_normal((images, 4, 6, 6)), rng.standard_normal((5, 4, 3, 3))
    loss = lambda w: op.sum(F.conv2d(x, w), axes=None)  # noqa: E731
    kept, lost = (
        dlc.jit(lambda w, keep=keep: op.sum(dlc.grad(loss)(w), axes=axes, keepdims=keep))(w)
        for keep in (True, False)
    )
    whole = dlc.grad(loss)(w)
    np.testing.assert_allclose(kept, whole.sum(axes, keepdims=True), 1e-12, 1e-12)
    np.testing.assert_allclose(lost, whole.sum(axes), 1e-12, 1e-12)


@pytest.mark.parametrize(("rows", "outputs", "parts"), [(8, 32, 2), (8, 31, 1), (16, 32, 1)])
def test_threads_keep_their_rows_of_a_weight_with_many(rows, outputs, parts):
    model = nn.Sequential(nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, outputs))
    made = step_of(model, np.zeros((rows, 24), np.float32))
    direct = [g.anchor for g in made.groups if g.anchor.op.name == "matmul_direct"]
    assert [node.attrs["parts"] for node in direct if not node.attrs["turned"]] == [parts]
    assert ("le+sum+where" in labels(made)) == (parts > 1)


@pytest.mark.parametrize(("rows", "packed"), [(16, 0), (600, 2)])
def test_a_linear_layer_neither_transposes_nor_packs_but_for_many_rows(rows, packed):
    model = nn.Sequential(nn.Linear(40, 24), nn.ReLU(), nn.Linear(24, 10))
    found = labels(step_of(model, np.zeros((rows, 40), np.float32)))
    assert found.count("matmul_across+mul+sub") == 2
    assert found.count("pack_matrix") == packed  # once for all blocks of rows
    assert "transpose" not in found


@pytest.mark.parametrize("batch", [(), (3,)])
def test_a_transposed_left_side_is_read_across(rng, batch):
    x, w = rng.standard_normal((*batch, 30, 7)), rng.standard_normal((*batch, 30, 9))
    axes = (*range(len(batch)), len(batch) + 1, len(batch))
    types = [tensor("float64", each.shape) for each in (x, w)]
    graph = graph_of(types, lambda x, w: op.matmul(op.transpose(x, axes=axes), w))
    names = [group.anchor.op.name for group in schedule(graph)[1].groups if not group.view]
    assert names == ["matmul_across"]
    (found,) = run_native(graph, [x, w])
    np.testing.assert_allclose(found, x.swapaxes(-1, -2) @ w, 1e-12, 1e-12)


@pytest.mark.parametrize("case", GRID, ids=ids)
def test_gradient_in_a_graph(rng, case):
    shape, outputs, kernel, slide = case
    x = rng.standard_normal(shape).astype(np.float32)
    g = rng.standard_normal((shape[0], outputs, *conv_shape(shape, kernel, slide)))
    g = g.astype(np.float32)
    types = [tensor("float32", each.shape) for each in (x, g)]
    attrs = {**slide, "kernel": kernel}
    graph = graph_of(types, lambda x, g: op.conv2d_weight_grad(x, g, **attrs))
    found = [run_native(graph, [x, g], threads=threads)[0] for threads in (1, 2)]
    np.testing.assert_array_equal(*found)
    products = g[:, 0].size
    limit = bound(exact(np.abs(x), np.abs(g), kernel, **slide), products, "float32")
    assert (np.abs(found[0] - exact(x, g, kernel, **slide)) <= limit).all()
