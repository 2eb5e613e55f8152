"""Random numbers of several trainings at once: each run has its own, and nothing is drawn twice."""

import numpy as np
import pytest
from test_concurrency import in_threads
from test_training import X, Y, assert_same, figures

import dlc
from dlc import functional as F
from dlc import nn, optim
from dlc.frontend import random

FIT = {"batch_size": 16, "seed": 5}


def dropping(seed=3):
    """A training in which dropout decides much."""
    dlc.seed(seed)
    model = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.5), nn.Linear(16, 3))
    return dlc.Trainer(model, nn.CrossEntropyLoss(), optim.SGD(lr=0.1))


def alone(epochs=4):
    run = dropping()
    run.fit((X, Y), epochs=epochs, **FIT)
    return run


def other_draws():
    """What else may draw in a process."""
    dlc.seed(99)
    dlc.jit(lambda x: F.dropout(x, 0.5))(np.ones(4, np.float32))
    dlc.randn(3)


def test_trainings_in_turn_are_those_alone():
    whole, runs = alone(), [dropping(), dropping(4)]
    for epochs in range(1, 5):
        for run in runs:
            run.fit((X, Y), epochs=epochs, **FIT)
            other_draws()
    assert figures(runs[0]) == figures(whole)
    assert_same(runs[0], whole)
    assert figures(runs[1]) != figures(whole)


def test_trainings_in_threads_are_those_alone():
    whole, runs = alone(), [dropping() for _ in range(4)]
    in_threads(4, lambda number: runs[number].fit((X, Y), epochs=4, **FIT))
    for run in runs:
        assert figures(run) == figures(whole)
        assert_same(run, whole)


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_run_keeps_its_seed(epochs):
    """`fit` without one, called again, goes on as one call does, behind an epoch too."""
    whole = dropping()
    whole.fit((X, Y), epochs=3, batch_size=16)
    run = dropping()
    run.fit((X, Y), epochs=epochs, batch_size=16)
    other_draws()
    run.fit((X, Y), epochs=3, batch_size=16)
    assert figures(run) == figures(whole)
    assert_same(run, whole)


def test_a_resumed_run_draws_what_the_whole_one_does(tmp_path):
    whole, first = alone(), dropping()
    first.fit((X, Y), epochs=2, checkpoint=tmp_path / "run.ckpt", **FIT)
    other_draws()
    run = dropping(8)
    run.resume(tmp_path / "run.ckpt")
    other_draws()
    run.fit((X, Y), epochs=4, **FIT)
    assert figures(run) == figures(whole)
    assert_same(run, whole)


def test_the_seed_of_a_run_decides_its_dropout():
    """Without a shuffle nothing else of it does."""
    losses = []
    for seed in (1, 2, 1):
        run = dropping()
        run.fit((X, Y), epochs=1, batch_size=16, shuffle=False, seed=seed)
        losses.append(run.history["loss"])
    assert losses[0] == losses[2] != losses[1]


def test_training_leaves_the_draws_of_others_alone():
    function = dlc.jit(lambda x: F.dropout(x, 0.5))
    x = np.ones(32, np.float32)
    dlc.seed(1)
    expected = [function(x) for _ in range(2)]
    run = dropping()
    dlc.seed(1)
    got = [function(x)]
    run.fit((X, Y), epochs=1, **FIT)
    np.testing.assert_array_equal([*got, function(x)], expected)


def stepper(**options):
    dlc.seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.5), nn.Linear(16, 3)).train()
    return dlc.train_step(model, nn.CrossEntropyLoss(), optim.SGD(lr=0.1), **options)


def test_a_step_with_a_seed_depends_on_nothing_else():
    first, second, third = stepper(seed=7), stepper(seed=7), stepper(seed=8)
    losses = [first(X, Y) for _ in range(5)]
    again = []
    for _ in range(5):
        again.append(second(X, Y))
        other_draws()
    assert again == losses
    assert third(X, Y) != losses[0]
    with pytest.raises(dlc.errors.ArgumentError, match="seed expects an integer from 0"):
        stepper(seed=-1)


@pytest.mark.parametrize("others", range(6))
def test_what_is_not_finite_is_looked_for_with_the_draws_of_the_step(others):
    """Only where dropout leaves nothing is there a division by zero."""

    class Ratio(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(np.ones(1, np.float32))

        def forward(self, x):
            kept = F.dropout(x, 0.5)
            return self.weight * kept / kept

    step = dlc.train_step(Ratio().train(), nn.MSELoss(), optim.SGD(lr=0.1), seed=0)
    dlc.seed(others)
    one = np.ones((1, 1), np.float32)

    def train():
        for _ in range(50):
            step(one, one)

    with pytest.raises(dlc.errors.NumericsError, match=r"first div .* holds nan at \(0, 0\)"):
        train()


def test_steps_in_threads_share_one_stream_and_draw_nothing_twice():
    """A step that is at work does not lose the state to another one."""
    steps = [stepper() for _ in range(3)]
    for step in steps:
        step(X, Y)
    seed, before = random.state.numpy()
    in_threads(3, lambda number: [steps[number](X, Y) for _ in range(500)])
    np.testing.assert_array_equal(random.state.numpy(), [seed, before + 1500])


def test_steps_of_one_model_in_threads_lose_no_update():
    """Each step adds one, whichever compiled step takes it."""
    model = nn.Module()
    model.register_buffer("count", np.zeros((), np.int64))

    def counting(number):
        def step(x):
            dlc.frontend.scope.active().assign(model.count, model.count + 1)
            return x + number

        return dlc.compile(step, np.float32(0))

    steps = [counting(number) for number in range(3)]
    in_threads(3, lambda number: [steps[number](np.float32(0)) for _ in range(500)])
    assert model.count.item() == 1500
