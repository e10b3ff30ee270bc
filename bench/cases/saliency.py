"""saliency_map on a 4 x 4 grid, and saliency_peak. Nothing is written but a few cells an image."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmix import functional
from fastmix.reference import functional as reference

from .base import Call, Case, Peer, generator, image_case_name, images, numel

GRID = (4, 4)


def _map(namespace: Any) -> Call:
    return lambda grad: namespace.saliency_map(grad, GRID)


def _avg_pool_peer(grad: Tensor) -> Call:
    cell = (grad.shape[2] // GRID[0], grad.shape[3] // GRID[1])

    def run(grad: Tensor) -> Tensor:
        s = grad.float().square().mean(1).sqrt()
        return F.avg_pool2d(s, cell) / s.sum((1, 2), keepdim=True)
    return run


_ours, _reference = _map(functional), _map(reference)


def case(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, channels_last: bool = False,
         peak: bool = False, quick: bool = False) -> Case:
    def make(device: torch.device, seed: int) -> tuple[Tensor, ...]:
        return (images(shape, dtype, channels_last, device, generator(seed)),)

    return Case(
        op="saliency", name=image_case_name(shape, dtype, channels_last, "peak" if peak else "map"), make=make,
        ours=functional.saliency_peak if peak else _ours,
        reference=reference.saliency_peak if peak else _reference,
        moved=numel(shape) * dtype.itemsize, formula="N D s: gradient read", operators=("saliency",),
        peers=() if peak else (Peer("F.avg_pool2d", _avg_pool_peer),),
        scratch=64 * shape[0] * GRID[0] * GRID[1] + 4096, quick=quick)


def cases() -> list[Case]:
    return [
        case((100, 3, 32, 32)),
        case((64, 3, 224, 224), quick=True),
        case((64, 3, 224, 224), channels_last=True),
        case((64, 3, 224, 224), peak=True),
    ]
