"""The order of images in an epoch, and the seeds it is drawn from: the same for any number of processes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


def derived_seed(*parts: int) -> int:
    """A seed from several numbers, so that (seed, epoch, rank) never collides with (seed + 1, epoch - 1, rank)."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


class Step(NamedTuple):
    """The images of one step: those of this process, and how many all processes have together."""

    own: Tensor
    total: int


def training_steps(count: int, batch: int, seed: int, rank: int = 0, world: int = 1) -> list[Step]:
    """Shuffled indices of one epoch for one process; every image is in exactly one step of one process.

    An epoch has ceil(count / (batch * world)) steps of nearly equal size (at most `batch` a process) instead of full
    steps and one small one: a last batch of one image breaks batch normalisation, and every process has every step.
    """
    order = torch.from_numpy(np.random.Generator(np.random.PCG64(seed)).permutation(count))
    parts = torch.tensor_split(order, -(-count // (batch * world)))
    return [Step(torch.tensor_split(part, world)[rank], len(part)) for part in parts]
