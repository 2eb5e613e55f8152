"""Tracing: names, origins, structures, buffers, and the errors of traced programs."""

import gc
import sys
import textwrap
import threading
import weakref
from typing import NamedTuple

import numpy as np
import pytest
import torch
from helpers.traced import Net, Scale, X, call, outputs, run

from dlc.errors import ArgumentError, DTypeError, Error, ShapeError, TraceError
from dlc.frontend import functional as F
from dlc.frontend import hook, models, nn, tensors
from dlc.frontend.scope import active
from dlc.frontend.trace import flatten_arguments, trace
from dlc.ir.node import Node
from dlc.ir.sizes import Dim
from dlc.ir.types import TensorSpec


def here():
    """The caller's line."""
    return sys._getframe(1).f_lineno


def origins(node):
    return {(origin.module, origin.file.rsplit("/", 1)[-1], origin.line) for origin in node.origins}


def test_a_traced_module_has_named_inputs_parameters_and_origins():
    traced = trace(Net(), X, shift=TensorSpec((3,)))
    graph = traced.graph
    assert (graph.name, graph.output_names) == ("Net", ("output",))
    assert [node.name for node in graph.inputs] == ["x", "shift"]
    names = [f"layers.{i}.{name}" for i in (0, 1) for name in ("weight", "offset", "unsaved")]
    assert list(traced.parameters) == names
    roles = {node.name: node.attrs["role"] for node in graph.parameters}
    assert roles["layers.0.weight"] == "parameter"
    assert roles["layers.1.unsaved"] == "buffer"
    (output,) = graph.outputs
    line = Net.forward.__code__.co_firstlineno + 5
    assert origins(output) == {("", "traced.py", line)}
    scaled = output.inputs[0].inputs[0]
    line = Scale.forward.__code__.co_firstlineno + 1
    assert origins(scaled) == {("layers.1", "traced.py", line)}
    assert not traced.training or traced.graph.aliases == {}


def test_a_traced_module_computes(rng):
    model, x = Net(), rng.normal(size=(2, 3)).astype("float32")
    weight = np.arange(1.0, 4.0)
    expected = np.maximum((x * weight + 1) * weight + 1, 0)
    np.testing.assert_allclose(outputs(model, x), expected, rtol=1e-6)
    np.testing.assert_allclose(outputs(model, x, shift=x), np.maximum(
        (x * weight + 1) * weight + 1 + x, 0), rtol=1e-5, atol=1e-6)  # fmt: skip
    model.layers[0].weight.copy_(0.0)
    np.testing.assert_allclose(outputs(model, x), np.broadcast_to(weight + 1, (2, 3)), rtol=1e-6)


def test_the_zoo_counts_as_the_users_program():
    traced = trace(models.lenet5(), TensorSpec((1, 1, 28, 28)))
    places = {place for node in traced.graph.nodes for place in origins(node)}
    assert {file for _, file, _ in places} == {"lenet.py"}
    assert {"conv1", "fc3", ""} <= {module for module, _, _ in places}


def test_results_keep_their_structure():
    class Pair(NamedTuple):
        first: object
        second: object

    def function(x):
        pair = Pair(x, [x + 1, np.ones(2)])
        return {"a": x * 2, "b": (pair, None, 3, "text"), "c": x.shape[0]}

    traced = trace(function, X)
    names = ("a", "b.0.first", "b.0.second.0", "b.0.second.1")
    assert traced.graph.output_names == names
    result = traced.structure.build(range(4))
    assert result == {"a": 0, "b": ((1, [2, 3]), None, 3, "text"), "c": 2}
    assert type(result["b"][0]) is Pair
    x = np.ones((2, 3))
    assert outputs(function, x)["c"] == 2
    assert trace(lambda x: x, X).graph.output_names == ("output",)
    assert trace(lambda x: (x, x), X).graph.output_names == ("output0", "output1")
    assert isinstance(outputs(lambda x: [x], x), list)
    assert isinstance(outputs(lambda x: (x,), x), tuple)


def test_arguments_may_be_nested_or_plain_python():
    def function(x, pair, *rest, mode="a", **more):
        y = x + pair["left"] * pair["right"][0]
        for value in rest:
            y = y + value
        return y * 2 if mode == "double" else y - more["less"]

    one = np.ones(2)
    pair = {"left": one, "right": [one, 5]}
    traced = trace(function, one, pair, one, 3, mode="b", less=one)
    names = ["x", "pair.left", "pair.right.0", "rest.0", "less"]
    assert [node.name for node in traced.graph.inputs] == names
    assert run(traced, one, pair, one, 3, mode="b", less=one)[0][0].tolist() == [5, 5]
    assert outputs(function, one, pair, mode="double").tolist() == [4, 4]


def test_the_structure_of_arguments_is_a_key():
    def key(*args, **kwargs):
        return flatten_arguments(args, kwargs)[1]

    x, y = np.ones(2), np.zeros(3)
    assert key(x, [y]) == key(y, [x])
    assert key(x, y) is key(y, X)
    assert key(x, y) == key(x, y) != key(x, np.float32(1), y)
    assert key(x, np.float32(1)) == key(x, y)
    assert hash(key(x, {"a": y})) == hash(key(y, {"a": x}))
    different = [key(x), key(x, 1), key(x, True), key(x, 1.0), key(x, "1"), key(x, None), key(k=x)]
    different += [key(x, 0.0), key(x, -0.0), key((x,)), key([x]), key({"a": x}), key({"b": x})]
    assert len(set(different)) == len(different)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (object(), r"argument\.0 has type object; expected NumPy arrays"),
        ({"a": [torch.zeros(2)]}, r"argument\.0\.a\.0 has type Tensor; .*its \.numpy\(\)"),
        (np.zeros(2, "float16"), "argument 'x' expects an element type of .*, got float16"),
        (np.array(["a"]), "argument 'x' expects an element type of"),
    ],
)
def test_an_argument_that_is_no_tensor_is_refused(argument, message):
    with pytest.raises(TypeError, match=message):
        trace(lambda x: x, argument)


def test_input_names_are_unique():
    layer = Scale()
    layer.register_parameter("x", nn.Parameter([1.0]))
    traced = trace(layer, X)
    assert [node.name for node in traced.graph.inputs] == ["x_1"]
    named = TensorSpec((2, 3), name="image")
    assert [n.name for n in trace(lambda x, y: x + y, named, X).graph.inputs] == ["image", "y"]
    with pytest.raises(ArgumentError, match="a name of its own, got 'image'"):
        trace(lambda x, y: x + y, named, named)


def test_shared_modules_and_parameters_are_one():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.left = nn.Sequential(Scale())
            self.right = nn.Sequential(self.left[0])
            self.tied = Scale()
            self.tied.weight = self.left[0].weight

        def forward(self, x):
            return self.right(self.left(x)) + self.tied(x)

    traced = trace(Shared(), X)
    names = ["left.0.weight", "left.0.offset", "left.0.unsaved", "tied.offset", "tied.unsaved"]
    assert list(traced.parameters) == names
    modules = {module for node in traced.graph.nodes for module, _, _ in origins(node)}
    assert modules == {"left.0", "right.0", "tied", ""}


def test_equal_work_at_two_places_is_one_node_with_both_origins():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = self.b = nn.ReLU()
            self.c = nn.ReLU()

        def forward(self, x):
            return self.a(x), self.c(x)

    first, second = trace(Twice(), X).graph.outputs
    assert first is second
    assert {module for module, _, _ in origins(first)} == {"a", "c"}


def test_a_function_may_use_modules_and_free_parameters():
    layer, other, free = Scale(), Scale(), nn.Parameter(np.ones(3, "float32"))
    traced = trace(lambda x: other(layer(x)) * free * layer.weight, X)
    names = [f"{m}.{n}" for m in ("scale", "scale_1") for n in ("weight", "offset", "unsaved")]
    assert list(traced.parameters) == [*names, "parameter"]
    assert traced.parameters["scale.weight"] is layer.weight is not other.weight
    assert traced.parameters["parameter"] is free


def test_a_method_is_traced_with_its_modules_names():
    class Codec(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = Scale()

        def encode(self, x):
            return self.layer(x)

    traced = trace(Codec().encode, X)
    assert (traced.graph.name, next(iter(traced.parameters))) == ("encode", "layer.weight")


def test_layers_made_in_forward_are_found():
    class Lazy(nn.Module):
        def __init__(self):
            super().__init__()
            self.proj = None

        def forward(self, x):
            if self.proj is None:
                with nn.init.skip():
                    self.proj = nn.Linear(x.shape[1], 4)
            return self.proj(x)

    model = Lazy()
    assert list(trace(model, X).parameters) == ["proj.weight", "proj.bias"]
    assert list(trace(model, X).parameters) == list(model.state_dict())


def test_arrays_in_forward_are_constants_and_numpy_numbers_too():
    table = np.arange(3.0, dtype="float32")
    y = outputs(lambda x: table * x + np.float32(2) - x, np.ones((2, 3), "float32"))
    np.testing.assert_array_equal(y, np.tile(table + 1, (2, 1)))


def test_deep_models_trace():
    chain = nn.Sequential(*(nn.Tanh() for _ in range(3000)))
    assert len(trace(chain, X).graph.nodes) == 3001


def test_tracing_leaves_nothing_behind():
    class Marker(nn.ReLU):
        pass

    layer = Marker()
    traced = trace(layer, X)
    node, module = weakref.ref(traced.graph.outputs[0]), weakref.ref(layer)
    assert active() is None
    del traced, layer
    gc.collect()
    assert node() is None
    assert module() is None


def test_threads_trace_side_by_side():
    model, results, barrier = Net(), {}, threading.Barrier(8)

    def work(i):
        barrier.wait()
        results[i] = trace(model, TensorSpec((i + 1, 3)))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, traced in results.items():
        assert traced.graph.outputs[0].shape == (i + 1, 3)
        assert list(traced.parameters) == list(results[0].parameters)


def test_a_trace_may_hold_another():
    inner = []

    def function(x):
        inner.append(trace(lambda y: y * 2, X))
        return x + 1

    outer = trace(function, X)
    assert [node.op.name for node in outer.graph.nodes] == ["input", "constant", "add"]
    assert [node.op.name for node in inner[0].graph.nodes] == ["input", "constant", "mul"]


# Buffers with new values.


class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("count", np.array(0))
        self.register_buffer("mean", np.zeros(3, "float32"))

    def forward(self, x):
        self.count = self.count + 1
        self.mean = self.mean * 0.5 + x.mean(0) * 0.5
        self.count = self.count + 1
        return x - self.mean


def test_assigning_to_a_buffer_makes_an_output(rng):
    model, x = Counter(), rng.normal(size=(2, 3)).astype("float32")
    traced = trace(model, X)
    assert traced.graph.output_names == ("output", "count.next", "mean.next")
    assert traced.graph.aliases == {1: "count", 2: "mean"}
    y = call(model, x)
    call(model, x)
    assert model.count.item() == 4
    np.testing.assert_allclose(model.mean.numpy(), x.mean(0) * 0.75, rtol=1e-6)
    np.testing.assert_allclose(y, x - x.mean(0) * 0.5, rtol=1e-6)


def test_arrays_and_numbers_become_new_values_in_a_trace_too():
    class Reset(Counter):
        def forward(self, x):
            self.count = 0
            self.mean = np.full(3, 2.0, "float32")
            return x + self.mean

    model = Reset()
    model.count = np.array(5)
    traced = trace(model, X)
    assert model.count.item() == 5
    assert not model.mean.numpy().any()
    (y,), updates = run(traced, np.ones((2, 3), "float32"))
    assert y.tolist() == [[3.0] * 3] * 2
    assert updates["count"] == 0
    assert updates["mean"].tolist() == [2.0] * 3


def test_a_buffer_that_keeps_its_value_is_no_output():
    class Same(Counter):
        def forward(self, x):
            self.mean = self.mean
            return x

    assert not trace(Same(), X).graph.aliases


def test_a_buffer_keeps_its_type_in_a_trace():
    def assign(value):
        model = Counter()

        def function(x):
            model.mean = value(x)
            return x

        return lambda: trace(function, X)

    with pytest.raises(ShapeError, match=r"buffer 'buffer' expects a new value of shape \(3,\)"):
        assign(lambda x: x)()
    with pytest.raises(DTypeError, match=r"of type float32, got int64 .*test_trace.py:\d+"):
        assign(lambda x: tensors.arange(3))()
    assert assign(lambda x: x.sum(0))().graph.aliases == {1: "buffer"}


# Errors of traced programs.


def test_an_error_names_op_module_file_line_and_inputs(tmp_path):
    path = tmp_path / "model.py"
    path.write_text(
        textwrap.dedent(
            """
            from dlc.frontend import nn, functional as F

            class Stem(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.pool = nn.MaxPool2d(2)

                def forward(self, x):
                    return self.pool(x)

            class Block(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.conv1 = nn.Conv2d(64, 64, 3, bias=False)

                def forward(self, x):
                    return F.relu(
                        self.conv1(x))

            class Net(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.stem = Stem()
                    self.layer2 = nn.Sequential(Block())

                def forward(self, x):
                    return self.layer2(self.stem(x))
            """
        )
    )
    names = {}
    exec(compile(path.read_text(), path, "exec"), names)
    with pytest.raises(ShapeError) as caught:
        trace(names["Net"](), TensorSpec((Dim("N", 1, 8), 3, 112, 112)))
    assert str(caught.value) == (
        "conv2d expects 64 input channels, got 3 (layer2.0.conv1, model.py:19). "
        "Its inputs are max_pool2d of stem.pool: (N, 3, 56, 56) float32; "
        "parameter 'layer2.0.conv1.weight': (64, 64, 3, 3) float32"
    )


def test_a_condition_on_a_tensor_names_its_line():
    def function(x):
        positive = x > 0
        lines.append(here() + 1)
        if positive:
            return x
        return -x

    lines = []
    with pytest.raises(TraceError, match="Python condition") as caught:
        trace(function, X)
    assert f"at test_trace.py:{lines[0]} " in str(caught.value)
    assert "use dlc.where(condition, a, b)" in str(caught.value)


@pytest.mark.parametrize(
    "use",
    [int, float, np.asarray, lambda x: [1, 2][x], lambda x: range(x), lambda x: x.item()],
)
def test_the_value_of_a_tensor_is_refused(use):
    with pytest.raises(TraceError, match=r"model is traced|inside a traced function"):
        trace(lambda x: use(x) and x, TensorSpec(()))


@pytest.mark.parametrize(
    "use",
    [
        lambda p: p.numpy(),
        lambda p: p.data,
        lambda p: np.asarray(p),
        lambda p: p.item(),
        lambda p: bool(p),
        lambda p: float(p),
        lambda p: int(p),
    ],
)
def test_the_value_of_a_parameter_is_refused(use):
    parameter = nn.Parameter(1.0)
    assert use(parameter) == 1.0
    with pytest.raises(TraceError, match="while the model is traced"):
        trace(lambda x: x + use(parameter), X)


def test_a_users_own_errors_come_through():
    class Mine(Exception):
        pass

    def function(x):
        raise Mine("as it is")

    with pytest.raises(Mine, match="as it is"):
        trace(function, X)
    assert active() is None
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'y'"):
        trace(lambda x, y: x, X)
    with pytest.raises(AttributeError, match="has no attribute 'foo'"):
        trace(lambda x: x.foo, X)


def test_a_function_without_a_tensor_in_its_result_is_refused():
    with pytest.raises(TraceError, match="returned no tensor, but None"):
        trace(lambda x: None, X)
    with pytest.raises(TraceError, match="the result has type set; expected tensors"):
        trace(lambda x: {1, 2}, X)


def test_a_tensor_that_left_its_trace_is_refused():
    kept = []
    trace(lambda x: kept.append(x) or x, X)
    (leaked,) = kept
    assert isinstance(leaked, Node)
    with pytest.raises(TraceError, match="two traces"):
        trace(lambda x: x + leaked, X)
    with pytest.raises(TraceError, match="left the trace that made it"):
        trace(lambda x: leaked, X)
    with pytest.raises(TraceError, match="left its trace and was passed as an argument"):
        trace(lambda x: x, leaked)
    with pytest.raises(TraceError, match="NumPy cannot read"):
        np.asarray(leaked)
    with pytest.raises(TraceError, match="cannot be stored"):
        nn.Parameter(leaked)
    with pytest.raises(TraceError, match="only while a function is traced"):
        F.relu(np.ones(3))


# The hook.


def test_a_module_called_with_arrays_goes_through_the_hook(monkeypatch):
    calls = []
    monkeypatch.setattr(hook, "call_module", lambda *call: calls.append(call) or "result")
    model, x = Net(), np.ones((2, 3), "float32")
    assert model(x, shift=x) == "result"
    ((module, args, kwargs),) = calls
    assert module is model
    assert args[0] is kwargs["shift"] is x


def test_without_a_hook_the_error_says_so(monkeypatch):
    monkeypatch.setattr(hook, "call_module", hook._unset)
    with pytest.raises(Error, match="Scale was called with arrays, and nothing is installed"):
        Scale()(np.ones((2, 3)))
