"""Clips and label maps on the operators for images: what lies above their last two dimensions is planes of one image.

A clip (N, C, T, H, W) is an image of C * T planes, so that every frame gets the same boxes, cells or window. A map of
labels or a mask (N, ..., H, W) of whole numbers is moved as the images are: pasted, cropped, never blended.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import checks as check

MASKS = (torch.int64, torch.int32, torch.uint8, torch.bool)
# A float type of the same size holds the bits of a whole number; the small ones go through int16.
_STORED_AS = {torch.int64: torch.float64, torch.int32: torch.float32}
# What lies outside of a mask that is moved, where nothing else is said: the ignored label; 0 where there is no sign.
OUTSIDE = {torch.int64: -100, torch.int32: -100, torch.uint8: 0, torch.bool: 0}


def is_clip(x: object) -> bool:
    return isinstance(x, Tensor) and x.ndim == 5 and x.layout is torch.strided and not x.is_nested


def is_mask(x: object) -> bool:
    """Whether x is a label map or mask rather than images."""
    return isinstance(x, Tensor) and x.dtype in MASKS


def not_a_mask(op: str, x: Tensor) -> None:
    """TypeError for whole numbers where pixels are blended."""
    if is_mask(x):
        raise TypeError(f"{op}: x has dtype {str(x.dtype).removeprefix('torch.')}, want float32 or another float: "
                        "whole numbers cannot be blended; plan.target(x) mixes a label map")


def check_mask(op: str, x: Tensor) -> None:
    check.tensor(op, "x", x)
    check.dtype(op, "x", x, *MASKS)
    if x.ndim < 3:
        raise ValueError(f"{op}: x has shape {tuple(x.shape)}, want a label map or mask (N, ..., H, W)")


def mask_fill(op: str, name: str, value: object, x: Tensor) -> int:
    """What lies outside of a mask x: a whole number that its dtype holds. 2.0 is one, True is one of a bool mask."""
    dtype = str(x.dtype).removeprefix("torch.")
    want = f"a whole number for a mask of dtype {dtype}"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, (bool, np.bool_)) and x.dtype == torch.bool:
        value = int(value)
    whole = check.integer(op, name, value, want)
    low, high = (0, 1) if x.dtype == torch.bool else (torch.iinfo(x.dtype).min, torch.iinfo(x.dtype).max)
    if not low <= whole <= high:
        raise ValueError(f"{op}: {name} is {whole}, want {want}, in [{low}, {high}]")
    return whole


def on_frames(move: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """move, which takes images (N, C * T, H, W), on a clip (N, C, T, H, W); the result lies in memory as the clip."""
    moved = move(x.flatten(1, 2)).unflatten(1, x.shape[1:3])
    if not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last_3d):
        return moved.contiguous(memory_format=torch.channels_last_3d)
    return moved


def on_bits(move: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """move, which copies pixels of float images (N, P, H, W), on a mask (N, ..., H, W), whatever its bits mean."""
    shape = x.shape
    x = x.contiguous().view(shape[0], math.prod(shape[1:-2]), *shape[-2:])
    stored = _STORED_AS.get(x.dtype)
    if stored is not None:
        return move(x.view(stored)).view(x.dtype).view(shape)
    return move(x.to(torch.int16).view(torch.float16)).view(torch.int16).to(x.dtype).view(shape)


def gathered(x: Tensor, rows: Tensor, columns: Tensor, outside: Any) -> Tensor:
    """Pixel (i, j) of mask n (N, ..., H, W) is that at (rows[n, i], columns[n, j]), ``outside`` beyond the image.

    Args: rows: (N, h) int64. columns: (N, w) int64.
    """
    height, width = x.shape[-2:]
    inside = ((rows >= 0) & (rows < height)).unsqueeze(2) & ((columns >= 0) & (columns < width)).unsqueeze(1)
    n, h, w = inside.shape
    place = rows.clamp(0, max(height - 1, 0)).unsqueeze(2) * width + columns.clamp(0, max(width - 1, 0)).unsqueeze(1)
    if height == 0 or width == 0:
        return torch.full((*x.shape[:-2], h, w), outside, dtype=x.dtype, device=x.device)
    planes = x.reshape(n, math.prod(x.shape[1:-2]), height * width)
    found = planes.gather(2, place.view(n, 1, h * w).expand(-1, planes.shape[1], -1))
    kept = torch.where(inside.view(n, 1, h * w), found, torch.full((), outside, dtype=x.dtype, device=x.device))
    return kept.view(*x.shape[:-2], h, w)
