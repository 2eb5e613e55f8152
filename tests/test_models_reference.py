"""The zoo against PyTorch with the same weights, on the reference backend with small images."""

import numpy as np
import pytest
import torch
import torch_models
from helpers.traced import run

from dlc.backends import reference
from dlc.frontend import models, nn
from dlc.frontend.trace import trace
from dlc.frontend.weights import save_weights
from dlc.ir.sizes import Dim
from dlc.ir.types import TensorSpec

IMAGES = {
    "lenet5": (1, 28, 28),
    "mlp": (1, 28, 28),
    "resnet18": (3, 64, 64),
    "resnet50": (3, 64, 64),
    "vgg16": (3, 64, 64),
}


@pytest.fixture(scope="module", params=IMAGES)
def pair(request):
    """A model in PyTorch, and dlc's with its weights, traced for batches of 1 to 8."""
    theirs = getattr(torch_models, request.param)()
    ours = getattr(models, request.param)(weights=theirs.state_dict()).eval()
    spec = TensorSpec((Dim("batch", 1, 8), *IMAGES[request.param]))
    return ours, theirs, trace(ours, spec)


def images(traced, batch, rng):
    shape = (batch, *traced.graph.inputs[0].shape[1:])
    return rng.normal(size=shape).astype("float32")


@pytest.mark.parametrize("batch", [1, 3])
def test_a_model_computes_what_pytorchs_does(pair, batch, rng):
    _, theirs, traced = pair
    x = images(traced, batch, rng)
    (y,), _ = run(traced, x)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x))
    torch.testing.assert_close(torch.from_numpy(y), expected)


def test_a_model_in_float64_computes_what_pytorchs_does(pair, rng):
    _, theirs, traced = pair
    if sum(p.numel() for p in theirs.parameters()) > 10**8:
        theirs = theirs.features  # its linear layers in float64 take gigabytes
        traced = trace(pair[0].features, TensorSpec((1, *IMAGES["vgg16"])))
    x = images(traced, 1, rng)
    arrays = {name: variable.numpy() for name, variable in traced.parameters.items()}
    y = reference.run(traced.graph, {traced.graph.inputs[0].name: x, **arrays}, dtype="float64")[0]
    with torch.no_grad():
        expected = theirs.double()(torch.from_numpy(x).double()).numpy()
    theirs.float()
    assert np.linalg.norm(y - expected) <= 1e-10 * np.linalg.norm(expected)


def test_a_state_dict_is_pytorchs(pair):
    ours, theirs, _ = pair
    expected = theirs.state_dict()
    found = ours.state_dict()
    assert list(found) == list(expected)
    assert {n: v.shape for n, v in found.items()} == {
        n: tuple(v.shape) for n, v in expected.items()
    }


@pytest.mark.parametrize(
    ("name", "parameters"),
    [  # as torchvision's documentation gives them
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
        ("resnet101", 44_549_160),
        ("resnet152", 60_192_808),
        ("vgg11", 132_863_336),
        ("vgg11_bn", 132_868_840),
        ("vgg13", 133_047_848),
        ("vgg13_bn", 133_053_736),
        ("vgg16", 138_357_544),
        ("vgg16_bn", 138_365_992),
        ("vgg19", 143_667_240),
        ("vgg19_bn", 143_678_248),
    ],
)
def test_the_number_of_parameters(name, parameters):
    with nn.init.skip():
        model = getattr(models, name)()
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_torchvisions_names():
    with nn.init.skip():
        resnet, vgg = models.resnet50(), models.vgg16_bn()
    assert {"layer1.0.conv1.weight", "layer1.0.downsample.1.running_var"} <= set(
        resnet.state_dict()
    )
    assert {"fc.bias", "bn1.num_batches_tracked", "layer4.2.bn3.weight"} <= set(resnet.state_dict())
    assert vgg.get_parameter("classifier.6.bias").shape == (1000,)
    assert vgg.get_parameter("features.0.weight").shape == (64, 3, 3, 3)
    assert vgg.get_buffer("features.41.running_mean").shape == (512,)


def test_variants():
    with nn.init.skip():
        resnext = models.resnet50(groups=32, width_per_group=4, num_classes=10)
        small = models.mlp(sizes=(4, 3))
    assert resnext.get_parameter("layer1.0.conv2.weight").shape == (128, 4, 3, 3)
    assert sum(p.numel() for p in resnext.parameters()) == 25_028_904 - 990 * 2049
    assert list(small.state_dict()) == ["layers.0.weight", "layers.0.bias"]
    blocks = models.resnet18(zero_init_residual=True)
    assert not blocks.layer3[1].bn2.weight.numpy().any()
    assert blocks.layer3[1].bn1.weight.numpy().all()


def test_weights_from_a_file(tmp_path):
    first = models.lenet5()
    save_weights(first, tmp_path / "lenet.safetensors")
    second = models.lenet5(weights=tmp_path / "lenet.safetensors")
    for name, value in first.state_dict().items():
        np.testing.assert_array_equal(value, second.state_dict()[name])


def test_initial_values_are_torchvisions():
    convolution = models.resnet18().layer2[0].conv1.weight.numpy()
    assert abs(convolution.std() / np.sqrt(2 / (128 * 9)) - 1) < 0.02
    assert abs(models.lenet5().fc1.weight.numpy()).max() <= 1 / 20


def test_training_mode_gives_every_batch_norm_new_statistics():
    with nn.init.skip():
        model = models.resnet18()
    traced = trace(model, TensorSpec((Dim("batch", 1, 8), 3, 64, 64)))
    assert len(traced.graph.aliases) == 3 * 20
    assert set(traced.graph.aliases.values()) == {name for name, _ in model.named_buffers()}
    assert not trace(model.eval(), TensorSpec((1, 3, 64, 64))).graph.aliases
