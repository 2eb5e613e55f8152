"""Functions of tensors against PyTorch's: values, keywords, new tensors, and what they refuse."""

import numpy as np
import pytest
import torch
from helpers.traced import outputs

import dlc.frontend.functional as F
from dlc.errors import ArgumentError, Error, ShapeError
from dlc.frontend import tensors
from dlc.frontend.einsum import einsum
from dlc.frontend.trace import trace
from dlc.ir.sizes import Dim
from dlc.ir.types import TensorSpec

MATRICES = [(2, 3, 4), (2, 4, 5)]
FUNCTIONS = [
    # name, shapes of the tensors, further arguments; the same name and call in PyTorch
    *[(name, [(2, 3)], ()) for name in ("abs", "ceil", "cos", "erf", "exp", "expm1", "floor")],
    *[(name, [(2, 3)], ()) for name in ("neg", "relu", "round", "sigmoid", "sign", "sin")],
    *[(name, [(2, 3)], ()) for name in ("square", "tanh", "trunc", "isnan")],
    *[(name, [(2, 3), (1, 3)], ()) for name in ("add", "sub", "mul", "div", "maximum", "minimum")],
    *[(name, [(2, 3), (2, 1)], ()) for name in ("eq", "ne", "lt", "le", "gt", "ge")],
    *[(name, [(2, 3), (3,)], ()) for name in ("floor_divide", "remainder")],
    ("clamp", [(2, 3)], (-0.5, 0.5)),
    ("clamp", [(2, 3), (3,)], ()),
    ("clamp", [(2, 3), (3,), (2, 1)], ()),
    ("max", [(2, 3), (3,)], ()),
    ("min", [(2, 3), (2, 3)], ()),
    ("pow", [(2, 3)], (2,)),
    ("sum", [(2, 3)], ()),
    ("sum", [(2, 3, 4)], ((0, 2), True)),
    ("mean", [(2, 3)], (1,)),
    ("amax", [(2, 3)], (0,)),
    ("amin", [(2, 3)], (-1, True)),
    ("argmax", [(2, 3)], (1,)),
    ("argmin", [(2, 3)], ()),
    ("max", [(2, 3)], ()),
    ("max", [(2, 3)], (1,)),
    ("min", [(2, 3)], (0, True)),
    ("prod", [(2, 3)], (1,)),
    ("logsumexp", [(2, 3)], (1,)),
    ("softmax", [(2, 3)], (1,)),
    ("log_softmax", [(2, 3)], (0,)),
    ("var", [(2, 3)], (1,)),
    ("std", [(2, 3)], (1,)),
    ("all", [(2, 3)], (1,)),
    ("any", [(2, 3)], ()),
    ("reshape", [(2, 6)], ((3, -1),)),
    ("flatten", [(2, 3, 4)], (1,)),
    ("permute", [(2, 3, 4)], ((2, 0, 1),)),
    ("transpose", [(2, 3, 4)], (0, -1)),
    ("unsqueeze", [(2, 3)], (-1,)),
    ("squeeze", [(2, 1, 3)], (1,)),
    ("flip", [(2, 3)], ((0, 1),)),
    ("chunk", [(2, 7)], (3, 1)),
    ("split", [(2, 7)], (3, 1)),
    ("unbind", [(2, 3)], ()),
    ("matmul", MATRICES, ()),
    ("bmm", MATRICES, ()),
    ("mm", [(2, 3), (3, 4)], ()),
]


@pytest.mark.parametrize("case", FUNCTIONS, ids=lambda case: case[0])
def test_a_function_computes_what_pytorchs_does(case, rng):
    name, shapes, arguments = case
    arrays = [rng.normal(size=shape) for shape in shapes]
    found = outputs(lambda *x: getattr(tensors, name)(*x, *arguments), *arrays)
    theirs = getattr(torch, name)(*map(torch.from_numpy, arrays), *arguments)
    several = isinstance(theirs, tuple)
    for y, expected in zip(found, theirs) if several else [(found, theirs)]:
        torch.testing.assert_close(torch.from_numpy(np.asarray(y)), expected)


KEYWORDS = [
    # name, arguments by keyword; of one matrix
    ("clamp", {"max": 0.25}),
    ("var", {"dim": 1, "unbiased": False}),
    ("var", {"dim": (0, 1), "correction": 2, "keepdim": True}),
    ("std", {"dim": -1, "unbiased": True, "keepdim": True}),
    ("permute", {"dims": (1, 0)}),
    ("flip", {"dims": [1]}),
    ("reshape", {"shape": (3, 2)}),
]


@pytest.mark.parametrize("case", KEYWORDS, ids=str)
def test_keywords_are_pytorchs(case, rng):
    name, keywords = case
    x = rng.normal(size=(2, 3))
    y = outputs(lambda x: getattr(tensors, name)(x, **keywords), x)
    expected = getattr(torch, name)(torch.from_numpy(x), **keywords)
    torch.testing.assert_close(torch.from_numpy(y), expected)


POSITIVE = ("log", "log1p", "rsqrt", "sqrt", "reciprocal")


@pytest.mark.parametrize("name", POSITIVE)
def test_a_function_of_positive_numbers(name, rng):
    x = rng.uniform(0.5, 2.0, (2, 3))
    y = outputs(getattr(tensors, name), x)
    torch.testing.assert_close(torch.from_numpy(y), getattr(torch, name)(torch.from_numpy(x)))


def test_functions_of_several_tensors(rng):
    a, b = rng.normal(size=(2, 2, 3))
    t, u = torch.from_numpy(a), torch.from_numpy(b)
    for dim in (0, 1, -1):
        np.testing.assert_array_equal(
            outputs(lambda x, y, dim=dim: tensors.cat([x, y], dim), a, b), torch.cat([t, u], dim)
        )
        np.testing.assert_array_equal(
            outputs(lambda x, y, dim=dim: tensors.stack((x, y), dim), a, b),
            torch.stack([t, u], dim),
        )
    where = outputs(lambda x, y: tensors.where(x > y, x, 0), a, b)
    np.testing.assert_array_equal(where, torch.where(t > u, t, 0))


def test_indexing_functions(rng):
    x, index = rng.normal(size=(3, 4)), rng.integers(0, 3, (2, 4))
    t, i = torch.from_numpy(x), torch.from_numpy(index)
    np.testing.assert_array_equal(
        outputs(lambda x, i: tensors.gather(x, 0, i), x, index), torch.gather(t, 0, i)
    )
    np.testing.assert_array_equal(
        outputs(lambda x, i: tensors.index_select(x, 1, i), x, index[0]),
        torch.index_select(t, 1, i[0]),
    )
    src = rng.normal(size=(2, 4))
    np.testing.assert_allclose(
        outputs(lambda x, i, s: tensors.scatter_add(x, 0, i, s), x, index, src),
        torch.scatter_add(t, 0, i, torch.from_numpy(src)),
    )
    classes = outputs(lambda i: F.one_hot(i, 5), index)
    np.testing.assert_array_equal(classes, torch.nn.functional.one_hot(i, 5))
    assert classes.dtype == "int64"


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("ij,jk->ik", [(2, 3), (3, 4)]),
        ("ij,jk", [(2, 3), (3, 4)]),
        ("bhid,bhjd->bhij", [(2, 3, 4, 5), (2, 3, 6, 5)]),
        ("bhij,bjhd->bihd", [(2, 3, 4, 6), (2, 6, 3, 5)]),
        ("ij->ji", [(2, 3)]),
        ("ij->i", [(2, 3)]),
        ("ij->", [(2, 3)]),
        ("ij,ij->ij", [(2, 3), (2, 3)]),
        ("ij,ij->", [(2, 3), (2, 3)]),
        ("i,j->ij", [(2,), (3,)]),
        ("ijk,jl->kil", [(2, 3, 4), (3, 5)]),
        ("ij , jk, kl -> il", [(2, 3), (3, 4), (4, 5)]),
        ("ai,bi,ci->abc", [(2, 3), (4, 3), (5, 3)]),
        ("ij,k->k", [(2, 3), (4,)]),
    ],
)
def test_einsum_sums_products(equation, shapes, rng):
    arrays = [rng.normal(size=shape) for shape in shapes]
    y = outputs(lambda *x: einsum(equation, *x), *arrays)
    np.testing.assert_allclose(y, np.einsum(equation, *arrays), rtol=1e-12, atol=1e-12)


def test_einsum_refuses_what_it_cannot_read():
    x, y = TensorSpec((2, 3)), TensorSpec((4, 5))
    for equation in ("ii,jk->i", "i...,jk->ik", "ij->ij", "ij,jk->im", "ij,jk->ii"):
        with pytest.raises(ArgumentError, match="einsum expects letters for 2 operands"):
            trace(lambda a, b, e=equation: einsum(e, a, b), x, y)
    with pytest.raises(ShapeError, match="one size for 'j' in 'ij,jk', got 3 and 4"):
        trace(lambda a, b: einsum("ij,jk", a, b), x, y)
    with pytest.raises(ShapeError, match=r"3 axes for 'ijk' in 'ijk,jk', got \(2, 3\)"):
        trace(lambda a, b: einsum("ijk,jk", a, b), x, y)


@pytest.mark.parametrize(
    "pads", [(1, 2), (0, 0), (1, 2, 3, 0), (0, 1, 2, 3, 1, 1), (-1, 2), (-1, -1, 2, -1), ()]
)
def test_pad_adds_and_takes_away(pads, rng):
    x = rng.normal(size=(3, 4, 5))
    expected = torch.nn.functional.pad(torch.from_numpy(x), pads, value=0.5)
    np.testing.assert_array_equal(outputs(lambda x: F.pad(x, pads, value=0.5), x), expected)


def test_pad_crops_an_axis_of_symbolic_size():
    traced = trace(lambda x: F.pad(x, (0, 0, -1, 2)), TensorSpec((Dim("n", 2, 9), 3)))
    assert str(traced.graph.outputs[0].type) == "float32[n + 1, 3]"


@pytest.mark.parametrize("name", ["softmax", "softmin", "log_softmax", "sum", "mean", "prod"])
def test_results_in_another_type(name, rng):
    """Computed in it, not converted at the end: the sum of an overflowing axis is finite."""
    x = rng.normal(size=(2, 3)).astype("float32") * np.float32(2e38 if name == "sum" else 1)
    where = F if name.startswith(("soft", "log_soft")) else tensors
    theirs = torch.nn.functional if where is F else torch
    y = outputs(lambda x: getattr(where, name)(x, dim=1, dtype="float64"), x)
    expected = getattr(theirs, name)(torch.from_numpy(x), dim=1, dtype=torch.float64)
    assert np.isfinite(y).all()
    torch.testing.assert_close(torch.from_numpy(y), expected)


# New tensors.


@pytest.mark.parametrize(
    "make",
    [
        lambda t: t.zeros(2, 3),
        lambda t: t.ones((2, 3)),
        lambda t: t.full((2,), 1.5),
        lambda t: t.full((2,), 3),
        lambda t: t.arange(5),
        lambda t: t.arange(2, 9, 3),
        lambda t: t.arange(7, 2, -2),
        lambda t: t.arange(0, 1, 0.25),
        lambda t: t.arange(2.5),
        lambda t: t.arange(1, 2.0, 0.1),
        lambda t: t.arange(3, 3),
        lambda t: t.eye(3),
        lambda t: t.eye(2, 3),
        lambda t: t.tensor([1.0, 2.0]),
        lambda t: t.tensor([[1, 2]]),
        lambda t: t.tensor(True),
    ],
)
def test_creation_gives_arrays_outside_a_trace_and_tensors_inside(make):
    expected = make(torch)
    array = make(tensors)
    assert isinstance(array, np.ndarray)
    torch.testing.assert_close(torch.from_numpy(array), expected)
    inside = outputs(lambda x: make(tensors), np.zeros(1))
    torch.testing.assert_close(torch.from_numpy(inside), expected)


def test_creation_follows_symbolic_sizes():
    def like(x):
        n = x.shape[0]
        row = tensors.arange(n, dtype="float32").unsqueeze(1)
        return tensors.zeros(n, 2) + tensors.ones_like(x) * row + tensors.full_like(x, 3)

    traced = trace(like, TensorSpec((Dim("n", 1, 9), 2)))
    assert str(traced.graph.outputs[0].type) == "float32[n, 2]"
    x = np.zeros((3, 2), "float32")
    np.testing.assert_array_equal(outputs(like, x), np.arange(3)[:, None] + [3, 3])
    assert tensors.zeros_like(np.ones((2, 3), "int64")).dtype == "int64"
    spec = TensorSpec((Dim("n", 1, 9),))
    for step in (0.5, -1):
        with pytest.raises(ArgumentError, match=f"an end is a symbolic size, got {step}"):
            trace(lambda x, step=step: tensors.arange(0, x.shape[0], step), spec)


def test_every_export_exists():
    for name in tensors.EXPORTS:
        assert callable(getattr(tensors, name))
        assert getattr(tensors, name).__doc__ or name in dir(tensors.Arithmetic)
    assert len(set(tensors.EXPORTS)) == len(tensors.EXPORTS)
    for name in F.__all__:
        assert getattr(F, name).__doc__ or name in ("sigmoid", "tanh")


# What functions refuse.

KERNEL = np.ones((4, 3, 3, 3), "float32")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda x: F.conv2d(x, KERNEL, np.ones(3, "float32")),
            r"conv2d expects a bias of shape \(4,\), got \(3,\)",
        ),
        (lambda x: F.conv2d(x, KERNEL, padding="some"), "'valid', 'same'.*got 'some'"),
        (
            lambda x: F.conv2d(x, KERNEL, stride=2, padding="same"),
            "padding='same' expects a stride of 1, got 2",
        ),
        (lambda x: F.pad(x, (1, 1), "mirror"), "mode to be constant, reflect, .*, got 'mirror'"),
        (lambda x: F.pad(x, (8, 1), "reflect"), "numbers from 0 that mode='reflect' finds"),
        (lambda x: F.pad(x, (-1, 1), "circular"), "finds in an axis of 8, got -1 and 1"),
        (lambda x: F.max_pool2d(x, 2, return_indices=True), "return_indices=False, got True"),
        (lambda x: F.avg_pool2d(x, 2, ceil_mode=True, divisor_override=3), "ceil_mode=False"),
        (lambda x: F.pad(x, (1,)), "two numbers an axis for at most 4 axes"),
        (lambda x: F.one_hot(x, -1), "num_classes of 1 or more, got -1"),
        (lambda x: F.gelu(x, "erf"), "'none' or 'tanh'"),
        (lambda x: tensors.bmm(x, x), "bmm expects two tensors of 3 dimensions"),
        (lambda x: tensors.cat([]), "a list of one or more tensors"),
        (lambda x: tensors.stack(x), "a list of one or more tensors, got one tensor"),
        (lambda x: tensors.arange(3, step=-1), "a step that leads from 0 to 3, got -1"),
        (
            lambda x: x.flatten(4),
            r"a dimension from -4 to 3, got 4 at test_functional.py:\d+\. The tensor is",
        ),
        (lambda x: x.split([3, 4], -1), r"sizes that add up to 8, got \[3, 4\] at test_functional"),
        (lambda x: x.split(0, -1), "at least one element a part, got 0 at test_functional"),
        (lambda x: x.__setitem__(0, 1), "cannot be changed in place at test_functional.*dlc.where"),
        (lambda x: tensors.arange(3, step=0), "a step that leads from 0 to 3, got 0"),
        (
            lambda x: F.prelu(x, np.ones(4, "float32")),
            r"one a channel of \(1, 3, 8, 8\), got \(4,\)",
        ),
    ],
)
def test_a_function_refuses_bad_arguments(function, message):
    with pytest.raises(Error, match=message):
        trace(function, TensorSpec((1, 3, 8, 8)))
