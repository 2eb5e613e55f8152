"""Run what the frontend traces on the reference backend: the frontend's tests need no other."""

import numpy as np

from dlc.backends import reference
from dlc.frontend.trace import flatten_arguments, trace


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
