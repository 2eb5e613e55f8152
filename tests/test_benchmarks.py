"""The benchmarks: their harness, with made-up times, and that each of them still runs."""

import json

import pytest

from benchmarks import __main__ as program
from benchmarks import compile_time, contractions, gradients, models, waiting, winograd
from benchmarks.common import Compared, Options, Result, comparison, summary
from dlc.cli.turns import Subject, Times, timed


def case(**times):
    taken = {side: (seconds, 0.9 * seconds, 1.2 * seconds) for side, seconds in times.items()}
    return Compared("case", 2_000_000, taken, 1e10, 1.5)


def test_ratios_are_to_the_best_of_the_others():
    compared = case(dlc=1e-3, torch=4e-3, channels_last=3e-3)
    assert compared.ratio == pytest.approx(3)
    assert compared.share == pytest.approx(0.2)
    table = str(comparison("Title", [compared]))
    assert table.startswith("Title, peak 10.0 GFLOP/s")
    for words in ("2.00 MFLOP", "1.00 ms", "30 %", "4.00 ms", "3.00 ms", "3.00 ×", "1.5 ×", "20 %"):
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
    for module in (models, compile_time):
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
