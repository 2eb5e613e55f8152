"""Optimisers fed PyTorch's gradients, schedules beside PyTorch's, states that go both ways."""

import functools
import json

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler as torch_scheduler

import dlc
from dlc import nn, optim
from dlc.errors import ArgumentError, ShapeError, TraceError, WeightsError
from dlc.frontend.optim import lr_scheduler
from dlc.frontend.parameter import Parameter
from dlc.frontend.trace import trace

SHAPES = {(4, 3): "float32", (5,): "float64", (2, 1, 3, 3): "float32"}

SETTINGS = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "maximize": True}),
    ("Adagrad", {}),
    (
        "Adagrad",
        {"lr_decay": 0.1, "weight_decay": 0.01, "initial_accumulator_value": 0.5, "maximize": True},
    ),
    ("Adadelta", {}),
    ("Adadelta", {"lr": 0.5, "rho": 0.8, "weight_decay": 0.1, "maximize": True}),
    ("RMSprop", {}),
    ("RMSprop", {"momentum": 0.9, "centered": True, "weight_decay": 0.01}),
    ("RMSprop", {"alpha": 0.9, "centered": True, "maximize": True}),
    ("Adam", {}),
    ("Adam", {"amsgrad": True, "weight_decay": 0.1, "betas": (0.8, 0.99), "eps": 1e-6}),
    ("Adam", {"weight_decay": 0.1, "decoupled_weight_decay": True, "maximize": True}),
    ("AdamW", {}),
    ("AdamW", {"lr": 0.01, "amsgrad": True}),
]


def parameters():
    rng = np.random.default_rng(0)
    return [Parameter(rng.normal(size=s).astype(dtype)) for s, dtype in SHAPES.items()]


def gradients_of(step):
    """Gradients of a size that differs much from step to step."""
    rng = np.random.default_rng(100 + step)
    return [
        (rng.normal(size=shape) * 10 ** rng.uniform(-3, 1)).astype(dtype)
        for shape, dtype in SHAPES.items()
    ]


def stepper(optimizer, params):
    """A compiled step of an optimiser on given gradients."""

    @dlc.jit
    def step(*gradients):
        optimizer.step(dict(zip(params, gradients, strict=True)))
        return gradients[0].sum()

    return step


def twin_of(name, params, **options):
    """PyTorch's optimiser of the same parameters."""
    theirs = [torch.nn.Parameter(torch.tensor(p.numpy())) for p in params]
    return theirs, getattr(torch.optim, name)(theirs, **options)


def torch_step(theirs, twin, gradients):
    for p, gradient in zip(theirs, gradients, strict=True):
        p.grad = torch.tensor(gradient)
    twin.step()


def assert_same(params, theirs):
    for ours, other in zip(params, theirs, strict=True):
        torch.testing.assert_close(torch.tensor(ours.numpy()), other.detach())


def in_torch(state):
    """A state dict with arrays as tensors."""
    slots = {
        number: {name: torch.tensor(array) for name, array in entry.items()}
        for number, entry in state["state"].items()
    }
    return {"state": slots, "param_groups": state["param_groups"]}


# Updates.


@pytest.mark.parametrize(("name", "options"), SETTINGS)
def test_twenty_steps_on_given_gradients_are_pytorchs(name, options):
    params = parameters()
    optimizer = getattr(optim, name)(params, **options)
    theirs, twin = twin_of(name, params, **options)
    step = stepper(optimizer, params)
    for number in range(20):
        gradients = gradients_of(number)
        step(*gradients)
        torch_step(theirs, twin, gradients)
        assert_same(params, theirs)
    assert_same_state(optimizer.state_dict(), twin.state_dict())


def assert_same_state(ours, theirs):
    assert ours["state"].keys() == theirs["state"].keys()
    for number, entry in theirs["state"].items():
        assert ours["state"][number].keys() == entry.keys()
        for name, value in entry.items():
            torch.testing.assert_close(torch.tensor(ours["state"][number][name]), value)
    for mine, other in zip(ours["param_groups"], theirs["param_groups"], strict=True):
        assert mine == {key: other[key] for key in mine}


@pytest.mark.parametrize(("name", "options"), SETTINGS)
def test_state_goes_both_ways(name, options):
    params = parameters()
    optimizer = getattr(optim, name)(params, **options)
    theirs, twin = twin_of(name, params, **options)
    step = stepper(optimizer, params)
    for number in range(3):
        torch_step(theirs, twin, gradients_of(number))
    take_over(optimizer, params, theirs, twin)
    for number in range(3, 6):
        step(*gradients_of(number))
        torch_step(theirs, twin, gradients_of(number))
    assert_same(params, theirs)
    theirs, twin = twin_of(name, params, **options)
    twin.load_state_dict(in_torch(optimizer.state_dict()))
    for number in range(6, 9):
        step(*gradients_of(number))
        torch_step(theirs, twin, gradients_of(number))
    assert_same(params, theirs)


def take_over(optimizer, params, theirs, twin):
    for ours, other in zip(params, theirs, strict=True):
        ours.data = other.detach().numpy()
    optimizer.load_state_dict(twin.state_dict())


def test_a_loaded_state_reaches_a_compiled_step():
    params = parameters()
    optimizer = optim.Adam(params)
    step = stepper(optimizer, params)
    start, first = optimizer.state_dict(), [p.numpy() for p in params]
    runs = []
    for _ in range(2):
        for number in range(3):
            step(*gradients_of(number))
        runs.append([p.numpy() for p in params])
        optimizer.load_state_dict(start)
        for p, value in zip(params, first, strict=True):
            p.data = value
    for a, b in zip(*runs, strict=True):
        np.testing.assert_array_equal(a, b)


def test_groups_have_options_of_their_own():
    params = parameters()
    groups = [{"params": params[:1], "lr": 0.5}, {"params": params[1:], "momentum": 0.0}]
    optimizer = optim.SGD(groups, lr=0.1, momentum=0.9)
    theirs = [torch.nn.Parameter(torch.tensor(p.numpy())) for p in params]
    twins = [{"params": theirs[:1], "lr": 0.5}, {"params": theirs[1:], "momentum": 0.0}]
    twin = torch.optim.SGD(twins, lr=0.1, momentum=0.9)
    step = stepper(optimizer, params)
    for number in range(3):
        step(*gradients_of(number))
        torch_step(theirs, twin, gradients_of(number))
    assert_same(params, theirs)
    assert_same_state(optimizer.state_dict(), twin.state_dict())


def test_parameters_without_a_gradient_stay():
    params = parameters()
    optimizer = optim.Adam(params)
    before = params[1].numpy()
    dlc.jit(lambda g: (optimizer.step({params[0]: g}), g.sum())[1])(gradients_of(0)[0])
    np.testing.assert_array_equal(params[1].numpy(), before)
    assert set(optimizer.state_dict()["state"]) == {0}


def test_slots_and_scalars_are_named_after_their_parameters():
    model = nn.Linear(3, 2)
    optimizer = optim.Adam()
    optimizer.bind(model.named_parameters())

    class Step(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            y = self.model(x)
            optimizer.step({p: p * 1.0 for p in model.parameters()})
            return y

    graph = trace(Step(), np.zeros((1, 3), "float32")).graph
    names = set(graph.aliases.values())
    slots = {f"model.{p}.{s}" for p in ("weight", "bias") for s in ("exp_avg", "exp_avg_sq")}
    assert names == {"model.weight", "model.bias", "optimizer.0.step", *slots}
    assert "optimizer.0.betas.1" in {node.name for node in graph.parameters}


# What is compiled in.


def test_numbers_change_without_a_new_graph():
    params = parameters()
    optimizer = optim.AdamW(params)
    step = stepper(optimizer, params)
    theirs, twin = twin_of("AdamW", params)
    before = optimizer.structure()
    for number in range(4):
        lr, betas = 0.1 / (number + 1), (0.8 + number / 100, 0.99)
        for group in (optimizer.param_groups[0], twin.param_groups[0]):
            group["lr"], group["betas"] = lr, betas
        step(*gradients_of(number))
        torch_step(theirs, twin, gradients_of(number))
    assert_same(params, theirs)
    assert optimizer.structure() == before


def test_the_structure_is_what_is_compiled_in():
    optimizer = optim.SGD(parameters(), lr=0.1)
    (group,) = optimizer.param_groups
    seen = {optimizer.structure()}
    for name, value in (("momentum", 0.9), ("weight_decay", 0.1), ("nesterov", True)):
        group[name] = value
        seen.add(optimizer.structure())
    assert len(seen) == 4
    group["lr"] = 0.2
    assert optimizer.structure() in seen
    optimizer.add_param_group({"params": Parameter([1.0])})
    assert optimizer.structure() not in seen


# Clipping.


@pytest.mark.parametrize("norm_type", [2.0, 1.0, 3.0, float("inf")])
@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_gradients_are_clipped_by_norm(norm_type, max_norm):
    params, arrays = parameters()[::2], gradients_of(1)[::2]  # of one element type

    @dlc.jit
    def clipped(*gradients):
        given = dict(zip(params, gradients, strict=True))
        made, total = optim.clip_grad_norm(given, max_norm, norm_type)
        return [made[p] for p in params], total

    ours, total = clipped(*arrays)
    theirs, _ = twin_of("SGD", params)
    for p, gradient in zip(theirs, arrays, strict=True):
        p.grad = torch.tensor(gradient)
    expected = torch.nn.utils.clip_grad_norm_(theirs, max_norm, norm_type)
    torch.testing.assert_close(torch.tensor(total), expected)
    for a, p in zip(ours, theirs, strict=True):
        torch.testing.assert_close(torch.tensor(a), p.grad)


def test_gradients_are_clipped_by_value():
    p = Parameter(np.zeros(3, "float32"))
    clip = dlc.jit(lambda g: optim.clip_grad_value({p: g}, 1.5)[p])
    np.testing.assert_array_equal(clip(np.float32([-2, 0.5, 9])), np.float32([-1.5, 0.5, 1.5]))


def test_clipping_nothing_has_norm_zero():
    assert dlc.jit(lambda x: optim.clip_grad_norm({}, 1.0)[1] + x)(np.float32(0)) == 0


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan")])
def test_clipping_refuses_norms_that_are_none(bad):
    with pytest.raises(ArgumentError, match="norm_type above 0"):
        dlc.jit(lambda x: optim.clip_grad_norm({}, 1.0, bad)[1] + x)(np.float32(0))
    with pytest.raises(ArgumentError, match="at least 0"):
        optim.clip_grad_value({}, bad - 1)


# Models.


def test_without_params_it_trains_the_model_it_is_bound_to():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    model[0].bias.requires_grad = False
    optimizer = optim.Adam()
    for _ in range(2):
        optimizer.bind(model.named_parameters())
    group = optimizer.param_groups[0]
    assert [p is q for p, q in zip(group["params"], model.parameters(), strict=True)] == [True] * 4
    assert len(optimizer.parameters()) == 3
    assert sorted(optimizer.state_dict()["state"]) == [0, 2, 3]
    with pytest.raises(ArgumentError, match="expects the model that it trains, got another one"):
        optimizer.bind(nn.Linear(3, 2).named_parameters())


def test_a_group_beside_that_of_the_model_keeps_its_parameters():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    optimizer = optim.Adam(lr=0.1)
    optimizer.add_param_group({"params": model[1].parameters(), "lr": 0.01})
    optimizer.bind(model.named_parameters())
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 2]


def test_a_replaced_layer_is_followed():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    optimizer = optim.Adam()
    optimizer.bind(model.named_parameters())
    before = optimizer.structure()
    model[1] = nn.Linear(2, 5)
    optimizer.bind(model.named_parameters())
    assert optimizer.structure() != before
    assert optimizer.state_dict()["state"][2]["exp_avg"].shape == (5, 2)


def test_parameters_of_another_model_are_refused():
    optimizer = optim.SGD(nn.Linear(3, 2).parameters(), lr=0.1)
    message = r"parameters of the model \(weight, bias\), got one of shape \(2, 3\)"
    with pytest.raises(ArgumentError, match=message):
        optimizer.bind(nn.Linear(3, 2).named_parameters())


# Errors.


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: optim.SGD(p, beta=0.1), "arguments params, lr, momentum, .* got 'beta'"),
        (lambda p: optim.Adam(p, fused=True), "'fused'. It chooses among PyTorch's"),
        (lambda p: optim.AdamW(p, decoupled_weight_decay=False), "got .decoupled_weight_decay"),
        (lambda p: optim.SGD(0.1), "Name the other arguments, as in lr=0.1"),
        (lambda p: optim.SGD(p, lr=-1), "lr of SGD expects at least 0, got -1"),
        (lambda p: optim.SGD(p, lr=float("nan")), "a finite number, got nan"),
        (lambda p: optim.SGD(p).param_groups[0].__setitem__("lr", np.inf), "finite .* got inf"),
        (lambda p: optim.SGD(p, lr="big"), "a finite number, got 'big'"),
        (lambda p: optim.Adam(p, lr="1e-3"), "a finite number, got '1e-3'"),
        (lambda p: optim.Adam(p, betas=(0.9, 1.0)), "at least 0 and below 1"),
        (lambda p: optim.Adam(p, betas=0.9), "two finite numbers"),
        (lambda p: optim.Adadelta(p, rho=1.5), "at least 0 and at most 1"),
        (lambda p: optim.Adam(p, amsgrad=1), "amsgrad of Adam expects True or False, got 1"),
        (lambda p: optim.SGD(p, nesterov=True), "momentum and no dampening"),
        (lambda p: optim.SGD([]), "one or more parameters, got none"),
        (lambda p: optim.SGD([np.zeros(2)]), "got a ndarray"),
        (lambda p: optim.SGD([p[0], p[0]]), "each parameter once"),
        (lambda p: optim.SGD([{"lr": 0.1}]), "'params' in each group, got a dict with 'lr'"),
        (lambda p: optim.SGD([{"params": p, "rho": 1}]), "options of a group among lr"),
        (lambda p: optim.SGD(p).param_groups[0].__setitem__("rho", 1), "an option of lr, mom"),
    ],
)
def test_arguments_are_refused(make, message):
    with pytest.raises(ArgumentError, match=message):
        make(parameters())


def test_a_step_needs_a_trace_and_gradients_that_fit():
    params = parameters()
    optimizer = optim.SGD(params[:1], lr=0.1)
    with pytest.raises(TraceError, match="a step of SGD is part of a trace"):
        optimizer.step({})
    with pytest.raises(ArgumentError, match="expects gradients of its own parameters"):
        stepper(optimizer, params)(*gradients_of(0))
    with pytest.raises(ShapeError, match=r"expects a gradient float32\[4, 3\] of 'parameter'"):
        stepper(optimizer, params[:1])(np.zeros(3, "float32"))
    with pytest.raises(TraceError, match="no value while the model is traced"):
        dlc.jit(lambda x: x * optimizer.param_groups[0]["lr"])(np.zeros(3, "float32"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["param_groups"][0].pop("eps"), "none of eps"),
        (lambda s: s.pop("state"), "'state' and 'param_groups', got one without 'state'"),
        (lambda s: s["param_groups"].clear(), "groups of 3 parameters, got no groups"),
        (lambda s: s["param_groups"][0].update(rho=1), "no state of Adam: .* got 'rho'"),
        (lambda s: s["param_groups"][0]["params"].pop(), "groups of 3 parameters, got groups of 2"),
        (lambda s: s["state"][0].update(exp_avg=np.zeros(7)), r"exp_avg of shape \(4, 3\)"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(change, message):
    params = parameters()
    optimizer = optim.Adam(params)
    step = stepper(optimizer, params)
    step(*gradients_of(0))
    before, bad = optimizer.state_dict(), optimizer.state_dict()
    bad["param_groups"][0]["lr"] = 7.0
    change(bad)
    with pytest.raises(WeightsError, match=message):
        optimizer.load_state_dict(bad)
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    np.testing.assert_equal(after["state"], before["state"])


# Schedules.

SCHEDULES = {
    "step": lambda m, o: m.StepLR(o, 7, 0.5),
    "multi-step": lambda m, o: m.MultiStepLR(o, [80, 5, 5, 30], 0.3),
    "exponential": lambda m, o: m.ExponentialLR(o, 0.97),
    "cosine": lambda m, o: m.CosineAnnealingLR(o, 30, eta_min=0.001),
    "linear": lambda m, o: m.LinearLR(o, 0.1, 0.9, total_iters=20),
    "lambda": lambda m, o: m.LambdaLR(o, lambda step: 1 / (1 + step)),
    "lambdas": lambda m, o: m.LambdaLR(o, [lambda step: 0.9**step, lambda step: 2.0]),
    "one cycle": lambda m, o: m.OneCycleLR(o, 0.1, total_steps=100),
    "one cycle, linear": lambda m, o: m.OneCycleLR(
        o, [0.1, 0.3], epochs=10, steps_per_epoch=10, anneal_strategy="linear", pct_start=0.2
    ),
    "one cycle, three phases": lambda m, o: m.OneCycleLR(
        o, 0.1, total_steps=100, three_phase=True, base_momentum=0.5, max_momentum=0.6
    ),
    "warm-up, then cosine": lambda m, o: m.SequentialLR(
        o, [m.LinearLR(o, 0.01, total_iters=10), m.CosineAnnealingLR(o, 60)], [10]
    ),
    "three in turn": lambda m, o: m.SequentialLR(
        o,
        [m.ExponentialLR(o, 0.9), m.MultiStepLR(o, [0, 3], 0.5), m.LambdaLR(o, lambda s: s + 1)],
        [20, 50],
    ),
}


def both(name="SGD", **options):
    """An optimiser with two groups, and PyTorch's."""
    options = {"lr": 0.1, **({"momentum": 0.9} if name == "SGD" else {}), **options}
    ours = [Parameter([1.0]), Parameter([2.0])]
    theirs = [torch.nn.Parameter(torch.ones(1)) for _ in range(2)]
    groups = [[{"params": [a]}, {"params": [b], "lr": 0.02}] for a, b in (ours, theirs)]
    return getattr(optim, name)(groups[0], **options), getattr(torch.optim, name)(
        groups[1], **options
    )


def values(optimizer):
    """What schedules change, in every group."""
    names = ("lr", "momentum", "betas")
    return [[group[n] for n in names if n in group] for group in optimizer.param_groups]


def assert_equal_values(ours, theirs):
    for a, b in zip(values(ours), values(theirs), strict=True):
        np.testing.assert_allclose(np.hstack(a), np.hstack(b), rtol=1e-12, atol=1e-17)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_is_pytorchs_for_a_hundred_steps(name, optimizer):
    ours, theirs = both(optimizer)
    made, twin = SCHEDULES[name](lr_scheduler, ours), SCHEDULES[name](torch_scheduler, theirs)
    for _ in range(100):
        assert_equal_values(ours, theirs)
        np.testing.assert_allclose(made.get_last_lr(), twin.get_last_lr(), rtol=1e-12)
        made.step()
        twin.step()
    assert_equal_values(ours, theirs)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_goes_on_from_its_state(name):
    ours, theirs = both()
    made, twin = SCHEDULES[name](lr_scheduler, ours), SCHEDULES[name](torch_scheduler, theirs)
    for _ in range(40):
        made.step()
        twin.step()
    states = json.loads(json.dumps(made.state_dict())), twin.state_dict()
    rates = json.loads(json.dumps(ours.state_dict()["param_groups"]))
    for state in states:
        again, _ = both()
        resumed = SCHEDULES[name](lr_scheduler, again)
        again.load_state_dict({"state": {}, "param_groups": rates})
        resumed.load_state_dict(state)
        ahead, _ = both()
        reference = SCHEDULES[name](lr_scheduler, ahead)
        for _ in range(40):
            reference.step()
        for _ in range(60):
            resumed.step()
            reference.step()
            assert_equal_values(again, ahead)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_two_schedules_multiply():
    ours, theirs = both()
    pairs = [
        (module.LinearLR(o, 0.1, total_iters=8), module.ExponentialLR(o, 0.9))
        for module, o in ((lr_scheduler, ours), (torch_scheduler, theirs))
    ]
    for number in range(30):
        for pair in pairs:
            for schedule in pair:
                schedule.step()
        if number == 11:  # by hand, and carried on from
            ours.param_groups[0]["lr"] = theirs.param_groups[0]["lr"] = 0.4
        assert_equal_values(ours, theirs)


PLATEAUS = [
    {"patience": 2},
    {"patience": 1, "cooldown": 3, "threshold": 0.05, "factor": 0.5},
    {"mode": "max", "patience": 1, "threshold_mode": "abs", "min_lr": [0.01, 0.001]},
    {"mode": "max", "patience": 3, "threshold": 0.2},
    {"patience": 0, "threshold_mode": "abs", "eps": 1e-3},
]


@pytest.mark.parametrize("options", PLATEAUS)
def test_a_plateau_is_pytorchs_for_a_hundred_steps(options):
    ours, theirs = both()
    made = lr_scheduler.ReduceLROnPlateau(ours, **options)
    twin = torch_scheduler.ReduceLROnPlateau(theirs, **options)
    rng = np.random.default_rng(0)
    for number in range(100):
        metric = float(rng.normal() / (1 + number / 10))
        made.step(metric)
        twin.step(metric)
        assert_equal_values(ours, theirs)
        if number == 50:
            made = lr_scheduler.ReduceLROnPlateau(ours, **options)
            made.load_state_dict(json.loads(json.dumps(twin.state_dict())))
    assert ours.param_groups[0]["lr"] < 0.1


def test_a_schedule_compiles_nothing():
    params = parameters()
    optimizer = optim.SGD(params, lr=0.1, momentum=0.9)
    schedule = lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=20)
    traced = []

    @dlc.jit
    def step(*gradients):
        traced.append(1)
        optimizer.step(dict(zip(params, gradients, strict=True)))
        return gradients[0].sum()

    theirs, twin = twin_of("SGD", params, lr=0.1, momentum=0.9)
    other = torch_scheduler.OneCycleLR(twin, 0.1, total_steps=20)
    for number in range(8):
        step(*gradients_of(number))
        torch_step(theirs, twin, gradients_of(number))
        schedule.step()
        other.step()
    assert_same(params, theirs)
    assert len(traced) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda s, o: s.StepLR("adam", 3), "an optimiser of dlc.optim, got a str"),
        (lambda s, o: s.StepLR(o, 0), "step_size to be an integer above 0, got 0"),
        (lambda s, o: s.StepLR(o, 3, last_epoch=4), "groups with 'initial_lr'"),
        (lambda s, o: s.StepLR(o, step=3), "StepLR expects the arguments optimizer, step_size, "),
        (lambda s, o: s.LinearLR(o, 0.0), "factors from 0 to 1"),
        (lambda s, o: s.CosineAnnealingLR(o, 0), "T_max to be an integer above 0"),
        (lambda s, o: s.LambdaLR(o, [abs]), "one lr_lambda or one for each of 2 groups, got 1"),
        (lambda s, o: s.OneCycleLR(o, 0.1), "total_steps, or epochs and steps_per_epoch"),
        (lambda s, o: s.OneCycleLR(o, 0.1, 9, pct_start=2.0), "pct_start from 0 to 1"),
        (lambda s, o: s.OneCycleLR(o, 0.1, 9, anneal_strategy="exp"), "'cos' or 'linear'"),
        (lambda s, o: s.OneCycleLR(both("Adagrad")[0], 0.1, 9), "Pass cycle_momentum=False"),
        (lambda s, o: advance(s.OneCycleLR(o, 0.1, 9), 10), "at most 9 steps"),
        (lambda s, o: s.SequentialLR(o, [], []), "one or more schedules"),
        (lambda s, o: s.SequentialLR(o, [s.ReduceLROnPlateau(o)], []), "on the step alone"),
        (lambda s, o: s.SequentialLR(o, [s.StepLR(o, 3)], [3]), "1 schedules and 1 milestones"),
        (lambda s, o: s.ReduceLROnPlateau(o, factor=1.0), "a factor below 1"),
        (lambda s, o: s.ReduceLROnPlateau(o, mode="up"), "mode 'min' or 'max'"),
    ],
)
def test_schedules_refuse_arguments(make, message):
    with pytest.raises(ArgumentError, match=message):
        make(lr_scheduler, both()[0])


def advance(schedule, count):
    for _ in range(count):
        schedule.step()


def test_a_schedule_refuses_the_state_of_another():
    optimizer, _ = both()
    states = [
        lr_scheduler.StepLR(optimizer, 3).state_dict(),
        lr_scheduler.SequentialLR(optimizer, [lr_scheduler.StepLR(optimizer, 3)], []).state_dict(),
    ]
    for state in states:
        with pytest.raises(WeightsError, match="expects a state"):
            lr_scheduler.CosineAnnealingLR(optimizer, 3).load_state_dict(state)
    make = functools.partial(lr_scheduler.SequentialLR, optimizer)
    with pytest.raises(WeightsError, match="states of 1 schedules, got 0"):
        make([lr_scheduler.StepLR(optimizer, 3)], []).load_state_dict(states[0])
