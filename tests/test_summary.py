"""Summaries: counts against hand calculations and PyTorch's tools, shapes by module."""

import doctest
import json

import numpy as np
import pytest

import dlc
from dlc import nn
from dlc.frontend import summary as module


def layers(model, *specs, **options):
    return {layer.path: layer for layer in dlc.summary(model, *specs, **options).layers}


def spec(*shape):
    return dlc.TensorSpec(shape)


def test_examples():
    assert doctest.testmod(module).failed == 0


def test_lenet():
    found = layers(dlc.models.lenet5().eval(), spec(1, 1, 28, 28))
    assert list(found) == ["", "conv1", "conv2", "fc1", "fc2", "fc3"]
    conv = found["conv2"]
    assert (conv.kind, conv.depth, conv.kernel) == ("Conv2d", 1, "(5, 5)")
    assert (conv.input, conv.output) == ("(1, 6, 14, 14)", "(1, 16, 10, 10)")
    assert conv.parameters == 16 * 6 * 25 + 16
    assert conv.multiply_adds == 16 * 6 * 25 * 100
    assert conv.flops == 2 * conv.multiply_adds + 1600
    assert conv.bytes == 4 * (6 * 14 * 14 + 16 * 6 * 25 + 16 + 16 * 100)
    assert conv.intensity == conv.flops / conv.bytes
    assert found["fc1"].input == "(1, 400)"


@pytest.mark.parametrize(
    ("name", "parameters", "multiply_adds"),
    [  # multiply-adds as torchvision's documentation gives them
        ("resnet18", 11_689_512, 1.814e9),
        ("resnet50", 25_557_032, 4.089e9),
        ("vgg16", 138_357_544, 15.47e9),
    ],
)
def test_the_zoo(name, parameters, multiply_adds):
    with nn.init.skip():
        model = getattr(dlc.models, name)().eval()
    total = dlc.summary(model, spec(1, 3, 224, 224)).total
    assert total.parameters == parameters
    assert total.multiply_adds == pytest.approx(multiply_adds, rel=1e-3)


def test_a_module_includes_what_is_inside():
    found = layers(dlc.models.resnet18().eval(), spec(1, 3, 64, 64))
    block = found["layer2.0"]
    inside = [found[f"layer2.0.{name}"] for name in ("conv1", "conv2", "downsample")]
    assert block.multiply_adds == sum(layer.multiply_adds for layer in inside)
    assert block.parameters > sum(layer.parameters for layer in inside)
    assert block.flops > sum(layer.flops for layer in inside)
    assert (block.input, block.output) == ("(1, 64, 16, 16)", "(1, 128, 8, 8)")
    assert found[""].flops == sum(found[path].flops for path in found if path and "." not in path)


def test_depth():
    model = dlc.models.resnet18().eval()
    whole, shallow = layers(model, spec(1, 3, 64, 64)), layers(model, spec(1, 3, 64, 64), depth=1)
    assert {layer.depth for layer in shallow.values()} == {0, 1}
    assert all(whole[path] == layer for path, layer in shallow.items())


def test_named_sizes_are_the_smallest():
    found = dlc.summary(dlc.models.mlp().eval(), spec(dlc.Dim("batch", 4, 64), 784))
    assert found.sizes == {"batch": 4}
    assert found.total.input == "(batch, 784)"
    assert found.total.multiply_adds == 4 * (784 * 512 + 512 * 512 + 512 * 10)
    assert "at batch = 4" in str(found)


def test_modules_that_compute_nothing():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.Identity()).eval()
    found = layers(model, spec(2, 4))
    for path in ("1", "2"):
        assert (found[path].input, found[path].output, found[path].flops) == ("", "", 0)


def test_shared_parameters_count_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(self.a(x))

    found = layers(Tied(), spec(2, 3))
    assert (found[""].parameters, found["b"].parameters) == (15, 12)
    assert found[""].multiply_adds == 2 * 2 * 9


def test_frozen_parameters_and_buffers():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval()
    model[0].requires_grad_(False)
    found = dlc.summary(model, spec(2, 4))
    assert (found.total.parameters, found.trainable) == (28, 8)
    assert found.parameter_bytes == 4 * 28
    assert found.buffer_bytes == 4 * 8 + 8
    assert "20 of them frozen" in str(found)


def test_training_costs_more_than_inference():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    training = layers(model, spec(2, 3, 8, 8))["1"].flops
    assert training > layers(model.eval(), spec(2, 3, 8, 8))["1"].flops > 0


def test_a_function():
    found = dlc.summary(lambda x: (x @ x.mT).relu(), np.ones((4, 3), "float32"))
    (total,) = found.layers
    assert (total.multiply_adds, total.parameters) == (48, 0)
    assert total.flops == 2 * 48 + 16
    assert total.bytes == 4 * (12 + 16)


def test_the_table_and_json():
    found = dlc.summary(dlc.models.lenet5().eval(), spec(1, 1, 28, 28))
    text = str(found)
    assert text.startswith("LeNet: 61.7 k parameters (247 kB), 417 k multiply-adds")
    assert "  conv1: Conv2d" in text
    assert json.loads(json.dumps(found.as_dict()))["layers"][1]["path"] == "conv1"
