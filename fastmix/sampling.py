"""Random draws of the mixers, on the device of the images: no host round trip, no shape that depends on a draw.

Every function takes ``generator`` (None: torch's own for the device). A generator cannot enter ``torch.compile``
(dynamo 2.13 has no proxy for torch.Generator), so compiled code draws from torch's own.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor


def permutations(rows: int, count: int, device: torch.device, generator: Generator | None = None) -> Tensor:
    """``count`` independent uniform permutations of ``range(rows)``, as columns: (rows, count) int64.

    Random int64 keys are sorted: torch.randperm takes one permutation at a time, and float keys tie, since Inductor
    gives uniforms 24 random bits in float64 too (measured, torch 2.13).
    """
    keys = torch.randint(2**63 - 1, (count, rows), device=device, generator=generator)
    return keys.argsort(1).T


def dirichlet(rows: int, k: int, alpha: float, device: torch.device, generator: Generator | None = None) -> Tensor:
    """(rows, k) float32 draws of Dirichlet(alpha, ..., alpha); the first of k = 2 is Beta(alpha, alpha).

    In log space: Gamma(a) is Gamma(a + 1) U^(1/a), and -log U is exponential. Small alphas thus neither underflow nor
    give 0 / 0, as they do where gamma variates are divided by their sum.
    """
    gamma = torch._standard_gamma(torch.full((rows, k), alpha + 1.0, device=device, dtype=torch.float32),
                                  generator=generator)
    exponential = torch.empty_like(gamma).exponential_(generator=generator)
    return (gamma.log() - exponential / alpha).softmax(1)


def bernoulli(prob: float, shape: tuple[int, ...], device: torch.device, generator: Generator | None = None) -> Tensor:
    """bool of ``shape``, True with probability prob (never at 0, always at 1)."""
    return torch.rand(shape, device=device, generator=generator) < prob


def stick_fractions(phi: Tensor) -> Tensor:
    """``1 - v_k`` of the stick breaking ``v_k = phi_k / prod_{j<k} (1 - v_j)``: (N, K) -> (N, K-1) float64.

    It is the ratio of what is left after and before piece k, both summed from the far end, so no difference of close
    numbers is taken. Where nothing is left the fraction is 0, not 0 / 0. Source: K-image mixing Eq. 3.
    """
    left = phi.to(torch.float64).flip(1).cumsum(1).flip(1)
    before, after = left[:, :-1], left[:, 1:]
    return torch.where(before > 0, after / before, 0.0)


def nested_sides(phi: Tensor, size: tuple[int, int]) -> Tensor:
    """(height, width) of the canvas and of boxes 1 .. K-1: (N, K, 2) float64, whole numbers.

    Box k has side ``round(previous side * sqrt(1 - v_k))``, half to even, relative to the rounded box before it.
    Source: K-image mixing Eq. 4.
    """
    rows = phi.shape[0]
    side = torch.stack([torch.full((rows,), float(s), dtype=torch.float64, device=phi.device) for s in size], 1)
    sides = [side]
    for scale in stick_fractions(phi).sqrt().unbind(1):
        side = (side * scale.unsqueeze(1)).round()
        sides.append(side)
    return torch.stack(sides, 1)


def nested_boxes(phi: Tensor, size: tuple[int, int], generator: Generator | None = None) -> Tensor:
    """Boxes of `nested_sides`, each placed uniformly over all positions inside the one before.

    Args:
        phi: (N, K) float, shares that sum to 1.
        size: (H, W) of the images.
    Returns: (N, K-1, 4) int32 (top, left, height, width); a box may be empty.
    Source: K-image mixing Eq. 4-5.
    """
    sides = nested_sides(phi, size)
    room = sides[:, :-1] - sides[:, 1:]
    uniform = torch.rand(room.shape, dtype=torch.float64, device=phi.device, generator=generator)
    # uniform < 1 in float64 keeps the floor at most at room; offsets are relative to the box before.
    corner = (uniform * (room + 1)).floor().cumsum(1)
    return torch.cat([corner, sides[:, 1:]], 2).to(torch.int32)


def centred_boxes(sides: Tensor, size: tuple[int, int], generator: Generator | None = None) -> Tensor:
    """Boxes whose centre is uniform over the pixels, clipped at the border (CutMix, Cutout).

    Args:
        sides: (N, 2) int64 (height, width) before clipping.
        size: (H, W) of the images.
    Returns: (N, 4) int32 (top, left, height, width), inside the image.
    """
    starts, ends = [], []
    for axis, length in enumerate(size):
        # An image without pixels has one empty position.
        centre = torch.randint(max(length, 1), sides.shape[:1], device=sides.device, generator=generator)
        start = centre - sides[:, axis] // 2
        starts.append(start.clamp(0, length))
        ends.append((start + sides[:, axis]).clamp(0, length))
    corner = torch.stack(starts, 1)
    return torch.cat([corner, torch.stack(ends, 1) - corner], 1).to(torch.int32)


def constant(values: tuple[int, ...], device: torch.device) -> Tensor:
    """Host numbers as a row (1, len) float64 on the device, without a copy that waits: one fill each."""
    return torch.stack([torch.full((), float(v), dtype=torch.float64, device=device) for v in values]).unsqueeze(0)


def truncated_normal(rows: int, sigma: Tensor, limit: Tensor, generator: Generator | None = None) -> Tensor:
    """Normal numbers of mean 0, redrawn while ``|t| >= limit``: the law itself, by the inverse of its distribution.

    ``|t| = sigma sqrt(2) erfinv(u erf(limit / (sigma sqrt(2))))``, u uniform, and a sign: no loop that would wait for
    the device.

    Args: sigma, limit: float64 that broadcast to (rows, A), >= 0; where sigma is 0 so is t.
    Returns: (rows, A) float64; t may round to the limit itself.
    """
    shape = torch.broadcast_shapes((rows, 1), sigma.shape, limit.shape)
    uniform = torch.rand(shape, dtype=torch.float64, device=limit.device, generator=generator)
    positive = torch.rand(shape, device=limit.device, generator=generator) < 0.5
    spread = sigma * math.sqrt(2)
    size = spread * torch.erfinv(uniform * torch.erf(limit / spread))
    # Nothing to draw from: limit / 0 is infinite or no number.
    size = torch.where((spread > 0) & (limit > 0), torch.minimum(size, limit), 0.0)
    return torch.where(positive, size, -size)
