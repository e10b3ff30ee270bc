"""No mixing: the plain step that all other methods are compared with."""

from __future__ import annotations

from .base import Method
from .common import LABEL_SMOOTHING


class Plain(Method):
    """Whole images, hard labels, cross-entropy."""

    name, about, position = "none", "no mixing", 0
    options = (LABEL_SMOOTHING,)
