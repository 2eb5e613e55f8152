"""Profiles and the machine's peak: what they count, what they say, and that results stay right."""

import contextlib
import itertools
import json

import numpy as np
import pytest

import dlc
from dlc.driver import bursts, meetings, peak
from dlc.errors import ArgumentError, ShapeError
from dlc.errors import IndexError as OutOfRange


@pytest.fixture(scope="module")
def exe():
    """A product, a ReLU and a softmax, for 1 to 64 rows."""
    w = dlc.nn.Parameter(np.random.default_rng(0).normal(size=(48, 96)).astype("float32"))
    spec = dlc.TensorSpec((dlc.Dim("n", 1, 64), 48))
    return dlc.compile(lambda x: dlc.functional.softmax((x @ w).relu(), -1), spec, threads=2)


def rows(n):
    return np.random.default_rng(1).normal(size=(n, 48)).astype("float32")


def test_a_profile_has_every_kernel_in_order(exe):
    profile = exe.profile(rows(8), repeats=3)
    assert [(k.name, k.label) for k in profile.kernels] == [(k.name, k.label) for k in exe.kernels]
    assert profile.repeats == 3
    assert all(kernel.seconds > 0 for kernel in profile.kernels)
    assert profile.call > 0
    assert 0 <= profile.clock < 1e-3


def test_counts_are_those_of_the_actual_sizes(exe):
    few, many = exe.profile(rows(4), repeats=1), exe.profile(rows(64), repeats=1)
    assert many.flops == 16 * few.flops == sum(kernel.flops for kernel in exe.kernels)
    assert few.flops >= 2 * 4 * 48 * 96
    assert all(m.bytes > f.bytes for f, m in zip(few.kernels, many.kernels) if f.bytes)


def test_shares_and_intensities(exe):
    profile = exe.profile(rows(64), repeats=3)
    for kernel in profile.kernels:
        assert kernel.share == kernel.flops / kernel.seconds / profile.peak.flops
        assert kernel.intensity == (kernel.flops / kernel.bytes if kernel.bytes else 0)
    assert profile.share == profile.flops / profile.call / profile.peak.flops


def test_profiling_changes_no_result(exe):
    x = rows(8)
    before = exe(x)
    exe.profile(x, repeats=20)
    np.testing.assert_array_equal(exe(x), before)


def test_profiled_calls_compute_the_same(monkeypatch):
    """Kernels that work in place run once in each profiled call, not again and again."""
    from dlc.runtime import profile

    seen = []

    class Spy(profile._Stamped):
        def run(self):
            times = super().run()
            seen.append(self._keep[-1]["output"].copy())
            return times

    monkeypatch.setattr(profile, "_Stamped", Spy)
    x = rows(8)
    exe = dlc.compile(lambda x: (x.exp() + 1).sum(-1).exp() * 0.5, x, threads=2)
    exe.profile(x, repeats=3)
    for output in seen:
        np.testing.assert_array_equal(output, exe(x))


def test_the_table(exe):
    text = str(exe.profile(rows(8), repeats=1))
    assert text.startswith("A call takes ")
    assert f"{len(exe.kernels)} kernels" in text
    assert "of peak" in text
    assert "matmul" in text


def test_the_trace(exe, tmp_path):
    profile = exe.profile(rows(8), repeats=3)
    profile.chrome_trace(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert [event["args"]["kernel"] for event in events] == [k.name for k in exe.kernels]
    assert {event["ph"] for event in events} == {"X"}
    for before, after in itertools.pairwise(events):
        assert after["ts"] == pytest.approx(before["ts"] + before["dur"])


def test_a_call_without_kernels():
    x = rows(2)
    profile = dlc.compile(lambda x: x, x).profile(x, repeats=1)
    assert (profile.kernels, profile.seconds, profile.share) == ((), 0, 0)
    assert "0 kernels" in str(profile)


def test_json_values(exe):
    values = json.loads(json.dumps(exe.profile(rows(8), repeats=1).as_dict()))
    assert set(values) == {"kernels", "call", "clock", "repeats", "peak"}


def test_errors_come_as_in_a_call(exe):
    with pytest.raises(ShapeError, match=r"n is declared as 1\.\.64"):
        exe.profile(rows(65))
    with pytest.raises(ArgumentError, match="repeats of at least 1"):
        exe.profile(rows(8), repeats=0)
    table = dlc.nn.Parameter(np.eye(4, dtype="float32"))
    lookup = dlc.compile(
        lambda i: dlc.functional.embedding(i, table), dlc.TensorSpec((3,), "int64")
    )
    with pytest.raises(OutOfRange):
        lookup.profile(np.array([0, 1, 9]))


def test_the_reference_backend_has_no_kernels():
    x = rows(2)
    with pytest.raises(ArgumentError, match="profile expects native kernels"):
        dlc.compile(lambda x: x + 1, x, target="reference").profile(x)


# The peak.


def test_the_peak_is_measured_once_and_says_of_what():
    one = peak(1)
    assert (one.threads, one.dtype) == (1, "float32")
    assert one is peak(1)
    assert 1e9 < one.flops < 1e12


def test_float64_has_half_the_lanes():
    assert 0.4 < peak(1, "float64").flops / peak(1).flops < 0.6


def test_no_kernel_beats_the_peak():
    """A matrix product in the first-level cache, on one thread: near the peak, not beyond it."""
    a = np.ones((56, 256), "float32")
    exe = dlc.compile(lambda a: a @ a.mT, a, threads=1)
    share = max(exe.profile(a, repeats=200).share for _ in range(3))
    assert share < 1.05


def test_bursts_adapt_to_the_machine():
    measuring = bursts(2)
    with contextlib.closing(measuring.pool) as pool:
        for _ in range(8):
            rate = measuring.run()
        assert 0 < rate <= measuring.fastest
        assert pool.threads == 2


def test_threads_that_do_nothing_meet_in_less_than_a_call():
    with contextlib.closing(bursts(2).pool) as pool:
        between = meetings(pool)
        assert 1e-9 < min(between.run() for _ in range(20)) < 1e-4


def test_a_peak_of_unknown_type():
    with pytest.raises(ArgumentError, match="a dtype of float32, float64, got 'int8'"):
        bursts(1, "int8")
