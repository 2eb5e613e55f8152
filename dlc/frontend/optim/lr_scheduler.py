"""Schedules: how the learning rates of an optimiser change from step to step (or epoch to epoch).

As in PyTorch most schedules give the next rate from the present one, so that two of them on one
optimiser multiply, and a rate that somebody sets by hand is carried on from.
"""

from __future__ import annotations

import inspect
import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

from dlc.errors import ArgumentError, WeightsError, explain
from dlc.frontend.absent import explained
from dlc.frontend.optim.group import Group
from dlc.frontend.optim.optimizer import Optimizer

__all__ = [
    "CosineAnnealingLR",
    "ExponentialLR",
    "LRScheduler",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "OneCycleLR",
    "ReduceLROnPlateau",
    "SequentialLR",
    "StepLR",
]

__getattr__ = explained("dlc.optim.lr_scheduler", __all__)


class _Schedule:
    """What all schedules share: an optimiser, a count of steps, a state dict."""

    #: Attributes that are no part of the state.
    transient: tuple[str, ...] = ("optimizer",)

    optimizer: Optimizer
    last_epoch: int
    _last_lr: list[float]

    def __new__(cls, *args: Any, **options: Any) -> Self:
        """Refuse arguments that the schedule does not have, as optimisers do."""
        known = inspect.signature(cls.__init__).parameters.values()
        names = [each.name for each in known][1:]
        if all(each.kind is not each.VAR_KEYWORD for each in known):
            for name in set(options).difference(names):
                expected = f"the arguments {', '.join(names)}"
                raise ArgumentError(explain(cls.__name__, expected, repr(name)))
        return super().__new__(cls)

    def get_last_lr(self) -> list[float]:
        """The learning rate of each group, as this schedule last set it."""
        return list(self._last_lr)

    def state_dict(self) -> dict[str, Any]:
        """All but the optimiser, and functions: numbers, strings and lists of them."""
        return {name: v for name, v in vars(self).items() if name not in self.transient}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over a state, of dlc or of PyTorch; learning rates come with the optimiser's state.

        Raises
        ------
        WeightsError
            It is of another kind of schedule; nothing was changed.
        """
        own = [name for name in vars(self) if name not in self.transient]
        missing = [name for name in own if name not in state_dict]
        if missing:
            expected = f"a state with {', '.join(own)}"
            got = f"none of {', '.join(missing)}"
            raise WeightsError(explain(f"{type(self).__name__}.load_state_dict", expected, got))
        for name in own:
            setattr(self, name, state_dict[name])

    def _rates(self) -> list[float]:
        return [group["lr"] for group in self.optimizer.param_groups]

    def _for_groups(self, name: str, value: Any) -> list[Any]:
        """One value for each group, given alone or as a list."""
        count = len(self.optimizer.param_groups)
        if not isinstance(value, (list, tuple)):
            return [value] * count
        if len(value) != count:
            expected = f"one {name} or one for each of {count} groups"
            raise ArgumentError(explain(type(self).__name__, expected, str(len(value))))
        return list(value)


class LRScheduler(_Schedule):
    """Base of the schedules that depend on the number of steps alone.

    Parameters
    ----------
    optimizer : Optimizer
    last_epoch : int
        The number of steps so far, less one; -1 for a new run. Another number continues a run whose
        optimiser's state was loaded.
    """

    def __init__(self, optimizer: Optimizer, last_epoch: int = -1):
        self.optimizer = _checked(type(self).__name__, optimizer)
        for group in optimizer.param_groups:
            if last_epoch == -1 and "initial_lr" not in group:
                group["initial_lr"] = group["lr"]
            if "initial_lr" not in group:
                expected = "groups with 'initial_lr' where last_epoch is not -1"
                advice = "Load the optimiser's state first."
                message = explain(type(self).__name__, expected, "none", advice=advice)
                raise ArgumentError(message)
        self.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
        self.last_epoch = last_epoch
        self._begin()

    # What each schedule says: a rate from the group, its initial rate, and `last_epoch`.

    def _next(self, group: Group, base: float) -> float:
        """The rate of step `last_epoch`, after that of the step before."""
        raise ArgumentError(f"{type(self).__name__} has no _next(group, base); define it")

    def _first(self, group: Group, base: float) -> float:
        """The rate of the step at which the schedule was made."""
        return group["lr"]

    def _start(self, base: float) -> float:
        """The rate of step 0, whatever was before."""
        return base

    def step(self) -> None:
        """Go on by one step; call it after the optimiser's step."""
        self.last_epoch += 1
        self._set(self._next)

    def _begin(self) -> None:
        self.last_epoch += 1
        self._set(self._first)

    def _restart(self) -> None:
        self.last_epoch = 0
        self._set(lambda group, base: self._start(base))

    def _set(self, rate: Callable[[Group, float], float]) -> None:
        groups = self.optimizer.param_groups
        for group, lr in zip(groups, list(map(rate, groups, self.base_lrs)), strict=True):
            group["lr"] = lr
        self._last_lr = self._rates()


class LambdaLR(LRScheduler):
    """The initial rate times a function of the number of steps.

    Parameters
    ----------
    optimizer : Optimizer
    lr_lambda : callable or list of callable
        From the number of steps so far to a factor; a list has one for each group. Functions are no
        part of the state dict.
    last_epoch : int
    """

    transient = ("optimizer", "lr_lambdas")

    def __init__(
        self,
        optimizer: Optimizer,
        lr_lambda: Callable[[int], float] | Sequence[Callable[[int], float]],
        last_epoch: int = -1,
    ):
        self.optimizer = _checked("LambdaLR", optimizer)
        self.lr_lambdas = self._for_groups("lr_lambda", lr_lambda)
        super().__init__(optimizer, last_epoch)

    def _set(self, rate: Callable[[Group, float], float]) -> None:
        groups = self.optimizer.param_groups
        for group, base, factor in zip(groups, self.base_lrs, self.lr_lambdas, strict=True):
            group["lr"] = base * factor(self.last_epoch)
        self._last_lr = self._rates()


class StepLR(LRScheduler):
    """The rate times ``gamma`` every ``step_size`` steps."""

    def __init__(
        self, optimizer: Optimizer, step_size: int, gamma: float = 0.1, last_epoch: int = -1
    ):
        self.step_size, self.gamma = _positive("StepLR", "step_size", step_size), gamma
        super().__init__(optimizer, last_epoch)

    def _next(self, group: Group, base: float) -> float:
        due = self.last_epoch != 0 and self.last_epoch % self.step_size == 0
        return group["lr"] * self.gamma if due else group["lr"]

    _first = _next


class MultiStepLR(LRScheduler):
    """The rate times ``gamma`` at each of some steps (twice where a step is named twice)."""

    def __init__(
        self,
        optimizer: Optimizer,
        milestones: Iterable[int],
        gamma: float = 0.1,
        last_epoch: int = -1,
    ):
        self.milestones, self.gamma = sorted(milestones), gamma
        super().__init__(optimizer, last_epoch)

    def _next(self, group: Group, base: float) -> float:
        return group["lr"] * self.gamma ** self.milestones.count(self.last_epoch)

    _first = _next

    def _start(self, base: float) -> float:
        return base * self.gamma ** bisect_right(self.milestones, 0)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """See `_Schedule.load_state_dict`; PyTorch has the milestones as counts."""
        super().load_state_dict(state_dict)
        self.milestones = sorted(Counter(self.milestones).elements())


class ExponentialLR(LRScheduler):
    """The rate times ``gamma`` every step."""

    def __init__(self, optimizer: Optimizer, gamma: float, last_epoch: int = -1):
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def _next(self, group: Group, base: float) -> float:
        return group["lr"] * self.gamma


class LinearLR(LRScheduler):
    """A warm-up: the rate times a factor that goes along a line, then stays.

    Parameters
    ----------
    optimizer : Optimizer
    start_factor, end_factor : float
        The factor at step 0, above 0, and from step ``total_iters`` on; each at most 1.
    total_iters : int
    last_epoch : int
    """

    def __init__(
        self,
        optimizer: Optimizer,
        start_factor: float = 1.0 / 3,
        end_factor: float = 1.0,
        total_iters: int = 5,
        last_epoch: int = -1,
    ):
        if not (0 < start_factor <= 1 and 0 <= end_factor <= 1):
            got = f"{start_factor} and {end_factor}"
            raise ArgumentError(explain("LinearLR", "factors from 0 to 1, the first above 0", got))
        self.start_factor, self.end_factor = start_factor, end_factor
        self.total_iters = total_iters
        super().__init__(optimizer, last_epoch)

    def _next(self, group: Group, base: float) -> float:
        if self.last_epoch > self.total_iters:
            return group["lr"]
        rise = self.end_factor - self.start_factor
        before = self.total_iters * self.start_factor + (self.last_epoch - 1) * rise
        return group["lr"] * (1.0 + rise / before)

    def _first(self, group: Group, base: float) -> float:
        return group["lr"] * self.start_factor if self.last_epoch == 0 else group["lr"]

    def _start(self, base: float) -> float:
        return base * self.start_factor


class CosineAnnealingLR(LRScheduler):
    """Half a cosine from the initial rate down to ``eta_min`` in ``T_max`` steps, then up again:
    Loshchilov and Hutter, 2017, without restarts.
    """

    def __init__(
        self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0, last_epoch: int = -1
    ):
        self.T_max, self.eta_min = _positive("CosineAnnealingLR", "T_max", T_max), eta_min
        super().__init__(optimizer, last_epoch)

    def _next(self, group: Group, base: float) -> float:
        if (self.last_epoch - 1 - self.T_max) % (2 * self.T_max) == 0:  # up from the bottom
            return group["lr"] + (base - self.eta_min) * (1 - math.cos(math.pi / self.T_max)) / 2
        ratio = self._height(self.last_epoch) / self._height(self.last_epoch - 1)
        return ratio * (group["lr"] - self.eta_min) + self.eta_min

    def _height(self, step: int) -> float:
        return 1 + math.cos(math.pi * step / self.T_max)


class OneCycleLR(LRScheduler):
    """Up to ``max_lr`` and down to nearly nothing, momentum the other way: Smith and Topin, 2018.

    Parameters
    ----------
    optimizer : Optimizer
    max_lr : float or list of float
        The peak; a list has one for each group.
    total_steps : int, optional
        The length of the cycle in steps; or ``epochs`` times ``steps_per_epoch``.
    epochs, steps_per_epoch : int, optional
    pct_start : float
        The share of the cycle that goes up.
    anneal_strategy : {"cos", "linear"}
    cycle_momentum : bool
        Move the momentum (of Adam the first beta) between ``max_momentum`` and ``base_momentum``.
    base_momentum, max_momentum : float or list of float
    div_factor : float
        The cycle starts at ``max_lr / div_factor``.
    final_div_factor : float
        It ends at its start divided by this.
    three_phase : bool
        Come down to the start as symmetrically as up, then to the end.
    last_epoch : int
    """

    transient = ("optimizer", "pct_start", "anneal_strategy", "three_phase")

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float | list[float],
        total_steps: int | None = None,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        pct_start: float = 0.3,
        anneal_strategy: str = "cos",
        cycle_momentum: bool = True,
        base_momentum: float | list[float] = 0.85,
        max_momentum: float | list[float] = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        three_phase: bool = False,
        last_epoch: int = -1,
    ):
        self.optimizer = _checked("OneCycleLR", optimizer)
        self.total_steps = _cycle_length(total_steps, epochs, steps_per_epoch)
        if not 0 <= pct_start <= 1:
            raise ArgumentError(explain("OneCycleLR", "pct_start from 0 to 1", str(pct_start)))
        if anneal_strategy not in ("cos", "linear"):
            got = repr(anneal_strategy)
            raise ArgumentError(explain("OneCycleLR", "anneal_strategy 'cos' or 'linear'", got))
        self.pct_start, self.anneal_strategy = pct_start, anneal_strategy
        self.three_phase, self.cycle_momentum = three_phase, cycle_momentum
        peaks = self._for_groups("max_lr", max_lr)
        if last_epoch == -1:
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["initial_lr"], group["max_lr"] = peak / div_factor, peak
                group["min_lr"] = group["initial_lr"] / final_div_factor
        if cycle_momentum:
            self._note_momentum(max_momentum, base_momentum, last_epoch)
        super().__init__(optimizer, last_epoch)

    def _note_momentum(self, most: Any, least: Any, last_epoch: int) -> None:
        defaults = self.optimizer.defaults
        if "momentum" not in defaults and "betas" not in defaults:
            expected, got = "an optimiser with momentum or betas", type(self.optimizer).__name__
            advice = "Pass cycle_momentum=False."
            raise ArgumentError(explain("OneCycleLR", expected, got, advice=advice))
        mosts = self._for_groups("max_momentum", most)
        leasts = self._for_groups("base_momentum", least)
        if last_epoch == -1:
            for group, high, low in zip(self.optimizer.param_groups, mosts, leasts, strict=True):
                group["max_momentum"], group["base_momentum"] = high, low

    def _next(self, group: Group, base: float) -> float:
        if self.last_epoch > self.total_steps:
            expected = f"at most {self.total_steps} steps, the length of the cycle"
            raise ArgumentError(explain("OneCycleLR", expected, str(self.last_epoch)))
        phases = self._phases()
        ends = [end for end, _, _ in phases]
        due = (i for i, end in enumerate(ends) if self.last_epoch <= end)
        number = next(due, len(ends) - 1)
        begin, (end, rates, momenta) = (ends[number - 1] if number else 0.0), phases[number]
        share = (self.last_epoch - begin) / (end - begin)
        if self.cycle_momentum:
            self._move_momentum(group, self._between(group, momenta, share))
        return self._between(group, rates, share)

    _first = _next

    def _phases(self) -> list[tuple[float, tuple[str, str], tuple[str, str]]]:
        """For each phase its last step, and between which rates and momenta it goes."""
        up, top = ("initial_lr", "max_lr"), float(self.pct_start * self.total_steps) - 1
        fall, rise = ("max_momentum", "base_momentum"), ("base_momentum", "max_momentum")
        last = float(self.total_steps - 1)
        if not self.three_phase:
            return [(top, up, fall), (last, ("max_lr", "min_lr"), rise)]
        return [
            (top, up, fall),
            (float(2 * self.pct_start * self.total_steps) - 2, ("max_lr", "initial_lr"), rise),
            (last, ("initial_lr", "min_lr"), ("max_momentum", "max_momentum")),
        ]

    def _between(self, group: Group, ends: tuple[str, str], share: float) -> float:
        start, end = group[ends[0]], group[ends[1]]
        if self.anneal_strategy == "linear":
            return (end - start) * share + start
        return end + (start - end) / 2.0 * (math.cos(math.pi * share) + 1)

    def _move_momentum(self, group: Group, value: float) -> None:
        if "betas" in group:
            group["betas"] = (value, group["betas"][1])
        else:
            group["momentum"] = value


def _cycle_length(total: int | None, epochs: int | None, each: int | None) -> int:
    if total is not None:
        return _positive("OneCycleLR", "total_steps", total)
    if epochs is None or each is None:
        expected = "total_steps, or epochs and steps_per_epoch"
        raise ArgumentError(explain("OneCycleLR", expected, "neither"))
    return _positive("OneCycleLR", "epochs", epochs) * _positive(
        "OneCycleLR", "steps_per_epoch", each
    )


class SequentialLR(_Schedule):
    """One schedule after another.

    Parameters
    ----------
    optimizer : Optimizer
    schedulers : list of LRScheduler
        Of this optimiser.
    milestones : list of int
        The steps at which the second schedule and those after it start, each from its own step 0.
    last_epoch : int
    """

    transient = ("optimizer", "_schedulers")

    def __init__(
        self,
        optimizer: Optimizer,
        schedulers: list[LRScheduler],
        milestones: list[int],
        last_epoch: int = -1,
    ):
        self.optimizer = _checked("SequentialLR", optimizer)
        for scheduler in schedulers:
            if not isinstance(scheduler, LRScheduler) or scheduler.optimizer is not optimizer:
                expected = "schedules of the same optimiser that depend on the step alone"
                raise ArgumentError(explain("SequentialLR", expected, type(scheduler).__name__))
        if not schedulers or len(milestones) != len(schedulers) - 1:
            expected = "one or more schedules, and a milestone between each two"
            got = f"{len(schedulers)} schedules and {len(milestones)} milestones"
            raise ArgumentError(explain("SequentialLR", expected, got))
        self._schedulers, self._milestones = list(schedulers), list(milestones)
        self.last_epoch = last_epoch + 1
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"]
        for scheduler in self._schedulers:
            scheduler.last_epoch -= 1  # take back the step it made when it was made
        self._schedulers[bisect_right(self._milestones, 0)]._begin()
        self._last_lr = self._rates()

    def step(self) -> None:
        """Go on by one step; call it after the optimiser's step."""
        self.last_epoch += 1
        number = bisect_right(self._milestones, self.last_epoch)
        scheduler = self._schedulers[number]
        if number > 0 and self._milestones[number - 1] == self.last_epoch:
            scheduler._restart()
        else:
            scheduler.step()
        self._last_lr = self._rates()

    def state_dict(self) -> dict[str, Any]:
        """All but the optimiser, with the states of the schedules."""
        states = [scheduler.state_dict() for scheduler in self._schedulers]
        return {**super().state_dict(), "_schedulers": states}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over a state, of dlc or of PyTorch."""
        states = state_dict.get("_schedulers", ())
        if len(states) != len(self._schedulers):
            expected, got = f"states of {len(self._schedulers)} schedules", str(len(states))
            raise WeightsError(explain("SequentialLR.load_state_dict", expected, got))
        super().load_state_dict(state_dict)
        for scheduler, state in zip(self._schedulers, states, strict=True):
            scheduler.load_state_dict(state)


class ReduceLROnPlateau(_Schedule):
    """The rate times ``factor`` when a metric has not become better for a while.

    Parameters
    ----------
    optimizer : Optimizer
    mode : {"min", "max"}
        Whether less is better, or more.
    factor : float
        Below 1.
    patience : int
        The number of steps without a better value that are borne.
    threshold : float
        By how much a value must be better to count.
    threshold_mode : {"rel", "abs"}
        Whether the threshold is a share of the best value, or a difference.
    cooldown : int
        The number of steps after a reduction that do not count.
    min_lr : float or list of float
        The least rate; a list has one for each group.
    eps : float
        A change of the rate below this is not made.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_lr: list[float] | float = 0.0,
        eps: float = 1e-8,
    ):
        self.optimizer = _checked("ReduceLROnPlateau", optimizer)
        if not factor < 1:
            raise ArgumentError(explain("ReduceLROnPlateau", "a factor below 1", str(factor)))
        if mode not in ("min", "max") or threshold_mode not in ("rel", "abs"):
            expected = "mode 'min' or 'max' and threshold_mode 'rel' or 'abs'"
            got = f"{mode!r} and {threshold_mode!r}"
            raise ArgumentError(explain("ReduceLROnPlateau", expected, got))
        self.mode, self.factor, self.patience = mode, factor, patience
        self.threshold, self.threshold_mode = threshold, threshold_mode
        self.cooldown, self.eps = cooldown, eps
        self.min_lrs = self._for_groups("min_lr", min_lr)
        self.last_epoch = 0
        self.best = math.inf if mode == "min" else -math.inf
        self.cooldown_counter = self.num_bad_epochs = 0
        self._last_lr = self._rates()

    def step(self, metrics: float) -> None:
        """Go on by one step, at which the metric has the value ``metrics``."""
        current = float(metrics)
        self.last_epoch += 1
        if self._is_better(current):
            self.best, self.num_bad_epochs = current, 0
        else:
            self.num_bad_epochs += 1
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
            self.num_bad_epochs = 0
        if self.num_bad_epochs > self.patience:
            self._reduce()
            self.cooldown_counter, self.num_bad_epochs = self.cooldown, 0
        self._last_lr = self._rates()

    def _reduce(self) -> None:
        for group, least in zip(self.optimizer.param_groups, self.min_lrs, strict=True):
            lower = max(group["lr"] * self.factor, least)
            if group["lr"] - lower > self.eps:
                group["lr"] = lower

    def _is_better(self, value: float) -> bool:
        sign = 1.0 if self.mode == "max" else -1.0
        if self.threshold_mode == "rel":
            bound = self.best * (1.0 + sign * self.threshold)
        else:
            bound = self.best + sign * self.threshold
        return value > bound if self.mode == "max" else value < bound


def _checked(owner: str, optimizer: object) -> Optimizer:
    if not isinstance(optimizer, Optimizer):
        got = f"a {type(optimizer).__name__}"
        raise ArgumentError(explain(owner, "an optimiser of dlc.optim", got))
    return optimizer


def _positive(owner: str, name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ArgumentError(explain(owner, f"{name} to be an integer above 0", repr(value)))
    return value
