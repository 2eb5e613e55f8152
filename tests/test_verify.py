"""The verifier: each check passes on good graphs and is tripped by a graph made to break it."""

from dataclasses import replace

import pytest
from helpers.cases import BATCH, XY, X, f32, graph_of, param
from helpers.random_graphs import graphs
from hypothesis import given, settings

from dlc.errors import VerifyError
from dlc.ir.graph import Graph
from dlc.ir.node import Builder, Node
from dlc.ir.op import OPS
from dlc.ir.pattern import op
from dlc.ir.sizes import Dim
from dlc.ir.types import tensor
from dlc.ir.verify import CHECKS, verify


def forged(name, inputs=(), attrs=None, type=None, builder=None):
    """A node that no builder would make."""
    known = inputs[0] if inputs else None
    return Node(OPS[name], inputs, attrs or {}, type or known.type, builder or known.builder)


def mixed_builders():
    graph, other = graph_of(X, op.exp), graph_of(X, op.exp)
    return replace(graph, outputs=(graph.outputs[0], other.inputs[0]), output_names=("a", "b"))


def not_interned():
    graph = graph_of(X, op.exp)
    twin = forged("exp", graph.inputs)
    return replace(graph, outputs=(graph.outputs[0], twin), output_names=("a", "b"))


def wrong_input():
    graph = graph_of(X, op.exp)
    return replace(graph, inputs=(*graph.inputs, graph.outputs[0]))


def unlisted_input():
    return replace(graph_of(X, op.exp), inputs=())


def listed_twice():
    graph = graph_of(X, op.exp)
    return replace(graph, inputs=graph.inputs * 2)


def two_of_one_name():
    builder = Builder()
    a, b = builder.input("x", tensor("float32", (2,))), builder.input("x", tensor("float32", (1,)))
    return Graph((a + b,), (a, b))


def outputs_of_one_name():
    return replace(graph_of(X, lambda x: (x, op.exp(x))), output_names=("y", "y"))


def attributes_not_canonical():
    x = graph_of(X, op.exp).inputs[0]
    return Graph(
        (forged("sum", (x,), {"axes": -1, "keepdims": True}, tensor("float32", (3, 1))),), (x,)
    )


def attributes_refused():
    x = graph_of(X, op.exp).inputs[0]
    return Graph((forged("sum", (x,), {"axes": (7,), "keepdims": True}),), (x,))


def wrong_type():
    x = graph_of(X, op.exp).inputs[0]
    return Graph((forged("exp", (x,), type=tensor("float32", (3, 5))),), (x,))


def inputs_refused():
    x, y = graph_of((f32(2), f32(3)), lambda x, y: x).inputs
    return Graph((forged("add", (x, y)),), (x, y))


def norm(x):
    return op.batch_norm_train(x, param("g", 4), param("b", 4), eps=1e-5)


def tuple_read():
    graph = graph_of(X, norm)
    return replace(graph, outputs=(forged("exp", graph.outputs),))


def alias_unknown():
    return replace(graph_of(X, op.exp), aliases={0: "y"})


def alias_out_of_range():
    return replace(graph_of(X, op.exp), aliases={1: "x0"})


def alias_of_another_type():
    return replace(graph_of(X, lambda x: x[0]), aliases={0: "x0"})


def two_new_values():
    return replace(graph_of(X, lambda x: (x + 1.0, x + 2.0)), aliases={0: "x0", 1: "x0"})


def two_ranges():
    types = (f32(Dim("n", 1, 4)), f32(Dim("n", 1, 5)))
    return graph_of(types, lambda x, y: (x, y))


BROKEN = [
    ("builder", mixed_builders, "belongs to another builder"),
    ("interned", not_interned, "exp: .* is another object than a node of the same op"),
    ("inputs", wrong_input, "exp: .* takes input nodes only"),
    ("inputs", unlisted_input, "input 'x0': .* is not in the list"),
    ("inputs", listed_twice, "input 'x0': .* twice"),
    ("names", two_of_one_name, r"input 'x': float32\[1\] has the name of input 'x': float32\[2\]"),
    ("names", outputs_of_one_name, "have the output names y, y"),
    ("attributes", attributes_not_canonical, r"which are \{'axes': \(1,\).* in canonical form"),
    ("attributes", attributes_refused, "sum: .* has attributes that its op refuses"),
    ("types", wrong_type, r"has the type float32\[3, 5\], and its op's rule gives float32\[3, 4\]"),
    ("types", inputs_refused, "has inputs that its op refuses: expects shapes that broadcast"),
    ("tuples", tuple_read, "reads all outputs of batch_norm_train"),
    ("tuples", lambda: graph_of(X, norm), "batch_norm_train: .* is an output of the graph"),
    ("aliases", alias_unknown, "is the new value of 'y', which the graph does not read"),
    ("aliases", alias_out_of_range, "aliases output 1, which it has not"),
    ("aliases", alias_of_another_type, "is the new value of input 'x0': .* another type"),
    ("aliases", two_new_values, "is the second new value of 'x0', after output 0"),
    ("dims", two_ranges, r"gives the dimension n a second range: 1\.\.4 and 1\.\.5"),
]


@pytest.mark.parametrize(("check", "make", "message"), BROKEN)
def test_a_broken_graph_is_found(check, make, message):
    graph = make()
    found = [c.name for c in CHECKS if c.name == check]
    assert found == [check]
    with pytest.raises(VerifyError, match=message) as caught:
        verify(graph)
    assert f"'{check}'" in str(caught.value) or check == "aliases"


def test_every_check_is_tripped():
    assert {check.name for check in CHECKS} == {name for name, _, _ in BROKEN}


@given(graphs())
@settings(max_examples=50)
def test_graphs_that_builders_make_pass(graph):
    verify(graph)


def test_a_long_graph_is_verified_in_one_walk_a_check():
    def chain(x):
        for _ in range(4000):
            x = op.neg(op.exp(x))
        return x

    graph, walks = graph_of(X, chain), []
    nodes = Graph.nodes.fget
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Graph, "nodes", property(lambda g: walks.append(g) or nodes(g)))
        verify(graph)
    assert len(walks) <= 2 * len(CHECKS)


def test_an_alias_of_the_right_type_and_an_unused_input_pass():
    graph = graph_of((*XY, f32(BATCH)), lambda x, y, z: (x + 1.0, y + param("w", 4)))
    verify(replace(graph, aliases={0: "x0"}))
