"""Every exception and warning of dlc, and the one way their messages are put together.

One hierarchy, so that `except dlc.Error` catches all of it; each class also derives from the
builtin that a user would reach for, so that `except ValueError` works as with NumPy and PyTorch.
"""

from __future__ import annotations

import builtins
import os

__all__ = [
    "ArgumentError",
    "AttributeError",
    "CacheError",
    "CacheWarning",
    "CheckpointError",
    "CompileError",
    "DTypeError",
    "DependencyError",
    "Error",
    "ExecutionError",
    "GradientError",
    "IndexError",
    "MemoryError",
    "NumericsError",
    "OptionError",
    "ParseError",
    "RuleError",
    "ShapeError",
    "TargetError",
    "TraceError",
    "VerifyError",
    "WeightsError",
    "explain",
    "place",
]


def explain(subject: str, expected: str, got: str, *, where: object = "", advice: str = "") -> str:
    """Put a message together: what was expected, what came, where, and what to do.

    Parameters
    ----------
    subject : str
        Who expects it: the name of an op, of an argument, of an environment variable.
    expected, got : str
        What was expected and what came, worded to follow "expects" and "got".
    where : object
        The place, shown as its `str` in parentheses; see `place`. Left out when empty.
    advice : str
        One or more whole sentences: what to do, or what else the reader needs to know.

    Returns
    -------
    str
        The message.

    Examples
    --------
    >>> print(explain(
    ...     "conv2d", "64 input channels", "3", where=place("layer2.0.conv1", "model.py", 41),
    ...     advice="Its input is stem.pool: (N, 3, 56, 56).",
    ... ))
    conv2d expects 64 input channels, got 3 (layer2.0.conv1, model.py:41). \
Its input is stem.pool: (N, 3, 56, 56).
    """
    at = f" ({text})" if (text := str(where)) else ""
    message = f"{subject} expects {expected}, got {got}{at}"
    return f"{message}. {advice}" if advice else message


def place(path: str = "", file: str = "", line: int = 0) -> str:
    """Name a place in a model as `path, file:line`, leaving out what is not known.

    Parameters
    ----------
    path : str
        Module path, such as `layer2.0.conv1`.
    file : str
        The user's source file; only its last component is shown.
    line : int
        Line in `file`, counted from 1; 0 when not known.

    Returns
    -------
    str
        For example `layer2.0.conv1, model.py:41`; empty when nothing is known.
    """
    name = os.path.basename(file)
    source = f"{name}:{line}" if name and line else name
    return ", ".join(part for part in (path, source) if part)


class Error(Exception):
    """Base of every exception that dlc raises on purpose."""


# What the user passed in.


class ArgumentError(Error, ValueError):
    """An argument or attribute is outside its domain: a stride of 0, an unknown mode."""


class AttributeError(Error, builtins.AttributeError):
    """A module or object of dlc does not have a name; the message says what there is instead."""


class ShapeError(Error, ValueError):
    """A shape, rank or size does not fit, is outside its declared range, or cannot be decided."""


class DTypeError(Error, TypeError):
    """A dtype, or a Python type that stands for one, does not fit."""


class IndexError(Error, builtins.IndexError):
    """An index or a label is out of range; a kernel found it while it ran.

    Attributes
    ----------
    value : int or None
        What is out of range, where known.
    place : tuple of int
        Where in its array; empty where not known.
    """

    def __init__(self, message: str = "", value: int | None = None, place: tuple[int, ...] = ()):
        super().__init__(message)
        self.value, self.place = value, place


class MemoryError(Error, builtins.MemoryError):
    """A memory budget is less than what a function needs, however much it computes twice."""


class NumericsError(Error, ArithmeticError):
    """A value that must be finite is NaN or infinite."""


class OptionError(Error, ValueError):
    """An option, from an environment variable or an override, has a value it cannot take."""


class TargetError(Error, ValueError):
    """A backend, an ISA level or a platform is unknown, or this machine cannot run it."""


class WeightsError(Error, RuntimeError):
    """A weight is missing, unexpected or misshapen (PyTorch raises `RuntimeError` for these)."""


class CheckpointError(Error, RuntimeError):
    """A checkpoint is damaged, or of another model or run."""


class DependencyError(Error, ImportError):
    """An optional package is needed and not installed; the message names the extra to install."""


# What became of it.


class TraceError(Error, TypeError):
    """A function cannot be traced: it asks a symbolic tensor for its value."""


class ParseError(Error, ValueError):
    """Text does not describe a graph."""


class GradientError(Error, TypeError):
    """A gradient is asked for where none is defined."""


class VerifyError(Error, RuntimeError):
    """A graph or plan breaks a rule of the IR: a bug in the pass that made it."""


class RuleError(VerifyError):
    """A rewrite changed a value: evaluated before and after, the sub-graphs differ."""


class CompileError(Error, RuntimeError):
    """Generated code could not be lowered, compiled or linked: a bug in dlc."""


class ExecutionError(Error, RuntimeError):
    """A compiled program could not run: closed, out of threads or out of memory."""


class CacheError(Error, OSError):
    """The cache directory cannot be used: not ours, writable by others, or not a directory."""


class CacheWarning(UserWarning):
    """The cache cannot be used, so that dlc compiles afresh each time; said once."""
