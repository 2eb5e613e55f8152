"""What tests of the frontend share: small modules, and runs of what it traces on the reference."""

import numpy as np

from dlc.backends import reference
from dlc.frontend import functional as F
from dlc.frontend import nn
from dlc.frontend.trace import flatten_arguments, trace
from dlc.ir.types import TensorSpec

X = TensorSpec((2, 3))


class Scale(nn.Module):
    """A layer with a parameter, a buffer and some arithmetic on both."""

    def __init__(self, size=3):
        super().__init__()
        self.weight = nn.Parameter(np.arange(1.0, size + 1.0, dtype="float32"))
        self.register_buffer("offset", np.ones(size, "float32"))
        self.register_buffer("unsaved", np.zeros(size, "float32"), persistent=False)

    def forward(self, x):
        return x * self.weight + self.offset + self.unsaved


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


def outputs(function, *args, **kwargs):
    """The result of a traced function or module for arrays, rebuilt as it returned it."""
    traced = trace(function, *args, **kwargs)
    return traced.structure.build(run(traced, *args, **kwargs)[0])


def call(module, *args, **kwargs):
    """The result of a module, whose buffers then have their new values."""
    traced = trace(module, *args, **kwargs)
    results, updates = run(traced, *args, **kwargs)
    for name, value in updates.items():
        traced.parameters[name].data = value
    return traced.structure.build(results)


def run(traced, *args, **kwargs):
    """The results of a traced function, and the new values of buffers by name."""
    leaves, _ = flatten_arguments(args, kwargs)
    names = [node.name for node in traced.graph.inputs]
    arrays = dict(zip(names, map(np.asarray, leaves), strict=True))
    arrays |= {name: variable.numpy() for name, variable in traced.parameters.items()}
    values = reference.run(traced.graph, arrays)
    count = traced.structure.count
    return values[:count], {name: values[i] for i, name in traced.graph.aliases.items()}
