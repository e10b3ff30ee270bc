"""Label smoothing as a method of its own."""

from __future__ import annotations

import dataclasses

import fastmix.functional as F

from .base import Method
from .common import LABEL_SMOOTHING
from .objective import Loss

# No class states the amount: the papers smooth by 0.1.
SMOOTHING = dataclasses.replace(LABEL_SMOOTHING, target=None, default=0.1)


class LabelSmoothing(Method):
    """A baseline of Soft Augmentation Table 1 and K-image mixing Table 1."""

    name, about, position = "label-smoothing", "no mixing, smoothed labels", 130
    options = (SMOOTHING,)

    def loss(self) -> Loss:
        amount = self.value("label_smoothing") or SMOOTHING.default  # without any it would be plain training
        return lambda logits, target: F.soft_cross_entropy(logits, target, label_smoothing=amount)
