"""torch's cross-entropy on fastmix's kernels, which takes a `SoftTarget` too: change ``torch.nn`` to this module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import functional
from ..targets import SoftTarget

__all__ = ["CrossEntropyLoss"]


class CrossEntropyLoss(nn.CrossEntropyLoss):
    """``torch.nn.CrossEntropyLoss``: the same arguments and values, of labels, probabilities and a `SoftTarget`.

    Args: as of torch's class. Logits are (N, J) or (N, J, ...) floats; targets (N, ...) int64, floats like the logits,
    or a `SoftTarget`. Single samples, probabilities with class weights (which torch divides by N) and targets that
    need a gradient are left to torch.
    Source: torch.nn.CrossEntropyLoss; K-image mixing Eq. 8.
    """

    def forward(self, input: Tensor, target: Tensor | SoftTarget) -> Tensor:
        probabilities = isinstance(target, Tensor) and target.is_floating_point()
        if isinstance(target, Tensor) and (
                input.ndim < 2 or target.requires_grad or (probabilities and self.weight is not None)
                or (not probabilities and target.dtype != torch.int64)):
            return super().forward(input, target)
        return functional.soft_cross_entropy(
            input, target, class_weight=self.weight, label_smoothing=self.label_smoothing,
            ignore_index=self.ignore_index, reduction=self.reduction)
