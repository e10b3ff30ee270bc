"""WideResNet (Zagoruyko and Komodakis 2017): a pre-activation ResNet of three wide stages."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from .pooling import mean_over_pixels
from .preact_resnet import PreActBlock


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
        if (depth - 4) % 6:
            raise ValueError(f"WideResNet: depth is {depth}, want 6 n + 4")
        self.stem = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        layers: list[nn.Module] = []
        inputs = 16
        for stage in range(3):
            outputs = 16 * width * 2**stage
            for block in range((depth - 4) // 6):
                layers.append(PreActBlock(inputs, outputs, 2 if stage > 0 and block == 0 else 1))
                inputs = outputs
        self.blocks = nn.Sequential(*layers)
        self.norm = nn.BatchNorm2d(inputs)
        self.classifier = nn.Linear(inputs, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        features = F.relu(self.norm(self.blocks(self.stem(x))))
        return self.classifier(mean_over_pixels(features))
