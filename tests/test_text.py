"""The text form: every graph comes back, every number to the bit, and slips are explained."""

import numpy as np
import pytest
from helpers.cases import BATCH, X, constant, f32, graph_of, param
from helpers.random_graphs import graphs
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dlc.errors import ParseError
from dlc.ir.graph import Graph
from dlc.ir.node import Builder, Origin
from dlc.ir.pattern import op
from dlc.ir.sizes import Dim, as_size, dims
from dlc.ir.text import INLINE, arrays, parse, print_graph
from dlc.ir.types import DTYPES, tensor
from dlc.ir.verify import verify


def round_trip(graph):
    """The graph parsed from its text, which must be the same in all that text can tell."""
    text = print_graph(graph)
    got = parse(text, arrays(graph))
    verify(got)
    assert print_graph(got) == text
    assert got.structure_key() == graph.structure_key()
    assert got.name == graph.name
    assert got.aliases == dict(graph.aliases)
    assert [node.type for node in got.nodes] == [node.type for node in graph.nodes]
    return got


def test_the_text_is_as_a_reader_expects():
    def function(x):
        y = op.conv2d(x, param("conv.weight", 6, 1, 5, 5), padding=2)
        mean = param("bn.mean", 6, role="buffer").reshape((6, 1, 1))
        return op.relu(y + mean) * 0.1 + constant([1.0] * 28) - constant(np.arange(28))

    graph = graph_of((f32(BATCH, 1, 28, 28),), function)
    graph.nodes[2].origins |= {
        Origin("stem.conv", "/home/me/model.py", 12),
        Origin("", "/home/me/model.py", 40),
    }
    assert str(graph) == (
        """\
graph graph
dim batch: 1..8
%x0 = input : float32[batch, 1, 28, 28]
%conv.weight = parameter : float32[6, 1, 5, 5]
%0 = conv2d(%x0, %conv.weight) stride=(1, 1) padding=((2, 2), (2, 2)) dilation=(1, 1) groups=1 \
: float32[batch, 6, 28, 28]  # model.py:40; stem.conv, model.py:12
%bn.mean = parameter role="buffer" : float32[6]
%1 = reshape(%bn.mean) shape=(6, 1, 1) : float32[6, 1, 1]
%2 = add(%0, %1) : float32[batch, 6, 28, 28]
%3 = relu(%2) : float32[batch, 6, 28, 28]
%4 = constant 0.1 : float32[]
%5 = mul(%3, %4) : float32[batch, 6, 28, 28]
%6 = constant all 1.0 : float32[28]
%7 = add(%5, %6) : float32[batch, 6, 28, 28]
%8 = constant sha256:1a11a909d34e29b7dd25447914d77559 : float32[28]
%9 = sub(%7, %8) : float32[batch, 6, 28, 28]
output output = %9"""
    )
    round_trip(graph)


@given(graphs())
@settings(max_examples=100)
def test_every_graph_comes_back(graph):
    round_trip(graph)


def floats(dtype):
    """Every float, NaNs with any bits included."""
    kind = np.dtype(dtype)
    return st.integers(0, 2 ** (8 * kind.itemsize) - 1).map(
        lambda bits: np.array(bits, f"u{kind.itemsize}").view(kind)
    )


elements = st.one_of(
    floats("float32"),
    floats("float64"),
    st.sampled_from([0.0, -0.0, 1e-45, 1e23, np.inf, -np.inf, np.nan]).map(np.float32),
    st.integers(0, 255).map(np.uint8),
    st.integers(-(2**31), 2**31 - 1).map(np.int32),
    st.integers(-(2**63), 2**63 - 1).map(np.int64),
    st.booleans().map(np.bool_),
)


@given(elements, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
@settings(max_examples=100)
def test_every_number_of_a_constant_comes_back_to_the_bit(value, shape):
    builder = Builder()
    array = np.full(shape, value)
    array.ravel()[1:] = np.arange(array.size)[1:].astype(array.dtype)
    (got,) = round_trip(Graph((builder.constant(array),))).outputs
    assert got.attrs["value"].tobytes() == array.tobytes()
    assert got.attrs["value"].dtype == array.dtype


@given(floats("float64"))
@settings(max_examples=60)
def test_every_number_of_an_attribute_comes_back_to_the_bit(value):
    graph = graph_of(X, lambda x: op.pad(x, low=(0, 0), high=(1, 1), value=float(value)))
    (got,) = round_trip(graph).outputs
    assert np.float64(got.attrs["value"]).tobytes() == value.tobytes()


@st.composite
def sizes(draw):
    """Polynomials in two dimensions, with floor divisions."""
    n, m = as_size(Dim("n", 1, 100)), as_size(Dim("größe", 2, 50))
    size = draw(st.sampled_from([n, m]))
    for _ in range(draw(st.integers(0, 4))):
        other = draw(st.one_of(st.sampled_from([n, m]), st.integers(1, 7)))
        kind = draw(st.sampled_from("+*/"))
        if kind == "+":
            size = size + other
        elif kind == "*":
            size = size * other
        elif isinstance(other, int):
            size = (size + 3) // other
    return size


@given(sizes())
@settings(max_examples=60)
def test_every_size_comes_back(size):
    graph = graph_of((f32(size), f32(3, size)), lambda x, y: x + y)
    got = round_trip(graph)
    assert got.inputs[0].shape == (size,)
    assert got.dims == sorted(dims(size), key=str)


@given(st.text(min_size=1), st.text(min_size=1), st.text(min_size=1))
@settings(max_examples=60)
def test_every_name_comes_back(graph_name, input_name, output_name):
    builder = Builder()
    x = builder.input(input_name, tensor("float32", (2,)))
    got = round_trip(Graph((x + 1.0,), (x,), (output_name,), {0: input_name}, graph_name))
    assert got.inputs[0].name == input_name
    assert got.output_names == (output_name,)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["", "a.b", "c"]), st.sampled_from(["", "f.py"]), st.integers(1, 99)
        )
    )
)
@settings(max_examples=100)
def test_origins_come_back(given_places):
    graph = graph_of(X, op.exp)
    origins = {Origin(m, f, line if f else 0) for m, f, line in given_places if m or f}
    graph.outputs[0].origins |= origins
    assert round_trip(graph).outputs[0].origins == origins


def test_a_dimension_may_be_called_like_a_word_of_the_form():
    for name in ("float", "all", "dim", "output", "updates", "sha256", "input"):
        n = as_size(Dim(name, 1, 4))
        got = round_trip(graph_of((f32(n, 2 * n + 1),), lambda x: x.reshape(-1) + float("inf")))
        assert {str(dim) for dim in got.dims} == {name}


def test_what_graphs_of_training_have_comes_back():
    """Aliases, unused inputs, several outputs of an op, element types, a graph with no inputs."""

    def function(x, unused):
        whole = op.batch_norm_train(x, param("g", 4), param("b", 4), eps=1e-5)
        return (
            whole.project(0),
            param("g", 4) * 0.9 + whole.project(1),
            op.iota(size=BATCH, dtype="int32"),
        )

    graph = graph_of((f32(BATCH, 4), tensor("int64", ())), function)
    round_trip(Graph(graph.outputs, graph.inputs, ("y", "g'", "i"), {1: "g"}, "step 1"))
    round_trip(Graph((Builder().constant(1.0),)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_constants_stand_in_a_table(dtype):
    value = np.arange(INLINE + 1).astype(dtype)
    graph = Graph((Builder().constant(value),))
    round_trip(graph)
    (digest,) = arrays(graph)
    assert digest in print_graph(graph)
    np.testing.assert_array_equal(arrays(graph)[digest], value)
    with pytest.raises(ParseError, match=f"got {digest}"):
        parse(print_graph(graph))


# Written by hand.


def test_types_and_order_are_for_people():
    graph = parse(
        """
        # a comment
        graph by_hand
        dim n: 1..4

        %x = input : float32[n, 3]     # stem, model.py:3
        %a = constant [1, 2, 3] : float32[3]
        %b = add(%x, %a)
        %c = pad(%b) low=(0, 1) high=(0, 1)
        output y = %c : float32[n, 5]
    """.replace(" : float32[n, 5]", "")
    )
    assert str(graph.outputs[0].type) == "float32[n, 5]"
    assert graph.inputs[0].origins == {Origin("stem", "model.py", 3)}


HEAD = "graph g\n%x = input : float32[2, 3]\n"
IN_HEAD = [
    ("", "line 1, column 1: expected 'graph' and a name, got an empty text"),
    ("grph g", "line 1, column 1: expected 'graph', got 'grph'"),
    ("graph", "line 1, column 6: expected the name of the graph, got the end of the line"),
    ("graph g h", "line 1, column 9: expected the end of the line, got 'h'"),
    ("graph g\nsize n", "line 2, column 1: expected 'dim', 'output' or a value such as %0"),
    ("graph g\ndim n: 1..", "column 11: expected the greatest size, got the end of the line"),
    ("graph g\ndim n: 5..2", "column 5: Dim 'n' expects integers 0 <= min <= max"),
    ("graph g\ndim n: 1..2\ndim n: 1..3", "line 3, column 5: expected a new dimension, got 'n'"),
    ("graph g\n%x = input", "line 2, column 11: expected ':' and the type of the input"),
    ("graph g\n%0 = input : bool[]", "column 1: expected a name for the input, such as %x, got %0"),
    ("graph g\n%x = input : float16[2]", "column 14: expected an element type (bool, uint8"),
    ("graph g\n%x = input : bool[n]", "column 19: expected a number, a string, '(' or a dim"),
    ("graph g\n%x = input : bool[2", "column 20: expected ',', got the end of the line"),
    ("graph g\n%x = input : bool[2.5]", "column 19: a size is an integer or a dlc.Dim, got 2.5"),
    ("graph g\n%x = input : bool[-2]", "column 19: expected a size that is not negative, got -2"),
]
IN_BODY = [
    ("%x = exp(%x)", "column 1: expected a new value, got %x"),
    ("%0 = exp(%1)", "column 10: expected a value that is defined above, got %1"),
    ("%0 = epx(%x)", "column 6: expected the name of an op, got 'epx'"),
    ("%0 = exp(%x", "column 12: expected ',', got the end of the line"),
    ("%0 = exp(%x) 3", "column 14: expected the end of the line, got '3'"),
    ("%0 = exp(%x) : float32[3]", "column 16: expected the type float32[2, 3], which exp has"),
    ("%0 = matmul(%x)", "column 6: matmul expects 2 inputs, got 1"),
    ("%0 = sum(%x) axes=(2,)", "column 6: sum expects an axis from -2 to 1, got 2"),
    ("%0 = sum(%x) axis=0", "column 6: sum does not take the attributes axis=0"),
    ("%0 = sum(%x) axes=", "column 19: expected a number, a string, '(' or a dimension"),
    ("%0 = sum(%x) axes=(0, 'a')", 'column 23: expected a name, a number or a mark, got "\'"'),
    ('%0 = sum(%x) axes="a" + 1', "column 19: can only concatenate str"),
    ("%0 = sum(%x) axes=3 // 0", "column 19: integer division or modulo by zero"),
    ('%0 = pad(%x) low=(0, 0) high=(0, 0) value=float("one")', "column 43: could not convert"),
    ('%0 = pad(%x) low=(0, 0) high=(0, 0) value="\\q"', "column 43: Invalid \\escape"),
    ("%0 = constant 1", "column 6: expects a type, such as float32[2], behind its value"),
    ("%0 = constant [1, 2] : uint8[3]", "column 6: expects the elements of uint8[3], got 2"),
    ("%0 = constant [1, 300] : uint8[2]", "column 6: Python integer 300 out of bounds"),
    ("%0 = constant all : uint8[2]", "column 19: expected a number"),
    ("%0 = constant sha256:abc : uint8[2]", "column 15: expected an array of the table `arrays`"),
    ("output y = %1", "column 12: expected a value that is defined above, got %1"),
    ("output y %x", "column 10: expected '=', got '%x'"),
    ("output y = %x updates %0", "column 23: expected an input or a parameter, got %0"),
]
SLIPS = [*IN_HEAD, *((HEAD + text, f"line 3, {message}") for text, message in IN_BODY)]


@pytest.mark.parametrize(("text", "message"), SLIPS)
def test_a_slip_is_explained_with_its_place(text, message):
    with pytest.raises(ParseError) as caught:
        parse(text)
    assert message in str(caught.value)


def test_an_error_shows_the_line_and_points_at_the_column():
    with pytest.raises(ParseError) as caught:
        parse(HEAD + "  %0 = exp(%1)")
    assert str(caught.value).splitlines()[1:] == ["    %0 = exp(%1)", "  " + " " * 11 + "^"]
