"""The losses as modules; arguments as in :mod:`fastmix.functional`. FocalLoss is here alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import functional
from ..ops import checks as check
from ..ops.dispatch import must_check_values
from ..targets import SoftTarget


class SoftCrossEntropy(nn.Module):
    """`functional.soft_cross_entropy` as a module: ``criterion(logits, target)``.

    Source: K-image mixing Eq. 8.
    """

    def __init__(self, *, label_smoothing: float = 0.0, ignore_index: int = -100, reduction: str = "mean") -> None:
        super().__init__()
        self.label_smoothing, self.ignore_index, self.reduction = label_smoothing, ignore_index, reduction

    def forward(self, logits: Tensor, target: SoftTarget | Tensor, sample_weight: Tensor | None = None) -> Tensor:
        return functional.soft_cross_entropy(logits, target, sample_weight=sample_weight,
                                             label_smoothing=self.label_smoothing, ignore_index=self.ignore_index,
                                             reduction=self.reduction)


class SoftTargetKL(nn.Module):
    """`functional.soft_target_kl` as a module: ``criterion(logits, target)``, or with labels and their confidence.

    Source: Soft Augmentation Eq. 4-6, 15, 17 and 18, Listing 2.
    """

    def __init__(self, *, weighting: str = "sample", reduction: str = "mean") -> None:
        super().__init__()
        self.weighting, self.reduction = weighting, reduction

    def forward(self, logits: Tensor, target: SoftTarget | Tensor, confidence: Tensor | None = None) -> Tensor:
        return functional.soft_target_kl(logits, target, confidence, weighting=self.weighting,
                                         reduction=self.reduction)


class SoftBCE(nn.Module):
    """`functional.soft_bce` as a module: ``criterion(logits, target)``.

    Source: R-Mix Sec. 3, after Eq. 7.
    """

    def __init__(self, *, reduction: str = "mean") -> None:
        super().__init__()
        self.reduction = reduction

    def forward(self, logits: Tensor, target: SoftTarget | Tensor) -> Tensor:
        return functional.soft_bce(logits, target, reduction=self.reduction)


class FocalLoss(nn.Module):
    """``-(1 - p_y)^gamma log p_y`` with p = softmax(logits): samples that are right already count little.

    ``criterion(logits, label)``: logits (N, J) float, label (N,) int64. Returns float32 (float64 for float64), 0-d, or
    (N,) with reduction "none"; the mean of no rows is 0. In plain torch: a baseline, not an operator of ours.
    A label outside [0, J) is an IndexError on a CPU, a row of NaN on a GPU.

    Args: gamma: >= 0; 0 is cross-entropy. reduction: "mean", "sum" or "none".
    Source: focal loss (Lin et al. 2017, Eq. 4, without its class weights); a baseline of Soft Augmentation Table 1,
        which calls gamma alpha.
    """

    def __init__(self, gamma: float = 2.0, *, reduction: str = "mean") -> None:
        super().__init__()
        if not gamma >= 0:
            raise ValueError(f"FocalLoss: gamma is {gamma}, want a number >= 0")
        check.choice("FocalLoss", "reduction", reduction, ("mean", "sum", "none"))
        self.gamma, self.reduction = gamma, reduction

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        check.ndim("FocalLoss", "logits", logits, 2)
        check.shape("FocalLoss", "label", label, logits.shape[:1], "(N,)")
        check.dtype("FocalLoss", "label", label, torch.int64)
        check.dtype("FocalLoss", "logits", logits, *check.FLOATS)
        check.same_device("FocalLoss", logits=logits, label=label)
        classes = logits.shape[1]
        if must_check_values("reference", logits):
            check.rows_in_range("FocalLoss", "label", label, 0, classes)
        valid = (label >= 0) & (label < classes)
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        log_p = logits.to(dtype).log_softmax(1).gather(1, torch.where(valid, label, 0).unsqueeze(1)).squeeze(1)
        # 1 - p without cancellation. Kept above 0, where the derivative of a power below 1 is infinite.
        missing = (-torch.expm1(log_p)).clamp_min(torch.finfo(dtype).tiny)
        loss = torch.where(valid, -(missing**self.gamma) * log_p, float("nan"))
        if self.reduction == "none":
            return loss
        return loss.sum() if self.reduction == "sum" else loss.sum() / max(loss.shape[0], 1)
