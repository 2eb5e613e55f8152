"""Training against PyTorch: gradients, single steps from its state, runs on their own."""

import copy
import functools
import weakref

import numpy as np
import pytest
import torch
from helpers.either import copy as copy_weights
from helpers.either import lenet, masked, mlp, resnet18, smooth_resnet18, twins, unet, vgg11_bn

import dlc
from dlc import nn, optim

RNG = np.random.default_rng(0)


def images(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def labels(count, classes=10):
    return RNG.integers(0, classes, count)


MASK = (RNG.random((16, 32)) < 0.5).astype(np.float32)
CASES = {
    "lenet": (lenet, (images(16, 1, 28, 28),), labels(16)),
    "mlp": (mlp, (images(16, 784),), labels(16)),
    "resnet18": (resnet18, (images(4, 3, 32, 32),), labels(4)),
    "smooth_resnet18": (smooth_resnet18, (images(4, 3, 32, 32),), labels(4)),
    "vgg11_bn": (vgg11_bn, (images(4, 3, 32, 32),), labels(4)),
    "unet": (unet, (images(2, 3, 16, 16),), RNG.integers(0, 2, (2, 16, 16))),
    "masked": (masked, (images(16, 20), MASK), labels(16, 5)),
}
OPTIMISERS = {
    "sgd": ("SGD", {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-4}),
    "adam": ("Adam", {"lr": 1e-3}),
    "adamw": ("AdamW", {"lr": 1e-3, "weight_decay": 0.05}),
}


def smaller(name):
    """A case for many steps: of a residual net's images, a quarter of the pixels."""
    make, inputs, target = CASES[name]
    if "resnet18" in name:
        inputs = (np.ascontiguousarray(inputs[0][:, :, ::2, ::2]),)
    return make, inputs, target


def tensors(arrays):
    return [torch.from_numpy(np.asarray(array)) for array in arrays]


def loss_of(theirs, inputs, target):
    outputs = theirs(*tensors(inputs))
    return torch.nn.functional.cross_entropy(outputs, torch.from_numpy(target))


@pytest.mark.parametrize("name", CASES)
def test_gradients(name):
    make, inputs, target = CASES[name]
    ours, theirs = twins(make)

    def gradients(*given):
        loss = nn.functional.cross_entropy(ours(*given[:-1]), given[-1])
        return loss, dlc.gradients(loss, list(ours.parameters()))

    loss, found = dlc.jit(gradients)(*inputs, target)
    wide = copy.deepcopy(theirs).double()
    exact = loss_of(wide, [np.asarray(a, np.float64) for a in inputs], target)
    exact.backward()
    expected = loss_of(theirs, inputs, target)
    expected.backward()
    torch.testing.assert_close(torch.tensor(loss), expected.detach())
    rows = zip(theirs.named_parameters(), wide.parameters(), found, strict=True)
    for (path, parameter), precise, got in rows:
        check_close(path, torch.from_numpy(got), parameter.grad, lambda p=precise: p.grad)


#: Adam divides each element by its own size, so that those whose gradient is nothing but rounding
#: may go the other way, by up to twice the rate. Of these nets' eleven million elements a few do in
#: ten steps; where rounding takes a value across a ReLU's threshold, more. Such steps parted by up
#: to 2e-2 of a tensor's step in its norm, in the smooth twin by 5e-3. SGD's need no allowance.
JUMPS_OF_ADAM = {"resnet18": 1e-1, "vgg11_bn": 1e-1, "smooth_resnet18": 2e-2}


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("name", CASES)
def test_steps_restarted_from_pytorchs_state(name, optimiser):
    make, inputs, target = smaller(name)
    ours, theirs = twins(make)
    kind, options = OPTIMISERS[optimiser]
    optimizer = getattr(optim, kind)(**options)
    step = dlc.train_step(ours, nn.CrossEntropyLoss(), optimizer)
    descent = getattr(torch.optim, kind)(theirs.parameters(), **options)
    share = 0.0 if kind == "SGD" else JUMPS_OF_ADAM.get(name, 0.0)
    for _ in range(10):
        copy_weights(theirs, ours)
        if descent.state:
            optimizer.load_state_dict(descent.state_dict())
        start = copy.deepcopy((theirs, descent))
        before = {path: array.clone() for path, array in theirs.state_dict().items()}
        loss = torch_step(theirs, descent, inputs, target)
        torch.testing.assert_close(torch.tensor(step(*inputs, target)), loss)
        exact = functools.cache(functools.partial(stepped_in_float64, *start, inputs, target))
        found = ours.state_dict()
        for path, want in theirs.state_dict().items():
            got = torch.from_numpy(np.array(found[path]))
            jump = share * (want - before[path]).double().norm()
            check_close(path, got, want, lambda path=path, exact=exact: exact()[path], jump)


def torch_step(theirs, descent, inputs, target):
    """A step of PyTorch, and the loss before it."""
    loss = loss_of(theirs, inputs, target)
    descent.zero_grad()
    loss.backward()
    descent.step()
    return loss.detach()


def stepped_in_float64(theirs, descent, inputs, target):
    """What a step makes of the same state in float64."""
    theirs.double()
    descent.load_state_dict(descent.state_dict())  # which converts the moments
    torch_step(theirs, descent, [np.asarray(array, np.float64) for array in inputs], target)
    return theirs.state_dict()


def check_close(path, got, want, precise, jump=0.0):
    """Within PyTorch's tolerances; or no further from float64 than twice what PyTorch is, where
    rounding alone parts PyTorch from float64 by more, or than a jump. (Adam divides a gradient that
    is nothing but rounding by its own size.) `precise` gives the float64 value.
    """
    if not torch.allclose(got, want, rtol=1.3e-6, atol=1e-5) and (got - want).norm() > jump:
        error, usual = ((each.double() - precise()).norm() for each in (got, want))
        assert error <= max(2 * usual, jump), f"{path}: {error} from float64, PyTorch {usual}"


@pytest.mark.parametrize("name", ["lenet", "resnet18"])
def test_the_same_bits_with_one_thread_and_with_two(name):
    make, inputs, target = CASES[name]
    results = []
    for threads in (1, 2):
        ours, _ = twins(make)
        step = dlc.train_step(ours, nn.CrossEntropyLoss(), optim.Adam(lr=1e-3), threads=threads)
        losses = [step(*inputs, target) for _ in range(10)]
        results.append((losses, {k: np.array(v) for k, v in ours.state_dict().items()}))
    assert results[0][0] == results[1][0]
    for path, array in results[0][1].items():
        np.testing.assert_array_equal(array, results[1][1][path], err_msg=path)


@pytest.mark.parametrize("name", ["lenet", "mlp", "unet", "masked", "smooth_resnet18"])
def test_free_running_training_is_no_further_from_float64_than_pytorchs(name):
    make, inputs, target = smaller(name)
    ours, theirs = twins(make)
    wide = copy.deepcopy(theirs).double()
    _, options = OPTIMISERS["sgd"]
    step = dlc.train_step(ours, nn.CrossEntropyLoss(), optim.SGD(**options))
    for _ in range(10):
        step(*inputs, target)
    for each, given in ((theirs, inputs), (wide, [a.astype(np.float64) for a in inputs])):
        descent = torch.optim.SGD(each.parameters(), **options)
        for _ in range(10):
            torch_step(each, descent, given, target)
    exact = [p.detach().numpy() for p in wide.parameters()]

    def distance(parameters):
        return np.sqrt(sum(((p - e) ** 2).sum() for p, e in zip(parameters, exact, strict=True)))

    own = distance([p.numpy() for p in ours.parameters()])
    usual = distance([p.detach().numpy() for p in theirs.parameters()])
    assert own <= 2 * usual


def residual(lib):
    """A small net of everything that a residual net has: batch norm, strides, shortcuts."""
    n = lib.nn

    class Block(n.Module):
        def __init__(self, channels, filters):
            super().__init__()
            self.conv1 = n.Conv2d(channels, filters, 3, 2, 1, bias=False)
            self.bn1, self.bn2 = n.BatchNorm2d(filters), n.BatchNorm2d(filters)
            self.conv2 = n.Conv2d(filters, filters, 3, 1, 1, bias=False)
            self.shortcut = n.Conv2d(channels, filters, 1, 2, bias=False)

        def forward(self, x):
            y = self.bn2(self.conv2(lib.F.relu(self.bn1(self.conv1(x)))))
            return lib.F.relu(y + self.shortcut(x))

    head = (n.AdaptiveAvgPool2d(1), n.Flatten(), n.Linear(16, 10))
    return n.Sequential(n.Conv2d(3, 8, 3, padding=1), Block(8, 8), Block(8, 16), *head)


@pytest.mark.parametrize(
    ("make", "x", "target"),
    [(lenet, images(16, 1, 28, 28), labels(16)), (residual, images(8, 3, 16, 16), labels(8))],
)
def test_free_running_in_float64(make, x, target):
    ours, theirs = twins(make)
    ours.double()
    theirs.double()
    copy_weights(theirs, ours)
    x = x.astype(np.float64)
    step = dlc.train_step(ours, nn.CrossEntropyLoss(), optim.Adam(lr=1e-3))
    descent = torch.optim.Adam(theirs.parameters(), lr=1e-3)
    for _ in range(10):
        step(x, target)
        torch_step(theirs, descent, [x], target)
    found = ours.state_dict()
    for path, want in theirs.state_dict().items():
        got, want = found[path], want.numpy()
        assert np.linalg.norm(got - want) <= 1e-10 * np.linalg.norm(want), path


def test_a_steps_parameters_are_in_memory_once():
    ours, _ = twins(mlp)
    step = dlc.train_step(ours, nn.CrossEntropyLoss(), optim.Adam(lr=1e-3))
    held = [weakref.ref(parameter.numpy().base) for parameter in ours.parameters()]
    assert all(array() is not None for array in held)
    step(*CASES["mlp"][1], CASES["mlp"][2])
    assert all(array() is None for array in held)
