"""The reference backend: binding sizes, evaluating, and refusing what does not fit."""

import dataclasses
import tracemalloc

import numpy as np
import pytest

import dlc.ops  # noqa: F401  (fills the op table)
from dlc.backends.reference import bind, evaluate_attrs, run
from dlc.errors import ArgumentError, DTypeError, IndexError, ShapeError, VerifyError
from dlc.ir.graph import Graph, graph_of
from dlc.ir.node import Builder
from dlc.ir.op import OPS
from dlc.ir.sizes import Dim, as_size
from dlc.ir.types import tensor

N, M = Dim("n", 1, 8), Dim("m", 2, 9)


def identity(*shapes, dtype="float32"):
    return graph_of(lambda *xs: xs, *(tensor(dtype, shape) for shape in shapes))


def zeros(*shapes, dtype="float32"):
    return {f"x{i}": np.zeros(shape, dtype) for i, shape in enumerate(shapes)}


# Sizes.


@pytest.mark.parametrize(
    ("declared", "given", "sizes"),
    [
        ([(N, 3)], [(5, 3)], {"n": 5}),
        ([(N, M), (M, N)], [(5, 3), (3, 5)], {"n": 5, "m": 3}),
        ([(N * 2 + 1, 3)], [(7, 3)], {"n": 3}),
        ([(M - N + 8,), (N,)], [(12,), (2,)], {"n": 2, "m": 6}),
        ([(N // 2,), (N,)], [(2,), (5,)], {"n": 5}),
        ([(as_size(N) * M,), (M,)], [(12,), (4,)], {"n": 3, "m": 4}),
        ([(2, 3)], [(2, 3)], {}),
    ],
)
def test_sizes_are_found_from_shapes(declared, given, sizes):
    assert bind(identity(*declared), zeros(*given)) == sizes


@pytest.mark.parametrize(
    ("declared", "given", "message"),
    [
        (
            [(N, 3)],
            [(5, 4)],
            r"expects \(n, 3\) for input 'x0', got \(5, 4\): dimension 1 is 3, not 4",
        ),
        ([(N,)], [(9,)], r"dimension 0 is n with n in 1\.\.8, not 9"),
        ([(N,)], [(0,)], r"with n in 1\.\.8, not 0"),
        ([(N,), (N,)], [(3,), (4,)], r"input 'x1'.* is n with n = 3, not 4"),
        ([(N * 2,)], [(3,)], r"is 2\*n with n in 1\.\.8, not 3"),
        ([(N, 3)], [(3,)], "expects 2 dimensions for input 'x0'.*got 1"),
        ([(N // 2,)], [(2,)], "which no shape decides"),
        ([(as_size(N) * N,)], [(4,)], "which no shape decides"),
        ([(N,), (Dim("n", 2, 4),)], [(3,), (3,)], "n has another range elsewhere; use one Dim"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(declared, given, message):
    with pytest.raises(ShapeError, match=message):
        bind(identity(*declared), zeros(*given))


def test_sizes_may_be_given():
    graph = identity((N // 2,))
    (y,) = run(graph, zeros((2,)), dims={"n": 5})
    assert y.shape == (2,)


def test_attributes_are_evaluated():
    attrs = {"shape": (as_size(N), 3), "value": 0.5, "axes": (0,), "dtype": "float32", "none": None}
    assert evaluate_attrs(attrs, {"n": 4}) == {**attrs, "shape": (4, 3)}
    assert evaluate_attrs(attrs, {"n": 4}, wide=True)["dtype"] == "float64"


# Values.


def test_parameters_are_read_by_name():
    builder = Builder()
    x, w = builder.input("x", tensor("float32", (N,))), builder.parameter("w", tensor("float32"))
    graph = Graph((x * w, x), (x,))
    arrays = {"x": np.ones(2, np.float32), "w": np.float32(3), "unused": np.zeros(1)}
    product, same = run(graph, arrays)
    np.testing.assert_array_equal(product, [3, 3])
    same[0] = 7
    assert arrays["x"][0] == 1  # outputs share no memory with arguments


def test_an_unused_input_still_binds():
    builder = Builder()
    x, unused = (builder.input(name, tensor("float32", (N,))) for name in ("x", "unused"))
    graph = Graph((x.exp(),), (x, unused))
    with pytest.raises(ShapeError, match="input 'unused'"):
        run(graph, {"x": np.ones(2, np.float32), "unused": np.ones(3, np.float32)})


def test_float64_shows_the_rounding_of_float32():
    graph = graph_of(lambda x: (x + 1.0) - 1.0, tensor("float32"))
    tiny = {"x0": np.float32(1e-9)}
    assert run(graph, tiny)[0] == 0
    wide = run(graph, tiny, dtype="float64")[0]
    assert wide.dtype == np.float64
    np.testing.assert_allclose(wide, 1e-9, 1e-6)


def test_float64_widens_casts_and_constants_but_not_integers():
    def function(x):
        return x.long().float() / 3.0, x.long(), x > 0, x.double()

    graph = graph_of(function, tensor("float32", (2,)))
    outputs = run(graph, {"x0": np.array([1.5, -2.5])}, dtype="float64")
    assert [y.dtype.name for y in outputs] == ["float64", "int64", "bool", "float64"]
    np.testing.assert_array_equal(outputs[0], np.array([1, -2]) / 3)


def test_no_warning_of_numpy_escapes(recwarn):
    graph = graph_of(lambda x: (x.log(), x / x, x.exp()), tensor("float32", (3,)))
    run(graph, {"x0": np.array([-1, 0, 1e9], np.float32)})
    assert not recwarn


def test_values_are_dropped_after_their_last_use():
    x = Builder().input("x", tensor("float64", (1_000_000,)))
    y = x
    for _ in range(40):
        y = y.sin()
    tracemalloc.start()
    run(Graph((y,), (x,)), {"x": np.ones(1_000_000)})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6  # of 320e6 bytes


# Errors.


def test_what_is_missing_or_of_another_type_is_refused():
    graph = identity((2,))
    with pytest.raises(ArgumentError, match=r"expects an array for input 'x0'.*got y"):
        run(graph, {"y": np.zeros(2)})
    with pytest.raises(DTypeError, match="expects float32 for input 'x0', got int64"):
        run(graph, {"x0": np.zeros(2, np.int64)})
    with pytest.raises(DTypeError, match="got float64"):
        run(graph, {"x0": np.zeros(2)})
    with pytest.raises(ArgumentError, match="dtype None or 'float64', got 'float16'"):
        run(graph, zeros((2,)), dtype="float16")


def test_an_index_out_of_range_says_which_and_where():
    def function(x, i):
        return x.index_select(0, i)

    graph = graph_of(function, tensor("float32", (N, 2)), tensor("int64", (2, 2)))
    index = np.array([[0, 1], [3, 0]])
    with pytest.raises(IndexError, match=r"indices from 0 to 2, got 3 at \(1, 0\), in take"):
        run(graph, {"x0": np.zeros((3, 2), np.float32), "x1": index})


@pytest.mark.parametrize("op", ["take", "gather", "scatter_add"])
@pytest.mark.parametrize("wrong", [-1, 4])
def test_every_op_with_an_index_checks_it(op, wrong):
    arrays = [np.zeros(4), np.array([0, wrong]), np.zeros(2)][: 3 if op == "scatter_add" else 2]
    with pytest.raises(IndexError, match=f"{op} expects indices from 0 to 3, got {wrong} at"):
        OPS[op].ref(*arrays, axis=0)


def test_a_reference_that_breaks_its_type_rule_is_caught():
    graph = graph_of(lambda x: x.exp(), tensor("float32", (2,)))
    wrong = dataclasses.replace(OPS["exp"], ref=lambda x: np.exp(x.astype(np.float64)))
    node = graph.inputs[0].builder.node(wrong, (graph.inputs[0].neg(),))
    with pytest.raises(
        VerifyError, match=r"the type rule of exp gives float32.*its reference float64"
    ):
        run(Graph((node,), graph.inputs), zeros((2,)))
