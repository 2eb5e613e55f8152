"""What optimisers share: groups of parameters, slots beside them, the step, state dicts.

A step is part of a trace: it takes gradients as nodes and gives parameters, moments and the number
of steps new values, so that forward, backward and update are compiled as one. The arithmetic of one
parameter keeps the order of operations of PyTorch's implementation for single tensors; scalars such
as bias corrections are computed once, in float64, where PyTorch has Python's floats.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

import numpy as np

from dlc.errors import (
    ArgumentError,
    AttributeError,
    DTypeError,
    ShapeError,
    TraceError,
    WeightsError,
    explain,
)
from dlc.frontend.optim.group import Group
from dlc.frontend.parameter import Buffer, Parameter, as_array
from dlc.frontend.scope import Scope, active
from dlc.ir.node import Node
from dlc.ir.sizes import shape_text

#: Arguments of PyTorch's optimisers that choose an implementation, and change no number.
IMPLEMENTATION = ("foreach", "fused", "capturable", "differentiable")


class Optimizer(ABC):
    """Base of all optimisers.

    Parameters
    ----------
    params : iterable, optional
        Parameters, or (name, parameter) pairs, or dicts with "params" and options of their own: a
        group each. None stands for all parameters of the model that is trained.
    unknown : mapping
        Arguments that the optimiser does not have; any is refused.
    **defaults
        The options of groups that do not say otherwise.

    Attributes
    ----------
    param_groups : list of Group
        ``optimizer.param_groups[0]["lr"] = 0.1`` changes the next step and compiles nothing.
    defaults : dict
    """

    #: Whether PyTorch's state of a parameter holds the number of its steps.
    counts = True

    def __init__(self, params: Iterable[Any] | None, unknown: Mapping[str, Any], **defaults: Any):
        self.defaults = defaults
        self._refuse(unknown, f"the arguments params, {', '.join(defaults)}")
        self.param_groups: list[Group] = []
        self._slots: dict[Parameter, dict[str, Buffer]] = {}
        self._follows_model = params is None
        for group in _as_groups(type(self).__name__, params):
            self.add_param_group(group)

    # What each optimiser says.

    @abstractmethod
    def slots(self, group: Group) -> dict[str, float]:
        """What is kept beside each parameter, by PyTorch's names, and its first value."""

    @abstractmethod
    def scalars(self, group: Group, step: Node) -> dict[str, Node]:
        """The scalars of an update, of float64; ``step`` counts from 1."""

    @abstractmethod
    def update(
        self, group: Group, p: Node, g: Node, kept: Mapping[str, Node], by: Mapping[str, Node]
    ) -> tuple[Node, dict[str, Node]]:
        """The new parameter, and the new slots, from a gradient, the slots and the scalars."""

    # Parameters.

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Add a group: "params" and options of its own, the rest as in `defaults`."""
        options = {name: value for name, value in group.items() if name != "params"}
        unknown = {name: options[name] for name in options if name not in self.defaults}
        self._refuse(unknown, f"options of a group among {', '.join(self.defaults)}")
        given = group["params"]
        listed = [given] if isinstance(given, Parameter) else given
        params = [_parameter(type(self).__name__, each) for each in listed]
        taken = {p for other in self.param_groups for p in other.params}
        for position, parameter in enumerate(params):
            if parameter in taken:
                expected, got = "each parameter once", f"parameter {position} of a group again"
                raise ArgumentError(explain(type(self).__name__, expected, got))
            taken.add(parameter)
        made = Group(type(self).__name__, params, {**self.defaults, **options})
        self.param_groups.append(made)

    def bind(self, named_parameters: Iterable[tuple[str, Parameter]]) -> None:
        """Learn which model is trained, and make the slots of what it has to train.

        Parameters
        ----------
        named_parameters : iterable of (str, Parameter)
            All of the model's.

        Raises
        ------
        ArgumentError
            A parameter that the optimiser was made with is not the model's, or it follows another
            model.
        """
        named = dict(named_parameters)
        if self._follows_model:
            self._follow(list(named.values()))
        model = set(named.values())
        strangers = [p for group in self.param_groups for p in group.params if p not in model]
        if strangers:
            expected = f"parameters of the model ({', '.join(named)})"
            got = f"one of shape {shape_text(strangers[0].shape)} that is not in it"
            advice = "Make an optimiser for each model."
            raise ArgumentError(explain(type(self).__name__, expected, got, advice=advice))
        for group in self.param_groups:
            trained = dict.fromkeys(p for p in group.params if p.requires_grad)
            group.cohorts(trained)
            for parameter in trained:
                self._slots_of(group, parameter)

    def _follow(self, parameters: list[Parameter]) -> None:
        """Train these in the first group, but for those that have a group of their own."""
        first, *others = self.param_groups
        if first.params and not set(parameters) & set(first.params):
            expected, advice = "the model that it trains", "Make an optimiser for each model."
            message = explain(type(self).__name__, expected, "another one", advice=advice)
            raise ArgumentError(message)
        elsewhere = {p for group in others for p in group.params}
        first.params[:] = [p for p in parameters if p not in elsewhere]
        known = {*first.params, *elsewhere}
        self._slots = {p: slots for p, slots in self._slots.items() if p in known}

    def parameters(self) -> list[Parameter]:
        """The parameters that a step updates, if it has a gradient for them."""
        return [p for group in self.param_groups for p in group.params if p.requires_grad]

    def structure(self) -> tuple[object, ...]:
        """What is compiled in: while it stays, a compiled step holds."""
        groups = tuple((g.structure(), tuple(map(id, g.params))) for g in self.param_groups)
        return (type(self).__name__, groups)

    # The step.

    def step(self, gradients: Mapping[Parameter, Node] | None = None) -> None:
        """Give parameters, slots and the count of steps their next values; inside a trace.

        Parameters
        ----------
        gradients : mapping of Parameter to Tensor
            Of any of the parameters; the others stay as they are. Parameters keep none.

        Raises
        ------
        TraceError
            No trace is under way.
        ArgumentError, ShapeError
            A gradient is of no parameter of this optimiser, or not of its parameter's type.
        """
        scope = active()
        if scope is None:
            advice = "dlc.train_step compiles one; inside a function given to dlc.jit it works too."
            raise TraceError(f"a step of {type(self).__name__} is part of a trace. {advice}")
        if gradients is None:
            expected = "a gradient for each parameter: a dict"
            raise ArgumentError(explain(f"{type(self).__name__}.step", expected, "none"))
        self._check(scope, gradients)
        for number, group in enumerate(self.param_groups):
            trained = {p for p in group.params if p in gradients}
            if not trained:
                continue
            group.introduce(scope, f"optimizer.{number}")
            for steps, parameters in group.cohorts(trained):
                step = steps + 1
                scope.assign(steps, step)
                scalars = self.scalars(group, step)
                for parameter in parameters:
                    self._step(scope, group, parameter, scope.node(gradients[parameter]), scalars)

    def __getattr__(self, name: str) -> NoReturn:
        advice = ": no gradient is kept; dlc.train_step compiles forward, backward and update"
        more = advice if name == "zero_grad" else ""
        raise AttributeError(f"{type(self).__name__} has no {name!r}{more}")

    def _step(
        self, scope: Scope, group: Group, parameter: Parameter, g: Node, scalars: dict[str, Node]
    ) -> None:
        p, path = scope.value(parameter), scope.name(parameter)
        slots = self._slots_of(group, parameter)
        for name, slot in slots.items():
            scope.name(slot, f"{path}.{name}")
        kept = {name: scope.value(slot) for name, slot in slots.items()}
        by = {name: scalar.to(p.dtype) for name, scalar in scalars.items()}
        new, changed = self.update(group, p, -g if group.on("maximize") else g, kept, by)
        scope.assign(parameter, new)
        for name, value in changed.items():
            scope.assign(slots[name], value)

    def _check(self, scope: Scope, gradients: Mapping[Parameter, Node]) -> None:
        known = {p for group in self.param_groups for p in group.params}
        for parameter, gradient in gradients.items():
            subject = f"{type(self).__name__}.step"
            name = repr(scope.name(parameter))
            if parameter not in known:
                expected, got = "gradients of its own parameters", f"one of {name}"
                advice = "Bind it to the model, or give it the parameter when it is made."
                raise ArgumentError(explain(subject, expected, got, advice=advice))
            if gradient.type != parameter.type:
                expected = f"a gradient {parameter.type} of {name}"
                raise ShapeError(explain(subject, expected, str(gradient.type)))

    def _slots_of(self, group: Group, parameter: Parameter) -> dict[str, Buffer]:
        """The slots of a parameter that its group wants, made where they are not there yet."""
        slots = self._slots.setdefault(parameter, {})
        for name, value in self.slots(group).items():
            if name not in slots:
                slots[name] = Buffer.full(parameter.shape, value, parameter.dtype)
            if slots[name].dtype != parameter.dtype:
                expected = f"a parameter of {slots[name].dtype}, as when it was bound to the model"
                advice = "Make an optimiser behind model.double() or model.to()."
                message = explain(type(self).__name__, expected, parameter.dtype, advice=advice)
                raise DTypeError(message)
        return {name: slots[name] for name in self.slots(group)}

    # State.

    def state_dict(self) -> dict[str, Any]:
        """The state in PyTorch's format, as NumPy arrays.

        Returns
        -------
        dict
            "state": for the number of each parameter its slots and, but for SGD, "step";
            "param_groups": the options of each group, and "params", the numbers of its parameters.
        """
        numbers = {p: i for i, p in enumerate(p for g in self.param_groups for p in g.params)}
        state = {}
        for group in self.param_groups:
            for parameter in group.params:
                if parameter in self._slots and (entry := self._state_of(group, parameter)):
                    state[numbers[parameter]] = entry
        groups = [
            {**group.options(), "params": [numbers[p] for p in group.params]}
            for group in self.param_groups
        ]
        return {"state": state, "param_groups": groups}

    def _state_of(self, group: Group, parameter: Parameter) -> dict[str, Any]:
        slots = self._slots_of(group, parameter).items()
        arrays = {name: slot.numpy().copy() for name, slot in slots}
        if self.counts:
            return {"step": np.array(group.steps_of(parameter), np.float32), **arrays}
        return arrays if group.steps_of(parameter) else {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over a state, of dlc or of PyTorch (arrays or torch tensors).

        Raises
        ------
        WeightsError
            It is of another kind of optimiser or of other parameters; nothing was changed.
        """
        if missing := {"state", "param_groups"} - set(state_dict):
            expected = "a dict with 'state' and 'param_groups'"
            raise WeightsError(self._state_error(expected, f"one without {min(missing)!r}"))
        groups, state = state_dict["param_groups"], state_dict["state"]
        ours = [len(group.params) for group in self.param_groups]
        theirs = [len(group["params"]) for group in groups]
        if ours != theirs:
            advice = "" if any(ours) else "It learns its parameters from bind, or when it is made."
            expected = f"{_counts(ours)} parameters"
            raise WeightsError(self._state_error(expected, _counts(theirs), advice))
        options = [self._loaded_options(group) for group in groups]
        loaded = [
            self._loaded_slots(group, [state.get(number, {}) for number in saved["params"]])
            for group, saved in zip(self.param_groups, groups, strict=True)
        ]
        for group, own, (steps, arrays) in zip(self.param_groups, options, loaded, strict=True):
            for name, value in own.items():
                group[name] = value
            group.set_steps(dict(zip(group.params, steps, strict=True)))
            for parameter, slots in zip(group.params, arrays, strict=True):
                self._fill(group, parameter, slots)

    def _fill(
        self, group: Group, parameter: Parameter, arrays: Mapping[str, np.ndarray[Any, Any]]
    ) -> None:
        """Give the slots of a parameter new values, the first ones where there are none. They stay
        the same buffers, because compiled steps write to them.
        """
        if parameter.requires_grad or arrays:
            first = self.slots(group)
            for name, slot in self._slots_of(group, parameter).items():
                slot.copy_(arrays.get(name, first[name]))

    def _loaded_options(self, saved: Mapping[str, Any]) -> dict[str, Any]:
        """The options of a saved group, each checked; PyTorch's choices of implementation go."""
        ignored = ("params", "param_names", *IMPLEMENTATION)
        options = {name: value for name, value in saved.items() if name not in ignored}
        trial = Group(type(self).__name__, [], self.defaults)
        try:
            for name, value in options.items():
                trial[name] = value
        except ArgumentError as error:
            raise WeightsError(f"this is no state of {type(self).__name__}: {error}") from None
        missing = [name for name in self.defaults if name not in options]
        if missing:
            expected = f"groups with {', '.join(self.defaults)}"
            raise WeightsError(self._state_error(expected, f"none of {', '.join(missing)}"))
        return options

    def _loaded_slots(
        self, group: Group, states: list[Mapping[str, Any]]
    ) -> tuple[list[int], list[dict[str, np.ndarray[Any, Any]]]]:
        """The number of steps of each parameter of a saved group, and its slots."""
        steps, arrays = [], []
        for parameter, state in zip(group.params, states, strict=True):
            found = {name: as_array(v) for name, v in state.items() if v is not None}
            step = found.pop("step", None)
            steps.append(int(bool(found)) if step is None else int(step))
            for name, array in found.items():
                if array.shape != parameter.shape:
                    expected = f"{name} of shape {shape_text(parameter.shape)}"
                    raise WeightsError(self._state_error(expected, shape_text(array.shape)))
            arrays.append(found)
        return steps, arrays

    def _state_error(self, expected: str, got: str, advice: str = "") -> str:
        return explain(f"{type(self).__name__}.load_state_dict", expected, got, advice=advice)

    def _refuse(self, unknown: Mapping[str, Any], expected: str) -> None:
        for name in unknown:
            advice = ""
            if name in IMPLEMENTATION:
                advice = "It chooses among PyTorch's implementations, and dlc compiles one."
            message = explain(type(self).__name__, expected, repr(name), advice=advice)
            raise ArgumentError(message)

    def __repr__(self) -> str:
        groups = [
            f"{len(group.params)} parameters: "
            + ", ".join(f"{name}={value!r}" for name, value in group.options().items())
            for group in self.param_groups
        ]
        return f"{type(self).__name__}({'; '.join(groups)})"


def decayed(group: Group, p: Node, g: Node, by: Mapping[str, Node]) -> Node:
    """The gradient with that of the weight decay, half of the squared norm, added."""
    return g + by["weight_decay"] * p if group.on("weight_decay") else g


def _as_groups(owner: str, params: Iterable[Any] | None) -> list[Mapping[str, Any]]:
    """What an optimiser was made with, as groups."""
    if params is None:
        return [{"params": []}]
    if isinstance(params, (Parameter, str, Mapping)) or not isinstance(params, Iterable):
        expected = "params to be a list of parameters, or of dicts with 'params'"
        advice = "Name the other arguments, as in lr=0.1; without params it trains the whole model."
        raise ArgumentError(explain(owner, expected, f"{params!r:.60}", advice=advice))
    given = list(params)
    if not given:
        raise ArgumentError(explain(owner, "one or more parameters", "none"))
    if not all(isinstance(each, Mapping) for each in given):
        return [{"params": given}]
    for group in given:
        if "params" not in group:
            got = f"a dict with {', '.join(map(repr, group))}"
            raise ArgumentError(explain(owner, "'params' in each group", got))
    return given


def _parameter(owner: str, value: Any) -> Parameter:
    """A parameter, given alone or with its name."""
    parameter = value[1] if isinstance(value, tuple) and len(value) == 2 else value
    if not isinstance(parameter, Parameter):
        got = f"a {type(parameter).__name__}"
        raise ArgumentError(explain(owner, "parameters (dlc.nn.Parameter)", got))
    return parameter


def _counts(numbers: list[int]) -> str:
    return f"groups of {' and '.join(map(str, numbers))}" if numbers else "no groups"
