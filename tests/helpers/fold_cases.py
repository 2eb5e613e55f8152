"""Cases of fold-bn and decompose."""

from helpers.cases import BATCH, Case, constant, f32, param

from dlc.ir.pattern import op

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
