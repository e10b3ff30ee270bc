"""Windows of images, moved by whole pixels or resized: the crops of Soft Augmentation Sec. 4.1 and B.3."""

from __future__ import annotations

import torch
from torch import Tensor

from ._common import accumulation_dtype, is_channels_last, poison


def _background(x: Tensor, fill: float | Tensor) -> Tensor:
    """fill, a number or (N, C), to broadcast with x."""
    if isinstance(fill, Tensor):
        return fill.to(x.dtype)[:, :, None, None]
    return torch.full((), fill, dtype=x.dtype, device=x.device)


def _gather(x: Tensor, rows: Tensor, columns: Tensor, background: Tensor) -> Tensor:
    """``x[n, :, rows[n, i], columns[n, j]]``, background outside the image. rows (N, I), columns (N, J) int64."""
    height, width = x.shape[2:]
    inside = ((rows >= 0) & (rows < height)).unsqueeze(2) & ((columns >= 0) & (columns < width)).unsqueeze(1)
    if x.shape[1:].numel() == 0:
        shown = background.expand(*x.shape[:2], rows.shape[1], columns.shape[1])
        return shown + x.sum() if x.requires_grad else shown  # a sum of nothing, so that a gradient is asked for
    sample = torch.arange(x.shape[0], device=x.device).view(-1, 1, 1, 1)
    channel = torch.arange(x.shape[1], device=x.device).view(1, -1, 1, 1)
    rows, columns = rows.clamp(0, height - 1)[:, None, :, None], columns.clamp(0, width - 1)[:, None, None, :]
    shown = torch.where(inside.unsqueeze(1), x[sample, channel, rows, columns], background)
    return shown.contiguous(memory_format=torch.channels_last if is_channels_last(x) else torch.contiguous_format)


def crop(x: Tensor, shift: Tensor, fill: float | Tensor = 0.0) -> Tensor:
    """x (N, C, H, W), shift (N, 2), fill a number or (N, C): ``x[n, :, i + shift[n, 0], j + shift[n, 1]]``."""
    height, width = x.shape[2:]
    # Clamped first, so that adding a pixel's index to any int64 cannot wrap.
    down = shift[:, :1].to(torch.int64).clamp(-height, height)
    right = shift[:, 1:].to(torch.int64).clamp(-width, width)
    rows = down + torch.arange(height, device=x.device)
    columns = right + torch.arange(width, device=x.device)
    return _gather(x, rows, columns, _background(x, fill))


def resize_positions(start: Tensor, length: Tensor, out: int, size: int) -> tuple[Tensor, Tensor]:
    """Where output pixels lie on one axis: (the pixel before (N, out) int64, the weight of the next float64).

    start, length: (N,) of the window; size: pixels of the axis. Positions far outside are moved to one just outside.
    """
    start, length = start.to(torch.float64).unsqueeze(1), length.to(torch.float64).unsqueeze(1)
    at = (torch.arange(out, dtype=torch.float64, device=start.device) + 0.5) * (length / out) - 0.5
    at = torch.minimum(at.clamp_min(0.0), (length - 1).clamp_min(0.0)) + start
    at = at.nan_to_num(0.0).clamp(-2, size + 1)
    before = at.floor()
    return before.to(torch.int64), at - before


def resized_crop(x: Tensor, box: Tensor, size: tuple[int, int], fill: float | Tensor = 0.0) -> Tensor:
    """x (N, C, H, W), box (N, 4) of (top, left, height, width) -> (N, C, *size), bilinear, without antialiasing."""
    finite = box.isfinite().all(1)
    rows, down = resize_positions(box[:, 0], box[:, 2], size[0], x.shape[2])
    columns, right = resize_positions(box[:, 1], box[:, 3], size[1], x.shape[3])
    dtype = accumulation_dtype(x.dtype)
    down, right = down.to(dtype).view(-1, 1, size[0], 1), right.to(dtype).view(-1, 1, 1, size[1])
    background = _background(x, fill)

    def between(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
        return torch.where(weight == 0, a, a + weight * (b - a))  # not even a NaN of the other where it weighs nothing

    def at(i: int) -> Tensor:
        a, b = (_gather(x, rows + i, columns + j, background).to(dtype) for j in (0, 1))
        return between(a, b, right)

    return poison(between(at(0), at(1), down), finite).to(x.dtype)
