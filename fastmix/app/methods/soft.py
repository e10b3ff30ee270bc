"""What the methods of Soft Augmentation share: the loss, and a strength that falls in the last epochs."""

from __future__ import annotations

from typing import Any

import fastmix.functional as F

from ...mixers import Mixer
from ...ops.soft_target import WEIGHTINGS
from .. import arguments
from .base import Method, Shape
from .common import PROB
from .objective import Loss
from .option import Option

SIGMA = Option("sigma", arguments.positive, "strength: the deviation of what moves, resizes or disturbs the image",
               "Soft Augmentation Sec. 4.1")
SIGMA_DECAY = Option("sigma_decay", arguments.count_or_zero,
                     "divide sigma by 1000 for so many epochs at the end; 20 in the paper, for CIFAR-100",
                     "Soft Augmentation B.1", metavar="EPOCHS", default=0)
DECAY = 1000
WEIGHTING = Option("weighting", str, "loss: sample: p KL; none: KL; weight: p times the cross-entropy of the label; "
                   "batch_mean: mean p times mean KL, as the paper's listing computes",
                   "Soft Augmentation Eq. 12-15 and Listing 1", choices=WEIGHTINGS, target=F.soft_target_kl)
POWER = Option("k", arguments.count, "power of the curve from visibility to confidence", "Soft Augmentation Eq. 7")
FILL = Option("fill", arguments.number_or_random, "background, in normalised units, or random",
              "Soft Augmentation Sec. 4.1", metavar="X")
SOFT_OPTIONS = (SIGMA, SIGMA_DECAY, WEIGHTING, POWER, PROB)


class SoftMethod(Method):
    """A mixer of single images that lowers the confidence of labels, and the divergence from such labels."""

    softens = True

    def mixer(self, shape: Shape, classes: int) -> Mixer | None:
        return None if self.mixer_class is None else self.mixer_class(num_classes=classes, **self.arguments())

    def loss(self) -> Loss:
        weighting = self.arguments(F.soft_target_kl)
        return lambda logits, target: F.soft_target_kl(logits, target, **weighting)

    def begin_epoch(self, mixer: Any, epoch: int) -> None:
        """The whole sigma until the last ``--sigma-decay`` epochs. Only a number on the device changes."""
        last = epoch > self.settings.epochs - self.value("sigma_decay")
        mixer.sigma = self.value("sigma") / (DECAY if last else 1)
