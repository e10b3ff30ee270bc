"""ISDA with labels of some images only."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...shuffling import Step
from .. import arguments
from ..data.split import balanced_subset
from .isda import ISDA
from .option import Option

LABELLED = Option("labelled", arguments.count, "images whose labels are known", "ISDA Sec. 6.3", metavar="N",
                  default=1000)
CONSISTENCY = Option("consistency", arguments.not_negative, "weight of the loss of the images without labels",
                     "ISDA Eq. 19", metavar="W", default=1.0)


class LabelledDraws:
    """Which labelled images join the batches of an epoch: all of them in turn, reshuffled when they run out."""

    def __init__(self, labels: Tensor, count: int) -> None:
        self.index = balanced_subset(labels, count, LABELLED.flag)

    def steps(self, steps: list[Step], seed: int) -> list[Step]:
        """Every step's images with as many labelled ones before them."""
        rng = np.random.Generator(np.random.PCG64(seed))
        wanted = sum(len(step.own) for step in steps)
        rounds = -(-wanted // len(self.index))
        drawn = torch.cat([self.index[torch.from_numpy(rng.permutation(len(self.index)))] for _ in range(rounds)])
        parts = drawn[:wanted].split([len(step.own) for step in steps])
        return [Step(torch.cat([part, step.own]), 2 * step.total) for part, step in zip(parts, steps, strict=True)]


class ISDASemi(ISDA):
    """ISDA Sec. 5 and Eq. 19."""

    name, about, position = "isda-semi", "isda on the labelled images, its consistency loss on all others", 160
    options = (*ISDA.options, LABELLED, CONSISTENCY)

    def consistency(self) -> float | None:
        return self.value("consistency")

    def labelled_images(self, labels: Tensor) -> LabelledDraws:
        return LabelledDraws(labels, self.value("labelled"))
