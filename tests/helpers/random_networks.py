"""Random networks of every kind of kernel: images, rows and indices, at a batch of 1 to 4.

Results are continuous in the inputs and of moderate size, so that they can be compared with those
of another arithmetic.
"""

import math

import numpy as np
from hypothesis import strategies as st

from dlc.errors import Error, ShapeError
from dlc.ir.graph import Graph
from dlc.ir.node import Builder, building
from dlc.ir.pattern import op
from dlc.ir.sizes import Dim
from dlc.ir.types import is_float, tensor
from dlc.passes.differentiate import gradients, scalar_one

BATCH = Dim("batch", 1, 4)
SMOOTH = ("tanh", "sigmoid", "neg", "sin", "erf")
UNARY = (*SMOOTH, "relu", "abs")
BINARY = ("add", "sub", "mul", "maximum", "minimum")


@st.composite
def networks(draw, steps=10, smooth=False):
    """A graph over an image, a matrix and three indices, with parameters; perhaps another image is
    known before the call. Gradients of ``smooth`` ones are continuous, too.
    """
    builder, batch = Builder(), draw(st.sampled_from((2, BATCH)))
    size = draw(st.sampled_from(((8, 9), (12, 7), (5, 40))))
    channels = draw(st.sampled_from((1, 3, 6, 16, 20)))
    inputs = (
        builder.input("image", tensor("float32", (batch, channels, *size))),
        builder.input("matrix", tensor("float32", (batch, 10))),
        builder.input("index", tensor("int64", (3,))),
    )
    nodes, shape = list(inputs[:2]), (2, channels, *size)
    known = draw(st.sampled_from(("parameter", "constant", None))) if batch == 2 else None
    if known == "parameter":
        nodes.append(builder.parameter("known", tensor("float32", shape)))
    elif known == "constant":
        array = np.random.default_rng(0).normal(size=shape).astype("float32")
        nodes.append(builder.constant(array))
    maker = (Smooth if smooth else Maker)(draw, builder, nodes, inputs[2])
    with building(builder):
        for _ in range(draw(st.integers(1, steps))):
            maker.step()
    ends = draw(st.lists(st.sampled_from(maker.nodes), max_size=2))
    return Graph((maker.nodes[-1], *ends), inputs)


def values(graph, rng, batch=2):
    """Arrays for the inputs and the parameters of such a graph, by name."""
    found = {}
    for node in (*graph.inputs, *graph.parameters):
        shape = tuple(size if isinstance(size, int) else batch for size in node.shape)
        scale = math.prod(shape[1:]) ** 0.5 if node.op.name == "parameter" else 1
        array = (rng.normal(size=shape) / scale).astype("float32")
        found[node.name] = rng.integers(0, 3, shape) if node.dtype == "int64" else array
    return found


def with_gradients(graph):
    """The mean square of all results, and its gradients in all parameters and inputs."""
    with building(graph.outputs[0].builder):
        total = sum(op.mean(op.square(out)) for out in graph.outputs)
        leaves = [*graph.parameters, *(node for node in graph.inputs if is_float(node.dtype))]
        found = gradients((total,), (scalar_one(total),), leaves)
    return type(graph)((total, *found), graph.inputs)


class Maker:
    """Adds one random op at a time; what does not fit is left out."""

    anywhere = ("unary", "binary", "number", "channel", "reduce", "softmax", "move", "take")
    rows = ("linear", "product", "layer_norm")
    images = ("conv", "conv", "conv", "pool", "pool", "batch_norm", "flatten")
    unaries, binaries = UNARY, BINARY
    reductions = ("sum", "mean", "amax", "amin", "logsumexp")
    pools = ("max_pool2d", "avg_pool2d")

    def __init__(self, draw, builder, nodes, index):
        self.draw, self.builder, self.nodes, self.index = draw, builder, nodes, index
        self.parameters = 0

    def step(self):
        a = self.choose(self.nodes[-1], *self.nodes)
        kinds = self.anywhere + self.rows * (a.ndim > 1) + self.images * (a.ndim == 4)
        kind = self.choose(*kinds) if a.ndim else "unary"
        try:
            made = getattr(self, kind)(a)
        except Error:
            return
        self.nodes.append(made)

    def choose(self, *options):
        return self.draw(st.sampled_from(options))

    def parameter(self, *shape):
        if not all(isinstance(size, int) for size in shape):
            raise ShapeError("a parameter has a fixed size")
        self.parameters += 1
        return self.builder.parameter(f"p{self.parameters}", tensor("float32", shape))

    def unary(self, a):
        return getattr(op, self.choose(*self.unaries))(a)

    def binary(self, a):
        fit = [node for node in self.nodes if node.shape == a.shape]
        return getattr(op, self.choose(*self.binaries))(a, self.choose(*fit))

    def number(self, a):
        value = op.constant(value=np.float32(self.choose(0.0, -0.0, 1.0, 2.0, -1.5, 0.5)))
        return getattr(op, self.choose(*self.binaries))(a, value)

    def channel(self, a):
        axis = self.choose(*range(a.ndim))
        size = a.shape[axis] if isinstance(a.shape[axis], int) else 1
        weights = self.parameter(size, *(1,) * (a.ndim - 1 - axis))
        return getattr(op, self.choose("add", "mul"))(a, weights)

    def reduce(self, a):
        axes = self.draw(st.sets(st.integers(0, a.ndim - 1), min_size=1))
        keepdims = self.draw(st.booleans())
        name = self.choose(*self.reductions)
        made = op.tanh(getattr(op, name)(a, axes=tuple(sorted(axes)), keepdims=keepdims))
        return op.sub(a, made) if keepdims and self.draw(st.booleans()) else made

    def softmax(self, a):
        return op.softmax(a, axis=self.choose(*range(a.ndim)))

    def take(self, a):
        return op.take(op.concat(a, a, a, axis=0), self.index, axis=0)

    def move(self, a):
        return getattr(self, self.choose("transpose", "flip", "pad", "cut", "join", "merge"))(a)

    def transpose(self, a):
        return op.transpose(a, axes=tuple(self.draw(st.permutations(range(a.ndim)))))

    def flip(self, a):
        return op.flip(a, axes=(self.choose(*range(a.ndim)),))

    def pad(self, a):
        widths = st.tuples(*[st.integers(0, 2)] * a.ndim)
        value = self.choose(0.0, -1.0)
        return op.pad(a, low=self.draw(widths), high=self.draw(widths), value=value)

    def cut(self, a):
        fixed = [isinstance(size, int) and size > 2 for size in a.shape]
        starts = tuple(self.choose(0, 1) if each else 0 for each in fixed)
        steps = tuple(self.choose(1, 2) if each else 1 for each in fixed)
        return op.slice(a, starts=starts, stops=a.shape, steps=steps)

    def join(self, a):
        fit = [node for node in self.nodes if node.ndim == a.ndim]
        return op.concat(a, self.choose(*fit), axis=self.choose(*range(a.ndim)))

    def merge(self, a):
        axis = self.choose(*range(a.ndim))
        before, here, behind = a.shape[:axis], a.shape[axis : axis + 2], a.shape[axis + 2 :]
        shape = (*before, here[0] * here[1], *behind) if len(here) == 2 else (*a.shape, 1)
        return op.reshape(a, shape=shape)

    def linear(self, a):
        outputs = self.choose(1, 4, 10, 33)
        return op.linear(a, self.parameter(outputs, a.shape[-1]), self.parameter(outputs))

    def product(self, a):
        axes = (*range(a.ndim - 2), a.ndim - 1, a.ndim - 2)
        return op.tanh(op.matmul(a, op.transpose(a, axes=axes)))

    def layer_norm(self, a):
        shape = a.shape[-1]
        return op.layer_norm(a, self.parameter(shape), self.parameter(shape), ndim=1, eps=0.1)

    def conv(self, a):
        channels = a.shape[1]
        groups = self.choose(*(g for g in (1, 1, 2, channels) if channels % g == 0))
        outputs = groups * self.choose(1, 2, 8, 17)
        kernel = self.choose((1, 1), (3, 3), (2, 3), (3, 1), (5, 5))
        weights = self.parameter(outputs, channels // groups, *kernel)
        pads = ((0, 0), (1, 1), (2, 1))
        return op.conv2d(
            a,
            weights,
            stride=self.choose((1, 1), (1, 1), (2, 2), (1, 2)),
            padding=(self.choose(*pads), self.choose(*pads)),
            dilation=self.choose((1, 1), (1, 1), (2, 1)),
            groups=groups,
        )

    def pool(self, a):
        pad = self.choose(0, 1)
        options = {
            "kernel": self.choose((2, 2), (3, 3), (2, 3)),
            "stride": self.choose((2, 2), (1, 1), (2, 1)),
            "padding": ((pad, pad), (pad, pad)),
            "ceil_mode": self.draw(st.booleans()),
        }
        if self.choose(*self.pools) == "max_pool2d":
            return op.max_pool2d(a, dilation=(1, 1), **options)
        return op.avg_pool2d(a, count_include_pad=self.draw(st.booleans()), **options)

    def batch_norm(self, a):
        mean, var, weight, bias = (self.parameter(a.shape[1]) for _ in range(4))
        return op.batch_norm(a, mean, op.square(var), weight, bias, eps=0.1)

    def flatten(self, a):
        return op.reshape(a, shape=(a.shape[0], -1))


class Smooth(Maker):
    """Ops with continuous gradients only."""

    unaries, binaries = SMOOTH, ("add", "sub", "mul")
    reductions, pools = ("sum", "mean", "logsumexp"), ("avg_pool2d",)
