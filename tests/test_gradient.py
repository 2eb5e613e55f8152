"""Gradients: the pass, `dlc.grad` and its relatives, and new values of parameters in place."""

import threading

import numpy as np
import pytest
import torch

import dlc
from dlc import functional as F
from dlc import nn
from dlc.errors import ArgumentError, DTypeError, NumericsError, ShapeError
from dlc.frontend.scope import active
from dlc.ir.node import apply

X = np.linspace(-1.5, 2.0, 12, dtype=np.float32).reshape(3, 4)


def cubes(x):
    return (x**3).sum()


# Functions of arrays.


def test_grad_of_a_function():
    np.testing.assert_allclose(dlc.grad(cubes)(X), 3 * X**2, rtol=1e-6)


def test_grad_to_any_order():
    second = dlc.grad(lambda x: dlc.grad(cubes)(x).sum())
    third = dlc.grad(lambda x: second(x).sum())
    fourth = dlc.grad(lambda x: third(x).sum())
    np.testing.assert_allclose(second(X), 6 * X, rtol=1e-6)
    np.testing.assert_allclose(third(X), np.full_like(X, 6), rtol=1e-6)
    np.testing.assert_allclose(fourth(X), np.zeros_like(X))


def test_a_variable_is_not_what_is_closed_over():
    """d/dy (x y) at y = x is x, not 2 x."""

    def outer(x):
        return (x * dlc.grad(lambda y: (x * y).sum())(x)).sum()

    np.testing.assert_allclose(dlc.grad(outer)(X), 2 * X, rtol=1e-6)


def test_value_and_grad_of_structures():
    def f(a, b):
        return (a["p"] * b[0]).sum() + b[1].sum()

    value, (da, db) = dlc.value_and_grad(f, argnums=(0, 1))({"p": X}, (2 * X, X))
    np.testing.assert_allclose(value, (2 * X * X + X).sum(), rtol=1e-6)
    np.testing.assert_allclose(da["p"], 2 * X)
    np.testing.assert_allclose(db[0], X)
    np.testing.assert_allclose(db[1], np.ones_like(X))


def test_grad_of_what_is_not_used_is_zero():
    got = dlc.grad(lambda x, y: x.sum(), argnums=1)(X, X)
    np.testing.assert_array_equal(got, np.zeros_like(X))


def test_a_deviation_of_equal_values_is_flat():
    x = np.array([[2.0, 2.0, 2.0], [1.0, 2.0, 4.0]])
    given = torch.tensor(x, requires_grad=True)
    (given.std(1) * 3).sum().backward()
    got = dlc.grad(lambda x: (x.std(1) * 3).sum())(x)
    np.testing.assert_allclose(got, given.grad.numpy(), 1e-12)


def test_nothing_flows_through_detach():
    got = dlc.grad(lambda x: (x * x.detach()).sum())(X)
    np.testing.assert_array_equal(got, X)


@pytest.mark.parametrize(
    ("function", "arguments", "error", "match"),
    [
        (lambda x: x * 2, (X,), ShapeError, "expects a scalar"),
        (lambda x: x.sum(), (X.astype(np.int64),), DTypeError, "of floats"),
        (lambda x: (x > 0).sum(), (X,), DTypeError, "of floats"),
        (lambda x: 1.0, (X,), ShapeError, "whose value is a scalar"),
    ],
)
def test_what_has_no_gradient(function, arguments, error, match):
    with pytest.raises(error, match=match):
        dlc.grad(function)(*arguments)


def test_argnums_that_do_not_exist():
    with pytest.raises(ArgumentError, match="positions"):
        dlc.grad(cubes, argnums=-1)
    with pytest.raises(ArgumentError, match="at least 2 arguments"):
        dlc.grad(cubes, argnums=1)(X)


# Gradients in parameters.


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 6, 3, stride=2)
        self.fc = nn.Linear(6 * 3 * 3, 5)

    def forward(self, x):
        x = F.relu(self.norm(self.conv1(x)))
        x = F.gelu(self.conv2(x))
        return self.fc(F.flatten(F.max_pool2d(F.pad(x, (0, 1, 0, 1)), 2, 1)[:, :, :3, :3], 1))


class TorchNet(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(8)
        self.conv2 = torch.nn.Conv2d(8, 6, 3, stride=2)
        self.fc = torch.nn.Linear(6 * 3 * 3, 5)

    def forward(self, x):
        f = torch.nn.functional
        x = f.relu(self.norm(self.conv1(x)))
        x = f.pad(f.gelu(self.conv2(x)), (0, 1, 0, 1))
        return self.fc(torch.flatten(f.max_pool2d(x, 2, 1)[:, :, :3, :3], 1))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradients_of_a_model(dtype):
    dlc.seed(0)
    model, theirs = Net(), TorchNet().to(getattr(torch, dtype))
    for parameter in (*model.parameters(), *model.buffers()):
        if parameter.dtype == "float32":
            parameter.retype(dtype)
    theirs.load_state_dict(
        {k: torch.from_numpy(np.array(v)) for k, v in model.state_dict().items()}
    )
    x = np.random.default_rng(0).normal(size=(4, 3, 9, 9)).astype(dtype)

    def gradients(x):
        loss = (model(x) ** 2).mean()
        return loss, dlc.gradients(loss, [x, *model.parameters()])

    loss, found = dlc.jit(gradients)(x)
    given = torch.from_numpy(x).requires_grad_()
    expected = (theirs(given) ** 2).mean()
    expected.backward()
    torch.testing.assert_close(torch.from_numpy(np.array(loss)), expected.detach())
    wanted = [given.grad, *(p.grad for p in theirs.parameters())]
    for got, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(torch.from_numpy(got), want)
    for name, want in theirs.state_dict().items():
        torch.testing.assert_close(torch.from_numpy(np.array(model.state_dict()[name])), want)


# New values in place.


def descent(model, rate=0.1):
    """A step of gradient descent on the mean square of a model's output."""

    def step(x):
        loss = (model(x) ** 2).mean()
        parameters = list(model.parameters())
        for parameter, g in zip(parameters, dlc.gradients(loss, parameters), strict=True):
            active().assign(parameter, parameter - rate * g)
        return loss

    return step


def test_updates_are_written_in_place():
    model = nn.Linear(6, 5)
    before = {k: np.array(v) for k, v in model.state_dict().items()}
    exe = dlc.compile(descent(model), dlc.TensorSpec((8, 6)))
    x = np.random.default_rng(1).normal(size=(8, 6)).astype(np.float32)
    losses = [float(exe(x)) for _ in range(5)]
    w, b = before["weight"], before["bias"]
    for loss in losses:
        y = x @ w.T + b
        np.testing.assert_allclose(loss, (y**2).mean(), rtol=1e-5)
        g = 2 * y / y.size
        w, b = w - 0.1 * g.T @ x, b - 0.1 * g.sum(0)
    np.testing.assert_allclose(model.weight.numpy(), w, rtol=1e-5)
    np.testing.assert_allclose(model.bias.numpy(), b, rtol=1e-4)
    np.testing.assert_allclose(model(x), x @ w.T + b, rtol=1e-4, atol=1e-6)


def test_a_value_read_earlier_stays_as_it_was():
    model = nn.Linear(3, 2)
    exe = dlc.compile(descent(model), dlc.TensorSpec((4, 3)))
    x = np.ones((4, 3), np.float32)
    exe(x)
    seen = model.weight.numpy()
    kept = seen.copy()
    exe(x)
    np.testing.assert_array_equal(seen, kept)
    assert not np.array_equal(model.weight.numpy(), kept)


def test_an_assignment_between_two_steps_counts():
    model = nn.Linear(3, 2)
    exe = dlc.compile(descent(model), dlc.TensorSpec((4, 3)))
    x = np.ones((4, 3), np.float32)
    first = exe(x)
    exe(x)
    dlc.seed(3)
    weight, bias = (np.zeros_like(p.numpy()) for p in (model.weight, model.bias))
    model.weight.data, model.bias.data = weight, bias
    assert exe(x) == 0 != first


def test_two_compiled_steps_of_one_model():
    """Each keeps the parameters in turn."""
    model, twin = nn.Linear(3, 2), nn.Linear(3, 2)
    twin.load_state_dict(model.state_dict())
    x = np.ones((4, 3), np.float32)
    a, b = (dlc.compile(descent(model), dlc.TensorSpec((4, 3))) for _ in range(2))
    one = dlc.compile(descent(twin), dlc.TensorSpec((4, 3)))
    assert [float(f(x)) for f in (a, b, a, b)] == [float(one(x)) for _ in range(4)]
    np.testing.assert_array_equal(model.weight.numpy(), twin.weight.numpy())


def test_swapped_values():
    """Neither new value may be written before the other's old one is read."""
    model = nn.Module()
    model.a, model.b = nn.Parameter(np.arange(3.0)), nn.Parameter(np.arange(3.0) + 10)

    def swap(x):
        a, b = model.a + 0.0 * x, model.b + 0.0 * x
        active().assign(model.a, b)
        active().assign(model.b, a)
        return (a * b).sum()

    exe = dlc.compile(swap, dlc.TensorSpec((3,)))
    for turn in (1, 0, 1):
        exe(np.zeros(3, np.float32))
        np.testing.assert_array_equal(model.a.numpy(), np.arange(3) + 10 * turn)
        np.testing.assert_array_equal(model.b.numpy(), np.arange(3) + 10 * (1 - turn))


def test_the_old_value_beside_the_new_one():
    model = nn.Module()
    model.a = nn.Parameter(np.arange(4.0))

    def step(x):
        old = model.a + 0.0
        active().assign(model.a, model.a + x)
        return old.reshape(2, 2), old.flip((0,)), model.a * 1.0

    exe = dlc.compile(step, dlc.TensorSpec((4,)))
    for turn in range(3):
        old, turned, new = exe(np.ones(4, np.float32))
        np.testing.assert_array_equal(old.ravel(), np.arange(4) + turn)
        np.testing.assert_array_equal(turned, np.arange(4)[::-1] + turn)
        np.testing.assert_array_equal(new, np.arange(4) + turn + 1)


def test_a_new_value_that_reads_the_old_one_elsewhere():
    model = nn.Module()
    model.a = nn.Parameter(np.arange(5.0))

    def step(x):
        active().assign(model.a, model.a.flip((0,)) + x)
        return x.sum()

    exe = dlc.compile(step, dlc.TensorSpec((5,)))
    expected = np.arange(5.0)
    for _ in range(3):
        exe(np.ones(5, np.float32))
        expected = expected[::-1] + 1
        np.testing.assert_array_equal(model.a.numpy(), expected)


def test_a_new_value_that_reads_the_old_one_elsewhere_in_a_view():
    """A kernel that reads it in another shape reads it nevertheless."""
    model = nn.Module()
    model.register_buffer("a", np.arange(24, dtype=np.float32).reshape(4, 6))

    def step(x):
        active().assign(model.a, model.a.reshape(6, 4).transpose(0, 1))
        return x.sum()

    exe = dlc.compile(step, dlc.TensorSpec((5,)))
    expected = model.a.numpy()
    for _ in range(3):
        exe(np.ones(5, np.float32))
        expected = expected.reshape(6, 4).T
        np.testing.assert_array_equal(model.a.numpy(), expected)


@pytest.mark.parametrize("threads", [1, 2])
def test_an_error_found_where_a_value_is_written_changes_nothing(threads):
    model = nn.Module()
    model.register_buffer("rows", np.ones((64, 3), np.float32))

    def step(table, index):
        old = model.rows.sum()
        active().assign(model.rows, table.index_select(0, index))
        return old

    exe = dlc.compile(step, dlc.TensorSpec((5, 3)), dlc.TensorSpec((64,), "int64"), threads=threads)
    index = np.zeros(64, np.int64)
    index[40] = 5
    table = np.arange(15, dtype=np.float32).reshape(5, 3)
    with pytest.raises(dlc.IndexError, match=r"take .* got 5 at \(40,\)"):
        exe(table, index)
    np.testing.assert_array_equal(model.rows.numpy(), np.ones((64, 3)))
    exe(table, index - (index == 5))
    np.testing.assert_array_equal(model.rows.numpy(), table[index - (index == 5)])


@pytest.mark.parametrize("threads", [1, 2])
def test_an_error_changes_nothing(threads):
    model = nn.Embedding(5, 3)
    before = model.weight.numpy().copy()

    def step(index):
        loss = (model(index) ** 2).sum()
        (g,) = dlc.gradients(loss, [model.weight])
        active().assign(model.weight, model.weight - g)
        return loss

    exe = dlc.compile(step, dlc.TensorSpec((4,), "int64"), threads=threads)
    for _ in range(2):  # the second time in the fast form of a call
        with pytest.raises(dlc.IndexError, match=r"take .* got 7 at \(2,\)"):
            exe(np.array([0, 1, 7, 2]))
        np.testing.assert_array_equal(model.weight.numpy(), before)
        exe(np.array([0, 1, 4, 2]))
        assert not np.array_equal(model.weight.numpy(), before)
        model.weight.data = before


@pytest.mark.parametrize("target", ["cpu", "reference"])
def test_a_value_that_must_be_finite(target):
    model = nn.Module()
    model.a = nn.Parameter(np.ones(3))

    def step(x):
        value = apply("check_finite", (x * model.a).sum())
        active().assign(model.a, model.a + x)
        return value

    exe = dlc.compile(step, dlc.TensorSpec((3,)), target=target)
    with pytest.raises(NumericsError, match="check_finite"):
        exe(np.array([1, np.nan, 0], np.float32))
    np.testing.assert_array_equal(model.a.numpy(), np.ones(3))
    assert exe(np.ones(3, np.float32)) == 3
    np.testing.assert_array_equal(model.a.numpy(), np.full(3, 2))


def test_steps_of_many_threads_are_taken_one_by_one():
    model = nn.Module()
    model.a = nn.Parameter(np.zeros(1000, np.float32))

    def step(x):
        active().assign(model.a, model.a + x)
        return x.sum()

    exe = dlc.compile(step, dlc.TensorSpec((1000,)))
    one = np.ones(1000, np.float32)
    failures = []

    def work():
        for _ in range(200):
            exe(one)
            value = model.a.numpy()
            if value.min() != value.max():
                failures.append(value)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures
    np.testing.assert_array_equal(model.a.numpy(), np.full(1000, 800))


def test_assignments_while_steps_run_are_never_lost():
    """After an assignment the next step starts from it, whoever steps meanwhile."""
    model = nn.Module()
    model.a = nn.Parameter(np.zeros(10, np.float32))

    def step(x):
        active().assign(model.a, model.a + x)
        return model.a.max()

    exe = dlc.compile(step, dlc.TensorSpec((10,)))
    done = threading.Event()

    def work():
        while not done.is_set():
            exe(np.zeros(10, np.float32))

    worker = threading.Thread(target=work)
    worker.start()
    for i in range(300):
        model.a.data = np.full(10, i, np.float32)
        np.testing.assert_array_equal(model.a.numpy(), np.full(10, i))
    done.set()
    worker.join()
    assert exe(np.zeros(10, np.float32)) == 299
