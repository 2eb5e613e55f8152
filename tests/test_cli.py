"""The command line: what it prints, what it writes, and how it fails."""

import importlib.util
import json
import os
import subprocess
import sys
import warnings
from argparse import ArgumentTypeError, Namespace
from pathlib import Path

import numpy as np
import pytest

import dlc
from dlc import cli, config
from dlc.cli import naming, page
from dlc.cli.turns import Side, take_turns
from dlc.errors import ArgumentError, ExecutionError

ROOT = Path(__file__).parent.parent
MODEL = """
import numpy as np
import dlc
from dlc import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(x)

class Wide(Net):
    def __init__(self, width):
        super().__init__()

class Pair(Net):
    def forward(self, x):
        return {"sum": x + 1, "parts": (self.fc(x), x * 2)}

class Broken(Net):
    def forward(self, x):
        return undefined

def make():
    return Net()

net = Net()
chain = nn.Sequential(nn.Linear(4, 3))
number = 3
"""
TORCH_MODEL = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(x)
"""
GRAPH = """graph small
%x = input : float32[2]
%0 = add(%x, %x)
%1 = neg(%0)
%2 = neg(%1)
output y = %2
"""


@pytest.fixture
def model(tmp_path):
    """A file of models, as `file.py:`."""
    file = tmp_path / "model.py"
    file.write_text(MODEL)
    return f"{file}:"


def program(*arguments, input=None, **environment):
    """Run a command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "dlc", *map(str, arguments)],
        input=input,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


# Help.


def test_help_lists_every_command(line):
    for arguments in ([], ["--help"], ["-h"], ["help"]):
        code, out, _ = line(*arguments)
        assert code == 0
        for name in cli.COMMANDS:
            assert f"\n  {name} " in out


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_of_a_command_teaches(line, name):
    code, out, _ = line(name, "--help")
    assert code == 0
    assert "examples:" in out
    assert out.count(f"dlc {name}") >= 3  # the usage, and two examples or more


def test_help_comes_at_once(run_python):
    """Less than 0.2 s of processor time, because nothing of the compiler is loaded."""
    told = """
        import json, sys, time
        from dlc.cli import main
        main(["--help"])
        print(json.dumps([time.process_time(), sorted(sys.modules)]))
    """
    last = [json.loads(run_python(told).splitlines()[-1]) for _ in range(3)]
    assert min(seconds for seconds, _ in last) < 0.2
    assert not {"numpy", "rich", "dlc.driver", "dlc.ops"} & set(last[0][1])


def test_the_page_is_printed_from_the_parsers():
    assert (ROOT / "docs" / "cli.md").read_text() == page.page(), "run `make docs`"


def test_version(line):
    assert line("--version") == (0, f"{dlc.__version__}\n", "")


# Wrong command lines.


def test_an_unknown_command(line):
    code, out, err = line("sumary", "lenet5")
    assert (code, out) == (2, "")
    assert err == "dlc: there is no command 'sumary'; did you mean summary?\n"
    assert "demo, train" in line("zzz")[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["summary"], "required: MODEL"),
        (["summary", "lenet5", "--dept", "1"], "unrecognized arguments"),
        (["summary", "lenet5", "--dim", "batch"], "expects a name without an x, and a range"),
        (["run", "lenet5", "--at", "batch"], "expects a name and a size"),
        (["cache", "burn"], "invalid choice"),
    ],
)
def test_wrong_arguments(line, arguments, message):
    code, out, err = line(*arguments)
    assert (code, out) == (2, "")
    assert message in err


# Errors.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["summary", "resnet81"], "there is no model 'resnet81' in the zoo"),
        (["summary", "nowhere.py:Net", "1x4"], "there is no file 'nowhere.py'"),
        (["summary", "lenet5", "1x3x28x28"], "conv2d expects 1 input channels, got 3"),
        (["run", "lenet5", "--threads", "0"], "threads expects an integer of at least 1"),
        (["run", "lenet5", "--weights", "no.safetensors"], "no.safetensors"),
        (["run", "lenet5", "--output", "y.txt"], "--output expects a name that ends in .npy"),
        (["opt", "simplfy", "lenet5"], "did you mean 'simplify'"),
        (["opt", "simplify", "nowhere.txt"], "there is no file 'nowhere.txt'"),
        (["bench", "mlp", "--torch", "nowhere.py:Net", "--rounds", "1"], "there is no file"),
    ],
)
def test_errors_are_one_line(line, arguments, message):
    code, out, err = line(*arguments)
    assert (code, out) == (1, "")
    assert err.startswith("dlc: ")
    assert err.count("\n") == 1
    assert message in err


def test_a_layer_that_no_line_of_the_user_calls_is_at_its_path(line, model):
    """The frame outside dlc is that of the script which is called dlc."""
    _, _, err = line("summary", f"{model}chain", "1x5")
    assert "got 5 (0). Its inputs" in err


def test_debug_shows_where_an_error_comes_from(line):
    with config.override(debug=1):
        code, _, err = line("summary", "resnet81")
    assert code == 1
    assert "Traceback" in err
    assert "naming.py" in err


def test_a_bug_in_a_model_is_one_line_too(model):
    done = program("run", f"{model}Broken", "1x4")
    assert done.returncode == 1
    assert done.stderr.startswith("dlc: NameError: name 'undefined' is not defined (model.py:")
    assert done.stderr.count("\n") == 1
    assert "Traceback" in program("run", f"{model}Broken", "1x4", DLC_DEBUG="1").stderr


def test_a_bad_option_is_one_line(line):
    done = program("run", "lenet5", DLC_DEBUG="many")
    assert done.returncode == 1
    assert done.stderr.startswith("dlc: DLC_DEBUG expects an integer from 0 to 7, got 'many'")
    assert done.stderr.count("\n") == 1


def test_a_reader_that_has_had_enough():
    command = f"{sys.executable} -m dlc opt '' resnet18 | head -1"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env=environment)
    assert (done.stdout, done.stderr) == ("graph ResNet\n", "")


def test_warnings_are_one_line(line, tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.touch()
    with config.override(cache_dir=str(file)), warnings.catch_warnings():
        warnings.simplefilter("always")
        code, _, err = line("run", "mlp", "--target", "reference")
        assert (code, err) == (0, "")  # the reference backend has nothing to keep
        warnings.showwarning(UserWarning("something"), UserWarning, "file.py", 1)


# Models and inputs.


def found(name, **more):
    return naming.model(Namespace(model=name, weights=None, train=False, **more))


def test_models_are_found_by_name(model):
    for name in ("Net", "make", "net"):
        made = found(f"{model}{name}")
        assert type(made).__name__ == "Net"
        assert not made.training
    assert type(found("dlc.frontend.models:LeNet")).__name__ == "LeNet"
    assert type(found("dlc.frontend:models.lenet.LeNet")).__name__ == "LeNet"
    assert {"lenet5", "resnet18", "vgg16"} <= set(naming.zoo())


def test_a_file_may_import_its_neighbours(tmp_path):
    (tmp_path / "layers_of_mine.py").write_text(MODEL)
    (tmp_path / "whole.py").write_text("from layers_of_mine import Net")
    assert type(found(f"{tmp_path}/whole.py:Net")).__name__ == "Net"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Nat", "has no 'Nat'; it has Net"),
        ("Wide", "cannot be called without arguments.*'width'"),
        ("number", "expects a Module, an instance of one.*got int"),
    ],
)
def test_models_that_are_none(model, name, message):
    with pytest.raises(ArgumentError, match=message):
        found(f"{model}{name}")


def test_modules_that_are_none():
    with pytest.raises(ArgumentError, match=r"there is no module 'nowhere\.models'"):
        found("nowhere.models:Net")


def test_weights_and_modes(line, model, tmp_path):
    file = tmp_path / "net.safetensors"
    first = found(f"{model}Net")
    dlc.save_weights(first, file)
    again = naming.model(Namespace(model=f"{model}Net", weights=str(file), train=True))
    assert again.training
    np.testing.assert_array_equal(again.fc.weight.numpy(), first.fc.weight.numpy())


def given(*texts, model="file.py:Net", dim=()):
    return naming.inputs(Namespace(model=model, inputs=list(texts), dim=list(dim)))


def test_inputs():
    (x,) = given("1x3x224x224")
    assert (x.shape, x.dtype) == ((1, 3, 224, 224), "float32")
    tokens, scalar = given("batchx128:int64", ":float64", dim=[("batch", 1, 64)])
    assert str(tokens.shape[0]) == "batch"
    assert (tokens.dtype, scalar.shape, scalar.dtype) == ("int64", (), "float64")


def test_models_of_the_zoo_know_their_input():
    (x,) = given(model="lenet5")
    assert x.shape == (1, 1, 28, 28)
    (x,) = given(model="resnet18", dim=[("n", 1, 8)])
    assert [str(size) for size in x.shape] == ["n", "3", "224", "224"]
    with pytest.raises(ArgumentError, match="has inputs that only you know"):
        given()


def test_wrong_inputs(tmp_path):
    with pytest.raises(ArgumentError, match=r"Give it a range: --dim batch=1\.\.64"):
        given("batchx3")
    with pytest.raises(ArgumentError, match="numbers and named sizes with an x between them"):
        given("1,3")
    (tmp_path / "x.npy").write_text("no array")
    with pytest.raises(ArgumentError, match="is no file of one array"):
        given(f"{tmp_path}/x.npy")
    (tmp_path / "empty.npy").touch()
    with pytest.raises(ArgumentError, match="is no file of one array"):
        given(f"{tmp_path}/empty.npy")
    np.savez(tmp_path / "archive.npz", x=np.ones(3))
    (tmp_path / "archive.npz").rename(tmp_path / "archive.npy")
    with pytest.raises(ArgumentError, match="but an archive of several"):
        given(f"{tmp_path}/archive.npy")
    for text in ("box=1..2", "n=3..2", "n=1", "1=1..2"):
        with pytest.raises(ArgumentTypeError, match=r"batch=1\.\.64, got"):
            naming.dim(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["opt"], "dlc opt expects PASSES"),
        (["summary", "dlc.frontend.models:lenet5"], "inputs that only you know; name a shape"),
        (["run", "lenet5", "--at", "foo=2"], "--at expects an input with a named size, got 'foo'"),
        (["summary", "lenet5", "1x1x28x28", "--dim", "zz=1..4"], "--dim expects an input with a"),
        (["summary", "lenet5", "nx1x28x28"], "Give it a range: --dim n=1..64"),
    ],
)
def test_a_wrong_command_line_has_a_code_of_its_own(line, arguments, message):
    code, out, err = line(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["summary", "lenet5", "--depth", "-1"], "--depth: expects a number from 1 on, got '-1'"),
        (["bench", "lenet5", "--rounds", "0"], "--rounds: expects a number from 1 on, got '0'"),
        (["bench", "lenet5", "--seconds", "-1"], "--seconds: expects a number of seconds above 0"),
        (["bench", "lenet5", "--seconds", "nan"], "above 0, got 'nan'"),
    ],
)
def test_numbers_that_make_no_sense(line, arguments, message):
    code, out, err = line(*arguments)
    assert (code, out) == (2, "")
    assert message in err


def test_the_random_weights_of_a_run_are_the_same_in_every_run(line):
    first, second = (line("run", "mlp", "--target", "reference")[1] for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "lenet5", "no.npy"], "the input 'no.npy' cannot be read: No such file"),
        (["run", "lenet5", "--weights", "no"], "--weights names no file: 'no'"),
        (["run", "lenet5", "--target", "reference", "--output", "/no/y.npy"], "--output: '/no/y"),
        (["opt", "simplify", "lenet5", "--draw", "/no/x.svg"], "--draw: '/no/x.svg' cannot be wr"),
        (["demo", "--folder", __file__], "--folder expects a folder, got the file"),
        (["demo", "mlp", "--folder", __file__], "--folder expects a folder, got the file"),
        (["demo", "--folder", f"{__file__}/made"], "cannot be written: Not a directory"),
        (["demo", "nope"], "there is no model 'nope' in the zoo (lenet5, mlp"),
    ],
)
def test_a_file_or_model_that_is_not_there_is_named_with_its_option(line, arguments, message):
    code, _, err = line(*arguments)
    assert code == 1
    assert message in err


def test_an_error_of_the_users_own_file_is_placed_once(tmp_path):
    (tmp_path / "wrong.py").write_text("def f(:\n")
    (tmp_path / "two.py").write_text(
        "from dlc import nn\nclass Two(nn.Module):\n    def forward(self, a, b): return a\n"
    )
    for arguments, message in (
        (["wrong.py:f", "1x3"], "dlc: SyntaxError: invalid syntax (wrong.py, line 1); DLC"),
        (["two.py:Two", "1x3"], "missing 1 required positional argument: 'b'; DLC_DEBUG=1"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "dlc", "summary", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(dlc.__file__).parents[1])},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert message in done.stderr


def test_arrays_have_the_sizes_asked_for():
    specs = given("nx4", "n:int64", dim=[("n", 2, 8)])
    assert [a.shape for a in naming.arrays(specs, {})] == [(2, 4), (2,)]
    x, i = naming.arrays(specs, {"n": 5})
    assert (x.shape, x.dtype, i.dtype) == ((5, 4), np.float32, np.int64)
    np.testing.assert_array_equal(x, naming.arrays(specs, {"n": 5})[0])
    with pytest.raises(ArgumentError, match=r"a name that an input has \(n\), got 'm'"):
        naming.arrays(specs, {"m": 5})


# Commands.


def test_summary(line):
    code, out, _ = line("summary", "lenet5", "--depth", "1")
    assert code == 0
    assert "61.7 k parameters" in out
    assert "conv2: Conv2d" in out
    found = json.loads(line("summary", "lenet5", "--json")[1])
    assert found["layers"][0]["parameters"] == 61706


def test_run_on_a_file(line, model, tmp_path, rng):
    x = rng.normal(size=(5, 4)).astype("float32")
    np.save(tmp_path / "x.npy", x)
    weights, y = tmp_path / "net.safetensors", tmp_path / "y.npy"
    net = found(f"{model}Net")
    dlc.save_weights(net, weights)
    code, out, err = line(
        *("run", f"{model}Net", tmp_path / "x.npy", "--weights", weights, "--output", y, "--check")
    )
    assert (code, err) == (0, "")
    assert "output   5 × 3   float32" in out
    assert "differs from float64 by" in out
    np.testing.assert_array_equal(np.load(y), net(x))


def test_run_with_several_outputs(line, model, tmp_path):
    command = ("run", f"{model}Pair", "nx4", "--dim", "n=1..9", "--at", "n=3")
    code, out, _ = line(*command, "--output", tmp_path / "y.npz", "--json", "--profile", "--check")
    told = json.loads(out)
    assert code == 0
    assert list(told["outputs"]) == ["sum", "parts.output0", "parts.output1"]
    assert told["outputs"]["parts.output0"]["shape"] == [3, 3]
    assert all(each["within"] for each in told["errors"].values())
    assert told["profile"]["kernels"]
    assert set(np.load(tmp_path / "y.npz")) == set(told["outputs"])
    code, _, err = line(*command, "--output", tmp_path / "y.npy")
    assert code == 1
    assert "holds one array, and there are 3" in err


def test_run_writes_a_trace(line, model, tmp_path):
    assert line("run", f"{model}Net", "2x4", "--trace", tmp_path / "t.json")[0] == 0
    assert json.loads((tmp_path / "t.json").read_text())["traceEvents"]


def test_a_failed_check_is_a_failure(line, model, monkeypatch):
    monkeypatch.setattr("dlc.cli.run.TOLERANCES", {"float32": (0.0, -1.0)})
    code, out, _ = line("run", f"{model}Net", "2x4", "--target", "reference", "--check")
    assert code == 1
    assert "BEYOND the tolerances" in out


def test_opt_reads_text_and_prints_text(line, tmp_path):
    file = tmp_path / "graph.txt"
    file.write_text(GRAPH)
    code, out, err = line("opt", "simplify", file, "--times", "--check")
    assert code == 0
    assert "neg" not in out
    assert "simplify" in err
    assert str(dlc.parse(out)) == out.rstrip("\n")
    assert "neg" in line("opt", "", file)[1]


def test_opt_reads_standard_input():
    done = program("opt", "O1", input=GRAPH)
    assert done.returncode == 0
    assert "output y = " in done.stdout
    failed = program("opt", "O1", "-", input=GRAPH.replace("neg(%1)", "nag(%1)"))
    assert failed.returncode == 1
    assert "line 5" in failed.stderr


def test_opt_takes_models_and_writes_files(line, tmp_path):
    drawing, folder = tmp_path / "g.svg", tmp_path / "passes"
    code, out, _ = line("opt", "simplify,fold-bn", "lenet5", "--draw", drawing, "--dump", folder)
    assert code == 0
    assert out.startswith("graph LeNet")
    assert drawing.read_text().startswith("<svg")
    assert sorted(file.name for file in folder.iterdir()) == [
        *("00-input.txt", "01-simplify.txt", "02-fold-bn.txt")
    ]
    assert "fold-bn" in line("opt", "--list")[1]


def test_cache(line, tmp_path):
    with config.override(cache_dir=str(tmp_path / "kernels")):
        assert line("cache")[1].startswith("0 entries, 0 B of at most ")
        assert line("cache", "path")[1] == f"{tmp_path}/kernels\n"
        dlc.runtime.cache.default().put("0" * 64, b"some")
        assert json.loads(line("cache", "--json")[1])["entries"] == 1
        assert line("cache", "clear")[1].startswith("removed 1 entries, 36 B")
        assert json.loads(line("cache", "stats", "--json")[1])["entries"] == 0


def test_cache_of_others(line, tmp_path):
    tmp_path.chmod(0o777)
    with config.override(cache_dir=str(tmp_path)):
        code, _, err = line("cache")
    assert code == 1
    assert "nobody else may write to" in err


def test_doctor(line):
    code, out, _ = line("doctor")
    assert code == 0
    for words in ("machine", "Numba".lower(), "x86-64-v2, ", "passed in", "DLC_CACHE_SIZE"):
        assert words in out
    told = json.loads(line("doctor", "--json")[1])
    assert told["versions"]["dlc"] == dlc.__version__
    assert set(told["options"]) == {option.variable for option in config.OPTIONS}


def test_doctor_says_what_is_wrong(line, monkeypatch):
    def broken():
        raise ExecutionError("no threads left")

    monkeypatch.setattr("dlc.cli.doctor.self_test", broken)
    code, out, _ = line("doctor")
    assert code == 1
    assert "failed: no threads left" in out


def test_bench_beside_pytorch(line, model, tmp_path):
    file = tmp_path / "theirs.py"
    file.write_text(TORCH_MODEL)
    command = ("bench", f"{model}Net", "nx4", "--dim", "n=1..9", "--at", "n=2", "--json")
    quick = ("--rounds", "1", "--seconds", "0.01", "--threads", "1")
    code, out, err = line(*command, *quick, "--torch", f"{file}:Net")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert [each["side"] for each in told["sides"]] == [
        *("dlc", "PyTorch", "PyTorch, channels_last")
    ]
    assert told["flops"] == 2 * (2 * 4 * 3) + 2 * 3
    assert all(0 < each["seconds"] < 1 for each in told["sides"])
    assert told["sides"][0]["ratio"] == 1
    assert told["peak"] > 1e9


QUICK = ("--rounds", "1", "--seconds", "0.01")


def test_demo_of_the_zoo(line, tmp_path):
    code, out, _ = line("demo", "mlp", *QUICK, "--folder", tmp_path / "made")
    assert code == 0
    assert (tmp_path / "made" / "mlp.svg").exists()
    assert out.count("within the tolerances") == 2
    assert "PyTorch's best" in out


def test_demo_of_the_zoo_without_pytorch(line, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda n: None if n == "torch" else find(n))
    command = ("demo", "mlp", *QUICK, "--folder", tmp_path)
    code, out, _ = line(*command, "--json")
    (found,) = json.loads(out)
    assert code == 0
    assert list(found["differences"]) == ["float64"]
    assert [side["side"] for side in found["times"]["sides"]] == ["dlc"]
    assert "PyTorch is not installed" in line(*command)[1]
    code, _, err = line("bench", "mlp", "--torch")
    assert (code, err) == (1, "dlc: --torch needs PyTorch: pip install 'dlc[torch]'\n")


# Turns.


def test_a_side_that_fails_says_why():
    side = Side("dlc.cli.sides:peak", {"threads": 1, "dtype": "int8"})
    with pytest.raises(ExecutionError, match="peak: peak expects a dtype of float32"):
        take_turns({"peak": side}, rounds=1, seconds=0.01)


def test_there_is_a_round_at_least():
    with pytest.raises(ArgumentError, match="--rounds expects at least 1, got 0"):
        take_turns({}, rounds=0)


def test_a_side_that_dies_is_reported():
    with pytest.raises(ExecutionError, match=r"the process of none ended \(exit code 1\)"):
        take_turns({"none": Side("dlc.cli.sides:nothing")}, rounds=1)
