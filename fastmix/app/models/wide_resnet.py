"""WideResNet (Zagoruyko and Komodakis 2017): a pre-activation ResNet of three wide stages."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from .pooling import mean_over_pixels
from .preact_resnet import PreActBlock
from .stages import init_convolutions, stages


class WideResNet(nn.Module):
    """WRN-depth-width: stages of 16, 32 and 64 times `width` channels, (depth - 4) / 6 blocks each, no dropout.

    Args:
        channels: of the images.
        num_classes: logits.
        depth: 6 n + 4.
        width: the widening factor.
    """

    def __init__(self, channels: int, num_classes: int, depth: int, width: int) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6 or width < 1:
            raise ValueError(f"WideResNet: depth is {depth} and width is {width}, want 6 n + 4 and at least 1")
        self.stem = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.blocks, inputs = stages(PreActBlock, 16, 3 * [(depth - 4) // 6], 16 * width)
        self.norm = nn.BatchNorm2d(inputs)
        self.classifier = nn.Linear(inputs, num_classes)
        init_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        features = F.relu(self.norm(self.blocks(self.stem(x))))
        return self.classifier(mean_over_pixels(features))
