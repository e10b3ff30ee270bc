"""Cutout."""

from __future__ import annotations

import fastmix

from .base import Method
from .common import LABEL_SMOOTHING, LENGTH, PROB


class Cutout(Method):
    """A baseline of K-image mixing Table 1 and Soft Augmentation Table 5."""

    name, about, position = "cutout", "a square of zeros", 90
    options = (LENGTH, PROB, LABEL_SMOOTHING)
    mixer_class = fastmix.Cutout
