"""The benchmarks: their harness, with made-up times, and that each of them still runs."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

import dlc
from benchmarks import __main__ as program
from benchmarks import (
    compile_time,
    contractions,
    gradients,
    memory,
    models,
    steps,
    waiting,
    winograd,
)
from benchmarks.common import Compared, Options, Result, comparison, summary
from dlc.cli.turns import Subject, Times, timed
from dlc.errors import ExecutionError
from dlc.frontend.models import in_torch


def case(**times):
    taken = {side: (seconds, 0.9 * seconds, 1.2 * seconds) for side, seconds in times.items()}
    machine = Times(({"flops": 1e10, "meeting": 1.5e-7},), {})
    return Compared("case", 2_000_000, taken, machine, 1.5)


def test_ratios_are_to_the_best_of_the_others():
    compared = case(dlc=1e-3, torch=4e-3, channels_last=3e-3)
    assert compared.ratio == pytest.approx(3)
    assert compared.share == pytest.approx(0.2)
    table = str(comparison("Title", [compared]))
    assert table.startswith("Title, peak 10.0 GFLOP/s")
    for words in (
        "2.00 MFLOP",
        "1.00 ms",
        "30 %",
        "4.00 ms",
        "3.00 ms",
        "3.00 ×",
        "1.5 ×",
        "20 %",
        "150 ns",
    ):
        assert words in table


def test_a_side_may_be_missing_from_a_case():
    result = comparison("Title", [case(dlc=1.0, torch=2.0, last=3.0), case(dlc=1.0, torch=2.0)])
    assert [len(row) for row in result.rows] == [len(result.columns)] * 2


def test_medians_and_the_best():
    turns = [{"seconds": s, "fastest": f} for s, f in ((3.0, 1.0), (2.0, 0.5), (9.0, 2.0))]
    times = Times(tuple(turns), {})
    assert summary(times, Options()) == (3.0, 2.0, 9.0)
    assert summary(times, Options(best=True)) == (0.5, 0.5, 2.0)


def test_cases_are_chosen_by_words():
    assert Options().wants("anything")
    assert Options(only="conv,mat").wants("matmul 512")
    assert not Options(only="conv,mat").wants("linear")


def test_results_are_written(tmp_path, capsys, monkeypatch):
    result = Result("Title", ("name", "value"), [["a", "1"]], [{"name": "a", "seconds": 1.0}])
    monkeypatch.setattr("benchmarks.models.run", lambda options: result)
    assert program.main(["models", "--json", str(tmp_path / "found.json")]) == 0
    assert "Title" in capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["benchmarks"]["models"]["cases"] == [{"name": "a", "seconds": 1.0}]
    assert found["versions"]["dlc"]


def test_an_unknown_benchmark(capsys):
    with pytest.raises(SystemExit, match="2"):
        program.main(["modles"])
    assert "there is no benchmark 'modles'" in capsys.readouterr().err


def test_without_cases_there_are_no_rows():
    for module in (models, compile_time, steps, memory):
        result = module.run(Options(rounds=1, only="nothing of this name"))
        assert isinstance(result, Result)
        assert not result.rows


@pytest.mark.parametrize("kind", ["conv", "matmul", "linear", "depthwise"])
def test_each_kind_of_contraction_is_measured(kind):
    """They call kernels below every public name, and nothing else would tell that one moved."""
    cases = [case for case in contractions.CASES if case.kind == kind]
    case = min(cases, key=lambda case: case.flops)
    found = contractions.subject("dlc", [contractions.CASES.index(case)], 1).measure(0.001)
    assert 0 < found[f"{case.name}, best"] <= found[case.name] < 1


@pytest.mark.parametrize("side", winograd.TILES)
def test_each_way_of_a_convolution_is_measured(side):
    case = min(winograd.CASES, key=lambda case: case.flops)
    found = winograd.subject(side, [winograd.CASES.index(case)], 1).measure(0.001)
    assert 0 < found[f"{case.name} fastest"] <= found[f"{case.name} seconds"] < 1
    assert winograd.takes(case) in winograd.TILES


@pytest.mark.parametrize("side", gradients.SIDES)
def test_both_gradients_are_measured(side):
    case = min(gradients.CASES, key=lambda case: case.flops)
    found = gradients.subject(side, [gradients.CASES.index(case)], 1).measure(0.001)
    assert set(found) == {case.name("data"), case.name("weight")}
    assert all(0 < seconds < 1 for seconds in found.values())


def test_a_gradient_counts_every_kernel_as_somebodys():
    case = gradients.CASES[0]
    kernels = [SimpleNamespace(label="conv2d_weight_direct+mul+sub", seconds=2.0)]
    kernels += [
        SimpleNamespace(label=each, seconds=1.0) for each in ("conv2d", "pack_conv", "halo")
    ]
    found = gradients.times_by_kind(case, SimpleNamespace(kernels=kernels))
    assert found == {case.name("data"): 2.0, case.name("weight"): 2.0}
    kernels.append(SimpleNamespace(label="mean+variance", seconds=1.0))
    with pytest.raises(ExecutionError, match=r"labels begin with conv2d_weight.*got mean"):
        gradients.times_by_kind(case, SimpleNamespace(kernels=kernels))


@pytest.mark.parametrize("case", steps.CASES, ids=lambda case: case.model)
def test_both_sides_of_a_step_train_the_same_network(case):
    ours = getattr(dlc.models, case.model)(**case.options).state_dict()
    theirs = getattr(in_torch, case.model)(**case.options).state_dict()
    assert {n: v.shape for n, v in ours.items()} == {n: tuple(v.shape) for n, v in theirs.items()}


def test_both_sides_of_a_step_are_measured():
    mlp = steps.CASES.index(next(case for case in steps.CASES if case.model == "mlp"))
    ours = steps.compiled(mlp, 1)
    assert ours.info["flops"] == pytest.approx(2 * 3 * 128 * 669_696, rel=0.2)
    for each in (ours, steps.torch(mlp, 1, "PyTorch")):
        assert 0 < each.measure(0.001)["seconds"] < 10


def test_a_table_without_inductor_says_why(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    nothing = Options(only="nothing of this name")
    assert "without Inductor, which finds no C++ compiler no-such" in steps.run(nothing).title


def test_memory_is_what_steps_need_at_most():
    def make():
        held = np.ones(10_000_000, np.uint8)
        return lambda: held.sum() + np.ones(30_000_000, np.uint8)[-1]

    found = memory.grown(make)
    assert 35e6 < found["bytes"] <= found["first"] < 60e6


def test_both_sides_of_the_memory_table_are_measured():
    mlp = steps.CASES.index(next(case for case in steps.CASES if case.model == "mlp"))
    for side in ("dlc", "PyTorch"):
        found = memory.subject(side, mlp, 1).measure(0.0)
        assert 3 * 4 * 669_706 < found["bytes"] < 60e6  # parameters and two moments at least


def test_a_row_of_the_waiting_table(tmp_path):
    waiting.save(tmp_path)
    found = waiting.apart("0", str(tmp_path), Options(seconds=0.001))
    assert 0 < found["median"] <= found["p90"] <= found["p99"]
    assert 1 <= found["threads"] <= 2


def test_times_are_of_single_calls():
    calls = []
    subject = Subject(timed(lambda: calls.append(1), warm=0.001))
    found = subject.measure(0.01)
    assert 0 < found["fastest"] <= found["seconds"] < 1e-4
    assert len(calls) > 100
