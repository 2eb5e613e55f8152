"""The benchmarks' harness, with made-up times: nothing here depends on how fast a machine is."""

import json

import pytest

from benchmarks import __main__ as program
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


def test_every_benchmark_runs_without_cases():
    for name in ("models", "compile_time"):
        module = __import__(f"benchmarks.{name}", fromlist=["run"])
        assert isinstance(module.run(Options(rounds=1, only="nothing of this name")), Result)


def test_times_are_of_single_calls():
    calls = []
    subject = Subject(timed(lambda: calls.append(1), warm=0.001))
    found = subject.measure(0.01)
    assert 0 < found["fastest"] <= found["seconds"] < 1e-4
    assert len(calls) > 100
