"""The focal loss."""

from __future__ import annotations

import fastmix

from .. import arguments
from .base import Method
from .objective import Loss
from .option import Option

FOCAL_GAMMA = Option("focal_gamma", arguments.not_negative, "exponent of the focal loss", "Soft Augmentation Table 1",
                     target=fastmix.FocalLoss, argument="gamma")


class Focal(Method):
    """A baseline of Soft Augmentation Table 1."""

    name, about, position = "focal", "no mixing, focal loss", 140
    options = (FOCAL_GAMMA,)

    def loss(self) -> Loss:
        return fastmix.FocalLoss(**self.arguments(fastmix.FocalLoss))
