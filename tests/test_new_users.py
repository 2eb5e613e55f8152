"""What new users met: each behaves as in PyTorch, or says what to do instead."""

import copy
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import dlc
from dlc import Dim, TensorSpec, data, nn, optim
from dlc import functional as F
from dlc.errors import (
    ArgumentError,
    CacheWarning,
    DTypeError,
    Error,
    ExecutionError,
    ShapeError,
    TraceError,
    WeightsError,
)
from dlc.ir.node import apply
from dlc.runtime.cache import Cache, digest

DSL = Path(__file__).parent.parent / "docs" / "dsl.md"
X = np.arange(12, dtype="float32").reshape(4, 3) / 7
BYTES = np.arange(4, dtype="uint8")
ROWS = TensorSpec((Dim("n", 1, 8), 3))


def same_as_torch(function, *arrays):
    """One function of tensors gives the same in dlc and PyTorch, element type and shape too."""
    ours = dlc.jit(function)(*arrays)
    theirs = function(*map(torch.from_numpy, arrays)).numpy()
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["sum", "mean", "amax", "amin", "var", "std", "any", "all"])
@pytest.mark.parametrize("dim", [(), []])
def test_no_dimensions_mean_what_they_mean_in_pytorch(name, dim):
    same_as_torch(lambda x: getattr(x, name)(dim), X)
    same_as_torch(lambda x: getattr(x, name)(dim, keepdim=True), X)


def test_a_product_over_no_dimensions_is_one_over_all():
    np.testing.assert_allclose(dlc.jit(lambda x: x.prod(()))(X + 1), np.prod(X + 1), rtol=1e-5)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, p: (x > 1) ** 2,
        lambda x, p: (x > 1) ** 0,
        lambda x, p: p.any(),
        lambda x, p: p.all(0),
        lambda x, p: x.add(x, alpha=2),
        lambda x, p: x.sub(x, alpha=0.5),
        lambda x, p: p.add(p, alpha=2),
        lambda x, p: x.div(0.7, rounding_mode="trunc"),
        lambda x, p: x.div(0.7, rounding_mode="floor"),
        lambda x, p: (p.long() - 2).div(2, rounding_mode="trunc"),
        lambda x, p: (p.long() - 2).div(-2, rounding_mode="floor"),
        lambda x, p: x.round(decimals=2),
        lambda x, p: (x * 100).round(decimals=-1),
        lambda x, p: x[:, :0].softmax(1),
        lambda x, p: x[:, :0].log_softmax(1),
        lambda x, p: x.clone() + x.var(0, unbiased=True),
    ],
)
def test_a_function_gives_what_pytorch_gives(function):
    same_as_torch(function, X, BYTES)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("pad", [(2, 1), (0, 3), (1, 1, 2, 0)])
def test_edges_are_padded_as_in_pytorch(mode, pad, rng):
    x = rng.normal(size=(2, 3, 4, 5)).astype("float32")
    ours = dlc.compile(lambda x: F.pad(x, pad, mode), TensorSpec((Dim("n", 1, 4), 3, 4, 5)))(x)
    full = (*pad, 0, 0) if len(pad) == 2 else pad
    theirs = torch.nn.functional.pad(torch.from_numpy(x), full, mode)
    np.testing.assert_array_equal(ours, theirs.numpy())


def test_sums_of_windows_over_a_divisor(rng):
    x = rng.normal(size=(1, 2, 6, 6)).astype("float32")
    for padding in (0, 1):
        ours = nn.AvgPool2d(3, 2, padding, divisor_override=4)(x)
        layer = torch.nn.AvgPool2d(3, 2, padding, divisor_override=4)
        np.testing.assert_allclose(ours, layer(torch.from_numpy(x)).numpy(), 1e-5, 1e-6)


@pytest.mark.parametrize(
    "function",
    [lambda x: 1 - (x > 1), lambda x: (x > 1) - x, lambda x: x - True, lambda x: dlc.sub(x > 1, x)],
)
def test_a_difference_of_bools_is_refused_as_in_pytorch(function):
    with pytest.raises(DTypeError, match=r"sub expects numbers, got a bool at .*py:\d+; invert a"):
        dlc.trace(function, X)


def test_nothing_equals_none():
    def function(x):
        assert (x == None) is False  # noqa: E711
        assert (x != None) is True  # noqa: E711
        return x

    dlc.trace(function, X)


# Constants of symbolic size, and sizes in arithmetic.


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda a: dlc.zeros(a.shape[0], 4), np.zeros((4, 4))),
        (lambda a: dlc.full((a.shape[0], 2), 1.5), np.full((4, 2), 1.5)),
        (dlc.zeros_like, np.zeros((4, 3))),
        (lambda a: (dlc.zeros(a.shape[0]), a)[0], np.zeros(4)),
        (lambda a: dlc.eye(a.shape[0]), np.eye(4)),
        (lambda a: dlc.eye(a.shape[0], 2), np.eye(4, 2)),
        (lambda a: dlc.eye(2, a.shape[0], dtype="int64"), np.eye(2, 4)),
        (lambda a: a * a.shape[0] ** 2, X * 16),
        (lambda a: a * dlc.tensor(a.shape[0]).to("float32") ** -0.5, X / 2),
    ],
)
def test_what_a_symbolic_size_makes(function, expected):
    for target in ("cpu", "reference"):
        made = dlc.compile(function, ROWS, target=target)(X)
        np.testing.assert_allclose(made, expected, rtol=1e-6)


@pytest.mark.parametrize(
    "function",
    [
        lambda a: a * (a.shape[0] / 2),
        lambda a: a * (2 / a.shape[0]),
        lambda a: a * a.shape[0] ** -0.5,
        lambda a: a * (a.shape[0] * 0.5),
        lambda a: a * (0.5 - a.shape[0]),
    ],
)
def test_a_fraction_of_a_symbolic_size_names_line_and_way_out(function):
    with pytest.raises(ShapeError, match=r"are integers, and .* at test_new_users.py:\d+; divide"):
        dlc.trace(function, ROWS)


def test_two_dims_of_one_name_are_told_apart_by_their_ranges():
    specs = [TensorSpec((Dim("n", 1, most),)) for most in (8, 9)]
    with pytest.raises(ShapeError, match=r"n \(n from 1 to 8\) and n \(n from 1 to 9\)"):
        dlc.trace(lambda a, b: a + b, *specs)


# What errors say.


def test_an_index_is_reported_as_it_was_given():
    pick = dlc.jit(lambda x, index: x[index])
    np.testing.assert_array_equal(pick(X, np.array([0, -4, -1])), X[[0, -4, -1]])
    for bad in (-5, 4):
        with pytest.raises(dlc.IndexError, match=rf"got {bad} at \(1,\)"):
            pick(X, np.array([0, bad]))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (torch.nn.ReLU(), "a ReLU of PyTorch. Write the model with dlc.nn"),
        (3, "got 3 of type int"),
        (nn.ReLU, r"the class ReLU. Make one: ReLU\(\)"),
    ],
)
def test_what_is_no_function_of_tensors(function, message):
    with pytest.raises(ArgumentError, match=message):
        dlc.compile(function, ROWS)


@pytest.mark.parametrize("shape", [(3, 4), [3, 4], "3x4"])
def test_a_shape_is_no_spec(shape):
    with pytest.raises(ArgumentError, match=r"a shape. Write dlc.TensorSpec\(\(3, 4\)\)"):
        dlc.compile(nn.ReLU(), shape)


def test_a_shape_may_be_an_argument():
    assert dlc.compile(lambda x, shape: x.reshape(shape), X, (3, 4))(X, (3, 4)).shape == (3, 4)


@pytest.mark.parametrize("shape", [3, "34", (-1, 3), (2.5, 3)])
def test_a_spec_refuses_what_is_no_shape(shape):
    with pytest.raises(ShapeError, match="size"):
        TensorSpec(shape)


def test_equal_specs_are_equal():
    assert TensorSpec((1, Dim("n", 1, 2))) == TensorSpec((1, Dim("n", 1, 2)))
    assert len({TensorSpec((1, 2)), TensorSpec((1, 2)), TensorSpec((1, 2), "int64")}) == 2
    assert TensorSpec((1, 2)) != TensorSpec((1, 2), name="x")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (torch.nn.Linear(3, 2), r"got a Linear. Of a PyTorch module, its state_dict\(\)"),
        (None, "a mapping of names to arrays, got None"),
        ("x.pt", "got 'x.pt'. .* of a file, dlc.load_weights"),
        (torch.nn.Linear(3, 2, device="meta").state_dict(), "weight is a tensor of .* meta device"),
        ({"weight": "abc", "bias": np.zeros(2)}, "weight expects float32, got <U3"),
        ({"weight": [[1, 2], [3]], "bias": np.zeros(2)}, "weight cannot be read as an array"),
    ],
)
def test_a_state_dict_that_is_none(state, message):
    with pytest.raises(WeightsError, match=message):
        nn.Linear(3, 2).load_state_dict(state)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.MaxPool2d(0), "MaxPool2d: kernel_size expects an integer of at least 1"),
        (lambda: nn.MaxPool2d(2, padding=2), "padding expects at most half of kernel_size=2"),
        (lambda: nn.MaxPool2d(2, dilation=0), "MaxPool2d: dilation expects"),
        (lambda: nn.MaxPool2d(2, return_indices=True), "return_indices=False, got True"),
        (lambda: nn.AvgPool2d((2, 2, 2)), r"AvgPool2d: kernel_size .* got \(2, 2, 2\)"),
        (lambda: nn.AvgPool2d(2, stride=0), "AvgPool2d: stride"),
        (lambda: nn.AvgPool2d(2, divisor_override=0), "divisor_override expects an integer"),
        (lambda: nn.AdaptiveAvgPool2d(-1), "AdaptiveAvgPool2d: output_size expects"),
        (lambda: nn.GELU("foo"), "approximate to be 'none' or 'tanh', got 'foo'"),
        (lambda: nn.Softmax(1.5), "Softmax: dim expects an integer, a dimension, got 1.5"),
        (lambda: nn.Flatten("a"), "Flatten: start_dim expects an integer"),
        (lambda: nn.Dropout("a"), "Dropout expects p from 0 to 1, got 'a'"),
        (lambda: nn.Linear(2, 3, device="cuda"), "Linear: device expects None or 'cpu'"),
        (lambda: nn.Embedding(3, 2, max_norm=1.0), "max_norm expects None, got 1.0"),
    ],
)
def test_layers_refuse_early(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()


def test_arguments_at_pytorchs_defaults_are_taken():
    nn.MaxPool2d(2, 2, 0, 1, False, True)
    nn.AvgPool2d(2, divisor_override=None)
    nn.Embedding(3, 2, None, None, device=None)
    for layer in (nn.Linear, nn.Embedding):
        layer(3, 2, device="cpu")
    nn.Conv2d(3, 2, 1, device=None)
    assert nn.BatchNorm2d(3, device="cpu").to("cpu").weight.dtype == nn.LayerNorm(3).weight.dtype


@pytest.mark.parametrize("name", ["half", "cuda", "register_forward_hook", "zero_grad"])
def test_what_modules_do_not_have_is_explained(name):
    with pytest.raises(AttributeError, match=f"no attribute '{name}'; "):
        getattr(nn.ReLU(), name)
    with pytest.raises(DTypeError, match=r"or 'cpu', got 'cuda'. Models compute on the CPU"):
        nn.ReLU().to("cuda")


def test_lists_of_modules_add_up():
    made = nn.ModuleList([nn.ReLU()]) + nn.ModuleList([nn.Tanh()])
    assert [type(each).__name__ for each in made] == ["ReLU", "Tanh"]
    assert isinstance(made.pop(), nn.Tanh)


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda a: a.add_(1), AttributeError, r"'add_' at .*: use x = x.add\(...\)"),
        (lambda a: a.cumsum(0), AttributeError, "a dlc.Tensor has no attribute 'cumsum' at test_n"),
        (lambda a: a.sofmax(0), AttributeError, "did you mean softmax or"),
        (lambda a: a.sum(axis=0), TypeError, r"Tensor.sum\(\) got an unexpected keyword"),
        (lambda a: a << 1, TypeError, "'Tensor' and 'int'"),
        (lambda a: f"{a:.3f}", TraceError, "a Python number is asked for at test_new_users.py"),
        (
            lambda a: a.to("uint8") + 300,
            DTypeError,
            r"300 is beyond uint8.* beside cast .* at test",
        ),
        (lambda a: a.long().round(decimals=2), DTypeError, "round to decimals expects floats"),
        (lambda a: a.add(a.long(), alpha=0.5), DTypeError, "alpha=0.5 expects floats, got int64"),
        (lambda a: a.div(2, rounding_mode="up"), ArgumentError, "rounding_mode None, 'floor' or"),
    ],
)
def test_errors_name_tensors_as_users_do(function, error, message):
    with pytest.raises(error, match=message):
        dlc.trace(function, X)


def test_a_tensor_in_text_is_described():
    shown = []
    dlc.trace(lambda a: (shown.append(f"{a}"), a)[1], X)
    assert shown == ["<input 'a': float32[4, 3]>"]


def test_a_method_is_jitted_when_bound():
    class Model:
        @dlc.jit
        def method(self, x):
            return x

    with pytest.raises(TraceError, match=r"type Model; .* jit the bound one: obj.f = dlc.jit"):
        Model().method(X)


def test_a_call_is_as_it_was_compiled():
    with pytest.raises(ArgumentError, match=r"by position, got 0. It is called as it was compiled"):
        dlc.compile(nn.ReLU(), X)(input=X)


def test_a_module_does_not_contain_itself():
    inner, outer = nn.Sequential(nn.ReLU()), nn.Sequential()
    outer.inner = inner
    for add in (lambda: inner.add_module("me", inner), lambda: setattr(inner, "outer", outer)):
        with pytest.raises(ArgumentError, match="another module, got one that contains this"):
            add()
    assert list(inner.state_dict()) == []


def test_an_executable_and_a_graph_are_not_copied():
    exe = dlc.compile(nn.ReLU(), X)
    assert repr(exe) == "<Executable of 1 kernels>"
    with pytest.raises(ExecutionError, match=r"native code of this process, .* pickle the model"):
        copy.deepcopy(exe)
    with pytest.raises(TraceError, match=r"neither copied nor pickled; .* dlc.parse"):
        copy.copy(exe.graph.outputs[0])


def test_a_function_returns_tensors_and_no_tuple_of_an_op():
    def function(x):
        return apply("batch_norm_train", x, dlc.ones(3), dlc.zeros(3), eps=1e-5)

    with pytest.raises(TraceError, match=r"3 tensors. Return node.project\(0\)"):
        dlc.trace(function, X)


def test_parts_are_importable_by_their_public_names():
    import dlc.functional
    import dlc.nn as layers
    import dlc.optim
    from dlc.frontend import functional, optim

    assert (layers, dlc.functional, dlc.optim) == (nn, functional, optim)
    assert (dlc.float32, dlc.bool) == ("float32", "bool")
    assert issubclass(Error, Exception)


def test_a_name_that_is_not_there_is_explained():
    for module, name, message in (
        (nn, "GroupNorm", "dlc.nn has no 'GroupNorm'; docs/dsl.md lists what PyTorch has"),
        (nn, "Conv1d", "dlc.nn has no 'Conv1d'; nearest: Conv2d; docs/dsl.md lists what PyTorch"),
        (nn, "relu", "dlc.nn has no 'relu'; nearest: ReLU, "),
        (F, "interpolate", "dlc.functional has no 'interpolate'; .*docs/dsl.md lists what PyTorch"),
        (optim, "LBFGS", "dlc.optim has no 'LBFGS'"),
        (optim.lr_scheduler, "CyclicLR", "dlc.optim.lr_scheduler has no 'CyclicLR'; nearest: One"),
        (
            data,
            "DataLoader",
            r"dlc.data has no 'DataLoader'; use dlc.data.batches\(data, ",
        ),
    ):
        assert not hasattr(module, name)
        with pytest.raises(Error, match=message):
            getattr(module, name)


def test_the_list_of_what_is_not_there_is_true():
    _, _, listed = DSL.read_text().partition("## What PyTorch has and dlc has not yet")
    names = re.findall(r"`([\w.]+)`(?=[,\s])", re.sub(r"\(.*?\)", "", listed.partition("---")[2]))
    assert len(names) > 50
    known = {"F": (F, torch.nn.functional), "optim": (optim, torch.optim)}
    known["lr_scheduler"] = optim.lr_scheduler, torch.optim.lr_scheduler
    for each in names:
        where, _, name = each.rpartition(".")
        ours, theirs = known.get(where, (nn, torch.nn))
        assert hasattr(theirs, name), each
        assert not hasattr(ours, name), each


# The process around it.


def test_a_cache_path_that_is_a_file_is_explained(tmp_path):
    path = tmp_path / "cache"
    path.write_text("")
    with pytest.warns(CacheWarning, match="Move that file away, or set DLC_CACHE_DIR") as seen:
        Cache(path).put(digest("x"), b"x")
    assert "chmod" not in str(seen[0].message)


AT_EXIT = """
import sys
import numpy as np
import dlc
from dlc import nn

x = np.ones((2, 3), "float32")

class Late:
    def __init__(self):
        self.exe = dlc.compile(nn.ReLU(), x)
        self.exe(x)

    def __del__(self):
        print(self.exe(x).tolist())

late = Late()
late.cycle = late
sys.modules["late"] = late
"""


def test_an_executable_is_called_while_python_ends():
    done = subprocess.run(
        [sys.executable, "-c", AT_EXIT], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == (f"{[[1.0] * 3] * 2}\n", "")
