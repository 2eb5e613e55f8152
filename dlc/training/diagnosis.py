"""Where a loss that is NaN or infinite comes from: the first value of the forward pass that is."""

from __future__ import annotations

from typing import Any

import numpy as np

from dlc.backends import reference
from dlc.frontend.scope import active
from dlc.frontend.trace import trace
from dlc.ir.node import Node
from dlc.training.step import Array, TrainStep


def first_wrong(step: TrainStep, batch: tuple[Array, ...]) -> str:
    """In words, the first value that is not finite when the loss of a batch is computed anew.

    The parameters must be those of the step that failed, which it has left as they were.
    """

    def forward(*tensors: Node) -> Any:
        scope = active()
        assert scope is not None
        scope.adopt(step.model, "")
        return step.loss(step.model(*tensors[:-1]), tensors[-1])

    traced = trace(forward, *batch)
    arrays = {name: variable.numpy() for name, variable in traced.parameters.items()}
    arrays |= {str(node.name): a for node, a in zip(traced.graph.inputs, batch, strict=True)}
    for node, value in reference.walk(traced.graph, arrays):
        for part in value if isinstance(value, tuple) else (value,):
            wrong = np.argwhere(~np.isfinite(part)) if part.dtype.kind == "f" else ()
            if len(wrong) and node.op.name != "constant":
                place = tuple(int(i) for i in wrong[0])
                return f"{_subject(node)} holds {part[place]} at {place}"
    return "computed by the reference in the graph's own order it is finite: rounding decides"


def _subject(node: Node) -> str:
    if node.op.name == "input":
        return f"the batch ({node.name})"
    if node.op.name == "parameter":
        return f"the {node.attrs['role']} {node.name!r}, before this step,"
    places = sorted(str(origin) for origin in node.origins if str(origin))
    return f"{node.op.name}{f' ({places[0]})' if places else ''}"
