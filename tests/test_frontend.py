"""Modules, parameters, tracing and weight files: what users write models in."""

import copy
import gc
import subprocess
import sys
import textwrap
import threading
import weakref
from typing import NamedTuple

import numpy as np
import pytest
import torch
from helpers.traced import call, outputs, run

from dlc.errors import (
    ArgumentError,
    DTypeError,
    Error,
    ExecutionError,
    ShapeError,
    TraceError,
    WeightsError,
)
from dlc.frontend import functional as F
from dlc.frontend import hook, models, nn, tensors
from dlc.frontend.module import version_of
from dlc.frontend.scope import active
from dlc.frontend.trace import flatten_arguments, trace
from dlc.frontend.weights import load_weights, read_weights, save_weights
from dlc.ir.node import Node
from dlc.ir.sizes import Dim
from dlc.ir.types import TensorSpec

X = TensorSpec((2, 3))


def here():
    """The caller's line."""
    return sys._getframe(1).f_lineno


class Scale(nn.Module):
    """A layer with a parameter, a buffer and some arithmetic on both."""

    def __init__(self, size=3):
        super().__init__()
        self.weight = nn.Parameter(np.arange(1.0, size + 1.0, dtype="float32"))
        self.register_buffer("offset", np.ones(size, "float32"))
        self.register_buffer("unsaved", np.zeros(size, "float32"), persistent=False)

    def forward(self, x):
        return x * self.weight + self.offset + self.unsaved


class TorchScale(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.arange(1.0, 4.0))
        self.register_buffer("offset", torch.ones(3))
        self.register_buffer("unsaved", torch.zeros(3), persistent=False)


def tree(library, scale):
    """A tree with lists, dicts, shared modules and shared parameters, in dlc or PyTorch."""

    class Tree(library.Module):
        def __init__(self):
            super().__init__()
            self.first = library.Linear(3, 3)
            self.none = None
            self.blocks = library.ModuleList([scale(), library.Linear(3, 3, bias=False)])
            self.named = library.ModuleDict({"a": library.ReLU(), "b": library.BatchNorm1d(3)})
            self.again = self.first
            self.chain = library.Sequential(library.Linear(3, 4), library.Tanh())
            self.tied = library.Linear(3, 3)
            self.tied.weight = self.blocks[1].weight
            self.register_parameter("absent", None)

    return Tree()


# The module tree.


def test_the_tree_is_walked_as_pytorchs():
    ours, theirs = tree(nn, Scale), tree(torch.nn, TorchScale)
    for walk in ("named_modules", "named_children", "named_parameters", "named_buffers"):
        assert [n for n, _ in getattr(ours, walk)()] == [n for n, _ in getattr(theirs, walk)()]
    for walk in ("named_modules", "named_parameters", "named_buffers"):
        names = [n for n, _ in getattr(ours, walk)(prefix="p", remove_duplicate=False)]
        assert names == [n for n, _ in getattr(theirs, walk)(prefix="p", remove_duplicate=False)]
    for walk in ("modules", "children", "parameters", "buffers"):
        assert len(list(getattr(ours, walk)())) == len(list(getattr(theirs, walk)()))
    assert [n for n, _ in ours.named_parameters(recurse=False)] == []
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert list(ours.state_dict("p.")) == [f"p.{name}" for name in ours.state_dict()]


def test_the_tree_prints_as_pytorchs():
    assert repr(tree(nn, nn.Identity)) == repr(tree(torch.nn, torch.nn.Identity))


def test_a_path_leads_to_its_module_or_value():
    model = tree(nn, Scale)
    assert model.get_submodule("") is model
    assert model.get_submodule("blocks.0") is model.blocks[0]
    assert model.get_parameter("blocks.1.weight") is model.tied.weight
    assert model.get_buffer("named.b.running_var") is model.named["b"].running_var
    with pytest.raises(AttributeError, match="'blocks' is a ModuleList, no Parameter"):
        model.get_parameter("blocks")
    with pytest.raises(AttributeError, match="has no attribute 'missing'"):
        model.get_submodule("blocks.missing")


def test_an_attribute_means_one_thing_at_a_time():
    module = nn.Module()
    module.x = 5
    module.x = nn.Parameter([1.0])
    assert "x" not in module.__dict__
    module.x = nn.ReLU()
    assert list(module.named_parameters()) == []
    module.x = nn.Buffer([2.0])
    assert list(module.children()) == []
    assert list(module.state_dict()) == ["x"]
    module.x = None
    assert module.x is None
    assert list(module.state_dict()) == []
    del module.x
    with pytest.raises(AttributeError, match="'Module' object has no attribute 'x'"):
        _ = module.x
    with pytest.raises(AttributeError):
        del module.x


def test_the_second_module_of_a_name_takes_the_firsts_place():
    module = nn.Module()
    module.layer = nn.Linear(2, 3)
    module.layer = nn.Linear(2, 4)
    assert {name: v.shape for name, v in module.state_dict().items()} == {
        "layer.weight": (4, 2),
        "layer.bias": (4,),
    }


def test_a_registered_name_keeps_its_kind():
    module = nn.Linear(2, 3)
    with pytest.raises(DTypeError, match="weight expects a Parameter or None, got ndarray"):
        module.weight = np.zeros((3, 2))
    module.child = nn.ReLU()
    with pytest.raises(DTypeError, match=r"Linear\.child expects a Module or None, got int"):
        module.child = 3
    for register in (module.register_parameter, module.register_buffer, module.add_module):
        for name, message in (
            ("a.b", "without dots"),
            ("", "without dots"),
            ("forward", "already"),
        ):
            with pytest.raises(ArgumentError, match=message):
                register(name, None)
    with pytest.raises(DTypeError, match="'p' expects a Parameter or None, got ndarray"):
        module.register_parameter("p", np.zeros(3))
    with pytest.raises(DTypeError, match="'m' expects a Module or None, got int"):
        module.add_module("m", 3)


def test_a_forgotten_super_init_is_told():
    class Forgetful(nn.Module):
        def __init__(self):
            self.layer = nn.Linear(2, 3)

    with pytest.raises(Error, match=r"Forgetful.*call super\(\).__init__\(\) first"):
        Forgetful()
    with pytest.raises(Error, match="Module has no forward"):
        trace(nn.Module(), X)


def test_containers():
    chain = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 4))
    assert [type(m).__name__ for m in chain[1:]] == ["ReLU", "Linear"]
    assert list(chain[1:].state_dict()) == ["1.weight", "1.bias"]
    assert chain[-1] is chain[2]
    chain[1] = nn.Tanh()
    chain.append(nn.ReLU()).insert(0, nn.Identity()).extend([nn.SiLU()])
    names = ["Identity", "Linear", "Tanh", "Linear", "ReLU", "SiLU"]
    assert [type(m).__name__ for m in chain] == names
    del chain[0]
    assert len(chain) == 5
    assert [name for name, _ in chain.named_children()] == ["0", "1", "2", "3", "4"]
    listed = nn.ModuleList(nn.Linear(2, n) for n in (3, 4))
    assert type(listed[:1]) is nn.ModuleList
    assert listed[:1][0] is listed[0]
    named = nn.ModuleDict({"a": nn.ReLU()})
    named["b"] = nn.Tanh()
    assert list(named) == list(named.keys()) == ["a", "b"]
    assert "b" in named
    del named["a"]
    assert len(named) == len(list(named.values())) == len(list(named.items())) == 1
    with pytest.raises(ArgumentError, match=r"one of its names \(b\), got 'a'"):
        named["a"]
    by_name = nn.Sequential({"fc": nn.Linear(2, 3), "act": nn.ReLU()})
    assert list(by_name.state_dict()) == ["fc.weight", "fc.bias"]


def test_modes_and_flags_reach_the_whole_tree():
    model = tree(nn, Scale)
    assert model.eval() is model
    assert not any(module.training for module in model.modules())
    model.train()
    assert all(module.training for module in model.modules())
    model.requires_grad_(False)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    seen = []
    model.apply(seen.append)
    assert seen[-1] is model
    assert len(seen) == 1 + sum(len(list(m.children())) for m in model.modules())


def test_element_types_change_together():
    model = tree(nn, Scale).double()
    dtypes = {name: value.dtype.name for name, value in model.state_dict().items()}
    assert dtypes.pop("named.b.num_batches_tracked") == "int64"
    assert set(dtypes.values()) == {"float64"}
    assert model.tied.weight is model.blocks[1].weight
    assert model.float().first.weight.dtype == "float32"
    with pytest.raises(DTypeError, match="float32 or float64, got int64"):
        model.to("int64")


def test_a_deep_copy_shares_within_itself_only():
    model = tree(nn, Scale)
    model.first.weight.requires_grad_(False)
    twin = copy.deepcopy(model)
    assert twin.again is twin.first
    assert twin.tied.weight is twin.blocks[1].weight
    assert not twin.first.weight.requires_grad
    assert list(twin.state_dict()) == list(model.state_dict())  # `unsaved` stays out
    before = model.first.weight.numpy()
    twin.first.weight.copy_(0.0)
    assert model.first.weight.numpy() is not twin.first.weight.numpy()
    np.testing.assert_array_equal(model.first.weight.numpy(), before)


def test_a_module_that_was_called_can_be_copied():
    model, x = Net(), np.ones((2, 3), "float32")
    before = model(x)
    twin = copy.deepcopy(model)
    twin.layers[0].weight.copy_(0.0)
    np.testing.assert_array_equal(model(x), before)
    assert not np.array_equal(twin(x), before)


def test_a_model_may_use_any_name_for_its_own():
    module = nn.Module()
    module.version, module.changed, module.state = 2, True, [1]
    assert (module.version, module.changed, module.state) == (2, True, [1])


# State dicts.


def test_state_dicts_move_both_ways():
    ours, theirs = tree(nn, Scale), tree(torch.nn, TorchScale)
    assert ours.load_state_dict(theirs.state_dict()) == ([], [])
    for name, value in theirs.state_dict().items():
        np.testing.assert_array_equal(ours.state_dict()[name], value)
    ours.first.weight.copy_(3.0)
    arrays = {name: torch.from_numpy(value) for name, value in ours.state_dict().items()}
    theirs.load_state_dict(arrays)
    assert (theirs.first.weight == 3).all()


def test_a_state_dict_is_a_copy():
    layer = nn.Linear(2, 3)
    state = layer.state_dict()
    state["weight"][:] = 7
    assert not (layer.weight.numpy() == 7).any()


def test_a_state_dict_that_does_not_fit_changes_nothing():
    layer = nn.BatchNorm1d(3)
    before = layer.state_dict()
    state = layer.state_dict() | {"weight": np.full(3, 2.0), "bias": np.zeros((2, 3))}
    state |= {"running_mean": np.zeros(3, complex), "extra": np.zeros(1)}
    del state["running_var"]
    with pytest.raises(WeightsError) as caught:
        layer.load_state_dict(state)
    assert str(caught.value).splitlines() == [
        "the weights do not fit BatchNorm1d, and nothing was loaded:",
        "  misshapen: bias expects (3,), got (2, 3)",
        "  mistyped: running_mean expects float32, got complex128",
        "  missing: running_var (3,)",
        "  unexpected: extra",
    ]
    for name, value in before.items():
        np.testing.assert_array_equal(layer.state_dict()[name], value)
    with pytest.raises(WeightsError, match="misshapen"):
        layer.load_state_dict(state, strict=False)
    good = {"weight": np.full(3, 2.0), "extra": np.zeros(1)}
    missing = ["bias", "running_mean", "running_var", "num_batches_tracked"]
    assert layer.load_state_dict(good, strict=False) == (missing, ["extra"])
    assert (layer.weight.numpy() == 2).all()


def test_values_of_other_precision_are_converted():
    layer = nn.Linear(2, 1)
    values = [[0.5, 0.25]]
    for weight in (
        torch.tensor(values, dtype=torch.bfloat16),
        torch.tensor(values, dtype=torch.float16, requires_grad=True),
        torch.tensor(values, dtype=torch.float64),
        np.array(values, "float16"),
        values,
    ):
        layer.load_state_dict({"weight": weight, "bias": [0]})
        assert layer.weight.dtype == "float32"
        np.testing.assert_array_equal(layer.weight.numpy(), values)


# Parameters.


def test_a_parameter_owns_its_storage():
    array = np.ones((2, 3), "float32")
    parameter = nn.Parameter(array)
    array[:] = 7
    assert (parameter.numpy() == 1).all()
    for view in (parameter.numpy(), np.asarray(parameter), parameter.data):
        with pytest.raises(ValueError, match="read-only"):
            view[0, 0] = 5
    assert np.array(parameter, dtype="float64").dtype == "float64"
    assert (parameter.shape, parameter.dtype, parameter.ndim) == ((2, 3), "float32", 2)
    assert (parameter.numel(), parameter.size(0), parameter.dim(), len(parameter)) == (6, 2, 2, 2)
    assert repr(parameter).startswith("Parameter containing:\narray([[1., 1., 1.]")
    assert nn.Parameter(2.0).item() == 2.0
    assert nn.Parameter([1, 2.5]).tolist() == [1.0, 2.5]
    assert nn.Parameter([1, 2.5]).dtype == "float32"
    assert nn.Parameter(np.zeros(2)).dtype == "float64"
    assert nn.Parameter(parameter).numpy() is not parameter.numpy()


def test_a_new_value_has_a_new_version_and_leaves_the_old_one_alone():
    parameter = nn.Parameter(np.zeros(3, "float32"))
    old, version = parameter.numpy(), parameter.version
    value = np.ones(3, "float32")
    parameter.data = value
    value[:] = 5
    assert parameter.version > version
    assert (old == 0).all()
    assert (parameter.numpy() == 1).all()
    assert (parameter.copy_(2).numpy() == 2).all()
    version = parameter.version
    with pytest.raises(ShapeError, match=r"Parameter expects an array of shape \(3,\), got \(4,\)"):
        parameter.data = np.zeros(4, "float32")
    with pytest.raises(DTypeError, match=r"of type float32, got float64.*\.astype\(np\.float32\)"):
        parameter.data = np.zeros(3)
    with pytest.raises(DTypeError, match="of type float32, got complex128"):
        parameter.copy_(np.zeros(3, complex))
    assert parameter.version == version


def test_a_parameter_holds_floats_and_a_buffer_anything():
    with pytest.raises(DTypeError, match=r"float32, float64, got int64.*register_buffer"):
        nn.Parameter([1, 2])
    with pytest.raises(DTypeError, match="got float16"):
        nn.Parameter(np.zeros(2, "float16"))
    with pytest.raises(DTypeError, match="got complex64"):
        nn.Buffer(np.zeros(2, "complex64"))
    for dtype in ("bool", "uint8", "int32", "int64", "float32", "float64"):
        assert nn.Buffer(np.zeros(2, dtype)).dtype == dtype


def test_arithmetic_on_a_parameter_needs_a_trace():
    parameter = nn.Parameter([1.0])
    for use in (lambda: parameter * 2, lambda: np.ones(1) + parameter, lambda: parameter.sum()):
        with pytest.raises(TraceError, match=r"only while a model is traced.*\.numpy\(\)"):
            use()
    assert parameter
    assert not nn.Parameter(0.0)


def test_a_buffer_takes_arrays():
    layer = Scale()
    offset = layer.offset
    layer.offset = np.full(3, 4.0, "float32")
    assert layer.offset is offset
    assert (offset.numpy() == 4).all()
    layer.unsaved = np.zeros(5)
    assert layer.unsaved.shape == (5,)
    assert "unsaved" not in layer.state_dict()


# Versions: what compiled calls are keyed by.


def test_the_version_of_a_module_follows_every_change_below_it():
    model = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.BatchNorm1d(3), nn.ReLU()))
    norm = model[1][0]

    def changes(action):
        before = version_of(model)
        action()
        return version_of(model) != before

    assert changes(lambda: setattr(norm, "eps", 0.1))
    assert not changes(lambda: setattr(norm, "eps", norm.eps))
    assert changes(lambda: setattr(model[1], "1", nn.Tanh()))
    assert changes(lambda: model[1].append(nn.ReLU()))
    assert changes(lambda: norm.requires_grad_(False))
    assert changes(lambda: norm.weight.retype("float64"))
    assert changes(lambda: norm.register_buffer("more", [1.0]))
    assert changes(lambda: delattr(norm, "more"))
    assert not changes(lambda: norm.weight.copy_(2.0))
    assert not changes(lambda: nn.Linear(2, 2).weight.copy_(0.0))  # another model


def test_the_version_of_a_module_comes_back_with_its_modes():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    training = version_of(model)
    inference = version_of(model.eval())
    assert inference != training
    assert version_of(model.train()) == training
    model[1].eval()
    assert version_of(model) not in (training, inference)


def test_what_forward_sets_does_not_change_the_version():
    class Counting(nn.Module):
        calls = 0

        def forward(self, x):
            self.calls = self.calls + 1
            return x + 1

    model = Counting()
    before = version_of(model)
    trace(model, X)
    assert model.calls == 1
    assert version_of(model) == before


# Tracing.


def origins(node):
    return {(origin.module, origin.file.rsplit("/", 1)[-1], origin.line) for origin in node.origins}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Scale(), Scale()])

    def forward(self, x, *, shift=None):
        for layer in self.layers:
            x = layer(x)
        if shift is not None:
            x = x + shift
        return F.relu(x)


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
    assert origins(output) == {("", "test_frontend.py", line)}
    scaled = output.inputs[0].inputs[0]
    line = Scale.forward.__code__.co_firstlineno + 1
    assert origins(scaled) == {("layers.1", "test_frontend.py", line)}
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
    with pytest.raises(DTypeError, match=r"of type float32, got int64 .*test_frontend.py:\d+"):
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
    assert f"at test_frontend.py:{lines[0]} " in str(caught.value)
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


# Weight files.


def test_weights_go_to_a_file_and_back(tmp_path):
    model, twin, path = tree(nn, Scale), tree(nn, Scale), tmp_path / "w.safetensors"
    model.named["b"].num_batches_tracked.copy_(5)
    save_weights(model, path)
    assert load_weights(twin, path) == ([], [])
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value, twin.state_dict()[name])
        assert value.dtype == twin.state_dict()[name].dtype
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


def test_pytorchs_tools_read_and_write_the_file(tmp_path):
    from safetensors.torch import load_file, save_file

    path = tmp_path / "w.safetensors"
    theirs, ours = torch.nn.Linear(3, 4), nn.Linear(3, 4)
    save_file(theirs.state_dict(), path)
    load_weights(ours, path)
    np.testing.assert_array_equal(ours.weight.numpy(), theirs.weight.detach())
    save_weights(nn.Linear(3, 4), path)
    theirs.load_state_dict(load_file(path))
    save_file({name: value.bfloat16() for name, value in theirs.state_dict().items()}, path)
    load_weights(ours, path)
    np.testing.assert_array_equal(ours.weight.numpy(), theirs.weight.bfloat16().detach().float())


def test_a_file_that_does_not_fit_or_is_damaged(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(nn.Linear(3, 4), path)
    layer = nn.Linear(3, 5)
    before = layer.state_dict()
    with pytest.raises(WeightsError, match=r"misshapen: weight expects \(5, 3\), got \(4, 3\)"):
        load_weights(layer, path)
    data = path.read_bytes()
    for damaged in (b"", data[:20], data[:-4], b"\xff" * 100, data + b"x"):
        path.write_bytes(damaged)
        with pytest.raises(WeightsError, match="is no complete safetensors file"):
            load_weights(layer, path)
    with pytest.raises(FileNotFoundError):
        load_weights(layer, tmp_path / "none.safetensors")
    np.testing.assert_array_equal(layer.weight.numpy(), before["weight"])


def test_a_full_disk_leaves_the_old_file(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(nn.Linear(3, 4), path)
    before = path.read_bytes()
    program = """
        import resource, signal, sys
        from dlc.errors import ExecutionError
        from dlc.frontend import nn
        from dlc.frontend.weights import save_weights
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        try:
            save_weights(nn.Linear(300, 400), sys.argv[1])
        except ExecutionError as error:
            print(error)
    """
    arguments = [sys.executable, "-c", textwrap.dedent(program), path]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert "cannot write the weights" in done.stdout
    assert "what was there before is unchanged" in done.stdout
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


def test_a_folder_that_is_missing_or_forbidden(tmp_path):
    with pytest.raises(ExecutionError, match="cannot write the weights"):
        save_weights(nn.Linear(3, 4), tmp_path / "no" / "w.safetensors")
    assert list(read_weights_of(nn.Linear(3, 4), tmp_path)) == ["bias", "weight"]


def read_weights_of(model, folder):
    save_weights(model, folder / "m.safetensors")
    return sorted(read_weights(folder / "m.safetensors"))
