"""Layers with PyTorch's names, arguments, state dicts and initial distributions, a family a file.

container    Sequential, ModuleList, ModuleDict
linear       Linear, Identity, Flatten
conv         Conv2d
pooling      MaxPool2d, AvgPool2d, AdaptiveAvgPool2d
norm         BatchNorm1d, BatchNorm2d, LayerNorm
activation   ReLU and its kin, Softmax
embedding    Embedding
dropout      Dropout
loss         CrossEntropyLoss, MSELoss and the other losses
"""

from dlc.frontend import functional, init
from dlc.frontend.absent import explained
from dlc.frontend.module import Module
from dlc.frontend.nn.activation import (
    CELU,
    ELU,
    GELU,
    SELU,
    Hardtanh,
    LeakyReLU,
    LogSigmoid,
    LogSoftmax,
    PReLU,
    ReLU,
    ReLU6,
    Sigmoid,
    SiLU,
    Softmax,
    Softmin,
    Softplus,
    Tanh,
)
from dlc.frontend.nn.container import ModuleDict, ModuleList, Sequential
from dlc.frontend.nn.conv import Conv2d
from dlc.frontend.nn.dropout import Dropout
from dlc.frontend.nn.embedding import Embedding
from dlc.frontend.nn.linear import Flatten, Identity, Linear
from dlc.frontend.nn.loss import (
    BCELoss,
    BCEWithLogitsLoss,
    CrossEntropyLoss,
    HuberLoss,
    KLDivLoss,
    L1Loss,
    MSELoss,
    NLLLoss,
    SmoothL1Loss,
)
from dlc.frontend.nn.norm import BatchNorm1d, BatchNorm2d, LayerNorm
from dlc.frontend.nn.pooling import AdaptiveAvgPool2d, AvgPool2d, MaxPool2d
from dlc.frontend.parameter import Buffer, Parameter

__all__ = [
    "CELU",
    "ELU",
    "GELU",
    "SELU",
    "AdaptiveAvgPool2d",
    "AvgPool2d",
    "BCELoss",
    "BCEWithLogitsLoss",
    "BatchNorm1d",
    "BatchNorm2d",
    "Buffer",
    "Conv2d",
    "CrossEntropyLoss",
    "Dropout",
    "Embedding",
    "Flatten",
    "Hardtanh",
    "HuberLoss",
    "Identity",
    "KLDivLoss",
    "L1Loss",
    "LayerNorm",
    "LeakyReLU",
    "Linear",
    "LogSigmoid",
    "LogSoftmax",
    "MSELoss",
    "MaxPool2d",
    "Module",
    "ModuleDict",
    "ModuleList",
    "NLLLoss",
    "PReLU",
    "Parameter",
    "ReLU",
    "ReLU6",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "SmoothL1Loss",
    "Softmax",
    "Softmin",
    "Softplus",
    "Tanh",
    "functional",
    "init",
]

__getattr__ = explained("dlc.nn", __all__)
