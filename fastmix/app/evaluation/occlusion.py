"""Images with a part hidden: a square of the mean colour somewhere on them (Soft Augmentation Sec. 4.3.3, Fig. 5)."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from ...mixers.plans import CutoutPlan
from ...ops import checks as check

SHARES = (0.0, 0.2, 0.4, 0.6, 0.8)


def patch_size(share: float, size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the patch that hides `share` of an image of size (H, W): its shape, scaled and rounded."""
    return tuple(round(side * share ** 0.5) for side in size)  # type: ignore[return-value]


def occlude(x: Tensor, share: float, generator: Generator | None = None) -> tuple[Tensor, float]:
    """Hides a patch of every image, uniformly placed inside it.

    Args:
        x: normalised images (N, C, H, W); hidden pixels become 0, the mean colour.
        share: of the area, in [0, 1].
    Returns: the images, and the share that whole pixels make of it.
    Source: Soft Augmentation Sec. 4.3.3, Fig. 4 and 5.
    """
    check.images("occlude", "x", x)
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"occlude: share is {share}, want a value in [0, 1]")
    size = x.shape[2], x.shape[3]
    patch = patch_size(share, size)
    corners = [torch.randint(side - length + 1, x.shape[:1], device=x.device, generator=generator)
               for side, length in zip(size, patch, strict=True)]
    sides = [torch.full_like(corners[0], length) for length in patch]
    boxes = torch.stack([*corners, *sides], 1).to(torch.int32).unsqueeze(1)
    return CutoutPlan(boxes).apply(x), patch[0] * patch[1] / max(1, size[0] * size[1])
