"""Pre-activation ResNet-18 for small images (He et al. 2016, Identity Mappings in Deep Residual Networks)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from .pooling import mean_over_pixels
from .stages import stages


class PreActBlock(nn.Module):
    """norm, ReLU, 3x3 conv, twice, plus the input; where the shape changes, the shortcut is a 1x1 convolution of the
    activated input."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        changes = stride != 1 or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.norm1(x))
        residual = self.conv2(F.relu(self.norm2(self.conv1(activated))))
        return residual + (x if self.shortcut is None else self.shortcut(activated))


class PreActResNet(nn.Module):
    """A 3x3 stem without pooling, four stages of blocks with strides 1, 2, 2, 2, the mean over pixels, a classifier.

    Args:
        channels: of the images; any size of at least 8 pixels.
        num_classes: logits.
        blocks: blocks in each stage; (2, 2, 2, 2) is ResNet-18, 11.2 M weights.
        width: channels of the first stage; doubled in every further one.
    """

    def __init__(self, channels: int, num_classes: int, blocks: tuple[int, ...] = (2, 2, 2, 2),
                 width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.blocks, inputs = stages(PreActBlock, width, blocks, width)
        self.norm = nn.BatchNorm2d(inputs)
        self.classifier = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        features = F.relu(self.norm(self.blocks(self.stem(x))))
        return self.classifier(mean_over_pixels(features))
