"""What the tests of the op table are made of: a sample as a graph, a gradient, its numeric check.

The gradient is that of the pass which users reach, so that each op's rule is tested through it.
"""

import dataclasses
import math
from fractions import Fraction

import numpy as np

from dlc.backends.reference import run
from dlc.ir.graph import Graph
from dlc.ir.node import Builder, building
from dlc.ir.op import OpDef, Sample
from dlc.ir.types import TensorType, TupleType, is_float, tensor
from dlc.ops.random import random_bits
from dlc.passes.differentiate import gradients

# A sample as a graph.


def at(sample: Sample, dtype: str) -> Sample:
    """The sample with its floats, and an attribute `dtype` that is float64, in ``dtype``."""
    arrays = tuple(np.asarray(a, dtype) if a.dtype.kind == "f" else a for a in sample.arrays)
    return dataclasses.replace(sample, arrays=arrays)


def types_of(sample: Sample) -> list[TensorType]:
    return [tensor(array.dtype, array.shape) for array in sample.arrays]


def named(arrays) -> dict[str, np.ndarray]:
    return {f"x{i}": array for i, array in enumerate(arrays)}


def op_graph(op: OpDef, types, attrs) -> Graph:
    """A graph of one application of ``op`` to inputs x0, x1 and so on, with all of its outputs."""
    builder = Builder()
    inputs = tuple(builder.input(f"x{i}", t) for i, t in enumerate(types))
    y = builder.node(op, inputs, attrs)
    return Graph(parts(y), inputs)


def parts(y):
    if isinstance(y.type, TupleType):
        return tuple(y.project(i) for i in range(len(y.type.elements)))
    return (y,)


def node_of(graph: Graph):
    """The application in a graph that `op_graph` made."""
    output = graph.outputs[0]
    return output.inputs[0] if output.op.name == "project" else output


def operands(graph: Graph, arrays) -> list[np.ndarray]:
    """What the application in ``graph`` reads: the arrays, cast where its op promotes."""
    return run(Graph(node_of(graph).inputs, graph.inputs), arrays) if graph.inputs else []


def differentiable(sample: Sample) -> list[int]:
    if sample.differentiable is not None:
        return list(sample.differentiable)
    return [i for i, array in enumerate(sample.arrays) if array.dtype.kind == "f"]


# Gradients.


def gradient_graph(graph: Graph, wrt) -> Graph:
    """The graph from the inputs, and a cotangent for each float output, to gradients."""
    builder = graph.outputs[0].builder
    outputs = [y for y in dict.fromkeys(graph.outputs) if is_float(y.dtype)]
    taken = len(graph.inputs)
    cotangents = [builder.input(f"u{taken}_{i}", y.tensor_type) for i, y in enumerate(outputs)]
    inputs = [graph.inputs[i] for i in wrt]
    with building(builder):
        made = gradients(outputs, cotangents, inputs)
    return Graph(tuple(made), (*graph.inputs, *cotangents))


def check_gradient(graph: Graph, arrays, wrt, rng, step=1e-5, rtol=1e-6):
    """One dot product: the gradient along a random direction against a central difference.

    Returns the gradient graph and arrays for it, so that it can be checked in turn.
    """
    made = gradient_graph(graph, wrt)
    cotangents = {
        node.name: rng.normal(size=node.shape) for node in made.inputs[len(graph.inputs) :]
    }
    directions = {graph.inputs[i].name: rng.normal(size=graph.inputs[i].shape) for i in wrt}
    gradients = run(made, {**arrays, **cotangents})
    analytic = dot(gradients, directions.values())
    high, low = (moved(graph, arrays, directions, h) for h in (step, -step))
    terms = [
        u * (a - b) / (2 * step) for u, a, b in zip(cotangents.values(), high, low, strict=True)
    ]
    numeric, size = (float(sum(map(np.sum, values))) for values in (terms, map(np.abs, terms)))
    assert abs(analytic - numeric) <= rtol * max(size, 1.0), (
        f"the rules give {analytic}, a central difference {numeric}"
    )
    return made, {**arrays, **cotangents}


def moved(graph: Graph, arrays, directions, step):
    """The float outputs with some arrays moved by a step along their directions."""
    outputs = tuple(y for y in dict.fromkeys(graph.outputs) if is_float(y.dtype))
    near = {name: arrays[name] + step * v for name, v in directions.items()}
    return run(Graph(outputs, graph.inputs), {**arrays, **near})


def dot(left, right) -> float:
    return float(sum(np.sum(a * b) for a, b in zip(left, right, strict=True)))


# Scalar expressions, read as Python.


def expression(node, operands) -> str:
    """The text of one element of a pointwise node, over a name for each input."""
    scalar, attrs = node.op.scalar, node.attrs
    text = scalar if isinstance(scalar, str) else scalar(node.inputs[0].dtype, **attrs)
    return text.format(*operands, **{name: f"({value!r})" for name, value in attrs.items()})


def fma(a, b, c):
    if not np.isfinite([a, b, c]).all():
        return a * b + c
    return type(a)(float(Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))))


def _sigmoid(x):
    return type(x)(1) / (type(x)(1) + np.exp(-x))


#: The functions that scalar expressions may call, on NumPy scalars.
FUNCTIONS = {
    "abs": np.abs,
    "sqrt": np.sqrt,
    "exp": np.exp,
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
    "sigmoid": _sigmoid,
    "erf": lambda x: type(x)(math.erf(x)),
    "pow": lambda x, y: np.power([x, x], [y, y])[0],  # of a scalar, NumPy makes (-inf)**0.5 NaN
    "philox": lambda i, key, call: random_bits(i, int(key), int(call)),
    "div": lambda a, b: a // b,
    "floor": np.floor,
    "ceil": np.ceil,
    "trunc": np.trunc,
    "round": np.rint,
    "fma": fma,
    "fmax": np.maximum,
    "fmin": np.minimum,
    "relu": lambda x: type(x)(0) if x < 0 else x,
    "copysign": np.copysign,
    "isnan": np.isnan,
    "u8": np.uint8,
    "i32": np.int32,
    "i64": np.int64,
    "f32": np.float32,
    "f64": np.float64,
    "inf": np.inf,
    "nan": np.nan,
}


def evaluate_text(text: str, **names):
    """The value of a scalar expression."""
    return eval(text, {"__builtins__": {}}, {**FUNCTIONS, **names})


def evaluate_pointwise(node, arrays):
    """A pointwise node by its scalar expression, element by element."""
    letters = [f"v{i}" for i in range(len(arrays))]
    text = expression(node, letters)
    code = compile(text, node.op.name, "eval")
    result = np.empty(tuple(node.shape), node.dtype)
    whole = np.broadcast_arrays(*arrays) if arrays else []
    for place in np.ndindex(result.shape):
        names = {letter: array[place] for letter, array in zip(letters, whole, strict=True)}
        result[place] = eval(code, {"__builtins__": {}}, {**FUNCTIONS, **names})
    return result
