"""A multilayer perceptron: linear layers with ReLU between them.

The plainest model there is, whose whole work is matrix products.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from dlc.errors import ArgumentError, explain
from dlc.frontend import functional as F
from dlc.frontend import nn
from dlc.frontend.weights import Weights, build
from dlc.ir.node import Node


class MLP(nn.Module):
    """Linear layers with ReLU between them.

    Parameters
    ----------
    sizes : sequence of int
        Features of the input, of each hidden layer, and of the output.
    """

    def __init__(self, sizes: Sequence[int] = (784, 512, 512, 10)):
        super().__init__()
        if len(sizes) < 2:
            raise ArgumentError(explain("MLP", "two or more sizes", repr(tuple(sizes))))
        self.layers = nn.ModuleList(nn.Linear(n, m) for n, m in pairwise(sizes))

    def forward(self, x: Node) -> Node:
        """(N, ...) with sizes[0] features in all to (N, sizes[-1])."""
        x = F.flatten(x, 1)
        *hidden, last = self.layers
        for layer in hidden:
            x = F.relu(layer(x))
        return last(x)


def mlp(*, weights: Weights = None, sizes: Sequence[int] = (784, 512, 512, 10)) -> MLP:
    """A multilayer perceptron.

    Parameters
    ----------
    weights : path of a safetensors file or state dict, optional
        Random where none are given.
    sizes : sequence of int
        Features of the input, of each hidden layer, and of the output.
    """
    return build(lambda: MLP(sizes), weights)
