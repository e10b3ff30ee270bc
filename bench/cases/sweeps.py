"""Calls of one operator over the values of one of its sizes, for `python -m fastmix bench scale`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from fastmix import SoftTarget, functional

Call = Callable[[], Any]


@dataclass(frozen=True)
class Sweep:
    """op over the values of one size; make(device, **sizes) returns the call that is timed. fixed: the other sizes.

    note: what else there is to know.
    """

    op: str
    size: str
    values: tuple[int, ...]
    fixed: dict[str, int]
    make: Callable[..., Call]
    note: str = ""

    def call(self, value: int, device: torch.device) -> Call:
        return self.make(device, **self.fixed, **{self.size: value})

    @property
    def rest(self) -> str:
        return ", ".join([*(f"{name}={value}" for name, value in self.fixed.items()), *filter(None, [self.note])])


def _blend(device: torch.device, N: int, side: int, K: int) -> Call:
    x = torch.randn(N, 3, side, side, device=device)
    index = torch.stack([torch.randperm(N, device=device) for _ in range(K)], 1)
    weight = torch.full((N, K), 1 / K, device=device)
    return lambda: functional.blend(x, index, weight)


def _paste(device: torch.device, N: int, side: int, K: int) -> Call:
    x = torch.randn(N, 3, side, side, device=device)
    index = torch.stack([torch.randperm(N, device=device) for _ in range(K)], 1)
    step = side // (2 * K)
    boxes = torch.tensor([[step * j, step * j, side - 2 * step * j, side - 2 * step * j] for j in range(1, K)],
                         dtype=torch.int32, device=device).view(1, K - 1, 4).repeat(N, 1, 1)
    return lambda: functional.paste(x, index, boxes)


def _rmix(device: torch.device, N: int, side: int) -> Call:
    x, grad = (torch.randn(N, 3, side, side, device=device) for _ in range(2))
    partner, q = torch.randperm(N, device=device), torch.rand(N, device=device)
    lam = torch.tensor(0.7, device=device)
    return lambda: functional.patch_mix(x, partner, functional.saliency_mask(grad, (4, 4), q), lam)


def _loss(device: torch.device, N: int, J: int, K: int) -> Call:
    logits = torch.randn(N, J, device=device, requires_grad=True)
    target = SoftTarget(torch.randint(J, (N, K), device=device), torch.full((N, K), 1 / K, device=device))

    def call() -> None:
        logits.grad = None
        functional.soft_cross_entropy(logits, target).backward()
    return call


def _isda(kind: str) -> Callable[..., Call]:
    def make(device: torch.device, N: int, J: int, A: int) -> Call:
        logits = torch.randn(N, J, device=device, requires_grad=True)
        weight = torch.randn(J, A, device=device, requires_grad=True)
        cov = torch.rand((J, A) if kind == "diag" else (J, A, A), device=device)
        labels, grad = torch.randint(J, (N,), device=device), torch.randn(N, J, device=device)

        def call() -> None:
            logits.grad = weight.grad = None
            functional.isda_logits(logits, weight, cov, labels, 0.5, kind=kind).backward(grad)
        return call
    return make


def _covariance(kind: str) -> Callable[..., Call]:
    def make(device: torch.device, N: int, J: int, A: int) -> Call:
        count, mean = torch.zeros(J, dtype=torch.int64, device=device), torch.zeros(J, A, device=device)
        cov = torch.zeros((J, A) if kind == "diag" else (J, A, A), device=device)
        features, labels = torch.randn(N, A, device=device), torch.randint(J, (N,), device=device)
        return lambda: functional.covariance_update_(count, mean, cov, features, labels, kind=kind)
    return make


BATCHES, SIDES, IMAGES = (8, 16, 32, 64, 128), (64, 96, 128, 192, 256), (1, 2, 4, 8)
SWEEPS = (
    Sweep("blend", "N", BATCHES, {"side": 224, "K": 2}, _blend),
    Sweep("blend", "side", SIDES, {"N": 32, "K": 2}, _blend),
    Sweep("blend", "K", IMAGES, {"N": 64, "side": 128}, _blend),
    Sweep("paste", "N", BATCHES, {"side": 224, "K": 3}, _paste),
    Sweep("paste", "side", SIDES, {"N": 32, "K": 3}, _paste),
    Sweep("paste", "K", IMAGES, {"N": 64, "side": 128}, _paste),
    Sweep("patch_mix", "N", BATCHES, {"side": 224}, _rmix, "with its mask, 4x4"),
    Sweep("patch_mix", "side", SIDES, {"N": 32}, _rmix, "with its mask, 4x4"),
    Sweep("soft_target", "N", (32, 64, 128, 256, 512), {"J": 1000, "K": 2}, _loss, "with gradient"),
    Sweep("soft_target", "J", (10, 100, 1000, 5000, 21841), {"N": 128, "K": 2}, _loss, "with gradient"),
    Sweep("soft_target", "K", IMAGES, {"N": 128, "J": 1000}, _loss, "with gradient"),
    Sweep("isda diag", "N", (16, 32, 64, 128), {"J": 2000, "A": 1024}, _isda("diag"), "with gradients"),
    Sweep("isda diag", "J", (500, 1000, 2000, 4000, 8000), {"N": 64, "A": 1024}, _isda("diag"), "with gradients"),
    Sweep("isda diag", "A", (128, 256, 512, 1024, 2048), {"N": 64, "J": 1000}, _isda("diag"), "with gradients"),
    Sweep("isda full", "A", (64, 128, 256, 384), {"N": 64, "J": 100}, _isda("full"), "with gradients"),
    Sweep("covariance full", "A", (64, 128, 256, 384), {"N": 64, "J": 100}, _covariance("full")),
    Sweep("covariance diag", "N", (64, 128, 256, 512), {"J": 100, "A": 512}, _covariance("diag")),
    Sweep("covariance diag", "J", (1000, 2000, 4000, 8000, 21841), {"N": 64, "A": 1024}, _covariance("diag")),
    Sweep("covariance diag", "A", (128, 256, 512, 1024, 2048), {"N": 128, "J": 1000}, _covariance("diag")),
)
