"""Memory: buffers that live together never overlap, and the dead make room."""

import numpy as np
import pytest
from helpers.random_networks import networks
from helpers.schedules import check_memory, labels, lives, main, scheduled
from hypothesis import given, settings
from hypothesis import strategies as st

import dlc
from dlc import functional as F
from dlc import nn
from dlc.driver import optimise
from dlc.frontend import models
from dlc.ir.pattern import op
from dlc.ir.plan import ALIGNMENT, SLACK, align
from dlc.ir.sizes import bounds
from dlc.passes.memory import ROOM, WEIGHTY, _Arena
from dlc.passes.schedule import schedule

ROWS = dlc.TensorSpec((4, 10))
IMAGE = dlc.TensorSpec((2, 16, 8, 8))


@settings(max_examples=80)
@given(networks())
def test_no_two_live_buffers_overlap(graph):
    for made in schedule(optimise(graph))[:2]:
        check_memory(made)


def test_resnet18_in_little_memory():
    prepare, made, _ = scheduled(models.resnet18().eval(), dlc.TensorSpec((2, 3, 64, 64)))
    check_memory(prepare)
    check_memory(made)
    sizes = [end - start for start, end, _, _ in lives(made).values()]
    largest = sorted(sizes)[-2:]
    assert made.arena / ROOM <= 1.25 * sum(largest)
    assert made.arena / ROOM <= sum(sizes) / 3


@given(
    st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 6), st.booleans()), max_size=20),
    st.sampled_from((1.0, ROOM)),
)
def test_the_arena_places_any_lives(requests, room):
    """Buffers come in order; some live longer than planned at first."""
    check_places(requests, room)


def test_the_arena_places_more_than_it_weighs(rng):
    """Only the largest count where threads meet; all have places."""
    sizes, lives = rng.integers(0, 5000, 3 * WEIGHTY), rng.integers(1, 40, 3 * WEIGHTY)
    check_places(list(zip(sizes.tolist(), lives.tolist(), sizes % 2 == 0, strict=True)), ROOM)


def check_places(requests, room):
    arena, lives = _Arena(), []
    for now, (nbytes, life, longer) in enumerate(requests):
        assert arena.add(nbytes, now, now + life) == now
        lives.append((nbytes, now, now + life + 2 * longer))
        if longer:
            arena.extend(now, now + life + 2)
    _, least = arena.places()
    offsets, size = arena.places(room)
    assert size <= room * least
    placed = [(o, o + nbytes, *life) for o, (nbytes, *life) in zip(offsets, lives, strict=True)]
    for i, (start, end, first, last) in enumerate(placed):
        assert start % ALIGNMENT == 0
        assert end <= size
        for start2, end2, first2, last2 in placed[:i]:
            assert end <= start2 or end2 <= start or last < first2 or last2 < first


def test_threads_meet_what_they_wrote():
    """Of buffers that follow each other in the same memory, the middles are in one place."""
    arena, sizes = _Arena(), (64 * ALIGNMENT, 32 * ALIGNMENT, 16 * ALIGNMENT)
    for now, nbytes in enumerate(sizes):
        arena.add(nbytes, now, now)
    offsets, size = arena.places()
    assert size == sizes[0]
    assert {o + n // 2 for o, n in zip(offsets, sizes, strict=True)} == {size // 2}


def test_a_chain_needs_two_buffers():
    def chain(x, w):
        for _ in range(8):
            x = F.softmax(x @ w, -1)
        return x

    made = main(chain, dlc.TensorSpec((64, 64)), dlc.TensorSpec((64, 64)))
    sizes = {end - start for start, end, _, _ in lives(made).values()}
    assert made.arena <= 3 * align(max(sizes))


def test_memory_is_planned_at_the_largest_sizes():
    batch = dlc.Dim("batch", 1, 8)
    model = models.lenet5().eval()
    many = main(model, dlc.TensorSpec((batch, 1, 28, 28)))
    eight = main(model, dlc.TensorSpec((8, 1, 28, 28)))
    assert many.arena == eight.arena
    for node, buffer in many.buffers.items():
        if buffer.role == "arena":
            assert buffer.offset + bounds(buffer.nbytes)[1] + SLACK <= many.arena, node


# In place.


class Residual(nn.Module):
    def __init__(self, channels=16):
        super().__init__()
        self.first, self.second = (
            nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2)
        )

    def forward(self, x):
        return F.relu(self.second(self.first(x)) + x)


def added(made):
    """The value that the second of three residual blocks adds, and its result."""
    _, group, _ = (group for group in made.groups if group.label.endswith("add+relu"))
    others = set(group.inputs) - set(group.anchor.inputs)
    (value,) = (node for node in others if node.shape == group.outputs[0].shape)
    return made.buffers[value], made.buffers[group.outputs[0]]


def test_a_residual_sum_takes_its_operands_place():
    made = main(nn.Sequential(*(Residual() for _ in range(3))), IMAGE)
    shortcut, result = added(made)
    assert shortcut.offset == result.offset
    assert shortcut.layout == result.layout
    check_memory(made)


def test_a_value_that_is_read_later_keeps_its_place():
    first, second, third, pool = Residual(), Residual(), Residual(), nn.AvgPool2d(2)

    def function(x):
        y = first(x)
        return pool(third(second(y))) + pool(y)

    made = main(function, IMAGE)
    shortcut, result = added(made)
    assert shortcut.offset != result.offset
    check_memory(made)


@pytest.mark.parametrize(("channels", "size"), [(8, 3), (6, 5), (16, 1), (16, 8)])
def test_a_place_that_is_taken_has_its_halo(rng, channels, size):
    """The zeros around what a sum adds are those around the sum, and nobody writes them again."""
    model = nn.Sequential(*(Residual(channels) for _ in range(3))).double()
    x = rng.normal(size=(2, channels, size, size))
    made = main(model, dlc.TensorSpec(x.shape, "float64"))
    shortcut, result = added(made)
    assert shortcut.offset == result.offset
    assert any(map(any, result.layout.halo))
    exact = dlc.compile(model, dlc.TensorSpec(x.shape, "float64"), target="reference")
    np.testing.assert_allclose(model(x), exact(x), rtol=1e-10, atol=1e-12)


# Views.


def test_a_reshape_of_a_value_of_ours_is_a_view():
    def function(x, w):
        y = op.reshape(op.tanh(x), shape=(2, 20))
        return y @ w, op.exp(y)

    made = main(function, ROWS, dlc.TensorSpec((20, 3)))
    (view,) = (group for group in made.groups if group.view)
    owner = view.anchor.inputs[0]
    assert made.buffers[view.anchor].offset == made.buffers[owner].offset
    assert made.buffers[view.anchor].role == made.buffers[owner].role == "arena"
    assert lives(made)[made.buffers[owner].name, made.buffers[owner].offset][3] > 1


def test_a_result_is_no_view_of_what_the_user_gave_or_got():
    def function(x):
        y = op.tanh(x)
        return (
            op.reshape(x, shape=(40,)),
            y,
            op.reshape(y, shape=(2, 20)),
            op.reshape(y, shape=(8, 5)),
        )

    made = main(function, ROWS)
    assert not any(group.view for group in made.groups)
    assert [made.buffers[node].role for node in made.graph.outputs] == ["output"] * 4
    assert len({made.buffers[node].name for node in made.graph.outputs}) == 4


def test_a_result_is_no_view_of_another_one_of_its_kernel():
    def function(x):
        y, z = x + 1, x * 2
        return y, z, op.reshape(z, shape=(2, 20))

    made = main(function, ROWS)
    assert len({made.buffers[node].name for node in made.graph.outputs}) == 3
    x = np.arange(40, dtype="float32").reshape(4, 10)
    _, z, w = dlc.compile(function, ROWS)(x)
    np.testing.assert_array_equal(w, (x * 2).reshape(2, 20))
    assert not np.shares_memory(z, w)


def test_each_prepared_value_has_memory_of_its_own():
    """Two kernels of main read 1 / p in two shapes, which one kernel of prepare makes."""
    model = nn.Module()
    model.p, model.q = nn.Parameter(np.arange(1.0, 4)), nn.Parameter(np.arange(2.0, 5))

    def function(x):
        p, q = model.p.sqrt(), model.p.sqrt() * model.q
        return (x * q.reshape(3, 1)).sum(), x[0, :3] * q, x[0, :3] + p

    x = np.arange(12, dtype="float32").reshape(3, 4)
    p, q = np.sqrt(np.arange(1.0, 4)), np.sqrt(np.arange(1.0, 4)) * np.arange(2.0, 5)
    wanted = (x * q[:, None]).sum(), x[0, :3] * q, x[0, :3] + p
    for got, want in zip(dlc.compile(function, x)(x), wanted, strict=True):
        np.testing.assert_allclose(got, want, 1e-6)


def test_a_result_that_only_views_a_value_is_written_in_place():
    made = main(lambda x: op.reshape(op.softmax(x, axis=1), shape=(40,)), ROWS)
    assert len(labels(made)) == 1
    assert made.arena == 0


def test_a_view_of_an_argument_stays_the_users_memory_and_is_only_read():
    made = main(lambda x, w: op.reshape(x, shape=(2, 20)) @ w, ROWS, dlc.TensorSpec((20, 3)))
    (view,) = (group for group in made.groups if group.view)
    assert made.buffers[view.anchor].role == "input"
    written = [made.buffers[n].role for g in made.groups if not g.view for n in g.outputs]
    assert set(written) <= {"output", "arena"}


def test_constants_of_one_content_are_one_buffer():
    table = np.arange(40, dtype="float32").reshape(4, 10)
    made = main(lambda x: x + table.copy() + op.reshape(table + 0, shape=(4, 10)), ROWS)
    names = [b.name for b in made.buffers.values() if b.role == "constant"]
    assert len(set(names)) == len(names) == 1
