"""SoftCrop."""

from __future__ import annotations

import fastmix

from .soft import FILL, SOFT_OPTIONS, SoftMethod


class SoftCrop(SoftMethod):
    """Soft Augmentation Sec. 4.1."""

    name, about, position = "soft-crop", "windows moved, labels softened by what stays visible", 100
    options = (*SOFT_OPTIONS, FILL)
    mixer_class = fastmix.SoftCrop
    own_crops = True
