"""dlc's side of a diff: what its compiled layers give when they are fed what PyTorch's were.

One traced function holds all layers side by side, each between inputs of its own, and the code
between them likewise; so one compilation runs every layer by itself. Another gives what layers make
in the ordinary course of things, and a third is the model as users compile it.
"""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from dlc import driver
from dlc.errors import Error
from dlc.frontend.gradient import gradients
from dlc.frontend.module import Module
from dlc.frontend.scope import active
from dlc.frontend.tree import Structure, flatten
from dlc.ir.arithmetic import Arithmetic
from dlc.ir.node import Node
from dlc.ir.op import Kind
from dlc.ir.types import is_float

Array: TypeAlias = "np.ndarray[Any, Any]"
Key: TypeAlias = tuple[str, int]


@dataclass(frozen=True)
class Fed:
    """What a call of a layer is fed: inputs, what its readers get for outputs, and the gradients in
    its outputs (none where gradients are not asked for).
    """

    inputs: list[Array]
    outputs: list[Array]
    result: Structure
    weights: list[Array | None] = field(default_factory=list)


@dataclass
class Local:
    """What dlc's layers and the code between them give, each fed by itself.

    Attributes
    ----------
    arrived : dict of Key to list of array
        What comes to each layer.
    outputs, buffers, gradients : dict of Key
        Of each layer.
    results : list of array
        The model's outputs.
    failures : dict of Key to str
        Layers that refuse what they are fed, and why.
    origins : dict of Key to str
        Where what comes to a layer was computed: module path, file and line. ("", -1) stands for
        the model's outputs.
    direct : set of Key
        Layers that read other layers' outputs, or the model's inputs, as they are.
    winograd : set of str
        Paths of layers whose kernels are Winograd's.
    counts : dict of str to int
        How often each layer was called.
    """

    arrived: dict[Key, list[Array]] = field(default_factory=dict)
    outputs: dict[Key, list[Array]] = field(default_factory=dict)
    buffers: dict[Key, dict[str, Array]] = field(default_factory=dict)
    gradients: dict[Key, dict[str, Array]] = field(default_factory=dict)
    results: list[Array] = field(default_factory=list)
    failures: dict[Key, str] = field(default_factory=dict)
    origins: dict[Key, tuple[str, str]] = field(default_factory=dict)
    direct: set[Key] = field(default_factory=set)
    winograd: set[str] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)


#: The key of the model's outputs.
RESULT: Key = ("", -1)


def apart(
    model: Module, inputs: Sequence[Array], fed: Mapping[Key, Fed], threads: int | None
) -> Local:
    """Compile and run all layers, each fed by itself."""
    tracing = _Apart(copy.deepcopy(model), fed)
    given = [
        [each.inputs for each in fed.values()],
        [each.outputs for each in fed.values()],
        [[w for w in each.weights if w is not None] for each in fed.values()],
    ]
    executable = driver.compile(tracing, list(inputs), *given, threads=threads)
    local = tracing.found
    for put, array in zip(tracing.places, executable(list(inputs), *given), strict=True):
        put(array)
    labels = [kernel.label for kernel in executable.kernels if "winograd" in kernel.label]
    local.winograd = {
        path for label in labels for path in label.rpartition("(")[2].rstrip(")").split(", ")
    }
    return local


class _Apart:
    """The function that is traced; ``places`` then takes its results, in order."""

    def __init__(self, model: Module, fed: Mapping[Key, Fed]):
        self._model, self._fed = model, fed
        self.found = Local()
        self.places: list[Callable[[Array], None]] = []
        self._nodes: list[Node] = []

    def __call__(self, inputs: Any, layer_inputs: Any, layer_outputs: Any, weights: Any) -> Any:
        scope = active()
        assert scope is not None, "traced, never called"
        scope.adopt(self._model, "")
        values = zip(layer_inputs, layer_outputs, weights, strict=True)
        self._given = dict(zip(self._fed, values, strict=True))
        wrap(self._model, {path for path, _ in self._fed}, self._layer)
        results, _ = leaves(self._model(*inputs))
        self._note_arrival(RESULT, results)
        for node in results:
            self._keep(node, self.found.results.append)
        return list(self._nodes)

    def _layer(
        self, path: str, layer: Module, forward: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        """One call of a layer."""
        key = (path, self.found.counts[path])
        self.found.counts[path] += 1
        if key not in self._given:  # PyTorch calls it less often; the caller sees the counts
            return forward(*args, **kwargs)
        inputs, outputs, weights = self._given[key]
        came, structure = leaves((args, kwargs))
        self._note_arrival(key, came)
        for node in came:
            self._keep(node, self.found.arrived.setdefault(key, []).append)
        if len(came) != len(inputs):
            text = f"takes {len(came)} tensors where PyTorch's takes {len(inputs)}"
            self.found.failures[key] = text
        else:
            args, kwargs = structure.build(inputs)
            try:
                self._run(key, layer, inputs, weights, lambda: forward(*args, **kwargs))
            except Error as error:
                self.found.failures[key] = str(error)
        return self._fed[key].result.build(outputs)

    def _run(
        self, key: Key, layer: Module, inputs: Any, weights: Any, call: Callable[[], Any]
    ) -> None:
        """Let the layer compute, and keep outputs, new buffers and gradients."""
        scope = active()
        assert scope is not None
        outputs, _ = leaves(call())
        for node in outputs:
            self._keep(node, self.found.outputs.setdefault(key, []).append)
        for name, buffer in layer.named_buffers():
            if buffer in scope.updates:
                self._keep(scope.value(buffer), self._setter(self.found.buffers, key, name))
        back = [y for y, w in zip(outputs, self._fed[key].weights) if w is not None]
        if not back or any(y.type != w.type for y, w in zip(back, weights)):
            return
        wanted = {f"input{i}": x for i, x in enumerate(inputs) if is_float(x.dtype)}
        wanted |= {n: p._node for n, p in layer.named_parameters() if p.requires_grad}
        total = sum((y * w).sum() for y, w in zip(back, weights, strict=True))
        for name, node in zip(wanted, gradients(total, wanted.values()), strict=True):
            self._keep(node, self._setter(self.found.gradients, key, name))

    def _keep(self, node: Node, put: Callable[[Array], None]) -> None:
        self._nodes.append(node)
        self.places.append(put)

    @staticmethod
    def _setter(table: dict[Key, dict[str, Array]], key: Key, name: str) -> Callable[..., None]:
        return lambda array: table.setdefault(key, {}).__setitem__(name, array)

    def _note_arrival(self, key: Key, nodes: Sequence[Node]) -> None:
        """Note where the values that come to a layer were computed."""
        made = [node for node in nodes if node.op.kind is not Kind.LEAF]
        if not made:
            self.found.direct.add(key)
            return
        origin = max(made[0].origins, key=lambda each: (len(each.module), each.line))
        name = os.path.basename(origin.file)
        self.found.origins[key] = origin.module, f"{name}:{origin.line}" if name else ""


def wrap(model: Module, paths: Iterable[str], call: Callable[..., Any]) -> None:
    """Let ``call(path, module, forward, args, kwargs)`` stand for the forward of some modules of a
    private copy of a model.
    """
    modules = dict(model.named_modules())
    for path in paths:
        module = modules[path]

        def forward(
            *args: Any,
            _path: str = path,
            _module: Module = module,
            _forward: Callable[..., Any] = module.forward,
            **kwargs: Any,
        ) -> Any:
            return call(_path, _module, _forward, args, kwargs)

        object.__setattr__(module, "forward", forward)


def leaves(value: Any) -> tuple[list[Node], Structure]:
    """The tensors in a value, and its structure."""
    found, structure = flatten(value, lambda each: isinstance(each, Arithmetic), "tensors")
    return [each._node for each in found], structure


@dataclass
class Through:
    """What layers and model give in the ordinary course of things; or why they do not run."""

    outputs: dict[Key, list[Array]] = field(default_factory=dict)
    failure: str = ""


def through(
    model: Module, inputs: Sequence[Array], paths: Iterable[str], threads: int | None
) -> Through:
    """Compile and run the model with the outputs of all layers as outputs of its own."""
    model, counts = copy.deepcopy(model), Counter[str]()
    keys: list[Key] = []
    nodes: list[Node] = []

    def layer(
        path: str, module: Module, forward: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        result = forward(*args, **kwargs)
        found, _ = leaves(result)
        keys.extend((path, counts[path]) for _ in found)
        nodes.extend(found)
        counts[path] += 1
        return result

    def traced(inputs: Any) -> Any:
        scope = active()
        assert scope is not None, "traced, never called"
        scope.adopt(model, "")
        model(*inputs)
        return list(nodes)

    wrap(model, paths, layer)
    made = Through()
    try:
        found = driver.compile(traced, list(inputs), threads=threads)(list(inputs))
    except Error as error:
        made.failure = str(error)
        return made
    for key, array in zip(keys, found, strict=True):
        made.outputs.setdefault(key, []).append(array)
    return made


def whole(model: Module, inputs: Sequence[Array], threads: int | None) -> list[Array]:
    """The model's outputs, compiled as users compile it.

    Raises
    ------
    Error
        It cannot be traced or compiled.
    """
    result = driver.compile(copy.deepcopy(model), *inputs, threads=threads)(*inputs)
    found, _ = flatten(result, lambda each: isinstance(each, np.ndarray), "arrays")
    return found


def whole_gradients(
    model: Module, inputs: Sequence[Array], weights: Sequence[Array], threads: int | None
) -> tuple[dict[str, Array], dict[int, Array]]:
    """Gradients of the weighted sum of the model's outputs, in one compiled function: in its
    parameters by name, and in its float inputs by position.

    Raises
    ------
    Error
        It cannot be traced, differentiated or compiled.
    """
    model = copy.deepcopy(model)
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    floats = [i for i, array in enumerate(inputs) if array.dtype.kind == "f"]

    def traced(inputs: Any, weights: Any) -> Any:
        scope = active()
        assert scope is not None, "traced, never called"
        scope.adopt(model, "")
        outputs, _ = leaves(model(*inputs))
        pairs = [(y, w) for y, w in zip(outputs, weights, strict=True) if is_float(y.dtype)]
        total = sum((y * w).sum() for y, w in pairs)
        return list(gradients(total, [*named.values(), *(inputs[i] for i in floats)]))

    given = list(inputs), list(weights)
    found = driver.compile(traced, *given, threads=threads)(*given)
    count = len(named)
    return dict(zip(named, found[:count])), dict(zip(floats, found[count:]))
