"""Random draws of the mixers, on the device of the images: no host round trip, no shape that depends on a draw.

Every function takes ``generator`` as `fastmix.ops.random` says. What is made of the draws: `fastmix.ops.plan`.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from ..ops import random
from ..reference.plan import truncated_normal as truncated_normal_size
from ..reference.plan import weights


def gamma(rows: int, k: int, alpha: float, device: torch.device, generator: Generator | None = None) -> Tensor:
    """(rows, k) float32 draws of Gamma(alpha + 1), which `fastmix.ops.plan` turns into a Dirichlet distribution."""
    return random.gamma((rows, k), alpha + 1.0, device, generator)


def dirichlet(rows: int, k: int, alpha: float, device: torch.device, generator: Generator | None = None) -> Tensor:
    """(rows, k) float32 draws of Dirichlet(alpha, ..., alpha); the first of k = 2 is Beta(alpha, alpha)."""
    drawn = gamma(rows, k, alpha, device, generator)
    phi = weights(drawn, random.random_bits(k * rows, device, generator).view(k, rows), alpha)
    return (phi / phi.sum(1, keepdim=True)).to(torch.float32)


def bernoulli(prob: float, shape: tuple[int, ...], device: torch.device, generator: Generator | None = None) -> Tensor:
    """bool of ``shape``, True with probability prob (never at 0, always at 1)."""
    return random.uniform(shape, device, generator) < prob


def constant(values: tuple[int, ...], device: torch.device) -> Tensor:
    """Host numbers as a row (1, len) float64 on the device, without a copy that waits: one fill each."""
    return torch.stack([torch.full((), float(v), dtype=torch.float64, device=device) for v in values]).unsqueeze(0)


def truncated_normal(rows: int, sigma: Tensor, limit: Tensor, generator: Generator | None = None) -> Tensor:
    """Normal numbers of mean 0, redrawn while ``|t| >= limit``.

    Args: sigma, limit: float64 that broadcast to (rows, A), >= 0; where sigma is 0 so is t.
    Returns: (rows, A) float64; t may round to the limit itself.
    """
    shape = torch.broadcast_shapes((rows, 1), sigma.shape, limit.shape)
    uniform = random.uniform(shape, limit.device, generator, torch.float64)
    positive = random.uniform(shape, limit.device, generator) < 0.5
    size = truncated_normal_size(uniform, sigma, limit)
    return torch.where(positive, size, -size)
