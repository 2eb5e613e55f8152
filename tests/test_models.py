"""The zoo compiled for the CPU, against PyTorch with the same weights, many batches from one
compilation.
"""

import numpy as np
import pytest
import torch
import torch_models

import dlc
from dlc.frontend import models

IMAGES = {
    "lenet5": (1, 28, 28),
    "mlp": (1, 28, 28),
    "resnet18": (3, 64, 64),
    "resnet50": (3, 64, 64),
    "vgg16": (3, 32, 32),
}


@pytest.fixture(scope="module", params=IMAGES)
def pair(request):
    """A model in PyTorch, and dlc's with its weights, compiled for batches of 1 to 8."""
    theirs = getattr(torch_models, request.param)()
    ours = getattr(models, request.param)(weights=theirs.state_dict()).eval()
    spec = dlc.TensorSpec((dlc.Dim("batch", 1, 8), *IMAGES[request.param]))
    return dlc.compile(ours, spec, threads=2), theirs, ours, spec


def images(exe, batch, rng, dtype="float32"):
    shape = (batch, *exe.graph.inputs[0].shape[1:])
    return rng.normal(size=shape).astype(dtype)


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_outputs_agree_with_pytorch(pair, batch, rng):
    exe, theirs, _, _ = pair
    x = images(exe, batch, rng)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x))
    torch.testing.assert_close(torch.from_numpy(exe(x)), expected)


def test_bits_do_not_depend_on_the_number_of_threads(pair, rng):
    exe, _, ours, spec = pair
    alone = dlc.compile(ours, spec, threads=1)
    three = dlc.compile(ours, spec, threads=3)
    for batch in (1, 3):
        x = images(exe, batch, rng)
        expected = exe(x)
        np.testing.assert_array_equal(alone(x), expected)
        np.testing.assert_array_equal(three(x), expected)


def test_float64_agrees_with_pytorch(pair, rng):
    _, theirs, ours, spec = pair
    double = ours.double()
    exe = dlc.compile(double, dlc.TensorSpec(spec.shape, "float64"), threads=2)
    theirs = theirs.double()
    for batch in (1, 3, 8):
        x = images(exe, batch, rng, "float64")
        with torch.no_grad():
            expected = theirs(torch.from_numpy(x)).numpy()
        assert np.linalg.norm(exe(x) - expected) <= 1e-10 * np.linalg.norm(expected)
    theirs.float()
    ours.float()


def counts(exe):
    """How many kernels of each kind a model has."""
    found = {}
    for kernel in exe.kernels:
        stem = kernel.label.split(" ")[0]
        found[stem] = found.get(stem, 0) + 1
    return found


def test_resnet18_is_one_kernel_for_each_convolution():
    exe = dlc.compile(models.resnet18().eval(), dlc.TensorSpec((1, 3, 64, 64)))
    found = counts(exe)
    convolutions = {name: n for name, n in found.items() if name.startswith("conv2d")}
    assert sum(convolutions.values()) == 20
    assert sum(n for name, n in convolutions.items() if name.endswith("relu")) == 17
    residual = [name for name in convolutions if name.count("add") == 2]
    assert sum(convolutions[name] for name in residual) == 8
    others = set(found) - set(convolutions) - {"halo"}
    assert others == {"relayout", "max_pool2d", "mean", "matmul_packed+add"}
    assert not any("batch_norm" in str(node.op) for node in exe.graph.nodes)
    assert not any(node.op.name in ("rsqrt", "sqrt") for node in main_nodes(exe))


def main_nodes(exe):
    """The nodes that a call computes, without what is prepared from parameters."""
    from dlc.passes.prepare import split

    return split(exe.graph).main.nodes


def test_no_new_batch_compiles_anything(pair, rng, monkeypatch):
    from dlc.backends.native import objects

    exe = pair[0]
    monkeypatch.setattr(objects, "build", None)
    for batch in range(1, 9):
        assert exe(images(exe, batch, rng)).shape[0] == batch


def test_the_executable_follows_the_parameters(rng):
    model = models.lenet5().eval()
    exe = dlc.compile(model, dlc.TensorSpec((2, 1, 28, 28)))
    frozen = dlc.compile(model, dlc.TensorSpec((2, 1, 28, 28)), freeze=True)
    x = rng.normal(size=(2, 1, 28, 28)).astype("float32")
    before = exe(x)
    model.fc3.bias.data = model.fc3.bias.numpy() + np.float32(1)
    np.testing.assert_allclose(exe(x), before + 1, 1e-6, 1e-6)
    np.testing.assert_array_equal(frozen(x), before)
