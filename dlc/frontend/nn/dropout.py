"""Dropout: elements zeroed at random in training, nothing in inference."""

from __future__ import annotations

from numbers import Real

from dlc.errors import ArgumentError, explain
from dlc.frontend import functional as F
from dlc.frontend.module import Module
from dlc.ir.node import Node


class Dropout(Module):
    """Elements zeroed with probability ``p`` in training mode; the identity in inference.

    Parameters
    ----------
    p : float
    inplace : bool
        Taken for PyTorch's sake; it changes nothing.
    """

    def __init__(self, p: float = 0.5, inplace: bool = False):
        super().__init__()
        if not isinstance(p, Real) or not 0.0 <= p <= 1.0:
            raise ArgumentError(explain("Dropout", "p from 0 to 1", repr(p)))
        self.p, self.inplace = p, inplace

    def forward(self, input: Node) -> Node:
        """Same shape as the input."""
        return F.dropout(input, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}, inplace={self.inplace}"
