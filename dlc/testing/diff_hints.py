"""What would explain a divergence: attributes that differ, and experiments on the PyTorch layer.

An experiment computes what the layer would give if it were wrong in one usual way. Where that is
what dlc gives, it is most likely the way in which one of the two is wrong.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

from dlc.frontend.module import Module
from dlc.frontend.tree import Structure
from dlc.testing.diff_torch import Key, Twin, leaves

Array: TypeAlias = "np.ndarray[Any, Any]"

#: Attributes that say nothing about what a layer computes.
IGNORED = {"training", "inplace", "device", "dtype", "num_batches_tracked", "output_padding"}
#: How near an experiment must come, in parts of the largest error that it is to explain.
NEAR = 0.02


def attributes(ours: Module, theirs: nn.Module) -> list[str]:
    """Settings that the two layers have both, and differently."""
    found = []
    for name, value in vars(theirs).items():
        if name.startswith("_") or name in IGNORED or not hasattr(ours, name):
            continue
        own = getattr(ours, name)
        if _is_setting(value) and _is_setting(own) and not _equal(value, own):
            found.append(f"{name} is {own!r} in dlc and {value!r} in PyTorch")
    for name, tensor in theirs._parameters.items():
        own = getattr(ours, name, None)
        if (own is None) != (tensor is None):
            found.append(f"dlc has {'no ' if own is None else 'a '}{name}, PyTorch the opposite")
    classes = type(ours).__name__, type(theirs).__name__
    if classes[0] != classes[1]:
        found.append(f"it is a {classes[0]} in dlc and a {classes[1]} in PyTorch")
    return found


def _is_setting(value: Any) -> bool:
    return isinstance(value, (type(None), bool, int, float, str, tuple))


def _equal(a: Any, b: Any) -> bool:
    """Equal settings; a number stands for as many as the other side has."""
    if isinstance(a, tuple) != isinstance(b, tuple):
        a, b = (a, b) if isinstance(a, tuple) else (b, a)
        return all(each == b for each in a)
    return bool(a == b)


def experiments(
    twin: Twin, key: Key, arguments: Structure, inputs: list[Array], ours: Array, exact: Array
) -> list[str]:
    """What one of the two layers may have done; ``ours`` and ``exact`` are its first output."""
    found = patterns(ours, exact)
    layer = twin.module.get_submodule(key[0])
    for words, change in CHANGES.items():
        changed = copy.deepcopy(layer)
        with torch.no_grad():
            if not change(changed):
                continue
            args, kwargs = arguments.build(twin.tensors(inputs))
            made = leaves(changed(*args, **kwargs))[0][0].numpy()
        if _explains(made, ours, exact):
            found.append(words)
    return found


def patterns(ours: Array, exact: Array) -> list[str]:
    """Simple relations between what came and what was expected."""
    if ours.shape != exact.shape or ours.dtype.kind != "f" or not np.isfinite(ours).all():
        return []
    return [words for words, made in _relations(ours, exact) if _explains(made, ours, exact)]


def _relations(ours: Array, exact: Array) -> Iterator[tuple[str, Array]]:
    y = ours.astype(np.float64)
    yield "it is as if dlc applied a ReLU here and PyTorch did not", np.maximum(exact, 0)
    if _explains(np.maximum(y, 0), exact, y):
        yield "it is as if PyTorch applied a ReLU here and dlc did not", y
    with np.errstate(all="ignore"):
        yield "it is as if it were rounded to float16", exact.astype(np.float16).astype(np.float64)
    energy = float((exact * exact).sum())
    factor = float((y * exact).sum()) / energy if energy else 0.0
    yield f"it is {factor:.6g} times what is expected", factor * exact
    channels = 1 if y.ndim > 2 else y.ndim - 1
    if y.ndim and y.size > 4 * y.shape[channels]:
        others = tuple(axis for axis in range(y.ndim) if axis != channels)
        shift = (y - exact).mean(others, keepdims=True)
        yield "it is off by one number for each channel, as a bias would be", exact + shift
    for axis in range(y.ndim):
        yield f"it is reversed along axis {axis}", np.flip(exact, axis)
    if y.ndim >= 2 and y.shape[-1] == y.shape[-2]:
        yield "its last two axes are exchanged", np.swapaxes(exact, -1, -2)


def _explains(made: Array, ours: Array, exact: Array) -> bool:
    """Whether an experiment gives what came: of the elements that are not what was expected, it
    leaves a tenth at most. (It may leave a few: numbers are rounded to this side or to that.)
    """
    if made.shape != ours.shape or ours.shape != exact.shape:
        return False
    error = np.abs(ours - exact)
    limit = NEAR * float(error.max())
    left, before = int((np.abs(made - ours) > limit).sum()), int((error > limit).sum())
    return left <= 0.1 * before


def _transpose(layer: nn.Module) -> bool:
    weight = getattr(layer, "weight", None)
    if weight is None or weight.ndim < 2 or weight.shape[0] != weight.shape[1]:
        return False
    weight.copy_(weight.transpose(0, 1).clone())
    return True


def _flip(layer: nn.Module) -> bool:
    weight = getattr(layer, "weight", None)
    if weight is None or weight.ndim < 3:
        return False
    weight.copy_(weight.flip(tuple(range(2, weight.ndim))))
    return True


def _swap_kernel_axes(layer: nn.Module) -> bool:
    weight = getattr(layer, "weight", None)
    if weight is None or weight.ndim != 4 or weight.shape[2] != weight.shape[3]:
        return False
    weight.copy_(weight.transpose(2, 3).clone())
    return True


def _drop_bias(layer: nn.Module) -> bool:
    bias = getattr(layer, "bias", None)
    if not isinstance(bias, torch.Tensor):
        return False
    bias.zero_()
    return True


def _swap_weight_and_bias(layer: nn.Module) -> bool:
    weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
    if weight is None or not isinstance(bias, torch.Tensor) or weight.shape != bias.shape:
        return False
    old = weight.clone()
    weight.copy_(bias)
    bias.copy_(old)
    return True


def _fresh_statistics(layer: nn.Module) -> bool:
    if getattr(layer, "running_mean", None) is None:
        return False
    layer.reset_running_stats()  # type: ignore[operator]
    return True


def _switch_mode(layer: nn.Module) -> bool:
    if getattr(layer, "running_mean", None) is None:
        return False
    layer.train(not layer.training)
    return True


def _round_weight(layer: nn.Module) -> bool:
    weight = getattr(layer, "weight", None)
    if weight is None:
        return False
    weight.copy_(weight.half())
    return True


CHANGES: dict[str, Callable[[nn.Module], bool]] = {
    "it is as if the weight were transposed": _transpose,
    "it is as if the kernel were flipped: a convolution where a correlation is meant": _flip,
    "it is as if rows and columns of the kernel were exchanged": _swap_kernel_axes,
    "it is as if there were no bias": _drop_bias,
    "it is as if weight and bias were exchanged": _swap_weight_and_bias,
    "it is as if the running statistics were still 0 and 1": _fresh_statistics,
    "it is as if the layer were in the other mode, training or inference": _switch_mode,
    "it is as if the weight were rounded to float16": _round_weight,
}
