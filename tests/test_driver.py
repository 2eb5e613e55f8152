"""Every way to compile obeys the same options: ahead of a call, by `jit`, by calling a module."""

from dataclasses import dataclass

import numpy as np
import pytest

import dlc
from dlc import config, nn
from dlc.errors import ArgumentError, DTypeError, RuleError
from dlc.ir.manager import RulePass
from dlc.ir.pattern import op, rule
from dlc.passes import pipelines

X = np.linspace(-1, 1, 6, dtype="float32").reshape(2, 3)


class Squash(nn.Module):
    def forward(self, x):
        return dlc.sigmoid(x) - x


WAYS = {
    "compile": lambda: dlc.compile(Squash(), X)(X),
    "jit": lambda: dlc.jit(lambda x: dlc.sigmoid(x) - x)(X),
    "a module's call": lambda: Squash()(X),
}
ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


@dataclass(frozen=True)
class Wrong(RulePass):
    """A rule that does not hold."""

    name = "wrong"
    rules = (rule("sigmoid(x) -> x", lambda x: op.sigmoid(x), lambda x: x),)


@ways
def test_passes_are_verified_even_if_the_model_is_in_the_cache(way, monkeypatch):
    expected = way()
    monkeypatch.setitem(pipelines.LEVELS, "O2", (Wrong(), *pipelines.LEVELS["O2"]))
    np.testing.assert_array_equal(way(), expected)  # from the cache: no pass runs
    with (
        config.override(verify=2),
        pytest.raises(RuleError, match=r"the rule 'sigmoid\(x\) -> x'"),
    ):
        way()
    with pytest.raises(RuleError, match=r"the rule 'sigmoid\(x\) -> x'"):
        dlc.compile(Squash(), X, verify=2)


@ways
def test_verified_passes_give_the_same_bits(way):
    expected = way()
    with config.override(verify=2):
        np.testing.assert_array_equal(way(), expected)


@ways
def test_a_compilation_is_told(way, caplog):
    with config.override(debug=1):
        way()
    (message,) = caplog.messages
    assert "1 kernels" in message
    way()
    assert caplog.messages == [message]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (3, "a Module or a function of tensors, got 3 of type int"),
        (nn.ReLU, r"got the class ReLU\. Make one: ReLU\(\)\."),
        (dict, "got the class dict$"),
    ],
)
def test_what_is_no_function_of_tensors(function, message):
    for way in (dlc.compile, dlc.trace):
        with pytest.raises(ArgumentError, match=message):
            way(function, X)


def test_a_model_of_another_type_is_not_read_as_the_old_one():
    model = nn.Linear(6, 3)
    exe = dlc.compile(model, dlc.TensorSpec((4, 6)))
    x = np.ones((4, 6), np.float32)
    before = exe(x)
    model.double()
    with pytest.raises(DTypeError, match=r"'weight' expects float32\[3, 6\], got float64.*again"):
        exe(x)
    model.float()
    np.testing.assert_array_equal(exe(x), before)
