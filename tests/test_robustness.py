"""Bad input, and good input in odd clothes: each gives a clear error or just works.

Every error is followed by a good call of the same executable, and most things are tried twice: the
second call goes through the native entry.
"""

import inspect

import numpy as np
import pytest
import torch

import dlc
from dlc import functional as F
from dlc import nn
from dlc.errors import (
    ArgumentError,
    DTypeError,
    ExecutionError,
    ShapeError,
    TargetError,
    TraceError,
    WeightsError,
)
from dlc.frontend import models
from dlc.ir.pattern import op

BATCH = dlc.Dim("batch", 0, 8)


@pytest.fixture(scope="module")
def exe():
    """x * 2 + y of up to 8 rows of 3."""
    return dlc.compile(lambda x, y: x * 2 + y, spec(BATCH, 3), spec(BATCH, 3))


def spec(*shape):
    return dlc.TensorSpec(shape)


def rows(count=2, dtype="float32"):
    return np.arange(3 * count, dtype=dtype).reshape(count, 3) + 1


def check(exe):
    """A good call, first in the general way, then through the native entry."""
    for _ in range(2):
        np.testing.assert_array_equal(exe(rows(), rows()), rows() * 3)


# What does not fit.


UNFIT = {
    "another shape": (
        lambda: rows().T,
        ShapeError,
        r"'y' expects shape \(batch, 3\).*\(3, 2\)",
    ),
    "another rank": (lambda: rows()[0], ShapeError, r"'y' expects shape .*, got \(3,\)"),
    "other batches": (lambda: rows(3), ShapeError, r"got \(3, 3\), where batch is 2"),
    "float64": (
        lambda: rows(dtype="f8"),
        DTypeError,
        r"'y' expects float32, got float64; .*as",
    ),
    "integers": (lambda: rows(dtype="i8"), DTypeError, "expects float32, got int64"),
    "half floats": (lambda: rows(dtype="f2"), DTypeError, "expects float32, got float16"),
    "complex": (lambda: rows(dtype="c8"), DTypeError, "expects float32, got complex64"),
    "objects": (lambda: rows().astype(object), DTypeError, "expects float32, got object"),
    "text": (lambda: np.array([["a"]]), DTypeError, "expects float32, got str"),
    "a list": (
        lambda: [[1.0, 2.0, 3.0]],
        ArgumentError,
        "argument 2 expects an array, got a l",
    ),
    "a number": (
        lambda: 3.5,
        ArgumentError,
        r"argument 2 expects an array, got 3\.5\. Only arr",
    ),
    "None": (lambda: None, ArgumentError, "argument 2 expects an array, got None"),
    "a torch tensor": (lambda: torch.ones(2, 3), TraceError, r"its \.numpy\(\)"),
    "an iterator": (lambda: iter([1.0]), TraceError, "expected NumPy arrays"),
}


@pytest.mark.parametrize("what", UNFIT)
def test_an_argument_that_does_not_fit(exe, what):
    make, error, message = UNFIT[what]
    check(exe)
    for _ in range(2):
        with pytest.raises(error, match=message):
            exe(rows(), make())
    check(exe)


@pytest.mark.parametrize(
    ("args", "names", "message"),
    [
        ((), (), "expects 2 arguments by position, got 0"),
        ((rows(),), (), "expects 2 arguments by position, got 1"),
        ((rows(),) * 3, (), "expects 2 arguments by position, got 3"),
        ((rows(),), ("y",), "expects 2 arguments by position, got 1"),
        ((rows(),) * 2, ("z",), "expects no arguments by name, got z"),
    ],
)
def test_the_wrong_number_of_arguments(exe, args, names, message):
    check(exe)
    with pytest.raises(ArgumentError, match=message):
        exe(*args, **dict.fromkeys(names, rows()))
    check(exe)


def test_batches_of_the_declared_range_only(exe):
    for count in (0, 1, 8, 0):
        result = exe(rows(count), rows(count))
        np.testing.assert_array_equal(result, rows(count) * 3)
        assert result.shape == (count, 3)
    with pytest.raises(ShapeError, match=r"declared as 0\.\.8; compile with a wider Dim"):
        exe(rows(9), rows(9))
    check(exe)


def test_a_size_that_another_argument_decides():
    n = dlc.Dim("n", 1, 4)
    exe = dlc.compile(lambda twice, once: twice[:1] * once, spec(n * 2), spec(n))
    four, two = np.ones(4, "f4"), np.ones(2, "f4")
    for _ in range(2):
        np.testing.assert_array_equal(exe(four, two), two)
        with pytest.raises(ShapeError, match=r"'twice' expects shape \(2\*n,\).*where n is 2"):
            exe(np.ones(6, "f4"), two)


def test_a_size_that_nothing_decides():
    n = dlc.Dim("n", 1, 4)
    exe = dlc.compile(lambda x: x + 1, spec(n * 2))
    with pytest.raises(ShapeError, match="no argument has the dimension 'n' alone"):
        exe(np.ones(4, "f4"))


def test_a_range_that_no_memory_holds():
    n = dlc.Dim("n", 1, 2**40)
    exe = dlc.compile(
        lambda x: op.softmax(x @ op.transpose(x, axes=(1, 0)), axis=0) @ x, spec(n, 2)
    )
    with pytest.raises(
        ExecutionError, match=r"needs .* GB of memory .*compile for smaller sizes, or"
    ):
        exe(np.ones((4, 2), "f4"))


def test_two_dimensions_of_one_name():
    specs = [spec(dlc.Dim("n", 1, most)) for most in (4, 8)]
    with pytest.raises(ShapeError, match=r"one range .* 'n', got 1\.\.4 and 1\.\.8\. Use one"):
        dlc.compile(lambda x, y: (x, y), *specs)


# Odd clothes.


def misaligned(array):
    memory = np.zeros(array.nbytes + 1, np.uint8)[1:]
    result = memory.view(array.dtype).reshape(array.shape)
    result[...] = array
    return result


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


CLOTHES = {
    "plain": np.copy,
    "transposed": lambda x: x.T.copy().T,
    "Fortran order": np.asfortranarray,
    "upside down": lambda x: x[::-1].copy()[::-1],
    "backwards": lambda x: x[:, ::-1].copy()[:, ::-1],
    "every other": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "broadcast": lambda x: np.broadcast_to(x[:1], x.shape),
    "overlapping windows": lambda x: np.lib.stride_tricks.sliding_window_view(x.ravel()[:8], 3)[:4],
    "misaligned": misaligned,
    "other byte order": lambda x: x.astype(x.dtype.newbyteorder()),
    "read-only": read_only,
    "masked": np.ma.masked_array,
    "part of a record": lambda x: x.view([("x", "f4")])["x"],
    "extra axes of one": lambda x: x[None, :, None][0, :, 0],
}


@pytest.mark.parametrize("what", CLOTHES)
def test_any_strides_are_accepted(exe, what):
    x, y = CLOTHES[what](rows(4)), rows(4)
    before = np.array(x)
    for _ in range(2):
        result = exe(x, y)
        np.testing.assert_array_equal(result, before * 2 + y)
        assert type(result) is np.ndarray
        assert result.dtype == np.float32
        assert result.flags.writeable
        np.testing.assert_array_equal(exe(y, x), y * 2 + before)
        np.testing.assert_array_equal(np.array(x), before)


def test_odd_specs_are_as_good():
    x = np.asfortranarray(rows(4)).astype(">f4")
    for target in ("cpu", "reference"):
        exe = dlc.compile(lambda x: (x, x + 1), x, target=target)
        same, more = exe(x)
        assert same.dtype == more.dtype == np.dtype("float32")
        np.testing.assert_array_equal(same, rows(4))
        np.testing.assert_array_equal(more, rows(4) + 1)


def test_one_array_twice_and_overlapping_arrays(exe):
    x = rows(5)
    for _ in range(2):
        np.testing.assert_array_equal(exe(x, x), rows(5) * 3)
        np.testing.assert_array_equal(exe(x[:4], x[1:]), rows(5)[:4] * 2 + rows(5)[1:])
    np.testing.assert_array_equal(x, rows(5))


def test_numpy_numbers_are_arrays_without_dimensions():
    exe = dlc.compile(lambda x, y: x + y, np.float32(1), np.float32(1))
    for _ in range(2):
        assert exe(np.float32(2), np.float32(3)) == 5
        assert exe(np.array(2, "f4"), np.float32(3)).shape == ()


# Numbers that are none.


@pytest.fixture(scope="module")
def through():
    """What maxima make of their input: ReLU, pooling (as its store and by itself), maximum."""

    def function(x, y):
        pooled = F.max_pool2d(x, 2)
        return F.relu(x), pooled, op.amax(x, axes=(2, 3), keepdims=False), op.maximum(x, y), x > y

    return dlc.compile(function, *[spec(2, 3, 6, 40)] * 2)


def test_nan_and_infinities_go_through_as_in_pytorch(through, rng):
    x, y = rng.normal(size=(2, 2, 3, 6, 40)).astype("float32")
    for array in (x, y):
        for value in (np.nan, np.inf, -np.inf, -0.0, 1e-42):
            array[rng.random(array.shape) < 0.05] = value
    a, b = torch.from_numpy(x), torch.from_numpy(y)
    expected = torch.relu(a), torch.max_pool2d(a, 2), a.amax((2, 3)), torch.maximum(a, b), a > b
    for ours, theirs in zip(through(x, y), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs.numpy())


@pytest.mark.parametrize("size", [40, 7])  # 40: the maximum is taken as the convolution stores
def test_nan_goes_through_a_convolution_and_its_epilogue(size, rng):
    ours = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    theirs = torch.nn.Sequential(
        torch.nn.Conv2d(1, 6, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2)
    )
    ours.load_state_dict(theirs.state_dict())
    x = rng.normal(size=(2, 1, 8, size)).astype("float32")
    x[0, 0, 2, 3], x[1, 0, 7, 6] = np.nan, np.inf
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x)).numpy()
    assert np.isnan(expected).any()
    np.testing.assert_allclose(ours(x), expected, 1e-5, 1e-5)


# Indices out of range.


class Lookup(nn.Module):
    """Two tables whose rows are added in one kernel."""

    def __init__(self):
        super().__init__()
        self.word, self.place = nn.Embedding(50, 4), nn.Embedding(7, 4)

    def forward(self, words, places):
        return F.relu(self.word(words) + self.place(places))


@pytest.fixture(scope="module")
def lookup():
    model = Lookup()
    indices = dlc.TensorSpec((2, 3), "int64")
    return dlc.compile(model, indices, indices), model


GOOD = np.array([[0, 1, 2], [3, 6, 5]])


def with_bad(value):
    bad = GOOD.copy()
    bad[1, 2] = value
    return bad


@pytest.mark.parametrize("value", [7, -1, 2**40, -(2**63), 2**63 - 1])
def test_an_index_out_of_range_names_op_module_and_position(lookup, value):
    exe, model = lookup
    expected = np.maximum(model.word.weight.numpy()[GOOD] + model.place.weight.numpy()[GOOD], 0)
    for call in (exe, model, exe):
        np.testing.assert_array_equal(call(GOOD, GOOD), expected)
        text = rf"take expects indices from 0 to 6, got {value} at \(1, 2\) \(place\)"
        with pytest.raises(dlc.IndexError, match=text):
            call(GOOD, with_bad(value))
    with pytest.raises(IndexError, match=r"from 0 to 49, got 50 at \(1, 2\) \(word\)"):
        exe(with_bad(50), GOOD)
    np.testing.assert_array_equal(exe(GOOD, GOOD), expected)


def test_an_index_out_of_range_in_a_jitted_function():
    pick = dlc.jit(lambda x, index: x[index] + 1)
    x = rows(4)
    for _ in range(2):
        np.testing.assert_array_equal(pick(x, np.array([3, 0])), x[[3, 0]] + 1)
        with pytest.raises(
            dlc.IndexError, match=r"take expects indices from 0 to 3, got 4 at \(0,"
        ):
            pick(x, np.array([4, 0]))


def test_an_index_into_the_weights_that_is_wrong_from_the_start():
    weight, index = nn.Parameter(rows(3)), np.array([1, 7])
    exe = dlc.compile(lambda x: x + op.take(weight, index, axis=0), rows())
    for _ in range(2):
        with pytest.raises(dlc.IndexError, match=r"indices from 0 to 2, got 7 at \(1,\)"):
            exe(rows())


def test_gather_and_scattered_sums_report_too():
    def function(x, index):
        gathered = op.gather(x, index, axis=1)
        return gathered, op.relu(op.scatter_add(x, index, gathered, axis=1))

    exe = dlc.compile(function, rows(), np.zeros((2, 3), "int64"), threads=2)
    good = np.array([[0, 2, 1], [1, 1, 0]])
    gathered, scattered = exe(rows(), good)
    np.testing.assert_array_equal(gathered, np.take_along_axis(rows(), good, 1))
    assert scattered.sum() == rows().sum() + gathered.sum()
    with pytest.raises(dlc.IndexError, match=r"(gather|scatter_add) .* 0 to 2, got 3 at \(1, 1\)"):
        exe(rows(), np.array([[0, 2, 1], [1, 3, 0]]))
    np.testing.assert_array_equal(exe(rows(), good)[0], gathered)


def test_errors_name_the_module_of_their_own_model():
    """Two models of one structure share a compiled plan only if it also says the same of both."""

    class Row(nn.Module):
        def forward(self, x, index):
            return op.take(x, index, axis=0)

    class Model(nn.Module):
        def __init__(self, name):
            super().__init__()
            self.add_module(name, Row())

        def forward(self, x, index):
            return next(self.children())(x, index)

    for name in ("first", "second"):
        with pytest.raises(dlc.IndexError, match=rf"\({name}\)"):
            Model(name)(rows(), np.array([9]))


# What compiling refuses.


def line_of(text):
    """The line of this file that holds ``text`` and nothing else."""
    lines = inspect.getsource(inspect.getmodule(line_of)).splitlines()
    return 1 + [line.strip() for line in lines].index(text)


def test_a_condition_on_a_tensor_names_the_users_line():
    def absolute(x):
        if x.sum() > 0:
            return x
        return -x

    place = f"test_robustness.py:{line_of('if x.sum() > 0:')} "
    with pytest.raises(TraceError, match=f"Python condition at {place}"):
        dlc.compile(absolute, rows())
    with pytest.raises(TraceError, match=place):
        dlc.jit(absolute)(rows())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"target": "gpu"}, TargetError, "a target of cpu, reference, got 'gpu'"),
        ({"target": None}, TargetError, "got None"),
        ({"opt": "O9"}, ArgumentError, "opt to be O0, O1, O2, got 'O9'"),
        ({"opt": 2}, ArgumentError, "opt to be O0, O1, O2, got 2"),
        ({"opt": "O9", "target": "reference"}, ArgumentError, "opt to be O0"),
        ({"verify": 3}, ArgumentError, "verify to be 0, 1 or 2, got 3"),
        ({"threads": 0}, ArgumentError, "threads expects an integer of at least 1, got 0"),
        ({"threads": "two"}, ArgumentError, "threads expects .*, got 'two'"),
    ],
)
def test_options_that_do_not_exist(options, error, message):
    with pytest.raises(error, match=message):
        dlc.compile(lambda x: x + 1, rows(), **options)


def test_weights_that_are_missing_or_misshapen():
    state = models.lenet5().state_dict()
    bias = state.pop("fc3.bias")
    with pytest.raises(WeightsError, match=r"nothing was loaded:\s+missing: fc3.bias \(10,\)"):
        models.lenet5(weights=state)
    with pytest.raises(WeightsError, match=r"misshapen: fc3.bias expects \(10,\), got \(9,\)"):
        models.lenet5(weights={**state, "fc3.bias": bias[:9]})


def linear(layer, x):
    return x @ layer.weight.numpy().T + layer.bias.numpy()


def test_two_modules_of_one_name_keep_their_own_weights():
    free = nn.Linear(3, 3)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x):
            return self.linear(x) - free(x)

    model = Model()
    expected = linear(model.linear, rows()) - linear(free, rows())
    np.testing.assert_allclose(model(rows()), expected, 1e-5, 1e-5)


def test_the_second_module_of_a_name_is_what_runs():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            return self.layer(x)

    model = Model()
    compiled, before = dlc.compile(model, rows()), linear(model.layer, rows())
    np.testing.assert_allclose(model(rows()), before, 1e-5, 1e-5)
    model.layer = nn.Linear(3, 5)
    np.testing.assert_allclose(model(rows()), linear(model.layer, rows()), 1e-5, 1e-5)
    np.testing.assert_allclose(compiled(rows()), before, 1e-5, 1e-5)  # compiled is compiled


@pytest.mark.parametrize("name", ["output", "header", "thread", "value0", "y0", "prepared0"])
def test_names_mean_nothing_to_kernels(name):
    """An argument, a parameter and a result of the names that dlc uses itself."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)
            self.register_parameter(name, nn.Parameter(np.arange(1.0, 4.0)))

        def forward(self, x):
            return {name: self.layer(x) * getattr(self, name), "same": x}

    scope = {}
    exec(f"def function({name}): return {{'{name}': {name} + 1}}", scope)
    np.testing.assert_array_equal(dlc.jit(scope["function"])(rows())[name], rows() + 1)
    model = Model()
    expected = linear(model.layer, rows()) * np.arange(1, 4)
    np.testing.assert_allclose(model(rows())[name], expected, 1e-5, 1e-5)


def test_results_of_one_name_are_two():
    a, b = dlc.jit(lambda x: {"a": {"b": x + 1}, "a.b": x * 2})(rows()).values()
    np.testing.assert_array_equal(a["b"], rows() + 1)
    np.testing.assert_array_equal(b, rows() * 2)


# Python values.


def test_a_number_is_part_of_what_is_compiled():
    def power(x, exponent):
        return x**exponent

    exe = dlc.compile(power, rows(), 2)
    np.testing.assert_array_equal(exe(rows(), 2), rows() ** 2)
    for other in (3, 2.0, True, None):
        with pytest.raises(ArgumentError, match=rf"argument 2 expects 2, got {other}\. Only arr"):
            exe(rows(), other)
    with pytest.raises(ArgumentError, match="argument 2 expects 2, got an array"):
        exe(rows(), rows())
    jitted = dlc.jit(power)
    for exponent in (2, 3, 2.0, 1, True, 2):
        np.testing.assert_allclose(jitted(rows(), exponent), rows() ** exponent, 1e-6)


def test_jitted_functions_call_each_other():
    double = dlc.jit(lambda x: x * 2)
    outer = dlc.jit(lambda x: double(x) + double(x + 1))
    for _ in range(2):
        np.testing.assert_array_equal(outer(rows()), rows() * 4 + 2)
        np.testing.assert_array_equal(double(rows()), rows() * 2)


def test_keywords_and_nested_arguments_of_jitted_functions():
    calls = []

    @dlc.jit
    def function(x, *, scale=1.0, more=()):
        calls.append(scale)
        return sum((part["y"] for part in more), x * scale)

    for _ in range(2):
        np.testing.assert_array_equal(function(rows()), rows())
        np.testing.assert_array_equal(function(x=rows(), scale=2.0), rows() * 2)
        more = [{"y": rows()}, {"y": rows() * 2}]
        np.testing.assert_array_equal(function(rows(), more=more), rows() * 4)
    assert calls == [1.0, 2.0, 1.0]


# Results.


@pytest.fixture(scope="module")
def results():
    """Everything that may tempt a compiler to hand out memory that is not the caller's."""
    model = nn.Linear(3, 3)
    constant = np.full((2, 3), 7, "float32")

    def function(x):
        y = model(x)
        views = op.reshape(y, shape=(3, 2)), op.reshape(x, shape=(6,)), y
        return (
            x,
            x,
            y,
            *views,
            model.weight,
            model.weight * 2,
            constant,
            op.iota(size=4, dtype="int64"),
        )

    return dlc.compile(function, dlc.TensorSpec((2, 3))), model, constant


def test_results_are_fresh_and_alias_nothing(results):
    exe, model, constant = results
    x = rows()
    first = exe(x)
    kept = [array.copy() for array in first]
    known = [x, model.weight.numpy(), constant]
    for number, array in enumerate(first):
        assert array.flags.writeable
        assert array.flags.c_contiguous
        assert not any(np.shares_memory(array, other) for other in (*known, *first[:number]))
    for array in first:
        array.fill(99)
    np.testing.assert_array_equal(x, rows())
    for got, want in zip(exe(x), kept, strict=True):
        np.testing.assert_array_equal(got, want)


def test_a_single_result_is_fresh_in_every_call(exe):
    x, y = rows(), rows()
    kept = [exe(x, y) for _ in range(4)]
    for number, array in enumerate(kept):
        array.fill(number)
    assert [array[0, 0] for array in kept] == [0, 1, 2, 3]
    np.testing.assert_array_equal(exe(x, y), rows() * 3)
