"""Random graphs, for properties that hold for every graph."""

import numpy as np
from hypothesis import strategies as st

from dlc.ir.graph import Graph
from dlc.ir.node import Builder, Origin, building
from dlc.ir.pattern import op
from dlc.ir.sizes import Dim
from dlc.ir.types import tensor

BATCH = Dim("batch", 1, 5)
UNARY = ("neg", "abs", "relu", "exp", "sigmoid", "square", "floor", "tanh")
BINARY = ("add", "sub", "mul", "div", "maximum", "minimum")
NUMBERS = (0.0, -0.0, 1.0, -1.0, 2.0, 0.5, 0.1, -3.0)


@st.composite
def graphs(draw, steps=12):
    """A graph of float32 over (batch, 4) and (4,), of parameters, constants and common ops."""
    builder = Builder()
    x = builder.input("x", tensor("float32", (BATCH, 4)))
    nodes = [x, builder.parameter("w", tensor("float32", (4,)))]
    with building(builder):
        for number in range(draw(st.integers(1, steps))):
            node = draw(steps_from(nodes))
            node.origins |= {Origin(f"layer{number}", "model.py", number)}
            nodes.append(node)
    outputs = draw(st.lists(st.sampled_from(nodes), min_size=1, max_size=3))
    return Graph((nodes[-1], *outputs), (x,))


@st.composite
def steps_from(draw, nodes):
    """One op on some of ``nodes``."""
    a, b = draw(st.sampled_from(nodes)), draw(st.sampled_from(nodes))
    kind = draw(st.sampled_from(("unary", "binary", "number", "move", "reduce", "composite")))
    if kind == "unary":
        return getattr(op, draw(st.sampled_from(UNARY)))(a)
    if kind == "binary":
        return getattr(op, draw(st.sampled_from(BINARY)))(a, b)
    if kind == "number":
        value = draw(st.sampled_from(NUMBERS))
        constant = op.constant(
            value=np.full(draw(st.sampled_from(((), (1,), (4,)))), value, "float32")
        )
        pair = (a, constant) if draw(st.booleans()) else (constant, a)
        return getattr(op, draw(st.sampled_from(BINARY)))(*pair)
    if kind == "move":
        return draw(moves(a))
    if kind == "reduce":
        name = draw(st.sampled_from(("sum", "mean", "amax")))
        return getattr(op, name)(a, axes=(a.ndim - 1,), keepdims=True)
    return op.softmax(a, axis=-1)


@st.composite
def moves(draw, a):
    name = draw(st.sampled_from(("transpose", "flip", "pad", "expand", "reshape")))
    if name == "transpose":
        swapped = op.transpose(a, axes=tuple(range(a.ndim))[::-1])
        return op.transpose(swapped, axes=tuple(range(a.ndim))[::-1])
    if name == "flip":
        return op.flip(a, axes=(a.ndim - 1,))
    if name == "pad":
        ends = (0,) * a.ndim
        padded = op.pad(a, low=ends, high=(*ends[:-1], 1), value=-0.0)
        return op.slice(padded, starts=ends, stops=a.shape)
    if name == "expand":
        return op.reshape(op.expand(a, shape=(1, *a.shape)), shape=a.shape)
    return op.reshape(op.reshape(a, shape=(*a.shape, 1)), shape=a.shape)
