"""DenseNet-BC for small images (Huang et al. 2017): every layer sees the maps of all layers before it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .pooling import mean_over_pixels
from .stages import init_convolutions


class DenseLayer(nn.Module):
    """norm, ReLU, 1x1 convolution to four times the growth, norm, ReLU, 3x3 convolution; joined to the input."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.conv1(F.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(F.relu(self.norm2(maps)))], 1)


class Transition(nn.Module):
    """norm, ReLU, 1x1 convolution to half the channels, 2x2 average pooling."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, inputs // 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv(F.relu(self.norm(x))), 2)


class DenseNet(nn.Module):
    """DenseNet-BC-depth-growth: a 3x3 stem, three blocks of (depth - 4) / 6 layers with transitions between them.

    DenseNet-BC-100-12 has 0.8 M weights (ISDA Table 2).

    Args:
        channels: of the images, which have at least 4 pixels a side.
        num_classes: logits.
        depth: 6 n + 4.
        growth: channels that a layer adds.
    """

    def __init__(self, channels: int, num_classes: int, depth: int, growth: int) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6 or growth < 1:
            raise ValueError(f"DenseNet: depth is {depth} and growth is {growth}, want 6 n + 4 and at least 1")
        width = 2 * growth
        self.stem = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        layers: list[nn.Module] = []
        for block in range(3):
            if block > 0:
                layers.append(Transition(width))
                width //= 2
            for _ in range((depth - 4) // 6):
                layers.append(DenseLayer(width, growth))
                width += growth
        self.blocks = nn.Sequential(*layers)
        self.norm = nn.BatchNorm2d(width)
        self.classifier = nn.Linear(width, num_classes)
        init_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        features = F.relu(self.norm(self.blocks(self.stem(x))))
        return self.classifier(mean_over_pixels(features))
