"""Mixup."""

from __future__ import annotations

import fastmix

from .base import Method
from .common import ALPHA, LABEL_SMOOTHING, PROB


class Mixup(Method):
    """Refined data augmentation Eq. 1."""

    name, about, position = "mixup", "weighted sum of two images", 10
    options = (ALPHA, PROB, LABEL_SMOOTHING)
    mixer_class = fastmix.Mixup
