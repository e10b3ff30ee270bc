"""Which images make a batch, and what turns their bytes into the model's input."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .base import Dataset


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


def evaluation_batches(count: int, batch: int, rank: int = 0, world: int = 1) -> list[Tensor]:
    """Index tensors in order; every image once, in one of the processes."""
    own = torch.tensor_split(torch.arange(count), world)[rank]
    return list(own.split(batch)) if len(own) else []


def crop_flip(images: Tensor, pad: int, generator: torch.Generator) -> Tensor:
    """Random crop of zero-padded images and random horizontal flip, drawn per image.

    Args:
        images: (N, C, H, W), any dtype.
        pad: black pixels added on every side before cropping back to H x W.
        generator: on the images' device.
    """
    n, c, h, w = images.shape
    device = images.device
    top, left = torch.randint(0, 2 * pad + 1, (2, n, 1), device=device, generator=generator)
    flip = torch.rand(n, 1, device=device, generator=generator) < 0.5
    rows = top + torch.arange(h, device=device)
    columns = torch.arange(w, device=device).expand(n, w)
    columns = left + torch.where(flip, columns.flip(1), columns)
    padded = F.pad(images, (pad, pad, pad, pad))
    sample = torch.arange(n, device=device).view(n, 1, 1, 1)
    channel = torch.arange(c, device=device).view(1, c, 1, 1)
    return padded[sample, channel, rows.view(n, 1, h, 1), columns.view(n, 1, 1, w)]


class Preprocess:
    """uint8 images to normalised float32 and back."""

    def __init__(self, dataset: Dataset, device: torch.device) -> None:
        self.mean = torch.tensor(dataset.mean, device=device).view(1, -1, 1, 1)
        self.std = torch.tensor(dataset.std, device=device).view(1, -1, 1, 1)
        self._scale = 1 / (255 * self.std)
        self._shift = -self.mean / self.std

    def __call__(self, images: Tensor) -> Tensor:
        return torch.addcmul(self._shift, images.to(torch.float32), self._scale)

    def normalise(self, pixels: Tensor) -> Tensor:
        """(N, C, H, W) floats in [0, 1] to the model's input, differentiable."""
        return (pixels - self.mean) / self.std

    def displayable(self, x: Tensor) -> Tensor:
        """(N, C, H, W) model input back to (N, H, W, C) in [0, 1] on the CPU."""
        return (x.float() * self.std + self.mean).clamp(0, 1).permute(0, 2, 3, 1).cpu()
