"""What is computed before the first call: all that depends on parameters only, once a version."""

import numpy as np
import pytest
import torch
from helpers.random_networks import networks, values
from helpers.schedules import labels, scheduled
from hypothesis import given, settings

import dlc
from dlc import functional as F
from dlc import nn
from dlc.backends import reference
from dlc.driver import optimise
from dlc.ir.graph import is_parametric
from dlc.ir.op import Kind
from dlc.ir.pattern import op
from dlc.passes.prepare import PREPARED, split
from dlc.runtime.runner import Runner

ROWS = dlc.TensorSpec((4, 10))


def parametric(graph):
    """The nodes of a graph that depend on parameters and constants only, leaves left out."""
    known = {}
    for node in graph.nodes:
        known[node] = is_parametric(node, known)
    return [node for node, yes in known.items() if yes and node.op.kind is not Kind.LEAF]


@settings(max_examples=50)
@given(networks())
def test_prepare_depends_on_parameters_only_and_main_keeps_nothing_of_it(graph):
    parts = split(optimise(graph))
    assert not any(node.op.name in ("input", "iota", "size") for node in parts.prepare.nodes)
    assert parametric(parts.main) == []
    read = {n.name for n in parts.main.parameters if n.attrs["role"] == PREPARED}
    assert read == set(parts.names) == set(parts.prepare.output_names) if read else not parts.names
    for name, node in zip(parts.names, parts.prepare.outputs, strict=True):
        (leaf,) = (n for n in parts.main.parameters if n.name == name)
        assert leaf.type == node.type


@settings(max_examples=25)
@given(networks())
def test_both_parts_together_are_the_whole(graph):
    graph = optimise(graph, "O1")
    parts, arrays = split(graph), values(graph, np.random.default_rng(0))
    made = reference.run(parts.prepare, arrays) if parts.names else []
    prepared = dict(zip(parts.names, made, strict=True))
    whole = reference.run(graph, arrays)
    for ours, theirs in zip(reference.run(parts.main, {**arrays, **prepared}), whole, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_folding_and_packing_are_prepared():
    block = nn.Sequential(nn.Linear(10, 5), nn.BatchNorm1d(5), nn.ReLU()).eval()
    prepare, main, _ = scheduled(block, ROWS)
    assert labels(main) == ["matmul+add+relu"]
    assert any(node.op.name == "pack_matrix" for node in prepare.graph.nodes)
    assert any("sqrt" in name for name in labels(prepare))


BATCH = dlc.Dim("batch", 2, 5)
TABLE = nn.Parameter(np.arange(12, dtype="float32").reshape(4, 3))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (TABLE[0] * 2).expand(x.shape[0], 3),
        lambda x: x + (TABLE[1] * 2).expand(x.shape[0], 3).sum(0),
        lambda x: op.concat((TABLE[:1] * 2).expand(x.shape[0], 3), x, axis=1),
        lambda x: op.tanh(TABLE)[x.shape[0] - 2 : x.shape[0] - 1] + x,
        lambda x: op.pad(op.tanh(TABLE), low=(x.shape[0] - 2, 0), high=(1, 0), value=1.0)[:2],
    ],
)
def test_what_a_named_dimension_decides_is_left_to_the_call(function):
    rows = dlc.TensorSpec((BATCH, 3))
    exe, slow = (dlc.compile(function, rows, target=target) for target in ("cpu", "reference"))
    for batch in (5, 2, 3):
        x = np.ones((batch, 3), "float32")
        np.testing.assert_allclose(exe(x), slow(x), rtol=1e-5)


def test_without_parameters_there_is_nothing_to_prepare():
    prepare, _, nbytes = scheduled(lambda x: x + 1, ROWS)
    assert prepare.groups == ()
    assert nbytes == 0


def test_names_of_the_users_are_left_alone():
    weights = {f"prepared{i}": nn.Parameter(np.ones(10, "float32")) for i in (0, 2)}
    module = nn.Module()
    for name, weight in weights.items():
        module.register_parameter(name, weight)

    def function(prepared1):
        return prepared1 * op.exp(module.prepared0) * op.sin(module.prepared0) + module.prepared2

    graph = optimise(dlc.trace(function, ROWS))
    parts = split(graph)
    taken = {
        node.name
        for node in graph.nodes
        if node.op.kind is Kind.LEAF and node.op.name != "constant"
    }
    assert taken.isdisjoint(parts.names)


@pytest.fixture
def refreshes(monkeypatch):
    """How often parameters were taken over."""
    found, refresh = [], Runner.refresh

    def counted(self, parameters):
        found.append(self)
        refresh(self, parameters)

    monkeypatch.setattr(Runner, "refresh", counted)
    return found


def test_it_is_computed_once_for_each_version(refreshes):
    model, other = nn.Linear(10, 5), nn.Linear(10, 5)
    x = np.ones((4, 10), "float32")
    exe = dlc.compile(lambda x: F.relu(model(x)), x)
    for _ in range(3):
        exe(x)
    assert len(refreshes) == 1
    other.weight.data = other.weight.numpy() * 2  # of another model
    exe(x)
    assert len(refreshes) == 1
    before = exe(x)
    model.bias.data = model.bias.numpy() + 100
    np.testing.assert_allclose(exe(x).min(), 100, atol=5)
    assert (exe(x) > before).all()
    assert len(refreshes) == 2


def test_prepared_values_may_be_results():
    weight = nn.Parameter(np.arange(6, dtype="float32").reshape(2, 3))

    def function(x):
        double = weight * 2
        return double, op.transpose(double, axes=(1, 0)), x @ double, op.reshape(double, shape=(6,))

    exe = dlc.compile(function, dlc.TensorSpec((4, 2)))
    x = np.ones((4, 2), "float32")
    for factor in (1, 3):
        weight.data = np.arange(6, dtype="float32").reshape(2, 3) * factor
        double = weight.numpy() * 2
        for got, want in zip(exe(x), (double, double.T, x @ double, double.ravel()), strict=True):
            np.testing.assert_array_equal(got, want)


def known_images(kind):
    """An image that is no input: an array, or a parameter, as it is or as layers make it."""
    array = np.random.default_rng(0).normal(size=(2, 6, 15, 20)).astype("float32")
    image = array if kind == "constant" else nn.Parameter(array)
    if kind == "made of parameters":
        layer = nn.Conv2d(6, 6, 3, padding=1)
        return lambda: F.relu(layer(image)), layer(array).clip(0)
    return lambda: image * 1.0 if kind == "parameter" else image, array


@pytest.mark.parametrize("kind", ["constant", "parameter", "made of parameters"])
@pytest.mark.parametrize(
    ("weights", "attrs"),
    [
        ((16, 6, 3, 3), {"padding": 1}),
        ((16, 6, 3, 3), {"stride": 2, "padding": (2, 1)}),
        ((4, 6, 5, 5), {"padding": 2}),
        ((6, 1, 3, 3), {"padding": 1, "groups": 6}),
    ],
    ids=["winograd", "direct", "planes", "depthwise"],
)
def test_an_image_that_is_prepared_is_read_where_it_lies(kind, weights, attrs):
    """Its layout is that of rows in both parts; each copies it as its own readers need it."""
    made, array = known_images(kind)
    w = np.random.default_rng(1).normal(size=weights).astype("float32")
    compiled = dlc.compile(lambda w: F.conv2d(made(), w, **attrs), w)
    expected = torch.conv2d(torch.from_numpy(array), torch.from_numpy(w), **attrs)
    for _ in range(2):
        np.testing.assert_allclose(compiled(w), expected.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("padding", "stride"), [(0, 4), (1, 1)])
def test_gradients_of_a_sum_with_known_weights(padding, stride):
    """The gradient that comes back to the convolution is an array that was there before."""
    rng = np.random.default_rng(2)
    x, w = rng.normal(size=(2, 6, 15, 20)), rng.normal(size=(3, 6, 4, 4))
    ours = torch.from_numpy(x).requires_grad_(), torch.from_numpy(w).requires_grad_()
    y = torch.conv2d(*ours, padding=padding, stride=stride)
    known = rng.normal(size=tuple(y.shape))
    (y * torch.from_numpy(known)).sum().backward()

    def loss(x, w):
        return (F.conv2d(x, w, padding=padding, stride=stride) * known).sum()

    found = dlc.compile(dlc.grad(loss, (0, 1)), x, w)(x, w)
    for gradient, leaf in zip(found, ours, strict=True):
        np.testing.assert_allclose(gradient, leaf.grad.numpy(), rtol=1e-9, atol=1e-9)
