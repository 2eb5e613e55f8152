"""`dlc train` and `dlc evaluate`: what they print and write, how they resume, how they fail."""

import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import dlc
from dlc import cli
from dlc.cli import datasets
from dlc.errors import ArgumentError
from dlc.runtime import checkpoint

ROOT = Path(__file__).parent.parent
MODEL = """
from dlc import functional as F, nn

class Net(nn.Module):
    def __init__(self, pixels=64):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(pixels, 32), nn.Linear(32, 10)

    def forward(self, x):
        return self.fc2(F.relu(self.fc1(F.flatten(x, 1))))

class Wide(Net):
    def __init__(self):
        super().__init__(784)

class Three(Net):
    def __init__(self):
        super().__init__()
        self.fc2 = nn.Linear(32, 3)
"""
DIGITS = ("--data", "digits:8")


@pytest.fixture
def line(line, monkeypatch, tmp_path):
    """Run a command line in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return line


@pytest.fixture
def model(tmp_path):
    """A file of models, as `file.py:`."""
    (tmp_path / "model.py").write_text(MODEL)
    return f"{tmp_path / 'model.py'}:"


def told(line, *arguments):
    """What a command prints as JSON."""
    code, out, err = line(*arguments, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


# Training.


def test_a_model_learns(line, model, tmp_path):
    files = ("--checkpoint", "run.ckpt", "--output", "net.safetensors", "--plot", "curve.png")
    recipe = ("--lr", 0.01, "--scheduler", "cosine", "--augment", "shift=1")
    code, out, err = line("train", f"{model}Net", *DIGITS, "--epochs", 3, *recipe, *files)
    assert (code, err) == (0, "")
    first, heads, *epochs, test = out.splitlines()
    assert first.endswith("digits:8: 1294 for train, 144 for validation, 359 for test")
    assert " ".join(heads.split()) == "epoch loss accuracy val loss val accuracy rate time"
    assert [each.split()[0] for each in epochs] == ["1", "2", "3"]
    assert len({len(each) for each in (heads, *epochs)}) == 1
    assert len(heads) < 80
    accuracy = float(test.split()[-1].rstrip("%"))
    assert accuracy > 80
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    names = {each.name for each in tmp_path.iterdir()} - {"__pycache__"}
    assert names == {"model.py", "run.ckpt", "net.safetensors", "curve.png"}

    for weights in (("--weights", "net.safetensors"), ("--checkpoint", "run.ckpt", "--best")):
        figures = told(line, "evaluate", f"{model}Net", *DIGITS, *weights)
        assert round(100 * figures["accuracy"], 1) == accuracy
        counts = np.array(figures["confusion"])
        assert counts.sum() == figures["samples"] == 359
        assert np.trace(counts) / 359 == pytest.approx(figures["accuracy"])


def test_a_resumed_run_is_the_uninterrupted_one(line, model):
    recipe = ("--scheduler", "onecycle", "--augment", "noise", "--seed", 3, "--epochs", 3)
    command = ("train", f"{model}Net", *DIGITS, *recipe)
    whole = told(line, *command, "--checkpoint", "a.ckpt")
    _killed_after_an_epoch(command, "b.ckpt")
    resumed = told(line, *command, "--checkpoint", "b.ckpt", "--resume")
    for run in (whole, resumed):
        for epoch in run["history"]:
            del epoch["seconds"]
    assert resumed == whole
    (ours, _), (theirs, _) = map(checkpoint.read, ("a.ckpt", "b.ckpt"))
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    again = told(line, *command, "--checkpoint", "b.ckpt", "--resume")  # nothing is left to do
    assert again["test"] == whole["test"]


def _killed_after_an_epoch(command, path):
    process = subprocess.Popen(
        [sys.executable, "-m", "dlc", *map(str, command), "--checkpoint", path],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not os.path.exists(path) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_a_seed_decides_everything(line, model):
    command = ("train", f"{model}Net", *DIGITS, "--epochs", 1, "--augment", "affine")
    first, again, other = (told(line, *command, "--seed", n) for n in (1, 1, 2))
    assert first["test"] == again["test"] != other["test"]


@pytest.mark.parametrize(
    "options",
    [
        ("--optimizer", "sgd", "--lr", 0.1, "--set", "momentum=0.9", "--set", "nesterov=True"),
        ("--optimizer", "adam", "--set", "betas=(0.8, 0.99)", "--scheduler", "plateau"),
        ("--scheduler", "step", "--warmup", 1, "--clip-grad-norm", 1),
        ("--warmup", 1, "--label-smoothing", 0.1, "--validation", 0),
    ],
    ids=["sgd", "plateau", "step", "warmup"],
)
def test_recipes(line, model, options):
    found = told(line, "train", f"{model}Net", *DIGITS, "--epochs", 2, *options)
    assert len(found["history"]) == 2
    assert found["history"][1]["loss"] < found["history"][0]["loss"]


def test_a_warm_up_rises(line, model):
    options = ("--epochs", 3, "--warmup", 2, "--scheduler", "cosine", "--lr", 0.03)
    found = told(line, "train", f"{model}Net", *DIGITS, *options)
    assert [each["lr"] for each in found["history"]] == pytest.approx([0.01, 0.02, 0.03])


def test_weights_are_where_training_begins(line, model):
    command = ("train", f"{model}Net", *DIGITS, "--epochs", 1)
    told(line, *command, "--lr", 0.01, "--output", "first.safetensors")
    before, after = (
        told(line, *command, *more)["history"][0]["loss"]
        for more in ((), ("--weights", "first.safetensors"))
    )
    assert after < before / 2


# What goes wrong.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "digit"), "Did you mean digits?"),
        (("--data", "mnist"), "expects a folder: mnist:FOLDER"),
        (("--data", "mnist:nowhere"), "nowhere"),
        (("--data", "images:nowhere"), "expects a folder"),
        (("--data", "digits:big"), "a number of pixels, got 'big'"),
        ((*DIGITS, "--grey"), "are for images:FOLDER"),
        ((*DIGITS, "--augment", "blur"), "names among flip, shift"),
        ((*DIGITS, "--augment", "affine:0.5"), "With strengths: affine=0.5,noise=0.1."),
        ((*DIGITS, "--checkpoint", "."), "--checkpoint expects a file, got '.', a folder"),
        (
            (*DIGITS, "--checkpoint", "n.safetensors", "--output", "./n.safetensors"),
            "--output expects another file than --checkpoint, which it would overwrite",
        ),
        ((*DIGITS, "--augment", "rotate=much"), "a number (degrees), got 'much'"),
        ((*DIGITS, "--set", "momentun=0.9"), "momentun"),
        ((*DIGITS, "--warmup", "10"), "--warmup expects fewer than 10 epochs"),
        ((*DIGITS, "--resume"), "name it: --checkpoint run.ckpt"),
        ((*DIGITS, "--plot", "curve.bmp"), "--plot expects a name that ends in .png"),
        ((*DIGITS, "--output", "net.pt"), "--output expects a name that ends in .safetensors"),
        ((*DIGITS, "--checkpoint", "no/run.ckpt"), "there is no folder 'no'"),
        (("--data", "digits:8", "--weights", "none.safetensors"), "none.safetensors"),
    ],
)
def test_errors_come_before_training(line, model, arguments, message):
    code, out, err = line("train", f"{model}Net", *arguments)
    assert code == 1
    assert "accuracy" not in out
    assert err.startswith("dlc: ")
    assert err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize(
    "wrong",
    [
        ("--epochs", "0"),
        ("--lr", "-1"),
        ("--batch-size", "many"),
        ("--validation", "1.5"),
        ("--size", "3x"),
        ("--set", "momentum"),
        ("--optimizer", "sdg"),
    ],
)
def test_a_wrong_command_line(line, model, wrong):
    code, _, err = line("train", f"{model}Net", *DIGITS, *wrong)
    assert code == 2
    assert wrong[0] in err


def test_labels_a_model_has_no_place_for(line, model):
    code, _, err = line("train", f"{model}Three", *DIGITS, "--validation", 0)
    assert code == 1
    assert "expects indices from 0 to 2" in err or "expects labels from 0 to 2" in err


def test_images_of_another_size(line, model):
    code, _, err = line("train", f"{model}Wide", *DIGITS)
    assert code == 1
    assert "784" in err
    assert "64" in err


def test_a_checkpoint_is_not_overwritten_unasked(line, model, tmp_path):
    command = ("train", f"{model}Net", *DIGITS, "--epochs", 1, "--checkpoint", "run.ckpt")
    told(line, *command)
    before = (tmp_path / "run.ckpt").read_bytes()
    code, _, err = line(*command)
    assert code == 1
    assert "go on from it with --resume" in err
    assert (tmp_path / "run.ckpt").read_bytes() == before


def test_a_run_is_resumed_as_it_was_begun(line, model, tmp_path):
    command = ("train", f"{model}Net", *DIGITS, "--checkpoint", "run.ckpt", "--resume")
    told(line, *command, "--epochs", 2, "--scheduler", "cosine")
    before = (tmp_path / "run.ckpt").read_bytes()
    for change, message in [
        (
            ("--optimizer", "sgd", "--scheduler", "cosine"),
            "with SGD, got 'run.ckpt', of one with AdamW",
        ),
        (("--scheduler", "none"), "with no schedule, got 'run.ckpt', of one with Cosine"),
        (("--scheduler", "cosine", "--epochs", "5"), "a schedule of other epochs"),
        (("--scheduler", "step"), "StepLR"),
        (("--scheduler", "cosine", "--epochs", "2", "--seed", "1"), "a run with --seed 0; resume"),
        (("--scheduler", "cosine", "--epochs", "2", "--batch-size", "32"), "with --batch-size 64"),
        (("--scheduler", "cosine", "--epochs", "2", "--augment", "noise"), "without --augment"),
        (("--scheduler", "cosine", "--epochs", "2", "--clip-grad-norm", "1"), "without --clip-gr"),
        (
            ("--scheduler", "cosine", "--epochs", "2", "--label-smoothing", "0.1"),
            "with --label-smoothing 0.0",
        ),
        (("--scheduler", "cosine", "--epochs", "2", "--lr", "0.1"), "a run with initial_lr=0.001"),
        (("--scheduler", "cosine", "--epochs", "2", "--set", "eps=1e-6"), "a run with eps=1e-08"),
    ]:
        code, out, err = line(*command, *change)
        assert (code, out) == (1, "")
        assert message in err
        assert (tmp_path / "run.ckpt").read_bytes() == before


def test_a_run_without_progress_is_over_when_it_is_resumed(line, model):
    recipe = ("--optimizer", "sgd", "--lr", 1e-30, "--patience", 1, "--epochs", 9)
    command = ("train", f"{model}Net", *DIGITS, *recipe, "--checkpoint", "run.ckpt")
    code, whole, _ = line(*command)
    assert code == 0
    code, again, _ = line(*command, "--resume")
    assert code == 0
    assert again.splitlines()[1:] == [
        "going on from run.ckpt",
        "it was over: 2 epochs, the best was 1",
        whole.splitlines()[-1],
    ]


def test_checkpoints_that_cannot_be_used(line, model, tmp_path):
    told(line, "train", f"{model}Net", *DIGITS, "--epochs", 1, "--checkpoint", "run.ckpt")
    whole = (tmp_path / "run.ckpt").read_bytes()
    (tmp_path / "half.ckpt").write_bytes(whole[: len(whole) // 2])
    for name, path, message in [
        ("Wide", "run.ckpt", "a checkpoint of"),
        ("Net", "half.ckpt", "no complete checkpoint"),
        ("Net", "model.py", "no complete checkpoint"),
    ]:
        for command in (("train", "--resume"), ("evaluate",)):
            code, _, err = line(*command, f"{model}{name}", *DIGITS, "--checkpoint", path)
            assert code == 1
            assert message in err
            assert path in err


def test_a_curve_is_written_whole_or_not_at_all(line, model, tmp_path, monkeypatch):
    (tmp_path / "curve.svg").write_text("old")

    def fails(self, path):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fails)
    command = ("train", f"{model}Net", *DIGITS, "--epochs", 1, "--plot", "curve.svg")
    code, _, err = line(*command)
    assert code == 1
    assert "dlc: cannot write the curves to 'curve.svg': No space left on device" in err
    assert (tmp_path / "curve.svg").read_text() == "old"
    assert not list(tmp_path.glob(".*curve*"))


def test_a_folder_that_cannot_be_written_to_is_told_before_training(line, model, monkeypatch):
    monkeypatch.setattr("dlc.cli.output.os.access", lambda path, mode: False)
    for option in ("--output=net.safetensors", "--checkpoint=run.ckpt", "--plot=curve.svg"):
        code, _, err = line("train", f"{model}Net", *DIGITS, option)
        assert code == 1
        assert "cannot be written to" in err


# Evaluation.


def test_evaluate_tells_what_is_taken_for_what(line, model):
    told(line, "train", f"{model}Net", *DIGITS, "--epochs", 1, "--output", "net.safetensors")
    command = ("evaluate", f"{model}Net", *DIGITS, "--weights", "net.safetensors")
    code, out, _ = line(*command)
    assert code == 0
    assert out.startswith(f"{model}Net on 359 samples of digits:8 (test): loss ")
    assert {"class", "samples", "recall", "precision"} <= set(out.split())
    assert told(line, *command, "--part", "validation")["samples"] == 144
    assert told(line, *command, "--part", "train", "--validation", 0)["samples"] == 1438


def test_evaluate_needs_weights(line, model):
    for given, message in [
        ((), "expects --weights or --checkpoint, got neither"),
        (("--weights", "a", "--checkpoint", "b"), "got --weights and --checkpoint"),
        (("--weights", "a", "--best"), "--best is for"),
    ]:
        code, _, err = line("evaluate", f"{model}Net", *DIGITS, *given)
        assert code == 2
        assert message in err


# Data.


def test_images_of_a_folder(line, model, tmp_path, rng):
    from PIL import Image

    for name, grey in (("dark", 0), ("light", 200)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(20):
            pixels = (rng.integers(0, 50, (9, 12)) + grey).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    data = ("--data", "images:photos", "--size", "8", "--grey")
    found = told(line, "train", f"{model}Net", *data, "--epochs", 5, "--lr", 0.01)
    assert found["samples"] == {"train": 29, "validation": 3, "test": 8}
    assert found["test"]["accuracy"] == 1


def test_idx_files_come_with_a_test_set(line, model, tmp_path, rng):
    (tmp_path / "mnist").mkdir()
    for name, count in (("train", 40), ("t10k", 12)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        pixels = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        for kind, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            header = struct.pack(f">I{array.ndim}I", 0x800 + array.ndim, *array.shape)
            (tmp_path / "mnist" / f"{name}-{kind}-ubyte").write_bytes(header + array.tobytes())
    data = ("--data", "mnist:mnist", "--validation", "0.25", "--epochs", "1")
    found = told(line, "train", f"{model}Wide", *data)
    assert found["samples"] == {"train": 30, "validation": 10, "test": 12}


def test_parts_have_nothing_in_common(line):
    arguments = cli.parser("evaluate").parse_args(["lenet5", "--data", "digits"])
    parts = datasets.parts(arguments)
    images = [part[:][0] for part in (parts.train, parts.validation, parts.test)]
    assert sum(map(len, images)) == 1797
    every = np.concatenate(images).reshape(1797, -1)
    assert len(np.unique(every, axis=0)) == len(np.unique(dlc.data.digits(28)[:][0], axis=0))


def test_every_augmentation_keeps_shape(rng):
    images = rng.random((8, 3, 12, 16), dtype=np.float32)
    data = dlc.data.ArrayDataset(images, np.arange(8))
    for name in datasets.AUGMENTATIONS:
        changed, _ = datasets.augmented(data, name)[:]
        assert changed.shape == images.shape
        assert not np.array_equal(changed, images)
    with pytest.raises(ArgumentError, match="--augment expects images"):
        datasets.augmented(dlc.data.ArrayDataset(images[:, 0, 0], np.arange(8)), "flip")


# The documentation.


def test_the_page_is_true(tmp_path, monkeypatch):
    page = ROOT / "docs" / "training.md"
    monkeypatch.chdir(tmp_path)
    names = {}
    for code in re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
        exec(compile(code, str(page), "exec"), names)
