"""Manifold Mixup."""

from __future__ import annotations

from typing import Any

from torch import nn

import fastmix

from .. import arguments
from ..console import UsageError
from .base import Method
from .common import ALPHA, LABEL_SMOOTHING, PROB
from .option import Option

LAYERS = Option("layers", arguments.names, "where features are mixed, drawn for every step: modules of the model, "
                "input", "R-Mix Sec. 2.1", metavar="NAME,NAME")


class ManifoldMixup(Method):
    """R-Mix Sec. 2.1, a baseline of K-image mixing Table 1."""

    name, about, position = "manifold-mixup", "mixup of what one layer of the model returns", 60
    options = (ALPHA, LAYERS, PROB, LABEL_SMOOTHING)
    mixer_class = fastmix.ManifoldMixup

    @property
    def reads_bytes(self) -> bool:
        """Hidden features are mixed, not images."""
        return False

    def check_model(self, mixer: Any, model: nn.Module) -> None:
        try:
            mixer.names(model)
        except ValueError as error:
            raise UsageError(f"{LAYERS.flag}: {error}") from None
