"""A small CNN of our own, the default: trains in seconds on a CPU."""

from __future__ import annotations

from torch import Tensor, nn

from .pooling import mean_over_pixels


def _layer(inputs: int, outputs: int, pool: bool = False) -> list[nn.Module]:
    # Pooling first: the same maxima, and normalisation and ReLU see a quarter of the values.
    convolution: list[nn.Module] = [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)]
    return [*convolution, *([nn.MaxPool2d(2, ceil_mode=True)] if pool else []), nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True)]


class SmallCNN(nn.Module):
    """3x3 convolutions of w, 4w, 4w, 4w and 8w channels, the first and the fourth with 2x2 max pooling, each with batch
    normalisation and ReLU, then the mean over pixels: 159,000 weights at w = 16.

    Few channels at full size and most of the work in convolutions: a saliency pass, which leaves out the gradients of
    the convolutions' weights, is then close to two thirds of a training step.

    Args:
        channels: of the images, which may have any size.
        num_classes: logits.
        width: w.
    """

    def __init__(self, channels: int, num_classes: int, width: int = 16) -> None:
        super().__init__()
        wide = 4 * width
        self.features = nn.Sequential(*_layer(channels, width, pool=True), *_layer(width, wide), *_layer(wide, wide),
                                      *_layer(wide, wide, pool=True), *_layer(wide, 2 * wide))
        self.classifier = nn.Linear(2 * wide, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(mean_over_pixels(self.features(x)))
