"""SoftNoise."""

from __future__ import annotations

import fastmix

from .soft import SOFT_OPTIONS, SoftMethod


class SoftNoise(SoftMethod):
    """Soft Augmentation Table 6."""

    name, about, position = "soft-noise", "noise, labels softened by its strength", 120
    options = SOFT_OPTIONS
    mixer_class = fastmix.SoftNoise
