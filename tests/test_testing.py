"""`dlc.testing`: `assert_close` gives PyTorch's verdicts; `gradcheck` finds wrong gradients."""

import inspect

import numpy as np
import pytest
import torch

import dlc
from dlc import functional as F
from dlc import nn
from dlc.errors import ArgumentError, DTypeError, Error
from dlc.testing import GradcheckError, NotCloseError, assert_close, gradcheck, gradgradcheck

ONES = np.ones((2, 3), np.float32)


def off(place, by, dtype="float32"):
    found = np.ones((2, 3), dtype)
    found[place] += by
    return found


# assert_close.

PAIRS = {
    "equal": (ONES, ONES),
    "within both tolerances": (off((0, 1), 1.1e-5), ONES),
    "beyond": (off((1, 2), 1.3e-5), ONES),
    "float64 is stricter": (off((0, 1), 1e-6, "float64"), np.ones((2, 3))),
    "types": (ONES.astype("float64"), ONES),
    "shapes": (ONES, ONES[:1]),
    "no broadcasting": (ONES, np.float32(1)),
    "NaN": (off((0, 0), np.nan), off((0, 0), np.nan)),
    "infinities": (off((0, 0), np.inf), off((0, 0), np.inf)),
    "infinities of two signs": (off((0, 0), np.inf), off((0, 0), -np.inf)),
    "infinite and not": (off((0, 0), np.inf), ONES),
    "integers": (np.arange(5), np.arange(5)),
    "other integers": (np.arange(5), np.arange(5) + 1),
    "booleans": (np.array([True, False]), np.array([True, True])),
    "scalars": (1.0, 1.0 + 1e-6),
    "close scalars": (1.0, 1.0 + 1e-9),
    "sequences": ([ONES, ONES], [ONES, off((0, 0), 1.0)]),
    "lengths": ([ONES], [ONES, ONES]),
    "mappings": ({"a": ONES}, {"a": off((0, 0), 1.0)}),
    "keys": ({"a": ONES}, {"b": ONES}),
    "empty": (ONES[:0], ONES[:0]),
    "large": (ONES * 1e30, ONES * 1e30 * (1 + 1e-6)),
}


def in_torch(value):
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if isinstance(value, np.generic):
        return torch.tensor(value)
    if isinstance(value, list):
        return [in_torch(each) for each in value]
    return {k: in_torch(v) for k, v in value.items()} if isinstance(value, dict) else value


def verdict(check, *arguments, **options):
    try:
        check(*arguments, **options)
    except AssertionError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("options", [{}, {"equal_nan": True}, {"rtol": 1e-2, "atol": 0.0}])
@pytest.mark.parametrize("pair", PAIRS)
def test_assert_close_judges_as_pytorch(pair, options):
    ours = verdict(assert_close, *PAIRS[pair], **options)
    theirs = verdict(torch.testing.assert_close, *map(in_torch, PAIRS[pair]), **options)
    assert bool(ours) == bool(theirs), f"{ours!r}, PyTorch says {theirs!r}"
    if "Mismatched elements" in theirs:
        lines = [line for line in theirs.splitlines() if line.startswith("Mismatched")]
        assert all(line in ours for line in lines)


def test_messages_of_assert_close():
    with pytest.raises(NotCloseError, match=r"difference: 1\.0 at index \(1, 2\) \(up to 1e-05"):
        assert_close(off((1, 2), 1.0), ONES)
    with pytest.raises(AssertionError, match=r"item \['a'\]\[1\]"):
        assert_close({"a": [ONES, 2 * ONES]}, {"a": [ONES, ONES]})
    with pytest.raises(Error, match="mine"):
        assert_close(1.0, 2.0, msg="mine")
    with pytest.raises(Error, match="before: Scalars"):
        assert_close(1.0, 2.0, msg=lambda text: f"before: {text}")


def test_other_checks_of_assert_close():
    assert_close(ONES.astype("float64"), ONES, check_dtype=False)
    turned = np.asfortranarray(ONES)
    assert_close(turned, ONES)
    with pytest.raises(NotCloseError, match="strides"):
        assert_close(turned, ONES, check_stride=True)
    with pytest.raises(NotCloseError, match="types of the values"):
        assert_close(nn.Parameter(ONES), ONES, allow_subclasses=False)
    assert_close(nn.Parameter(ONES), torch.ones(2, 3))
    with pytest.raises(ArgumentError, match="both rtol and atol"):
        assert_close(ONES, ONES, rtol=1e-3)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (assert_close, torch.testing.assert_close),
        (gradcheck, torch.autograd.gradcheck),
        (gradgradcheck, torch.autograd.gradgradcheck),
    ],
)
def test_signatures_are_pytorchs(ours, theirs):
    def shape(function):
        parameters = inspect.signature(function).parameters.values()
        return [(p.name, p.kind, p.default) for p in parameters]

    assert shape(ours) == shape(theirs)


def test_public_names():
    assert dlc.testing.assert_close is assert_close
    assert callable(dlc.diff)


# gradcheck.

RNG = np.random.default_rng(0)
X, W = RNG.normal(size=(2, 3)), RNG.normal(size=(3, 2))


def smooth(x, w):
    return F.softmax(x @ w, dim=1), (x * x).mean()


def half_lost(x):
    return x * x.detach()


def second_lost(x):
    """x^3 with a right first gradient, 3 x^2, whose own gradient is lost."""
    return (x - x.detach()) * 3 * (x * x).detach() + (x * x * x).detach()


@pytest.mark.parametrize("fast", [False, True])
def test_right_gradients_pass(fast):
    assert gradcheck(smooth, (X, W), fast_mode=fast)
    assert gradgradcheck(smooth, (X, W), fast_mode=fast)


@pytest.mark.parametrize("fast", [False, True])
def test_wrong_gradients_are_found(fast):
    with pytest.raises(GradcheckError, match="input 0 differs from differences"):
        gradcheck(half_lost, X, fast_mode=fast)
    assert not gradcheck(half_lost, X, fast_mode=fast, raise_exception=False)


def test_a_wrong_second_gradient_is_found():
    assert gradcheck(lambda x: x * x * x, X)
    with pytest.raises(GradcheckError):
        gradgradcheck(second_lost, X)


def test_grad_outputs_and_integers():
    index = np.array([2, 0, 2])

    def pick(x, index):
        return x.index_select(1, index), index

    assert gradcheck(pick, (X, index), check_grad_dtypes=True)
    assert gradgradcheck(
        lambda x: x**3, X, RNG.normal(size=X.shape), gen_non_contig_grad_outputs=True
    )


def test_nothing_is_asked():
    assert gradcheck(half_lost, X, check_backward_ad=False)
    assert gradgradcheck(half_lost, X, check_rev_over_rev=False)


@pytest.mark.parametrize(
    ("check", "error", "match"),
    [
        (lambda: gradcheck(smooth, (X, W.astype("f"))), DTypeError, "float32 in input 1"),
        (lambda: gradcheck(smooth, np.arange(3)), DTypeError, "an input of float64"),
        (lambda: gradcheck(lambda x: x > 0, X), DTypeError, "an output of floats"),
        (lambda: gradcheck(smooth, (X, W), check_forward_ad=True), ArgumentError, "backward"),
        (lambda: gradgradcheck(smooth, (X, W), check_fwd_over_rev=True), ArgumentError, "backward"),
        (lambda: gradgradcheck(smooth, (X, W), X), ArgumentError, "for 2 outputs"),
    ],
)
def test_what_cannot_be_checked(check, error, match):
    with pytest.raises(error, match=match):
        check()
