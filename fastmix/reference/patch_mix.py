"""Patch-wise mixing by saliency masks: R-Mix, Eq. 5-7."""

from __future__ import annotations

import torch
from torch import Tensor

from ._common import accumulation_dtype, inside, poison


def patch_mix(x: Tensor, partner: Tensor, mask: Tensor, lam: Tensor) -> tuple[Tensor, Tensor]:
    """x (N, C, H, W), partner (N,), mask (N, h, w) bool, lam (N,) or 0-d -> (mixed, weight (N, 2) float32)."""
    acc = accumulation_dtype(x.dtype)
    n, _, height, width = x.shape
    h, w = mask.shape[1:]
    partner, valid = inside(partner, n)
    other = mask[partner]
    lam = lam.to(acc).expand(n).view(-1, 1, 1)
    own_share = torch.where(mask == other, lam, mask.to(acc))
    first = own_share.to(torch.float32).mean((1, 2))
    weight = poison(torch.stack([first, 1 - first], 1), valid)
    a = own_share.repeat_interleave(height // h, 1).repeat_interleave(width // w, 2).unsqueeze(1)
    theirs = x[partner]
    mixed = (a * x.to(acc) + (1 - a) * theirs.to(acc)).to(x.dtype)
    # A pixel of one source alone is that source's, bit for bit: 0 * inf must not leak in.
    mixed = torch.where(a == 1, x, torch.where(a == 0, theirs, mixed))
    return poison(mixed, valid), weight
