"""1,797 real scanned digits, 8x8, that ship inside scikit-learn (UCI optdigits). Split 80/20 by class."""

from __future__ import annotations

from pathlib import Path

import torch

from ..console import require
from .base import Dataset, MemorySplit
from .split import stratified_split


def load(name: str, root: Path | None, image_size: int | None) -> Dataset:
    bunch = require("sklearn.datasets", "scikit-learn", "--data digits").load_digits()
    labels = torch.from_numpy(bunch.target).to(torch.int64)
    # Values are counts 0..16.
    images = (torch.from_numpy(bunch.images) * (255 / 16)).round().to(torch.uint8).unsqueeze(1)
    train, test = stratified_split(labels, 0.2)
    return Dataset(name, MemorySplit(images[train], labels[train]), MemorySplit(images[test], labels[test]),
                   [str(c) for c in range(10)], (1, 8, 8), (0.305,), (0.376,))
