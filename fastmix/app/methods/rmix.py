"""R-Mix."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fastmix

from .. import arguments
from ..console import UsageError
from .base import Method, Shape
from .common import ALPHA, LABEL_SMOOTHING, LEVELS, PROB
from .option import Option

PATCHES = Option("patches", arguments.counts, "patches per side, one of these for every batch", "R-Mix Sec. 4",
                 metavar="P,P")
SALIENCY = Option(
    "saliency", str, "gradient of the images (full), of their 2x2 means at a quarter of the cost (half), or in every "
    "other step, with plain mixup between (alternate)", "R-Mix Eq. 2; half and alternate are ours",
    choices=("full", "half", "alternate"), default="full")


class RMix(Method):
    """R-Mix Eq. 2-7."""

    name, about, position = "rmix", "patches by saliency", 70
    options = (ALPHA, PATCHES, LEVELS, SALIENCY, PROB, LABEL_SMOOTHING)
    mixer_class = fastmix.RMix

    @property
    def period(self) -> int:
        return 2 if self.value("saliency") == "alternate" else 1

    def saliency(self, model: nn.Module, x: Tensor, y: Tensor, step: int) -> Tensor:
        how = self.value("saliency")
        if how == "alternate" and step % 2:
            return torch.zeros_like(x)  # every cell is salient: R-Mix is Mixup
        if how != "half":
            return super().saliency(model, x, y, step)
        # Not what the model trains on: its statistics are left alone.
        grad = fastmix.input_saliency(model, nn.functional.avg_pool2d(x, 2), y, update_stats=False)
        return grad.repeat_interleave(2, 2).repeat_interleave(2, 3)

    def check_images(self, shape: Shape) -> None:
        if self.value("saliency") == "half" and any(side % 2 for side in shape[1:]):
            raise UsageError(f"--saliency half: the images are {shape[1]} x {shape[2]}, want even sides")
