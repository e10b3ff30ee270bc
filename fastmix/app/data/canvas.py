"""The 1,797 digits of `digits`, each enlarged to 16x16 at a random place of a noisy 32x32 canvas: the box is known.

The class and the place of a canvas never change: the same images on every machine and in every run.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import digits
from .base import Dataset, MemorySplit
from .split import SPLIT_SEED

SIDE, SCALE, NOISE = 32, 2, 30.0
INK = 96  # a digit's box holds its pixels from here on


def _scatter(split: MemorySplit, seed: int) -> tuple[MemorySplit, Tensor]:
    """The canvases, and the boxes (n, 4) (top, left, height, width) around the ink of their digits."""
    rng = np.random.RandomState(seed)  # its stream is frozen across numpy versions
    enlarged = split.images[:, 0].numpy().repeat(SCALE, 1).repeat(SCALE, 2).astype(np.float64)
    count, side = enlarged.shape[:2]
    images = np.abs(rng.randn(count, SIDE, SIDE)) * NOISE
    boxes = np.zeros((count, 4), np.int64)
    for i, (top, left) in enumerate(rng.randint(0, SIDE - side + 1, (count, 2))):
        images[i, top:top + side, left:left + side] += enlarged[i]
        rows, columns = (np.flatnonzero((enlarged[i] >= INK).any(axis)) for axis in (1, 0))
        boxes[i] = (top + rows[0], left + columns[0], rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1)
    pixels = torch.from_numpy(images.clip(0, 255).round().astype(np.uint8)).unsqueeze(1)
    return MemorySplit(pixels, split.labels), torch.from_numpy(boxes)


def load(name: str, root: Path | None, image_size: int | None) -> Dataset:
    base = digits.load(name, root, image_size)
    train, _ = _scatter(base.train, SPLIT_SEED)
    test, boxes = _scatter(base.test, SPLIT_SEED + 1)
    return Dataset(name, train, test, base.classes, (1, SIDE, SIDE), (0.167,), (0.230,),
                   test_boxes=lambda: list(boxes.unsqueeze(1)))
