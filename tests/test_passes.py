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
from dlc.errors import ArgumentError, RuleError
from dlc.ir import manager
from dlc.ir.graph import Graph
from dlc.ir.node import Builder, Origin, building, current_builder
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
from dlc.passes.pipelines import LEVELS, O1, O2
from dlc.passes.simplify import Simplify

BATCH = Dim("batch", 1, 8)


CHECK = Check(reference.run)


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
            lambda x, f=f: f(f(x)),
            lambda x, f=f: f(x),
        )
        for f in ("sign", "floor", "ceil", "round", "trunc")
    ),
    *(
        Case(
            f"{f}(x) -> x",
            N,
            lambda x, f=f: f(x),
            lambda x: x,
            {"x is of integers": (X, lambda x, f=f: f(x))},
        )
        for f in ("floor", "ceil", "round", "trunc")
    ),
    *itertools.chain.from_iterable(
        (
            Case(f"{f}(x, x) -> x", X, lambda x, f=f: f(x, x), lambda x: x),
            Case(
                f"{f}({f}(x, y), y) -> {f}(x, y)",
                XY,
                lambda x, y, f=f: f(y, f(x, y)),
                lambda x, y, f=f: f(x, y),
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
            lambda x, f=f: f(x, axes=(0, 2), keepdims=False),
            lambda x: x.reshape((4,)),
            {"the axes have size 1": lambda x, f=f: f(x, axes=(0, 1), keepdims=False)},
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


def bn_unshifted(x, var):
    zero = constant([0.0] * 4)
    return op.batch_norm(x, zero, var, param("g", 4), zero, eps=1e-3)


def scale(channels, name="s", ndim=3):
    return param(name, channels, *(1,) * (ndim - 1))


def scaled_inputs(x, groups):
    """What conv(x·s, w) becomes, by hand: one factor for each weight of an input channel."""
    w, s = weight(groups), scale(4)
    rows = s.reshape((groups, 1, w.shape[1])).expand((groups, w.shape[0] // groups, w.shape[1]))
    return w * rows.reshape((w.shape[0], w.shape[1], 1, 1))


def bn_folded(x):
    g, b, m, v = (
        param("g", 4),
        param("b", 4),
        param("mean", 4, role="buffer"),
        param("var", 4, role="buffer"),
    )
    s = g / (v + 1e-3).sqrt()
    return x * s.reshape((4, 1, 1)) + (b - m * s).reshape((4, 1, 1))


def other_user(function, shared):
    """Outputs of which the second reads what the first would fold."""
    return lambda x: (function(x), op.exp(shared(x)))


FOLD_BN = [
    Case(
        "bn(x, 0, v, g, 0) -> x·s",
        IMAGE,
        lambda x: bn_unshifted(x, param("var", 4, role="buffer")),
        lambda x: (
            x * (param("g", 4) / (param("var", 4, role="buffer") + 1e-3).sqrt()).reshape((4, 1, 1))
        ),
        {"v, g are parametric": lambda x: bn_unshifted(x, op.exp(x[0, :, 0, 0]))},
    ),
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


# Passes as wholes.


def ops_of(graph):
    return [node.op.name for node in graph.nodes]


def images(function, *shape):
    """A graph over images (batch, 4, 5, 5)."""
    return graph_of((f32(BATCH, *(shape or (4, 5, 5))),), function)


def folded(graph):
    """What fold-bn makes of a graph, checked by value; the ops that `main` has left."""
    result, _ = manager.run(graph, [FoldBatchNorm(), Simplify()], check=CHECK)
    known = {}
    for node in result.nodes:
        known[node] = all(known[n] for n in node.inputs) if node.inputs else node.op.name != "input"
    return [node.op.name for node in result.nodes if not known[node]]


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_batch_norm_becomes_part_of_its_convolution(groups):
    graph = images(lambda x: op.relu(bn_of(conv(x, weight(groups), 1, groups))))
    assert folded(graph) == ["input", "conv2d", "add", "relu"]


def bn_of(x, prefix=""):
    c = x.shape[1]
    mean, var = (param(prefix + name, c, role="buffer") for name in ("mean", "var"))
    return op.batch_norm(x, mean, var, param(prefix + "g", c), param(prefix + "b", c), eps=1e-5)


def test_a_bias_between_convolution_and_batch_norm_joins_it():
    graph = images(lambda x: bn_of(conv(x, weight()) + scale(6, "bias")))
    assert folded(graph) == ["input", "conv2d", "add"]


def test_batch_norm_after_batch_norm_folds_too():
    assert folded(images(lambda x: bn_of(bn_of(conv(x, weight())), "second."))) == [
        "input",
        "conv2d",
        "add",
    ]


def test_a_batch_norm_before_a_convolution_folds_without_padding():
    assert folded(images(lambda x: conv(bn_of(x), weight(2), 0, 2))) == ["input", "conv2d", "add"]


def test_a_batch_norm_before_a_padded_convolution_stays_a_shift():
    """The padding is zero after the batch norm, so its shift cannot go behind the convolution."""
    assert folded(images(lambda x: conv(bn_of(x), weight(), 1))) == [
        "input",
        "mul",
        "add",
        "conv2d",
    ]


def test_a_batch_norm_without_shift_folds_through_padding():
    graph = images(lambda x: conv(bn_unshifted(x, param("var", 4, role="buffer")), weight(), 1))
    assert folded(graph) == ["input", "conv2d"]


def test_a_shared_convolution_keeps_its_weights():
    def function(x):
        y = conv(x, weight())
        return bn_of(y), op.relu(y)

    assert folded(images(function)) == ["input", "conv2d", "mul", "add", "relu"]


def test_a_convolution_that_is_an_output_keeps_its_weights():
    def function(x):
        y = conv(x, weight())
        return y, bn_of(y)

    assert folded(images(function)) == ["input", "conv2d", "mul", "add"]


def test_training_mode_is_not_folded():
    def function(x):
        whole = op.batch_norm_train(conv(x, weight()), param("g", 6), param("b", 6), eps=1e-5)
        return whole.project(0), whole.project(1)

    graph = images(function)
    assert run(graph, "fold-bn") is graph


def test_one_weight_of_two_convolutions_is_scaled_for_each():
    def function(x):
        y = bn_of(op.conv2d(x, param("w", 4, 4, 3, 3), padding=1), "first.")
        return bn_of(op.conv2d(op.relu(y), param("w", 4, 4, 3, 3), padding=1), "second.")

    assert folded(images(function)) == ["input", "conv2d", "add", "relu", "conv2d", "add"]


def test_a_batch_norm_around_a_linear_layer_folds():
    def function(x):
        y = bn_of(op.linear(bn_of(x, "in."), matrix(), param("b", 3)), "out.")
        return op.relu(y)

    assert folded(images(function, 4)) == ["input", "linear", "relu"]


def test_a_batch_norm_over_another_axis_than_the_features_stays():
    """On (N, C, L) a batch norm scales C, a linear layer mixes L."""
    graph = images(lambda x: bn_of(op.linear(x, param("w", 3, 4))), 5, 4)
    assert folded(graph) == ["input", "linear", "mul", "add"]


def test_preprocessing_folds_into_the_first_convolution():
    """(x - mean) / std, as users write it in front of a network."""
    graph = images(lambda x: conv((x - scale(4, "mean")) / scale(4, "std"), weight(), 0))
    assert folded(graph) == ["input", "conv2d", "add"]


# Folding of constants.


def test_constants_fold_through_several_ops():
    graph = graph_of(X, lambda x: x + op.exp(constant([1.0, 2.0, 3.0, 4.0]) * 2.0))
    got = run(graph, "fold-constants")
    assert ops_of(got) == ["input", "constant", "add"]
    expected = np.exp(np.array([2, 4, 6, 8], "float32"))
    np.testing.assert_array_equal(got.nodes[1].attrs["value"], expected)


def test_one_of_several_outputs_folds():
    def function(x):
        ones, values = constant([1.0, 1.0]), constant([[1.0, 2.0], [3.0, 6.0]])
        whole = op.batch_norm_train(values, ones, ones, eps=0.0)
        return x + whole.project(1)

    got = run(graph_of((f32(2),), function), "fold-constants")
    assert ops_of(got) == ["input", "constant", "add"]
    np.testing.assert_array_equal(got.nodes[1].attrs["value"], [2.0, 4.0])


def test_a_result_beyond_the_budget_is_not_folded():
    def function(x):
        return x + constant(np.ones((16, 1))) * constant(np.ones((1, 16)))

    graph = graph_of((f32(16, 16),), function)
    assert run(graph, "fold-constants(limit=1023)") is graph or "mul" in ops_of(
        run(graph, "fold-constants(limit=1023)")
    )
    assert "mul" not in ops_of(run(graph, "fold-constants(limit=1024)"))


def test_what_enlarges_a_constant_or_has_a_symbolic_size_is_not_folded():
    graph = graph_of(
        (f32(BATCH, 4),), lambda x: op.relu(x) + constant([1.0] * 4).expand((BATCH, 4))
    )
    assert "expand" in ops_of(run(graph, "fold-constants"))
    graph = graph_of(X, lambda x: x + constant(1.0).expand((3, 4)))
    assert "expand" in ops_of(run(graph, "fold-constants"))


def test_parameters_are_not_folded():
    graph = graph_of(X, lambda x: x + op.exp(param("w", 4)))
    assert "exp" in ops_of(run(graph, "fold-constants"))


# Decomposition.


def test_decompose_leaves_no_composite_op(rng):
    def function(x):
        whole = op.batch_norm_train(x, param("g", 4), param("b", 4), eps=1e-5)
        y = op.softmax(op.layer_norm(whole.project(0), param("h", 5), param("c", 5)), axis=1)
        return op.adaptive_avg_pool2d(y, output_size=(2, 2)), whole.project(2)

    graph = images(function)
    got, report = manager.run(graph, [Decompose()], check=CHECK)
    assert "its expansion" in str(report)
    assert not {"batch_norm_train", "softmax", "layer_norm", "adaptive_avg_pool2d"} & set(
        ops_of(got)
    )


def test_decompose_keeps_what_it_is_told_to():
    graph = graph_of(VECTORS, lambda x: op.softmax(op.linear(x, matrix()), axis=1))
    assert ops_of(run(graph, "decompose(keep=('linear',))")).count("linear") == 1
    assert Decompose().ensures
    assert not Decompose(keep=("linear",)).ensures


def test_an_expansion_carries_the_origins_of_the_op_alone():
    graph = graph_of(VECTORS, lambda x: op.linear(op.relu(x), matrix()))
    (relu,) = [node for node in graph.nodes if node.op.name == "relu"]
    relu.origins |= {Origin("relu")}
    graph.outputs[0].origins |= {Origin("linear")}
    got = run(graph, "decompose")
    assert {node.op.name: {o.module for o in node.origins} for node in got.nodes} == {
        "input": set(),
        "relu": {"relu"},
        "parameter": set(),
        "transpose": {"linear"},
        "matmul": {"linear"},
    }


# Levels.


@given(graphs())
@settings(max_examples=60)
def test_level_1_keeps_every_bit(graph):
    graph = Decompose()(graph)
    got = run(graph, "O1")
    arrays = random_arrays(graph)
    for a, b in zip(reference.run(graph, arrays), reference.run(got, arrays)):
        assert bits(a) == bits(b), f"\n{graph}\nbecomes\n{got}"


@given(graphs())
@settings(max_examples=60)
def test_level_2_keeps_values_in_float64(graph):
    manager.run(graph, O2, check=CHECK)


@given(graphs())
@settings(max_examples=25)
def test_passes_end_where_they_end(graph):
    """What a pass has made it leaves alone."""
    for name in ("simplify", "canonicalise", "fold-bn", "fold-constants", "decompose"):
        once = run(graph, name)
        assert run(once, name) is once or str(run(once, name)) == str(once)


def test_levels_name_their_passes():
    assert parse("O1") == O1
    assert parse(" O0 , fold-bn(budget=3)") == (*LEVELS["O0"], FoldBatchNorm(budget=3))
    assert parse("") == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fold-bm", "there is no pass 'fold-bm'; did you mean 'fold-bn'?"),
        ("simplify,", "expects the name of a pass at column 10, got the end"),
        ("simplify fold-bn", "expects a comma or '(' at column 10, got 'fold-bn'"),
        ("simplify(budget=3", "expects ')' at column 18, got the end"),
        ("simplify(3)", "expects options such as (budget=10), got (3)"),
        ("simplify(budget=x)", "expects options such as"),
        ("simplify(bugdet=3)", "has the options budget, got 'bugdet'"),
        ("simplify(budget='3')", "is of type int, got '3'"),
        ("O2(budget=3)", "there is no pass 'O2'"),
        ("?", "expects the name of a pass at column 1, got '?'"),
    ],
)
def test_a_wrong_pipeline_is_explained(text, message):
    with pytest.raises(ArgumentError) as caught:
        parse(text)
    assert message in str(caught.value)


def test_every_pass_has_a_line_of_documentation_and_a_default():
    assert {"simplify", "fold-constants", "canonicalise", "fold-bn", "decompose"} <= set(passes())
    for name, kind in passes().items():
        assert kind.__doc__
        assert str(kind()) == name


def test_the_page_of_the_passes_is_up_to_date():
    path = Path(dlc.__file__).parent.parent / "docs" / "passes.md"
    assert path.read_text(encoding="utf-8") == page(), "run: python -m dlc.passes > docs/passes.md"
