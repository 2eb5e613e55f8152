"""Losses beside PyTorch's: values, gradients, reductions, shapes, labels that are out of range."""

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as TF

import dlc
from dlc import functional as F
from dlc import nn
from dlc.backends import reference
from dlc.errors import ArgumentError, DTypeError, ShapeError
from dlc.frontend.trace import trace

DTYPES = ("float32", "float64")
REDUCTIONS = ("mean", "sum", "none")


def both(name, x, target, dtype, arrays=(), **options):
    """Values and gradients of a loss by every reduction, and PyTorch's; on the reference.

    ``arrays`` names options that are arrays.
    """
    x = x.astype(dtype)
    target = target.astype(dtype) if target.dtype.kind == "f" else target
    given = {key: options.pop(key).astype(dtype) for key in arrays}
    theirs = in_torch(name, x, target, given, options)
    weights = [cotangent(y.shape, dtype) for y in theirs[0]]

    def ours(x, target, given, weights):
        return by_reduction(name, x, target, given, options, weights)

    return on_reference(ours, x, target, given, weights), theirs


def by_reduction(name, x, target, given, options, weights):
    values, gradients = [], []
    for reduction, weight in zip(REDUCTIONS, weights, strict=True):
        loss = functools.partial(getattr(F, name), reduction=reduction, **given, **options)
        values.append(loss(x, target))
        gradients.append(dlc.grad(lambda x, f=loss, u=weight: (f(x, target) * u).sum())(x))
    return values, gradients


def in_torch(name, x, target, given, options):
    values, gradients = [], []
    given = {key: torch.tensor(value) for key, value in given.items()}
    for reduction in REDUCTIONS:
        there = torch.tensor(x, requires_grad=True)
        loss = functools.partial(getattr(TF, name), reduction=reduction, **given, **options)
        value = loss(there, torch.tensor(target))
        (value * torch.tensor(cotangent(value.shape, x.dtype))).sum().backward()
        values.append(value.detach())
        gradients.append(there.grad)
    return values, gradients


def on_reference(function, *arrays):
    return dlc.compile(function, *arrays, target="reference")(*arrays)


def cotangent(shape, dtype):
    return np.random.default_rng(9).uniform(0.5, 1.5, shape).astype(dtype)


def assert_agree(ours, theirs):
    for a, b in zip(flat(ours), flat(theirs), strict=True):
        torch.testing.assert_close(torch.tensor(a), b, equal_nan=True)


def flat(values):
    return [leaf for value in values for leaf in (value if isinstance(value, list) else [value])]


# Classes.

SHAPES = ((6, 4), (2, 5, 3), (2, 3, 4, 5), (3,))


def scores(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape) * 3


def labels(shape, ignored=None):
    rng = np.random.default_rng(1)
    places = (shape[0], *shape[2:]) if len(shape) > 1 else ()
    label = np.asarray(rng.integers(0, shape[min(1, len(shape) - 1)], places))
    if ignored is not None and label.ndim:
        label[rng.random(label.shape) < 0.4] = ignored
    return label


def classes(shape):
    return shape[min(1, len(shape) - 1)]


SETTINGS = [
    {},
    {"ignore_index": 1},
    {"label_smoothing": 0.2},
    {"label_smoothing": 0.2, "weight": True, "ignore_index": -7},
    {"weight": True, "ignore_index": 0},
]


def with_weight(options, shape):
    """The options with an array for a weight, and which of them are arrays."""
    if "weight" not in options:
        return options, ()
    weight = np.random.default_rng(2).uniform(0.5, 2.0, classes(shape))
    return {**options, "weight": weight}, ("weight",)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", SETTINGS)
@pytest.mark.parametrize("shape", SHAPES)
def test_cross_entropy_of_labels(shape, options, dtype):
    label = labels(shape, options.get("ignore_index", -100))
    given, arrays = with_weight(options, shape)
    assert_agree(*both("cross_entropy", scores(shape), label, dtype, arrays, **given))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{}, {"weight": True, "label_smoothing": 0.2}])
@pytest.mark.parametrize("shape", SHAPES)
def test_cross_entropy_of_probabilities(shape, options, dtype):
    wanted = np.exp(scores(shape, 3))
    wanted /= wanted.sum(min(1, len(shape) - 1), keepdims=True)
    given, arrays = with_weight(options, shape)
    assert_agree(*both("cross_entropy", scores(shape), wanted, dtype, arrays, **given))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{}, {"weight": True, "ignore_index": 1}])
@pytest.mark.parametrize("shape", SHAPES)
def test_nll_loss(shape, options, dtype):
    label = labels(shape, options.get("ignore_index", -100))
    given, arrays = with_weight(options, shape)
    assert_agree(*both("nll_loss", scores(shape), label, dtype, arrays, **given))


@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.int64])
def test_labels_are_of_any_integers(kind):
    x, label = scores((6, 4)).astype("float32"), labels((6, 4))
    made = on_reference(F.cross_entropy, x, label.astype(kind))
    expected = TF.cross_entropy(torch.tensor(x), torch.tensor(label))
    torch.testing.assert_close(torch.tensor(made), expected)


@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
def test_the_mean_where_nothing_counts_is_nan(name):
    x, label = scores((3, 4)).astype("float32"), np.full(3, -100)
    loss = getattr(F, name)
    assert np.isnan(on_reference(loss, x, label))
    assert np.isnan(on_reference(loss, x[:0], label[:0]))
    assert on_reference(functools.partial(loss, reduction="sum"), x, label) == 0
    assert np.isnan(dlc.jit(loss)(x, label))


def test_what_is_ignored_may_be_anything():
    x, label = scores((4, 3)).astype("float32"), np.array([0, -100, 2, 1])
    x[1] = [np.inf, -np.inf, 1e30]
    made = dlc.jit(F.cross_entropy)(x, label)
    expected = TF.cross_entropy(torch.tensor(x), torch.tensor(label))
    torch.testing.assert_close(torch.tensor(made), expected)


def test_scores_may_be_large():
    x, label = np.float32([[1000, -1000], [3e38, 0]]), np.array([1, 0])
    assert_agree(*both("cross_entropy", x, label, "float32"))


def test_one_compilation_serves_any_batch():
    spec = (
        dlc.TensorSpec((dlc.Dim("batch", 1, 64), 5)),
        dlc.TensorSpec((dlc.Dim("batch", 1, 64),), "int64"),
    )
    executable = dlc.compile(
        dlc.value_and_grad(functools.partial(F.cross_entropy, label_smoothing=0.1)), *spec
    )
    for count in (1, 3, 64):
        x, label = scores((count, 5)).astype("float32"), labels((count, 5))
        there = torch.tensor(x, requires_grad=True)
        value = TF.cross_entropy(there, torch.tensor(label), label_smoothing=0.1)
        value.backward()
        assert_agree(executable(x, label), (value.detach(), there.grad))


# Labels out of range.


@pytest.mark.parametrize(
    "loss",
    [
        F.cross_entropy,
        F.nll_loss,
        functools.partial(F.cross_entropy, label_smoothing=0.1, ignore_index=2, reduction="sum"),
    ],
)
def test_labels_out_of_range_are_errors(loss):
    x, right = scores((6, 4)).astype("float32"), labels((6, 4))
    compiled = dlc.jit(lambda x, y: loss(x, y))
    graph = trace(lambda x, y: loss(x, y), x, right).graph
    for wrong in (4, -1, 2**40, -(2**40)):
        label = right.copy()
        label[3] = wrong
        with pytest.raises(dlc.IndexError, match=rf"labels from 0 to 3, got {wrong} at \(3,\)"):
            compiled(x, label)
        message = rf"(nll_loss|entropy) expects labels from 0 to 3 .* got {wrong} at \(3,\)"
        with pytest.raises(dlc.IndexError, match=message):
            reference.run(graph, {"x": x, "y": label})


@pytest.mark.parametrize("target", ["cpu", "reference"])
@pytest.mark.parametrize("weight", [None, np.float32([1, 2, 3, 4])])
@pytest.mark.parametrize("function", [F.cross_entropy, F.nll_loss])
def test_gradients_alone_find_labels_out_of_range(function, weight, target):
    def loss(x, y):
        return function(x, y, weight)

    def through_gradients(x, y):
        return dlc.gradients(loss(x, y), [x])[0]

    x, label = scores((6, 4)).astype("float32"), labels((6, 4))
    whole = dlc.value_and_grad(loss)(x, label)[1]
    for gradient in (dlc.grad(loss), through_gradients):
        compiled = dlc.compile(gradient, x, label, target=target)
        np.testing.assert_allclose(compiled(x, label), whole, rtol=1e-6, atol=1e-7)
        wrong = np.where(np.arange(6) == 3, 4, label)
        with pytest.raises(dlc.IndexError, match=r"labels from 0 to 3, got 4 at \(3,"):
            compiled(x, wrong)


def test_only_gradients_alone_wait_for_the_loss():
    """Where the loss is a result, or finds no errors, nothing is added."""

    def waits(function):
        graph = trace(function, scores((6, 4)), labels((6, 4))).graph
        return any(node.op.name == "after" for node in graph.nodes)

    assert waits(dlc.grad(F.cross_entropy))
    assert not waits(dlc.value_and_grad(F.cross_entropy))
    assert not waits(dlc.grad(lambda x, y: F.mse_loss(x, x * 2)))
    model = nn.Linear(4, 3).train()
    step = dlc.train_step(model, nn.CrossEntropyLoss(), dlc.optim.SGD(lr=0.1))
    graph = step.executable(np.zeros((6, 4), np.float32), np.zeros(6, np.int64)).graph
    assert not any(node.op.name == "after" for node in graph.nodes)


def test_an_error_names_the_module():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.loss = nn.CrossEntropyLoss()

        def forward(self, x, y):
            return self.loss(x, y)

    x, label = scores((6, 4)).astype("float32"), np.full(6, 4)
    with pytest.raises(dlc.IndexError, match=r"labels from 0 to 3, got 4 at \(0,\) \(loss\)"):
        Net()(x, label)


# How it is compiled.


COMPILED = {
    "labels": [*(("cross_entropy", options) for options in SETTINGS), ("nll_loss", SETTINGS[-1])],
    "numbers": [(name, {}) for name in ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")],
    "probabilities": [
        ("cross_entropy", {"label_smoothing": 0.1}),
        ("binary_cross_entropy", {}),
        ("binary_cross_entropy_with_logits", {}),
        ("kl_div", {}),
    ],
}


@pytest.mark.filterwarnings("ignore:reduction")
@pytest.mark.parametrize("kind", COMPILED)
def test_native_code_gives_the_same(kind):
    rng = np.random.default_rng(0)
    x = rng.uniform(0.1, 0.9, (3, 20, 4)).astype("float32")
    target = labels(x.shape) if kind == "labels" else rng.uniform(0, 1, x.shape).astype("float32")
    cases = []
    for name, options in COMPILED[kind]:
        given, arrays = with_weight(options, x.shape)
        tensors = {key: given.pop(key).astype("float32") for key in arrays} if arrays else {}
        cases.append((name, {**given, **tensors}))

    @dlc.jit
    def ours(x, target):
        losses = [functools.partial(getattr(F, name), **options) for name, options in cases]
        return [[*dlc.value_and_grad(loss)(x, target)] for loss in losses]

    for (name, options), made in zip(cases, ours(x, target), strict=True):
        there = torch.tensor(x, requires_grad=True)
        tensors = {k: torch.tensor(v) if np.ndim(v) else v for k, v in options.items()}
        value = getattr(TF, name)(there, torch.tensor(target), **tensors)
        value.backward()
        assert_agree([made], [[value.detach(), there.grad]])


def kernels(function, *arrays):
    return [kernel.label for kernel in dlc.compile(function, *arrays).kernels]


def test_the_gradient_is_one_pointwise_kernel():
    x, label = scores((32, 10)).astype("float32"), labels((32, 10))
    made = kernels(dlc.value_and_grad(F.cross_entropy), x, label)
    assert sum("amax" in kernel for kernel in made) == 1
    assert sum("exp+eq" in kernel for kernel in made) == 1
    assert not any("scatter" in kernel for kernel in made)
    assert len([kernel for kernel in made if "exp" in kernel]) == 2


# Numbers and probabilities.

REGRESSION = [
    ("mse_loss", {}),
    ("mse_loss", {"weight": True}),
    ("l1_loss", {}),
    ("l1_loss", {"weight": True}),
    ("smooth_l1_loss", {}),
    ("smooth_l1_loss", {"beta": 0.3}),
    ("smooth_l1_loss", {"beta": 0.0}),
    ("huber_loss", {}),
    ("huber_loss", {"delta": 0.3, "weight": True}),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "options"), REGRESSION)
def test_losses_of_numbers(name, options, dtype):
    rng = np.random.default_rng(0)
    for shape in ((4, 3), (), (2, 3, 2, 2)):
        x, target = rng.normal(size=shape), rng.normal(size=shape)
        x.flat[0] = target.flat[0] if x.size > 1 else 0.0  # no difference at all
        given = {**options}
        arrays = ("weight",) if given.pop("weight", False) else ()
        given |= {key: rng.uniform(0.5, 2, shape) for key in arrays}
        assert_agree(*both(name, x, target, dtype, arrays, **given))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weights", [(), ("weight",), ("weight", "pos_weight")])
@pytest.mark.parametrize("name", ["binary_cross_entropy", "binary_cross_entropy_with_logits"])
def test_binary_cross_entropy(name, weights, dtype):
    if name == "binary_cross_entropy" and "pos_weight" in weights:
        weights = ("weight",)
    rng = np.random.default_rng(0)
    for shape in ((4, 3), (2, 3, 2)):
        x, target = rng.uniform(0.01, 0.99, shape), rng.uniform(0, 1, shape)
        x.flat[:4], target.flat[:4] = (0, 1, 0, 1), (0, 0, 1, 1)
        if name.endswith("logits"):
            x = rng.normal(size=shape) * 20
            x.flat[:4] = (-1000, 1000, -1000, 1000)
        given = {key: rng.uniform(0.5, 2, shape[-1]) for key in weights}
        assert_agree(*both(name, x, target, dtype, weights, **given))


@pytest.mark.filterwarnings("ignore:reduction")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("log_target", [False, True])
def test_kl_div(log_target, dtype):
    rng = np.random.default_rng(0)
    x, target = rng.normal(size=(4, 3)), rng.uniform(0, 1, (4, 3))
    target[0, 0] = 1.0 if log_target else 0.0
    wanted = np.log(target) if log_target else target
    assert_agree(*both("kl_div", x, wanted, dtype, log_target=log_target))


# Layers.

WEIGHT = np.float32([1, 2, 0.5])
LAYERS = [
    ("CrossEntropyLoss", {"weight": WEIGHT, "label_smoothing": 0.1, "ignore_index": 0}, "labels"),
    ("CrossEntropyLoss", {"reduction": "sum"}, "numbers"),
    ("NLLLoss", {"weight": WEIGHT, "reduction": "none", "ignore_index": 0}, "labels"),
    ("MSELoss", {"reduction": "sum"}, "numbers"),
    ("L1Loss", {}, "numbers"),
    ("SmoothL1Loss", {"beta": 0.5}, "numbers"),
    ("HuberLoss", {"delta": 0.5, "reduction": "none"}, "numbers"),
    ("BCELoss", {"weight": WEIGHT}, "numbers"),
    ("BCEWithLogitsLoss", {"weight": WEIGHT, "pos_weight": WEIGHT}, "numbers"),
    ("KLDivLoss", {"reduction": "batchmean", "log_target": True}, "numbers"),
]


@pytest.mark.parametrize(("name", "options", "kind"), LAYERS)
def test_a_layer_is_pytorchs(name, options, kind):
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 1, (4, 3)).astype("float32")
    target = rng.uniform(0, 1, (4, 3)).astype("float32") if kind == "numbers" else labels((4, 3))
    ours = getattr(nn, name)(**options)
    in_torch = {
        key: torch.tensor(value) if isinstance(value, np.ndarray) else value
        for key, value in options.items()
    }
    theirs = getattr(torch.nn, name)(**in_torch)
    expected = theirs(torch.tensor(x), torch.tensor(target))
    torch.testing.assert_close(torch.tensor(on_reference(ours, x, target)), expected)
    assert list(ours.state_dict()) == list(theirs.state_dict())


def test_a_layer_says_what_it_is():
    text = "CrossEntropyLoss(ignore_index=-100, reduction='mean', label_smoothing=0.1)"
    assert repr(nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=0.1)) == text


# Errors.

X = np.zeros((4, 3), "float32")
Y = np.zeros(4, "int64")


@pytest.mark.parametrize(
    ("loss", "arrays", "error", "message"),
    [
        (F.cross_entropy, (X, Y[:3]), ShapeError, r"expects labels \(4,\) for scores \(4, 3\)"),
        (F.cross_entropy, (X, X[:, 0]), ShapeError, r"Cast class numbers with target.long\(\)"),
        (F.cross_entropy, (X, X.astype("float64")), ShapeError, r"probabilities float32\[4, 3\]"),
        (
            lambda x, y: F.cross_entropy(x, y, ignore_index=2),
            (X, X),
            ArgumentError,
            "no ignore_index where the target is probabilities, got 2",
        ),
        (
            lambda x, y: F.cross_entropy(x, y, reduction="average"),
            (X, Y),
            ArgumentError,
            "a reduction of mean, sum, none, got 'average'",
        ),
        (
            lambda x, y: F.mse_loss(x, y, reduction="batchmean"),
            (X, X),
            ArgumentError,
            "a reduction of mean, sum, none",
        ),
        (
            lambda x, y: F.cross_entropy(x, y, label_smoothing=2),
            (X, Y),
            ArgumentError,
            "label_smoothing from 0 to 1",
        ),
        (
            lambda x, y: F.cross_entropy(x, y, label_smoothing=-1.0),
            (X, X),
            ArgumentError,
            "label_smoothing expects a share from 0 to 1",
        ),
        (F.mse_loss, (X[:, :1], X[:, 0]), ShapeError, r"Reshape it: target.reshape\(4, 1\)"),
        (F.l1_loss, (X, X[0]), ShapeError, "broadcast it with expand"),
        (F.huber_loss, (X, X.astype("float64")), DTypeError, "target.to"),
        (F.kl_div, (X, np.zeros((4, 3), "int64")), DTypeError, "one type of floats"),
        (lambda x, y: F.smooth_l1_loss(x, y, beta=-1.0), (X, X), ArgumentError, "beta of at least"),
        (lambda x, y: F.huber_loss(x, y, delta=0.0), (X, X), ArgumentError, "delta above 0"),
        (
            lambda x, y: F.mse_loss(x, y, weight=y[0]),
            (X, X),
            ShapeError,
            r"a weight of the input's shape \(4, 3\), got \(3,\)",
        ),
        (
            lambda x, y: F.binary_cross_entropy(x, y, y.double()),
            (X, X),
            DTypeError,
            "a weight of float32 like its input, got float64",
        ),
    ],
)
def test_wrong_arguments_are_explained(loss, arrays, error, message):
    with pytest.raises(error, match=message):
        dlc.jit(loss)(*arrays)
