"""Where a loss that is NaN or infinite comes from: the first value of the forward pass that is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dlc.backends import reference
from dlc.frontend.random import drawing_from
from dlc.frontend.scope import active
from dlc.frontend.trace import trace
from dlc.ir.node import Node

if TYPE_CHECKING:
    from dlc.training.checks import Array
    from dlc.training.judge import Evaluation
    from dlc.training.step import TrainStep


#: What to do, by what was found.
BY_ZERO = (
    "a mean over labels does that where all of them are ignore_index; leave such batches out, or "
    "use reduction='sum'"
)
NO_SHARE = "its input must be from 0 to 1: put a sigmoid before it, or use nn.BCEWithLogitsLoss"
BAD_BATCH = "look at the data"
BAD_WEIGHTS = (
    "an earlier update or a file made it so: a smaller learning rate may help, or other weights"
)
TOO_FAST = "a smaller learning rate, or clip_grad_norm, may help"

LEAVES = {"input": BAD_BATCH, "parameter": BAD_WEIGHTS}


def first_wrong(step: TrainStep | Evaluation, batch: tuple[Array, ...]) -> tuple[str, str]:
    """The first value that is not finite when the loss of a batch is computed anew, and advice.

    Infinities that a model writes down itself, as a mask of attention does, are named only where
    nothing else is found. The parameters must be those of the step that failed, which it has left
    as they were.
    """

    def forward(*tensors: Node) -> Any:
        scope = active()
        assert scope is not None
        scope.adopt(step.model, "")
        with drawing_from(step.random):
            return step.loss(step.model(*tensors[:-1]), tensors[-1])

    traced = trace(forward, *batch)
    arrays = {name: variable.numpy() for name, variable in traced.parameters.items()}
    arrays |= {str(node.name): a for node, a in zip(traced.graph.inputs, batch, strict=True)}
    first, meant, zeros = "", set[Node](), set[Node]()
    for node, value in reference.walk(traced.graph, arrays):
        parts = value if isinstance(value, tuple) else (value,)
        if np.ndim(parts[0]) == 0 and not parts[0]:
            zeros.add(node)
        wrong = [_place(part) for part in parts if not np.isfinite(part).all()]
        if not wrong:
            continue
        found = f"{_subject(node)} holds {wrong[0]}"
        if node.op.name == "div" and node.inputs[1] in zeros:
            return f"{_subject(node)} divides by 0", BY_ZERO
        if node.op.name == "binary_cross_entropy":
            return found, NO_SHARE
        if any(np.isnan(part).any() for part in parts) or not _is_meant(node, meant):
            return found, LEAVES.get(node.op.name, TOO_FAST)
        first = first or found
        meant.add(node)
    rounding = "computed by the reference in the graph's own order it is finite: rounding decides"
    return first or rounding, TOO_FAST


def _place(array: Array) -> str:
    """The first element that is not finite, and where it is."""
    place = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
    return f"{array[place]} at {place}"


def _is_meant(node: Node, meant: set[Node]) -> bool:
    """Whether the infinities of a value are the model's own, or come from such a value."""
    own = node.op.name == "constant" or node.attrs.get("role") == "buffer"
    return own or any(source in meant for source in node.inputs)


def _subject(node: Node) -> str:
    if node.op.name == "input":
        return f"the batch ({node.name})"
    if node.op.name == "parameter":
        return f"the {node.attrs['role']} {node.name!r} itself"
    places = sorted(str(origin) for origin in node.origins if str(origin))
    return f"{node.op.name}{f' ({places[0]})' if places else ''}"
