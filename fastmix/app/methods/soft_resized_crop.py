"""SoftResizedCrop."""

from __future__ import annotations

import fastmix

from .soft import FILL, SOFT_OPTIONS, SoftMethod


class SoftResizedCrop(SoftMethod):
    """Soft Augmentation B.3."""

    name, about, position = "soft-resized-crop", "soft-crop with windows that are resized", 110
    options = (*SOFT_OPTIONS, FILL)
    mixer_class = fastmix.SoftResizedCrop
    own_crops = True
