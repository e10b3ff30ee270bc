"""The losses as modules; arguments as in :mod:`fastmix.functional`."""

from __future__ import annotations

from torch import Tensor, nn

from . import functional
from .targets import SoftTarget


class SoftCrossEntropy(nn.Module):
    """`functional.soft_cross_entropy` as a module: ``criterion(logits, target)``."""

    def __init__(self, *, label_smoothing: float = 0.0, ignore_index: int = -100, reduction: str = "mean") -> None:
        super().__init__()
        self.label_smoothing, self.ignore_index, self.reduction = label_smoothing, ignore_index, reduction

    def forward(self, logits: Tensor, target: SoftTarget | Tensor, sample_weight: Tensor | None = None) -> Tensor:
        return functional.soft_cross_entropy(logits, target, sample_weight=sample_weight,
                                             label_smoothing=self.label_smoothing, ignore_index=self.ignore_index,
                                             reduction=self.reduction)


class SoftTargetKL(nn.Module):
    """`functional.soft_target_kl` as a module: ``criterion(logits, label, confidence)``."""

    def __init__(self, *, weighting: str = "sample", reduction: str = "mean") -> None:
        super().__init__()
        self.weighting, self.reduction = weighting, reduction

    def forward(self, logits: Tensor, label: Tensor, confidence: Tensor) -> Tensor:
        return functional.soft_target_kl(logits, label, confidence, weighting=self.weighting,
                                         reduction=self.reduction)


class SoftBCE(nn.Module):
    """`functional.soft_bce` as a module: ``criterion(logits, target)``."""

    def __init__(self, *, reduction: str = "mean") -> None:
        super().__init__()
        self.reduction = reduction

    def forward(self, logits: Tensor, target: SoftTarget | Tensor) -> Tensor:
        return functional.soft_bce(logits, target, reduction=self.reduction)
