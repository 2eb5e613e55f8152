"""VGG (Simonyan and Zisserman, 2014): 3 x 3 convolutions in five stages, then three linear layers.

Positions in the two chains are torchvision's, so that its state dicts load.
"""

from __future__ import annotations

from typing import Any

from dlc.frontend import functional as F
from dlc.frontend import nn
from dlc.frontend.nn import init
from dlc.frontend.weights import Weights, build
from dlc.ir.node import Node

#: Output channels of the five stages.
WIDTHS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """Five stages of convolutions, each halving the image, and a classifier.

    Parameters
    ----------
    depths : tuple of int
        Convolutions of each stage.
    batch_norm : bool
        A batch norm after each convolution.
    num_classes : int
    dropout : float
        Probability of the classifier's dropout layers.
    small_images : bool
        For images of about 32 x 32 pixels, of which one is left of every channel: the classifier is
        one linear layer.
    """

    def __init__(
        self,
        depths: tuple[int, int, int, int, int],
        batch_norm: bool = False,
        num_classes: int = 1000,
        dropout: float = 0.5,
        small_images: bool = False,
    ):
        super().__init__()
        with init.skip():  # the values of 138 million parameters are drawn once, below
            self.features = nn.Sequential(*_features(depths, batch_norm))
            self.avgpool = nn.AdaptiveAvgPool2d(1 if small_images else 7)
            self.classifier = (
                nn.Linear(WIDTHS[-1], num_classes)
                if small_images
                else _classifier(num_classes, dropout)
            )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                init.normal_(module.weight, 0.0, 0.01)
                init.zeros_(module.bias)

    def forward(self, x: Node) -> Node:
        """(N, 3, H, W) to logits (N, num_classes)."""
        x = self.avgpool(self.features(x))
        return self.classifier(F.flatten(x, 1))


def _features(depths: tuple[int, ...], batch_norm: bool) -> list[nn.Module]:
    layers: list[nn.Module] = []
    channels = 3
    for width, depth in zip(WIDTHS, depths, strict=True):
        for _ in range(depth):
            layers += [nn.Conv2d(channels, width, 3, padding=1)]
            layers += [nn.BatchNorm2d(width)] if batch_norm else []
            layers += [nn.ReLU()]
            channels = width
        layers += [nn.MaxPool2d(2)]
    return layers


def _classifier(num_classes: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(WIDTHS[-1] * 7 * 7, 4096),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(4096, 4096),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(4096, num_classes),
    )


DEPTHS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


def vgg11(*, weights: Weights = None, **options: Any) -> VGG:
    """VGG-11.

    Parameters
    ----------
    weights : path of a safetensors file or state dict, optional
        Random where none are given.
    **options
        Of `VGG`, such as ``num_classes``.
    """
    return build(lambda: VGG(DEPTHS[11], **options), weights)


def vgg11_bn(*, weights: Weights = None, **options: Any) -> VGG:
    """VGG-11 with batch norm; arguments as of `vgg11`."""
    return vgg11(weights=weights, batch_norm=True, **options)


def vgg13(*, weights: Weights = None, **options: Any) -> VGG:
    """VGG-13; arguments as of `vgg11`."""
    return build(lambda: VGG(DEPTHS[13], **options), weights)


def vgg13_bn(*, weights: Weights = None, **options: Any) -> VGG:
    """VGG-13 with batch norm; arguments as of `vgg11`."""
    return vgg13(weights=weights, batch_norm=True, **options)


def vgg16(*, weights: Weights = None, **options: Any) -> VGG:
    """VGG-16; arguments as of `vgg11`."""
    return build(lambda: VGG(DEPTHS[16], **options), weights)


def vgg16_bn(*, weights: Weights = None, **options: Any) -> VGG:
    """VGG-16 with batch norm; arguments as of `vgg11`."""
    return vgg16(weights=weights, batch_norm=True, **options)


def vgg19(*, weights: Weights = None, **options: Any) -> VGG:
    """VGG-19; arguments as of `vgg11`."""
    return build(lambda: VGG(DEPTHS[19], **options), weights)


def vgg19_bn(*, weights: Weights = None, **options: Any) -> VGG:
    """VGG-19 with batch norm; arguments as of `vgg11`."""
    return vgg19(weights=weights, batch_norm=True, **options)
