"""Classifiers by name: ours for small images, and any of timm or torchvision where that library is installed."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from .. import _torchvision
from .._cli import CommandError, UsageError, first_line
from .preact_resnet import PreActResNet
from .small_cnn import SmallCNN
from .wide_resnet import WideResNet

NAMES = ("cnn", "preact-resnet18", "wrn16-8", "wrn28-10", "wrnDEPTH-WIDTH", "timm:NAME", "torchvision:NAME")


class _GreyAsColour(nn.Module):
    """For models that want three channels and cannot be told otherwise."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.expand(-1, 3, -1, -1))


def _timm(name: str, num_classes: int, channels: int) -> nn.Module:
    _torchvision.make_importable()
    try:
        import timm
    except ImportError:
        raise CommandError(f"--model timm:{name} needs timm: pip install timm") from None
    if name not in timm.list_models():
        raise UsageError(f"--model: timm {timm.__version__} has no {name!r}")
    return timm.create_model(name, num_classes=num_classes, in_chans=channels)


def _torchvision_model(name: str, num_classes: int, channels: int) -> nn.Module:
    torchvision = _torchvision.load(f"--model torchvision:{name}")
    if name not in torchvision.models.list_models(module=torchvision.models):
        raise UsageError(f"--model: torchvision {torchvision.__version__} has no classifier {name!r}")
    model = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
    return model if channels == 3 else _GreyAsColour(model)


def build(name: str, num_classes: int, shape: tuple[int, int, int]) -> nn.Module:
    """A classifier with random weights: (N, C, H, W) images to (N, num_classes) logits.

    Args:
        name: see :data:`NAMES`.
        shape: (C, H, W) of the images; checked with a forward pass of zeros.
    Raises: UsageError for a name that is none or a model that cannot take such images, CommandError for a missing
        library.
    """
    channels = shape[0]
    if name == "cnn":
        model: nn.Module = SmallCNN(channels, num_classes)
    elif name == "preact-resnet18":
        model = PreActResNet(channels, num_classes)
    elif match := re.fullmatch(r"wrn(\d+)-(\d+)", name):
        depth, width = (int(group) for group in match.groups())
        if depth < 10 or (depth - 4) % 6 or width < 1:
            raise UsageError(f"--model {name}: a WideResNet's depth is 6n + 4 (10, 16, 22, 28, ...), its width >= 1")
        model = WideResNet(channels, num_classes, depth, width)
    elif name.startswith("timm:"):
        model = _timm(name.removeprefix("timm:"), num_classes, channels)
    elif name.startswith("torchvision:"):
        model = _torchvision_model(name.removeprefix("torchvision:"), num_classes, channels)
    else:
        raise UsageError(f"--model is {name!r}, want one of {', '.join(NAMES)}")
    _check(model, name, num_classes, shape)
    return model


def _check(model: nn.Module, name: str, num_classes: int, shape: tuple[int, int, int]) -> None:
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            logits = model(torch.zeros(2, *shape))
    except (RuntimeError, AssertionError, ValueError) as error:
        size = f"{shape[1]}x{shape[2]} pixels"
        raise UsageError(f"--model {name} cannot take images of {size}: {first_line(error)}") from None
    finally:
        model.train(training)
    if not isinstance(logits, Tensor) or logits.shape != (2, num_classes):
        raise UsageError(f"--model {name} is no classifier of {num_classes} classes")
