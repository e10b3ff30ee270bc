"""Classifiers by name: ours for small images, and any of timm or torchvision where that library is installed."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from .. import import_torchvision
from ..command_line import meant
from ..console import CommandError, UsageError, first_line
from .cnn13 import CNN13
from .densenet import DenseNet
from .preact_resnet import PreActResNet
from .pyramidnet import PyramidNet
from .resnet import Bottleneck, ResNet, SEBlock
from .resnext import ResNeXt
from .shake import ShakeShake
from .small_cnn import SmallCNN
from .wide_resnet import WideResNet

# A pattern and what it builds of channels, classes and the numbers in the name.
FAMILIES: tuple[tuple[str, Callable[..., nn.Module]], ...] = (
    ("cnn", SmallCNN), ("cnn13", CNN13), ("preact-resnet18", PreActResNet),
    ("resnet18", partial(ResNet, blocks=(2, 2, 2, 2), width=64)),
    ("resnet32", partial(ResNet, blocks=(5, 5, 5), width=16)),
    ("resnet50", partial(ResNet, blocks=(3, 4, 6, 3), width=64, block=Bottleneck)),
    ("resnet110", partial(ResNet, blocks=(18, 18, 18), width=16)),
    ("se-resnet110", partial(ResNet, blocks=(18, 18, 18), width=16, block=SEBlock)),
    (r"wrn(\d+)-(\d+)", WideResNet), (r"resnext(\d+)-(\d+)-(\d+)", ResNeXt), (r"densenet-bc(\d+)-(\d+)", DenseNet),
    (r"shake-shake(\d+)-(\d+)", ShakeShake), (r"pyramidnet(\d+)-(\d+)", PyramidNet),
    (r"pyramidnet(\d+)-(\d+)-shakedrop", partial(PyramidNet, drop=0.5)))
NAMES = ("cnn", "cnn13", "preact-resnet18", "resnet18", "resnet32", "resnet50", "resnet110", "se-resnet110",
         "wrnDEPTH-WIDTH", "resnextDEPTH-CARDINALITY-WIDTH", "densenet-bcDEPTH-GROWTH", "shake-shakeDEPTH-WIDTH",
         "pyramidnetDEPTH-ALPHA", "pyramidnetDEPTH-ALPHA-shakedrop", "timm:NAME", "torchvision:NAME")


class _GreyAsColour(nn.Module):
    """For models with a fixed number of three input channels."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.expand(-1, 3, -1, -1))


def _timm(name: str, num_classes: int, channels: int) -> nn.Module:
    import_torchvision.prepare()
    try:
        import timm
    except ImportError:
        raise CommandError(f"--model timm:{name} needs timm: pip install timm") from None
    if name not in timm.list_models():
        raise UsageError(f"--model: timm {timm.__version__} has no {name!r}{meant(name, timm.list_models())}")
    return timm.create_model(name, num_classes=num_classes, in_chans=channels)


def _torchvision_model(name: str, num_classes: int, channels: int) -> nn.Module:
    torchvision = import_torchvision.load(f"--model torchvision:{name}")
    if name not in torchvision.models.list_models(module=torchvision.models):
        raise UsageError(f"--model: torchvision {torchvision.__version__} has no classifier {name!r}"
                         f"{meant(name, torchvision.models.list_models(module=torchvision.models))}")
    model = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
    return model if channels == 3 else _GreyAsColour(model)


def _ours(name: str, num_classes: int, channels: int) -> nn.Module:
    for pattern, make in FAMILIES:
        if match := re.fullmatch(pattern, name):
            try:
                return make(channels, num_classes, *map(int, match.groups()))
            except ValueError as error:
                raise UsageError(f"--model {name}: {error}") from None
    raise UsageError(f"--model is {name!r}, want one of {', '.join(NAMES)}{meant(name, NAMES)}")


def build(name: str, num_classes: int, shape: tuple[int, int, int]) -> nn.Module:
    """A classifier with random weights: (N, C, H, W) images to (N, num_classes) logits.

    Args:
        name: see :data:`NAMES`.
        shape: (C, H, W) of the images; checked with a forward pass of zeros.
    Raises: UsageError for an unknown name or a model that cannot take such images, CommandError for a missing
        library.
    """
    channels = shape[0]
    if name.startswith("timm:"):
        model = _timm(name.removeprefix("timm:"), num_classes, channels)
    elif name.startswith("torchvision:"):
        model = _torchvision_model(name.removeprefix("torchvision:"), num_classes, channels)
    else:
        model = _ours(name, num_classes, channels)
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
        raise UsageError(f"--model {name} is not a classifier of {num_classes} classes")
