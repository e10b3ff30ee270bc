"""blend at K = 2: Mixup of images, and forward+backward on hidden features as Manifold Mixup needs it.

Column 0 is the image itself, column 1 a permutation, lambda is the batch's, so that plain Mixup is the same function.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastmix import functional
from fastmix.reference import functional as reference

from .base import Call, Case, Peer, generator, image_case_name, images, numel

LAM = 0.7
GOALS = {(64, 3, 224, 224): {"compile": 1.0, "eager": 2.0, "floor": 1.3}}


def _indexed_peer(x: Tensor, index: Tensor, weight: Tensor) -> Call:
    partner = index[:, 1].contiguous()
    return lambda x, index, weight: LAM * x + (1 - LAM) * x[partner]


def _lerp_peer(x: Tensor, index: Tensor, weight: Tensor) -> Call:
    partner = index[:, 1].contiguous()
    return lambda x, index, weight: torch.lerp(x[partner], x, LAM)


PEERS = (Peer("lam x + (1-lam) x[perm]", _indexed_peer), Peer("torch.lerp", _lerp_peer))


def case(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, channels_last: bool = False,
         backward: bool = False, quick: bool = False) -> Case:
    def make(device: torch.device, seed: int) -> tuple[Tensor, ...]:
        g = generator(seed)
        x = images(shape, dtype, channels_last, device, g)
        index = torch.stack([torch.arange(shape[0]), torch.randperm(shape[0], generator=g)], 1)
        return x, index.to(device), torch.tensor([[LAM, 1 - LAM]]).repeat(shape[0], 1).to(device)

    copies = 4 if backward else 2
    plain = dtype == torch.float32 and not channels_last and not backward
    return Case(
        op="blend", name=image_case_name(shape, dtype, channels_last, "K=2"), make=make,
        ours=functional.blend, reference=reference.blend,
        moved=copies * numel(shape) * dtype.itemsize,
        formula="4 N D s: x and grad read, out and dx written" if backward else "2 N D s: x read, out written",
        operators=("blend",), backward=backward, peers=PEERS, goals={"cpu": GOALS.get(shape, {})} if plain else {},
        scratch=64 * shape[0] + 4096, quick=quick)


def cases() -> list[Case]:
    return [
        case((100, 3, 32, 32)),
        case((64, 3, 224, 224), quick=True),
        case((64, 3, 224, 224), channels_last=True),
        case((64, 3, 224, 224), dtype=torch.bfloat16),
        case((100, 64, 32, 32), backward=True),
    ]
