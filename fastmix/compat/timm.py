"""timm's Mixup and losses on fastmix's kernels (timm 1.0): change ``timm.data`` and ``timm.loss`` to this module.

Source: timm/data/mixup.py and timm/loss of timm 1.0.31, whose results these reproduce.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import functional
from ..targets import SoftTarget
from ._pairs import blended, is_mixed_here, mixed_labels, partners, shares

try:
    from timm import loss as timm_loss
    from timm.data import mixup as timm_mixup
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"fastmix.compat.timm stands for classes of timm and needs it: {error}; pip install "
                              "timm", name=error.name) from error

__all__ = ["BinaryCrossEntropy", "LabelSmoothingCrossEntropy", "Mixup", "SoftTargetCrossEntropy"]


class Mixup(timm_mixup.Mixup):  # type: ignore[misc]  # timm has no types
    """``timm.data.Mixup``: arguments, ``mixup_enabled`` and draws (NumPy's) are timm's, so a seed mixes the same.

    It differs in three things. Images are written into by CutMix in mode "batch" alone, else the mixed batch is a new
    tensor. A batch may be odd (in mode "pair" the image in the middle stays). With ``sparse=True`` the target is a
    `SoftTarget`, which the losses of this module and of fastmix take, and no (N, J) matrix is built.

    Args: as of timm's class; sparse: False. Images x are (N, C, H, W) floats, targets (N,) integers, or with
    ``multi_label`` (N, J).
    Returns: (images like x, target (N, J) float32 or a `SoftTarget`).
    Source: timm 1.0.31, timm/data/mixup.py; refined data augmentation Eq. 1-2.
    """

    def __init__(self, *args: Any, sparse: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sparse = sparse

    def __call__(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor | SoftTarget]:
        if not isinstance(x, Tensor) or not is_mixed_here(x, 4):
            return super().__call__(x, target)  # type: ignore[no-any-return]
        mixed, own = self._mixed_by_image(x) if self.mode in ("elem", "pair") else self._mixed_alike(x)
        return mixed, self._target(target, own)

    def _box(self, x: Tensor, lam: float) -> tuple[tuple[int, int, int, int], float]:
        """((top, left, height, width), the own share)"""
        (top, bottom, left, right), lam = timm_mixup.cutmix_bbox_and_lam(
            x.shape, lam, ratio_minmax=self.cutmix_minmax, correct_lam=self.correct_lam)
        return (int(top), int(left), int(bottom - top), int(right - left)), float(lam)

    def _mixed_alike(self, x: Tensor) -> tuple[Tensor, float]:
        lam, use_cutmix = self._params_per_batch()
        if lam == 1.0:
            return x, 1.0
        if not use_cutmix:
            return blended(x, "flip", lam), lam
        (top, left, height, width), lam = self._box(x, lam)
        box = x[:, :, top:top + height, left:left + width]
        box.copy_(box.flip(0))  # as timm, in place: nothing outside the box moves
        return x, lam

    def _mixed_by_image(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(the images, own shares (N,) float32)"""
        rows, paired = len(x), self.mode == "pair"
        lam, use_cutmix = self._params_per_elem(rows // 2 if paired else rows)
        blends, boxes = (lam != 1.0) & ~use_cutmix, np.zeros((len(lam), 1, 4), np.int32)
        for n in np.flatnonzero((lam != 1.0) & use_cutmix):
            boxes[n, 0], lam[n] = self._box(x, lam[n])
        if paired:
            lam, blends, boxes = (_mirrored(rows, *each) for each in ((lam, 1), (blends, False), (boxes, 0)))
        own, index = torch.from_numpy(lam.astype(np.float32)), partners(rows, "flip", x.device)
        placed = torch.from_numpy(boxes).to(x.device, non_blocking=True)
        if not blends.any():
            return functional.paste(x, index, placed), own
        # Images with a box are only copied here.
        share = torch.where(torch.from_numpy(blends), own, 1.0).to(x.device, non_blocking=True)
        mixed = functional.blend(x, index, shares(share, rows, x.device))
        boxed = boxes.any((1, 2))
        if x.device.type == "cpu":
            for n, (top, left, height, width) in zip(np.flatnonzero(boxed), boxes[boxed, 0].tolist(), strict=True):
                part = (slice(None), slice(top, top + height), slice(left, left + width))
                mixed[n][part] = x[rows - 1 - n][part]
        elif boxed.any():
            has_box = torch.from_numpy(boxed).to(x.device, non_blocking=True).view(-1, 1, 1, 1)
            mixed = torch.where(has_box, functional.paste(x, index, placed), mixed)
        return mixed, own

    def _target(self, target: Tensor, own: float | Tensor) -> Tensor | SoftTarget:
        if self.multi_label:
            lam = own.to(target.device).unsqueeze(-1) if isinstance(own, Tensor) else own
            return timm_mixup.mixup_target(  # type: ignore[no-any-return]
                target, self.num_classes, lam, self.label_smoothing, True)
        return mixed_labels(target, "flip", own, self.label_smoothing, self.num_classes, self.sparse)


def _mirrored(rows: int, values: Any, middle: Any) -> Any:
    """What the first of each pair has, for both; middle: of the image that an odd batch leaves over."""
    return np.concatenate([values, np.full((rows % 2, *values.shape[1:]), middle, values.dtype), values[::-1]])


class SoftTargetCrossEntropy(timm_loss.SoftTargetCrossEntropy):  # type: ignore[misc]
    """``timm.loss.SoftTargetCrossEntropy``, for dense targets (N, J) and a `SoftTarget`.

    Source: timm 1.0.31, timm/loss/cross_entropy.py.
    """

    def forward(self, x: Tensor, target: Tensor | SoftTarget) -> Tensor:
        if isinstance(target, SoftTarget) or (x.ndim == 2 and not target.requires_grad and target.is_floating_point()):
            return functional.soft_cross_entropy(x, target)
        return super().forward(x, target)  # type: ignore[no-any-return]


class LabelSmoothingCrossEntropy(timm_loss.LabelSmoothingCrossEntropy):  # type: ignore[misc]
    """``timm.loss.LabelSmoothingCrossEntropy(smoothing=0.1)`` of logits (N, J) and labels (N,) int64.

    Source: timm 1.0.31, timm/loss/cross_entropy.py; Szegedy et al. 2016.
    """

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        if x.ndim != 2 or target.dtype != torch.int64:
            return super().forward(x, target)  # type: ignore[no-any-return]
        return functional.soft_cross_entropy(x, target, label_smoothing=self.smoothing)


class BinaryCrossEntropy(timm_loss.BinaryCrossEntropy):  # type: ignore[misc]
    """``timm.loss.BinaryCrossEntropy``, for labels (N,), dense targets like the logits and a `SoftTarget`.

    With ``pos_weight`` or ``target_threshold`` timm's own code serves, of a dense target.
    Source: timm 1.0.31, timm/loss/binary_cross_entropy.py; R-Mix Sec. 3.
    """

    def forward(self, x: Tensor, target: Tensor | SoftTarget) -> Tensor:
        plain = self.pos_weight is None and self.target_threshold is None and x.ndim == 2
        if isinstance(target, Tensor) and target.shape != x.shape and plain:
            target = SoftTarget.from_labels(target.long().view(-1)).smooth(self.smoothing, x.shape[-1])
        if isinstance(target, Tensor):
            plain = plain and not self.smooth_dense and not target.requires_grad
        if not plain or (self.reduction == "none" and not self.sum_classes):
            dense = target.dense(x.shape[-1]).to(x.dtype) if isinstance(target, SoftTarget) else target
            return super().forward(x, dense)  # type: ignore[no-any-return]
        reduction = "none" if self.sum_classes else self.reduction
        loss = functional.soft_bce(x, target, class_weight=self.weight, reduction=reduction)
        return loss.mean() if self.sum_classes else loss
