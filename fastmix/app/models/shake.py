"""Sums with random weights, one in the forward and another in the backward pass, and Shake-Shake, which has them.

Weights come from torch's generator of the device; nothing is drawn in evaluation mode.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .pooling import mean_over_pixels
from .stages import init_convolutions, stages


def _per_image(x: Tensor) -> Tensor:
    return torch.rand(len(x), 1, 1, 1, dtype=x.dtype, device=x.device)


def _forward_backward(forward: Tensor, backward: Tensor) -> Tensor:
    """The value of one with the gradient of the other."""
    return backward + (forward - backward).detach()


def shake_shake(a: Tensor, b: Tensor, training: bool) -> Tensor:
    """``w a + (1 - w) b`` of (N, C, H, W), w uniform per image and drawn anew for the gradient; the mean in evaluation.

    Source: Gastaldi 2017, "shake-shake-image".
    """
    if not training:
        return (a + b) / 2
    forward, backward = _per_image(a), _per_image(a)
    return _forward_backward(torch.lerp(b, a, forward), torch.lerp(b, a, backward))


def shake_drop(x: Tensor, keep: float, training: bool) -> Tensor:
    """x (N, C, H, W) with probability keep, drawn per batch, else times a weight per image, in [-1, 1] forward and in
    [0, 1] backward. In evaluation the expectation, keep * x. Source: Yamada et al. 2019, Eq. 5.
    """
    if not training:
        return keep * x
    kept = torch.rand((), device=x.device) < keep
    forward, backward = 2 * _per_image(x) - 1, _per_image(x)
    return torch.where(kept, x, _forward_backward(forward * x, backward * x))


class ShakeBlock(nn.Module):
    """Two branches of ReLU, 3x3 conv, norm, twice, added by `shake_shake`, plus the input.

    Where the shape changes, the shortcut is two 1x1 convolutions of every second pixel, the second of them one further
    down and right, side by side, and norm.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(nn.ReLU(), nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs),
                          nn.ReLU(), nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs))
            for _ in range(2))
        self.changes = stride != 1 or inputs != outputs
        if self.changes:
            self.even = nn.Conv2d(inputs, outputs // 2, 1, stride, bias=False)
            self.odd = nn.Conv2d(inputs, outputs - outputs // 2, 1, stride, bias=False)
            self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        residual = shake_shake(self.branches[0](x), self.branches[1](x), self.training)
        if self.changes:
            x = F.relu(x)
            moved = F.pad(x, (0, 1, 0, 1))[:, :, 1:, 1:]
            x = self.norm(torch.cat([self.even(x), self.odd(moved)], 1))
        return residual + x


class ShakeShake(nn.Module):
    """Shake-Shake (depth, 2 x width d): a 3x3 stem of 16 channels, three stages of (depth - 2) / 6 blocks.

    At depth 26 it has 2.9 M weights with width 32, 26.2 M with 96 and 35.6 M with 112 (ISDA Table 2 gives 3.0 and
    36.4 M, Refined data augmentation Table 1 uses width 96).

    Args:
        channels: of the images.
        num_classes: logits.
        depth: 6 n + 2.
        width: channels of the first stage, doubled in every further one.
    """

    def __init__(self, channels: int, num_classes: int, depth: int, width: int) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6 or width < 1:
            raise ValueError(f"ShakeShake: depth is {depth} and width is {width}, want 6 n + 2 and at least 1")
        self.stem = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.blocks, inputs = stages(ShakeBlock, 16, 3 * [(depth - 2) // 6], width)
        self.classifier = nn.Linear(inputs, num_classes)
        init_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        features = F.relu(self.blocks(self.norm(self.stem(x))))
        return self.classifier(mean_over_pixels(features))
