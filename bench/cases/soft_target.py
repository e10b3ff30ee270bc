"""soft_cross_entropy against a mixed pair of labels (K = 2), from the public function to loss.backward().

Every row has the same lambda, so that the usual two-loss form of Mixup computes the same function.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmix import SoftTarget, functional

from .base import Call, Case, Peer, dtype_name, generator

LAM = 0.7
GOALS = {
    (128, 100): {"compile": 2.5, "eager": 3.0},
    (256, 1000): {"compile": 4.0, "eager": 7.0},
    (256, 21841): {"compile": 4.0, "eager": 12.0, "floor": 1.6},
}


def _plain(logits: Tensor, target: SoftTarget) -> Tensor:
    """The equation in plain PyTorch, without what the reference of the operator knows besides."""
    log_prob = torch.log_softmax(logits.to(torch.float64 if logits.dtype == torch.float64 else torch.float32), 1)
    return -(target.weight * log_prob.gather(1, target.index)).sum(1).mean()


def _dense_peer(logits: Tensor, target: SoftTarget) -> Call:
    def run(logits: Tensor, target: SoftTarget) -> Tensor:
        dense = torch.zeros(logits.shape, device=logits.device).scatter_add_(1, target.index, target.weight)
        return F.cross_entropy(logits, dense)
    return run


def _two_losses_peer(logits: Tensor, target: SoftTarget) -> Call:
    first, second = target.index[:, 0].contiguous(), target.index[:, 1].contiguous()

    def run(logits: Tensor, target: SoftTarget) -> Tensor:
        return LAM * F.cross_entropy(logits, first) + (1 - LAM) * F.cross_entropy(logits, second)
    return run


PEERS = (Peer("F.cross_entropy(dense)", _dense_peer), Peer("lam CE(y1) + (1-lam) CE(y2)", _two_losses_peer))


def case(n: int, j: int, dtype: torch.dtype, backward: bool, quick: bool) -> Case:
    def make(device: torch.device, seed: int) -> tuple[Tensor, SoftTarget]:
        g = generator(seed)
        logits = (3 * torch.randn(n, j, generator=g)).to(device=device, dtype=dtype)
        index = torch.randint(0, j, (n, 2), generator=g)
        return logits, SoftTarget(index, torch.tensor([[LAM, 1 - LAM]]).repeat(n, 1)).to(device)

    size = dtype.itemsize
    return Case(
        op="soft_target", name=f"{n}x{j} {dtype_name(dtype)}", make=make,
        ours=functional.soft_cross_entropy, reference=_plain,
        moved=n * j * size * (2 if backward else 1),
        formula="2 N J s: logits read, gradient written" if backward else "N J s: logits read",
        operators=("soft_target",), backward=backward, peers=PEERS,
        goals={"cpu": GOALS.get((n, j), {})} if backward and dtype == torch.float32 else {},
        scratch=64 * n + 4096, quick=quick)


def cases() -> list[Case]:
    f32, bf16 = torch.float32, torch.bfloat16
    return [
        case(128, 100, f32, True, quick=True),
        case(256, 1000, f32, True, quick=True),
        case(256, 21841, f32, True, quick=True),
        case(256, 21841, bf16, True, quick=False),
        case(128, 100, f32, False, quick=False),
        case(256, 1000, f32, False, quick=False),
        case(256, 21841, f32, False, quick=False),
        case(256, 21841, bf16, False, quick=False),
    ]
