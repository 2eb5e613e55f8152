"""ResNets (He et al., 2015): blocks that add what they compute to what they are given.

Names of layers are torchvision's, so that its state dicts load; as there, a bottleneck's stride is
in its 3 x 3 convolution ("v1.5").
"""

from __future__ import annotations

from typing import Any

from dlc.frontend import functional as F
from dlc.frontend import nn
from dlc.frontend.nn import init
from dlc.frontend.weights import Weights, build
from dlc.ir.node import Node


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut.

    Parameters
    ----------
    inputs, planes : int
        Channels of the input, and of the output over `expansion`.
    stride : int
    downsample : Module, optional
        What brings the shortcut to the output's shape.
    groups, width_per_group : int
        1 and 64: this block has no variants.
    """

    expansion = 1

    def __init__(
        self,
        inputs: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        groups: int = 1,
        width_per_group: int = 64,
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = downsample

    def forward(self, x: Node) -> Node:
        """(N, inputs, H, W) to (N, planes, H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + shortcut)


class Bottleneck(nn.Module):
    """A 3 x 3 convolution between two 1 x 1 ones, which narrow and widen, beside a shortcut.

    Parameters
    ----------
    inputs, planes : int
        Channels of the input, and of the output over `expansion`.
    stride : int
    downsample : Module, optional
        What brings the shortcut to the output's shape.
    groups, width_per_group : int
        Groups of the 3 x 3 convolution, and channels of each at 64 planes.
    """

    expansion = 4

    def __init__(
        self,
        inputs: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        groups: int = 1,
        width_per_group: int = 64,
    ):
        super().__init__()
        width, outputs = planes * width_per_group // 64 * groups, planes * self.expansion
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.downsample = downsample

    def forward(self, x: Node) -> Node:
        """(N, inputs, H, W) to (N, 4 planes, H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + shortcut)


class ResNet(nn.Module):
    """A stem, four stages of blocks, and a linear classifier on the means of the channels.

    Parameters
    ----------
    block : type
        `BasicBlock` or `Bottleneck`.
    layers : tuple of int
        Blocks of each stage.
    num_classes : int
    zero_init_residual : bool
        Start each block as its shortcut alone: its last batch norm's weight is 0.
    groups, width_per_group : int
        Of the bottlenecks' 3 x 3 convolutions: 32 and 4 make a ResNeXt, 1 and 128 a wide ResNet.
    small_images : bool
        For images of about 32 x 32 pixels: a stem that keeps their size.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        layers: tuple[int, int, int, int],
        num_classes: int = 1000,
        zero_init_residual: bool = False,
        groups: int = 1,
        width_per_group: int = 64,
        small_images: bool = False,
    ):
        super().__init__()
        kernel, stride = (3, 1) if small_images else (7, 2)
        self.conv1 = nn.Conv2d(3, 64, kernel, stride, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.maxpool = nn.Identity() if small_images else nn.MaxPool2d(3, stride=2, padding=1)
        inputs, options = 64, {"groups": groups, "width_per_group": width_per_group}
        for i, count in enumerate(layers):
            planes, stride = 64 << i, 1 if i == 0 else 2
            stage = _stage(block, inputs, planes, count, stride, options)
            setattr(self, f"layer{i + 1}", stage)
            inputs = planes * block.expansion
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, num_classes)
        self._reset_parameters(zero_init_residual)

    def _reset_parameters(self, zero_init_residual: bool) -> None:
        """He's initialisation for the ReLU that follows each convolution."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if zero_init_residual and isinstance(module, (BasicBlock, Bottleneck)):
                last = module.bn2 if isinstance(module, BasicBlock) else module.bn3
                init.zeros_(last.weight)

    def forward(self, x: Node) -> Node:
        """(N, 3, H, W) to logits (N, num_classes)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        x = F.flatten(self.avgpool(x), 1)
        return self.fc(x)


def _stage(
    block: type[BasicBlock] | type[Bottleneck],
    inputs: int,
    planes: int,
    count: int,
    stride: int,
    options: dict[str, int],
) -> nn.Sequential:
    """Blocks in a chain; the first changes the size, and its shortcut with it."""
    outputs, downsample = planes * block.expansion, None
    if stride != 1 or inputs != outputs:
        projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        downsample = nn.Sequential(projection, nn.BatchNorm2d(outputs))
    first = block(inputs, planes, stride, downsample, **options)
    return nn.Sequential(first, *(block(outputs, planes, **options) for _ in range(count - 1)))


def resnet18(*, weights: Weights = None, **options: Any) -> ResNet:
    """ResNet-18.

    Parameters
    ----------
    weights : path of a safetensors file or state dict, optional
        Random where none are given.
    **options
        Of `ResNet`, such as ``num_classes``.
    """
    return build(lambda: ResNet(BasicBlock, (2, 2, 2, 2), **options), weights)


def resnet34(*, weights: Weights = None, **options: Any) -> ResNet:
    """ResNet-34; arguments as of `resnet18`."""
    return build(lambda: ResNet(BasicBlock, (3, 4, 6, 3), **options), weights)


def resnet50(*, weights: Weights = None, **options: Any) -> ResNet:
    """ResNet-50; arguments as of `resnet18`."""
    return build(lambda: ResNet(Bottleneck, (3, 4, 6, 3), **options), weights)


def resnet101(*, weights: Weights = None, **options: Any) -> ResNet:
    """ResNet-101; arguments as of `resnet18`."""
    return build(lambda: ResNet(Bottleneck, (3, 4, 23, 3), **options), weights)


def resnet152(*, weights: Weights = None, **options: Any) -> ResNet:
    """ResNet-152; arguments as of `resnet18`."""
    return build(lambda: ResNet(Bottleneck, (3, 8, 36, 3), **options), weights)
