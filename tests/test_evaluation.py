"""The loss over a data set is that of the whole set in one batch, whatever size batches have."""

import functools

import numpy as np
import pytest
import torch
from test_training import X, Y, model

import dlc
from dlc import functional as F
from dlc import nn, optim

ORDER = np.argsort(Y != 1, kind="stable")  # all ones first: a batch may hold nothing else
WEIGHT = np.float32([0.2, 1.0, 3.0])
LABELS = [
    {},
    {"weight": WEIGHT},
    {"ignore_index": 1},
    {"weight": WEIGHT, "ignore_index": 1, "label_smoothing": 0.1},
]


def losses(loss, x, y, sizes=(5, 16, 50), **options):
    """The loss over a data set in batches of several sizes, and the outputs of the model."""
    dlc.seed(0)
    run = dlc.Trainer(model(), loss, optim.SGD(), **options)
    return [run.evaluate((x, y), batch_size=size)["loss"] for size in sizes], run.predict(x)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("options", LABELS)
@pytest.mark.parametrize("function", [False, True])
def test_the_size_of_batches_does_not_decide_a_loss_of_labels(options, reduction, function):
    """Not even where a batch holds no label that counts."""
    options = {**options, "reduction": reduction}
    loss = functools.partial(F.cross_entropy, **options)
    x, y = X[ORDER], Y[ORDER]
    found, outputs = losses(loss if function else nn.CrossEntropyLoss(**options), x, y)
    tensors = {k: torch.tensor(v) if k == "weight" else v for k, v in options.items()}
    expected = torch.nn.CrossEntropyLoss(**tensors)(torch.tensor(outputs), torch.tensor(y))
    assert found == pytest.approx([expected.item()] * 3, rel=1e-5)


@pytest.mark.parametrize("loss", [F.cross_entropy, nn.CrossEntropyLoss()])
def test_ignored_labels_count_nothing_however_the_loss_is_given(loss):
    y = np.where(Y == 1, -100, Y)
    found, outputs = losses(loss, X[ORDER], y[ORDER])
    theirs = torch.nn.functional.cross_entropy(torch.tensor(outputs), torch.tensor(y[ORDER]))
    assert found == pytest.approx([theirs.item()] * 3, rel=1e-5)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(
    ("ours", "theirs"), [("MSELoss", "mse_loss"), ("SmoothL1Loss", "smooth_l1_loss")]
)
def test_nor_that_of_numbers(ours, theirs, reduction):
    wanted = np.random.default_rng(1).normal(size=(50, 3)).astype(np.float32)
    found, outputs = losses(getattr(nn, ours)(reduction=reduction), X, wanted)
    function = getattr(torch.nn.functional, theirs)
    expected = function(torch.tensor(outputs), torch.tensor(wanted), reduction=reduction)
    assert found == pytest.approx([expected.item()] * 3, rel=1e-5)


def test_where_no_label_counts_a_mean_is_nan_and_a_sum_zero():
    y = np.full(50, -100)
    assert np.isnan(losses(nn.CrossEntropyLoss(), X, y)[0]).all()
    assert losses(nn.CrossEntropyLoss(reduction="sum"), X, y)[0] == [0.0] * 3


def test_a_sum_is_one_in_the_history_too():
    """In an epoch in which nothing is learned, training and validation are told alike."""
    dlc.seed(0)
    loss = nn.CrossEntropyLoss(reduction="sum")
    run = dlc.Trainer(nn.Linear(8, 3), loss, optim.SGD(lr=0.0), metrics=("accuracy",))
    history = run.fit((X, Y), (X, Y), batch_size=16)
    assert history["loss"] == pytest.approx(history["val_loss"], rel=1e-5)
    assert history["accuracy"] == pytest.approx(history["val_accuracy"])
    whole = run.evaluate((X, Y), batch_size=50)["loss"]
    assert history["val_loss"] == pytest.approx([whole], rel=1e-5)
