"""Gradients of convolutions for their input: phases of a stride, forms, stores, and whole steps."""

import itertools

import numpy as np
import pytest
import torch
from helpers.cases import graph_of, param
from helpers.native_kernels import LEVELS, guarded, run
from helpers.schedules import labels, main
from helpers.three_ways import Program

import dlc
from dlc import functional as F
from dlc import nn
from dlc.backends import reference
from dlc.backends.native import objects
from dlc.backends.native.isa import LEVELS as ALL_LEVELS
from dlc.backends.native.python_twin import Pointer
from dlc.backends.native.python_twin import run as run_twin
from dlc.backends.numba_cpu.weights import WeightTransform, WinogradWeights
from dlc.frontend.scope import active
from dlc.ir import manager
from dlc.ir.graph import Graph
from dlc.ir.node import apply
from dlc.ir.pattern import op
from dlc.ir.sizes import Dim, as_size
from dlc.ir.types import tensor
from dlc.ir.values import Check
from dlc.ops.packed import pack_matrix_ref
from dlc.ops.phases import phases
from dlc.ops.winograd import matrices, transformed
from dlc.passes.convolutions import winograd_tile
from dlc.passes.select import SelectAlgorithms
from dlc.runtime import elf

dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


# Phases.


@pytest.mark.parametrize("kernel", [1, 2, 3, 7])
@pytest.mark.parametrize("stride", [1, 2, 3, 4])
def test_phases_meet_every_tap_once(kernel, stride):
    """Over all elements of a line: the pairs of tap and window that reach it, and no others."""
    for before, dilation, size in itertools.product((0, 1, 3), (1, 2, 4), (5, 8, 13)):
        windows = (size + 2 * before - dilation * (kernel - 1) - 1) // stride + 1
        expected = {
            (stride * q + dilation * t - before, t, q)
            for q in range(max(windows, 0))
            for t in range(kernel)
        }
        found = []
        for phase in phases(kernel, stride, before, dilation):
            low, high = phase.beyond(size, windows)
            for place in range(phase.count(size)):
                for k, tap in enumerate(phase.taps):
                    q = place + phase.offset + k * phase.step
                    assert -low <= q < max(windows, 0) + high or windows <= 0
                    if 0 <= q < windows:
                        found.append((phase.start + phase.stride * place, tap, q))
        assert len(found) == len(set(found))
        assert set(found) == {each for each in expected if 0 <= each[0] < size}


# Values.

#: Image, weights, and how they meet.
CASES = {
    "3x3": ((2, 16, 8, 9), (24, 16, 3, 3), {"padding": 1}),
    "3x3 by 2": ((2, 36, 9, 10), (40, 36, 3, 3), {"stride": 2, "padding": 1}),
    "1x1": ((2, 16, 5, 4), (40, 16, 1, 1), {}),
    "1x1 by 2": ((2, 16, 9, 8), (40, 16, 1, 1), {"stride": 2}),
    "7x7 by 2": ((1, 3, 17, 16), (24, 3, 7, 7), {"stride": 2, "padding": 3}),
    "blocks": ((2, 3, 10, 11), (6, 3, 5, 4), {"stride": (2, 3), "padding": ((3, 1), (2, 3))}),
    "few channels": ((2, 6, 12, 12), (16, 6, 5, 5), {}),
    "two tiles of channels": ((2, 8, 12, 12), (16, 8, 5, 5), {}),
    "few outputs": ((1, 40, 9, 9), (3, 40, 3, 3), {"padding": 1}),
    "groups": ((1, 12, 9, 9), (8, 6, 3, 3), {"groups": 2, "padding": 1}),
    "groups by 2": ((1, 12, 9, 9), (8, 3, 3, 3), {"groups": 4, "padding": 1, "stride": 2}),
    "depthwise": ((1, 20, 9, 8), (20, 1, 3, 3), {"groups": 20, "padding": 1}),
    "depthwise by 2": ((2, 20, 9, 8), (20, 1, 3, 3), {"groups": 20, "padding": 1, "stride": 2}),
    "depthwise 2x2 by 3": ((2, 5, 9, 8), (5, 1, 2, 2), {"groups": 5, "stride": 3}),
    "two filters a channel": ((1, 8, 9, 9), (16, 1, 3, 3), {"groups": 8, "stride": 2}),
    "dilated": ((1, 8, 9, 9), (12, 8, 3, 2), {"padding": (2, 1), "dilation": (2, 3)}),
    "dilated by 2": ((1, 8, 9, 9), (12, 8, 3, 3), {"stride": 2, "padding": 1, "dilation": 2}),
    "dilated by 3": ((1, 8, 11, 9), (12, 8, 3, 3), {"stride": 3, "padding": 1, "dilation": 2}),
    "one-sided": ((2, 4, 9, 9), (5, 4, 2, 2), {"stride": 2, "padding": ((1, 0), (0, 2))}),
    "padding wider than the kernel": ((2, 8, 5, 6), (6, 8, 1, 2), {"padding": (1, 2)}),
    "stride wider than the kernel": ((2, 4, 9, 9), (5, 4, 2, 2), {"stride": 4}),
    "rows that no window reaches": ((1, 6, 10, 11), (7, 6, 3, 3), {"stride": 4}),
    "lines of one element": ((1, 4, 3, 1), (5, 4, 1, 1), {"stride": 3}),
}


def wide_padding(padding):
    rows, columns = padding if isinstance(padding, tuple) else (padding, padding)
    sides = [side if isinstance(side, tuple) else (side, side) for side in (rows, columns)]
    return (*sides[1], *sides[0])


def torch_conv(x, w, stride=1, padding=0, dilation=1, groups=1):
    f = torch.nn.functional
    return f.conv2d(f.pad(x, wide_padding(padding)), w, None, stride, 0, dilation, groups)


def torch_gradient(x, w, g, **attrs):
    x = torch.from_numpy(x).requires_grad_()
    torch_conv(x, torch.from_numpy(w), **attrs).backward(torch.from_numpy(g))
    return x.grad.numpy()


def operands(rng, name):
    """Image, weights, gradient, and the attributes of a case."""
    x_shape, w_shape, attrs = CASES[name]
    x, w = rng.normal(size=x_shape), rng.normal(size=w_shape)
    y = torch_conv(torch.from_numpy(x), torch.from_numpy(w), **attrs)
    return x, w, rng.normal(size=tuple(y.shape)), attrs


def bound(x, w, g, attrs, dtype):
    """gamma_n |g| |w|, n the products of an element and a few roundings of the epilogue."""
    n = w.shape[0] // attrs.get("groups", 1) * w.shape[2] * w.shape[3] + 4
    u = np.finfo(dtype).eps / 2
    return n * u / (1 - n * u) * torch_gradient(x, *(np.abs(each) for each in (w, g)), **attrs)


@dtypes
@pytest.mark.parametrize("name", CASES)
def test_values(rng, name, dtype):
    """Against PyTorch in float64, within gamma; with the same bits from two threads."""
    x, w, g, attrs = operands(rng, name)
    w, g = w.astype(dtype), g.astype(dtype)

    def gradient(g, w):
        return op.conv2d_input_grad(g, w, input_shape=x.shape[2:], **attrs)

    specs = [dlc.TensorSpec(each.shape, dtype) for each in (g, w)]
    one, two = (dlc.compile(gradient, *specs, threads=threads)(g, w) for threads in (1, 2))
    np.testing.assert_array_equal(one, two)
    exact = torch_gradient(x, w.astype("float64"), g.astype("float64"), **attrs)
    limit = bound(x, w.astype("float64"), g.astype("float64"), attrs, dtype)
    assert (np.abs(one - exact) <= limit).all()


BY_PHASES = ["3x3 by 2", "1x1 by 2", "depthwise by 2", "groups by 2", "dilated by 3"]


@pytest.mark.parametrize("name", BY_PHASES)
def test_phases_three_ways(rng, name):
    """The source as Python, and every level, on memory that is NaN before."""
    x, w, g, attrs = operands(rng, name)
    w, g, other = w.astype("float32"), g.astype("float32"), x.astype("float32")

    def gradient(g, w, y):
        made = op.conv2d_input_grad(g, w, input_shape=x.shape[2:], **attrs)
        return op.where(op.relu(y) <= 0.0, 0.0, made)

    program = Program(gradient, *(dlc.TensorSpec(each.shape) for each in (g, w, other)))
    arrays = dict(zip((n.name for n in program.graph.inputs), (g, w, other), strict=True))
    (expected,) = program.reference(arrays)
    runs = [program.run(arrays, "python", 2), *(program.run(arrays, isa=isa) for isa in LEVELS)]
    for (result,), _ in runs:
        np.testing.assert_allclose(result, expected, 2e-5, 2e-5)


@pytest.mark.parametrize("name", ["3x3 by 2", "depthwise by 2", "3x3"])
def test_sizes_known_in_a_call_only(rng, name):
    (_, channels, *_), w_shape, attrs = CASES[name]
    batch, rows = as_size(Dim("batch", 0, 4)), as_size(Dim("rows", 4, 12))
    w = rng.normal(size=w_shape).astype("float32")

    def gradient(x, w):
        return dlc.grad(lambda x: op.sum(op.square(op.conv2d(x, w, **attrs)), axes=(0, 1, 2, 3)))(x)

    specs = dlc.TensorSpec((batch, channels, rows, 8)), dlc.TensorSpec(w_shape)
    exe = dlc.compile(gradient, *specs)
    for n, h in ((2, 9), (4, 12), (1, 4), (0, 7)):
        x = rng.normal(size=(n, channels, h, 8)).astype("float32")
        given = torch.from_numpy(x).requires_grad_()
        torch_conv(given, torch.from_numpy(w), **attrs).square().sum().backward()
        np.testing.assert_allclose(exe(x, w), given.grad.numpy(), 1e-3, 1e-3)


def test_nan_and_infinity_go_where_windows_do(rng):
    x, w, g, attrs = operands(rng, "3x3 by 2")
    w, g = w.astype("float32"), g.astype("float32")
    g[0, 3, 1, 2], g[1, 5, 0, 0] = np.nan, np.inf
    exe = dlc.compile(
        lambda g, w: op.conv2d_input_grad(g, w, input_shape=x.shape[2:], **attrs),
        *(dlc.TensorSpec(each.shape) for each in (g, w)),
    )
    got, expected = exe(g, w), torch_gradient(x.astype("float32"), w, g, **attrs)
    np.testing.assert_array_equal(np.isfinite(got), np.isfinite(expected))


# Forms.


def chosen(x_shape, w_shape, aliases=False, **attrs):
    """A gradient after algorithms are chosen; with ``aliases`` its weights change in every call."""

    def function(x):
        w = param("w", *w_shape)
        slide = {"stride": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1), "groups": 1}
        y = op.conv2d(x, w, **{**slide, **attrs})
        return apply("conv2d_input_grad", y, w, input_shape=x.shape[2:], **{**slide, **attrs})

    graph = graph_of((tensor("float32", x_shape),), function)
    if aliases:
        (leaf,) = graph.parameters
        graph = Graph((*graph.outputs, leaf * 0.5), graph.inputs, aliases={1: "w"})
    return SelectAlgorithms()(graph).outputs[0]


@pytest.mark.parametrize(
    ("x", "w", "attrs", "form"),
    [
        ((1, 64, 56, 56), (64, 64, 3, 3), {}, "conv2d_winograd"),
        ((1, 64, 56, 56), (64, 64, 3, 3), {"stride": (2, 2)}, "conv2d_phases"),
        ((1, 64, 56, 56), (64, 64, 3, 3), {"padding": ((0, 0), (0, 0))}, "conv2d_winograd"),
        ((1, 64, 56, 56), (64, 64, 3, 3), {"padding": ((3, 0), (0, 0))}, "conv2d_phases"),
        ((1, 3, 56, 56), (64, 3, 7, 7), {"stride": (2, 2)}, "slice"),  # by blocks
        ((1, 3, 56, 56), (64, 3, 7, 7), {"stride": (2, 2), "dilation": (2, 1)}, "conv2d_phases"),
        (
            (1, 3, 56, 56),
            (64, 3, 3, 3),
            {"stride": (2, 2), "padding": ((5, 5), (0, 0))},
            "conv2d_phases",
        ),
        ((1, 64, 56, 56), (64, 64, 3, 3), {"dilation": (2, 2)}, "conv2d_direct"),
        ((1, 64, 56, 56), (64, 32, 3, 3), {"groups": 2}, "conv2d_direct"),
        ((1, 64, 56, 56), (64, 1, 3, 3), {"groups": 64}, "conv2d_depthwise"),
        ((1, 6, 20, 20), (64, 6, 3, 3), {}, "conv2d_planes"),
        ((1, 64, 20, 20), (3, 64, 3, 3), {}, "conv2d_direct"),
    ],
)
def test_each_gradient_has_the_form_of_a_convolution(x, w, attrs, form):
    node = chosen(x, w, **attrs)
    assert node.op.name == form


@pytest.mark.parametrize("name", CASES)
def test_the_rewrite_keeps_values(name):
    x_shape, w_shape, attrs = CASES[name]
    (left, right, top, bottom) = wide_padding(attrs.get("padding", 0))
    g_shape = torch_conv(torch.zeros(x_shape), torch.zeros(w_shape), **attrs).shape

    def function(g, w):
        own = {**attrs, "padding": ((top, bottom), (left, right))}
        return op.conv2d_input_grad(g, w, input_shape=x_shape[2:], **own)

    graph = graph_of((tensor("float32", tuple(g_shape)), tensor("float32", w_shape)), function)
    manager.run(graph, [SelectAlgorithms()], check=Check(reference.run))


@pytest.mark.parametrize(("kernel", "form"), [(3, "pack_winograd"), (5, "pack_conv")])
def test_turned_weights_are_packed_by_one_kernel(kernel, form):
    made = main(
        lambda g, w: op.conv2d_input_grad(g, w, input_shape=(16, 16), padding=kernel // 2),
        dlc.TensorSpec((2, 40, 16, 16)),
        dlc.TensorSpec((40, 16, kernel, kernel)),
    )
    assert labels(made) == ["relayout", form, "conv2d", "relayout"]


# Winograd's algorithm where weights change.


@dtypes
@pytest.mark.parametrize("m", [2, 4])
@pytest.mark.parametrize("level", ALL_LEVELS)
def test_weight_transforms_are_built_for_every_level(level, m, dtype):
    tile = WeightTransform(ALL_LEVELS[level], dtype, m)
    code = objects.build(tile.text(), [tile.name], tile.isa, speed=0)
    assert elf.read(code).defined == {tile.name}
    assert not elf.read(code).undefined


@dtypes
@pytest.mark.parametrize("m", [2, 4])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (2, 3, 1, 0)], ids=["OIHW", "HWIO"])
@pytest.mark.parametrize("isa", LEVELS, ids=lambda isa: isa.name)
def test_weights_are_transformed(rng, isa, order, m, dtype):
    """However they lie, turned or not: whole panels and blocks of 16, and what is left of both."""
    kernel = WinogradWeights(isa, dtype, m).kernel
    for shape in ((64, 32), (33, 17), (32, 15), (31, 16), (1, 1)):
        memory = rng.normal(size=np.array((*shape, 3, 3))[list(order)]).astype(dtype)
        w = memory.transpose(np.argsort(order))
        for plain in (w, w[:, :, ::-1, ::-1].swapaxes(0, 1)):
            outputs, depth = plain.shape[:2]
            points = ((m + 2) ** 2, -(-outputs // 32), depth, 32)
            y, check = guarded(points, dtype)
            steps = [step // plain.itemsize for step in plain.strides]
            values = {"w": plain, "y": y} | dict(zip(kernel_sizes(), (*plain.shape[:2], *steps)))
            run(kernel, isa, values, threads=3)
            check()
            expected = transformed(plain, m)
            g = np.abs(matrices(m)[1])
            size = g @ np.abs(plain.astype("float64")) @ g.T
            size = pack_matrix_ref(size.reshape(outputs, depth, -1).transpose(2, 1, 0))
            assert (np.abs(y - expected) <= 10 * np.finfo(dtype).eps / 2 * size).all()
            if shape == (33, 17) and isa is LEVELS[0]:
                again = np.full_like(y, np.nan)
                start = (plain.ctypes.data - memory.ctypes.data) // memory.itemsize
                values |= {"w": Pointer(memory.ravel(), start), "y": again}
                arguments = [values[param.name] for param in kernel.params]
                for thread in range(2):
                    twins = {tile.name: tile.twin() for tile in kernel.tiles}
                    run_twin(kernel.source, kernel.name, arguments, thread, 2, twins)
                np.testing.assert_allclose(again, expected, 1e-5, 1e-6)


def kernel_sizes():
    return WinogradWeights.SIZES


def test_the_transform_of_weights_counts_where_they_change():
    """It pays for large images; for small ones prepared weights only."""
    large, small = (8, 28, 28), (1, 4, 4)
    assert winograd_tile(large, 128, 128) == winograd_tile(large, 128, 128, False) == 4
    assert winograd_tile(small, 64, 64) == 2
    assert winograd_tile(small, 64, 64, prepared=False) == 0
    for aliases, form in ((False, "conv2d_winograd"), (True, "conv2d_direct")):
        assert chosen((1, 64, 4, 4), (64, 64, 3, 3), aliases).op.name == form


def test_a_step_is_chosen_for_its_full_batch():
    shape = (as_size(Dim("batch", 1, 64)), 64, 4, 4)
    assert chosen(shape, (64, 64, 3, 3), aliases=True).op.name == "conv2d_winograd"
    assert chosen((1, *shape[1:]), (64, 64, 3, 3), aliases=True).op.name == "conv2d_direct"


# Steps of a network.


class Block(nn.Module):
    """A basic block of a residual network."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.down = None
        if stride > 1:
            self.down = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (self.down(x) if self.down else x))


class TorchBlock(torch.nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        t = torch.nn
        self.conv1 = t.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = t.BatchNorm2d(outputs)
        self.conv2 = t.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = t.BatchNorm2d(outputs)
        self.down = t.Conv2d(inputs, outputs, 1, stride, bias=False) if stride > 1 else None

    def forward(self, x):
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + (self.down(x) if self.down else x))


SHAPE = (4, 32, 12, 11)
BLOCKS = ((32, 32, 1), (32, 48, 2))


def network():
    dlc.seed(0)
    return nn.Sequential(*(Block(*sizes) for sizes in BLOCKS))


def descent(model):
    """A step of gradient descent on the mean square."""

    def step(x):
        loss = (model(x) ** 2).mean()
        parameters = list(model.parameters())
        for parameter, g in zip(parameters, dlc.gradients(loss, parameters), strict=True):
            active().assign(parameter, parameter - 0.5 * g)
        return loss

    return step


@pytest.mark.parametrize("threads", [1, 2])
def test_steps_against_torch(rng, threads):
    """In float64, where three steps stay together."""
    model, theirs = network().double(), torch.nn.Sequential(*(TorchBlock(*s) for s in BLOCKS))
    theirs.double().load_state_dict(
        {k: torch.from_numpy(np.array(v)) for k, v in model.state_dict().items()}
    )
    optimizer = torch.optim.SGD(theirs.parameters(), 0.5)
    exe = dlc.compile(descent(model), dlc.TensorSpec(SHAPE, "float64"), threads=threads)
    x = rng.normal(size=SHAPE)
    for _ in range(3):
        optimizer.zero_grad()
        loss = (theirs(torch.from_numpy(x)) ** 2).mean()
        loss.backward()
        optimizer.step()
        np.testing.assert_allclose(exe(x), loss.item(), 1e-10)
    for name, value in theirs.state_dict().items():
        np.testing.assert_allclose(model.state_dict()[name], value.numpy(), 1e-9, 1e-10)


def test_threads_do_not_change_bits(rng):
    """Of the program that the test above has compiled."""
    x, found = rng.normal(size=SHAPE), []
    for threads in (1, 2):
        model = network().double()
        exe = dlc.compile(descent(model), dlc.TensorSpec(SHAPE, "float64"), threads=threads)
        losses = [exe(x) for _ in range(3)]
        found.append([*losses, *(np.array(v) for v in model.state_dict().values())])
    for one, two in zip(*found, strict=True):
        np.testing.assert_array_equal(one, two)


def test_kernels_of_the_backward_pass():
    """Each gradient of an activation is in the store of the convolution that makes it, and nothing
    is copied or spread; the first convolution has no gradient for the image.
    """
    names = labels(main(descent(network()), dlc.TensorSpec(SHAPE)))
    forms = [name for name in names if "conv2d" in name and "conv2d_direct" not in name]
    assert len(forms) == 5 + 4
    joined = [name for name in forms if "where" in name]
    assert joined == ["le+conv2d+where", "le+conv2d+add+where", "le+conv2d+where"]
    assert sum("where" in name for name in names) == 1 + len(joined)  # and that of the result
    assert names.count("relayout") == 1  # of the image
    assert [name for name in names if "pad" in name or name == "reshape"] == []


# What joins a store beside the gradient.


def test_small_expressions_of_what_a_store_can_read():
    first, second = (nn.Conv2d(16, 16, 3, stride=2, padding=1, bias=False) for _ in range(2))
    for function in (
        lambda y, z: op.where(z <= 0.0, 0.0, y),
        lambda y, z: op.where((z > 0.0) & (z < 6.0), y, 0.0),
        lambda y, z: op.where(z > 0.0, y, y * 0.1),  # read twice
        lambda y, z: y * (1.0 - z * z),
    ):

        def whole(x, function=function):
            z = F.relu(second(x))
            return F.max_pool2d(z, 2), function(first(x), z)

        names = [name for name in labels(main(whole, IMAGE)) if name != "relayout"]
        assert len(names) == 3, names
        assert {name for name in names if "conv2d" not in name} == {"max_pool2d"}


IMAGE = dlc.TensorSpec((2, 16, 9, 9))


@pytest.mark.parametrize(
    ("function", "apart"),
    [
        (lambda y, z, b: op.where(b, 0.0, y), "where"),  # a condition from memory is no float
        (lambda y, z, b: op.where(z <= 0.0, 0.0, y) + op.cast(z <= 0.0, dtype="float32"), "add"),
        (lambda y, z, b: (op.where(z <= 0.0, 0.0, y), y), "where"),  # y is a result
        (lambda y, z, b: y * ((((((z + 1) * z) + 1) * z + 1) * z + 1) * z + 1), "mul"),  # long
    ],
)
def test_what_keeps_an_expression_out_of_a_store(function, apart):
    layer = nn.Linear(16, 16, bias=False)
    flags, rows = dlc.TensorSpec((4, 16), "bool"), dlc.TensorSpec((4, 16))

    def whole(x, z, b):
        return function(layer(x), z, b)

    names = labels(main(whole, rows, rows, flags))
    assert any(apart in name and "matmul" not in name for name in names), names
