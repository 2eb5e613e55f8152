"""Layers and functions against PyTorch's: values, state dicts, printed form, initial values."""

import math

import numpy as np
import pytest
import torch
from helpers.traced import call, outputs, run

import dlc
import dlc.frontend.functional as F
from dlc.errors import ArgumentError, Error, ShapeError, TraceError
from dlc.frontend import nn, random, tensors
from dlc.frontend.einsum import einsum
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


KERNEL = np.ones((4, 3, 3, 3), "float32")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda x: F.conv2d(x, KERNEL, np.ones(3, "float32")),
            r"conv2d expects a bias of shape \(4,\), got \(3,\)",
        ),
        (lambda x: F.conv2d(x, KERNEL, padding="some"), "'valid', 'same'.*got 'some'"),
        (
            lambda x: F.conv2d(x, KERNEL, stride=2, padding="same"),
            "padding='same' expects a stride of 1, got 2",
        ),
        (lambda x: F.pad(x, (1, 1), "mirror"), "mode to be constant, reflect, .*, got 'mirror'"),
        (lambda x: F.pad(x, (8, 1), "reflect"), "numbers from 0 that mode='reflect' finds"),
        (lambda x: F.pad(x, (-1, 1), "circular"), "finds in an axis of 8, got -1 and 1"),
        (lambda x: F.max_pool2d(x, 2, return_indices=True), "return_indices=False, got True"),
        (lambda x: F.avg_pool2d(x, 2, ceil_mode=True, divisor_override=3), "ceil_mode=False"),
        (lambda x: F.pad(x, (1,)), "two numbers an axis for at most 4 axes"),
        (lambda x: F.one_hot(x, -1), "num_classes of 1 or more, got -1"),
        (lambda x: F.gelu(x, "erf"), "'none' or 'tanh'"),
        (lambda x: tensors.bmm(x, x), "bmm expects two tensors of 3 dimensions"),
        (lambda x: tensors.cat([]), "a list of one or more tensors"),
        (lambda x: tensors.stack(x), "a list of one or more tensors, got one tensor"),
        (lambda x: tensors.arange(3, step=-1), "a step that leads from 0 to 3, got -1"),
        (
            lambda x: x.flatten(4),
            r"a dimension from -4 to 3, got 4 at test_nn.py:\d+\. The tensor is",
        ),
        (lambda x: x.split([3, 4], -1), r"sizes that add up to 8, got \[3, 4\] at test_nn"),
        (lambda x: x.split(0, -1), "at least one element a part, got 0 at test_nn"),
        (lambda x: x.__setitem__(0, 1), "cannot be changed in place at test_nn.*dlc.where"),
        (lambda x: tensors.arange(3, step=0), "a step that leads from 0 to 3, got 0"),
        (
            lambda x: F.prelu(x, np.ones(4, "float32")),
            r"one a channel of \(1, 3, 8, 8\), got \(4,\)",
        ),
    ],
)
def test_a_function_refuses_bad_arguments(function, message):
    with pytest.raises(Error, match=message):
        trace(function, TensorSpec((1, 3, 8, 8)))


# Functions.

MATRICES = [(2, 3, 4), (2, 4, 5)]
FUNCTIONS = [
    # name, shapes of the tensors, further arguments; the same name and call in PyTorch
    *[(name, [(2, 3)], ()) for name in ("abs", "ceil", "cos", "erf", "exp", "expm1", "floor")],
    *[(name, [(2, 3)], ()) for name in ("neg", "relu", "round", "sigmoid", "sign", "sin")],
    *[(name, [(2, 3)], ()) for name in ("square", "tanh", "trunc", "isnan")],
    *[(name, [(2, 3), (1, 3)], ()) for name in ("add", "sub", "mul", "div", "maximum", "minimum")],
    *[(name, [(2, 3), (2, 1)], ()) for name in ("eq", "ne", "lt", "le", "gt", "ge")],
    *[(name, [(2, 3), (3,)], ()) for name in ("floor_divide", "remainder")],
    ("clamp", [(2, 3)], (-0.5, 0.5)),
    ("clamp", [(2, 3), (3,)], ()),
    ("clamp", [(2, 3), (3,), (2, 1)], ()),
    ("max", [(2, 3), (3,)], ()),
    ("min", [(2, 3), (2, 3)], ()),
    ("pow", [(2, 3)], (2,)),
    ("sum", [(2, 3)], ()),
    ("sum", [(2, 3, 4)], ((0, 2), True)),
    ("mean", [(2, 3)], (1,)),
    ("amax", [(2, 3)], (0,)),
    ("amin", [(2, 3)], (-1, True)),
    ("argmax", [(2, 3)], (1,)),
    ("argmin", [(2, 3)], ()),
    ("max", [(2, 3)], ()),
    ("max", [(2, 3)], (1,)),
    ("min", [(2, 3)], (0, True)),
    ("prod", [(2, 3)], (1,)),
    ("logsumexp", [(2, 3)], (1,)),
    ("softmax", [(2, 3)], (1,)),
    ("log_softmax", [(2, 3)], (0,)),
    ("var", [(2, 3)], (1,)),
    ("std", [(2, 3)], (1,)),
    ("all", [(2, 3)], (1,)),
    ("any", [(2, 3)], ()),
    ("reshape", [(2, 6)], ((3, -1),)),
    ("flatten", [(2, 3, 4)], (1,)),
    ("permute", [(2, 3, 4)], ((2, 0, 1),)),
    ("transpose", [(2, 3, 4)], (0, -1)),
    ("unsqueeze", [(2, 3)], (-1,)),
    ("squeeze", [(2, 1, 3)], (1,)),
    ("flip", [(2, 3)], ((0, 1),)),
    ("chunk", [(2, 7)], (3, 1)),
    ("split", [(2, 7)], (3, 1)),
    ("unbind", [(2, 3)], ()),
    ("matmul", MATRICES, ()),
    ("bmm", MATRICES, ()),
    ("mm", [(2, 3), (3, 4)], ()),
]


@pytest.mark.parametrize("case", FUNCTIONS, ids=lambda case: case[0])
def test_a_function_computes_what_pytorchs_does(case, rng):
    name, shapes, arguments = case
    arrays = [rng.normal(size=shape) for shape in shapes]
    found = outputs(lambda *x: getattr(tensors, name)(*x, *arguments), *arrays)
    theirs = getattr(torch, name)(*map(torch.from_numpy, arrays), *arguments)
    several = isinstance(theirs, tuple)
    for y, expected in zip(found, theirs) if several else [(found, theirs)]:
        torch.testing.assert_close(torch.from_numpy(np.asarray(y)), expected)


KEYWORDS = [
    # name, arguments by keyword; of one matrix
    ("clamp", {"max": 0.25}),
    ("var", {"dim": 1, "unbiased": False}),
    ("var", {"dim": (0, 1), "correction": 2, "keepdim": True}),
    ("std", {"dim": -1, "unbiased": True, "keepdim": True}),
    ("permute", {"dims": (1, 0)}),
    ("flip", {"dims": [1]}),
    ("reshape", {"shape": (3, 2)}),
]


@pytest.mark.parametrize("case", KEYWORDS, ids=str)
def test_keywords_are_pytorchs(case, rng):
    name, keywords = case
    x = rng.normal(size=(2, 3))
    y = outputs(lambda x: getattr(tensors, name)(x, **keywords), x)
    expected = getattr(torch, name)(torch.from_numpy(x), **keywords)
    torch.testing.assert_close(torch.from_numpy(y), expected)


POSITIVE = ("log", "log1p", "rsqrt", "sqrt", "reciprocal")


@pytest.mark.parametrize("name", POSITIVE)
def test_a_function_of_positive_numbers(name, rng):
    x = rng.uniform(0.5, 2.0, (2, 3))
    y = outputs(getattr(tensors, name), x)
    torch.testing.assert_close(torch.from_numpy(y), getattr(torch, name)(torch.from_numpy(x)))


def test_functions_of_several_tensors(rng):
    a, b = rng.normal(size=(2, 2, 3))
    t, u = torch.from_numpy(a), torch.from_numpy(b)
    for dim in (0, 1, -1):
        np.testing.assert_array_equal(
            outputs(lambda x, y, dim=dim: tensors.cat([x, y], dim), a, b), torch.cat([t, u], dim)
        )
        np.testing.assert_array_equal(
            outputs(lambda x, y, dim=dim: tensors.stack((x, y), dim), a, b),
            torch.stack([t, u], dim),
        )
    where = outputs(lambda x, y: tensors.where(x > y, x, 0), a, b)
    np.testing.assert_array_equal(where, torch.where(t > u, t, 0))


def test_indexing_functions(rng):
    x, index = rng.normal(size=(3, 4)), rng.integers(0, 3, (2, 4))
    t, i = torch.from_numpy(x), torch.from_numpy(index)
    np.testing.assert_array_equal(
        outputs(lambda x, i: tensors.gather(x, 0, i), x, index), torch.gather(t, 0, i)
    )
    np.testing.assert_array_equal(
        outputs(lambda x, i: tensors.index_select(x, 1, i), x, index[0]),
        torch.index_select(t, 1, i[0]),
    )
    src = rng.normal(size=(2, 4))
    np.testing.assert_allclose(
        outputs(lambda x, i, s: tensors.scatter_add(x, 0, i, s), x, index, src),
        torch.scatter_add(t, 0, i, torch.from_numpy(src)),
    )
    classes = outputs(lambda i: F.one_hot(i, 5), index)
    np.testing.assert_array_equal(classes, torch.nn.functional.one_hot(i, 5))
    assert classes.dtype == "int64"


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("ij,jk->ik", [(2, 3), (3, 4)]),
        ("ij,jk", [(2, 3), (3, 4)]),
        ("bhid,bhjd->bhij", [(2, 3, 4, 5), (2, 3, 6, 5)]),
        ("bhij,bjhd->bihd", [(2, 3, 4, 6), (2, 6, 3, 5)]),
        ("ij->ji", [(2, 3)]),
        ("ij->i", [(2, 3)]),
        ("ij->", [(2, 3)]),
        ("ij,ij->ij", [(2, 3), (2, 3)]),
        ("ij,ij->", [(2, 3), (2, 3)]),
        ("i,j->ij", [(2,), (3,)]),
        ("ijk,jl->kil", [(2, 3, 4), (3, 5)]),
        ("ij , jk, kl -> il", [(2, 3), (3, 4), (4, 5)]),
        ("ai,bi,ci->abc", [(2, 3), (4, 3), (5, 3)]),
        ("ij,k->k", [(2, 3), (4,)]),
    ],
)
def test_einsum_sums_products(equation, shapes, rng):
    arrays = [rng.normal(size=shape) for shape in shapes]
    y = outputs(lambda *x: einsum(equation, *x), *arrays)
    np.testing.assert_allclose(y, np.einsum(equation, *arrays), rtol=1e-12, atol=1e-12)


def test_einsum_refuses_what_it_cannot_read():
    x, y = TensorSpec((2, 3)), TensorSpec((4, 5))
    for equation in ("ii,jk->i", "i...,jk->ik", "ij->ij", "ij,jk->im", "ij,jk->ii"):
        with pytest.raises(ArgumentError, match="einsum expects letters for 2 operands"):
            trace(lambda a, b, e=equation: einsum(e, a, b), x, y)
    with pytest.raises(ShapeError, match="one size for 'j' in 'ij,jk', got 3 and 4"):
        trace(lambda a, b: einsum("ij,jk", a, b), x, y)
    with pytest.raises(ShapeError, match=r"3 axes for 'ijk' in 'ijk,jk', got \(2, 3\)"):
        trace(lambda a, b: einsum("ijk,jk", a, b), x, y)


@pytest.mark.parametrize(
    "pads", [(1, 2), (0, 0), (1, 2, 3, 0), (0, 1, 2, 3, 1, 1), (-1, 2), (-1, -1, 2, -1), ()]
)
def test_pad_adds_and_takes_away(pads, rng):
    x = rng.normal(size=(3, 4, 5))
    expected = torch.nn.functional.pad(torch.from_numpy(x), pads, value=0.5)
    np.testing.assert_array_equal(outputs(lambda x: F.pad(x, pads, value=0.5), x), expected)


def test_pad_crops_an_axis_of_symbolic_size():
    traced = trace(lambda x: F.pad(x, (0, 0, -1, 2)), TensorSpec((Dim("n", 2, 9), 3)))
    assert str(traced.graph.outputs[0].type) == "float32[n + 1, 3]"


@pytest.mark.parametrize("name", ["softmax", "softmin", "log_softmax", "sum", "mean", "prod"])
def test_results_in_another_type(name, rng):
    """Computed in it, not converted at the end: the sum of an overflowing axis is finite."""
    x = rng.normal(size=(2, 3)).astype("float32") * np.float32(2e38 if name == "sum" else 1)
    where = F if name.startswith(("soft", "log_soft")) else tensors
    theirs = torch.nn.functional if where is F else torch
    y = outputs(lambda x: getattr(where, name)(x, dim=1, dtype="float64"), x)
    expected = getattr(theirs, name)(torch.from_numpy(x), dim=1, dtype=torch.float64)
    assert np.isfinite(y).all()
    torch.testing.assert_close(torch.from_numpy(y), expected)


# New tensors.


@pytest.mark.parametrize(
    "make",
    [
        lambda t: t.zeros(2, 3),
        lambda t: t.ones((2, 3)),
        lambda t: t.full((2,), 1.5),
        lambda t: t.full((2,), 3),
        lambda t: t.arange(5),
        lambda t: t.arange(2, 9, 3),
        lambda t: t.arange(7, 2, -2),
        lambda t: t.arange(0, 1, 0.25),
        lambda t: t.arange(2.5),
        lambda t: t.arange(1, 2.0, 0.1),
        lambda t: t.arange(3, 3),
        lambda t: t.eye(3),
        lambda t: t.eye(2, 3),
        lambda t: t.tensor([1.0, 2.0]),
        lambda t: t.tensor([[1, 2]]),
        lambda t: t.tensor(True),
    ],
)
def test_creation_gives_arrays_outside_a_trace_and_tensors_inside(make):
    expected = make(torch)
    array = make(tensors)
    assert isinstance(array, np.ndarray)
    torch.testing.assert_close(torch.from_numpy(array), expected)
    inside = outputs(lambda x: make(tensors), np.zeros(1))
    torch.testing.assert_close(torch.from_numpy(inside), expected)


def test_creation_follows_symbolic_sizes():
    def like(x):
        n = x.shape[0]
        row = tensors.arange(n, dtype="float32").unsqueeze(1)
        return tensors.zeros(n, 2) + tensors.ones_like(x) * row + tensors.full_like(x, 3)

    traced = trace(like, TensorSpec((Dim("n", 1, 9), 2)))
    assert str(traced.graph.outputs[0].type) == "float32[n, 2]"
    x = np.zeros((3, 2), "float32")
    np.testing.assert_array_equal(outputs(like, x), np.arange(3)[:, None] + [3, 3])
    assert tensors.zeros_like(np.ones((2, 3), "int64")).dtype == "int64"
    spec = TensorSpec((Dim("n", 1, 9),))
    for step in (0.5, -1):
        with pytest.raises(ArgumentError, match=f"an end is a symbolic size, got {step}"):
            trace(lambda x, step=step: tensors.arange(0, x.shape[0], step), spec)


def test_every_export_exists():
    for name in tensors.EXPORTS:
        assert callable(getattr(tensors, name))
        assert getattr(tensors, name).__doc__ or name in dir(tensors.Arithmetic)
    assert len(set(tensors.EXPORTS)) == len(tensors.EXPORTS)
    for name in F.__all__:
        assert getattr(F, name).__doc__ or name in ("sigmoid", "tanh")


# Initial values.


def uniform_bound(values):
    """Largest absolute value, after a check that the values look uniform in +- it."""
    bound = np.abs(values).max()
    assert abs(values.std() - bound / math.sqrt(3)) < 0.05 * bound
    assert abs(values.mean()) < 0.05 * bound
    return bound


def test_linear_and_convolution_start_as_pytorchs_do():
    random.seed(0)
    for layer, fan_in in ((nn.Linear(100, 400), 100), (nn.Conv2d(32, 64, 3, groups=2), 144)):
        bound = 1 / math.sqrt(fan_in)
        assert 0.99 * bound < uniform_bound(layer.weight.numpy()) <= bound
        assert np.abs(layer.bias.numpy()).max() <= bound
    torch.manual_seed(0)
    theirs = torch.nn.Conv2d(32, 64, 3, groups=2).weight.detach().numpy()
    assert abs(uniform_bound(theirs) / bound - 1) < 0.01


def test_a_seed_makes_models_reproducible():
    random.seed(7)
    first = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5)).state_dict()
    after = tensors.randn(2)
    random.seed(7)
    second = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5)).state_dict()
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name])
    np.testing.assert_array_equal(after, tensors.randn(2))
    assert not np.array_equal(after, tensors.randn(2))
    random.seed(8)
    assert not np.array_equal(nn.Linear(3, 4).weight.numpy(), first["0.weight"])
    random.seed(np.int64(8))
    assert not np.array_equal(nn.Linear(3, 4).weight.numpy(), first["0.weight"])
    for bad in (-1, 1.5, "7", True):
        with pytest.raises(ArgumentError, match=r"dlc\.seed expects"):
            random.seed(bad)


def test_random_arrays():
    random.seed(0)
    x = tensors.rand(100, 100)
    assert x.shape == (100, 100)
    assert x.dtype == "float32"
    assert 0 <= x.min() < 0.01 < 0.99 < x.max() < 1
    assert abs(tensors.randn((100, 100), dtype="float64").std() - 1) < 0.05


INITS = [
    # function, arguments, standard deviation on a weight (60, 20, 3, 3)
    ("uniform_", (-2.0, 2.0), 4 / math.sqrt(12)),
    ("normal_", (0.0, 3.0), 3.0),
    ("xavier_uniform_", (2.0,), 2 * math.sqrt(2 / (180 + 540))),
    ("xavier_normal_", (), math.sqrt(2 / (180 + 540))),
    ("kaiming_uniform_", (math.sqrt(5),), math.sqrt(1 / 3 / 180)),
    ("kaiming_uniform_", (0, "fan_out", "linear"), math.sqrt(1 / 540)),
    ("kaiming_normal_", (0, "fan_out", "relu"), math.sqrt(2 / 540)),
    ("trunc_normal_", (), 0.8796),
]


@pytest.mark.parametrize(("name", "arguments", "std"), INITS)
def test_initial_distributions(name, arguments, std):
    random.seed(0)
    weight = nn.Parameter(np.zeros((60, 20, 3, 3), "float32"))
    assert getattr(nn.init, name)(weight, *arguments) is weight
    assert abs(weight.numpy().std() / std - 1) < 0.03
    assert abs(weight.numpy().mean()) < 0.03 * std
    theirs = getattr(torch.nn.init, name)(torch.zeros(60, 20, 3, 3), *arguments)
    assert abs(weight.numpy().std() / theirs.std().item() - 1) < 0.05
    with nn.init.skip():
        assert not getattr(nn.init, name)(np.zeros((60, 20, 3, 3)), *arguments).any()


def test_exact_initial_values():
    for name, shape, arguments in (
        ("constant_", (2, 3), (1.5,)),
        ("ones_", (2, 3), ()),
        ("zeros_", (2, 3), ()),
        ("eye_", (2, 3), ()),
        ("dirac_", (4, 3, 3, 3), ()),
        ("dirac_", (4, 2, 3), (2,)),
    ):
        ours = getattr(nn.init, name)(np.full(shape, 7.0, "float32"), *arguments)
        theirs = getattr(torch.nn.init, name)(torch.full(shape, 7.0), *arguments)
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (3, 2, 2)])
def test_orthogonal_rows_or_columns(shape):
    matrix = nn.init.orthogonal_(np.zeros(shape), gain=2.0).reshape(shape[0], -1)
    square = matrix @ matrix.T if len(matrix) <= matrix.shape[1] else matrix.T @ matrix
    np.testing.assert_allclose(square, 4 * np.eye(len(square)), atol=1e-12)
    with nn.init.skip():
        assert not nn.init.orthogonal_(np.zeros(shape)).any()


@pytest.mark.parametrize(
    "name",
    ["linear", "conv2d", "conv_transpose3d", "sigmoid", "tanh", "relu", "leaky_relu", "selu"],
)
def test_gains(name):
    assert nn.init.calculate_gain(name) == torch.nn.init.calculate_gain(name)


def test_bad_initialisations():
    for function, shape, message in (
        (lambda x: nn.init.calculate_gain("swish"), (2,), "one of leaky_relu, .* got 'swish'"),
        (nn.init.xavier_uniform_, (2,), r"fan_in and fan_out expects two or more axes, got \(2,\)"),
        (lambda x: nn.init.kaiming_normal_(x, mode="fan"), (2, 2), "'fan_in' or 'fan_out', got 'f"),
        (lambda x: nn.init.trunc_normal_(x, a=9.0, b=10.0), (2, 2), r"got \[9\.0, 10\.0\]"),
        (nn.init.eye_, (2,), r"eye_ expects a matrix, got \(2,\)"),
        (nn.init.dirac_, (2, 2), r"dirac_ expects a weight \(O, I, \.\.\.\)"),
        (nn.init.orthogonal_, (2,), "orthogonal_ expects two or more axes"),
    ):
        with pytest.raises((ArgumentError, ShapeError), match=message):
            function(np.zeros(shape))
