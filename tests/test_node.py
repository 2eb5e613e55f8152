"""Nodes: interning, origins, attribute keys, lifetime, threads, depth."""

import gc
import threading
import weakref

import numpy as np
import pytest

import dlc.ops  # noqa: F401  (fills the op table)
from dlc.errors import DTypeError, Error, ShapeError, TraceError
from dlc.ir.graph import Graph, graph_of, is_parametric, topological
from dlc.ir.node import Builder, Node, Origin, apply, attrs_key, building, current_builder
from dlc.ir.sizes import Dim, as_size
from dlc.ir.types import tensor

F32 = tensor("float32", (2, 3))


@pytest.fixture
def builder():
    return Builder()


@pytest.fixture
def x(builder):
    return builder.input("x", F32)


# Interning.


def test_equal_computations_are_one_node(builder, x):
    w = builder.input("w", F32)
    assert x + w is x + w
    assert x + w is not w + x
    assert (x + w).exp() is (x + w).exp()
    assert x.sum((0, 1)) is x.sum() is x.sum((-1, -2))
    assert x * 2 is x * 2.0
    assert builder.input("x", F32) is x


def test_numbers_take_the_element_type_beside_them(builder, x):
    assert (x + 1).inputs[1].dtype == "float32"
    assert (x.double() + 0.5).dtype == "float64"
    i = x.long()
    assert (i + 1).dtype == "int64"
    assert (i + 0.5).dtype == "float32"
    assert (i.int() + True).dtype == "int32"
    assert ((x > 0) + 1).dtype == "int64"
    assert (2 - i.to("uint8")).dtype == "uint8"
    assert (x + np.ones(3)).dtype == "float64"  # an array has a type of its own


def test_a_number_beyond_the_element_type_beside_it_is_refused(builder, x):
    for make in (
        lambda: x.to("uint8") + 300,
        lambda: x.to("uint8") * -1,
        lambda: x.int() + 2**40,
        lambda: x.to("uint8").masked_fill(x > 0, 256),
    ):
        with pytest.raises(DTypeError, match=r"is beyond (uint8|int32), .*x\.long\(\)"):
            make()


@pytest.mark.parametrize("order", ["<f4", ">f4", ">i8"])
def test_a_constant_is_in_the_byte_order_of_the_machine(builder, order):
    given = np.array([1, 2, 3], order)
    made = builder.constant(given)
    assert made is builder.constant(given.astype(given.dtype.name))
    assert made is builder.node("constant", (), {"value": given})
    assert made.attrs["value"].tolist() == [1, 2, 3]
    assert made.attrs["value"].dtype.isnative


def test_builders_do_not_mix(x):
    other = Builder().input("x", F32)
    assert other is not x
    with pytest.raises(TraceError, match=r"add mixes tensors of two traces.*input 'x'"):
        x + other


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (1, True),
        (1, 1.0),
        (True, 1.0),
        (0.0, -0.0),
        ("1", 1),
        (None, 0),
        (None, "NoneType:None"),
        ((1, 2), (12,)),
        ((1,), 1),
        (("a", "b"), ("a,b",)),
        ((), None),
        (Dim("n", 1, 2), Dim("n", 1, 3)),
        (as_size(Dim("n", 1, 2)), "n"),
        (np.zeros(2), np.zeros((2, 1))),
        (np.zeros(2), -np.zeros(2)),
        (np.zeros(2, "float32"), np.zeros(1, "float64")),
        (np.array([1]), np.array([True])),
        (np.zeros((0, 2)), np.zeros((2, 0))),
        ("a=1;b", "a=1"),
    ],
)
def test_attributes_that_differ_have_different_keys(a, b):
    assert attrs_key({"value": a}) != attrs_key({"value": b})


def test_attributes_that_are_equal_have_one_key():
    nan = float("nan")
    assert attrs_key({"a": nan, "b": (1, 2)}) == attrs_key({"b": [1, 2], "a": nan})
    n = as_size(Dim("n", 1, 9))
    assert attrs_key({"s": n * 2 + 1}) == attrs_key({"s": 1 + n + n})
    whole = np.arange(12.0).reshape(3, 4)
    assert attrs_key({"v": whole[:, ::2]}) == attrs_key({"v": whole[:, ::2].copy()})
    assert attrs_key({"a": 1, "b": 2}) != attrs_key({"a": 2, "b": 1})


def test_a_value_without_canonical_form_is_refused(builder, x):
    with pytest.raises(ShapeError, match="type object, which has no canonical form"):
        attrs_key({"value": object()})
    with pytest.raises(ShapeError, match=r"^relayout has an attribute of type dict"):
        builder.node("relayout", (x,), {"order": {}, "halo": ()})


def test_nodes_differ_by_attribute_type(x):
    assert x.sum(0, keepdim=True) is not x.sum(0)
    assert x.clamp(0, 1) is x.clamp(0.0, 1.0)  # canonical: bounds of floats are floats
    assert x.clamp(0.0) is not x.clamp(-0.0)


def test_constants_are_one_node_by_content(builder):
    a = builder.constant(np.arange(6.0).reshape(2, 3))
    assert builder.constant(np.arange(6.0).reshape(3, 2).copy().reshape(2, 3)) is a
    assert builder.constant(np.arange(6).reshape(2, 3)) is not a
    assert builder.constant(0.0) is not builder.constant(-0.0)
    assert builder.constant(1, "float32") is not builder.constant(1)


def test_a_constant_is_a_copy_that_nobody_writes(builder):
    array = np.zeros(3)
    node = builder.constant(array)
    array[0] = 7
    assert node.attrs["value"][0] == 0
    with pytest.raises(ValueError, match="read-only"):
        node.attrs["value"][0] = 1
    with pytest.raises(DTypeError, match="complex128"):
        builder.constant(1j)


def test_a_node_is_immutable_where_it_matters(x):
    with pytest.raises(TypeError):
        x.attrs["name"] = "y"
    assert isinstance(x.inputs, tuple)


# Identity.


def test_nodes_hash_by_identity_and_compare_into_tensors(builder, x):
    w = builder.input("w", F32)
    assert isinstance(x == w, Node)
    assert (x == w).op.name == "eq"
    assert (x != w).dtype == "bool"
    table = {x: "x", w: "w"}
    assert table[x] == "x"
    assert len({x, w, x}) == 2
    assert hash(x) == hash(x)


def test_a_condition_on_a_tensor_says_what_to_do(x):
    with pytest.raises(TraceError, match=r"dlc\.where\(condition, a, b\)"):
        bool(x > 0)
    with pytest.raises(TraceError, match="while the model is traced"):
        int(x)
    with pytest.raises(TraceError, match="while the model is traced"):
        float(x)
    with pytest.raises(TraceError, match="NumPy cannot read"):
        np.asarray(x)


def test_numpy_arrays_leave_operators_to_the_tensor(x):
    array = np.ones((2, 3), np.float32)
    for result in (array + x, array - x, array * x, array / x, np.float32(2) * x):
        assert isinstance(result, Node)
        assert result.shape == (2, 3)
    assert (array < x).op.name == "lt"


# Errors.


def test_an_error_names_op_place_and_inputs():
    place = Origin("layer1.conv", "/home/me/model.py", 41)
    builder = Builder(origin=lambda: place)
    x, w = builder.input("x", F32), builder.input("w", tensor("float32", (4,)))
    with pytest.raises(ShapeError) as caught:
        x + w
    assert str(caught.value) == (
        "add expects shapes that broadcast, got (2, 3) and (4,): 3 and 4 differ on axis -1 "
        "(layer1.conv, model.py:41). Its inputs are input 'x': (2, 3) float32; "
        "input 'w': (4,) float32"
    )


def test_an_op_with_several_outputs_is_taken_apart_first(builder, x):
    ones = builder.constant(np.ones(3), "float32")
    made = builder.node("batch_norm_train", (x, ones, ones))
    for use in (lambda: made + 1, lambda: made.shape, lambda: made.exp(), lambda: -made):
        with pytest.raises(TraceError, match=r"has 3 outputs; take one with node\.project"):
            use()
    assert made.project(1).shape == (3,)
    with pytest.raises(Error, match="an output from 0 to 2, got 3"):
        made.project(3)


def test_what_is_no_operand_is_refused(x):
    with pytest.raises(TraceError, match="expected a tensor, a NumPy array or a number, got 'a'"):
        x + "a"
    with pytest.raises(TraceError, match="got None"):
        x * None


# Origins.


def test_origins_of_coinciding_nodes_merge():
    places = iter([Origin("a", "m.py", 1), Origin("b", "m.py", 2), Origin("c", "m.py", 3)])
    builder = Builder(origin=lambda: next(places))
    x = builder.input("x", F32)
    first, second = x.exp(), x.exp()
    assert first is second
    assert first.origins == {Origin("b", "m.py", 2), Origin("c", "m.py", 3)}
    assert "b, m.py:2" in first.describe()
    assert "c, m.py:3" in repr(first)


def test_a_rewrite_hands_origins_on():
    place = Origin("net", "m.py", 9)
    builder = Builder(origin=lambda: place)
    x = builder.input("x", F32)
    graph = Graph((x.exp().neg(),), (x,))
    builder.origin = None
    after = graph.rewrite(lambda node, new: new[0].sin() if node.op.name == "exp" else None)
    assert [node.op.name for node in after.nodes] == ["input", "sin", "neg"]
    assert all(place in node.origins for node in after.nodes)


# Lifetime.


def test_nodes_die_with_the_graph():
    builder = Builder()
    x = builder.input("x", F32)
    graph = Graph(((x + 1).exp().sum(),), (x,))
    alive = [weakref.ref(node) for node in graph.nodes]
    assert all(node() is not None for node in alive)
    gc.disable()  # reference counts alone free them: no cycles
    try:
        del graph, x
        assert not any(node() for node in alive)
        assert len(builder._nodes) == 0
    finally:
        gc.enable()


def test_the_builder_lives_as_long_as_a_node():
    x = Builder().input("x", F32)
    assert (x + 1).builder is x.builder
    builder = weakref.ref(x.builder)
    del x
    gc.collect()
    assert builder() is None


def test_a_new_node_never_takes_a_dead_ones_place(builder, x):
    for step in range(2000):
        value = x * float(step)
        assert value.inputs[1].attrs["value"] == step
        del value


# Builders in context.


def test_functions_without_tensors_use_the_current_builder():
    with pytest.raises(TraceError, match="only while a function is traced"):
        current_builder()
    outer, inner = Builder(), Builder()
    with building(outer):
        with building(inner):
            assert apply("iota", size=3, dtype="int64").builder is inner
        assert current_builder() is outer
    with pytest.raises(TraceError):
        current_builder()


def test_the_current_builder_is_of_its_thread():
    seen = []

    def look():
        try:
            seen.append(current_builder())
        except TraceError:
            seen.append(None)

    with building(Builder()):
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    assert seen == [None]


# Threads.


def test_threads_that_build_the_same_get_the_same_nodes():
    builder = Builder()
    x = builder.input("x", F32)
    start = threading.Barrier(8)
    results = [None] * 8

    def build(number):
        start.wait()
        made = []
        for k in range(200):
            made.append((x + float(k)).exp().sum())
        results[number] = made

    threads = [threading.Thread(target=build, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for made in results[1:]:
        assert all(a is b for a, b in zip(results[0], made, strict=True))


# Depth.


def test_a_graph_of_100000_nodes_in_a_chain():
    builder = Builder()
    x = builder.input("x", tensor("float32"))
    y = x
    for _ in range(50_000):
        y = y.exp().neg()
    graph = Graph((y,), (x,))
    nodes = graph.nodes
    assert len(nodes) == 100_001
    assert nodes[0] is x
    assert nodes[-1] is y
    users = graph.users()
    assert users[y] == []
    again = graph.rewrite(lambda node, new: None)
    assert again.outputs[0] is y
    assert len(graph.structure_key()) == 32
    known = {}
    for node in nodes:
        known[node] = is_parametric(node, known)
    assert not known[y]
    last = weakref.ref(y)
    del y, nodes, users, again, known, graph, node
    gc.collect()
    assert last() is None
    assert len(builder._nodes) == 1  # x


# Graphs.


def test_topological_order_is_inputs_first_and_stable():
    graph = graph_of(lambda a, b: (a + b) * (b - a), F32, F32)
    names = [node.op.name for node in graph.nodes]
    assert names == ["input", "input", "add", "sub", "mul"]
    place = {node: i for i, node in enumerate(graph.nodes)}
    assert all(place[source] < place[node] for node in graph.nodes for source in node.inputs)
    assert topological(graph.outputs)[-1] is graph.outputs[0]


def test_structure_keys_tell_graphs_apart_and_know_them_again():
    def net(a, b):
        return (a + b).exp()

    same = [graph_of(net, F32, F32).structure_key() for _ in range(2)]
    assert same[0] == same[1]
    others = [
        graph_of(lambda a, b: (b + a).exp(), F32, F32),
        graph_of(lambda a, b: (a + b).log(), F32, F32),
        graph_of(net, tensor("float64", (2, 3)), tensor("float64", (2, 3))),
        graph_of(net, F32, F32, names=("p", "q")),
        graph_of(lambda a, b: (a + a).exp(), F32, F32),
    ]
    keys = {graph.structure_key() for graph in others}
    assert len(keys) == len(others)
    assert same[0] not in keys


def test_users_lists_each_user_once():
    graph = graph_of(lambda a: (a * a) + a, F32)
    a = graph.inputs[0]
    assert [node.op.name for node in graph.users()[a]] == ["mul", "add"]
