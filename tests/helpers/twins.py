"""Models written once and built twice: of PyTorch's layers, and of dlc's with the same weights.

``library`` is `torch` or `dlc`; what a model needs of the one, it finds in the other by the same
name.
"""

import torch

import dlc
from dlc.frontend.models.in_torch import prepared


def twins(build, *arguments):
    """dlc's and PyTorch's of a model, in inference mode."""
    theirs = prepared(build(torch, *arguments))
    for module in theirs.modules():
        if isinstance(module, torch.nn.LayerNorm):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    ours = build(dlc, *arguments).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def small(library):
    """One of each layer, and code between them."""
    nn = library.nn

    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
            self.gelu, self.pool = nn.GELU(), nn.MaxPool2d(2)
            self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
            self.fc, self.norm = nn.Linear(128, 16), nn.LayerNorm(16)
            self.leaky, self.square = nn.LeakyReLU(), nn.Linear(16, 16)
            self.soft, self.head, self.out = nn.Softplus(), nn.Linear(16, 5), nn.Softmax(1)

        def forward(self, x):
            x = self.pool(self.gelu(self.bn1(self.conv1(x))))
            x = library.relu(self.middle(x) + x)
            x = self.leaky(self.norm(self.fc(self.flat(x))))
            return self.out(self.head(self.soft(self.square(x))))

        def middle(self, x):
            return self.bn2(self.conv2(x))

        def flat(self, x):
            return library.flatten(x, 1)

    return Small()


def dropping(library):
    """Dropout, an embedding and batch norm of features."""
    nn = library.nn

    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.norm = nn.Embedding(20, 6), nn.BatchNorm1d(6)
            self.first, self.drop = nn.Linear(6, 30), nn.Dropout(0.5)
            self.second = nn.Linear(30, 4)

        def forward(self, index):
            x = self.norm(self.table(index).mean(1))
            return self.second(self.drop(library.relu(self.first(x))))

    return Dropping()


def unet(library):
    """Down, up, and across by concatenation."""
    nn = library.nn

    def block(inputs, outputs):
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
        )

    class UNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.down1, self.down2, self.bottom = block(3, 8), block(8, 16), block(16, 16)
            self.up2, self.up1 = block(32, 8), block(16, 8)
            self.pool, self.head = nn.MaxPool2d(2), nn.Conv2d(8, 2, 1)

        def forward(self, x):
            first = self.down1(x)
            second = self.down2(self.pool(first))
            x = self.bottom(self.pool(second))
            x = self.up2(library.cat([double(x), second], 1))
            x = self.up1(library.cat([double(x), first], 1))
            return self.head(x)

    def double(x):
        n, c, h, w = x.shape
        wide = x.reshape(n, c, h, 1, w, 1).expand(n, c, h, 2, w, 2)
        return wide.reshape(n, c, 2 * h, 2 * w)

    return UNet()


def vgg11_bn(library):
    """VGG-11 with batch norm, for images of 32 x 32."""
    nn = library.nn
    layers, channels = [], 3
    for width in (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0):
        if width:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        else:
            layers += [nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10))
