"""The op table: every record against its own reference, gradient, lowering data and PyTorch twin.

A new op is covered by being in the table; nothing here names one, but for what is special.
"""

import dataclasses
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.op_testing import (
    at,
    check_gradient,
    differentiable,
    evaluate_pointwise,
    evaluate_text,
    gradient_graph,
    named,
    node_of,
    op_graph,
    operands,
    types_of,
)
from hypothesis import given
from hypothesis import strategies as st

from dlc.backends.reference import evaluate_attrs, run
from dlc.errors import ArgumentError, Error, TraceError
from dlc.ir.graph import Graph
from dlc.ir.node import Builder
from dlc.ir.op import OPS, Kind, OpDef
from dlc.ir.sizes import Dim, as_size, evaluate
from dlc.ir.types import TupleType, tensor
from dlc.ops.coverage import page

ALL = list(OPS)
WITH_SAMPLES = [op for op in ALL if op.samples]


def each(ops):
    return pytest.mark.parametrize("op", ops, ids=lambda op: op.name)


def samples(op):
    return list(op.samples(np.random.default_rng(7)))


def evaluated(op, sample, dtype="float64"):
    """The graph of a sample in an element type, its arrays, and what the reference gives."""
    sample = at(sample, dtype)
    graph = op_graph(op, types_of(sample), sample.attrs)
    arrays = named(sample.arrays)
    return graph, arrays, run(graph, arrays)


def assert_near(actual, expected, op, rtol=None, atol=None):
    """Equal to a few roundings; exactly equal for an op that rounds nothing."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    if op.kind is Kind.POINTWISE and count_of_inputs(op) == 1 and actual.dtype.kind == "f":
        known = ~np.isnan(expected)
        np.testing.assert_array_equal(np.signbit(actual)[known], np.signbit(expected)[known])
    if op.ulp == 0 or actual.dtype.kind != "f":
        np.testing.assert_array_equal(actual, expected)
        return
    single = actual.dtype == np.float32  # the defaults of torch.testing.assert_close
    rtol = (1.3e-6 if single else 1e-7) if rtol is None else rtol
    atol = (1e-5 if single else 1e-7) if atol is None else atol
    np.testing.assert_allclose(actual, expected, rtol, atol)


def count_of_inputs(op):
    return len(samples(op)[0].arrays)


# What a record must have.


@each(ALL)
def test_a_record_is_complete(op: OpDef):
    assert re.fullmatch(r"[a-z][a-z0-9_]*", op.name)
    assert op.doc
    assert not op.doc.endswith(".")
    assert bool(op.grad) + bool(op.no_grad) == 1 or (op.expand and not op.no_grad)
    assert op.samples or op.kind is Kind.LEAF
    assert (op.scalar is not None) == (op.kind is Kind.POINTWISE)
    assert (op.move is not None) == (op.kind is Kind.MOVE)
    assert (op.expand is not None) == (op.kind is Kind.COMPOSITE)
    assert op.reduction is not None or op.kind is not Kind.REDUCE


@each([op for op in WITH_SAMPLES if op.torch])
def test_samples_are_varied(op: OpDef):
    assert len(samples(op)) >= 1
    if op.kind in (Kind.POINTWISE, Kind.REDUCE, Kind.MOVE):
        shapes = [array.shape for sample in samples(op) for array in sample.arrays]
        assert any(0 in shape for shape in shapes), "no sample without elements"
        assert any(len(shape) == 2 for shape in shapes)


def test_the_table_is_frozen():
    with pytest.raises(Error, match="frozen"):
        OPS.add(dataclasses.replace(OPS["add"], name="another"))


def test_an_unknown_op_is_named():
    with pytest.raises(Error, match="there is no op 'convolve'"):
        Builder().node("convolve")


# Type rule and reference; `run` raises where they differ.


@each(WITH_SAMPLES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_type_rule_is_the_type_of_the_reference(op: OpDef, dtype):
    for sample in samples(op):
        graph, arrays, outputs = evaluated(op, sample, dtype)
        for array, before in zip(arrays.values(), at(sample, dtype).arrays, strict=True):
            np.testing.assert_array_equal(array, before)
        assert len(outputs) == len(graph.outputs)


@each(WITH_SAMPLES)
def test_widened_to_float64_a_graph_is_the_float64_graph(op: OpDef):
    for sample in samples(op):
        floats = any(array.dtype.kind == "f" for array in sample.arrays)
        if sample.attrs.get("dtype") == "float32" or not floats:
            continue
        graph, arrays, _ = evaluated(op, sample, "float32")
        wide = run(graph, arrays, dtype="float64")
        again = dataclasses.replace(sample, arrays=tuple(arrays.values()))
        _, _, expected = evaluated(op, again, "float64")
        for a, b in zip(wide, expected, strict=True):
            np.testing.assert_array_equal(a, b)


@each(WITH_SAMPLES)
def test_canonical_attributes_are_canonical(op: OpDef):
    for sample in samples(op):
        node = node_of(op_graph(op, types_of(sample), sample.attrs))
        again = node.builder.node(op, node.inputs, node.attrs)
        assert again is node


@each(WITH_SAMPLES)
def test_symbolic_sizes_evaluate_to_the_sizes_of_the_reference(op: OpDef):
    """Each size of a sample in turn becomes a Dim; where the rule decides, it must decide right."""
    decided = 0
    for sample in samples(op):
        sizes = {n for array in sample.arrays for n in array.shape if n > 1}
        for size in sorted(sizes):
            dim = Dim("n", size, size + 40)
            types = [
                tensor(t.dtype, [dim if n == size else n for n in t.shape])
                for t in types_of(sample)
            ]
            attrs = {k: _with_dim(v, size, dim) for k, v in sample.attrs.items()}
            try:
                graph = op_graph(op, types, attrs)
            except Error:
                continue  # not decided, or the attributes belong to this size alone
            decided += 1
            _, arrays, expected = evaluated(op, sample)
            for a, b in zip(run(graph, arrays), expected, strict=True):
                np.testing.assert_array_equal(a, b)
    assert decided or not any(sample.arrays for sample in samples(op))


def _with_dim(value, size, dim):
    """Sizes in an attribute that is a shape."""
    if isinstance(value, tuple) and size in value and all(isinstance(v, int) for v in value):
        return tuple(as_size(dim) if v == size else v for v in value) if len(value) > 1 else value
    return value


# Errors.


@each(ALL)
def test_another_number_of_inputs_is_refused(op: OpDef):
    least, most = op.arity if isinstance(op.arity, tuple) else (op.arity, op.arity)
    counts = [len(sample.arrays) for sample in samples(op)] if op.samples else []
    assert all(least <= count <= most for count in counts)
    for count in {least - 1, most + 1} - {-1, math.inf}:
        with pytest.raises(ArgumentError, match=rf"^{op.name} expects .* inputs?, got {count}\b"):
            op_graph(op, [tensor("float32", (2, 2))] * count, {})


@each(WITH_SAMPLES)
def test_an_unknown_attribute_is_refused(op: OpDef):
    sample = samples(op)[0]
    with pytest.raises(ArgumentError, match=rf"(?s)^{op.name} .*colour"):
        op_graph(op, types_of(sample), {**sample.attrs, "colour": 3})


@each([op for op in ALL if op.arity and op.name != "project"])
def test_several_outputs_at_once_are_no_operand(op: OpDef):
    least = op.arity[0] if isinstance(op.arity, tuple) else op.arity
    builder = Builder()
    x, c = (
        builder.input("x", tensor("float32", (2, 3))),
        builder.input("c", tensor("float32", (3,))),
    )
    several = builder.node("batch_norm_train", (x, c, c))
    for place in range(least):
        inputs = [several if i == place else x for i in range(least)]
        with pytest.raises(TraceError, match=r"batch_norm_train.* has 3 outputs; take one with"):
            builder.node(op, tuple(inputs), samples(op)[0].attrs)


# Ops of one tensor that take any.
TAKES_ALL = {"isnan", "logical_not", "detach", "again"} | {
    op.name for op in ALL if op.promotes == "float"
} - {"div"}


@each([op for op in ALL if op.name not in TAKES_ALL])
def test_errors_say_op_and_what_came(op: OpDef):
    cases = list(op.errors())
    assert cases
    for case in cases:
        with pytest.raises(case.error) as caught:
            op_graph(op, case.types, case.attrs)
        message = str(caught.value)
        assert message.startswith(f"{op.name} ")
        assert case.match in message
        for i in range(len(case.types)):
            assert f"'x{i}'" in message


# Gradients.

DIFFERENTIABLE = [op for op in WITH_SAMPLES if not op.no_grad]


def gradient_samples(op):
    for sample in samples(op):
        wrt = differentiable(sample)
        if wrt and all(np.isfinite(sample.arrays[i]).all() for i in wrt):
            yield sample, wrt


@each(DIFFERENTIABLE)
def test_first_and_second_gradients_are_central_differences(op: OpDef):
    rng = np.random.default_rng(3)
    count = 0
    for sample, wrt in gradient_samples(op):
        graph, arrays, _ = evaluated(op, sample)
        made, more = check_gradient(graph, arrays, wrt, rng)
        cotangents = range(len(graph.inputs), len(made.inputs))
        check_gradient(made, more, [*wrt, *cotangents], rng)
        count += 1
    assert count


@each([op for op in DIFFERENTIABLE if op.expand])
def test_the_rule_of_a_composite_is_the_gradient_of_its_expansion(op: OpDef):
    rng = np.random.default_rng(4)
    for sample, wrt in gradient_samples(op):
        graph, arrays, _ = evaluated(op, sample)
        node = node_of(graph)
        made = op.expand(*node.inputs, **node.attrs)
        outputs = made if isinstance(made, tuple) else (made,)
        of_rule = gradient_graph(graph, wrt)
        of_expansion = gradient_graph(dataclasses.replace(graph, outputs=outputs), wrt)
        cotangents = of_rule.inputs[len(graph.inputs) :]
        arrays |= {node.name: rng.normal(size=node.shape) for node in cotangents}
        for a, b in zip(run(of_rule, arrays), run(of_expansion, arrays), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)


# PyTorch.


def tensors(arrays, wrt=()):
    made = [torch.from_numpy(np.array(array)) for array in arrays]
    return [t.requires_grad_() if i in wrt else t for i, t in enumerate(made)]


@each([op for op in WITH_SAMPLES if op.torch])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.filterwarnings("ignore:var.*degrees of freedom")  # NaN is what the sample is about
def test_the_pytorch_twin_agrees_forward_and_backward(op: OpDef, dtype):
    for sample in samples(op):
        graph, arrays, outputs = evaluated(op, sample, dtype)
        wrt = [] if op.no_grad else differentiable(sample)
        inputs = tensors(arrays.values(), wrt)
        result = op.torch(torch, *inputs, **evaluate_attrs(node_of(graph).attrs, {}))
        results = result if isinstance(result, tuple) else (result,)
        for y, twin in zip(outputs, results, strict=True):
            assert_near(y, twin.detach().numpy(), op)
        if wrt:
            compare_gradients(op, graph, arrays, wrt, inputs, results)


def compare_gradients(op, graph, arrays, wrt, inputs, results):
    made = gradient_graph(graph, wrt)
    rng = np.random.default_rng(5)
    cotangents = {
        node.name: np.asarray(rng.normal(size=node.shape), node.dtype)
        for node in made.inputs[len(graph.inputs) :]
    }
    ours = run(made, {**arrays, **cotangents})
    theirs = torch.autograd.grad(
        results,
        [inputs[i] for i in wrt],
        tensors(cotangents.values()),
        allow_unused=True,
    )
    for a, b in zip(ours, theirs, strict=True):
        expected = np.zeros_like(a) if b is None else b.numpy()
        single = a.dtype == np.float32
        assert a.dtype == expected.dtype
        np.testing.assert_allclose(
            a, expected, *((1e-5, 1e-5) if single else (1e-7, 1e-7)), err_msg=op.name
        )


# The data that backends lower.


@each([op for op in WITH_SAMPLES if op.kind is Kind.POINTWISE])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_scalar_expression_is_the_reference(op: OpDef, dtype):
    for sample in samples(op):
        graph, arrays, (expected,) = evaluated(op, sample, dtype)
        with np.errstate(all="ignore"):
            actual = evaluate_pointwise(node_of(graph), operands(graph, arrays))
        assert_near(actual, expected, op)


@each([op for op in WITH_SAMPLES if op.kind is Kind.MOVE])
def test_the_index_of_a_movement_is_the_reference(op: OpDef):
    for sample in samples(op):
        graph, arrays, (expected,) = evaluated(op, sample)
        node = node_of(graph)
        loop = [Dim(f"i{k}", 0, max(n - 1, 0)) for k, n in enumerate(node.shape)]
        types = [x.tensor_type for x in node.inputs]
        accesses = op.move.index(tuple(map(as_size, loop)), types, **node.attrs)
        actual = np.empty(expected.shape, expected.dtype)
        for place in np.ndindex(expected.shape):
            values = {dim.name: at for dim, at in zip(loop, place, strict=True)}
            actual[place] = moved_element(accesses, values, operands(graph, arrays), fill(node))
        np.testing.assert_array_equal(actual, expected)


def fill(node):
    return node.attrs[node.op.move.fill] if node.op.move.fill else 0


def moved_element(accesses, values, arrays, fill):
    for access in accesses:
        guards = [[evaluate(size, values) for size in guard] for guard in access.guards]
        if all(low <= value < high for low, value, high in guards):
            place = tuple(evaluate(size, values) for size in access.index)
            assert all(0 <= k < n for k, n in zip(place, arrays[access.operand].shape, strict=True))
            return arrays[access.operand][place]
    return fill


@each([op for op in WITH_SAMPLES if op.kind is Kind.REDUCE])
def test_the_combination_of_a_reduction_is_the_reference(op: OpDef):
    for sample in samples(op):
        graph, arrays, (expected,) = evaluated(op, sample)
        node = node_of(graph)
        (x,) = operands(graph, arrays)
        axes = node.attrs.get("axes", node.attrs.get("axis"))
        axes = range(x.ndim) if axes is None else [axes] if isinstance(axes, int) else axes
        kept = [k for k in range(x.ndim) if k not in axes]
        rows = x.transpose(*kept, *axes).reshape(expected.size, -1 if x.size else 0)
        if not x.size and expected.size:
            rows = np.empty((expected.size, 0), x.dtype)
        with np.errstate(all="ignore"):
            actual = [combined(op.reduction, row, node.dtype) for row in rows]
        assert_near(np.array(actual, node.dtype).reshape(expected.shape), expected, op)


def combined(reduction, row, dtype):
    """A row combined from the left, as a backend might."""
    if reduction.position:
        best = 0
        for k in range(1, len(row)):
            if evaluate_text(reduction.combine.format(a="a", b="b"), a=row[best], b=row[k]):
                best = k
        return best
    kind = np.dtype(dtype)
    init = reduction.init
    if kind.kind in "iu":
        limits = np.iinfo(kind)
        init = min(max(init, limits.min), limits.max)
    if reduction.centred and len(row):
        row = np.square(row - row.mean())
    total = kind.type(init)
    for value in row.astype(kind):
        total = kind.type(evaluate_text(reduction.combine.format(a="a", b="b"), a=total, b=value))
    return evaluate_text(
        reduction.finish.format(acc="acc", n="n"), acc=total, n=kind.type(len(row))
    )


@each([op for op in WITH_SAMPLES if op.kind is Kind.COMPOSITE])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_expansion_of_a_composite_is_the_reference(op: OpDef, dtype):
    for sample in samples(op):
        graph, arrays, expected = evaluated(op, sample, dtype)
        node = node_of(graph)
        made = op.expand(*node.inputs, **node.attrs)
        outputs = made if isinstance(made, tuple) else (made,)
        elements = node.type.elements if isinstance(node.type, TupleType) else (node.type,)
        assert tuple(y.type for y in outputs) == elements
        for a, b in zip(run(Graph(outputs, graph.inputs), arrays), expected, strict=True):
            np.testing.assert_allclose(
                a, b, *((1e-5, 1e-5) if dtype == "float32" else (1e-10, 1e-10))
            )


@given(shapes=st.lists(st.sampled_from([1, 2, 3, 4, 6]), max_size=4), rng=st.randoms())
def test_the_index_of_any_reshape_is_numpys(shapes, rng):
    factors = [f for n in shapes for f in (rng.sample([1, n], 2) if n != 6 else [2, 3])]
    cuts = sorted(rng.choices(range(len(factors) + 1), k=3))
    parts = zip([0, *cuts], [*cuts, len(factors)], strict=True)
    target = tuple(math.prod(factors[a:b]) for a, b in parts)
    array = np.arange(math.prod(shapes)).reshape(shapes)
    loop = [Dim(f"i{k}", 0, n - 1) for k, n in enumerate(target)]
    types = [tensor("int64", shapes)]
    (access,) = OPS["reshape"].move.index(tuple(map(as_size, loop)), types, shape=target)
    expected = array.reshape(target)
    for place in np.ndindex(target):
        values = {dim.name: at for dim, at in zip(loop, place, strict=True)}
        assert array[tuple(evaluate(size, values) for size in access.index)] == expected[place]


# The checks themselves: each must catch what it is for.


def wrong(name, **fields):
    return dataclasses.replace(OPS[name], **fields)


@pytest.mark.parametrize(
    "op",
    [
        wrong("sin", grad=lambda g, y, x: (g * x.cos() * 1.0001,)),
        wrong("exp", grad=lambda g, y, x: (g * y + 1e-4,)),
        wrong("tanh", no_grad="none", grad=None),
        wrong("mul", grad=lambda g, y, a, b: (g * a, g * b)),
    ],
)
def test_a_wrong_gradient_is_caught(op):
    sample, wrt = next(gradient_samples(op))
    graph, arrays, _ = evaluated(op, sample)
    with pytest.raises(AssertionError, match="the rules give"):
        check_gradient(graph, arrays, wrt, np.random.default_rng(0))


def test_a_wrong_second_gradient_is_caught():
    cos = wrong("cos", grad=lambda g, y, x: (g * x.sin(),))  # of the wrong sign
    op = wrong("sin", grad=lambda g, y, x: (g * x.builder.node(cos, (x,)),))
    sample, wrt = next(gradient_samples(op))
    graph, arrays, _ = evaluated(op, sample)
    made, more = check_gradient(graph, arrays, wrt, np.random.default_rng(0))
    with pytest.raises(AssertionError, match="the rules give"):
        check_gradient(made, more, [0, 1], np.random.default_rng(0))


def test_a_gradient_of_another_type_is_caught():
    op = wrong("exp", grad=lambda g, y, x: (g.sum(),))
    graph, _, _ = evaluated(op, samples(op)[0])
    with pytest.raises(Error, match=r"exp gives float64\[\] for an input of float64\[4, 3\]"):
        gradient_graph(graph, [0])


# The page.


def test_the_page_of_the_table_is_up_to_date():
    stored = (Path(__file__).parents[1] / "docs" / "coverage.md").read_text()
    assert stored == page(), "print it again: python -m dlc.ops.coverage > docs/coverage.md"
