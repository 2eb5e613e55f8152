"""Plans as bytes: what is written comes back, for any sizes and for whole models."""

import json

import numpy as np
import pytest
from helpers.schedules import scheduled
from helpers.three_ways import Known
from hypothesis import given
from hypothesis import strategies as st

import dlc
from dlc.backends.native.isa import host
from dlc.backends.numba_cpu.lower import Lowering
from dlc.frontend import models, nn
from dlc.ir.pattern import op
from dlc.ir.plan import Address, Buffer, Layout, Plan, Scratch, Site, Step, from_json, to_json
from dlc.ir.sizes import as_size
from dlc.ir.types import DTYPES, TensorType
from dlc.runtime.bundle import Compiled, pack, unpack

DIMS = [dlc.Dim("batch", 1, 8), dlc.Dim("width", 0, 100)]


def plan_of(function, *specs):
    """A plan with objects that are none."""
    return Lowering(host(), Known()).compile(*scheduled(function, *specs))


def through_text(value):
    return from_json(json.loads(json.dumps(to_json(value))))


# Sizes and plans at random.


def combine(inner):
    pairs = st.tuples(inner, inner)
    return st.one_of(
        pairs.map(lambda p: p[0] + p[1]),
        pairs.map(lambda p: p[0] * p[1]),
        st.tuples(inner, st.integers(1, 7)).map(lambda p: p[0] // p[1]),
    )


SIZES = st.recursive(
    st.one_of(st.integers(-9, 2**40), st.sampled_from(DIMS).map(as_size)), combine, max_leaves=6
)
TYPES = st.builds(TensorType, st.sampled_from(DTYPES), st.tuples(SIZES, SIZES))
WIDTHS = st.tuples(st.integers(0, 3), st.integers(0, 3))
LAYOUTS = st.builds(Layout, st.just((1, 0)), st.tuples(WIDTHS, WIDTHS))
BUFFERS = st.builds(Buffer, st.text(), st.sampled_from(["input", "arena"]), TYPES, LAYOUTS)
WORDS = st.one_of(st.builds(Address, st.integers(0, 9), SIZES), st.just(Scratch()), SIZES)
STEPS = st.builds(
    Step, st.text(), st.lists(WORDS).map(tuple), st.booleans(), st.text(), SIZES, SIZES
)
SITES = st.builds(Site, st.text(), st.text(), st.tuples(SIZES), SIZES)


@given(SIZES)
def test_a_size_comes_back(size):
    back = through_text(size)
    assert back == size
    assert hash(back) == hash(size)


@given(
    st.lists(BUFFERS, max_size=3).map(tuple),
    st.lists(STEPS, max_size=2).map(tuple),
    SIZES,
    st.lists(SITES, max_size=2).map(tuple),
)
def test_any_plan_comes_back(buffers, steps, scratch, sites):
    plan = Plan(
        buffers, steps, steps[:1], (0, 2), (1,), tuple(DIMS), 512, 128, scratch, ("x", "ä"), ("y",),
        "main", {1: "bn.mean"}, sites,
    )  # fmt: skip
    assert through_text(plan) == plan


# Whole models.


@pytest.mark.parametrize("name", ["lenet5", "resnet18"])
def test_the_plan_of_a_model_comes_back(name):
    shape = {"lenet5": (1, 28, 28), "resnet18": (3, 64, 64)}[name]
    model = getattr(models, name)().eval()
    compiled = plan_of(model, dlc.TensorSpec((dlc.Dim("batch", 1, 8), *shape)))
    assert through_text(compiled.plan) == compiled.plan
    back = unpack(pack(compiled))
    assert back.plan == compiled.plan
    assert back.objects == compiled.objects
    assert back.sources == compiled.sources
    assert list(back.plan.kernels) == compiled.plan.kernels


def test_every_kernel_and_buffer_of_a_plan_is_there():
    compiled = plan_of(models.lenet5().eval(), dlc.TensorSpec((2, 1, 28, 28)))
    plan = compiled.plan
    assert set(plan.kernels) == set(compiled.sources)
    assert set(compiled.sources) <= set(compiled.objects)
    for step in (*plan.prepare, *plan.main):
        for arg in step.args:
            assert not isinstance(arg, Address) or plan.buffers[arg.buffer]
    assert [plan.buffers[i].role for i in (*plan.inputs, *plan.outputs)] == ["input", "output"]
    assert {b.name for b in plan.buffers if b.role == "constant"} == set(compiled.constants)


def test_equal_layers_share_a_kernel():
    layers = nn.Sequential(*(nn.Linear(32 << i, 64 << i) for i in range(3)))
    plan = plan_of(layers, dlc.TensorSpec((2, 32))).plan
    assert len(plan.main) == 3
    assert len({step.kernel for step in plan.main}) == 1


def test_errors_are_numbered_over_all_kernels():
    def function(x, i, j):
        return op.take(x, i, axis=0) + op.take(x, j, axis=0), op.take(op.tanh(x), i, axis=1)

    index = dlc.TensorSpec((dlc.Dim("count", 1, 9),), "int64")
    plan = plan_of(function, dlc.TensorSpec((9, 9)), index, index).plan
    assert [(site.op, site.extent) for site in plan.sites] == [("take", 9)] * 3
    assert [str(site.shape[0]) for site in plan.sites] == ["count"] * 3


# Bundles.


def test_constants_of_every_type_come_back():
    arrays = {
        "flags": np.array([True, False]),
        "bytes": np.arange(5, dtype="uint8"),
        "number": np.array(7, "int64"),
        "empty": np.zeros((0, 3), "float32"),
        "matrix": np.arange(6.0).reshape(2, 3).T,
    }
    plan = Plan((), (), (), (), (), (), 0, 0)
    back = unpack(pack(Compiled(plan, {"f": b"\0elf", "g": b""}, {"f": "def f(): ..."}, arrays)))
    assert dict(back.objects) == {"f": b"\0elf", "g": b""}
    assert dict(back.sources) == {"f": "def f(): ..."}
    for name, array in arrays.items():
        assert back.constants[name].dtype == array.dtype
        np.testing.assert_array_equal(back.constants[name], array)


def test_plans_name_what_comes_from_where():
    """Equal structures of other modules are other plans, since their errors name the modules."""
    first, second = (
        nn.Sequential(nn.Identity(), nn.Softmax(1)) if i else nn.Sequential(nn.Softmax(1))
        for i in range(2)
    )
    labels = [
        plan_of(model, dlc.TensorSpec((2, 3))).plan.main[0].label for model in (first, second)
    ]
    assert [label.split(" ")[-1] for label in labels] == ["(0)", "(1)"]
