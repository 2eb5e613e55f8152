"""What the tests of the op table are made of: a sample as a graph, a gradient, its numeric check.

The gradient here is the least that applies the rules: reverse topological order, sums where a node
is used twice. The pass that users reach is checked against the same rules by other tests.
"""

import dataclasses
import math
from fractions import Fraction

import numpy as np

from dlc.backends.reference import run
from dlc.ir.graph import Graph, topological
from dlc.ir.node import Builder, building
from dlc.ir.op import OpDef, Sample
from dlc.ir.types import TensorType, TupleType, is_float, tensor
from dlc.ops.common import filled
from dlc.ops.random import random_bits

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


def vjp(outputs, cotangents, wrt):
    """For each node of ``wrt`` the gradient of the sum of ``outputs * cotangents``, or None."""
    gradient = dict(zip(outputs, cotangents, strict=True))
    pending = {}  # gradients of the outputs of an op that has several, by position
    active = _active(outputs, wrt)
    for node in reversed(topological(outputs)):
        if node not in active or not node.inputs:
            continue
        if node.op.name == "project":
            source = node.inputs[0]
            slots = pending.setdefault(source, [None] * len(source.type.elements))
            slots[node.attrs["index"]] = gradient.get(node)
            continue
        g = tuple(pending[node]) if node in pending else gradient.get(node)
        if g is None:
            continue
        for source, part in zip(node.inputs, apply_rule(node, g), strict=True):
            if part is not None and source in active:
                assert part.type == source.type, f"{node.op.name}: {part.type} for {source.type}"
                gradient[source] = gradient[source] + part if source in gradient else part
    return [gradient.get(node) for node in wrt]


def _active(outputs, wrt):
    """The nodes between ``wrt`` and ``outputs``."""
    found = set(wrt)
    for node in topological(outputs):
        if any(source in found for source in node.inputs):
            found.add(node)
    return found


def apply_rule(node, g):
    """Gradients of a node's inputs by its record: its rule, or the rules of what it expands to."""
    op = node.op
    if op.grad is not None:
        y = parts(node) if isinstance(node.type, TupleType) else node
        result = op.grad(g, y, *node.inputs, **node.attrs)
        assert isinstance(result, tuple), f"the rule of {op.name} gives no tuple"
        assert len(result) == len(node.inputs), (
            f"the rule of {op.name} gives {len(result)} gradients"
        )
        return result
    if op.no_grad:
        return (None,) * len(node.inputs)
    made = op.expand(*node.inputs, **node.attrs)
    outputs = made if isinstance(made, tuple) else (made,)
    cotangents = g if isinstance(g, tuple) else (g,)
    pairs = [(o, c) for o, c in zip(outputs, cotangents, strict=True) if c is not None]
    return tuple(vjp([o for o, _ in pairs], [c for _, c in pairs], node.inputs))


def gradient_graph(graph: Graph, wrt) -> Graph:
    """The graph from the inputs, and a cotangent for each float output, to gradients."""
    builder = graph.outputs[0].builder
    outputs = [y for y in dict.fromkeys(graph.outputs) if is_float(y.dtype)]
    taken = len(graph.inputs)
    cotangents = [builder.input(f"u{taken}_{i}", y.tensor_type) for i, y in enumerate(outputs)]
    inputs = [graph.inputs[i] for i in wrt]
    with building(builder):
        gradients = vjp(outputs, cotangents, inputs)
    made = [
        filled(builder, x.shape, 0.0, x.dtype) if g is None else g
        for x, g in zip(inputs, gradients, strict=True)
    ]
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
