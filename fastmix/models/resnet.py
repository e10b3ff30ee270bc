"""ResNet for small images (He et al. 2016, Deep Residual Learning), basic blocks: convolution, norm, ReLU."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from .pooling import mean_over_pixels
from .stages import init_convolutions, stages


class BasicBlock(nn.Module):
    """3x3 conv, norm, ReLU, 3x3 conv, norm, plus the input, ReLU; where the shape changes, the shortcut is a 1x1
    convolution with norm."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        residual = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(residual + (x if self.shortcut is None else self.shortcut(x)))


class ResNet(nn.Module):
    """A 3x3 stem without pooling, stages of basic blocks, each after the first with stride 2 and twice the channels.

    Args:
        channels: of the images.
        num_classes: logits.
        blocks: in each stage: (2, 2, 2, 2) with width 64 is ResNet-18 (11.2 M weights), (n, n, n) with width 16 is
            ResNet-(6 n + 2) for CIFAR (0.5 M at depth 32, 1.7 M at depth 110).
        width: channels of the first stage.
    """

    def __init__(self, channels: int, num_classes: int, blocks: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.blocks, inputs = stages(BasicBlock, width, blocks, width)
        self.classifier = nn.Linear(inputs, num_classes)
        init_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        features = self.blocks(F.relu(self.norm(self.stem(x))))
        return self.classifier(mean_over_pixels(features))
