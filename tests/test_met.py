"""Compiled calls last as long as what their trace met is as it was, and no shorter."""

import copy
import gc
import pickle  # noqa: TID251  (what users may do with a module of theirs)
import weakref

import numpy as np
import pytest

import dlc
from dlc import nn
from dlc.frontend.met import Met, named
from dlc.frontend.trace import trace

X = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
SPEC = dlc.TensorSpec((4, 3))


class Counted:
    """A function of one tensor that counts how often it is traced."""

    def __init__(self, function):
        self.function, self.traces = function, 0

    def __call__(self, x):
        self.traces += 1
        return self.function(x)


class Aside(nn.Module):
    """A module that uses layers which it does not register."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = list(layers)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def holds_after(function, action):
    met = trace(function, SPEC).met
    assert met.holds(function)
    action()
    return met.holds(function)


def test_the_mode_of_a_layer_that_is_not_registered_is_followed():
    norm = nn.BatchNorm1d(3)
    model = Aside(norm)
    by_batch = model(X)
    norm.eval()
    running = model(X)
    assert not np.allclose(by_batch, running)
    np.testing.assert_array_equal(running, norm(X))
    norm.train()
    np.testing.assert_array_equal(model(X), by_batch)


@pytest.mark.parametrize("wrap", [Aside, nn.Sequential, lambda layer: lambda x: layer(x)])
def test_every_change_of_what_was_met_is_noticed(wrap):
    norm = nn.BatchNorm1d(3)
    function = wrap(norm)
    assert not holds_after(function, lambda: setattr(norm, "eps", norm.eps * 2))
    assert not holds_after(function, lambda: norm.requires_grad_(not norm.weight.requires_grad))
    assert not holds_after(function, lambda: norm.register_buffer("more", [1.0]))
    assert not holds_after(function, lambda: norm.train(not norm.training))
    assert holds_after(function, lambda: norm.weight.copy_(2.0))
    assert holds_after(function, lambda: norm.train().eval())
    assert not holds_after(function, norm.double)


def test_a_module_that_only_gives_a_part_is_met():
    model = nn.Sequential(nn.Linear(3, 2))
    part = lambda x: x @ model[0].weight.T  # noqa: E731
    assert not holds_after(part, lambda: setattr(model[0], "weight", nn.Parameter(np.ones((2, 3)))))


def test_other_models_make_nothing_trace_again():
    layer = nn.Linear(3, 2)
    counted = Counted(lambda x: nn.ReLU()(layer(x)))
    function = dlc.jit(lambda x: counted(x))
    function(X)
    other = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    other.eval()
    other[0].requires_grad_(False)
    function(X)
    function(X)
    assert counted.traces == 1
    layer.train(False)
    function(X)
    layer.train(True)
    function(X)
    assert counted.traces == 2, "both modes are kept"


def test_a_name_may_mean_another_module_or_parameter_later():
    layer, weight = nn.Linear(3, 2), nn.Parameter([1.0, 1.0])
    function = dlc.jit(lambda x: layer(x) * weight)
    first, kept = function(X), layer
    layer = nn.Linear(3, 2)
    layer.load_state_dict({"weight": -kept.weight.numpy(), "bias": -kept.bias.numpy()})
    np.testing.assert_array_equal(function(X), -first)
    weight = nn.Parameter([2.0, 2.0])
    np.testing.assert_array_equal(function(X), -2 * first)


def test_a_model_behind_a_helper_is_let_go_and_its_code_with_it():
    models = {"now": nn.Linear(3, 2)}
    function = dlc.jit(lambda x: models["now"](x))
    function(X)
    old = weakref.ref(models["now"])
    models["now"] = nn.Linear(3, 5)
    assert function(X).shape == (4, 5)
    assert old() is None


def test_a_called_model_dies_without_the_garbage_collector():
    gc.disable()
    try:
        model = nn.Linear(3, 2)
        model(X)
        dead = weakref.ref(model)
        del model
        assert dead() is None
    finally:
        gc.enable()


def test_a_layer_made_in_forward_is_traced_once_more_and_then_kept():
    class Lazy(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.traces = None, []

        def forward(self, x):
            self.traces.append(1)
            if self.norm is None:
                self.norm = nn.BatchNorm1d(3)
            return self.norm(x)

    model = Lazy()
    for _ in range(4):
        model(X)
    assert len(model.traces) == 2
    model.norm.eval()
    model(X)
    assert len(model.traces) == 3


def test_what_changes_while_it_is_traced_does_not_hold():
    layer = nn.BatchNorm1d(3)

    def function(x):
        y = layer(x)
        layer.register_buffer("late", [1.0])
        return y

    assert not trace(function, SPEC).met.holds(function)


def test_the_names_of_a_function():
    layer = nn.ReLU()
    inner = lambda x: layer(x)  # noqa: E731
    assert named(inner) == [layer]
    assert named(dlc.jit(inner)) == [layer]
    assert named(len) == []
    assert isinstance(trace(inner, SPEC).met, Met)


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
def test_a_module_that_was_called_is_copied_and_pickled(again):
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).eval()
    model.shared = model[0].weight
    model[0].bias.requires_grad = False
    expected = model(X)
    twin = again(model)
    np.testing.assert_array_equal(twin(X), expected)
    assert not twin[0].bias.requires_grad
    assert twin.shared is twin[0].weight
    twin.append(nn.ReLU())
    np.testing.assert_array_equal(model(X), expected)
    np.testing.assert_array_equal(twin(X), np.maximum(expected, 0))
