"""LeNet-5 (LeCun et al., 1998) with ReLU and max pooling: small enough to read whole.

It is the first model of the documentation, and the one that fits into a microsecond's work.
"""

from __future__ import annotations

from dlc.frontend import functional as F
from dlc.frontend import nn
from dlc.frontend.weights import Weights, build
from dlc.ir.node import Node


class LeNet(nn.Module):
    """Two convolutions and three linear layers for images (N, 1, 28, 28).

    Parameters
    ----------
    num_classes : int
    """

    def __init__(self, num_classes: int = 10):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(400, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, x: Node) -> Node:
        """(N, 1, 28, 28) to logits (N, num_classes)."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.flatten(x, 1)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        return self.fc3(x)


def lenet5(*, weights: Weights = None, num_classes: int = 10) -> LeNet:
    """LeNet-5.

    Parameters
    ----------
    weights : path of a safetensors file or state dict, optional
        Random where none are given.
    num_classes : int
    """
    return build(lambda: LeNet(num_classes), weights)
