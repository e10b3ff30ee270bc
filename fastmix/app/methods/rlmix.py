"""RL-Mix: R-Mix whose percentiles are chosen by a policy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

import fastmix

from .. import arguments
from ..console import require
from ..streams import TrainingStream, seed_everything
from .base import Method
from .common import ALPHA, LABEL_SMOOTHING, LEVELS, PROB
from .option import Option

GRID = Option("grid", arguments.count, "patches per side, which must divide the images", "R-Mix Sec. 5.2",
              metavar="P", argument="patches")
DISCOUNT = Option("discount", arguments.share, "discount of later rewards; with 0 only an image's own counts",
                  "R-Mix Sec. 5.2, which states none", default=0.0)


class RLMix(Method):
    """R-Mix Sec. 5.2."""

    name, position = "rlmix", 80
    about = "patches by saliency, how many is learnt by PPO"
    options = (ALPHA, GRID, LEVELS, DISCOUNT, PROB, LABEL_SMOOTHING)
    mixer_class = fastmix.RLMix
    extra = "rl"

    def policy(self, mixer: Any, classes: int, rows: int, steps: int,
               average: Callable[[Tensor], object] | None) -> Any:
        """The same in every process."""
        for module, package in (("gymnasium", "gymnasium"), ("stable_baselines3", "stable-baselines3")):
            require(module, package, f"method {self.name}", self.extra)
        from .. import policy as rl

        seed_everything(self.settings.seed, TrainingStream.POLICY)
        return rl.Policy(mixer, classes, rl.acting(rows), steps, average, gamma=self.value("discount"))

    def advice(self, error: str) -> str:
        return f"; choose another {GRID.flag} than {self.value('grid')}" if "divisible" in error else ""
