"""Saliency-DCutMix."""

from __future__ import annotations

import fastmix

from .base import Method
from .common import ALPHA, IMAGES, LABEL_SMOOTHING, PROB


class SaliencyDCutMix(Method):
    """K-image mixing Table 3 and its supplement."""

    name, about, position = "saliency-dcutmix", "dcutmix's boxes, centred on the saliency's peak", 50
    options = (IMAGES, ALPHA, PROB, LABEL_SMOOTHING)
    mixer_class = fastmix.SaliencyDCutMix
