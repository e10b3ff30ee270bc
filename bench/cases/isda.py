"""isda_logits with its backward, and isda_consistency, against the released algorithm written plainly.

Beside them the bare matrix products that the full form has to do, through torch.matmul: 2 U J A^2 operations, U present
classes. fastmix does half of them forward (a covariance is symmetric) and all of them again backward.
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

STRENGTH = 0.5
GOALS = {128: 6.0, 342: 6.0, 640: 4.5}
RELEASED, PRODUCTS = "released algorithm", "torch.mm 2 U J A^2"


def _logits(namespace: Any, kind: str | None = None) -> Call:
    extra = {"kind": kind} if kind else {}

    def run(weight: Tensor, logits: Tensor, cov: Tensor, labels: Tensor) -> Tensor:
        return namespace.isda_logits(logits, weight, cov, labels, STRENGTH, **extra)
    return run


def _released_peer(*_: Any) -> Call:
    return lambda weight, logits, cov, labels: isda_released.isda_logits(logits, weight, cov, labels, STRENGTH)


def _products_peer(weight: Tensor, logits: Tensor, cov: Tensor, labels: Tensor) -> Call:
    present = labels.unique().tolist()
    rows, out = weight.detach().clone(), torch.empty_like(weight, requires_grad=False)

    def run(weight: Tensor, logits: Tensor, cov: Tensor, labels: Tensor) -> Tensor:
        for c in present:
            torch.mm(rows, cov[c], out=out)
        return logits  # the backward that is timed is logits' own
    return run


def _labels(n: int, j: int) -> Tensor:
    return torch.randint(0, j, (n,), generator=generator(0))


def _cov(shape: tuple[int, ...], g: torch.Generator) -> Tensor:
    root = torch.rand(shape, generator=g)
    return root @ root.mT / shape[-1] if len(shape) == 3 else root


def _rows(kind: str, n: int, j: int, a: int, goals: dict[str, float], quick: bool = False) -> Case:
    def make(device: torch.device, seed: int) -> tuple[Tensor, ...]:
        g = generator(seed)
        weight, logits = torch.randn(j, a, generator=g), torch.randn(n, j, generator=g)
        cov = _cov((j, a, a) if kind == "full" else (j, a), g)
        weight, logits, cov = (t.to(device) for t in (weight, logits, cov))
        return weight, logits.requires_grad_(), cov, _labels(n, j).to(device)

    present = len(_labels(n, j).unique())
    peers = (Peer(RELEASED, _released_peer),)
    if kind == "full":
        peers = (*peers, Peer(PRODUCTS, _products_peer, same=False))
    size = a * a if kind == "full" else a
    return Case(
        op="isda", name=f"{kind} N={n} J={j} A={a} ({present} present)", make=make, ours=_logits(functional),
        reference=_logits(reference, kind), moved=4 * (2 * present * size + 3 * j * a + 3 * n * j),
        formula="2 U A^2 + 3 J A + 3 N J (diag: U A): covariances read twice, weights read twice, gradients",
        operators=("isda",), backward=True, peers=peers, goals={"cpu": goals},
        scratch=8 * n * j * 4 + 65536, quick=quick, compiled=_logits(vectorised))


def _pixels() -> Case:
    n, j, a, side = 2, 19, 512, 97

    def make(device: torch.device, seed: int) -> tuple[Tensor, ...]:
        g = generator(seed)
        logits, weight = torch.randn(n, j, side, side, generator=g), torch.randn(j, a, generator=g)
        # Labels in patches of 16 x 16, as segmentations have them.
        coarse = torch.randint(0, j, (n, 7, 7), generator=g)
        labels = coarse.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, :side, :side].contiguous()
        return (logits.to(device), weight.to(device).requires_grad_(), torch.rand(j, a, generator=g).to(device),
                labels.to(device))

    def ours(logits: Tensor, weight: Tensor, cov: Tensor, labels: Tensor) -> Tensor:
        return functional.isda_logits(logits, weight, cov, labels, STRENGTH)

    def flat(namespace: Any) -> Call:
        extra = {"kind": "diag"} if namespace is reference else {}

        def run(logits: Tensor, weight: Tensor, cov: Tensor, labels: Tensor) -> Tensor:
            z, y = logits.flatten(2), labels.flatten(1)
            return namespace.isda_logits(z, weight, cov, y, STRENGTH, **extra).view(logits.shape)
        return run

    def released(*_: Any) -> Call:
        return lambda logits, weight, cov, labels: isda_released.isda_logits_pixels(logits, weight, cov, labels,
                                                                                    STRENGTH)

    numel = n * j * side * side
    return Case(
        op="isda", name=f"diag pixels {n}x{j}x{side}x{side} A={a}", make=make, ours=ours,
        reference=flat(reference), moved=3 * 4 * numel, formula="3 N J P s: logits and gradient read, logits written",
        operators=("isda",), backward=True, peers=(Peer(RELEASED, released),),
        goals={"cpu": {RELEASED: 50.0, "floor": 1.5}}, scratch=2 * numel * 4, compiled=flat(vectorised))


def _consistency(n: int, j: int, a: int) -> Case:
    def make(device: torch.device, seed: int) -> tuple[Tensor, ...]:
        g = generator(seed)
        weight, logits = torch.randn(j, a, generator=g) / 4, torch.randn(n, j, generator=g)
        return weight.to(device), logits.to(device).requires_grad_(), _cov((j, a, a), g).to(device)

    def plain(*_: Any) -> Call:
        return lambda weight, logits, cov: isda_released.isda_consistency(logits, weight, cov, STRENGTH)

    return Case(
        op="isda", name=f"consistency N={n} J={j} A={a}", make=make,
        ours=lambda weight, logits, cov: functional.isda_consistency(logits, weight, cov, STRENGTH),
        reference=lambda weight, logits, cov: reference.isda_consistency(logits, weight, cov, STRENGTH, "full"),
        moved=4 * (min(n, j) * a * a + 2 * j * a + 2 * n * j), formula="U A^2 + 2 J A + 2 N J",
        operators=("isda",), backward=True, peers=(Peer("N x J x J written out", plain),),
        goals={"cpu": {"N x J x J written out": 5.0}}, scratch=8 * n * j * 4 + 65536, quick=True,
        compiled=plain())


def cases() -> list[Case]:
    full = [_rows("full", 128, 100, a, {RELEASED: goal, PRODUCTS: 1 / 1.5}, quick=a == 128)
            for a, goal in GOALS.items()]
    return [*full, _rows("diag", 64, 1000, 2048, {RELEASED: 20.0}), _pixels(), _consistency(128, 100, 128)]
