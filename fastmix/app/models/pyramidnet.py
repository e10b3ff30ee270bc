"""PyramidNet (Han, Kim and Kim 2017): a pre-activation bottleneck ResNet whose every block is a little wider."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from .pooling import mean_over_pixels
from .shake import shake_drop
from .stages import init_convolutions


class PyramidBlock(nn.Module):
    """norm, 1x1, norm, ReLU, 3x3, norm, ReLU, 1x1 to four times the width, norm; plus the input, averaged 2x2 where the
    stride is 2, with zeros for the channels that it lacks. keep: of `shake_drop`, 1 for none."""

    def __init__(self, inputs: int, width: int, stride: int, keep: float = 1.0) -> None:
        super().__init__()
        self.keep = keep
        self.stride, self.added = stride, 4 * width - inputs
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.norm4 = nn.BatchNorm2d(4 * width)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.conv1(self.norm1(x))
        residual = self.conv2(F.relu(self.norm2(residual)))
        residual = self.norm4(self.conv3(F.relu(self.norm3(residual))))
        if self.keep < 1:
            residual = shake_drop(residual, self.keep, self.training)
        if self.stride == 2:
            x = F.avg_pool2d(x, 2, ceil_mode=True)
        return residual + F.pad(x, (0, 0, 0, 0, 0, self.added))


class PyramidNet(nn.Module):
    """A 3x3 stem of 16 channels, three stages of (depth - 2) / 9 blocks; widths rise evenly from 16 to 16 + alpha.

    Widths are rounded to the nearest, which gives the sizes in K-image mixing's Table 1 (1.7 M weights at depth 110,
    alpha 64; 26.8 M at depth 200, alpha 240; 100 classes); the paper of PyramidNet cuts them off.

    Args:
        channels: of the images.
        num_classes: logits.
        depth: 9 n + 2.
        alpha: channels added from the first block to the last, before the factor 4 of the bottleneck; >= 1.
        drop: of ShakeDrop (Yamada et al. 2019): block l of L is shaken with probability ``drop * l / L``.
    """

    def __init__(self, channels: int, num_classes: int, depth: int, alpha: int, drop: float = 0.0) -> None:
        super().__init__()
        if depth < 11 or (depth - 2) % 9 or alpha < 1:
            raise ValueError(f"PyramidNet: depth is {depth} and alpha is {alpha}, want 9 n + 2 and at least 1")
        self.stem = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.stem_norm = nn.BatchNorm2d(16)
        each = (depth - 2) // 9
        layers: list[nn.Module] = []
        inputs = 16
        for block in range(3 * each):
            width = round(16 + alpha * (block + 1) / (3 * each))
            keep = 1 - drop * (block + 1) / (3 * each)
            layers.append(PyramidBlock(inputs, width, 2 if block in (each, 2 * each) else 1, keep))
            inputs = 4 * width
        self.blocks = nn.Sequential(*layers)
        self.norm = nn.BatchNorm2d(inputs)
        self.classifier = nn.Linear(inputs, num_classes)
        init_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        features = F.relu(self.norm(self.blocks(self.stem_norm(self.stem(x)))))
        return self.classifier(mean_over_pixels(features))
