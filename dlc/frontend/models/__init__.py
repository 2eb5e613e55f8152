"""The zoo: models by torchvision's names, with its state dicts.

lenet    LeNet-5 for 28 x 28 digits
mlp      linear layers and ReLUs
resnet   ResNet-18, 34, 50, 101 and 152
vgg      VGG-11, 13, 16 and 19, with and without batch norm
"""

from dlc.frontend.models.lenet import LeNet, lenet5
from dlc.frontend.models.mlp import MLP, mlp
from dlc.frontend.models.resnet import ResNet, resnet18, resnet34, resnet50, resnet101, resnet152
from dlc.frontend.models.vgg import (
    VGG,
    vgg11,
    vgg11_bn,
    vgg13,
    vgg13_bn,
    vgg16,
    vgg16_bn,
    vgg19,
    vgg19_bn,
)

__all__ = [
    "MLP",
    "VGG",
    "LeNet",
    "ResNet",
    "lenet5",
    "mlp",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "vgg11",
    "vgg11_bn",
    "vgg13",
    "vgg13_bn",
    "vgg16",
    "vgg16_bn",
    "vgg19",
    "vgg19_bn",
]
