"""Train/test splits and subsets with the same share of every class, the same on every machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...files import DamagedFile
from ..console import CommandError, UsageError, first_line
from ..names import printable
from . import arrays

# Which images are held out never depends on the seed of a run: runs of different seeds are comparable.
SPLIT_SEED = 20240


def _shuffled_by_class(labels: Tensor) -> list[np.ndarray]:
    values = labels.numpy()
    rng = np.random.RandomState(SPLIT_SEED)  # its stream is frozen across numpy versions
    return [rng.permutation(np.flatnonzero(values == c)) for c in np.unique(values)]


def stratified_split(labels: Tensor, test_share: float) -> tuple[Tensor, Tensor]:
    """Sorted indices of a train and a test part; every class gives round(share * size) images to the test part."""
    train, test = [], []
    for members in _shuffled_by_class(labels):
        held_out = round(len(members) * test_share)
        test.append(members[:held_out])
        train.append(members[held_out:])
    return tuple(torch.from_numpy(np.sort(np.concatenate(part))) for part in (train, test))  # type: ignore[return-value]


def balanced_subset(labels: Tensor, count: int, flag: str) -> Tensor:
    """Sorted indices of `count` images, every class with the same number (one more in the first classes if uneven).

    A class that has too few gives all it has, and the others make up for it.
    """
    if count < 1 or count > len(labels):
        raise UsageError(f"{flag} is {count}, want 1 to {len(labels)} (the number of training images)")
    pools = [list(members) for members in _shuffled_by_class(labels)]
    if count < len(pools):
        raise UsageError(f"{flag} is {count}, want at least one image for each of the {len(pools)} classes")
    taken: list[int] = []
    for turn in range(max(len(pool) for pool in pools)):
        row = [pool[turn] for pool in pools if turn < len(pool)]
        taken += row[:count - len(taken)]
        if len(taken) == count:
            break
    return torch.from_numpy(np.sort(np.array(taken)))


def read_index(path: Path, count: int) -> Tensor:
    """The images that a .npy file names, (n,) int64: distinct whole numbers from 0 to count - 1, in any order.

    Raises: CommandError naming the file and what is wrong with it.
    """
    want = f"want a .npy file of distinct indices from 0 to {count - 1}"
    try:
        index = arrays.read(arrays.content(path, 8 * count), "iu", (None,))
    except (OSError, DamagedFile) as error:
        raise CommandError(f"{printable(path)} cannot be read ({first_line(error)}), {want}") from None
    if len(index) == 0:
        raise CommandError(f"{printable(path)} is empty, {want}")
    if index.min() < 0 or index.max() >= count:
        raise CommandError(f"{printable(path)} holds index {index.min() if index.min() < 0 else index.max()}, {want}")
    if len(np.unique(index)) < len(index):
        raise CommandError(f"{printable(path)} names an image twice, {want}")
    return torch.from_numpy(index.astype(np.int64))
