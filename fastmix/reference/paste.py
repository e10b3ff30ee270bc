"""Nested boxes of other images pasted onto each image: CutMix, and K-image mixing Eq. 4-5 (DCutMix)."""

from __future__ import annotations

import torch
from torch import Tensor

from ._common import inside, poison


def paste(x: Tensor, index: Tensor, boxes: Tensor) -> Tensor:
    """x (N, C, H, W), index (N, K), boxes (N, K-1, 4) of (top, left, height, width) -> like x."""
    height, width = x.shape[2:]
    rows = torch.arange(height, device=x.device).view(1, 1, height, 1)
    columns = torch.arange(width, device=x.device).view(1, 1, 1, width)
    index, valid = inside(index, x.shape[0])
    out = x[index[:, 0]]
    # int64, so that top + height of any int32 box cannot wrap.
    for k, box in enumerate(boxes.to(torch.int64).unbind(1), start=1):
        top, left, tall, wide = (side.view(-1, 1, 1, 1) for side in box.unbind(1))
        covered = (rows >= top) & (rows < top + tall) & (columns >= left) & (columns < left + wide)
        out = torch.where(covered, x[index[:, k]], out)
    return poison(out, valid)


def paste_areas(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """boxes (N, K-1, 4), each inside the one before -> visible shares (N, K) float32.

    Shares of the areas are rounded to multiples of 2^-24, of which float32 holds all up to 1: their differences are
    exact, and a row sums to exactly 1 in any order.
    """
    height, width = size
    top, left, tall, wide = boxes.to(torch.int64).unbind(2)
    seen_height = ((top + tall).clamp(0, height) - top.clamp(0, height)).clamp(min=0)
    seen_width = ((left + wide).clamp(0, width) - left.clamp(0, width)).clamp(min=0)
    units = (seen_height * seen_width).to(torch.float64) * (2**24 / max(height * width, 1))
    share = torch.round(units).to(torch.float32)
    outer = torch.cat([share.new_full((share.shape[0], 1), 2**24), share], 1)
    return (outer - torch.cat([share, share.new_zeros(share.shape[0], 1)], 1)) / 2**24
