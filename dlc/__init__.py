"""dlc: write a model in Python, compile it to native kernels, and know how its numbers compare with
PyTorch's.

Importing dlc is light: each public name loads the part of the compiler that it needs when it is
first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from dlc.frontend import hook
from dlc.runtime.exclusive import importing

__version__ = "0.1.0"

#: Public name to (module, attribute); an empty attribute is the module itself.
_PUBLIC = {
    "Dim": ("dlc.ir.sizes", "Dim"),
    "TensorSpec": ("dlc.ir.types", "TensorSpec"),
    "Tensor": ("dlc.ir.node", "Node"),
    "Graph": ("dlc.ir.graph", "Graph"),
    "parse": ("dlc.ir.text", "parse"),
    "compile": ("dlc.driver", "compile"),
    "jit": ("dlc.driver", "jit"),
    "grad": ("dlc.driver", "grad"),
    "value_and_grad": ("dlc.driver", "value_and_grad"),
    "gradients": ("dlc.frontend.gradient", "gradients"),
    "train_step": ("dlc.training.step", "train_step"),
    "Trainer": ("dlc.training.trainer", "Trainer"),
    "Callback": ("dlc.training.callbacks", "Callback"),
    "History": ("dlc.training.history", "History"),
    "trace": ("dlc.driver", "trace_graph"),
    "Error": ("dlc.errors", "Error"),
    "ShapeError": ("dlc.errors", "ShapeError"),
    "DTypeError": ("dlc.errors", "DTypeError"),
    "IndexError": ("dlc.errors", "IndexError"),
    "nn": ("dlc.frontend.nn", ""),
    "functional": ("dlc.frontend.functional", ""),
    "models": ("dlc.frontend.models", ""),
    "optim": ("dlc.frontend.optim", ""),
    "init": ("dlc.frontend.init", ""),
    "data": ("dlc.frontend.data", ""),
    "einsum": ("dlc.frontend.einsum", "einsum"),
    "diff": ("dlc.testing.diff", "diff"),
    "testing": ("dlc.testing", ""),
    "passes": ("dlc.passes", ""),
    "config": ("dlc.config", ""),
    "errors": ("dlc.errors", ""),
    "summary": ("dlc.frontend.summary", "summary"),
    "seed": ("dlc.frontend.random", "seed"),
    "save_weights": ("dlc.frontend.weights", "save_weights"),
    "load_weights": ("dlc.frontend.weights", "load_weights"),
}

#: Element types, which are their names: ``x.to(dlc.float64)``.
_DTYPES = ("bool", "uint8", "int32", "int64", "float32", "float64")


def _module(name: str) -> Any:
    """A module of dlc, loaded whole, whatever signals and forks come meanwhile."""
    with importing():
        return importlib.import_module(name)


def _call_module(*call: Any) -> Any:
    """A first call of a module with arrays loads the driver, which puts its own in this place."""
    _module("dlc.driver")
    return hook.call_module(*call)


hook.call_module = _call_module


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        module, attribute = _PUBLIC[name]
        loaded = _module(module)
        value = getattr(loaded, attribute) if attribute else loaded
    elif name in _DTYPES:
        value = name
    else:
        tensors = _module("dlc.frontend.tensors")
        if name not in tensors.EXPORTS:
            raise AttributeError(
                f"module 'dlc' has no attribute {name!r}; dir(dlc) lists what it has"
            )
        value = getattr(tensors, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    tensors = _module("dlc.frontend.tensors")
    return sorted({*globals(), *_PUBLIC, *_DTYPES, *tensors.EXPORTS})


if TYPE_CHECKING:
    from dlc import config as config
    from dlc import errors as errors
    from dlc import passes as passes
    from dlc import testing as testing
    from dlc.driver import compile as compile
    from dlc.driver import grad as grad
    from dlc.driver import jit as jit
    from dlc.driver import trace_graph as trace  # noqa: F401
    from dlc.driver import value_and_grad as value_and_grad
    from dlc.errors import DTypeError as DTypeError
    from dlc.errors import Error as Error
    from dlc.errors import IndexError as IndexError
    from dlc.errors import ShapeError as ShapeError
    from dlc.frontend import data as data
    from dlc.frontend import functional as functional
    from dlc.frontend import init as init
    from dlc.frontend import models as models
    from dlc.frontend import nn as nn
    from dlc.frontend import optim as optim
    from dlc.frontend.einsum import einsum as einsum
    from dlc.frontend.gradient import gradients as gradients
    from dlc.frontend.random import seed as seed
    from dlc.frontend.summary import summary as summary
    from dlc.frontend.weights import load_weights as load_weights
    from dlc.frontend.weights import save_weights as save_weights
    from dlc.ir.graph import Graph as Graph
    from dlc.ir.node import Node as Tensor  # noqa: F401
    from dlc.ir.sizes import Dim as Dim
    from dlc.ir.text import parse as parse
    from dlc.ir.types import TensorSpec as TensorSpec
    from dlc.testing.diff import diff as diff
    from dlc.training.callbacks import Callback as Callback
    from dlc.training.history import History as History
    from dlc.training.step import train_step as train_step
    from dlc.training.trainer import Trainer as Trainer
