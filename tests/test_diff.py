"""`dlc.diff`: clean on equal models, and the layer of each planted fault named."""

import json

import numpy as np
import pytest
import torch
from helpers import twins
from torch import nn as tnn

import dlc
from dlc import functional as F
from dlc import nn
from dlc.errors import ArgumentError, DTypeError
from dlc.frontend.models import in_torch
from dlc.testing import diff_judge, diff_report
from dlc.testing.diff_judge import WRONG


def images(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def replace(name, layer):
    """A fault: another layer, with the old one's weights where they fit."""

    def plant(model):
        shapes = {key: value.shape for key, value in layer.state_dict().items()}
        old = getattr(model, name).state_dict().items()
        fitting = {key: value for key, value in old if shapes.get(key) == value.shape}
        layer.load_state_dict(fitting, strict=False)
        setattr(model, name, layer.eval())

    return plant


def change(name, function, which="weight"):
    """A fault: a layer's array through a function."""

    def plant(model):
        variable = getattr(getattr(model, name), which)
        variable.data = np.ascontiguousarray(function(variable.numpy())).astype(np.float32)

    return plant


def give(name, attribute, value):
    """A fault: another attribute."""
    return lambda model: setattr(getattr(model, name), attribute, value)


def output(name, function):
    """A fault: a function behind a layer."""

    def plant(model):
        forward = getattr(model, name).forward
        object.__setattr__(getattr(model, name), "forward", lambda x: function(forward(x)))

    return plant


def method(name, function):
    """A fault between layers: another method of the model."""
    return lambda model: object.__setattr__(model, name, function.__get__(model))


def to_half(y):
    """Rounded to the eleven bits of float16, after Veltkamp."""
    scaled = y * 8193.0
    return scaled - (scaled - y)


def swap_weight_and_bias(model):
    layer = model.bn2
    weight = layer.weight.numpy().copy()
    layer.weight.data = layer.bias.numpy()
    layer.bias.data = weight


def drop_last_column(weight):
    return np.concatenate([weight[:, :-1], 0 * weight[:, -1:]], 1)


class ShiftedConv(nn.Conv2d):
    """Padded by two after, and by none before."""

    def forward(self, x):
        return F.conv2d(F.pad(x, (0, 2, 0, 2)), self.weight, self.bias)


class WrongStatistics(nn.BatchNorm2d):
    """Forgets to update its mean."""

    def forward(self, x):
        old = self.running_mean + 0.0
        y = super().forward(x)
        self.running_mean = old
        return y


def half_array(a):
    return a.astype(np.float16)


def flip(w):
    return w[:, :, ::-1, ::-1]


#: Each planted fault: the layer, and what is done to the model.
FAULTS = {
    "batch norm's epsilon": ("bn1", give("bn1", "eps", 1e-3)),
    "half of its epsilon": ("bn2", give("bn2", "eps", 5e-6)),
    "layer norm's epsilon": ("norm", give("norm", "eps", 1e-3)),
    "gamma and beta swapped": ("bn2", swap_weight_and_bias),
    "beta of the wrong sign": ("bn1", change("bn1", np.negative, "bias")),
    "padding off by one": ("conv1", give("conv1", "padding", (2, 2))),
    "padding shifted by one": ("conv1", replace("conv1", ShiftedConv(3, 8, 3))),
    "rows padded, columns not": ("conv2", give("conv2", "padding", (2, 0))),
    "stale mean": ("bn1", change("bn1", np.zeros_like, "running_mean")),
    "stale variance": ("bn2", change("bn2", np.ones_like, "running_var")),
    "standard deviation for variance": ("bn2", change("bn2", np.sqrt, "running_var")),
    "batch statistics in inference": ("bn2", lambda model: model.bn2.train()),
    "transposed square weight": ("square", change("square", np.transpose)),
    "output rounded to float16, convolution": ("conv2", output("conv2", to_half)),
    "output rounded to float16, linear": ("fc", output("fc", to_half)),
    "output rounded to float16, activation": ("leaky", output("leaky", to_half)),
    "weights rounded to float16": ("square", change("square", half_array)),
    "ReLU for GELU": ("gelu", replace("gelu", nn.ReLU())),
    "tanh GELU for erf GELU": ("gelu", give("gelu", "approximate", "tanh")),
    "slope of a leaky ReLU": ("leaky", give("leaky", "negative_slope", 0.02)),
    "beta of softplus": ("soft", give("soft", "beta", 2.0)),
    "softmax along the batch": ("out", give("out", "dim", 0)),
    "no bias, convolution": ("conv1", replace("conv1", nn.Conv2d(3, 8, 3, padding=1, bias=False))),
    "no bias, linear": ("fc", replace("fc", nn.Linear(128, 16, bias=False))),
    "no scale in layer norm": ("norm", give("norm", "weight", None)),
    "dilation of the same shape": (
        "conv2",
        replace("conv2", nn.Conv2d(8, 8, 3, padding=2, dilation=2, bias=False)),
    ),
    "pooling of the same shape": ("pool", replace("pool", nn.MaxPool2d(3, 2, 1))),
    "mean for maximum": ("pool", replace("pool", nn.AvgPool2d(2))),
    "flipped kernel": ("conv2", change("conv2", flip)),
    "rows and columns exchanged": ("conv1", change("conv1", lambda w: w.swapaxes(2, 3))),
    "channels in reverse": ("conv1", change("conv1", lambda w: w[:, ::-1])),
    "one input dropped": ("head", change("head", drop_last_column)),
    "scale off by a thousandth": ("head", output("head", lambda y: y * 1.001)),
    "bias added twice": ("fc", change("fc", lambda b: 2 * b, "bias")),
    "layer of another width": ("fc", replace("fc", nn.Linear(128, 15))),
    "flattened in another order": (
        "",
        method("flat", lambda self, x: x.permute(0, 2, 3, 1).flatten(1)),
    ),
    "a ReLU too many": ("", method("middle", lambda self, x: F.relu(self.bn2(self.conv2(x))))),
}


#: What the report says in explanation of some of them.
HINTS = {
    "batch norm's epsilon": "eps is 0.001 in dlc and 1e-05 in PyTorch",
    "gamma and beta swapped": "as if weight and bias were exchanged",
    "transposed square weight": "as if the weight were transposed",
    "flipped kernel": "as if the kernel were flipped",
    "rows and columns exchanged": "rows and columns of the kernel were exchanged",
    "output rounded to float16, linear": "as if it were rounded to float16",
    "weights rounded to float16": "as if the weight were rounded to float16",
    "scale off by a thousandth": "it is 1.001 times what is expected",
    "no bias, convolution": "as if there were no bias",
    "no bias, linear": "dlc has no bias",
    "batch statistics in inference": "the other mode, training or inference",
    "ReLU for GELU": "it is a ReLU in dlc and a GELU in PyTorch",
    "tanh GELU for erf GELU": "approximate is 'tanh' in dlc and 'none' in PyTorch",
    "softmax along the batch": "dim is 0 in dlc and 1 in PyTorch",
}


@pytest.fixture(scope="module")
def torch_small():
    return twins.twins(twins.small)[1]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(fault, torch_small):
    path, plant = FAULTS[fault]
    model = twins.small(dlc).eval()
    model.load_state_dict(torch_small.state_dict())
    plant(model)
    before = model.state_dict()
    report = dlc.diff(model, torch_small, images(2, 3, 8, 8))
    assert not report.ok
    assert report.first.path == path, report
    wrong = {row.path for row in report.rows if row.kind == "layer" and row.verdict == WRONG}
    assert wrong <= {path}, f"a fault is of its layer alone: {report}"
    if path:
        assert f"first divergence: {path}" in str(report)
    if fault in HINTS:
        assert any(HINTS[fault] in each for each in report.first.hints), report.first.hints
    np.testing.assert_equal(model.state_dict(), before)


TRAINING_FAULTS = {
    "momentum": ("bn1", give("bn1", "momentum", 0.2)),
    "running mean": ("bn2", replace("bn2", WrongStatistics(8))),
}


@pytest.mark.parametrize("fault", TRAINING_FAULTS)
def test_a_fault_in_training_is_named(fault, torch_small):
    path, plant = TRAINING_FAULTS[fault]
    model = twins.small(dlc)
    model.load_state_dict(torch_small.state_dict())
    plant(model)
    model.train()
    torch_small.train()
    before = {name: t.clone() for name, t in torch_small.state_dict().items()}
    try:
        report = dlc.diff(model, torch_small, images(4, 3, 8, 8))
    finally:
        torch_small.eval()
    assert report.first.path == path, report
    assert "running" in report.first.why
    for name, tensor in torch_small.state_dict().items():
        assert torch.equal(tensor, before[name])


class Halved(tnn.Conv2d):
    """PyTorch's side may be the wrong one."""

    def forward(self, x):
        y = super().forward(x)
        return y.half().to(y.dtype)


def test_a_fault_in_pytorch_is_named():
    ours, theirs = twins.twins(twins.small)
    theirs.conv2 = Halved(8, 8, 3, padding=1, bias=False)
    theirs.conv2.load_state_dict({"weight": torch.from_numpy(ours.conv2.weight.numpy().copy())})
    report = dlc.diff(ours, theirs, images(2, 3, 8, 8))
    assert report.first.path == "conv2"
    assert not report.weights


class WrongGradient(nn.Linear):
    """Nothing flows back through its weight's last row."""

    def forward(self, x):
        weight = self.weight
        return F.linear(x, dlc.cat([weight[:-1], weight[-1:].detach()], 0), self.bias)


def test_a_wrong_gradient_is_named(torch_small):
    model = twins.small(dlc)
    model.load_state_dict(torch_small.state_dict())
    replace("square", WrongGradient(16, 16))(model)
    report = dlc.diff(model.eval(), torch_small, images(2, 3, 8, 8), gradients=True)
    assert (report.first.kind, report.first.path, report.first.name) == (
        "gradient",
        "square",
        "weight",
    )
    wrong = [(row.kind, row.path, row.name) for row in report.rows if row.verdict == WRONG]
    assert wrong == [("gradient", "square", "weight"), ("gradients", "", "all gradients")]


# Clean models.


@pytest.mark.parametrize(
    ("build", "shape"),
    [(twins.small, (3, 3, 8, 8)), (twins.unet, (2, 3, 16, 16)), (twins.vgg11_bn, (2, 3, 32, 32))],
)
def test_clean(build, shape):
    report = dlc.diff(*twins.twins(build), images(*shape), gradients=True)
    assert report.ok, report
    assert {row.kind for row in report.rows} >= {"layer", "model", "gradient", "gradients"}


@pytest.mark.parametrize(
    ("name", "shape", "gradients"),
    [
        ("lenet5", (2, 1, 28, 28), True),
        ("mlp", (4, 784), True),
        ("resnet18", (2, 3, 64, 64), False),
    ],
)
def test_clean_zoo(name, shape, gradients):
    theirs = getattr(in_torch, name)()
    ours = getattr(dlc.models, name)(weights=theirs.state_dict()).eval()
    report = dlc.diff(ours, theirs, images(*shape), gradients=gradients)
    assert report.ok, report
    linear = [row for row in report.rows if row.name in ("Conv2d", "Linear")]
    assert linear
    assert all(0 < row.share < 1 for row in linear)


def test_clean_with_dropout_in_inference():
    index = np.random.default_rng(0).integers(0, 20, (5, 7))
    report = dlc.diff(*twins.twins(twins.dropping), index, gradients=True)
    assert report.ok, report


def test_clean_in_training():
    ours, theirs = twins.twins(twins.small)
    report = dlc.diff(ours.train(), theirs.train(), images(4, 3, 8, 8), gradients=True)
    assert report.ok, report


def test_clean_in_float64():
    def build(library):
        first = (library.nn.Conv2d(3, 8, 3, padding=1), library.nn.BatchNorm2d(8))
        return library.nn.Sequential(*first, library.nn.Flatten(), library.nn.Linear(512, 5))

    ours, theirs = twins.twins(build)
    x = images(2, 3, 8, 8).astype(np.float64)
    report = dlc.diff(ours.double(), theirs.double(), x, gradients=True)
    assert report.ok, report
    assert report.dtype == "float64"
    assert max(row.local for row in report.rows) < 1e-12


# What else a report says.


def test_layers_without_a_partner_are_code_between_others():
    class Ours(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.act = nn.Linear(4, 5), nn.Linear(5, 3), nn.ReLU()

        def forward(self, x):
            return self.act(self.b(self.act(self.a(x))))

    class Theirs(tnn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.id = tnn.Linear(4, 5), tnn.Linear(5, 3), tnn.Identity()

        def forward(self, x):
            return self.b(self.id(self.a(x).relu())).relu()

    ours, theirs = Ours(), Theirs()
    ours.load_state_dict(theirs.state_dict())
    report = dlc.diff(ours, theirs, images(2, 4))
    assert report.ok, report
    assert report.unmatched == ("Identity in PyTorch: id", "ReLU in dlc: act")
    between = [(row.path, row.name) for row in report.rows if row.kind == "between"]
    assert between == [("act", "b"), ("act", "the output")]
    assert report.rows[1].where.startswith("test_diff.py:")


def test_a_layer_called_twice_is_two_rows():
    def build(library):
        class Twice(library.nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = library.nn.Linear(6, 6)

            def forward(self, x):
                return self.layer(library.tanh(self.layer(x)))

        return Twice()

    report = dlc.diff(*twins.twins(build), images(2, 6), gradients=True)
    assert report.ok, report
    assert [row.name for row in report.rows if row.kind == "layer"] == ["Linear", "Linear (call 2)"]


def test_other_modules_inside_one_layer():
    """A layer of one side that consists of several on the other is compared as a whole."""

    class Ours(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(4, 4)

        def forward(self, x):
            return self.body(x)

    class Body(tnn.Linear):
        def __init__(self):
            super().__init__(4, 4)
            self.inner = tnn.Identity()

        def forward(self, x):
            return self.inner(super().forward(x))

    class Theirs(tnn.Module):
        def __init__(self):
            super().__init__()
            self.body = Body()

        def forward(self, x):
            return self.body(x)

    ours, theirs = Ours(), Theirs()
    ours.load_state_dict(theirs.state_dict())
    report = dlc.diff(ours, theirs, images(2, 4))
    assert report.ok, report
    assert report.rows[0].path == "body"


def test_weights_are_compared_first(torch_small):
    model = twins.small(dlc).eval()
    model.load_state_dict(torch_small.state_dict())
    change("square", np.transpose)(model)
    report = dlc.diff(model, torch_small, images(2, 3, 8, 8))
    assert len(report.weights) == 1
    assert "square.weight differs in 240 of 256" in report.weights[0]
    assert "one is the other transposed" in report.weights[0]
    assert str(report).startswith("The weights differ:\n  square.weight")


def test_a_wrong_pass_is_of_the_model(torch_small, monkeypatch):
    """Each layer right, and the whole wrong: the report says where to look."""
    from dlc.testing import diff_dlc

    whole = diff_dlc.whole
    monkeypatch.setattr(diff_dlc, "whole", lambda *given: [1.01 * y for y in whole(*given)])
    model = twins.small(dlc).eval()
    model.load_state_dict(torch_small.state_dict())
    report = dlc.diff(model, torch_small, images(2, 3, 8, 8))
    assert (report.first.kind, report.first.path) == ("model", "")
    assert "verify=2" in report.first.hints[0]


def test_settings_without_effect_are_notes(torch_small):
    model = twins.small(dlc).eval()
    model.load_state_dict(torch_small.state_dict())
    model.bn1.momentum = 0.3
    report = dlc.diff(model, torch_small, images(2, 3, 8, 8))
    assert report.ok
    assert report.notes == ("bn1: momentum is 0.3 in dlc and 0.1 in PyTorch, without effect here",)


def test_the_page_and_the_dictionary(torch_small, tmp_path):
    model = twins.small(dlc).eval()
    model.load_state_dict(torch_small.state_dict())
    model.bn1.eps = 1e-2
    report = dlc.diff(model, torch_small, images(2, 3, 8, 8))
    report.html(tmp_path / "diff.html")
    page = (tmp_path / "diff.html").read_text()
    assert "first divergence: bn1" in page
    assert "eps is 0.01 in dlc" in page
    assert "http" not in page
    assert "prefers-color-scheme: dark" in page
    assert page.count("<tr") == len(report.rows) + 1
    found = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert (found["ok"], found["first"]) == (False, "bn1")


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        (lambda ours, theirs: (ours, ours), ArgumentError, "a torch.nn.Module second"),
        (lambda ours, theirs: (theirs, theirs), ArgumentError, "a dlc Module first"),
        (lambda ours, theirs: (ours, theirs.train()), ArgumentError, "dropout in training mode"),
        (lambda ours, theirs: (mixed(ours), theirs), DTypeError, "float32, float64"),
    ],
)
def test_what_cannot_be_compared(arguments, error, match):
    given = arguments(*twins.twins(twins.dropping))
    with pytest.raises(error, match=match):
        dlc.diff(*given, np.zeros((1, 2), np.int64))


def test_an_input_that_pytorch_refuses():
    """The message says whose words follow."""
    message = (
        r"inputs that the PyTorch model takes, got float32 \(3, 5\). PyTorch's Linear says: mat1"
    )
    with pytest.raises(ArgumentError, match=message):
        dlc.diff(nn.Linear(4, 4), torch.nn.Linear(4, 4), np.zeros((3, 5), np.float32))


@pytest.mark.parametrize("gradients", [False, True])
def test_what_is_nan_on_both_sides_is_not_compared(gradients):
    ours, theirs = nn.Linear(4, 4), torch.nn.Linear(4, 4)
    ours.load_state_dict(theirs.state_dict())
    report = dlc.diff(ours, theirs, images(3, 4) * np.nan, gradients=gradients)
    assert (report.ok, report.first) == (False, None)
    assert report.summary().startswith("not compared: the model itself (Linear), which is NaN in ")
    one = images(3, 4)
    one[0] = np.nan
    assert dlc.diff(ours, theirs, one).ok  # the rest is compared


def test_an_input_without_elements():
    with pytest.raises(ArgumentError, match=r"something in them, to compare, got .* \(0, 4\)"):
        dlc.diff(nn.Linear(4, 4), torch.nn.Linear(4, 4), images(0, 4))


def mixed(model):
    model.second.double()
    return model


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (lambda y: np.maximum(y, 0), "as if dlc applied a ReLU here"),
        (lambda y: y + np.arange(6).reshape(6, 1, 1), "one number for each channel"),
        (lambda y: y[:, ::-1], "reversed along axis 1"),
        (lambda y: y.swapaxes(2, 3), "its last two axes are exchanged"),
        (lambda y: -0.5 * y, "it is -0.5 times"),
    ],
)
def test_patterns(fault, words):
    from dlc.testing.diff_hints import patterns

    exact = images(3, 6, 4, 4).astype(np.float64)
    (found,) = patterns(fault(exact).astype(np.float32), exact)
    assert words in found
    noise = np.float32(1e-3) * np.random.default_rng(1).normal(size=exact.shape)
    assert patterns((exact + noise).astype(np.float32), exact) == []


def test_a_relu_that_is_missing():
    from dlc.testing.diff_hints import patterns

    y = images(3, 6, 4, 4)
    assert "PyTorch applied a ReLU" in patterns(y, np.maximum(y, 0).astype(np.float64))[0]


# The judgement by itself.


def test_distance_of_what_is_not_finite():
    ours = np.array([np.nan, np.inf, np.inf, 1.0, np.inf], np.float32)
    exact = np.array([np.nan, np.inf, -np.inf, np.nan, 1e39])
    np.testing.assert_array_equal(diff_judge.distance(ours, exact), [0, 0, np.inf, np.inf, 0])


def test_the_bound_finds_what_the_tolerance_allows():
    exact = np.full(100, 1e-3)
    exact[0] = 1.0
    ours = exact.astype(np.float32)
    ours[5] += np.float32(5e-7)
    close = exact.astype(np.float32)
    assert diff_judge.judge(ours, exact, close, exact).verdict != WRONG
    bound = diff_judge.linear_bound(np.abs(exact), 1, np.float32)
    found = diff_judge.judge(ours, exact, close, exact, bound)
    assert found.verdict == WRONG
    assert found.why.startswith("at [5]")


def test_one_element_on_an_edge_does_not_widen_the_tolerance():
    exact = np.linspace(1, 2, 1000)
    theirs = exact.astype(np.float32)
    theirs[3] = 1.5
    ours = exact.astype(np.float32)
    ours[7] += np.float32(1e-3)
    assert diff_judge.judge(ours, exact, theirs, exact).verdict == WRONG


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.0, "0"), (1e-5, "< 0.1 %"), (0.123, "12 %"), (1.5, "150 %"), (12.0, "12 ×")],
)
def test_words_for_a_share(value, words):
    assert diff_report.share(value) == words
