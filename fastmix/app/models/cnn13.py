"""CNN-13, the plain network of the semi-supervised literature (ISDA Appendix B, Table 10)."""

from __future__ import annotations

from torch import Tensor, nn

from .pooling import mean_over_pixels
from .stages import init_convolutions


def _layers(inputs: int, outputs: int, kernel: int = 3, padding: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, kernel, padding=padding, bias=False), nn.BatchNorm2d(outputs),
            nn.LeakyReLU(0.1)]


class CNN13(nn.Module):
    """Three 3x3 convolutions of 128 channels, three of 256, each three with 2x2 max pooling and dropout 0.5 after them,
    one of 512 without padding, 1x1 ones of 256 and 128, the mean over pixels: 3.1 M weights.

    Each convolution has batch normalisation, which the table does not list, and a leaky ReLU of slope 0.1.

    Args:
        channels: of the images, which have at least 12 pixels a side.
        num_classes: logits.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_layers(channels, 128), *_layers(128, 128), *_layers(128, 128), nn.MaxPool2d(2), nn.Dropout(0.5),
            *_layers(128, 256), *_layers(256, 256), *_layers(256, 256), nn.MaxPool2d(2), nn.Dropout(0.5),
            *_layers(256, 512, padding=0), *_layers(512, 256, 1, 0), *_layers(256, 128, 1, 0))
        self.classifier = nn.Linear(128, num_classes)
        init_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(mean_over_pixels(self.features(x)))
