"""CutMix."""

from __future__ import annotations

import fastmix

from .base import Method
from .common import ALPHA, LABEL_SMOOTHING, PROB


class CutMix(Method):
    """Refined data augmentation Eq. 2."""

    name, about, position = "cutmix", "a box of another image", 20
    options = (ALPHA, PROB, LABEL_SMOOTHING)
    mixer_class = fastmix.CutMix
