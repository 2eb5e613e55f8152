"""Activation layers: a function of `functional` each, with its arguments remembered.

``inplace`` is taken for PyTorch's sake and changes nothing: values are pure, and what is in place
is the memory planner's decision.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dlc.frontend import functional as F
from dlc.frontend.module import Module
from dlc.frontend.nn.linear import check_counts
from dlc.frontend.parameter import Parameter
from dlc.ir.node import Node
from dlc.ir.types import as_dtype


class _Activation(Module):
    """A layer that applies ``function`` with its attributes ``arguments``."""

    function: Callable[..., Node]
    arguments: tuple[str, ...] = ()

    def __init__(self, inplace: bool = False):
        super().__init__()
        self.inplace = inplace

    def forward(self, input: Node) -> Node:
        """Same shape as the input."""
        return type(self).function(input, **{name: getattr(self, name) for name in self.arguments})

    def extra_repr(self) -> str:
        return _shown(self, *self.arguments) + ("inplace=True" if self.inplace else "")
