"""ResNeXt for small images (Xie et al. 2017): bottlenecks whose 3x3 convolution works on groups of channels."""

from __future__ import annotations

import functools

from torch import Tensor, nn
from torch.nn import functional as F

from .pooling import mean_over_pixels
from .resnet import Bottleneck
from .stages import init_convolutions, stages

OUTPUTS = 256  # channels after the first stage


def grouped(cardinality: int, width: int, inputs: int, outputs: int, stride: int) -> Bottleneck:
    """A block. width: channels of a group in the first stage; it doubles as the outputs do."""
    return Bottleneck(inputs, outputs, stride, cardinality * width * outputs // OUTPUTS, cardinality)


class ResNeXt(nn.Module):
    """A 3x3 stem of 64 channels, three stages of (depth - 2) / 9 blocks with 256, 512 and 1024 outputs.

    ResNeXt-29 has 34.4 M weights at 8 x 64d (ISDA Table 2) and 4.9 M at 4 x 24d (Co-Mixup's, also in K-image mixing
    Table 2 and R-Mix Table 4).

    Args:
        channels: of the images.
        num_classes: logits.
        depth: 9 n + 2.
        cardinality: groups.
        width: channels of a group in the first stage.
    """

    def __init__(self, channels: int, num_classes: int, depth: int, cardinality: int, width: int) -> None:
        super().__init__()
        if depth < 11 or (depth - 2) % 9 or cardinality < 1 or width < 1:
            raise ValueError(f"ResNeXt: depth is {depth}, cardinality {cardinality} and width {width}, want 9 n + 2 "
                             "and at least 1")
        self.stem = nn.Conv2d(channels, 64, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(64)
        block = functools.partial(grouped, cardinality, width)
        self.blocks, inputs = stages(block, 64, 3 * [(depth - 2) // 9], OUTPUTS)
        self.classifier = nn.Linear(inputs, num_classes)
        init_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        features = self.blocks(F.relu(self.norm(self.stem(x))))
        return self.classifier(mean_over_pixels(features))
