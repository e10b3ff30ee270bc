"""A data set is two splits of uint8 images with labels; a split reads batches by index."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

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
    """Image files decoded batch by batch, by worker processes if workers > 0."""

    def __init__(self, paths: list[Path], labels: Tensor, image_size: int, workers: int = 0) -> None:
        self.paths, self.labels, self.image_size, self.workers = paths, labels, image_size, workers
        self.device = torch.device("cpu")

    def subset(self, index: Tensor) -> FolderSplit:
        return FolderSplit([self.paths[i] for i in index.tolist()], self.labels[index], self.image_size, self.workers)

    def to(self, device: torch.device) -> FolderSplit:
        moved = FolderSplit(self.paths, self.labels, self.image_size, self.workers)
        moved.device = device
        return moved

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return read_image(self.paths[index], self.image_size), int(self.labels[index])

    def batches(self, indices: Iterable[Tensor]) -> Iterator[Batch]:
        pin = self.device.type == "cuda"
        sampler: Any = [index.tolist() for index in indices]
        loader = torch.utils.data.DataLoader(self, batch_sampler=sampler, num_workers=self.workers, pin_memory=pin)  # type: ignore[arg-type]
        for images, labels in loader:
            yield images.to(self.device, non_blocking=pin), labels.to(self.device, non_blocking=pin)


@dataclass
class Dataset:
    """train and test splits, the names of the classes, and how training reads the images.

    mean, std: per channel, of images scaled to [0, 1]. flips: random crop and horizontal flip are standard for it.
    shape: (C, H, W). test_boxes: reads where the object is in every test image, a tensor (m, 4) of boxes (top, left,
    height, width) in pixels for each; None for a set without boxes.
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
