"""Every rule of every pass: a case where it fires, one where each guard stops it, its values.

A case says what a graph becomes, as a function in the same builder: since equal nodes are one
object, the structure is right if the result *is* the expected node.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from helpers.random_graphs import graphs
from hypothesis import given, settings

import dlc
from dlc.backends import reference
from dlc.errors import ArgumentError, RuleError, VerifyError
from dlc.ir import manager
from dlc.ir.graph import Graph
from dlc.ir.node import Builder, Origin, apply, building
from dlc.ir.pattern import op
from dlc.ir.rewrite import Journal, rewrite
from dlc.ir.sizes import Dim
from dlc.ir.types import is_float, tensor
from dlc.ir.values import Check, random_arrays
from dlc.ir.verify import verify
from dlc.passes import parse, passes, run
from dlc.passes.__main__ import page
from dlc.passes.canonicalise import Canonicalise
from dlc.passes.decompose import Decompose
from dlc.passes.fold_bn import FoldBatchNorm
from dlc.passes.fold_constants import FoldConstants
from dlc.passes.pipelines import LEVELS, O1, O2
from dlc.passes.simplify import Simplify

BATCH = Dim("batch", 1, 8)


def evaluate64(graph, arrays):
    return reference.run(graph, arrays, dtype="float64")


CHECK = Check(evaluate64)


# Cases.


def f32(*shape):
    return tensor("float32", shape)


def i32(*shape):
    return tensor("int32", shape)


def u8(*shape):
    return tensor("uint8", shape)


def flags(*shape):
    return tensor("bool", shape)


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
    from dlc.ir.node import current_builder

    return current_builder().parameter(name, f32(*shape), role)


def constant(value, dtype="float32"):
    return op.constant(value=np.array(value, dtype))


X = (f32(3, 4),)
XY = (f32(3, 4), f32(3, 4))
N = (i32(3, 4),)
B = (flags(3, 4),)
NEVER = "x is never negative, nor -0.0"

SIMPLIFY = [
    Case("x + -0.0 -> x", X, lambda x: x + -0.0, lambda x: x),
    Case("x + -0.0 -> x", N, lambda x: x + 0, lambda x: x),
    Case("x + -0.0 -> x", X, lambda x: constant([-0.0] * 4) + x, lambda x: x),
    Case(
        "x + -0.0 -> x",
        (f32(4),),
        lambda x: x + op.expand(constant(-0.0), shape=(2, 4)),
        lambda x: x.expand((2, 4)),
    ),
    Case(
        "x + 0 -> x",
        X,
        lambda x: op.exp(x) + 0.0,
        lambda x: op.exp(x),
        {NEVER: lambda x: op.neg(x) + 0.0},
    ),
    Case("x - 0 -> x", X, lambda x: x - 0.0, lambda x: x),
    Case("x * 1 -> x", X, lambda x: x * 1.0, lambda x: x),
    Case("x * 1 -> x", (u8(3),), lambda x: 1 * x, lambda x: x),
    Case(
        "x / 1 -> x",
        X,
        lambda x: x / 1.0,
        lambda x: x,
    ),
    Case("pow(x, 1) -> x", X, lambda x: x**1.0, lambda x: x),
    Case("pow(x, 0) -> 1", X, lambda x: x**0.0, lambda x: constant(1.0).expand(x.shape)),
    Case(
        "x * 0 -> 0",
        N,
        lambda x: x * 0,
        lambda x: constant(0, "int32").expand(x.shape),
        {"x is of integers": (X, lambda x: x * 0.0)},
    ),
    Case(
        "x - x -> 0",
        N,
        lambda x: x - x,
        lambda x: constant(0, "int32").expand(x.shape),
        {"x is of integers": (X, lambda x: x - x)},
    ),
    Case("-(-x) -> x", X, lambda x: op.neg(-x), lambda x: x),
    Case("(-x) * (-y) -> x * y", XY, lambda x, y: (-x) * (-y), lambda x, y: x * y),
    Case("abs(-x) -> abs(x)", X, lambda x: abs(-x), lambda x: abs(x)),
    Case("square(-x) -> square(x)", X, lambda x: op.square(-x), lambda x: op.square(x)),
    Case("square(abs(x)) -> square(x)", X, lambda x: op.square(abs(x)), lambda x: op.square(x)),
    Case(
        "abs(x) -> x",
        X,
        lambda x: abs(op.sigmoid(x)),
        lambda x: op.sigmoid(x),
        {NEVER: (N, lambda x: abs(op.square(x)))},  # integers overflow
    ),
    Case(
        "relu(x) -> x",
        X,
        lambda x: op.relu(op.square(x)),
        lambda x: op.square(x),
        {NEVER: lambda x: op.relu(op.tanh(x))},
    ),
    Case("relu(relu(x)) -> relu(x)", N, lambda x: op.relu(op.relu(x)), lambda x: op.relu(x)),
    Case("relu6(relu6(x)) -> relu6(x)", X, lambda x: op.relu6(op.relu6(x)), lambda x: op.relu6(x)),
    Case("abs(abs(x)) -> abs(x)", N, lambda x: abs(abs(x)), lambda x: abs(x)),
    *(
        Case(
            f"{f}({f}(x)) -> {f}(x)",
            X,
            lambda x, f=getattr(op, f): f(f(x)),
            lambda x, f=getattr(op, f): f(x),
        )
        for f in ("sign", "floor", "ceil", "round", "trunc")
    ),
    *(
        Case(
            f"{f}(x) -> x",
            N,
            lambda x, f=getattr(op, f): f(x),
            lambda x: x,
            {"x is of integers": (X, lambda x, f=getattr(op, f): f(x))},
        )
        for f in ("floor", "ceil", "round", "trunc")
    ),
    *itertools.chain.from_iterable(
        (
            Case(f"{f}(x, x) -> x", X, lambda x, f=getattr(op, f): f(x, x), lambda x: x),
            Case(
                f"{f}({f}(x, y), y) -> {f}(x, y)",
                XY,
                lambda x, y, f=getattr(op, f): f(y, f(x, y)),
                lambda x, y, f=getattr(op, f): f(x, y),
            ),
        )
        for f in ("maximum", "minimum")
    ),
    Case(
        "not not x -> x",
        B,
        lambda x: ~~x,
        lambda x: x,
        {"x is of bools": (X, lambda x: op.logical_not(op.logical_not(x)))},
    ),
    Case(
        "x and x -> x",
        B,
        lambda x: x & x,
        lambda x: x,
        {"x is of bools": (N, lambda x: op.logical_and(x, x))},
    ),
    Case(
        "x or x -> x",
        B,
        lambda x: x | x,
        lambda x: x,
        {"x is of bools": (N, lambda x: op.logical_or(x, x))},
    ),
    Case(
        "x and true -> x",
        B,
        lambda x: x & constant(True, "bool"),
        lambda x: x,
    ),
    Case(
        "x or false -> x",
        B,
        lambda x: x | constant(False, "bool"),
        lambda x: x,
    ),
    Case("not (x == y) -> x != y", XY, lambda x, y: ~(x == y), lambda x, y: x != y),
    Case("not (x != y) -> x == y", XY, lambda x, y: ~(x != y), lambda x, y: x == y),
    Case("where(c, x, x) -> x", B + X, lambda c, x: op.where(c, x, x), lambda c, x: x),
    Case(
        "where(true, x, y) -> x",
        XY,
        lambda x, y: op.where(constant(True, "bool"), x, y),
        lambda x, y: x,
    ),
    Case(
        "where(false, x, y) -> y",
        XY,
        lambda x, y: op.where(constant([[False], [False], [False]], "bool"), x, y),
        lambda x, y: y,
    ),
    Case(
        "cast(x) -> x",
        X,
        lambda x: op.cast(x, dtype="float32"),
        lambda x: x,
        {"the result has the type of x": lambda x: op.cast(x, dtype="float64")},
    ),
    Case(
        "cast(cast(x)) -> cast(x)",
        X,
        lambda x: op.cast(op.cast(x, dtype="float64"), dtype="bool"),
        lambda x: op.cast(x, dtype="bool"),
        {
            "the inner cast keeps every value": lambda x: op.cast(
                op.cast(x, dtype="bool"), dtype="float32"
            )
        },
    ),
    Case(
        "reshape(x) -> x",
        X,
        lambda x: x.reshape((3, -1)),
        lambda x: x,
        {"the result has the type of x": lambda x: x.reshape((4, 3))},
    ),
    Case(
        "reshape(reshape(x)) -> reshape(x)",
        (f32(BATCH, 3, 4),),
        lambda x: x.reshape((-1, 12)).reshape((-1, 6)),
        lambda x: x.reshape((-1, 6)),
    ),
    Case(
        "expand(x, its own shape) -> x",
        X,
        lambda x: op.expand(x, shape=(3, 4)),
        lambda x: x,
    ),
    Case(
        "expand(expand(x)) -> expand(x)",
        (f32(4),),
        lambda x: x.expand((3, 4)).expand((2, 3, 4)),
        lambda x: x.expand((2, 3, 4)),
    ),
    Case(
        "expand(reshape(x)) -> expand(x)",
        (f32(4),),
        lambda x: x.reshape((1, 1, 4)).expand((2, 3, 4)),
        lambda x: x.expand((2, 3, 4)),
        {"the reshape adds leading axes of size 1": lambda x: x.reshape((4, 1)).expand((4, 4))},
    ),
    Case(
        "transpose(x) -> x",
        X,
        lambda x: op.transpose(x, axes=(0, 1)),
        lambda x: x,
        {"the axes stay in order": lambda x: op.transpose(x, axes=(1, 0))},
    ),
    Case(
        "transpose(transpose(x)) -> transpose(x)",
        (f32(2, 3, 4),),
        lambda x: op.transpose(op.transpose(x, axes=(2, 0, 1)), axes=(1, 0, 2)),
        lambda x: op.transpose(x, axes=(0, 2, 1)),
    ),
    Case(
        "slice(x) -> x",
        (f32(BATCH, 4),),
        lambda x: op.slice(x, starts=(0, 0), stops=(None, 4)),
        lambda x: x,
        {"all of x is taken": lambda x: op.slice(x, starts=(0, 1), stops=(None, 4))},
    ),
    Case(
        "pad(x) -> x",
        X,
        lambda x: op.pad(x, low=(0, 0), high=(0, 0), value=1.0),
        lambda x: x,
        {"nothing is added": lambda x: op.pad(x, low=(0, 0), high=(0, 1))},
    ),
    Case(
        "pad(pad(x, v), v) -> pad(x, v)",
        (f32(BATCH, 4),),
        lambda x: op.pad(op.pad(x, low=(1, 0), high=(0, 2)), low=(0, 1), high=(3, 3)),
        lambda x: op.pad(x, low=(1, 1), high=(3, 5)),
    ),
    Case(
        "flip(flip(x, a), a) -> x",
        X,
        lambda x: op.flip(op.flip(x, axes=(1,)), axes=(-1,)),
        lambda x: x,
    ),
    Case(
        "flip(x) -> x",
        (f32(1, 4),),
        lambda x: op.flip(x, axes=(0,)),
        lambda x: x,
        {"it turns round axes of size 1 only": lambda x: op.flip(x, axes=(0, 1))},
    ),
    Case("concat(x) -> x", X, lambda x: op.concat(x, axis=1), lambda x: x),
    Case(
        "concat(concat(x, y), z) -> concat(x, y, z)",
        XY,
        lambda x, y: op.concat(
            op.concat(x, y, axis=0), x, op.concat(y, x, axis=1).reshape((6, 4)), axis=0
        ),
        lambda x, y: op.concat(x, y, x, op.concat(y, x, axis=1).reshape((6, 4)), axis=0),
    ),
    Case(
        "f(expand(x), y) -> f(x, y)",
        (f32(3, 4), f32(4)),
        lambda x, y: x * y.expand((3, 4)),
        lambda x, y: x * y,
    ),
    Case(
        "f(expand(x), y) -> f(x, y)",
        (f32(4, 1), f32(4)),
        lambda x, y: op.maximum(y.expand((4, 4)), x.expand((4, 4))),
        lambda x, y: op.maximum(y, x),
    ),
    Case(
        "f(expand(x), y) -> f(x, y)",
        (f32(1), f32(1)),
        lambda x, y: x.expand((4,)) + y.expand((4,)),
        lambda x, y: x + y.expand((4,)),
    ),
    *(
        Case(
            f"{f}(x) over axes of size 1 -> reshape(x)",
            (f32(1, 4, 1),),
            lambda x, f=getattr(op, f): f(x, axes=(0, 2), keepdims=False),
            lambda x: x.reshape((4,)),
            {"the axes have size 1": lambda x, f=getattr(op, f): f(x, axes=(0, 1), keepdims=False)},
        )
        for f in ("amax", "amin")
    ),
]

CANONICALISE = [
    Case("c ∘ x -> x ∘ c", X, lambda x: 2.0 + x, lambda x: x + 2.0),
    Case(
        "c ∘ x -> x ∘ c",
        X,
        lambda x: constant([1.0] * 4).expand((3, 4)) == x,
        lambda x: x == constant([1.0] * 4).expand((3, 4)),
    ),
    Case("x - c -> x + (-c)", X, lambda x: x - 0.5, lambda x: x + -0.5),
    Case(
        "x - c -> x + (-c)",
        (u8(3),),
        lambda x: x - constant([1, 2, 255], "uint8"),
        lambda x: x + constant([255, 254, 1], "uint8"),
    ),
    Case(
        "x / c -> x * (1/c)",
        X,
        lambda x: x / constant([2.0, -0.25, 1024.0, 2.0**126]),
        lambda x: x * constant([0.5, -4.0, 2.0**-10, 2.0**-126]),
        {"the elements of c are powers of two": lambda x: x / constant([2.0, 3.0, 4.0, 5.0])},
    ),
    Case("x + (-y) -> x - y", XY, lambda x, y: (-y) + x, lambda x, y: x - y),
    Case("x - (-y) -> x + y", XY, lambda x, y: x - (-y), lambda x, y: x + y),
    Case("x * -1 -> -x", X, lambda x: x * -1.0, lambda x: -x),
    Case("x * x -> square(x)", X, lambda x: x * x, lambda x: op.square(x)),
    Case("x + x -> x * 2", X, lambda x: x + x, lambda x: x * 2.0),
    Case("1 / x -> reciprocal(x)", X, lambda x: 1.0 / x, lambda x: op.reciprocal(x)),
    Case("x > y -> y < x", XY, lambda x, y: x > y, lambda x, y: y < x),
    Case("x >= y -> y <= x", XY, lambda x, y: x >= y, lambda x, y: y <= x),
    Case(
        "where(not c, x, y) -> where(c, y, x)",
        B + XY,
        lambda c, x, y: op.where(~c, x, y),
        lambda c, x, y: op.where(c, y, x),
        {"c is of bools": (X, lambda x: op.where(op.logical_not(x), x, -x))},
    ),
    Case(
        "transpose(x) -> reshape(x)",
        (f32(1, 4, 3),),
        lambda x: op.transpose(x, axes=(1, 2, 0)),
        lambda x: x.reshape((4, 3, 1)),
        {"it moves axes of size 1 only": lambda x: op.transpose(x, axes=(0, 2, 1))},
    ),
    Case(
        "expand(x) -> reshape(x)",
        (f32(BATCH, 4),),
        lambda x: x.expand((1, 1, BATCH, 4)),
        lambda x: x.reshape((1, 1, BATCH, 4)),
        {"it adds axes of size 1 only": lambda x: x.expand((2, BATCH, 4))},
    ),
]


# Folding: images (N, 4, 5, 5), weights (6, 4 / groups, 3, 3).

IMAGE = (f32(BATCH, 4, 5, 5),)
VECTORS = (f32(BATCH, 4),)


def weight(groups=1, name="w"):
    return param(name, 6 if groups < 4 else 8, 4 // groups, 3, 3)


def conv(x, w, padding=1, groups=1):
    return op.conv2d(x, w, stride=2, padding=padding, groups=groups)


def bn(x, parametric=True):
    c = x.shape[1]
    mean = (
        param("mean", c, role="buffer")
        if parametric
        else op.mean(x, axes=(0, 2, 3), keepdims=False)
    )
    return op.batch_norm(
        x, mean, param("var", c, role="buffer"), param("g", c), param("b", c), eps=1e-3
    )


def scale(channels, name="s", ndim=3):
    return param(name, channels, *(1,) * (ndim - 1))


def scaled_inputs(x, groups):
    """What conv(x·s, w) becomes, by hand: one factor for each weight of an input channel."""
    w, s = weight(groups), scale(4)
    rows = s.reshape((groups, 1, w.shape[1])).expand((groups, w.shape[0] // groups, w.shape[1]))
    return w * rows.reshape((w.shape[0], w.shape[1], 1, 1))


def twice(function):
    """Two outputs: the one that a rule would change, and one that reads what it would fold."""
    return lambda x: function(x)


def bn_folded(x):
    g, b, m, v = (
        param("g", 4),
        param("b", 4),
        param("mean", 4, role="buffer"),
        param("var", 4, role="buffer"),
    )
    s = g / (v + 1e-3).sqrt()
    return x * s.reshape((4, 1, 1)) + (b - m * s).reshape((4, 1, 1))


PARAMETRIC = "{} are parametric"


def other_user(function, shared):
    """Outputs of which the second reads what the first would fold."""
    return lambda x: (function(x), op.exp(shared(x)))


FOLD_BN = [
    Case(
        "bn(x, m, v, g, b) -> x·s + t",
        IMAGE,
        bn,
        bn_folded,
        {"m, v, g, b are parametric": lambda x: bn(x, parametric=False)},
    ),
    Case(
        "x - t -> x + (-t)",
        IMAGE,
        lambda x: x - scale(4),
        lambda x: x + -scale(4),
        {
            "t is parametric": lambda x: x - op.exp(x),
            "x is not parametric": lambda x: (scale(4) - scale(4, "t")) * x,
        },
    ),
    Case(
        "x / s -> x · (1/s)",
        IMAGE,
        lambda x: x / scale(4),
        lambda x: x * op.reciprocal(scale(4)),
        {
            "s is parametric": lambda x: x / op.exp(x),
            "x is not parametric": lambda x: (scale(4) / scale(4, "t")) * x,
        },
    ),
    Case(
        "conv(x, w)·s -> conv(x, w·s)",
        IMAGE,
        lambda x: scale(6) * conv(x, weight(2), groups=2),
        lambda x: conv(x, weight(2) * scale(6).reshape((6, 1, 1, 1)), groups=2),
        {
            "conv has no other user": other_user(
                lambda x: conv(x, weight()) * scale(6), lambda x: conv(x, weight())
            ),
            "w, s are parametric": lambda x: (
                conv(x, weight())
                * op.amax(conv(x, weight(name="v")), axes=(0, 2, 3), keepdims=False).reshape(
                    (6, 1, 1)
                )
            ),
            "s has one value a channel of conv": lambda x: conv(x, weight()) * param("s", 3),
        },
    ),
    Case(
        "conv(x, w)·s -> conv(x, w·s)",
        IMAGE,
        lambda x: conv(x, weight()) * 3.0,
        lambda x: conv(x, weight() * constant(3.0).reshape((1, 1, 1, 1))),
    ),
    Case(
        "(conv(x, w) + b)·s -> conv(x, w·s) + b·s",
        IMAGE,
        lambda x: (conv(x, weight()) + scale(6, "b")) * scale(6),
        lambda x: conv(x, weight() * scale(6).reshape((6, 1, 1, 1))) + scale(6, "b") * scale(6),
        {
            "conv and biased have no other user": other_user(
                lambda x: (conv(x, weight()) + scale(6, "b")) * scale(6),
                lambda x: conv(x, weight()) + scale(6, "b"),
            ),
            "w, b, s are parametric": lambda x: (
                (conv(x, weight()) + op.exp(conv(x, weight(name="v")))) * scale(6)
            ),
            "s has one value a channel of conv": lambda x: (
                (conv(x, weight()) + scale(6, "b")) * param("s", 3)
            ),
        },
    ),
    Case(
        "conv(x, w) + b + t -> conv(x, w) + (b + t)",
        IMAGE,
        lambda x: scale(6, "t") + (conv(x, weight()) + scale(6, "b")),
        lambda x: conv(x, weight()) + (scale(6, "b") + scale(6, "t")),
        {
            "biased has no other user": other_user(
                lambda x: conv(x, weight()) + scale(6, "b") + scale(6, "t"),
                lambda x: conv(x, weight()) + scale(6, "b"),
            ),
            "b, t are parametric": lambda x: (
                conv(x, weight()) + scale(6, "b") + op.relu(conv(x, weight(name="v")))
            ),
        },
    ),
    *(
        Case(
            "conv(x·s, w) -> conv(x, w·s)",
            IMAGE,
            lambda x, g=groups: conv(x * scale(4), weight(g), groups=g),
            lambda x, g=groups: conv(x, scaled_inputs(x, g), groups=g),
        )
        for groups in (2, 4)
    ),
    Case(
        "conv(x·s, w) -> conv(x, w·s)",
        IMAGE,
        lambda x: conv(x * scale(4), weight()),
        lambda x: conv(x, scaled_inputs(x, 1)),
        {
            "scaled has no other user": other_user(
                lambda x: conv(x * scale(4), weight()), lambda x: x * scale(4)
            ),
            "w, s are parametric": lambda x: conv(x * op.exp(x[:1, :, :1, :1]), weight()),
            "s has one value a channel of x": lambda x: conv(x * param("s", 5), weight()),
        },
    ),
    *(
        Case(
            "conv(x + t, w) -> conv(x, w) + Σ w·t",
            IMAGE,
            lambda x, g=groups: conv(x + scale(4, "t"), weight(g), 0, g),
            lambda x, g=groups: conv(x, weight(g), 0, g) + shifted_outputs(g),
        )
        for groups in (2, 4)
    ),
    Case(
        "conv(x + t, w) -> conv(x, w) + Σ w·t",
        IMAGE,
        lambda x: conv(x + scale(4, "t"), weight(), padding=0),
        lambda x: conv(x, weight(), padding=0) + shifted_outputs(1),
        {
            "shifted has no other user": other_user(
                lambda x: conv(x + scale(4, "t"), weight(), 0), lambda x: x + scale(4, "t")
            ),
            "w, t are parametric": lambda x: conv(x + op.exp(x[:1, :, :1, :1]), weight(), 0),
            "t has one value a channel of x": lambda x: conv(x + param("t", 5), weight(), 0),
            "there is no padding": lambda x: conv(x + scale(4, "t"), weight(), padding=1),
        },
    ),
]


def shifted_outputs(groups):
    w, t = weight(groups), scale(4, "t")
    rows = t.reshape((groups, 1, w.shape[1])).expand((groups, w.shape[0] // groups, w.shape[1]))
    through = w * rows.reshape((w.shape[0], w.shape[1], 1, 1))
    return through.sum((1, 2, 3)).reshape((w.shape[0], 1, 1))


def matrix(name="w"):
    return param(name, 3, 4)


def row(n, name):
    """A vector as rules bring it: reshaped to one dimension, expanded to the features."""
    v = param(name, n)
    return v.reshape((n,)).expand((n,))


LINEAR = [
    Case(
        "linear(x, w, b)·s -> linear(x, w·s, b·s)",
        VECTORS,
        lambda x: op.linear(x, matrix(), param("b", 3)) * param("s", 3),
        lambda x: op.linear(
            x, matrix() * param("s", 3).reshape((3, 1)), param("b", 3) * row(3, "s")
        ),
        {
            "linear has no other user": other_user(
                lambda x: op.linear(x, matrix()) * param("s", 3), lambda x: op.linear(x, matrix())
            ),
            "w, b, s are parametric": lambda x: (
                op.linear(x, matrix(), op.exp(x[0, :3])) * param("s", 3)
            ),
            "s has one value a feature of linear": lambda x: (
                op.linear(x, matrix()) * param("s", 1, 1, 1)
            ),
        },
    ),
    Case(
        "linear(x, w, b)·s -> linear(x, w·s, b·s)",
        VECTORS,
        lambda x: op.linear(x, matrix()) * param("s", 3),
        lambda x: op.linear(x, matrix() * param("s", 3).reshape((3, 1))),
    ),
    Case(
        "linear(x, w, b) + t -> linear(x, w, b + t)",
        VECTORS,
        lambda x: op.linear(x, matrix()) + param("t", 3),
        lambda x: op.linear(x, matrix(), row(3, "t")),
        {
            "linear has no other user": other_user(
                lambda x: op.linear(x, matrix()) + param("t", 3), lambda x: op.linear(x, matrix())
            ),
            "b, t are parametric": lambda x: op.linear(x, matrix()) + op.exp(x[0, :3]),
            "t has one value a feature of linear": (
                (f32(1, 4),),
                lambda x: op.linear(x, matrix()) + param("t", 2, 3),
            ),
        },
    ),
    Case(
        "linear(x·s, w, b) -> linear(x, w·s, b)",
        VECTORS,
        lambda x: op.linear(x * param("s", 4), matrix(), param("b", 3)),
        lambda x: op.linear(x, matrix() * row(4, "s"), param("b", 3)),
        {
            "scaled has no other user": other_user(
                lambda x: op.linear(x * param("s", 4), matrix()), lambda x: x * param("s", 4)
            ),
            "w, s are parametric": lambda x: op.linear(x * op.exp(x[0]), matrix()),
            "s has one value a feature of x": lambda x: op.linear(
                x[:1] * param("s", 2, 4), matrix()
            ),
        },
    ),
    Case(
        "linear(x + t, w, b) -> linear(x, w, w·t + b)",
        VECTORS,
        lambda x: op.linear(x + param("t", 4), matrix(), param("b", 3)),
        lambda x: op.linear(x, matrix(), param("b", 3) + matrix() @ row(4, "t")),
        {
            "shifted has no other user": other_user(
                lambda x: op.linear(x + param("t", 4), matrix()), lambda x: x + param("t", 4)
            ),
            "w, t are parametric": lambda x: op.linear(x + op.exp(x[0]), matrix()),
            "t has one value a feature of x": lambda x: op.linear(
                x[:1] + param("t", 2, 4), matrix()
            ),
        },
    ),
]

DECOMPOSE = [
    Case(
        "composite(x) -> its expansion",
        VECTORS,
        lambda x: op.linear(x, matrix(), param("b", 3)),
        lambda x: x @ matrix().mT + param("b", 3),
    ),
    Case(
        "project(composite(x)) -> its expansion",
        IMAGE,
        lambda x: op.batch_norm_train(x, param("g", 4), param("b", 4), eps=1e-5).project(1),
        lambda x: x.mean((0, 2, 3)),
    ),
]

CASES = [*SIMPLIFY, *CANONICALISE, *FOLD_BN, *LINEAR, *DECOMPOSE]
TABLES = (Simplify().rules, Canonicalise().rules, FoldBatchNorm().rules, Decompose().rules)
RULES = {rule.name: rule for table in TABLES for rule in table}


def apply_rule(rule, graph, limit=None):
    journal = Journal(limit)
    return rewrite(graph, [rule], 10, journal), journal


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_rule_fires_and_keeps_structure_and_values(case):
    inputs, (before, after) = build(case.types, case.before, case.after)
    graph = Graph((before,), inputs)
    got, journal = apply_rule(RULES[case.rule], graph)
    assert journal.entries
    assert got.outputs[0] is after, f"\n{got}\nin place of\n{Graph((after,), inputs)}"
    verify(got)
    assert CHECK.difference(graph, got) == ""


HOSTILE = np.array([0.0, -0.0, 1.0, -1.5, np.inf, -np.inf, np.nan, 1e-45, -1e-40, 3e38, -3e38, 7.5])


def hostile_arrays(graph, rng):
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


EXACT = [case for case in CASES if not RULES[case.rule].rounding and case not in DECOMPOSE]


@pytest.mark.parametrize("case", EXACT, ids=str)
def test_an_exact_rule_keeps_every_bit(case, rng):
    graph = graph_of(case.types, case.before)
    got, _ = apply_rule(RULES[case.rule], graph)
    for _ in range(8):
        arrays = hostile_arrays(graph, rng)
        (expected,), (came,) = reference.run(graph, arrays), reference.run(got, arrays)
        assert bits(expected) == bits(came)


STOPPED = [(case, guard) for case in CASES for guard in case.stopped]


@pytest.mark.parametrize(("case", "guard"), STOPPED, ids=lambda part: str(part))
def test_a_guard_stops_a_rule(case, guard):
    """With all its guards the rule does nothing; without this one it would go on."""
    rule, stopped = RULES[case.rule], case.stopped[guard]
    types, function = stopped if isinstance(stopped, tuple) else (case.types, stopped)
    graph = graph_of(types, function)
    got, journal = apply_rule(rule, graph)
    assert not journal.entries
    assert got is graph
    assert guard in [g.name for g in rule.guards]
    unguarded = replace(rule, guards=tuple(g for g in rule.guards if g.name != guard))
    try:
        _, journal = apply_rule(unguarded, graph, limit=1)
        assert journal.entries
    except RuleError:
        pass  # it went on, and made what no type rule accepts


def test_every_rule_has_a_case_and_every_guard_a_stop():
    assert sorted(RULES) == sorted({case.rule for case in CASES})
    for name, rule in RULES.items():
        stopped = {guard for case in CASES if case.rule == name for guard in case.stopped}
        assert {guard.name for guard in rule.guards} == stopped, name


def test_rules_have_names_of_their_own():
    for table in TABLES:
        names = [rule.name for rule in table]
        assert len(set(names)) == len(names)
