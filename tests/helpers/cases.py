"""What a case of a rule is, and what cases are written with."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

import dlc.passes  # noqa: F401  (fills the op table)
from dlc.ir.graph import Graph
from dlc.ir.node import Builder, building, current_builder
from dlc.ir.pattern import op
from dlc.ir.sizes import Dim
from dlc.ir.types import is_float, tensor
from dlc.ir.values import random_arrays

BATCH = Dim("batch", 1, 8)


def f32(*shape):
    return tensor("float32", shape)


def i32(*shape):
    return tensor("int32", shape)


def u8(*shape):
    return tensor("uint8", shape)


def flags(*shape):
    return tensor("bool", shape)


X = (f32(3, 4),)
XY = (f32(3, 4), f32(3, 4))
N = (i32(3, 4),)
B = (flags(3, 4),)


@dataclass
class Case:
    """``before`` becomes ``after``; ``stopped`` gives a function for each guard that only it stops.

    Functions take the inputs, of ``types``, or of the types that stand before a stopped function.
    """

    rule: str
    types: tuple
    before: Callable
    after: Callable
    stopped: dict = field(default_factory=dict)

    def __str__(self):
        return self.rule


def build(types, *functions):
    """The inputs and what each function makes of them, in one builder."""
    builder = Builder()
    inputs = tuple(builder.input(f"x{i}", t) for i, t in enumerate(types))
    with building(builder):
        return inputs, [function(*inputs) for function in functions]


def graph_of(types, function):
    inputs, (made,) = build(types, function)
    return Graph(made if isinstance(made, tuple) else (made,), inputs)


def param(name, *shape, role="parameter"):
    return current_builder().parameter(name, f32(*shape), role)


def constant(value, dtype="float32"):
    return op.constant(value=np.array(value, dtype))


HOSTILE = np.array([0.0, -0.0, 1.0, -1.5, np.inf, -np.inf, np.nan, 1e-45, -1e-40, 3e38, -3e38, 7.5])


def hostile_arrays(graph, rng):
    """Inputs of NaN, infinities, signed zeros, denormals, and the ends of the integers."""
    arrays = random_arrays(graph)
    for node in graph.inputs:
        shape = arrays[node.name].shape
        if is_float(node.dtype):
            arrays[node.name] = rng.choice(HOSTILE, shape).astype(node.dtype)
        elif node.dtype != "bool":
            info = np.iinfo(node.dtype)
            arrays[node.name] = rng.choice([info.min, info.max, 0, 1, 7], shape).astype(node.dtype)
    return arrays


def bits(array):
    """Bytes, with one NaN in place of all: which of them an operation gives is unspecified."""
    return (
        np.where(np.isnan(array), np.nan, array).tobytes()
        if is_float(array.dtype.name)
        else array.tobytes()
    )
