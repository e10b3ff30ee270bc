"""What the residual networks are built of, beside their blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn


def stages(block: Callable[[int, int, int], nn.Module], inputs: int, counts: Sequence[int],
           width: int) -> tuple[nn.Sequential, int]:
    """Blocks of ``width`` channels, doubled in every further stage, whose first block has stride 2.

    Args: block: called with input channels, output channels and stride. counts: blocks of each stage.
    Returns: (the blocks, channels of the last).
    """
    layers: list[nn.Module] = []
    for stage, count in enumerate(counts):
        outputs = width * 2**stage
        for index in range(count):
            layers.append(block(inputs, outputs, 2 if stage > 0 and index == 0 else 1))
            inputs = outputs
    return nn.Sequential(*layers), inputs


def projection(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    """The shortcut of a post-activation block: 1x1 convolution and norm where the shape changes, None elsewhere."""
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


def init_convolutions(model: nn.Module) -> None:
    """He et al.'s normal weights, by fan-out."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
