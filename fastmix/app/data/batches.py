"""Which images make a batch, and how their bytes become the model's input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...ops.view import View
from .base import Dataset


def evaluation_batches(count: int, batch: int, rank: int = 0, world: int = 1) -> list[Tensor]:
    """Index tensors in order; every image once, in one of the processes."""
    own = torch.tensor_split(torch.arange(count), world)[rank]
    return list(own.split(batch)) if len(own) else []


class Preprocess:
    """How a data set's bytes become the model's input, and back."""

    def __init__(self, dataset: Dataset, device: torch.device) -> None:
        self.mean = torch.tensor(dataset.mean, dtype=torch.float32, device=device)
        self.std = torch.tensor(dataset.std, dtype=torch.float32, device=device)

    def view(self, images: Tensor, crops: torch.Generator | None = None, pad: int | None = None, **output: Any) -> View:
        """images (N, C, H, W) uint8, whole; or with a generator on their device each cropped, padded with black by pad
        (None: an eighth of its width), and flipped at random. output: out_dtype and memory_format."""
        if crops is None:
            return View(self.mean, self.std, **output)
        if pad is None:
            pad = images.shape[-1] // 8
        return View.draw(images, self.mean, self.std, pad=pad, generator=crops, **output)

    def normalise(self, pixels: Tensor) -> Tensor:
        """(N, C, H, W) floats in [0, 1] to the model's input, differentiable."""
        return (pixels - self.mean.view(1, -1, 1, 1)) / self.std.view(1, -1, 1, 1)

    def displayable(self, x: Tensor) -> Tensor:
        """(N, C, H, W) model input back to (N, H, W, C) in [0, 1] on the CPU."""
        return (x.float().permute(0, 2, 3, 1) * self.std + self.mean).clamp(0, 1).cpu()
