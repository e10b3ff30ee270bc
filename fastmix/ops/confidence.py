"""Soft Augmentation's curves: from what is seen of an image to its confidence, from two windows to a pair's weight.

Plain PyTorch on a few numbers an image: there is nothing for a kernel to fuse. Source: Soft Augmentation Eq. 7, 9, 10.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import checks as check


def visibility(shift: Tensor, size: tuple[int, int]) -> Tensor:
    """The share of an image that a window of its own size still shows: ``(H - |ty|) (W - |tx|) / (H W)``.

    Args:
        shift: (N, 2) int64 or int32, whole pixels (down, right). size: (H, W).
    Returns: (N,) float32 in [0, 1], 0 where a shift leaves the image.
    Source: Soft Augmentation Listing 1, v of Eq. 7.
    """
    check.ndim("visibility", "shift", shift, 2)
    check.shape("visibility", "shift", shift, (shift.shape[0], 2), "(N, 2)")
    check.dtype("visibility", "shift", shift, torch.int64, torch.int32)
    size = check.pair("visibility", "size", size, "(height, width)")
    down, right = shift.abs().unbind(1)
    shown = [(float(side) - moved).clamp_min(0).to(torch.float32) / side
             for side, moved in zip(size, (down, right), strict=True)]
    return shown[0] * shown[1]


def confidence(v: Tensor, k: float, chance: float) -> Tensor:
    """``p = 1 - (1 - chance) (1 - v)^k``: 1 where all is visible, chance where nothing is.

    Args: v: visibilities in [0, 1], float of any shape. k: > 0, the curve's power. chance: in [0, 1], 1 / J for J
        classes.
    Returns: like v.
    Source: Soft Augmentation Eq. 7.
    """
    op = "confidence"
    check.tensor(op, "v", v)
    check.dtype(op, "v", v, *check.FLOATS)
    k, chance = check.positive(op, "k", k), check.share(op, "chance", chance)
    return 1 - (1 - chance) * (1 - v) ** k


def pair_iou(box_a: Tensor, box_b: Tensor) -> Tensor:
    """Intersection over union of two windows of the same image.

    Args: box_a, box_b: (N, 4) (top, left, height, width), any numbers; sides below 0 count as 0.
    Returns: (N,) float32 (float64 for float64) in [0, 1]; 0 where the union is empty.
    Source: Soft Augmentation Sec. 4.4, IoU of Eq. 9.
    """
    check.ndim("pair_iou", "box_a", box_a, 2)
    check.shape("pair_iou", "box_a", box_a, (box_a.shape[0], 4), "(N, 4)")
    check.shape("pair_iou", "box_b", box_b, box_a.shape, "(N, 4) like box_a")
    check.same_device("pair_iou", box_a=box_a, box_b=box_b)
    dtype = torch.float64 if torch.float64 in (box_a.dtype, box_b.dtype) else torch.float32
    a, b = box_a.to(dtype), box_b.to(dtype)
    sides_a, sides_b = a[:, 2:].clamp_min(0), b[:, 2:].clamp_min(0)
    common = torch.minimum(a[:, :2] + sides_a, b[:, :2] + sides_b) - torch.maximum(a[:, :2], b[:, :2])
    shared = common.clamp_min(0).prod(1)
    union = sides_a.prod(1) + sides_b.prod(1) - shared
    return torch.where(union > 0, shared / union, 0.0).clamp(0, 1)


def pair_weight(iou: Tensor, k: float = 4, chance: float = 0.0, variant: str = "SA1",
                normalise: bool = True) -> Tensor:
    """The weight of a pair of crops of one image in a self-supervised loss.

    Args:
        iou: (N,) of `pair_iou`. k: > 0. chance: the least weight, before normalisation.
        variant: "SA1" ``1 - (1 - chance) (1 - iou)^k``, little for pairs that share little; "SA2"
            ``1 - (1 - chance) iou^k``, little for pairs that share much.
        normalise: divide by the mean, so that the batch's weights have mean 1 and the learning rate keeps its meaning
            (B.4). Weights that are all 0 stay 0.
    Source: Soft Augmentation Eq. 9 and 10; k: Tables 4 and 9.
    """
    check.choice("pair_weight", "variant", variant, ("SA1", "SA2"))
    k, chance = check.positive("pair_weight", "k", k), check.share("pair_weight", "chance", chance)
    normalise = check.flag("pair_weight", "normalise", normalise)
    check.ndim("pair_weight", "iou", iou, 1)
    check.dtype("pair_weight", "iou", iou, *check.FLOATS)
    weight = 1 - (1 - chance) * ((1 - iou) if variant == "SA1" else iou) ** k
    if not normalise or weight.shape[0] == 0:
        return weight
    mean = weight.mean()
    return torch.where(mean > 0, weight / mean, weight)
