"""Updates in the kernels of their gradients: where they join, where not, and what they store."""

import itertools

import numpy as np
import pytest
from helpers.native_kernels import LEVELS, guarded, run

import dlc
from dlc import nn, optim
from dlc.backends.native.isa import LEVELS as ALL_LEVELS
from dlc.backends.native.python_twin import run as run_twin
from dlc.backends.numba_cpu.strided import Strided, across_sizes
from dlc.backends.numba_cpu.vectors import Epilogue, Operand

#: A velocity and a parameter, both in place.
MOMENTUM = Epilogue(
    "velocity * 0.5 + acc",
    (Operand("velocity", "full"), Operand("p", "full"), Operand("lr", "scalar")),
    also=("p - lr * (velocity * 0.5 + acc)",),
)


def labels_of(model, x, classes, optimizer, **options):
    step = dlc.train_step(model, nn.CrossEntropyLoss(), optimizer, **options)
    y = np.arange(len(x)) % classes
    return [kernel.label for kernel in step.executable(x, y).kernels]


def dense():
    return nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 5))


IMAGES = np.ones((3, 4, 6, 6), np.float32)
ROWS = np.ones((6, 20), np.float32)


@pytest.mark.parametrize(
    "optimizer", [optim.SGD(lr=0.1, momentum=0.9), optim.Adam(), optim.RMSprop()]
)
def test_updates_join_gradients_of_matrices(optimizer):
    labels = labels_of(dense(), ROWS, 5, optimizer)
    gradients = [label for label in labels if "matmul_across" in label]
    assert len(gradients) == 2
    assert all("+sub" in label for label in gradients)


def test_updates_join_gradients_of_filters():
    model = nn.Sequential(nn.Conv2d(4, 300, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4800, 3))
    labels = labels_of(model, IMAGES, 3, optim.Adam())
    (gradient,) = (label for label in labels if label.startswith("conv2d_weight"))
    assert "sqrt" in gradient


def test_a_gradient_that_others_read_is_written():
    labels = labels_of(dense(), ROWS, 5, optim.Adam(), clip_grad_norm=1.0)
    assert "matmul_across" in {label.partition(" ")[0] for label in labels}


@pytest.mark.parametrize("threads", [1, 2])
def test_joined_updates_are_what_separate_ones_are(threads):
    """A bound on the gradients' norm that none reaches keeps the updates apart: same bits."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((6, 20)).astype(np.float32), rng.integers(0, 5, 6)
    states = []
    for options in ({}, {"clip_grad_norm": 1e9}):
        dlc.seed(0)
        model = dense()
        optimizer = optim.AdamW(weight_decay=0.1)
        step = dlc.train_step(model, nn.CrossEntropyLoss(), optimizer, threads=threads, **options)
        for _ in range(3):
            step(x, y)
        states.append({name: np.array(value) for name, value in model.state_dict().items()})
    for name, value in states[0].items():
        np.testing.assert_array_equal(value, states[1][name], err_msg=name)


def values_for(rng, strided, rows, columns, depth):
    x, w, velocity, p = (
        rng.standard_normal(shape).astype(strided.dtype)
        for shape in ((1, depth, rows), (1, depth, columns), *((1, rows, columns),) * 2)
    )
    values = {"x": x, "w": w, "lr": np.full(1, 0.25, strided.dtype)}
    values |= across_sizes(MOMENTUM, rows=rows, columns=columns, depth=depth)
    acc = x.astype(float).swapaxes(1, 2) @ w.astype(float)
    moved = velocity * 0.5 + acc
    return values, (velocity, p), (moved, p - 0.25 * moved)


@pytest.mark.parametrize("isa", LEVELS, ids=lambda isa: isa.name)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_several_results_in_place(rng, isa, dtype):
    strided = Strided(isa, dtype, MOMENTUM, (2, 1))
    tolerance = 1e-4 if dtype == "float32" else 1e-12
    for rows, columns, threads in itertools.product((1, 15), (1, 31, 49), (1, 2)):
        values, old, expected = values_for(rng, strided, rows, columns, 40)
        arrays, checks = zip(*(guarded(each.shape, dtype) for each in old), strict=True)
        for array, each in zip(arrays, old, strict=True):
            array[...] = each
        scratch, _ = guarded((strided.scratch_elements * threads,), dtype)
        velocity, p = arrays
        places = {"y": velocity, "velocity": velocity, "y1": p, "p": p, "scratch": scratch}
        run(strided.kernel, isa, values | places, threads)
        for array, want, check in zip(arrays, expected, checks, strict=True):
            np.testing.assert_allclose(array, want, tolerance, tolerance)
            check()


def test_the_source_of_several_results_runs_as_python(rng):
    strided = Strided(ALL_LEVELS["x86-64-v3"], "float64", MOMENTUM, (1,))
    values, (velocity, p), expected = values_for(rng, strided, 5, 6, 7)
    values |= {"y": velocity, "velocity": velocity, "y1": p, "p": p}
    values["scratch"] = np.full(strided.scratch_elements, np.nan)
    twins = {each.name: each.twin() for each in (*strided.tiles, *strided.stores)}
    arguments = [values[param.name] for param in strided.kernel.params]
    run_twin(strided.kernel.source, strided.kernel.name, arguments, 0, 1, twins)
    for found, want in zip((velocity, p), expected, strict=True):
        np.testing.assert_allclose(found, want, 1e-12)
