"""Layers against PyTorch's: values, state dicts, printed form, and what they refuse."""

import numpy as np
import pytest
import torch
from helpers.traced import call, outputs, run

import dlc
import dlc.frontend.functional as F
from dlc.errors import ArgumentError, ShapeError, TraceError
from dlc.frontend import nn
from dlc.frontend.trace import trace
from dlc.ir.sizes import Dim
from dlc.ir.types import TensorSpec

DTYPES = ("float32", "float64")

# Each layer by name: its arguments, and shapes of inputs to run it on.
IMAGES = [(2, 4, 9, 8)]
LAYERS = [
    ("Linear", (5, 3), {}, [(2, 5), (5,), (2, 4, 5)]),
    ("Linear", (5, 3), {"bias": False}, [(2, 5)]),
    ("Identity", (), {}, [(2, 5)]),
    ("Identity", (54,), {"unused": 0.1}, [(2, 5)]),
    ("Flatten", (), {}, [(2, 3, 4, 5), (2, 3)]),
    ("Flatten", (0, 1), {}, [(2, 3, 4, 5)]),
    ("Flatten", (), {"start_dim": -2}, [(2, 3, 4, 5)]),
    ("Conv2d", (4, 6, 3), {}, [*IMAGES, (4, 9, 8)]),
    ("Conv2d", (4, 6, (3, 2)), {"stride": (2, 1), "padding": (1, 0)}, IMAGES),
    ("Conv2d", (4, 6, 3), {"padding": 2, "dilation": 2, "bias": False}, IMAGES),
    ("Conv2d", (4, 6, 3), {"padding": "same"}, IMAGES),
    ("Conv2d", (4, 6, (4, 2)), {"padding": "same", "dilation": (1, 3)}, IMAGES),
    ("Conv2d", (4, 6, 3), {"padding": "valid", "stride": 2}, IMAGES),
    ("Conv2d", (4, 8, 3), {"groups": 2, "padding": 1}, IMAGES),
    ("Conv2d", (4, 4, 3), {"groups": 4, "padding": 1}, IMAGES),
    ("MaxPool2d", (2,), {}, [*IMAGES, (4, 9, 8)]),
    ("MaxPool2d", (3, 2, 1), {}, IMAGES),
    ("MaxPool2d", ((3, 2),), {"stride": (1, 2), "ceil_mode": True}, IMAGES),
    ("MaxPool2d", (2,), {"dilation": 2}, IMAGES),
    ("AvgPool2d", (2,), {}, [*IMAGES, (4, 9, 8)]),
    ("AvgPool2d", (3,), {"stride": 2, "padding": 1}, IMAGES),
    ("AvgPool2d", (3,), {"padding": 1, "ceil_mode": True, "count_include_pad": False}, IMAGES),
    ("AdaptiveAvgPool2d", (1,), {}, [*IMAGES, (4, 9, 8)]),
    ("AdaptiveAvgPool2d", ((3, 2),), {}, IMAGES),
    ("AdaptiveAvgPool2d", ((None, 4),), {}, IMAGES),
    ("BatchNorm1d", (4,), {}, [(3, 4), (3, 4, 5)]),
    ("BatchNorm2d", (4,), {}, IMAGES),
    ("BatchNorm2d", (4,), {"eps": 0.1, "affine": False}, IMAGES),
    ("BatchNorm2d", (4,), {"bias": False}, IMAGES),
    ("BatchNorm2d", (4,), {"track_running_stats": False}, IMAGES),
    ("LayerNorm", (5,), {}, [(2, 5), (2, 3, 5)]),
    ("LayerNorm", ((3, 5),), {"eps": 0.1}, [(2, 3, 5)]),
    ("LayerNorm", (5,), {"bias": False}, [(2, 5)]),
    ("LayerNorm", (5,), {"elementwise_affine": False}, [(2, 5)]),
    ("Dropout", (0.3,), {}, [(2, 5)]),
    ("ReLU", (), {}, [(2, 5)]),
    ("ReLU", (True,), {}, [(2, 5)]),
    ("ReLU6", (), {}, [(2, 5)]),
    ("Hardtanh", (-0.5, 0.25), {}, [(2, 5)]),
    ("LeakyReLU", (0.2,), {}, [(2, 5)]),
    ("LeakyReLU", (), {"inplace": True}, [(2, 5)]),
    ("PReLU", (), {}, [(2, 5), (2, 3, 4)]),
    ("PReLU", (3,), {"init": 0.1}, [(2, 3), (2, 3, 4), (2, 3, 4, 5)]),
    ("ELU", (0.7,), {}, [(2, 5)]),
    ("CELU", (0.7,), {}, [(2, 5)]),
    ("SELU", (), {}, [(2, 5)]),
    ("GELU", (), {}, [(2, 5)]),
    ("GELU", ("tanh",), {}, [(2, 5)]),
    ("SiLU", (), {}, [(2, 5)]),
    ("Sigmoid", (), {}, [(2, 5)]),
    ("Tanh", (), {}, [(2, 5)]),
    ("Softplus", (2.0, 1.5), {}, [(2, 5)]),
    ("LogSigmoid", (), {}, [(2, 5)]),
    ("Softmax", (), {"dim": 1}, [(2, 5)]),
    ("Softmin", (0,), {}, [(2, 5)]),
    ("LogSoftmax", (-1,), {}, [(2, 5)]),
]


def layer_id(case):
    name, args, kwargs, _ = case
    shown = [*map(repr, args), *(f"{key}={value!r}" for key, value in kwargs.items())]
    return f"{name}({', '.join(shown)})"


def pair_of(case, dtype="float32"):
    """The layer in dlc and in PyTorch, with the same values, none of them at its start."""
    name, args, kwargs, _ = case
    theirs = getattr(torch.nn, name)(*args, **kwargs).to(getattr(torch, dtype))
    generator = torch.Generator().manual_seed(1)
    for value in theirs.state_dict().values():
        if value.is_floating_point():
            value.uniform_(0.2, 1.5, generator=generator)
    ours = getattr(nn, name)(*args, **kwargs).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")  # PyTorch's, of its copy
@pytest.mark.parametrize("case", LAYERS, ids=layer_id)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_layer_computes_what_pytorchs_does(case, dtype, rng):
    ours, theirs = pair_of(case, dtype)
    for shape in case[3]:
        x = rng.normal(size=shape).astype(dtype)
        y = outputs(ours.eval(), x)
        assert y.dtype == dtype
        torch.testing.assert_close(torch.from_numpy(y), theirs.eval()(torch.from_numpy(x)).detach())


@pytest.mark.parametrize("case", LAYERS, ids=layer_id)
def test_a_layer_prints_and_keeps_what_pytorchs_does(case):
    name, args, kwargs, _ = case
    ours, theirs = getattr(nn, name)(*args, **kwargs), getattr(torch.nn, name)(*args, **kwargs)
    assert repr(ours) == repr(theirs)
    described = {n: (v.dtype.name, v.shape) for n, v in ours.state_dict().items()}
    expected = theirs.state_dict()
    assert list(described) == list(expected)
    for key, value in expected.items():
        assert described[key] == (str(value.dtype).removeprefix("torch."), tuple(value.shape))
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    assert [n for n, _ in ours.named_buffers()] == [n for n, _ in theirs.named_buffers()]


def test_an_embedding_looks_rows_up(rng):
    ours = nn.Embedding(7, 3, padding_idx=-2)
    assert repr(ours) == repr(torch.nn.Embedding(7, 3, padding_idx=-2))
    weight = ours.weight.numpy()
    assert not weight[5].any()
    assert np.abs(weight[:5]).min() > 0
    index = rng.integers(0, 7, (2, 4))
    np.testing.assert_array_equal(outputs(ours, index), weight[index])
    with pytest.raises(ArgumentError, match="padding_idx within 7 rows, got 7"):
        nn.Embedding(7, 3, padding_idx=7)


# Batch norm in training.


@pytest.mark.parametrize("momentum", [0.1, 1.0, None])
@pytest.mark.parametrize("dtype", DTYPES)
def test_batch_norm_in_training_moves_its_running_statistics(momentum, dtype, rng):
    case = ("BatchNorm2d", (4,), {"momentum": momentum}, IMAGES)
    ours, theirs = pair_of(case, dtype)
    for _ in range(3):
        x = rng.normal(2.0, 3.0, IMAGES[0]).astype(dtype)
        y = call(ours, x)
        torch.testing.assert_close(torch.from_numpy(y), theirs(torch.from_numpy(x)).detach())
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(torch.from_numpy(ours.state_dict()[name]), value)
    assert ours.num_batches_tracked.item() == theirs.num_batches_tracked.item()


def test_batch_norm_counts_values_by_the_size_of_the_batch(rng):
    traced = trace(nn.BatchNorm1d(3), TensorSpec((Dim("batch", 1, 9), 3)))
    names = ["num_batches_tracked", "running_mean", "running_var"]
    assert list(traced.graph.aliases.values()) == names
    assert traced.training
    for batch in (2, 9):
        x, theirs = rng.normal(size=(batch, 3)).astype("float32"), torch.nn.BatchNorm1d(3)
        theirs(torch.from_numpy(x))
        _, updates = run(traced, x)
        np.testing.assert_allclose(updates["running_var"], theirs.running_var, rtol=1e-6)
    _, updates = run(traced, np.ones((1, 3), "float32"))  # PyTorch refuses a single value
    np.testing.assert_allclose(updates["running_var"], [0.9] * 3, rtol=1e-6)


def test_batch_norm_without_statistics_uses_its_batch_in_inference_too(rng):
    layer = nn.BatchNorm1d(3, track_running_stats=False).eval()
    x = rng.normal(5.0, 2.0, (8, 3))
    y = outputs(layer.double(), x)
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-12)
    with pytest.raises(ArgumentError, match="expects running statistics, got None"):
        trace(lambda x: F.batch_norm(x, None, None), x)


def test_batch_norm_wants_its_number_of_axes():
    with pytest.raises(ShapeError, match=r"BatchNorm2d expects an input of 4 axes, got \(2, 3\)"):
        trace(nn.BatchNorm2d(3), TensorSpec((2, 3)))
    with pytest.raises(ShapeError, match="expects an input of 2 or 3 axes"):
        trace(nn.BatchNorm1d(3), TensorSpec((2, 3, 4, 5)))


# Dropout.


def test_dropout_is_the_identity_in_inference():
    layer, spec = nn.Dropout(0.5), TensorSpec((2, 3))
    traced = trace(layer.eval(), spec)
    assert traced.graph.outputs == traced.graph.inputs
    assert trace(nn.Dropout(0.0), spec).graph.outputs  # draws nothing
    with pytest.raises(ArgumentError, match=r"p from 0 to 1, got 1\.5"):
        nn.Dropout(1.5)


@pytest.mark.parametrize("target", ["cpu", "reference"])
def test_dropout_zeroes_a_share_and_scales_the_rest(target):
    dlc.seed(5)
    x = np.full((200, 300), 2, np.float32)
    exe = dlc.compile(nn.Dropout(0.25), x, target=target)
    first, second = exe(x), exe(x)
    assert set(np.unique(first)) == {np.float32(0), np.float32(2) * np.float32(1 / 0.75)}
    for y in (first, second):
        assert abs((y == 0).mean() - 0.25) < 0.01
    assert abs(((first == 0) & (second == 0)).mean() - 0.25**2) < 0.01
    dlc.seed(5)
    np.testing.assert_array_equal(exe(x), first)


def test_draws_are_the_same_on_both_backends_for_any_layout():
    def f(x):
        return dlc.rand(*x.shape), dlc.randn(*x.shape, dtype="float64"), x + dlc.rand(5, 1)

    x = np.zeros((4, 5, 6), np.float32)
    results = []
    for target in ("cpu", "reference"):
        dlc.seed(11)
        results.append(dlc.compile(f, x, target=target)(x))
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    uniform, normal, _ = results[0]
    assert len(np.unique(uniform)) == uniform.size
    assert abs(normal.mean()) < 0.3
    assert 0.7 < normal.std() < 1.3


# What layers refuse.


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Linear(0, 3), "Linear: in_features expects an integer of at least 1, got 0"),
        (lambda: nn.Linear(3, 2.5), "out_features expects an integer of at least 1, got 2.5"),
        (lambda: nn.Conv2d(3, 4, 3, groups=2), "channels divisible by groups=2, got 3 and 4"),
        (lambda: nn.Conv2d(3, 4, 3, padding_mode="reflect"), "padding_mode='zeros', got 'reflect'"),
        (lambda: nn.Conv2d(3, 4, 0), "Conv2d: kernel_size expects an integer of at least 1.*got 0"),
        (lambda: nn.Conv2d(3, 4, (3, 3, 3)), r"one for columns, got \(3, 3, 3\)"),
        (lambda: nn.Conv2d(3, 4, 3, stride=1.5), "Conv2d: stride expects an integer .* got 1.5"),
        (lambda: nn.Conv2d(3, 4, 3, padding=-1), "padding expects an integer of at least 0"),
        (lambda: nn.Conv2d(3, 4, 3, padding="some"), "'valid', 'same'.*got 'some'"),
        (lambda: nn.Conv2d(3, 4, 3, 2, padding="same"), r"a stride of 1, got \(2, 2\)"),
        (lambda: nn.LayerNorm((3, 1.5)), "normalized_shape expects an integer .* got 1.5"),
        (lambda: nn.BatchNorm2d(-1), "num_features expects an integer of at least 1, got -1"),
    ],
)
def test_a_layer_refuses_bad_arguments(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()


def test_counts_may_be_numpys():
    layer = nn.Linear(np.prod((2, 3)), np.int64(4))
    assert layer.weight.shape == (4, 6)
    assert repr(layer) == "Linear(in_features=6, out_features=4, bias=True)"


def test_a_layer_made_in_forward_is_told_where_it_belongs():
    with pytest.raises(TraceError, match=r"test_nn.py:\d+.*make them in __init__, not in forward"):
        trace(lambda x: nn.Linear(8, 2)(x), TensorSpec((3, 8)))
