"""Operators, methods and indexing of symbolic tensors against PyTorch, and what they refuse."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dlc.ops  # noqa: F401  (fills the op table)
from dlc.backends.reference import run
from dlc.errors import DTypeError, Error, IndexError, ShapeError, TraceError
from dlc.ir.arithmetic import where
from dlc.ir.graph import Graph, graph_of
from dlc.ir.node import Builder, Node
from dlc.ir.sizes import Dim, as_size
from dlc.ir.types import tensor

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 3, 4))
Y = RNG.uniform(0.5, 2.0, size=(3, 1))
I = RNG.integers(0, 9, (3, 4))
B = RNG.integers(0, 2, (3, 4)) > 0
ROWS = np.array([1, 0, 1])


def both(function, *arrays):
    """What ``function`` gives on symbolic tensors, evaluated, and on torch's."""
    graph = graph_of(function, *(tensor(a.dtype, a.shape) for a in arrays))
    ours = run(graph, {f"x{i}": a for i, a in enumerate(arrays)})
    theirs = function(*(torch.from_numpy(a.copy()) for a in arrays))
    return ours, list(theirs) if isinstance(theirs, (tuple, list)) else [theirs]


def check(function, *arrays):
    ours, theirs = both(function, *arrays)
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        b = b.numpy()
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, 1e-6 if a.dtype == np.float32 else 1e-12)


OPERATORS = [
    (lambda x, y: x + y, X, Y),
    (lambda x, y: x - y, X, Y),
    (lambda x, y: x * y, X, Y),
    (lambda x, y: x / y, X, Y),
    (lambda x, y: x // y, X, Y),
    (lambda x, y: x % y, X, Y),
    (lambda x, y: y**x, X, Y),
    (lambda x: 2 + x - 1 * x, X),
    (lambda x: 1 - (2 / x), X),
    (lambda x: 2.0**x, X),
    (lambda x: 7 // x + 7 % x, X),
    (lambda x: -(+x), X),
    (lambda x: abs(x), X),
    (lambda x: x**2, X),
    (lambda i: i**3, I),
    (lambda i: i**0, I),
    (lambda i: i**1, I),
    (lambda i: i / 2, I),
    (lambda i: i // 2 + i % 2, I),
    (lambda i: 100 - i * 3, I),
    (lambda i: i + 0.5, I),
    (lambda x, y: (x < y) & (x <= y) | (x > y), X, Y),
    (lambda x, y: ~(x >= y) ^ (x == y), X, Y),
    (lambda x: (x > 0) & True, X),
    (lambda x, y: x != y, X, Y),
    (lambda x, y: x.transpose(1, 2) @ y, X, Y),
]

METHODS = [
    *(
        (lambda x, name=name: getattr(x, name)(), Y)
        for name in (
            "abs",
            "ceil",
            "cos",
            "erf",
            "exp",
            "expm1",
            "floor",
            "isnan",
            "log",
            "log1p",
            "logical_not",
            "neg",
            "reciprocal",
            "relu",
            "round",
            "rsqrt",
            "sigmoid",
            "sign",
            "sin",
            "sqrt",
            "square",
            "tanh",
            "trunc",
            "sum",
            "mean",
            "prod",
            "amax",
            "amin",
            "argmax",
            "argmin",
            "any",
            "all",
            "max",
            "min",
            "var",
            "std",
            "flatten",
            "squeeze",
            "contiguous",
            "float",
            "double",
            "int",
            "long",
            "bool",
        )
    ),
    *(
        (lambda x, y, name=name: getattr(x, name)(y), X, Y)
        for name in (
            "add",
            "sub",
            "mul",
            "div",
            "maximum",
            "minimum",
            "floor_divide",
            "remainder",
            "eq",
            "ne",
            "lt",
            "le",
            "gt",
            "ge",
            "logical_and",
            "logical_or",
            "type_as",
        )
    ),
    (lambda y: y.pow(2.5), Y),
    (lambda x: x.clamp(-0.5, 0.5), X),
    (lambda x: x.clamp(max=0.5), X),
    (lambda x, y: x.where(x > 0, y), X, Y),
    (lambda x: x.masked_fill(x > 0, 7.0), X),
    (lambda i: i.masked_fill(i > 4, 1), I),
    (lambda x: x.sum(1), X),
    (lambda x: x.sum((0, -1), keepdim=True), X),
    (lambda x: x.mean(dim=(1, 2)), X),
    (lambda x: x.prod(1, keepdim=True), X),
    (lambda x: x.amax((0, 1)), X),
    (lambda x: (x > 0).any(1), X),
    (lambda i: i.all(1), I),
    (lambda i: i.sum(), I.astype(np.uint8)),
    (lambda x: x.argmax(2, keepdim=True), X),
    (lambda x: x.max(1), X),
    (lambda x: x.min(-1, keepdim=True), X),
    (lambda i: i.max(1).values, I),
    (lambda x: x.var((0, 2), correction=0), X),
    (lambda x: x.std(1), X),
    (lambda x: x.logsumexp(1), X),
    (lambda x: x.softmax(-1), X),
    (lambda x: x.log_softmax(dim=1), X),
    (lambda x: x.reshape(6, -1), X),
    (lambda x: x.view((3, 8)), X),
    (lambda x: x.flatten(1), X),
    (lambda x: x.flatten(0, 1), X),
    (lambda x: x.sum().flatten(), X),
    (lambda y: y.squeeze(-1), Y),
    (lambda y: y.squeeze(0), Y),
    (lambda y: y.unsqueeze(0).unsqueeze(-1).squeeze((0, 1, 3)), Y),
    (lambda x: x.permute(2, 0, 1), X),
    (lambda x: x.permute((1, 0, -1)), X),
    (lambda x: x.transpose(0, -1), X),
    (lambda y: y.T, Y),
    (lambda x: x.mT, X),
    (lambda y: y.expand(2, -1, 4), Y),
    (lambda x, y: y.expand_as(x), X, Y),
    (lambda x: x.flip(0, 2), X),
    (lambda x: x.flip((1,)), X),
    (lambda x: x.to(torch.float32) if isinstance(x, torch.Tensor) else x.to("float32"), X),
    (lambda x, i: x.gather(1, i), X, np.array([[[0, 1, 2, 0]], [[2, 2, 1, 1]]])),
    (lambda x, i: x.index_select(0, i), X, ROWS),
    (lambda i, k: i.scatter_add(0, k, i), I, np.array([[0, 1, 2, 0], [2, 2, 1, 1], [0, 0, 0, 0]])),
    (lambda x: x.narrow(1, 1, 2), X),
    (lambda x: x.select(1, -1), X),
    (lambda x: x.unbind(1), X),
    (lambda x: x.split(2, dim=1), X),
    (lambda x: x.split([1, 3], dim=2), X),
    (lambda x: x.chunk(2, dim=2), X),
    (lambda x: x.chunk(5, dim=1), X),
    (lambda x, y: x.mT.matmul(y), X, Y),
    (lambda x: x.mm(x.T), X[0]),
    (lambda x: x.bmm(x.mT), X),
    (lambda x: [row.sum() for row in x], X),
]


@pytest.mark.parametrize("case", OPERATORS + METHODS)
def test_methods_are_pytorchs(case):
    check(*case)


def test_shapes_are_pytorchs():
    x = graph_of(lambda x: x, tensor("float64", (2, 3, 4))).outputs[0]
    assert (x.size(), x.size(-1), x.dim(), x.numel(), len(x)) == ((2, 3, 4), 4, 3, 24, 2)
    assert x.is_floating_point()
    assert not x.long().is_floating_point()
    assert x.contiguous() is x
    assert x.to("float64") is x


# Choice.


@pytest.mark.parametrize(
    ("a", "b", "dtype"),
    [
        (X, 1, "float64"),
        (X.astype(np.float32), 0.5, "float32"),
        (0, X, "float64"),
        (I, 0.5, "float32"),
        (I, X[0, :, :], "float64"),
        (1.5, 2, "float32"),
        (1, 2, "int64"),
    ],
)
def test_where_takes_the_common_type(a, b, dtype):
    arrays = [v for v in (B, a, b) if isinstance(v, np.ndarray)]

    def ours(condition, *rest):
        values = iter(rest)
        return where(condition, *(next(values) if isinstance(v, np.ndarray) else v for v in (a, b)))

    graph = graph_of(ours, *(tensor(v.dtype, v.shape) for v in arrays))
    (result,) = run(graph, {f"x{i}": v for i, v in enumerate(arrays)})
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, np.where(B, a, b))


# Indexing.

KEYS = [
    0,
    -1,
    slice(None),
    slice(1, None),
    slice(None, -1),
    slice(-2, None),
    slice(0, 99),
    slice(2, 1),
    slice(None, None, 2),
    None,
    ...,
    (0, 1, 2),
    (slice(None), 1),
    (..., 1),
    (0, ..., slice(1, 3)),
    (None, 0, slice(None), None),
    (slice(None), slice(1, 3), slice(0, 4, 3)),
    (1, None, ..., None),
    [1, 0, 1],
    ROWS,
    (slice(None), np.array([[2, 0], [-1, 1]])),
    (0, [2, 1]),
    (..., [3, -4], None),
    (slice(0, 1), [0, 2], slice(1, 3)),
    np.array(1),
    np.zeros((0,), np.int64),
]


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_indexing_is_pytorchs(key):
    def function(x):
        items = key if isinstance(key, tuple) else (key,)
        if isinstance(x, torch.Tensor):
            items = tuple(torch.from_numpy(i) if isinstance(i, np.ndarray) else i for i in items)
        return x[items]

    check(function, X)


def test_a_tensor_indexes_from_the_end_too():
    check(lambda x, i: x[i], X, np.array([-1, 0, -2]))
    check(lambda x, i: x[:, i, 1:], X, np.array([[2], [-3]]))
    check(lambda x, i: x[i[0]], X, np.array([-1, 0]))


def test_indexing_symbolic_sizes():
    n = Dim("n", 2, 64)
    x = Builder().input("x", tensor("float32", (n, 6)))
    assert x[1:].shape == (n - 1, 6)
    assert x[-2:].shape == (2, 6)
    assert x[:-1].shape == (n - 1, 6)
    assert x[:n].shape == x.shape
    assert x[::2].shape == ((n + 1) // 2, 6)
    assert x[-1].shape == (6,)
    assert x[n - 1].shape == (6,)
    assert x[:, 1:3].shape == (n, 2)
    assert x[n // 2 :].shape == (n - n // 2, 6)
    array = np.arange(30, dtype=np.float32).reshape(5, 6)
    for part, expected in ((x[-1], array[4]), (x[n // 2 :], array[2:]), (x[::2], array[::2])):
        np.testing.assert_array_equal(run(Graph((part,), (x,)), {"x": array})[0], expected)


@pytest.mark.parametrize(
    ("key", "error", "match"),
    [
        (2, IndexError, "index 2 is outside dimension 0"),
        ((0, -4), IndexError, "index -4 is outside dimension 1"),
        ((0, 0, 0, 0), IndexError, "4 indices for 3 dimensions"),
        ((..., ...), IndexError, "one Ellipsis"),
        (1.5, TraceError, "got 1.5"),
        ("a", TraceError, "got 'a'"),
        (True, TraceError, "got True"),
        (([0], [0]), TraceError, "one tensor may index"),
        (np.array([True, False]), TraceError, "depends on values"),
        ([0, 2], IndexError, "index 2 is outside dimension 0"),
        ((..., np.array([[-5]])), IndexError, "index -5 is outside dimension 2"),
        (np.array([0.5]), TraceError, "element type int32 or int64, got float64"),
        (slice(None, None, -1), ShapeError, "reverse with x.flip"),
        (slice(0.5, None), ShapeError, "a size is an integer"),
    ],
)
def test_indices_that_are_refused(key, error, match):
    x = Builder().input("x", tensor("float32", (2, 3, 4)))
    with pytest.raises(error, match=match):
        x[key]


def test_an_undecided_index_says_so():
    x = Builder().input("x", tensor("float32", (Dim("n", 0, 9),)))
    with pytest.raises(ShapeError, match="slice cannot decide whether n"):
        x[3:]


bound = st.one_of(st.none(), st.integers(-9, 9))
slices = st.builds(slice, bound, bound, st.one_of(st.none(), st.integers(1, 4)))


@given(st.lists(slices, min_size=1, max_size=3))
def test_slices_are_numpys(parts):
    graph = graph_of(lambda x: x[tuple(parts)], tensor("float64", X.shape))
    np.testing.assert_array_equal(run(graph, {"x0": X})[0], X[tuple(parts)])


@given(slices, st.integers(3, 9))
def test_slices_of_a_symbolic_size_are_numpys_or_undecided(part, size):
    x = Builder().input("x", tensor("int64", (Dim("n", 3, 9),)))
    try:
        y = x[part]
    except ShapeError as error:
        assert "cannot decide" in str(error)  # noqa: PT017  (most slices are decided)
        return
    array = np.arange(size)
    np.testing.assert_array_equal(run(Graph((y,), (x,)), {"x": array})[0], array[part])


# What methods refuse.


@pytest.mark.parametrize(
    ("use", "error", "match"),
    [
        (lambda x: x & 1, DTypeError, "& expects bool tensors, got float32"),
        (lambda x: (x > 0) | 1, DTypeError, "got int"),
        (lambda x: ~x, DTypeError, "~ expects bool tensors"),
        (lambda x: x.to(None), DTypeError, "element types are .*; got 'None'"),
        (lambda x: x.to(x), DTypeError, "element types are bool, uint8"),
        (lambda x: x.long() ** -1, DTypeError, "pow expects an exponent >= 0 for int64"),
        (lambda x: x.long() ** x.long(), DTypeError, "pow expects a tensor of floats"),
        (lambda x: x.sum(3), ShapeError, "sum expects an axis from -2 to 1, got 3"),
        (lambda x: x.transpose(0, 2), ShapeError, "from -2 to 1, got 2"),
        (lambda x: x.flatten(1, 0), ShapeError, "start_dim <= end_dim"),
        (lambda x: x.split(0), ShapeError, "at least one element a part"),
        (lambda x: x.split([1, 2]), ShapeError, "add up to 2"),
        (lambda x: x.chunk(0), ShapeError, "at least one chunk"),
        (lambda x: x.item(), TraceError, "return it from the function"),
        (lambda x: x.numpy(), TraceError, "return it from the function"),
        (lambda x: x.tolist(), TraceError, "return it from the function"),
        (lambda x: len(x.sum()), TraceError, "of a scalar"),
        (lambda x: list(x.sum()), TraceError, "of a scalar"),
        (lambda x: 1.0 in x, TraceError, "while the model is traced"),
        (lambda x: x.view(4, 4), ShapeError, "reshape expects a shape of 6 elements"),
        (lambda x: x.to("float16"), DTypeError, "element types are"),
    ],
)
def test_methods_that_refuse_say_why(use, error, match):
    x = Builder().input("x", tensor("float32", (2, 3)))
    with pytest.raises(error, match=match):
        use(x)


def test_loops_over_a_symbolic_size_are_refused():
    x = Builder().input("x", tensor("float32", (Dim("batch", 1, 8), 3)))
    for use in (len, list, lambda x: x.split(2), lambda x: x.chunk(2)):
        with pytest.raises(TraceError, match="is batch; use tensor operations"):
            use(x)
    assert [row.shape for row in x.unbind(1)] == [(as_size(Dim("batch", 1, 8)),)] * 3


# Sizes as values.


def test_sizes_compute_with_tensors():
    n = Dim("n", 1, 8)

    def mean(x):
        return x.sum(0) / x.shape[0], x * x.shape[0], x.shape[0] * x, x + n, n - x

    graph = graph_of(mean, tensor("float32", (n, 2)))
    assert all(isinstance(y, Node) for y in graph.outputs)
    array = np.arange(6, dtype=np.float32).reshape(3, 2)
    outputs = run(graph, {"x0": array})
    expected = array.sum(0) / 3, array * 3, array * 3, array + 3, 3 - array
    for a, b in zip(outputs, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_every_error_is_one_of_dlcs():
    assert all(issubclass(error, Error) for error in (IndexError, TraceError, ShapeError))
