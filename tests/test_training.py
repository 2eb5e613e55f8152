"""The training loop: figures, schedules, early stopping, checkpoints, and what goes wrong."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import dlc
from dlc import nn, optim
from dlc.errors import ArgumentError, CheckpointError, ExecutionError, ShapeError
from dlc.runtime import checkpoint
from dlc.training.step import TrainStep

RNG = np.random.default_rng(0)
X = RNG.normal(size=(50, 8)).astype(np.float32)
Y = (X[:, 0] + X[:, 1] > 0).astype(np.int64) + (X[:, 2] > 1)


def model():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 3))


def trainer(seed=0, rate=0.05, **options):
    dlc.seed(seed)
    return dlc.Trainer(
        model(), nn.CrossEntropyLoss(), optim.AdamW(lr=rate), metrics=("accuracy",), **options
    )


def weights(run):
    return {name: array.copy() for name, array in run.model.state_dict().items()}


def assert_same(a, b):
    for (name, x), y in zip(weights(a).items(), weights(b).values(), strict=True):
        np.testing.assert_array_equal(x, y, err_msg=name)


def figures(run):
    """The history without what a clock says."""
    return [{k: v for k, v in epoch.items() if k != "seconds"} for epoch in run.history]


# A step.


def test_a_step_is_pytorchs():
    dlc.seed(1)
    ours = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
    theirs = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
    theirs.load_state_dict({k: torch.tensor(v) for k, v in ours.state_dict().items()})
    step = dlc.train_step(ours, nn.CrossEntropyLoss(), optim.SGD(lr=0.1, momentum=0.9))
    descent = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9)
    for _ in range(10):
        loss = torch.nn.functional.cross_entropy(theirs(torch.from_numpy(X)), torch.from_numpy(Y))
        descent.zero_grad()
        loss.backward()
        descent.step()
        assert step(X, Y) == pytest.approx(loss.item(), rel=1e-5)
    for name, array in theirs.state_dict().items():
        torch.testing.assert_close(torch.tensor(ours.state_dict()[name]), array)


@pytest.mark.parametrize("clip", [{"clip_grad_norm": 0.1}, {"clip_grad_value": 0.01}])
def test_gradients_are_clipped(clip):
    dlc.seed(2)
    ours, theirs = nn.Linear(8, 3), torch.nn.Linear(8, 3)
    theirs.load_state_dict({k: torch.tensor(v) for k, v in ours.state_dict().items()})
    step = dlc.train_step(ours, nn.CrossEntropyLoss(), optim.SGD(lr=1.0), **clip)
    torch.nn.functional.cross_entropy(theirs(torch.tensor(X)), torch.tensor(Y)).backward()
    name, value = next(iter(clip.items()))
    getattr(torch.nn.utils, f"{name}_")(theirs.parameters(), value)
    step(X, Y)
    for ours_p, p in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(torch.tensor(ours_p.numpy()), (p - p.grad).detach())


def test_one_compilation_for_all_batches_up_to_a_size():
    step = dlc.train_step(nn.Linear(8, 3), nn.CrossEntropyLoss(), optim.SGD(lr=0.1), max_batch=16)
    compiled = {id(step.executable(X[:n], Y[:n])) for n in (1, 5, 16)}
    assert len(compiled) == 1
    assert all(step(X[:n], Y[:n]) > 0 for n in (1, 5, 16))
    with pytest.raises(ShapeError, match="of one length from 1 to 16"):
        step(X[:17], Y[:17])


def test_a_learning_rate_that_changes_compiles_nothing():
    optimizer = optim.SGD(lr=0.1)
    step = dlc.train_step(nn.Linear(8, 3), nn.CrossEntropyLoss(), optimizer)
    first = step.executable(X, Y)
    step(X, Y)
    optimizer.param_groups[0]["lr"] = 0.0
    before = step.model.weight.numpy().copy()
    step(X, Y)
    assert step.executable(X, Y) is first
    np.testing.assert_array_equal(step.model.weight.numpy(), before)


def test_a_profile_changes_nothing():
    step = dlc.train_step(nn.Linear(8, 3), nn.CrossEntropyLoss(), optim.Adam(lr=0.1))
    twin = dlc.train_step(nn.Linear(8, 3), nn.CrossEntropyLoss(), optim.Adam(lr=0.1))
    twin.model.load_state_dict(step.model.state_dict())
    losses = [step(X, Y), step(X, Y)]
    assert step.executable(X, Y).profile(X, Y, repeats=3).kernels
    assert [*losses, step(X, Y)] == [twin(X, Y) for _ in range(3)]


# The loop.


def test_fit_learns_and_tells():
    run = trainer()
    history = run.fit((X, Y), validation=(X, Y), epochs=30, batch_size=16)
    assert history["loss"][-1] < 0.5 * history["loss"][0]
    assert history["val_accuracy"][-1] > 0.9
    assert set(history.epochs[0]) == {
        *("epoch", "loss", "accuracy", "val_loss", "val_accuracy", "lr", "seconds"),
    }
    judged = run.evaluate((X, Y), batch_size=7)
    assert judged["accuracy"] == pytest.approx(history["val_accuracy"][-1])
    assert judged["loss"] == pytest.approx(history["val_loss"][-1], rel=1e-5)
    outputs = run.predict(X, batch_size=9)
    assert outputs.shape == (50, 3)
    assert (outputs.argmax(1) == Y).mean() == pytest.approx(judged["accuracy"])
    assert all(module.training for module in run.model.modules())


def test_the_history_is_a_table_and_curves(tmp_path):
    run = trainer()
    run.fit((X, Y), validation=(X, Y), epochs=2, batch_size=16)
    assert str(run.history).splitlines()[0].split()[:3] == ["epoch", "loss", "accuracy"]
    run.history.plot(tmp_path / "curve.svg")
    drawn = (tmp_path / "curve.svg").read_text()
    assert "<svg" in drawn
    assert not re.search(r"<!-- 1\.\d+ -->", drawn.partition("epoch")[0])  # ticks are epochs
    with pytest.raises(ArgumentError, match=r"ends in .png, .svg, .pdf .* got 'h.xyz'"):
        run.history.plot("h.xyz")
    with pytest.raises(ExecutionError, match=r"cannot write the curves .* No such file or dir"):
        run.history.plot(tmp_path / "none" / "h.png")
    assert os.listdir(tmp_path) == ["curve.svg"]
    with pytest.raises(ArgumentError, match="a name among epoch, loss"):
        run.history["f1"]
    for empty in (lambda: trainer().history["loss"], lambda: trainer().history.plot("curve.png")):
        with pytest.raises(ArgumentError, match="one epoch or more, got none"):
            empty()


def test_patience_and_the_best_weights():
    class Ruin(dlc.Callback):
        """From the third epoch on the model gets worse."""

        def on_epoch_start(self, trainer):
            if trainer.epoch >= 3:
                trainer.optimizer.param_groups[0]["lr"] = 5.0

    run = trainer()
    history = run.fit(
        (X, Y), (X, Y), epochs=50, batch_size=50, patience=4, restore_best=True, callbacks=[Ruin()]
    )
    assert len(history) == history.best_epoch + 4
    best = history.epochs[history.best_epoch - 1]
    assert run.evaluate((X, Y))["loss"] == pytest.approx(best["val_loss"], rel=1e-6)


def test_a_monitored_metric_grows():
    run = trainer(monitor="val_accuracy")
    history = run.fit((X, Y), validation=(X, Y), epochs=6, batch_size=16)
    assert history.best_epoch == 1 + int(np.argmax(history["val_accuracy"]))
    run = trainer(monitor="f1")
    with pytest.raises(ArgumentError, match="a figure among loss, accuracy, got 'f1'"):
        run.fit((X, Y), epochs=1)
    assert run.step == 0


@pytest.mark.parametrize("name", ["StepLR", "OneCycleLR", "ReduceLROnPlateau"])
def test_schedules(name):
    dlc.seed(0)
    optimizer = optim.SGD(lr=0.1)
    options = {
        "StepLR": {"step_size": 2},
        "OneCycleLR": {"max_lr": 0.1, "total_steps": 4 * 4},
        "ReduceLROnPlateau": {"patience": 0, "threshold": 10.0},
    }[name]
    net = model()
    scheduler = getattr(optim.lr_scheduler, name)(optimizer, **options)
    run = dlc.Trainer(net, nn.CrossEntropyLoss(), optimizer, scheduler=scheduler)
    rates = run.fit((X, Y), epochs=4, batch_size=16)["lr"]
    if name == "OneCycleLR":
        assert rates[-1] < 0.01 < max(rates)
    else:
        assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01] if name == "StepLR" else rates)
        assert rates[-1] < rates[0]


def test_callbacks_hear_and_stop():
    heard = []

    class Listener(dlc.Callback):
        def on_step_end(self, trainer, figures):
            heard.append((trainer.step, sorted(figures)))
            trainer.stop = trainer.step == 6

    run = trainer()
    run.fit((X, Y), epochs=5, batch_size=16, callbacks=[Listener()])
    assert heard == [(i, ["accuracy", "loss"]) for i in range(1, 7)]
    assert len(run.history) == 1
    run.fit((X, Y), epochs=2, batch_size=16)
    assert len(run.history) == 2


def test_a_callback_takes_nothing_back_of_patience():
    class Never(dlc.Callback):
        def on_epoch_end(self, trainer, figures):
            trainer.stop = False

    run = trainer(rate=0.0)
    history = run.fit((X, Y), (X, Y), epochs=9, batch_size=50, patience=2, callbacks=[Never()])
    assert len(history) == history.best_epoch + 2


class Left(Exception):
    """What ends a run in its midst."""


@pytest.mark.parametrize("steps", [2, 4, 5])  # of 4 an epoch
def test_an_epoch_left_in_its_midst_goes_on(steps):
    class Leave(dlc.Callback):
        def on_step_end(self, trainer, figures):
            if trainer.step == steps:
                raise Left

    options = {"epochs": 2, "batch_size": 16, "validation": (X, Y)}
    whole = trainer()
    whole.fit((X, Y), seed=5, **options)
    run = trainer()
    with pytest.raises(Left):
        run.fit((X, Y), seed=5, callbacks=[Leave()], **options)
    run.fit((X, Y), **options, seed=5)
    assert_same(whole, run)
    assert figures(whole) == figures(run)


@pytest.mark.parametrize("steps", [2, 4])
def test_ctrl_c_waits_until_a_step_is_accounted_for(monkeypatch, steps):
    """Pressed behind the native call, it may not leave weights that the position does not know."""
    options = {"epochs": 2, "batch_size": 16, "seed": 5}
    whole = trainer()
    whole.fit((X, Y), **options)
    run, take = trainer(), TrainStep.__call__

    def pressed(step, *batch):
        results = take(step, *batch)
        if run.step == steps - 1:
            signal.raise_signal(signal.SIGINT)
        return results

    with monkeypatch.context() as patched:
        patched.setattr(TrainStep, "__call__", pressed)
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with pytest.raises(KeyboardInterrupt):
                run.fit((X, Y), **options)
        finally:
            signal.signal(signal.SIGINT, before)
    assert run.step == steps
    run.fit((X, Y), **options)
    assert_same(whole, run)
    assert figures(whole) == figures(run)


def test_where_a_callback_stops_the_run_is_saved(tmp_path):
    class Stop(dlc.Callback):
        def on_step_end(self, trainer, figures):
            trainer.stop = trainer.step == 6

    trainer().fit(
        (X, Y), epochs=3, batch_size=16, callbacks=[Stop()], checkpoint=tmp_path / "run.ckpt"
    )
    run = trainer()
    run.resume(tmp_path / "run.ckpt")
    assert (run.step, run.epoch) == (6, 1)


def test_an_epoch_begins_anew_with_other_batches():
    class Listener(dlc.Callback):
        started, losses = 0, ()

        def on_epoch_start(self, trainer):
            self.started += 1

        def on_step_end(self, trainer, figures):
            self.losses += (figures["loss"],)
            trainer.stop = trainer.step == 2

    run, heard = trainer(), Listener()
    run.fit((X, Y), batch_size=16, callbacks=[Listener()])
    (line,) = run.fit((X, Y), batch_size=10, callbacks=[heard])
    assert (heard.started, len(heard.losses), run.step) == (1, 5, 7)
    assert line["loss"] == pytest.approx(np.mean(heard.losses))


def test_a_figure_that_is_no_number_is_not_the_best():
    def odd(output, target):
        labels = target.to("float32")
        return (labels * labels).sum() / labels.sum()

    run = dlc.Trainer(model(), nn.CrossEntropyLoss(), optim.SGD(), [odd], monitor="val_odd")
    run.fit((X, Y), (X, np.zeros_like(Y)), epochs=2, batch_size=50)
    history = run.fit((X, Y), (X, Y), epochs=4, batch_size=50)
    assert np.isnan(history["val_odd"][:2]).all()
    assert history.best_epoch == 3


def test_a_model_of_two_inputs():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(8, 3), nn.Linear(8, 3)

        def forward(self, x, y, scale=2.0):
            return self.first(x) + scale * self.second(y)

    run = dlc.Trainer(Sum(), nn.CrossEntropyLoss(), optim.SGD(lr=0.1), metrics=("accuracy",))
    (line,) = run.fit((X, X[::-1], Y), validation=(X, X[::-1], Y), batch_size=16)
    found = run.predict((X, X[::-1], Y), batch_size=16)
    assert (found.argmax(1) == Y).mean() == pytest.approx(line["val_accuracy"])
    np.testing.assert_array_equal(found, run.predict((X, X[::-1]), batch_size=16))


def test_predictions_keep_the_structure_of_the_outputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 3), nn.Linear(8, 2)

        def forward(self, x):
            return {"a": self.a(x), "rest": (self.b(x), x)}

    net = Two()
    found = dlc.Trainer(net, nn.CrossEntropyLoss(), optim.SGD()).predict(X, batch_size=16)
    np.testing.assert_array_equal(found["rest"][1], X)
    for rows, layer in ((found["a"], net.a), (found["rest"][0], net.b)):
        np.testing.assert_allclose(rows, layer(X), rtol=1e-6, atol=1e-6)


# Checkpoints.


@pytest.mark.parametrize("every", [None, 1, 3])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path, every):
    path = tmp_path / "run.ckpt"
    whole = trainer()
    whole.fit((X, Y), validation=(X, Y), epochs=5, batch_size=16)

    class Stop(dlc.Callback):
        def on_step_end(self, trainer, figures):
            trainer.stop = every is not None and trainer.step == 11

    first = trainer()
    epochs = 3 if every is None else 5
    options = {"validation": (X, Y), "batch_size": 16, "checkpoint": path}
    first.fit((X, Y), epochs=epochs, checkpoint_every=every, callbacks=[Stop()], **options)
    second = trainer(seed=99)
    second.resume(path)
    second.fit((X, Y), validation=(X, Y), epochs=5, batch_size=16)
    assert_same(whole, second)
    assert figures(whole) == figures(second)
    assert whole.history.best_epoch == second.history.best_epoch


KILLED = """
import os, random, signal, sys, time
import numpy as np
sys.path.insert(0, sys.argv[2])
from test_training import X, Y, trainer, weights

path, start, moment = sys.argv[1], sys.argv[1] + ".start", random.Random(0)
options = {"epochs": 60, "batch_size": 16, "seed": 3}
run = trainer()
run.save(start)
run.fit((X, Y), **options)
steps, final, reached = run.step, weights(run), []
for kill in range(200):
    child = os.fork()
    if not child:
        run.resume(path if os.path.exists(path) else start)
        run.fit((X, Y), checkpoint=path, checkpoint_every=1, **options)
        os._exit(0)
    time.sleep(moment.uniform(0.0, 0.05))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if os.path.exists(path):
        run.resume(path)
        reached.append(run.step)
run.fit((X, Y), **options)
same = all(np.array_equal(a, b) for a, b in zip(weights(run).values(), final.values()))
rising = reached == sorted(reached) and len(set(reached)) > 10
print(rising, run.step == steps, same)
"""


def test_two_hundred_kills(tmp_path):
    """Whenever a run that saves after each step is killed, it goes on as if nothing had been."""
    path = tmp_path / "run.ckpt"
    program = [sys.executable, "-c", KILLED, str(path), os.path.dirname(__file__)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", "True", "True"], done.stdout


@pytest.mark.parametrize(
    ("other", "match"),
    [
        (
            lambda: nn.Linear(8, 3),
            r"a checkpoint of this Linear, got '.*run.ckpt', of a Sequential: weight is "
            r"float32 \(3, 8\) here and not there",
        ),
        (
            lambda: nn.Sequential(nn.Linear(8, 17), nn.ReLU(), nn.Dropout(0.1), nn.Linear(17, 3)),
            r"0.weight is float32 \(17, 8\) here and float32 \(16, 8\) there; 0.bias",
        ),
        (
            lambda: model().double(),
            r"0.weight is float64 \(16, 8\) here and float32 .*; and 1 more",
        ),
    ],
)
def test_a_checkpoint_of_another_model(tmp_path, other, match):
    run = trainer()
    run.fit((X, Y), epochs=1)
    run.save(tmp_path / "run.ckpt")
    wrong = dlc.Trainer(other(), nn.CrossEntropyLoss(), optim.AdamW(lr=0.1))
    before = weights(wrong)
    with pytest.raises(CheckpointError, match=match):
        wrong.resume(tmp_path / "run.ckpt")
    assert all(np.array_equal(a, before[n]) for n, a in weights(wrong).items())


def test_checkpoints_of_other_runs(tmp_path):
    path = tmp_path / "run.ckpt"
    run = trainer()
    run.fit((X, Y), epochs=1, batch_size=16, seed=5)
    run.save(path)
    other = dlc.Trainer(model(), nn.CrossEntropyLoss(), optim.SGD(lr=0.1))
    match = "a run with SGD, got '.*run.ckpt', of one with AdamW"
    with pytest.raises(CheckpointError, match=match):
        other.resume(path)
    same = trainer()
    same.resume(path)
    with pytest.raises(CheckpointError, match=r"batch_size=16, got batch_size=8\."):
        same.fit((X, Y), epochs=2, batch_size=8)
    same.fit((X, Y), epochs=2, batch_size=16)  # it still knows where it was to go on
    whole = trainer()
    whole.fit((X, Y), epochs=2, batch_size=16, seed=5)
    assert_same(whole, same)
    assert figures(whole) == figures(same)


def test_a_checkpoint_of_another_schedule_changes_nothing(tmp_path):
    def scheduled(*milestones):
        run = trainer()
        parts = [optim.lr_scheduler.ExponentialLR(run.optimizer, 0.5) for _ in (0, *milestones)]
        schedule = optim.lr_scheduler.SequentialLR(run.optimizer, parts, list(milestones))
        run.scheduler = schedule
        return run

    path = tmp_path / "run.ckpt"
    run, other = scheduled(2), scheduled(2, 3)
    run.fit((X, Y), epochs=1, batch_size=50)
    run.save(path)
    before, states = weights(other), (other.scheduler.state_dict(), other.optimizer.state_dict())
    with pytest.raises(CheckpointError, match="states of 3 schedules, got 2"):
        other.resume(path)
    assert all(np.array_equal(a, before[n]) for n, a in weights(other).items())
    assert repr((other.scheduler.state_dict(), other.optimizer.state_dict())) == repr(states)


def test_a_run_that_lost_its_patience_is_over_when_it_is_resumed(tmp_path):
    options = {"epochs": 9, "batch_size": 50, "patience": 2, "restore_best": True}
    run, same = trainer(rate=0.0), trainer(rate=0.0)
    run.fit((X, Y), (X, Y), checkpoint=tmp_path / "run.ckpt", **options)
    assert len(run.history) == 3
    same.resume(tmp_path / "run.ckpt")
    for each in (run, same):
        assert len(each.fit((X, Y), (X, Y), **options)) == 3
    assert_same(run, same)
    same.fit((X, Y), (X, Y), **{**options, "patience": 3})
    assert len(same.history) == 4


def test_files_that_are_no_checkpoint(tmp_path):
    run = trainer()
    path = tmp_path / "run.ckpt"
    run.save(path)
    content = path.read_bytes()
    for length in (0, 5, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="is no complete checkpoint"):
            run.resume(path)
    dlc.save_weights(run.model, path)
    with pytest.raises(CheckpointError, match="expects a checkpoint, got a file of weights"):
        run.resume(path)
    with pytest.raises(CheckpointError, match="a folder"):
        run.resume(tmp_path)
    with pytest.raises(CheckpointError, match="got no file of that name"):
        run.resume(tmp_path / "none.ckpt")


def test_a_damaged_checkpoint_is_refused(tmp_path):
    run = trainer()
    path = tmp_path / "run.ckpt"
    run.save(path)
    content, rng = path.read_bytes(), np.random.default_rng(0)
    for place in (100, len(content) - 3, *rng.integers(0, len(content), 60)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << rng.integers(0, 8)
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"complete checkpoint|damaged|weights"):
            run.resume(path)


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    run = trainer()
    path = tmp_path / "run.ckpt"
    run.fit((X, Y), epochs=1)
    run.save(path)
    before = path.read_bytes()

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(ExecutionError, match=r"No space left.*what was there before is unchanged"):
        run.save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["run.ckpt"]


def test_runs_with_one_checkpoint_take_turns(tmp_path):
    """Whatever is there at any moment is whole, and of one of them."""
    path, arrays = tmp_path / "run.ckpt", {"a": np.zeros(100_000)}

    def write(run):
        for number in range(20):
            checkpoint.write(path, arrays, {"run": run, "number": number})
            _, notes = checkpoint.read(path)
            assert notes["run"] in range(3)

    with ThreadPoolExecutor(3) as runs:
        list(runs.map(write, range(3)))
    assert os.listdir(tmp_path) == ["run.ckpt"]


def test_a_file_that_may_not_grow_leaves_the_last_checkpoint(tmp_path):
    run = trainer()
    path = tmp_path / "run.ckpt"
    run.fit((X, Y), epochs=1)
    run.save(path)
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(ExecutionError, match="File too large; what was there before"):
            run.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["run.ckpt"]


def test_notes_are_json(tmp_path):
    run = trainer()
    run.fit((X, Y), epochs=1)
    run.save(tmp_path / "run.ckpt")
    arrays, notes = checkpoint.read(tmp_path / "run.ckpt")
    assert json.dumps(notes)
    assert notes["epoch"] == 1
    assert arrays["optimizer.0.step"] == run.step
