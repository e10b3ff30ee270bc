"""covariance_update_: a batch of CIFAR-100 into full covariances, and pixels into diagonal ones.

The means and counts start anew at every call, so that every provider computes the same; cov runs on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastmix import functional
from fastmix.reference import functional as reference
from fastmix.reference import isda_released

from . import vectorised
from .base import Call, Case, Peer, generator

N, J, A = 128, 100, 640
PIXELS = (4, 512, 97, 97)


def _labels(n: int, j: int, seed: int) -> Tensor:
    return torch.randint(0, j, (n,), generator=generator(seed))


def _ours(cov: Tensor, count: Tensor, mean: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    count, mean = count.clone(), mean.clone()
    functional.covariance_update_(count, mean, cov, features, labels, 255)
    return mean


def _reference(cov: Tensor, count: Tensor, mean: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    count, mean = count.clone(), mean.clone()
    kind = "full" if cov.ndim == 3 else "diag"
    reference.covariance_update_(count, mean, cov, features, labels, kind, 255)
    return mean


def _released_peer(*_: Any) -> Call:
    def run(cov: Tensor, count: Tensor, mean: Tensor, features: Tensor, labels: Tensor) -> Tensor:
        count, mean = count.float(), mean.clone()
        isda_released.covariance_update_(count, mean, cov, features, labels)
        return mean
    return run


def _pixels_without_loops(cov: Tensor, count: Tensor, mean: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    count, mean = count.clone(), mean.clone()
    vectorised.covariance_update_(count, mean, cov, features, labels, 255)
    return mean


def _copy_peer(cov: Tensor, count: Tensor, mean: Tensor, features: Tensor, labels: Tensor) -> Call:
    """The floor by itself: the matrices of the present classes, read once and written once."""
    present = cov[labels.unique()]
    out = torch.empty_like(present)
    return lambda *_: out.copy_(present)


def _full() -> Case:
    def make(device: torch.device, seed: int) -> tuple[Tensor, ...]:
        g = generator(seed)
        return (torch.zeros(J, A, A, device=device), torch.full((J,), 50, device=device),
                torch.randn(J, A, generator=g).to(device), torch.randn(N, A, generator=g).to(device),
                _labels(N, J, 0).to(device))

    present = len(_labels(N, J, 0).unique())
    return Case(
        op="covariance", name=f"full N={N} J={J} A={A} ({present} present)", make=make, ours=_ours,
        reference=_reference, moved=2 * present * A * A * 4 + N * A * 4,
        formula="2 U A^2 s: the present classes' matrices read and written", operators=("covariance",),
        peers=(Peer("released algorithm", _released_peer), Peer("copy of U A^2", _copy_peer, same=False)),
        goals={"cpu": {"released algorithm": 10.0, "floor": 1.5}}, scratch=8 * J * A * 4 + 65536, quick=True,
        compiled=_released_peer())


def _pixels() -> Case:
    images, width, height, breadth = PIXELS

    def make(device: torch.device, seed: int) -> tuple[Tensor, ...]:
        g = generator(seed)
        return (torch.zeros(19, width, device=device), torch.full((19,), 50, device=device),
                torch.randn(19, width, generator=g).to(device), torch.randn(PIXELS, generator=g).to(device),
                torch.randint(0, 19, (images, height, breadth), generator=g).to(device))

    return Case(
        op="covariance", name=f"diag pixels {'x'.join(map(str, PIXELS))} J=19", make=make, ours=_ours,
        reference=_reference, moved=torch.Size(PIXELS).numel() * 4, formula="M A s: the features read",
        operators=("covariance",), scratch=1 << 20, compiled=_pixels_without_loops)


def cases() -> list[Case]:
    return [_full(), _pixels()]
