"""Saliency of an input gradient, pooled, ranked and thresholded: R-Mix, Eq. 2-4."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._common import accumulation_dtype


def channel_norm(grad: Tensor) -> Tensor:
    """Eq. 2: ``sqrt(mean_c grad^2)``, (N, C, H, W) -> (N, H, W)."""
    if grad.shape[1] == 0:  # nothing changes the loss
        return grad.new_zeros((grad.shape[0], *grad.shape[2:]), dtype=accumulation_dtype(grad.dtype))
    return grad.to(accumulation_dtype(grad.dtype)).square().mean(1).sqrt()


def _pool(grad: Tensor, grid: tuple[int, int]) -> Tensor:
    n, _, height, width = grad.shape
    h, w = grid
    return channel_norm(grad).view(n, h, height // h, w, width // w).mean((2, 4))


def saliency_map(grad: Tensor, grid: tuple[int, int]) -> Tensor:
    """Eq. 2-3: the channel norm averaged over each of h x w cells and divided by its sum over the image.

    An image whose gradient is all zero gives a uniform map. Returns (N, h, w) float32 (float64 for float64).
    The sum over the image, not over the cells, is Eq. 3: cells then add up to 1 / (pixels per cell).
    """
    h, w = grid
    pooled = _pool(grad, grid)
    total = pooled.sum((1, 2), keepdim=True) * (grad.shape[2] // h * (grad.shape[3] // w))
    pixels = grad.shape[2] * grad.shape[3]
    return torch.where(total == 0, torch.full_like(pooled, 1 / pixels), pooled / total)


def percentile_mask(map: Tensor, q: Tensor) -> Tensor:
    """Eq. 4: cells at or above the q-th percentile, ties included. map (N, h, w), q (N,) or 0-d -> bool.

    q below 0 and NaN count as 0, above 1 as 1.
    """
    flat = map.flatten(1)
    # sort puts NaN last, as the largest.
    ordered = flat.sort(1).values
    cells = flat.shape[1]
    rank = torch.ceil(q.to(torch.float64) * (cells - 1))
    # As a float: an int64 of NaN or infinity is any number.
    rank = torch.where(rank > 0, rank, 0.0).clamp_max(cells - 1).to(torch.int64).expand(flat.shape[0])
    threshold = ordered.gather(1, rank.unsqueeze(1))
    at_least = (flat >= threshold) | flat.isnan()
    return at_least.view(map.shape)


def saliency_mask(grad: Tensor, grid: tuple[int, int], q: Tensor) -> Tensor:
    """Eq. 2-4 in one: normalisation cannot change the mask, so none is done."""
    return percentile_mask(_pool(grad, grid), q)


def chosen_grid(masks: list[Tensor], grid: Tensor) -> Tensor:
    """masks (N, p, p) of several p -> the one of this number, on their least common grid (N, side, side).

    Each is taken from the gradient, not from a finer map: exact in ties, NaN and infinities.
    """
    side = math.lcm(*(mask.shape[1] for mask in masks))
    repeated = [mask.repeat_interleave(side // mask.shape[1], 1).repeat_interleave(side // mask.shape[2], 2)
                for mask in masks]
    chosen = repeated[0]
    for i, other in enumerate(repeated[1:], start=1):
        chosen = torch.where(grid == i, other, chosen)
    return chosen


def saliency_peak(grad: Tensor) -> Tensor:
    """(row, column) of the largest channel norm, first in row-major order, (N, 2) int64. NaN counts as largest."""
    width = grad.shape[3]
    flat = channel_norm(grad).flatten(1)
    best = torch.where(flat.isnan(), float("inf"), flat)
    largest = best.amax(1, keepdim=True)
    # NaN before inf: an image with a NaN peaks at its first one.
    is_peak = torch.where(flat.isnan().any(1, keepdim=True), flat.isnan(), best == largest)
    first = is_peak.to(torch.int8).argmax(1)
    return torch.stack([first // width, first % width], 1)
