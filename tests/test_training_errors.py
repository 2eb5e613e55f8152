"""Training that goes wrong: what is refused, what is said, and that nothing is changed."""

import copy

import numpy as np
import pytest
import torch
from test_training import X, Y, model, trainer, weights

import dlc
from dlc import nn, optim
from dlc.errors import (
    ArgumentError,
    DTypeError,
    ExecutionError,
    NumericsError,
    ShapeError,
    TraceError,
    WeightsError,
)


@pytest.mark.parametrize(
    ("batch", "error", "match"),
    [
        ((X,), ArgumentError, "inputs and then a target"),
        ((X, Y[:7]), ShapeError, r"as many samples each.*\(50, 8\) and \(7,\)"),
        ((X[:0], Y[:0]), ShapeError, "at least one"),
    ],
)
def test_batches_that_are_none(batch, error, match):
    step = dlc.train_step(nn.Linear(8, 3), nn.CrossEntropyLoss(), optim.SGD(lr=0.1))
    with pytest.raises(error, match=match):
        step(*batch)


@pytest.mark.parametrize("bound", [-0.1, float("nan")])
@pytest.mark.parametrize("clip", ["clip_grad_norm", "clip_grad_value"])
def test_gradients_are_not_turned_round(clip, bound):
    for make in (dlc.train_step, dlc.Trainer):
        with pytest.raises(ArgumentError, match="of at least 0, got"):
            make(nn.Linear(8, 3), nn.CrossEntropyLoss(), optim.SGD(), **{clip: bound})


def test_threads_are_counted_when_a_trainer_is_made():
    with pytest.raises(ArgumentError, match="threads expects an integer of at least 1, got 0"):
        dlc.Trainer(nn.Linear(8, 3), nn.CrossEntropyLoss(), optim.SGD(), threads=0)


@pytest.mark.parametrize("most", [0, 2.5, True])
def test_the_largest_batch_is_a_number_of_samples(most):
    with pytest.raises(ArgumentError, match=f"max_batch expects an integer of .* 1, got {most}"):
        dlc.train_step(nn.Linear(8, 3), nn.CrossEntropyLoss(), optim.SGD(), max_batch=most)


def test_a_label_out_of_range_changes_nothing():
    run = trainer()
    before = weights(run)
    wrong = Y.copy()
    wrong[30] = 3
    match = r"step 1 \(epoch 1\): .* got 3 at \(\d+,\) .*, in sample 30 of the training data"
    with pytest.raises(dlc.IndexError, match=match):
        run.fit((X, wrong), batch_size=50)
    for name, array in weights(run).items():
        np.testing.assert_array_equal(array, before[name])


def test_a_label_out_of_range_of_validation_data_is_that_of_a_sample():
    made, wrong = trainer(), Y.copy()
    wrong[37] = 3
    labels = "a loss expects labels from 0 to 2, got 3"
    match = rf"{labels} at \(5,\).*, in sample 37 of the data"
    with pytest.raises(IndexError, match=match):
        made.evaluate((X, wrong), batch_size=16)
    with pytest.raises(IndexError, match="in sample 37 of the validation data"):
        made.fit((X, Y), epochs=1, batch_size=16, validation=(X, wrong))
    with pytest.raises(DTypeError, match=r"a tuple of arrays.*got dict. Give its arrays"):
        made.evaluate({"x": X, "y": Y})


def test_notes_that_no_checkpoint_can_keep(tmp_path):
    run, path = trainer(), tmp_path / "run.ckpt"
    run.notes["classes"] = np.arange(3)
    match = r"trainer.notes\['classes'\] expects what JSON holds"
    with pytest.raises(ArgumentError, match=match):
        run.fit((X, Y), epochs=1, checkpoint=path)
    with pytest.raises(ArgumentError, match=match):
        run.save(path)
    assert (run.step, path.exists()) == (0, False)


def test_an_unknown_argument_of_an_optimiser():
    with pytest.raises(ArgumentError, match="momentun"):
        optim.SGD(lr=0.1, momentun=0.9)


def test_a_schedule_of_another_optimiser():
    net = nn.Linear(8, 3)
    own, other = (optim.SGD(net.parameters(), lr=0.1) for _ in range(2))
    scheduler = optim.lr_scheduler.ExponentialLR(other, 0.5)
    with pytest.raises(ArgumentError, match="a scheduler of its optimizer, got one of another"):
        dlc.Trainer(net, nn.CrossEntropyLoss(), own, scheduler=scheduler)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"epochs": 0}, "at least 1"),
        ({"patience": 0}, "at least 1"),
        ({"epochs": 1.5}, r"epochs expects an integer of at least 1, got 1\.5"),
        ({"checkpoint_every": 5}, "a path for checkpoint"),
        ({"checkpoint_every": 1.5, "checkpoint": "a.ckpt"}, "an integer of at least 1"),
        ({"checkpoint": "nowhere/a.ckpt"}, "a path in a folder, got no folder .*nowhere"),
        ({"callbacks": print}, "instances of dlc.Callback, got <built-in"),
        ({"callbacks": [dlc.Callback]}, "instances of dlc.Callback, got <class"),
    ],
)
def test_options_of_fit(options, match):
    with pytest.raises(ArgumentError, match=match):
        trainer().fit((X, Y), **options)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"model": nn.Linear}, r"an instance, got the class Linear. Make one: Linear\(...\)"),
        ({"model": torch.nn.Linear(8, 3)}, "a dlc Module, first, got a Linear"),
        ({"loss": "mse"}, r"a loss\(output, target\), got 'mse'"),
        ({"loss": nn.MSELoss}, "an instance, got the class MSELoss"),
        ({"optimizer": torch.optim.SGD([torch.zeros(1)])}, "dlc.optim, got PyTorch's SGD. Such as"),
        ({"loss": torch.nn.MSELoss()}, "PyTorch's MSELoss. Use dlc.nn.MSELoss."),
        ({"loss": torch.nn.functional.mse_loss}, "a loss of dlc, got PyTorch's mse_loss. dlc.nn"),
        ({"optimizer": "sgd"}, "an optimizer of dlc.optim, got 'sgd'"),
        ({"optimizer": optim.SGD}, "an instance, got the class SGD"),
    ],
)
@pytest.mark.parametrize("make", [dlc.Trainer, dlc.train_step])
def test_what_is_trained_is_checked(make, change, match):
    parts = {"model": nn.Linear(8, 3), "loss": nn.MSELoss(), "optimizer": optim.SGD()}
    with pytest.raises(ArgumentError, match=match):
        make(**{**parts, **change})


def test_names_of_metrics():
    with pytest.raises(ArgumentError, match="names among accuracy, top5"):
        dlc.Trainer(model(), nn.CrossEntropyLoss(), optim.SGD(lr=0.1), metrics=("acuracy",))
    with pytest.raises(ArgumentError, match="other names than 'loss'"):
        dlc.Trainer(model(), nn.MSELoss(), optim.SGD(lr=0.1), metrics={"loss": None})


def test_a_loss_that_is_not_finite_names_the_layer():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(8, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.second((self.first(x) - 100.0).log())

    run = dlc.Trainer(Net(), nn.CrossEntropyLoss(), optim.SGD(lr=0.1))
    with pytest.raises(
        NumericsError, match=r"step 1 \(epoch 1\).*first log \(test_training_errors.py:\d+"
    ):
        run.fit((X, Y), epochs=1)

    run = trainer()
    bad = X.copy()
    bad[49] = np.inf
    with pytest.raises(
        NumericsError, match=r"first the batch \(tensors.0\) holds inf at \(49, 0\)"
    ):
        run.fit((bad, Y), epochs=1, batch_size=50, shuffle=False)

    run.model[3].weight.data = np.full((3, 16), np.nan, np.float32)
    with pytest.raises(
        NumericsError, match=r"first the parameter '3.weight'.* holds nan at \(0, 0\)"
    ):
        run.fit((X, Y), epochs=1)


def test_a_step_by_itself_names_the_layer_too():
    step = dlc.train_step(nn.Linear(8, 3), nn.CrossEntropyLoss(), optim.SGD(lr=0.1))
    before = step.model.state_dict()
    with pytest.raises(NumericsError, match=r"first the batch \(tensors.0\) holds nan at \(0, 0\)"):
        step(np.full_like(X, np.nan), Y)
    assert all(np.array_equal(before[n], array) for n, array in step.model.state_dict().items())


@pytest.mark.parametrize("written", ["where", "sum"])
def test_a_mask_is_not_where_a_loss_went_wrong(written):
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(8, 3)
            self.register_buffer("mask", np.where(np.arange(8) < 4, 0, -np.inf).astype(np.float32))

        def forward(self, x):
            if written == "where":
                scores = dlc.where(self.mask < 0.0, -float("inf"), x)
            else:
                scores = x + self.mask
            return (self.out(scores.softmax(1)) - 100.0).sqrt()

    run = dlc.Trainer(Masked(), nn.CrossEntropyLoss(), optim.SGD(lr=0.1))
    with pytest.raises(NumericsError, match=r"first sqrt \(test_training_errors.py:\d+"):
        run.fit((X, Y))


def test_a_loss_that_no_parameter_has_to_do_with():
    def loss(output, target):
        return target.float().mean()

    step = dlc.train_step(nn.Linear(8, 3), loss, optim.SGD(lr=0.1))
    with pytest.raises(ArgumentError, match="depends on no parameter that requires a gradient"):
        step(X, Y)


@pytest.mark.parametrize("net", [nn.ReLU(), nn.Linear(8, 3).requires_grad_(False)])
def test_a_model_with_nothing_to_train(net):
    with pytest.raises(ArgumentError, match="a parameter that requires a gradient, got none"):
        dlc.Trainer(net, nn.CrossEntropyLoss(), optim.SGD()).fit((X, Y))


def test_advice_fits_what_went_wrong():
    run = trainer()
    with pytest.raises(NumericsError, match=r"first div \(crossentropyloss.*\) divides by 0.*all"):
        run.fit((X, np.full_like(Y, -100)))
    bad = X.copy()
    bad[3] = np.nan
    with pytest.raises(NumericsError, match=r"holds nan .* look at the data$"):
        run.fit((bad, Y))


def test_a_loss_of_shares_asks_for_shares():
    step = dlc.train_step(nn.Linear(8, 1), nn.BCELoss(), optim.SGD())
    with pytest.raises(NumericsError, match="put a sigmoid before it, or use"):
        step(100 * X, (Y[:, None] > 0).astype(np.float32))


def test_the_loop_of_pytorch_is_explained():
    descent = optim.SGD(nn.Linear(8, 3).parameters(), lr=0.1)
    with pytest.raises(AttributeError, match="SGD has no 'zero_grad': no gradient is kept"):
        descent.zero_grad()
    with pytest.raises(AttributeError, match=r"no 'grad'.*dlc\.gradients"):
        nn.Linear(2, 1).weight.grad  # noqa: B018
    with pytest.raises(TraceError, match=r"is part of a trace\. dlc\.train_step compiles one"):
        descent.step()


def test_rows_that_are_lists_are_no_inputs():
    with pytest.raises(DTypeError, match=r"Make it an array: np.float32\(inputs\)"):
        trainer().predict(X.tolist())


def test_a_checkpoint_is_no_file_of_weights(tmp_path):
    trainer().save(tmp_path / "run.ckpt")
    with pytest.raises(WeightsError, match=r"got a checkpoint of training. Trainer.resume goes on"):
        dlc.load_weights(model(), tmp_path / "run.ckpt")


def test_a_model_converted_under_its_optimiser():
    step = dlc.train_step(nn.Linear(8, 3), nn.CrossEntropyLoss(), optim.Adam())
    step(X, Y)
    step.model.double()
    with pytest.raises(
        DTypeError, match=r"Adam expects a parameter of float32, .* got float64. Make"
    ):
        step(X.astype(np.float64), Y)


@pytest.mark.parametrize(
    ("metric", "target", "match"),
    [
        ("accuracy", Y[:, None], r"accuracy expects labels of shape \(batch,\), got \(batch, 1\)"),
        ("mse", X[:, 0], r"mse_loss expects a target of the input's shape \(batch, 3\)"),
        ("mae", X[:, :1], r"l1_loss expects a target of the input's shape \(batch, 3\)"),
    ],
)
def test_metrics_do_not_broadcast(metric, target, match):
    """What they gave would be the mean over pairs of samples."""
    run = dlc.Trainer(nn.Linear(8, 3), lambda y, t: y.mean(), optim.SGD(), metrics=metric)
    with pytest.raises(ShapeError, match=match):
        run.evaluate((X, target))


def test_a_validation_loss_that_is_no_number_says_where_it_comes_from():
    bad = X.copy()
    bad[20] = np.nan
    for validation, match in (
        ((bad, Y), r"epoch 1: the loss of the validation data is nan: first the batch .* \(4, 0\)"),
        ((X, np.full_like(Y, -100)), "is nan: no label of them counts"),
    ):
        run = trainer()
        with pytest.raises(NumericsError, match=match):
            run.fit((X, Y), validation, batch_size=16)
        assert run.epoch == 0
        run.fit((X, Y), (X, Y), batch_size=16)  # its steps are done: only the figures were missing
        assert (run.epoch, run.step) == (1, 4)


def test_one_sample_is_no_batch():
    with pytest.raises(ShapeError, match=r"have shape \(\) here; of one sample x, give x\[None\]"):
        trainer().predict(X[0])
    assert trainer().predict(X[0][None]).shape == (1, 3)


def test_a_run_is_alone():
    class Again(dlc.Callback):
        def on_step_end(self, trainer, figures):
            trainer.fit((X, Y))

    run = trainer()
    with pytest.raises(ExecutionError, match="at rest, got one that is running `fit` already"):
        run.fit((X, Y), callbacks=[Again()])
    run.fit((X, Y))


def test_a_trainer_is_not_copied():
    for copied in (copy.copy, copy.deepcopy):
        with pytest.raises(ExecutionError, match=r"neither copied nor pickled; save\(path\)"):
            copied(trainer())


def test_arrays_that_a_model_does_not_take():
    run, step = trainer(), dlc.train_step(nn.Linear(8, 3), nn.CrossEntropyLoss(), optim.SGD())
    match = "expects input of .*.forward, and a target, got 3 arrays, of which the last is the targ"
    for whose, call in (
        ("validation", lambda: run.fit((X, Y), (X, X, Y))),
        ("a batch", lambda: run.fit((X, X, Y))),
        ("a batch", lambda: run.evaluate((X, X, Y))),
        ("a batch", lambda: step(X, X, Y)),
    ):
        with pytest.raises(ArgumentError, match=f"{whose} {match}"):
            call()
    assert run.step == 0


def test_data_without_samples():
    class Nothing(dlc.data.Dataset):
        def __len__(self):
            return 0

        def take(self, indices, chance=None):
            return X[indices], Y[indices]

    with pytest.raises(ShapeError, match="a data set expects one sample or more, got none"):
        trainer().evaluate(Nothing())
