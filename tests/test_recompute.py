"""Recomputation: less memory, the same bits, and no more work than that takes."""

import builtins
import re

import numpy as np
import pytest
from helpers.random_networks import networks, values, with_gradients
from helpers.schedules import check_memory, check_once, check_order
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import dlc
from dlc import functional as F
from dlc import nn, optim
from dlc.backends import reference
from dlc.driver import optimise
from dlc.errors import ArgumentError, IndexError, MemoryError
from dlc.frontend.trace import trace
from dlc.ir.op import Kind
from dlc.ir.pattern import op
from dlc.ir.sizes import bounds
from dlc.passes.memory import assign_memory
from dlc.passes.recompute import Recomputation, Rewriting
from dlc.passes.schedule import schedule
from dlc.passes.traffic import Traffic
from dlc.training.step import TrainStep

RNG = np.random.default_rng(0)


class Everything(nn.Module):
    """Convolutions with batch norm and dropout, shortcuts, pooling and an embedding."""

    def __init__(self):
        super().__init__()
        self.table, self.fc = nn.Embedding(5, 16), nn.Linear(16 * 16, 4)
        self.convs = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1, bias=False) for _ in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(16) for _ in range(3))
        self.drop = nn.Dropout(0.3)

    def forward(self, x, which):
        x = x + self.table(which)[:, :, None, None]
        for conv, norm in zip(self.convs, self.norms):
            x = x + self.drop(F.relu(norm(conv(x))))
        return self.fc(F.flatten(F.max_pool2d(x, 2), 1))


BATCH = (
    RNG.normal(size=(32, 16, 8, 8)).astype("float32"),
    RNG.integers(0, 5, 32),
    RNG.integers(0, 4, 32),
)


def step(budget=None, model=Everything, **options):
    dlc.seed(0)
    made = model().train()
    optimizer = optim.SGD(lr=0.1, momentum=0.9)
    return dlc.train_step(made, nn.CrossEntropyLoss(), optimizer, memory_budget=budget, **options)


def graph_of(model, *shape):
    """The graph of a step on a batch of a shape, after the passes."""
    whole = TrainStep(model.train(), nn.CrossEntropyLoss(), optim.SGD(lr=0.1, momentum=0.9))
    specs = dlc.TensorSpec(shape), dlc.TensorSpec(shape[:1], "int64")
    return optimise(trace(whole._traced(), *specs).graph)


def deep(depth, width=64):
    return dlc.models.mlp(sizes=(width,) * depth)


def work(made, again):
    return sum(bounds(group.flops)[1] for group in made.groups if group.again is again)


def least(graph):
    """The smallest budget that is said to be enough."""
    with pytest.raises(MemoryError, match="at least") as caught:
        schedule(graph, memory_budget=1)
    return int(re.search(r"at least (\d+) bytes", str(caught.value))[1])


# The same bits.


def run(budget=None):
    """Three steps: the compiled step, its losses and the weights behind."""
    made = step(budget)
    losses = [made(*BATCH) for _ in range(3)]
    return made, losses, made.model.state_dict()


def test_a_step_in_less_memory_has_the_same_bits():
    """Running statistics are updated once, and dropout drops the same."""
    whole, losses, weights = run()
    free = whole.executable(*BATCH)
    spare, less_losses, less_weights = run(int(0.8 * free.memory["values"]))
    tight = spare.executable(*BATCH)
    assert tight.memory["values"] <= int(0.8 * free.memory["values"])
    assert tight.memory["state"] == free.memory["state"]
    assert losses == less_losses
    assert list(weights) == list(less_weights)
    for name, array in weights.items():
        np.testing.assert_array_equal(array, less_weights[name], err_msg=name)
    twice = [kernel for kernel in tight.kernels if re.search(r" again\b", kernel.label)]
    assert len(tight.kernels) - len(twice) == len(free.kernels)
    assert {kernel.name for kernel in tight.kernels} == {kernel.name for kernel in free.kernels}
    with pytest.raises(IndexError, match=r"embedding|take|gather"):
        spare(BATCH[0], BATCH[1] + 5, BATCH[2])


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(networks(), st.data())
def test_whatever_is_let_go_comes_again(graph, data):
    """Schedules are sound and compute the same, wherever the middle is and whatever is let go."""
    free = schedule(optimise(with_gradients(graph)))[1]
    assume(free.groups)
    traffic = Traffic(free.graph, free.groups, free.layouts)
    options = Recomputation(traffic)
    options.middle = data.draw(st.integers(0, len(free.groups) - 1))
    gone = frozenset(v for v in options.repeatable if data.draw(st.booleans()))
    new = Rewriting(traffic, free.layouts, options, gone)
    made = assign_memory(new.graph(free.graph), tuple(new.groups.values()), new.layouts)
    for check in (check_order, check_once, check_memory):
        check(made)
    assert {v for v in gone if options.waiting(v)} <= {
        v for run in options.runs(gone) if run.again for v in options.writes[run.group]
    }
    arrays = values(free.graph, np.random.default_rng(0))
    for a, b in zip(
        reference.run(free.graph, arrays), reference.run(made.graph, arrays), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_a_function_without_gradients():
    def function(x):
        wide = op.exp(op.expand(x[:, :, None], shape=(*x.shape, 256)))
        thin = op.sum(wide, axes=(2,), keepdims=False)
        for _ in range(3):
            thin = F.softmax(thin @ thin, -1)
        return (wide * thin[:, :, None]).sum(2)

    spec = dlc.TensorSpec((64, 64))
    x = RNG.normal(size=(64, 64)).astype("float32")
    free = dlc.compile(function, spec)
    tight = dlc.compile(function, spec, memory_budget=free.memory["values"])
    np.testing.assert_array_equal(free(x), tight(x))


# How much memory, how much work.


def test_a_deep_network_needs_the_root_of_its_depth():
    """Four times the layers take about twice the memory, for less than a forward pass more."""
    free, tight = {}, {}
    for depth in (16, 64):
        graph = graph_of(deep(depth), 256, 64)
        free[depth] = schedule(graph)[1]
        tight[depth] = schedule(graph, memory_budget=least(graph))[1]
        assert work(tight[depth], again=True) < work(tight[depth], again=False) / 3
    assert free[64].arena > 3.5 * free[16].arena
    assert tight[64].arena < 2.3 * tight[16].arena
    assert tight[64].arena < 0.3 * free[64].arena


def test_what_is_cheap_is_computed_again_first():
    """Behind a batch norm, only the pointwise work."""
    layers = [(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()) for _ in range(6)]
    flat = (nn.Flatten(), nn.Linear(16 * 64, 10))
    graph = graph_of(nn.Sequential(*(m for layer in layers for m in layer), *flat), 32, 16, 8, 8)
    free = schedule(graph)[1]
    made = schedule(graph, memory_budget=int(0.75 * free.arena))[1]
    twice = [group for group in made.groups if group.again]
    assert twice
    assert {group.anchor.op.kind for group in twice} <= {Kind.POINTWISE, Kind.MOVE}
    assert work(made, again=True) < 0.01 * work(made, again=False)


def test_nothing_is_computed_again_without_need():
    graph = graph_of(deep(8), 32, 64)
    free = schedule(graph)[1]
    made = schedule(graph, memory_budget=free.arena)[1]
    assert made.arena <= free.arena
    assert not any(group.again for group in made.groups)


def test_more_memory_is_less_work():
    graph = graph_of(deep(20), 128, 64)
    free = schedule(graph)[1].arena
    shares = (0.45, 0.6, 0.8)
    made = [schedule(graph, memory_budget=int(share * free))[1] for share in shares]
    done = [work(each, again=True) for each in made]
    assert done == sorted(done, reverse=True)
    assert done[0] > done[-1]


def test_updates_do_not_wait_for_what_has_been_checked():
    """What looks an embedding up finds the errors of its gradient, and of looking it up again."""
    whole = TrainStep(Everything().train(), nn.CrossEntropyLoss(), optim.SGD(lr=0.1))
    specs = (dlc.TensorSpec(array.shape, array.dtype) for array in BATCH)
    graph = optimise(trace(whole._traced(), *specs).graph)
    for budget in (None, least(graph)):
        made = schedule(graph, memory_budget=budget)[1]
        named = [{node.op.name for node in group.inside} for group in made.groups]
        lookups = [i for i, names in enumerate(named) if names & {"take", "scatter_add"}]
        updates = [i for i, group in enumerate(made.groups) if group.in_place]
        assert lookups[0] < min(updates) < lookups[-1]


# What goes wrong.


def test_the_least_is_enough_and_less_is_refused():
    graph = graph_of(deep(12), 64, 64)
    enough = least(graph)
    assert schedule(graph, memory_budget=enough)[1].arena <= enough
    with pytest.raises(MemoryError, match=f"at least {enough} bytes.* got {enough - 1}"):
        schedule(graph, memory_budget=enough - 1)


def test_a_step_that_does_not_fit_says_what_would():
    with pytest.raises(builtins.MemoryError, match=r"at least \d+ bytes.* got 1000\b"):
        step(1000, max_batch=32)(*BATCH)


@pytest.mark.parametrize("budget", [0, -5, 1.5, "1 GB", True])
def test_a_budget_is_a_number_of_bytes(budget):
    with pytest.raises(ArgumentError, match="memory_budget expects a number of bytes"):
        dlc.compile(lambda x: x + 1, dlc.TensorSpec((2,)), memory_budget=budget)


def test_numpy_has_no_budget():
    with pytest.raises(ArgumentError, match="target"):
        dlc.compile(lambda x: x + 1, dlc.TensorSpec((2,)), target="reference", memory_budget=100)


# The order of groups, which a budget builds on.


def test_gradients_of_weights_run_before_the_next_layers():
    """So that neither all activations nor all gradients live at the end."""
    made = schedule(graph_of(deep(16), 128, 64))[1]
    one = 4 * 128 * 64
    assert made.arena < (15 + 4) * one


def test_the_trainer_takes_a_budget():
    def history(budget):
        dlc.seed(0)
        run = dlc.Trainer(
            deep(8, 32), nn.CrossEntropyLoss(), optim.SGD(lr=0.1), memory_budget=budget
        )
        return run.fit((x, y), epochs=2, batch_size=64, seed=0)["loss"]

    x, y = RNG.normal(size=(128, 32)).astype("float32"), RNG.integers(0, 32, 128)
    assert history(None) == history(80_000)
