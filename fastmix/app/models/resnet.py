"""ResNet for small images (He et al. 2016, Deep Residual Learning): convolution, norm, ReLU."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from .pooling import mean_over_pixels
from .stages import init_convolutions, projection, stages


class SqueezeExcitation(nn.Module):
    """Channels weighted by their means: linear to a sixteenth, ReLU, linear, sigmoid (Hu et al. 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, channels // 16)
        self.excite = nn.Linear(channels // 16, channels)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.excite(F.relu(self.squeeze(mean_over_pixels(x)))).sigmoid()
        return x * weight[:, :, None, None]


class BasicBlock(nn.Module):
    """3x3 conv, norm, ReLU, 3x3 conv, norm, plus the input, ReLU; where the shape changes, the shortcut is a 1x1
    convolution with norm."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = projection(inputs, outputs, stride)

    def residual(self, x: Tensor) -> Tensor:
        return self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.residual(x) + (x if self.shortcut is None else self.shortcut(x)))


class SEBlock(BasicBlock):
    """The same with the residual's channels weighed by `SqueezeExcitation`."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(inputs, outputs, stride)
        self.weigh = SqueezeExcitation(outputs)

    def residual(self, x: Tensor) -> Tensor:
        return self.weigh(super().residual(x))


class Bottleneck(nn.Module):
    """1x1 conv, 3x3 conv, 1x1 conv, each with norm, ReLU between them, plus the input, ReLU.

    inner: channels of the 3x3 convolution, in so many groups; None: a quarter of the outputs.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, inner: int | None = None, groups: int = 1) -> None:
        super().__init__()
        inner = outputs // 4 if inner is None else inner
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=groups, bias=False)
        self.norm2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(outputs)
        self.shortcut = projection(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        residual = F.relu(self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))
        residual = self.norm3(self.conv3(residual))
        return F.relu(residual + (x if self.shortcut is None else self.shortcut(x)))


class ResNet(nn.Module):
    """A 3x3 stem without pooling, stages of blocks, each after the first with stride 2 and twice the channels.

    Args:
        channels: of the images.
        num_classes: logits.
        blocks: in each stage: (2, 2, 2, 2) with width 64 is ResNet-18 (11.2 M weights), (n, n, n) with width 16 is
            ResNet-(6 n + 2) for CIFAR (0.5 M at depth 32, 1.7 M at depth 110), (3, 4, 6, 3) bottlenecks with width 64
            are ResNet-50 (23.7 M with 100 classes).
        width: channels of the stem; and of the first stage, times 4 with bottlenecks.
        block: of all stages.
    """

    def __init__(self, channels: int, num_classes: int, blocks: tuple[int, ...], width: int,
                 block: Callable[[int, int, int], nn.Module] = BasicBlock) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.blocks, inputs = stages(block, width, blocks, 4 * width if block is Bottleneck else width)
        self.classifier = nn.Linear(inputs, num_classes)
        init_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        features = self.blocks(F.relu(self.norm(self.stem(x))))
        return self.classifier(mean_over_pixels(features))
