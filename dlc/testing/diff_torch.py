"""PyTorch's side of a diff: what each layer reads and gives, in float32 and in float64.

A private copy of the user's module runs with hooks on its layers. The hooks note what passes, and
can put other values in its place: so each layer, and the code between layers, is judged on the same
numbers everywhere, and an error never travels.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from dlc.frontend.tree import Structure, flatten

Array: TypeAlias = "np.ndarray[Any, Any]"
#: A layer's path, and which of its calls.
Key: TypeAlias = tuple[str, int]
#: What passes a hook, given the call and whether it goes "in" or "out": the same or other tensors.
Feed: TypeAlias = Callable[[Key, str, list[Tensor]], list[Tensor]]


@dataclass
class Seen:
    """One call of a layer.

    Attributes
    ----------
    inputs, outputs : list of Tensor
        As they came to the hooks, before anything was put in their place.
    arguments, result : Structure
    buffers : dict of str to Tensor
        The layer's buffers after the call.
    """

    inputs: list[Tensor]
    arguments: Structure
    outputs: list[Tensor] = field(default_factory=list)
    result: Structure | None = None
    buffers: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Run:
    """One run of a module: its layers' calls in order, and its own outputs."""

    calls: dict[Key, Seen]
    outputs: list[Tensor]


@dataclass(frozen=True)
class Reference:
    """What a layer is fed, and what exactly it makes of it.

    Attributes
    ----------
    arrived : list of array
        What the code before the layer gives in float64, when fed with references.
    inputs, outputs : list of array
        Fed to the layer, and to its readers: rounded to the element type of the comparison.
    exact : list of array
        The layer's outputs for ``inputs`` in float64.
    buffers : dict of str to array
        Its buffers afterwards, in float64.
    result : Structure
        Of the outputs.
    """

    arrived: list[Array]
    inputs: list[Array]
    outputs: list[Array]
    exact: list[Array]
    buffers: dict[str, Array]
    result: Structure


class Twin:
    """A private copy of a module in one element type.

    Parameters
    ----------
    module : torch.nn.Module
    dtype : {"float32", "float64"}
    jitter : float
        Relative size by which parameters, inputs and what is fed to layers are disturbed at random:
        the rounding unit shows what rounding alone does.
    """

    def __init__(self, module: nn.Module, dtype: str, jitter: float = 0.0):
        self.dtype = getattr(torch, dtype)
        self.module = copy.deepcopy(module).to(self.dtype)
        self._jitter, self._generator = jitter, torch.Generator().manual_seed(0)
        with torch.no_grad():
            for tensor in _state(self.module).values():
                tensor.copy_(self.disturbed(tensor))

    def disturbed(self, tensor: Tensor) -> Tensor:
        """Each element a rounding unit more or less, at random."""
        if not self._jitter or not tensor.is_floating_point():
            return tensor
        signs = torch.randint(0, 2, tensor.shape, generator=self._generator) * 2 - 1
        return tensor * (1 + self._jitter * signs.to(tensor.dtype))

    def tensors(self, arrays: Iterable[Array]) -> list[Tensor]:
        """Arrays as fresh tensors, floats in the twin's type."""
        return [self.disturbed(self.cast(torch.from_numpy(np.array(a)))) for a in arrays]

    def cast(self, tensor: Tensor) -> Tensor:
        """Floats in the twin's type."""
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

    def run(
        self, inputs: Sequence[Any], paths: Iterable[str], feed: Feed, gradients: bool = False
    ) -> Run:
        """Run the module with hooks on some of its layers."""
        calls: dict[Key, Seen] = {}
        modules, counts = dict(self.module.named_modules()), Counter[str]()
        handles = []
        for path in paths:
            before, after = _hooks(path, feed, calls, counts)
            handles.append(modules[path].register_forward_pre_hook(before, with_kwargs=True))
            handles.append(modules[path].register_forward_hook(after, with_kwargs=True))
        try:
            with torch.set_grad_enabled(gradients):
                result = self.module(*inputs)
        finally:
            for handle in handles:
                handle.remove()
        return Run(calls, leaves(result)[0])


def _hooks(
    path: str, feed: Feed, calls: dict[Key, Seen], counts: Counter[str]
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    def before(module: nn.Module, args: Any, kwargs: Any) -> Any:
        key = (path, counts[path])
        counts[path] += 1
        found, structure = leaves((args, kwargs))
        calls[key] = Seen([t.detach().clone() for t in found], structure)
        return structure.build(feed(key, "in", found))

    def after(module: nn.Module, args: Any, kwargs: Any, result: Any) -> Any:
        key = (path, counts[path] - 1)
        seen = calls[key]
        seen.outputs, seen.result = leaves(result)
        seen.buffers = {name: b.detach().clone() for name, b in module.named_buffers()}
        return seen.result.build(feed(key, "out", seen.outputs))

    return before, after


def leaves(value: Any) -> tuple[list[Tensor], Structure]:
    """The tensors in a value, and its structure."""
    return flatten(value, lambda each: isinstance(each, Tensor), "tensors")


def arrays(tensors: Iterable[Tensor]) -> list[Array]:
    """Copies as NumPy arrays."""
    return [np.array(tensor.detach().numpy()) for tensor in tensors]


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


# What can pass the hooks.


def pass_on(key: Key, way: str, tensors: list[Tensor]) -> list[Tensor]:
    """The same values, in memory of their own: a later layer may work in place."""
    return [tensor.clone() for tensor in tensors]


def rounding(dtype: str) -> Feed:
    """The same values, rounded to an element type."""
    kind = getattr(torch, dtype)

    def feed(key: Key, way: str, tensors: list[Tensor]) -> list[Tensor]:
        return [t.to(kind).to(t.dtype) if t.is_floating_point() else t.clone() for t in tensors]

    return feed


def given(twin: Twin, references: Mapping[Key, Reference]) -> Feed:
    """What the references say."""

    def feed(key: Key, way: str, tensors: list[Tensor]) -> list[Tensor]:
        each = references[key]
        return twin.tensors(each.inputs if way == "in" else each.outputs)

    return feed


def references(twin: Twin, inputs: Sequence[Array], paths: Sequence[str], dtype: str) -> Any:
    """The references of all calls, by key in order, and the module's outputs in float64 when its
    layers give them.
    """
    kind = np.dtype(dtype)
    run = twin.run(twin.tensors(inputs), paths, rounding(dtype))
    found = {}
    for key, seen in run.calls.items():
        arrived, exact = arrays(seen.inputs), arrays(seen.outputs)
        assert seen.result is not None
        found[key] = Reference(
            arrived,
            [_rounded(a, kind) for a in arrived],
            [_rounded(a, kind) for a in exact],
            exact,
            {name: np.array(b.numpy()) for name, b in seen.buffers.items()},
            seen.result,
        )
    return found, arrays(run.outputs)


def _rounded(array: Array, dtype: Any) -> Array:
    with np.errstate(over="ignore"):
        return array.astype(dtype) if array.dtype.kind == "f" else array


# Gradients.


@dataclass
class Backward:
    """Gradients of the weighted sum of a module's outputs: in its parameters by name, in its inputs
    by position, and in the outputs of its layers.
    """

    parameters: dict[str, Array]
    inputs: dict[int, Array]
    layers: dict[Key, list[Array | None]]


def backward(
    twin: Twin, inputs: Sequence[Array], paths: Sequence[str], weights: Sequence[Array]
) -> Backward:
    """Gradients of a whole module."""
    tensors = twin.tensors(inputs)
    floats = {i: t.requires_grad_() for i, t in enumerate(tensors) if t.is_floating_point()}
    run = twin.run(tensors, paths, pass_on, gradients=True)
    named = {n: p for n, p in twin.module.named_parameters() if p.requires_grad}
    between = [(key, t) for key, seen in run.calls.items() for t in seen.outputs if t.requires_grad]
    wanted = [*named.values(), *floats.values(), *(t for _, t in between)]
    outputs = [t for t in run.outputs if t.requires_grad]
    chosen = [w for w, t in zip(weights, run.outputs, strict=True) if t.requires_grad]
    cotangents = [twin.cast(torch.from_numpy(w)) for w in chosen]
    made = torch.autograd.grad(outputs, wanted, cotangents, allow_unused=True)
    values = iter([None if g is None else np.array(g.numpy()) for g in made])
    of_parameters = {name: _or_zeros(next(values), p) for name, p in named.items()}
    of_inputs = {i: _or_zeros(next(values), t) for i, t in floats.items()}
    of_layers: dict[Key, list[Array | None]] = {}
    for key, seen in run.calls.items():
        of_layers[key] = [next(values) if t.requires_grad else None for t in seen.outputs]
    return Backward(of_parameters, of_inputs, of_layers)


def local_gradients(
    twin: Twin,
    key: Key,
    arguments: Structure,
    inputs: Sequence[Array],
    weights: Sequence[Array | None],
) -> dict[str, Array]:
    """Gradients of one layer, fed with given inputs: by parameter name, and ``input0`` and so on.

    ``weights`` are the gradients in its outputs; None where nothing comes back.
    """
    layer = twin.module.get_submodule(key[0])
    tensors = twin.tensors(inputs)
    wanted = {
        f"input{i}": t.requires_grad_() for i, t in enumerate(tensors) if t.is_floating_point()
    }
    wanted |= {name: p for name, p in layer.named_parameters() if p.requires_grad}
    args, kwargs = arguments.build([tensor.clone() for tensor in tensors])
    outputs, _ = leaves(layer(*args, **kwargs))
    pairs = [(y, w) for y, w in zip(outputs, weights) if w is not None and y.requires_grad]
    if not pairs or not wanted:
        return {}
    cotangents = [twin.cast(torch.from_numpy(np.array(w))) for _, w in pairs]
    made = torch.autograd.grad(
        [y for y, _ in pairs], list(wanted.values()), cotangents, allow_unused=True
    )
    return {n: _or_zeros(None if g is None else g.numpy(), wanted[n]) for n, g in zip(wanted, made)}


def _or_zeros(gradient: Array | None, of: Tensor) -> Array:
    return np.zeros(tuple(of.shape)) if gradient is None else np.array(gradient)


# Linear layers.


@dataclass(frozen=True)
class Linear:
    """The error bound of a linear layer's results: ``gamma(products) * size``, for its output and
    its gradients by name.
    """

    sizes: dict[str, Array]
    products: dict[str, int]


def linear_bound(
    twin: Twin, key: Key, inputs: Sequence[Array], weights: Array | None
) -> Linear | None:
    """|x| * |w| + |b| of a convolution or linear layer in float64; None for other layers.

    Its gradients by |grad| are, in the same way, the products that bound the layer's gradients.
    """
    layer = twin.module.get_submodule(key[0])
    if not isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd)) or len(inputs) != 1:
        return None
    absolute = copy.deepcopy(layer)
    with torch.no_grad():
        for parameter in absolute.parameters():
            parameter.abs_()
    (x,) = twin.tensors(inputs)
    x = x.abs().requires_grad_()
    y = absolute(x)
    sizes, products = {"output": np.array(y.detach().numpy())}, {"output": _summands(layer)}
    if weights is not None:
        g = twin.cast(torch.from_numpy(np.array(weights))).abs()
        named = {"input0": x, **{n: p for n, p in absolute.named_parameters() if p.requires_grad}}
        made = torch.autograd.grad(y, list(named.values()), g)
        places = y.numel() // max(1, layer.weight.shape[0])
        for name, gradient in zip(named, made, strict=True):
            sizes[name] = np.array(gradient.numpy())
            products[name] = _summands_back(layer) if name == "input0" else places
    return Linear(sizes, products)


def _summands(layer: Any) -> int:
    """Products in one element of the output."""
    if isinstance(layer, nn.Linear):
        return int(layer.in_features)
    return int(layer.in_channels // layer.groups * math.prod(layer.kernel_size))


def _summands_back(layer: Any) -> int:
    """Products, at most, in one element of the gradient in the input."""
    if isinstance(layer, nn.Linear):
        return int(layer.out_features)
    return int(layer.out_channels // layer.groups * math.prod(layer.kernel_size))


# What it is made of.


def called(twin: Twin, inputs: Sequence[Array]) -> dict[Key, None]:
    """Which modules run, in order."""
    paths = [path for path, _ in twin.module.named_modules()]
    return dict.fromkeys(twin.run(twin.tensors(inputs), paths, pass_on).calls)


def random_modules(module: nn.Module) -> Iterator[str]:
    """Paths of modules that draw random numbers when they run."""
    for path, each in module.named_modules():
        if each.training and isinstance(each, nn.modules.dropout._DropoutNd) and each.p > 0:
            yield path
