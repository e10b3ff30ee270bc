"""DMixup."""

from __future__ import annotations

import fastmix

from .base import Method
from .common import ALPHA, IMAGES, LABEL_SMOOTHING, PROB


class DMixup(Method):
    """K-image mixing Eq. 1-2."""

    name, about, position = "dmixup", "weighted sum of k images", 30
    options = (IMAGES, ALPHA, PROB, LABEL_SMOOTHING)
    mixer_class = fastmix.DMixup
