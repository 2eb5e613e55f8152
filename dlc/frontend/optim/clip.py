"""Gradients clipped inside a step, before the optimiser sees them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import reduce

from dlc.errors import ArgumentError, explain
from dlc.frontend.parameter import Parameter
from dlc.frontend.tensors import as_tensor
from dlc.ir.node import Node

Gradients = Mapping[Parameter, Node]


def clip_grad_norm(
    gradients: Gradients, max_norm: object, norm_type: float = 2.0
) -> tuple[dict[Parameter, Node], Node]:
    """Gradients scaled down together so that their norm, as one vector, is at most ``max_norm``.

    Parameters
    ----------
    gradients : mapping of Parameter to Tensor
    max_norm : float or scalar Tensor
        At least 0.
    norm_type : float
        The p of the p-norm, above 0; ``inf`` for the greatest absolute value.

    Returns
    -------
    gradients : dict of Parameter to Tensor
    total_norm : Tensor ()
        The norm before; a norm that is no finite number makes all gradients NaN or zero, as in
        PyTorch.
    """
    if isinstance(max_norm, (int, float)) and not max_norm >= 0:
        raise ArgumentError(explain("clip_grad_norm", "a norm of at least 0", str(max_norm)))
    total = _norm(list(gradients.values()), float(norm_type))
    scale = (max_norm / (total + 1e-6)).clamp(max=1.0)
    return {p: g * scale.to(g.dtype) for p, g in gradients.items()}, total


def clip_grad_value(gradients: Gradients, clip_value: float) -> dict[Parameter, Node]:
    """Gradients with each element held between ``-clip_value`` and ``clip_value``."""
    bound = float(clip_value)
    if not bound >= 0:
        raise ArgumentError(explain("clip_grad_value", "a bound of at least 0", str(clip_value)))
    return {p: g.clamp(min=-bound, max=bound) for p, g in gradients.items()}


def _norm(tensors: list[Node], p: float) -> Node:
    if not p > 0:
        raise ArgumentError(explain("clip_grad_norm", "norm_type above 0", str(p)))
    tensors = [g for g in tensors if g.numel() != 0]
    if not tensors:
        return as_tensor(0.0)
    if p == math.inf:
        return reduce(Node.maximum, [abs(g).amax() for g in tensors])
    if p == 2.0:
        return _total([g.square().sum() for g in tensors]).sqrt()
    return _total([abs(g).pow(p).sum() for g in tensors]).pow(1.0 / p)


def _total(parts: list[Node]) -> Node:
    return reduce(Node.add, parts)
