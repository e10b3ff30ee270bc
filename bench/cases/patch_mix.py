"""saliency_mask + patch_mix, all that R-Mix does after its saliency pass, on a 4 x 4 grid."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastmix import functional
from fastmix.reference import functional as reference

from .base import Call, Case, generator, image_case_name, images, numel

GRID = (4, 4)
GOALS = {
    (100, 3, 32, 32): {"compile": 4.0, "eager": 12.0},
    (128, 3, 64, 64): {"compile": 5.0, "eager": 15.0},
    (64, 3, 224, 224): {"compile": 1.4, "eager": 9.0, "floor": 1.3},
}


def _mix(namespace: Any) -> Call:
    def run(x: Tensor, grad: Tensor, partner: Tensor, q: Tensor, lam: Tensor) -> tuple[Tensor, Tensor]:
        return namespace.patch_mix(x, partner, namespace.saliency_mask(grad, GRID, q), lam)
    return run


_ours, _reference = _mix(functional), _mix(reference)


def case(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, channels_last: bool = False,
         backward: bool = False, quick: bool = False) -> Case:
    n = shape[0]

    def make(device: torch.device, seed: int) -> tuple[Tensor, ...]:
        g = generator(seed)
        x = images(shape, dtype, channels_last, device, g)
        grad = images(shape, dtype, channels_last, device, g)
        q = torch.linspace(0, 0.99, 10)[torch.randint(0, 10, (n,), generator=g)]
        return (x, grad, torch.randperm(n, generator=g).to(device), q.to(device),
                torch.tensor(0.7, device=device))

    plain = dtype == torch.float32 and not channels_last and not backward
    return Case(
        op="patch_mix", name=image_case_name(shape, dtype, channels_last, "+saliency_mask"), make=make,
        ours=_ours, reference=_reference, moved=(5 if backward else 3) * numel(shape) * dtype.itemsize,
        formula=("5 N D s: x, saliency and grad read, mixed and dx written" if backward
                 else "3 N D s: x and saliency read, mixed written"),
        operators=("saliency", "patch_mix"), backward=backward,
        goals={"cpu": GOALS.get(shape, {})} if plain else {}, scratch=64 * n * GRID[0] * GRID[1] + 4096, quick=quick)


def cases() -> list[Case]:
    return [
        case((100, 3, 32, 32), quick=True),
        case((128, 3, 64, 64), quick=True),
        case((64, 3, 224, 224), quick=True),
        case((64, 3, 224, 224), channels_last=True),
        case((64, 3, 224, 224), dtype=torch.bfloat16),
        case((128, 3, 64, 64), backward=True),
    ]
