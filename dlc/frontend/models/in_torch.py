"""Models of the zoo in plain PyTorch, with torchvision's parameter names.

They are the other side of comparisons (in the demo, in benchmarks and in tests): written from the
architectures, sharing nothing with dlc's own, so that a slip in one of the two shows. It is the
only module that needs PyTorch, and nothing imports it without need.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


class LeNet(nn.Module):
    """LeNet-5 with ReLU and max pooling."""

    def __init__(self, num_classes: int = 10):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(400, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.max_pool2d(torch.relu(self.conv1(x)), 2)
        x = torch.max_pool2d(torch.relu(self.conv2(x)), 2)
        x = torch.relu(self.fc1(x.flatten(1)))
        return self.fc3(torch.relu(self.fc2(x)))


class MLP(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, sizes: Sequence[int] = (784, 512, 512, 10)):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(*sizes[i : i + 2]) for i in range(len(sizes) - 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers[0](x.flatten(1))
        for layer in self.layers[1:]:
            x = layer(torch.relu(x))
        return x


class Block(nn.Module):
    """A residual block: ``convolutions`` are (inputs, outputs, kernel, stride) in order."""

    def __init__(self, convolutions: Sequence[tuple[int, ...]], shortcut: int | None):
        super().__init__()
        self.count = len(convolutions)
        for i, (inputs, outputs, kernel, stride) in enumerate(convolutions, 1):
            conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
            setattr(self, f"conv{i}", conv)
            setattr(self, f"bn{i}", nn.BatchNorm2d(outputs))
        if shortcut:
            inputs, outputs, stride = convolutions[0][0], convolutions[-1][1], shortcut
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for i in range(1, self.count + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = torch.relu(y) if i < self.count else y
        return torch.relu(y + (self.downsample(x) if hasattr(self, "downsample") else x))


class ResNet(nn.Module):
    """A ResNet of basic blocks or of bottlenecks; for small images, with a stem of stride 1."""

    def __init__(
        self,
        layers: Sequence[int],
        bottleneck: bool,
        num_classes: int = 1000,
        small_images: bool = False,
    ):
        super().__init__()
        self.small_images = small_images
        stem = (3, 1, 1) if small_images else (7, 2, 3)
        self.conv1 = nn.Conv2d(3, 64, *stem, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        inputs = 64
        for i, count in enumerate(layers):
            blocks, width = [], 64 * 2**i
            for j in range(count):
                stride = 2 if i and not j else 1
                if bottleneck:
                    outputs = 4 * width
                    convolutions = [(inputs, width, 1, 1), (width, width, 3, stride)]
                    convolutions += [(width, outputs, 1, 1)]
                else:
                    outputs = width
                    convolutions = [(inputs, width, 3, stride), (width, width, 3, 1)]
                shortcut = stride if stride > 1 or inputs != outputs else None
                blocks.append(Block(convolutions, shortcut))
                inputs = outputs
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = x if self.small_images else nn.functional.max_pool2d(x, 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


class VGG(nn.Module):
    """A VGG; ``plan`` lists the convolutions' widths, and "M" for a pooling."""

    def __init__(
        self,
        plan: Sequence[Any],
        num_classes: int = 1000,
        batch_norm: bool = False,
        small_images: bool = False,
    ):
        super().__init__()
        self.edge = 1 if small_images else 7
        layers: list[nn.Module] = []
        channels = 3
        for width in plan:
            if width == "M":
                layers += [nn.MaxPool2d(2)]
            else:
                layers += [nn.Conv2d(channels, width, 3, padding=1)]
                layers += [nn.BatchNorm2d(width)] if batch_norm else []
                layers += [nn.ReLU()]
                channels = width
        self.features = nn.Sequential(*layers)
        if small_images:
            self.classifier: nn.Module = nn.Linear(512, num_classes)
        else:
            self.classifier = nn.Sequential(
                *(nn.Linear(512 * 49, 4096), nn.ReLU(), nn.Dropout()),
                *(nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout()),
                nn.Linear(4096, num_classes),
            )

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.adaptive_avg_pool2d(self.features(x), self.edge)
        return self.classifier(x.flatten(1))


def lenet5() -> LeNet:
    """LeNet-5, prepared."""
    return prepared(LeNet())


def mlp() -> MLP:
    """The multilayer perceptron 784-512-512-10, prepared."""
    return prepared(MLP())


def resnet18(**options: Any) -> ResNet:
    """ResNet-18, prepared."""
    return prepared(ResNet((2, 2, 2, 2), bottleneck=False, **options))


def resnet50(**options: Any) -> ResNet:
    """ResNet-50, prepared."""
    return prepared(ResNet((3, 4, 6, 3), bottleneck=True, **options))


def vgg11_bn(**options: Any) -> VGG:
    """VGG-11 with batch norm, prepared."""
    widths = [64, "M", 128, "M"] + [
        each for width in (256, 512, 512) for each in (width, width, "M")
    ]
    return prepared(VGG(widths, batch_norm=True, **options))


def vgg16(**options: Any) -> VGG:
    """VGG-16, prepared."""
    widths = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M"] + [512, 512, 512, "M"] * 2
    return prepared(VGG(widths, **options))


def prepared(model: M, seed: int = 0) -> M:
    """A model in inference mode with random weights under which signals keep their size.

    As in a trained model, so that the default tolerances mean what they mean there. Batch norms
    have statistics and weights of their own, which a wrong fold would show.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, module.in_features**-0.5, generator=generator)
            if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
                module.bias.normal_(0.0, 0.1, generator=generator)
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0.0, 0.1, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
                module.weight.uniform_(0.25, 0.75, generator=generator)
                module.bias.normal_(0.0, 0.1, generator=generator)
    return model.eval()
