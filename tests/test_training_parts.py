"""Training a part of a model: layers that are frozen for a while, and those that are not used."""

import functools

import numpy as np
import pytest
import torch
from test_optim import (
    SETTINGS,
    assert_same,
    assert_same_state,
    gradients_of,
    parameters,
    stepper,
    twin_of,
)
from test_training import X, Y

import dlc
from dlc import nn, optim


class Spare(nn.Module):
    """A layer that takes part, and one that does not."""

    def __init__(self):
        super().__init__()
        self.used, self.spare = nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x):
        return self.used(x)


def test_what_the_loss_does_not_depend_on_stays_as_in_pytorch():
    """Without a gradient there is no decay of weights either."""
    step = dlc.train_step(Spare(), nn.CrossEntropyLoss(), optim.AdamW(lr=0.1, weight_decay=0.5))
    before = step.model.state_dict()
    step(X, Y)
    after = step.model.state_dict()
    stayed = [name for name in before if np.array_equal(before[name], after[name])]
    assert stayed == ["spare.weight", "spare.bias"]


OPTIMIZERS = {
    "SGD": {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1},
    "Adagrad": {"lr": 0.1, "lr_decay": 0.1},
    "AdamW": {"lr": 0.1},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_layer_frozen_for_a_while_is_trained_as_in_pytorch(name):
    """First the head, then all, then the body alone: each parameter counts its own steps."""
    ours = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
    theirs = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
    ours.load_state_dict(theirs.state_dict())
    step = dlc.train_step(ours, nn.CrossEntropyLoss(), getattr(optim, name)(**OPTIMIZERS[name]))
    twin = getattr(torch.optim, name)(theirs.parameters(), **OPTIMIZERS[name])
    for trained in ((2,), (2,), (0, 2), (0, 2), (0,), (0, 2)):
        for i in (0, 2):
            ours[i].requires_grad_(i in trained)
            theirs[i].requires_grad_(i in trained)
        loss = torch.nn.functional.cross_entropy(theirs(torch.tensor(X)), torch.tensor(Y))
        twin.zero_grad()
        loss.backward()
        twin.step()
        assert step(X, Y) == pytest.approx(loss.item(), rel=1e-5)
        for key, tensor in theirs.state_dict().items():
            torch.testing.assert_close(torch.tensor(ours.state_dict()[key]), tensor)


@pytest.mark.parametrize(("name", "options"), SETTINGS)
def test_steps_are_counted_for_each_parameter(name, options):
    """A layer that was frozen for a while goes on where it was, as in PyTorch."""
    params = parameters()
    optimizer = getattr(optim, name)(params, **options)
    theirs, twin = twin_of(name, params, **options)

    @functools.cache
    def stepper_of(*chosen):
        step = stepper(optimizer, [params[i] for i in chosen])
        return lambda gradients: step(*(gradients[i] for i in chosen))

    for number, chosen in enumerate([(0, 1), (0, 1), (0, 1, 2), (0, 1, 2), (1,), (0, 1, 2)]):
        gradients = gradients_of(number)
        stepper_of(*chosen)(gradients)
        for i, (p, gradient) in enumerate(zip(theirs, gradients, strict=True)):
            p.grad = torch.tensor(gradient) if i in chosen else None
        twin.step()
        assert_same(params, theirs)
    assert_same_state(optimizer.state_dict(), twin.state_dict())
    again = getattr(optim, name)(params, **options)
    again.load_state_dict(twin.state_dict())
    assert_same_state(again.state_dict(), twin.state_dict())


def test_what_a_value_does_not_depend_on_has_no_gradient():
    def function(x, y):
        (g, none) = dlc.gradients((2.0 * x).sum(), [x, y], allow_unused=True)
        (_, zeros) = dlc.gradients((2.0 * x).sum(), [x, y])
        assert none is None
        return g, zeros

    g, zeros = dlc.jit(function)(X, X)
    np.testing.assert_array_equal(g, np.full_like(X, 2))
    np.testing.assert_array_equal(zeros, np.zeros_like(X))
