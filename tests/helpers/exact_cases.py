"""Cases of the rules that hold to the bit: simplify and canonicalise."""

from helpers.cases import BATCH, XY, B, Case, N, X, constant, f32, u8

from dlc.ir.pattern import op

NEVER = "x is never negative, nor -0.0"


def idempotent(name):
    f = getattr(op, name)
    return Case(f"{name}({name}(x)) -> {name}(x)", X, lambda x: f(f(x)), lambda x: f(x))


def of_integers(name):
    f = getattr(op, name)
    stopped = {"x is of integers": (X, lambda x: f(x))}
    return Case(f"{name}(x) -> x", N, lambda x: f(x), lambda x: x, stopped)


def equal_operands(name):
    f = getattr(op, name)
    return Case(f"{name}(x, x) -> x", X, lambda x: f(x, x), lambda x: x)


def absorbed(name):
    f = getattr(op, name)
    equation = f"{name}({name}(x, y), y) -> {name}(x, y)"
    return Case(equation, XY, lambda x, y: f(y, f(x, y)), lambda x, y: f(x, y))


def over_one(name):
    f = getattr(op, name)
    return Case(
        f"{name}(x) over axes of size 1 -> reshape(x)",
        (f32(1, 4, 1),),
        lambda x: f(x, axes=(0, 2), keepdims=False),
        lambda x: x.reshape((4,)),
        {"the axes have size 1": lambda x: f(x, axes=(0, 1), keepdims=False)},
    )


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
    Case(
        "x + 0 -> x",
        X,
        lambda x: op.square(x) + 0.0,
        lambda x: op.square(x),
        {NEVER: lambda x: op.relu(x) + 0.0},  # which keeps -0.0
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
    Case(
        "abs(-x) -> abs(x)",
        X,
        lambda x: abs(-x),
        lambda x: abs(x),
        {"x has a sign": ((u8(3),), lambda x: abs(-x))},
    ),
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
    *map(idempotent, ("sign", "floor", "ceil", "round", "trunc")),
    *map(of_integers, ("floor", "ceil", "round", "trunc")),
    *map(equal_operands, ("maximum", "minimum")),
    *map(absorbed, ("maximum", "minimum")),
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
    *map(over_one, ("amax", "amin")),
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
    Case(
        "x * x -> square(x)",
        X,
        lambda x: x * x,
        lambda x: op.square(x),
        {"x is of numbers": (B, lambda x: x * x)},
    ),
    Case(
        "x + x -> x * 2",
        X,
        lambda x: x + x,
        lambda x: x * 2.0,
        {"x is of numbers": (B, lambda x: x + x)},
    ),
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
