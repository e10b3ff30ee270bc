"""The losses as modules; arguments as in :mod:`fastmix.functional`. FocalLoss is here alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .. import functional
from ..ops import checks as check
from ..ops.dispatch import must_check_values
from ..ops.soft_target import WEIGHTINGS
from ..targets import IGNORED, SoftTarget


class _Loss(nn.Module):
    """What the losses share. class_weight: (J,) float or None, a buffer, so that it moves with the module."""

    class_weight: Tensor | None

    def __init__(self, class_weight: Tensor | None, ignore_index: int, reduction: str) -> None:
        super().__init__()
        name = type(self).__name__
        check.choice(name, "reduction", reduction, ("mean", "sum", "none"))
        if class_weight is not None:
            check.ndim(name, "class_weight", class_weight, 1)
            check.dtype(name, "class_weight", class_weight, *check.FLOATS)
            check.no_grad_needed(name, "class_weight", class_weight)
        self.register_buffer("class_weight", class_weight, persistent=False)
        self.ignore_index, self.reduction = check.integer(name, "ignore_index", ignore_index), reduction


class SoftCrossEntropy(_Loss):
    """`functional.soft_cross_entropy` as a module: ``criterion(logits, target)``.

    Args:
        class_weight: (J,) float, c. The mean of labels then divides by the sum of their class weights, that of soft
            targets by the number of rows, as in torch. None: 1.
        label_smoothing: eps in [0, 1]; the target becomes ``(1 - eps) t + eps / J``.
        ignore_index: the label that counts nothing, in any slot of a target; a row (pixel) of such slots has loss 0,
            gradient 0, and is not counted.
        reduction: "mean" over the rows (pixels) that count, "sum" or "none".
    Source: K-image mixing Eq. 8.
    """

    def __init__(self, *, class_weight: Tensor | None = None, label_smoothing: float = 0.0, ignore_index: int = IGNORED,
                 reduction: str = "mean") -> None:
        super().__init__(class_weight, ignore_index, reduction)
        self.label_smoothing = check.share("SoftCrossEntropy", "label_smoothing", label_smoothing)

    def forward(self, logits: Tensor, target: SoftTarget | Tensor, sample_weight: Tensor | None = None) -> Tensor:
        return functional.soft_cross_entropy(logits, target, sample_weight=sample_weight,
                                             class_weight=self.class_weight, label_smoothing=self.label_smoothing,
                                             ignore_index=self.ignore_index, reduction=self.reduction)

    if TYPE_CHECKING:  # torch types the call of a module as (...) -> Any
        def __call__(self, logits: Tensor, target: SoftTarget | Tensor,
                     sample_weight: Tensor | None = None) -> Tensor: ...


class SoftTargetKL(_Loss):
    """`functional.soft_target_kl` as a module: ``criterion(logits, target)``, or with labels and their confidence.

    Args:
        weighting: "sample" ``mean_n p_n KL_n``, "none" ``mean_n KL_n``, "weight" ``mean_n -p_n log softmax_y``, or
            "batch_mean" ``mean(p) * mean(KL)``, as the published listing has it; p is the confidence.
        class_weight: (J,) float, c. The mean of labels then divides by the sum of their class weights, that of soft
            targets by the number of rows, as in torch. None: 1.
        ignore_index: the label that counts nothing, in any slot of a target; a row (pixel) of such slots has loss 0,
            gradient 0, and is not counted.
        reduction: "mean" over the rows (pixels) that count, "sum" or "none".
    Source: Soft Augmentation Eq. 4-6, 15, 17 and 18, Listing 2.
    """

    def __init__(self, *, weighting: str = "sample", class_weight: Tensor | None = None, ignore_index: int = IGNORED,
                 reduction: str = "mean") -> None:
        super().__init__(class_weight, ignore_index, reduction)
        check.choice("SoftTargetKL", "weighting", weighting, WEIGHTINGS)
        self.weighting = weighting

    def forward(self, logits: Tensor, target: SoftTarget | Tensor, confidence: Tensor | None = None) -> Tensor:
        return functional.soft_target_kl(logits, target, confidence, weighting=self.weighting,
                                         class_weight=self.class_weight, ignore_index=self.ignore_index,
                                         reduction=self.reduction)

    if TYPE_CHECKING:  # torch types the call of a module as (...) -> Any
        def __call__(self, logits: Tensor, target: SoftTarget | Tensor, confidence: Tensor | None = None) -> Tensor: ...


class SoftBCE(_Loss):
    """`functional.soft_bce` as a module: ``criterion(logits, target)``.

    Args:
        class_weight: (J,) float, the factors of the classes' losses; None: 1.
        ignore_index: the label that counts nothing, in any slot of a target; the other slots count in their shares.
        reduction: "mean" over N * J (of the rows that count), "sum", or "none": the (N,) sums over the classes.
    Source: R-Mix Sec. 3, after Eq. 7.
    """

    def __init__(self, *, class_weight: Tensor | None = None, ignore_index: int = IGNORED,
                 reduction: str = "mean") -> None:
        super().__init__(class_weight, ignore_index, reduction)

    def forward(self, logits: Tensor, target: SoftTarget | Tensor, sample_weight: Tensor | None = None) -> Tensor:
        return functional.soft_bce(logits, target, sample_weight=sample_weight, class_weight=self.class_weight,
                                   ignore_index=self.ignore_index, reduction=self.reduction)

    if TYPE_CHECKING:  # torch types the call of a module as (...) -> Any
        def __call__(self, logits: Tensor, target: SoftTarget | Tensor,
                     sample_weight: Tensor | None = None) -> Tensor: ...


class FocalLoss(_Loss):
    """``-c_y (1 - p_y)^gamma log p_y`` with p = softmax(logits): samples that are right already count little.

    ``criterion(logits, label)``: logits (N, J) float, or (N, J, ...) of pixels; label (N,) or (N, ...) int64. Returns
    float32 (float64 for float64), 0-d, or like the labels with reduction "none"; the mean is over the labels that are
    not ignored (0 of them: 0), weighted by their class weights as in torch. In plain torch: a baseline, not an operator
    of ours. A label outside [0, J) is an IndexError on a CPU, NaN on a GPU.

    Args:
        gamma: >= 0; 0 is cross-entropy.
        class_weight: (J,) float, c, the paper's alpha; None: 1.
        ignore_index: the label that counts nothing.
        reduction: "mean", "sum" or "none".
    Source: focal loss (Lin et al. 2017, Eq. 4, 5); a baseline of Soft Augmentation Table 1, which calls gamma alpha.
    """

    def __init__(self, gamma: float = 2.0, *, class_weight: Tensor | None = None, ignore_index: int = IGNORED,
                 reduction: str = "mean") -> None:
        super().__init__(class_weight, ignore_index, reduction)
        self.gamma = check.not_negative("FocalLoss", "gamma", gamma)

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        op = "FocalLoss"
        check.tensor(op, "logits", logits)
        check.dtype(op, "logits", logits, *check.FLOATS)
        if logits.ndim < 2:
            raise ValueError(f"{op}: logits has shape {tuple(logits.shape)}, want (N, J), or (N, J, ...) of pixels")
        check.shape(op, "label", label, (logits.shape[0], *logits.shape[2:]), "one for each row or pixel of logits")
        check.dtype(op, "label", label, torch.int64)
        check.same_device(op, logits=logits, label=label, class_weight=self.class_weight)
        classes = logits.shape[1]
        if classes < 1:
            raise ValueError(f"{op}: logits has shape {tuple(logits.shape)}, want at least one class")
        if self.class_weight is not None:
            check.shape(op, "class_weight", self.class_weight, (classes,), "(J,)")
        counts = label != self.ignore_index
        if must_check_values("reference", logits):
            check.rows_in_range(op, "label", label.reshape(-1, 1), 0, classes, self.ignore_index)
        valid = (label >= 0) & (label < classes)
        safe = torch.where(counts & valid, label, 0)
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        log_p = logits.to(dtype).log_softmax(1).gather(1, safe.unsqueeze(1)).squeeze(1)
        # 1 - p without cancellation. Kept above 0, where the derivative of a power below 1 is infinite.
        missing = (-torch.expm1(log_p)).clamp_min(torch.finfo(dtype).tiny)
        weight = torch.ones_like(log_p) if self.class_weight is None else self.class_weight.to(dtype)[safe]
        loss = torch.where(valid, -(missing**self.gamma) * log_p * weight, float("nan"))
        loss = torch.where(counts, loss, 0.0)
        if self.reduction == "none":
            return loss
        total = torch.where(counts, weight, 0.0).sum()
        return loss.sum() if self.reduction == "sum" else loss.sum() / torch.where(total == 0, 1.0, total)

    if TYPE_CHECKING:  # torch types the call of a module as (...) -> Any
        def __call__(self, logits: Tensor, label: Tensor) -> Tensor: ...
