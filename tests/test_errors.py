"""The hierarchy of errors, and how messages are put together."""

import doctest

import pytest

from dlc import errors

BUILTINS = {
    "ArgumentError": ValueError,
    "AttributeError": AttributeError,
    "CacheError": OSError,
    "CompileError": RuntimeError,
    "DTypeError": TypeError,
    "DependencyError": ImportError,
    "ExecutionError": RuntimeError,
    "GradientError": TypeError,
    "IndexError": IndexError,
    "MemoryError": MemoryError,
    "CheckpointError": RuntimeError,
    "NumericsError": ArithmeticError,
    "OptionError": ValueError,
    "ParseError": ValueError,
    "RuleError": RuntimeError,
    "ShapeError": ValueError,
    "TargetError": ValueError,
    "TraceError": TypeError,
    "VerifyError": RuntimeError,
    "WeightsError": RuntimeError,
}


@pytest.mark.parametrize("name", sorted(BUILTINS))
def test_an_error_is_caught_as_dlc_and_as_the_builtin(name):
    kind = getattr(errors, name)
    for base in (errors.Error, BUILTINS[name]):
        with pytest.raises(base, match=r"^the message$"):
            raise kind("the message")


def test_every_error_is_in_the_table_above():
    exceptions = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.Error)
    }
    assert exceptions == {"Error", *BUILTINS}
    assert exceptions | {"CacheWarning", "explain", "place"} == set(errors.__all__)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("stem.conv", "/home/me/model.py", 41), "stem.conv, model.py:41"),
        (("", "model.py", 41), "model.py:41"),
        (("stem.conv", "model.py", 0), "stem.conv, model.py"),
        (("stem.conv",), "stem.conv"),
        ((), ""),
    ],
)
def test_place(arguments, text):
    assert errors.place(*arguments) == text


def test_explain_leaves_out_what_is_not_known():
    assert errors.explain("relu", "a tensor", "3") == "relu expects a tensor, got 3"
    assert errors.explain("relu", "a tensor", "3", where="act", advice="Pass one.") == (
        "relu expects a tensor, got 3 (act). Pass one."
    )


def test_the_documented_examples():
    assert doctest.testmod(errors) == (0, 1)
