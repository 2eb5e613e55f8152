"""What an optimiser remembers is in memory once: where a compiled step keeps it."""

import tracemalloc

import numpy as np

import dlc
from dlc import nn, optim
from dlc.frontend.parameter import Buffer

X, Y = np.ones((4, 1024), np.float32), np.zeros(4, np.int64)


def grown(work):
    """Bytes by which NumPy's arrays grow at most."""
    tracemalloc.start()
    work()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most


def test_first_values_take_no_memory_of_their_own():
    model = nn.Linear(1024, 1024).train()
    made = []
    most = grown(
        lambda: made.append(dlc.train_step(model, nn.CrossEntropyLoss(), optim.Adam(lr=0.1)))
    )
    assert most < 1 << 20  # one moment is 4 MiB
    step = made[0]
    step.executable(X, Y)
    state = step.executable(X, Y).memory["state"]
    assert state > 12 << 20
    assert grown(lambda: step(X, Y)) < 5 << 20  # a frame of the call: the state is there already


def test_one_value_all_over_is_read_like_any_other():
    buffer = Buffer.full((3, 2), 0.5, "float32")
    whole = np.full((3, 2), 0.5, np.float32)
    np.testing.assert_array_equal(buffer.numpy(), whole)
    assert not buffer.numpy().flags.writeable
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    follows = dlc.compile(lambda x: x + buffer, x)
    np.testing.assert_array_equal(follows(x), x + whole)
    buffer.data = whole * 2
    np.testing.assert_array_equal(follows(x), x + 1)


def test_first_values_are_those_of_the_optimiser():
    model = nn.Linear(4, 3)
    optimizer = optim.Adagrad(initial_accumulator_value=0.5)
    optimizer.bind(model.named_parameters())
    first = optimizer.state_dict()["state"][0]["sum"]
    np.testing.assert_array_equal(first, np.full((3, 4), 0.5, np.float32))
    assert first.flags.c_contiguous
    assert first.flags.writeable
