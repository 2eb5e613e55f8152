"""Initial values: PyTorch's distributions, from one seed."""

import math

import numpy as np
import pytest
import torch

from dlc.errors import ArgumentError, ShapeError
from dlc.frontend import nn, random, tensors


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
