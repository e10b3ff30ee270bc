"""DCutMix."""

from __future__ import annotations

import fastmix

from .base import Method
from .common import ALPHA, IMAGES, LABEL_SMOOTHING, PROB


class DCutMix(Method):
    """K-image mixing Eq. 3-5."""

    name, about, position = "dcutmix", "nested boxes of k images", 40
    options = (IMAGES, ALPHA, PROB, LABEL_SMOOTHING)
    mixer_class = fastmix.DCutMix
