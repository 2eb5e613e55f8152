"""Modules, parameters, tracing and weight files: what users write models in."""

import copy
import os
import re
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.traced import Net, Scale, X

from dlc.errors import (
    ArgumentError,
    DTypeError,
    Error,
    ExecutionError,
    ShapeError,
    TraceError,
    WeightsError,
)
from dlc.frontend import nn
from dlc.frontend.trace import trace
from dlc.frontend.weights import load_weights, save_weights


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
    every = len(list(ours.modules(remove_duplicate=False)))
    assert every == len(list(theirs.modules(remove_duplicate=False)))
    assert every > len(list(ours.modules()))
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
    names = list(torch.nn.Sequential(torch.nn.Tanh(), torch.nn.Linear(3, 4))[1:].state_dict())
    assert list(nn.Sequential(nn.Tanh(), nn.Linear(3, 4))[1:].state_dict()) == names
    assert [name for name, _ in chain[1:].append(nn.ReLU()).named_children()] == ["1", "2", "3"]
    assert chain[-1] is chain[2]
    chain[1] = nn.Tanh()
    chain.append(nn.ReLU()).insert(0, nn.Identity()).extend([nn.SiLU()])
    names = ["Identity", "Linear", "Tanh", "Linear", "ReLU", "SiLU"]
    assert [type(m).__name__ for m in chain] == names
    del chain[0]
    assert len(chain) == 5
    assert [name for name, _ in chain.named_children()] == ["0", "1", "2", "3", "4"]
    assert isinstance(chain.pop(-1), nn.SiLU)
    assert isinstance(chain.pop(0), nn.Linear)
    assert [name for name, _ in chain.named_children()] == ["0", "1", "2"]
    listed = nn.ModuleList(nn.Linear(2, n) for n in (3, 4))
    assert type(listed[:1]) is nn.ModuleList
    assert listed[1:][0] is listed[1]
    assert list(listed[1:].state_dict()) == ["0.weight", "0.bias"]
    named = nn.ModuleDict([("a", nn.ReLU())])
    named["b"] = nn.Tanh()
    assert list(named) == list(named.keys()) == ["a", "b"]
    assert "b" in named
    del named["a"]
    assert len(named) == len(list(named.values())) == len(list(named.items())) == 1
    for missing in (named.__getitem__, named.pop):
        with pytest.raises(ArgumentError, match=r"one of its names \(b\), got 'a'"):
            missing("a")
    assert isinstance(named.pop("b"), nn.Tanh)
    named.update({"c": nn.ReLU()})
    named.clear()
    assert not len(named)
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
    with pytest.raises(DTypeError, match="float32 or float64, or 'cpu', got 'int64'"):
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


# Changes: what compiled calls hold for (tests/test_met.py has the rest).


def holds(model):
    """A question: is the model still as it was when it was traced?"""
    met = trace(model, X).met
    return lambda: met.holds(model)


def test_compiled_code_holds_until_something_below_changes():
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.BatchNorm1d(3), nn.ReLU())).eval()
    norm = model[1][0]

    def changes(action):
        still = holds(model)
        action()
        return not still()

    assert changes(lambda: setattr(norm, "eps", 0.1))
    assert not changes(lambda: setattr(norm, "eps", norm.eps))
    assert changes(lambda: setattr(model[1], "1", nn.Tanh()))
    assert changes(lambda: model[1].append(nn.ReLU()))
    assert changes(lambda: norm.requires_grad_(False))
    assert changes(lambda: norm.register_buffer("more", [1.0]))
    assert changes(lambda: delattr(norm, "more"))
    assert not changes(lambda: norm.weight.copy_(2.0))
    assert not changes(lambda: nn.Linear(2, 2).weight.copy_(0.0))  # another model
    assert changes(lambda: model.double())


def test_compiled_code_holds_again_with_its_modes():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    still = holds(model)
    model.eval()
    assert not still()
    model.train()
    assert still()
    model[1].eval()
    assert not still()


def test_what_forward_sets_changes_nothing():
    class Counting(nn.Module):
        calls = 0

        def forward(self, x):
            self.calls = self.calls + 1
            return x + 1

    model = Counting()
    still = holds(model)
    assert model.calls == 1
    assert still()


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
    with pytest.raises(WeightsError, match="expects a safetensors file, got the folder"):
        load_weights(layer, tmp_path)
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


def test_a_place_where_no_file_can_be(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("as it was")
    for place in ("none/w.safetensors", "folder", "file/w.safetensors"):
        with pytest.raises(ExecutionError, match="cannot write the weights"):
            save_weights(nn.Linear(3, 4), tmp_path / place)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]
    assert not list((tmp_path / "folder").iterdir())
    assert (tmp_path / "file").read_text() == "as it was"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_file_has_the_permissions_of_any_other(tmp_path, umask, mode):
    path = tmp_path / "w.safetensors"
    before = os.umask(umask)
    try:
        save_weights(nn.Linear(3, 4), path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == mode


# Documentation.


def test_the_examples_of_the_documentation_run(capsys):
    page = Path(__file__).parent.parent / "docs" / "dsl.md"
    names = {}
    for example in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        exec(compile(example, page.name, "exec"), names)
    assert "misshapen: hidden.weight expects (32, 8), got (3, 3)" in capsys.readouterr().out
