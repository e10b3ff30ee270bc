"""Bytes to flipped, cropped, normalised images, and mixtures of them: `View` in plain PyTorch, pass by pass."""

from __future__ import annotations

import torch
from torch import Tensor

from ._common import accumulation_dtype
from .blend import blend
from .paste import paste
from .patch_mix import patch_mix


def crop(x: Tensor, shift: Tensor) -> Tensor:
    """``out[n, :, i, j] = x[n, :, i + shift[n, 0], j + shift[n, 1]]``, outside 0. x (N, C, H, W), shift (N, 2)."""
    n, c, h, w = x.shape
    if x.numel() == 0:
        return x
    # Beyond the image by more than its side is outside as well, and cannot wrap.
    rows = torch.arange(h, device=x.device) + shift[:, :1].clamp(-h, h)
    columns = torch.arange(w, device=x.device) + shift[:, 1:].clamp(-w, w)
    within = ((rows >= 0) & (rows < h)).view(n, 1, h, 1) & ((columns >= 0) & (columns < w)).view(n, 1, 1, w)
    sample = torch.arange(n, device=x.device).view(n, 1, 1, 1)
    channel = torch.arange(c, device=x.device).view(1, c, 1, 1)
    seen = x[sample, channel, rows.clamp(0, h - 1).view(n, 1, h, 1), columns.clamp(0, w - 1).view(n, 1, 1, w)]
    return torch.where(within, seen, 0)


def _seen(x: Tensor, mean: Tensor, std: Tensor, flip: Tensor | None, shift: Tensor | None,
          dtype: torch.dtype) -> Tensor:
    """The images in the type that mixtures are summed in."""
    acc = accumulation_dtype(dtype)
    if flip is not None:
        x = torch.where(flip.view(-1, 1, 1, 1), x.flip(3), x)
    if shift is not None:
        x = crop(x, shift)
    mean, std = (v.to(acc).view(1, -1, 1, 1) for v in (mean, std))
    return (x.to(acc) / 255 - mean) / std


def _as(out: Tensor, dtype: torch.dtype, channels_last: bool) -> Tensor:
    return out.to(dtype, memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def view(x: Tensor, mean: Tensor, std: Tensor, flip: Tensor | None, shift: Tensor | None, dtype: torch.dtype,
         channels_last: bool) -> Tensor:
    """x (N, C, H, W) uint8, mean and std (C,), flip (N,) bool, shift (N, 2) -> images of dtype."""
    return _as(_seen(x, mean, std, flip, shift, dtype), dtype, channels_last)


def view_blend(x: Tensor, index: Tensor, weight: Tensor, mean: Tensor, std: Tensor, flip: Tensor | None,
               shift: Tensor | None, dtype: torch.dtype, channels_last: bool) -> Tensor:
    """`blend` of the view."""
    return _as(blend(_seen(x, mean, std, flip, shift, dtype), index, weight), dtype, channels_last)


def view_paste(x: Tensor, index: Tensor, boxes: Tensor, mean: Tensor, std: Tensor, flip: Tensor | None,
               shift: Tensor | None, dtype: torch.dtype, channels_last: bool) -> Tensor:
    """`paste` of the view."""
    return _as(paste(_seen(x, mean, std, flip, shift, dtype), index, boxes), dtype, channels_last)


def view_patch_mix(x: Tensor, partner: Tensor, mask: Tensor, lam: Tensor, mean: Tensor, std: Tensor,
                   flip: Tensor | None, shift: Tensor | None, dtype: torch.dtype,
                   channels_last: bool) -> tuple[Tensor, Tensor]:
    """`patch_mix` of the view."""
    mixed, weight = patch_mix(_seen(x, mean, std, flip, shift, dtype), partner, mask, lam)
    return _as(mixed, dtype, channels_last), weight
