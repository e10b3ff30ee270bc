"""A data set is two splits of uint8 images with labels; a split reads batches by index."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..console import CommandError, first_line
from .images import read_image

Batch = tuple[Tensor, Tensor]


class Split(Protocol):
    """Images of one split. labels: (n,) int64 on the CPU."""

    labels: Tensor

    def subset(self, index: Tensor) -> Split: ...
    def to(self, device: torch.device) -> Split: ...
    def batches(self, indices: Iterable[Tensor]) -> Iterator[Batch]:
        """For every index tensor (b,): images (b, C, H, W) uint8 and labels (b,) int64 on the split's device."""
        ...


class MemorySplit:
    """Images (n, C, H, W) uint8 and labels (n,) int64 that stay on the device training runs on."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels.cpu()
        self._device_labels = labels.to(images.device)

    def subset(self, index: Tensor) -> MemorySplit:
        return MemorySplit(self.images[index.to(self.images.device)], self.labels[index])

    def to(self, device: torch.device) -> MemorySplit:
        return MemorySplit(self.images.to(device), self.labels)

    def batches(self, indices: Iterable[Tensor]) -> Iterator[Batch]:
        for index in indices:
            index = index.to(self.images.device)
            yield self.images[index], self._device_labels[index]


class FolderSplit:
    """Image files decoded batch by batch, by worker processes if workers > 0.

    files: their names, as text: a million paths would be slow and large.
    """

    def __init__(self, files: Iterable[str | Path], labels: Tensor, image_size: int, workers: int = 0) -> None:
        self.files, self.labels, self.image_size, self.workers = [*map(os.fspath, files)], labels, image_size, workers
        self.device = torch.device("cpu")

    @property
    def paths(self) -> list[Path]:
        return [*map(Path, self.files)]

    def subset(self, index: Tensor) -> FolderSplit:
        return FolderSplit([self.files[i] for i in index.tolist()], self.labels[index], self.image_size, self.workers)

    def to(self, device: torch.device) -> FolderSplit:
        moved = FolderSplit(self.files, self.labels, self.image_size, self.workers)
        moved.device = device
        return moved

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return read_image(self.files[index], self.image_size), int(self.labels[index])

    def batches(self, indices: Iterable[Tensor]) -> Iterator[Batch]:
        """CommandError naming the file that cannot be read."""
        pin = self.device.type == "cuda"
        sampler: Any = [index.tolist() for index in indices]
        warnings.filterwarnings("ignore", "This DataLoader will create", module=r"torch\.utils\.data")  # --workers
        loader = iter(torch.utils.data.DataLoader(_Batches(self), batch_size=None, sampler=sampler,  # type: ignore[arg-type]
                                                  num_workers=self.workers, pin_memory=pin))
        while True:
            try:
                batch = next(loader, None)
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                raise CommandError(f"a process that decodes images died ({first_line(error)}); it may have had too "
                                   "little memory: try fewer --workers") from None
            if batch is None:
                return
            if isinstance(batch, str):
                raise CommandError(batch)
            images, labels = batch
            yield images.to(self.device, non_blocking=pin), labels.to(self.device, non_blocking=pin)


class _Batches(torch.utils.data.Dataset[Any]):
    """The batches of a split by their indices: images and labels, or why a file cannot be read. An exception would
    come out of a worker process with a traceback in its message."""

    def __init__(self, split: FolderSplit) -> None:
        self._split = split

    def __getitem__(self, index: list[int]) -> Batch | str:
        try:
            images = torch.stack([self._split[i][0] for i in index])
        except CommandError as error:
            return str(error)
        return images, self._split.labels[index]


@dataclass
class Dataset:
    """train and test splits, the names of the classes, and how training reads the images.

    mean, std: per channel, of images scaled to [0, 1]. flips: random crop and horizontal flip are standard for it.
    shape: (C, H, W). test_boxes: reads where the object is in every test image, a tensor (m, 4) of boxes (top, left,
    height, width) in pixels for each; None for a set without boxes. reading: of a folder, which of its parts are what.
    account: a line about what was read.
    """

    name: str
    train: Split
    test: Split
    classes: list[str]
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flips: bool = False
    test_boxes: Callable[[], list[Tensor]] | None = None
    reading: Reading | None = None
    account: str | None = None

    def say(self, log: Callable[[str], None]) -> None:
        """Logs the account, where there is one."""
        if self.account is not None:
            log(self.account)


@dataclass
class Reading:
    """Which parts of a folder were read as what.

    train, test: what the splits are, in words. left_out: what was not read, and why.
    """

    train: str
    test: str
    left_out: list[str]
