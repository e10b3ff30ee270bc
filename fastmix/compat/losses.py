"""torch's cross-entropy on fastmix's kernels, which takes a `SoftTarget` too: change ``torch.nn`` to this module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import functional
from ..targets import SoftTarget

__all__ = ["CrossEntropyLoss"]
# Logits below which torch's hard cross-entropy is faster than ours: see `python -m fastmix bench --op compat`.
FEW = 2**15


class CrossEntropyLoss(nn.CrossEntropyLoss):
    """``torch.nn.CrossEntropyLoss``: the same arguments and values, of labels, probabilities and a `SoftTarget`.

    Args: as of torch's class. Logits are (N, J) or (N, J, ...) floats; targets (N, ...) int64, floats like the logits,
    or a `SoftTarget`. Left to torch: single samples, probabilities with class weights (which torch divides by N),
    targets that need a gradient, and hard labels of few logits, for which its own kernel is the fastest there is.
    Where every label is ignored the mean is 0, torch's is NaN.
    Source: torch.nn.CrossEntropyLoss; K-image mixing Eq. 8.
    """

    def forward(self, input: Tensor, target: Tensor | SoftTarget) -> Tensor:
        if isinstance(target, Tensor) and self._is_for_torch(input, target):
            return super().forward(input, target)
        return functional.soft_cross_entropy(
            input, target, class_weight=self.weight, label_smoothing=self.label_smoothing,
            ignore_index=self.ignore_index, reduction=self.reduction)

    def _is_for_torch(self, logits: Tensor, target: Tensor) -> bool:
        if logits.ndim < 2 or target.requires_grad:
            return True
        if target.is_floating_point():
            return self.weight is not None
        few = logits.numel() < FEW and self.weight is None and self.label_smoothing == 0
        return few or target.dtype != torch.int64
