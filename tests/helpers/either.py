"""Networks written once for both libraries: dlc's names are PyTorch's."""

from types import SimpleNamespace

import numpy as np
import torch

import dlc
from dlc import functional, nn

OURS = SimpleNamespace(nn=nn, F=functional, cat=dlc.cat, flatten=dlc.flatten)
THEIRS = SimpleNamespace(nn=torch.nn, F=torch.nn.functional, cat=torch.cat, flatten=torch.flatten)


def lenet(lib):
    n = lib.nn
    return n.Sequential(
        *(n.Conv2d(1, 6, 5, padding=2), n.ReLU(), n.MaxPool2d(2)),
        *(n.Conv2d(6, 16, 5), n.ReLU(), n.MaxPool2d(2), n.Flatten()),
        *(n.Linear(400, 120), n.ReLU(), n.Linear(120, 84), n.ReLU(), n.Linear(84, 10)),
    )


def mlp(lib):
    n = lib.nn
    return n.Sequential(
        n.Linear(784, 512), n.ReLU(), n.Linear(512, 512), n.ReLU(), n.Linear(512, 10)
    )


def resnet18(lib, classes=10, act="relu"):
    n = lib.nn
    bend = getattr(lib.F, act)

    class Block(n.Module):
        def __init__(self, channels, filters, stride):
            super().__init__()
            self.conv1 = n.Conv2d(channels, filters, 3, stride, 1, bias=False)
            self.bn1 = n.BatchNorm2d(filters)
            self.conv2 = n.Conv2d(filters, filters, 3, 1, 1, bias=False)
            self.bn2 = n.BatchNorm2d(filters)
            self.shortcut = n.Sequential()
            if stride != 1:
                self.shortcut = n.Sequential(
                    n.Conv2d(channels, filters, 1, stride, bias=False), n.BatchNorm2d(filters)
                )

        def forward(self, x):
            y = bend(self.bn1(self.conv1(x)))
            return bend(self.bn2(self.conv2(y)) + self.shortcut(x))

    stages = [
        block
        for i, filters in enumerate((64, 128, 256, 512))
        for block in (
            Block(filters // 2 if i else 64, filters, 2 if i else 1),
            Block(filters, filters, 1),
        )
    ]
    head = (n.AdaptiveAvgPool2d(1), n.Flatten(), n.Linear(512, classes))
    stem = (n.Conv2d(3, 64, 3, 1, 1, bias=False), n.BatchNorm2d(64), n.ReLU())
    return n.Sequential(*stem, *stages, *head)


def smooth_resnet18(lib):
    """ResNet-18 with SiLU in place of ReLU behind its blocks, so that gradients are continuous."""
    return resnet18(lib, act="silu")


def vgg11_bn(lib, classes=10):
    n, layers, channels = lib.nn, [], 3
    for filters in (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"):
        if filters == "M":
            layers.append(n.MaxPool2d(2))
        else:
            layers += [n.Conv2d(channels, filters, 3, padding=1), n.BatchNorm2d(filters), n.ReLU()]
            channels = filters
    return n.Sequential(*layers, n.Flatten(), n.Linear(512, classes))


def unet(lib):
    n = lib.nn

    class UNet(n.Module):
        """Two levels down and up, joined by concatenation; pixels are repeated on the way up."""

        def __init__(self):
            super().__init__()
            self.down1, self.down2 = n.Conv2d(3, 8, 3, padding=1), n.Conv2d(8, 16, 3, padding=1)
            self.middle = n.Conv2d(16, 16, 3, padding=1)
            self.up2, self.up1 = n.Conv2d(32, 8, 3, padding=1), n.Conv2d(16, 8, 3, padding=1)
            self.out = n.Conv2d(8, 2, 1)

        def forward(self, x):
            a = lib.F.relu(self.down1(x))
            b = lib.F.relu(self.down2(lib.F.max_pool2d(a, 2)))
            c = lib.F.relu(self.middle(lib.F.max_pool2d(b, 2)))
            d = lib.F.relu(self.up2(lib.cat([b, self.twice(c)], 1)))
            return self.out(lib.F.relu(self.up1(lib.cat([a, self.twice(d)], 1))))

        @staticmethod
        def twice(x):
            n, c, h, w = x.shape
            wide = x.reshape(n, c, h, 1, w, 1).expand(n, c, h, 2, w, 2)
            return wide.reshape(n, c, 2 * h, 2 * w)

    return UNet()


def masked(lib):
    """A net with dropout whose mask is an input, so that both libraries drop the same."""
    n = lib.nn

    class Masked(n.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = n.Linear(20, 32), n.Linear(32, 5)

        def forward(self, x, mask):
            return self.second(lib.F.relu(self.first(x)) * mask * 2.0)

    return Masked()


def twins(make, seed=0, dtype="float32"):
    """The same network in both libraries with the same weights; batch norms away from 1 and 0."""
    torch.manual_seed(seed)
    ours, theirs = make(OURS), make(THEIRS)
    rng = np.random.default_rng(seed)
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for values, low in ((module.weight, 0.5), (module.bias, -0.5)):
                values.data = torch.tensor(
                    rng.uniform(low, low + 1, values.shape), dtype=torch.float32
                )
    copy(theirs, ours)
    return ours, theirs


def copy(theirs, ours):
    """PyTorch's parameters and buffers into dlc's model."""
    ours.load_state_dict(
        {name: array.detach().clone() for name, array in theirs.state_dict().items()}
    )
