"""Losses against soft targets: cross-entropy, KL divergence, binary cross-entropy.

K-image mixing Eq. 8, Soft Augmentation Eq. 4-6, 12-15, 17 and 18, R-Mix's multi-label BCE (Sec. 3).
Arguments as the operators' schemas; the (N, J) target of `soft_target` is not built.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops.enums import Loss, Reduction, Weighting
from ..targets import SoftTarget
from ._common import accumulation_dtype, inside, poison


def _weighted(weight: Tensor, value: Tensor) -> Tensor:
    # A weight of 0 means the class does not count, even where its log probability is -inf.
    return torch.where(weight == 0, 0.0, weight * value)


def _entropy(index: Tensor, weight: Tensor, base: Tensor, counts: Tensor, of_class: Tensor) -> Tensor:
    """``sum_j c_j t_j log t_j`` of every row, repeated classes added up first; of_class: c (J,)."""
    same = (index.unsqueeze(2) == index.unsqueeze(1)) & counts.unsqueeze(2) & counts.unsqueeze(1)
    total = (same * weight.unsqueeze(1)).sum(2) + base.unsqueeze(1)
    first = counts & ~torch.tril(same, -1).any(2)
    of_named = torch.where(first, of_class[index], 0.0)
    named = (of_named * torch.xlogy(total, total)).sum(1)
    return named + (of_class.sum() - of_named.sum(1)) * torch.xlogy(base, base)


def _rows(logits: Tensor) -> Tensor:
    """(N, J), (N, J, P) -> (rows, J) in the accumulation type."""
    z = logits.to(accumulation_dtype(logits.dtype))
    return z if z.ndim == 2 else z.movedim(1, -1).flatten(0, 1)


def _reduced(rows: Tensor, counted: Tensor, reduction: int, divisor: Tensor) -> Tensor:
    rows = torch.where(counted, rows, 0.0)
    if reduction == Reduction.NONE:
        return rows
    return rows.sum() if reduction == Reduction.SUM else rows.sum() / torch.where(divisor == 0, 1, divisor)


def soft_target(logits: Tensor, index: Tensor, weight: Tensor | None, base: Tensor | None, confidence: Tensor | None,
                sample_weight: Tensor | None, class_weight: Tensor | None, label_smoothing: float, ignore_index: int,
                loss: int, weighting: int, reduction: int) -> Tensor:
    """Against named classes and a common base."""
    z = _rows(logits)
    classes, dtype = z.shape[1], z.dtype
    counts = index != ignore_index
    counted = counts.any(1)
    safe, valid = inside(torch.where(counts, index, 0), classes)
    of_class = z.new_ones(classes) if class_weight is None else class_weight.to(dtype)
    labels = weight is None and confidence is None
    if confidence is not None:
        p = confidence.to(dtype)
        base = (1 - p) / max(classes - 1, 1) if classes > 1 else torch.zeros_like(p)
        weight = (p - base).unsqueeze(1)
    elif weight is None:
        weight = torch.ones_like(index, dtype=dtype)
    weight = weight.to(dtype)
    base = torch.zeros_like(z[:, 0]) if base is None else base.to(dtype)
    total = weight.sum(1)
    sure = total + base if confidence is None else confidence.to(dtype)
    share = SoftTarget(index, weight).counted_share(ignore_index)
    if weighting == Weighting.BY_WEIGHT:
        proportions = weight / torch.where(total == 0, 1.0, total).unsqueeze(1)
        weight = torch.where(total.unsqueeze(1) == 0, 1 / index.shape[1], proportions)
        base = torch.zeros_like(base)
    weight = torch.where(counts, weight, 0.0) * (1 - label_smoothing)
    base = base * (1 - label_smoothing) + share * (label_smoothing / classes)
    named = weight * of_class[safe]
    every = base.unsqueeze(1) * of_class
    if loss == Loss.BCE:
        rows = (of_class * torch.nn.functional.softplus(z)).sum(1) * share
        value = z
    else:
        value = torch.log_softmax(z, 1)
        rows = _entropy(safe, weight, base, counts, of_class) if loss == Loss.KL else torch.zeros_like(total)
    rows = rows - _weighted(every, value).sum(1) - _weighted(named, value.gather(1, safe)).sum(1)
    if sample_weight is not None:
        rows = rows * sample_weight.to(dtype)
    if weighting in (Weighting.BY_SAMPLE, Weighting.BY_WEIGHT):
        rows = rows * sure
    if weighting == Weighting.BY_BATCH_MEAN:
        rows = rows * (torch.where(counted, sure, 0.0).sum() / counted.sum().clamp(min=1))
    divisor = counted.sum()
    if loss == Loss.BCE:
        divisor = divisor * classes
    elif labels and class_weight is not None:
        divisor = torch.where(counted, of_class[safe[:, 0]], 0.0).sum()
    return _reduced(poison(rows, valid), counted, reduction, divisor)


def soft_target_dense(logits: Tensor, target: Tensor, sample_weight: Tensor | None, class_weight: Tensor | None,
                      label_smoothing: float, loss: int, reduction: int) -> Tensor:
    """Against a target like logits."""
    z, t = _rows(logits), _rows(target).to(accumulation_dtype(logits.dtype))
    classes = z.shape[1]
    of_class = z.new_ones(classes) if class_weight is None else class_weight.to(z.dtype)
    if loss == Loss.BCE:
        rows = (of_class * torch.nn.functional.softplus(z)).sum(1) - _weighted(t * of_class, z).sum(1)
    else:
        t = t * (1 - label_smoothing) + label_smoothing / max(classes, 1)
        rows = -_weighted(t * of_class, torch.log_softmax(z, 1)).sum(1)
        if loss == Loss.KL:
            rows = rows + (of_class * torch.xlogy(t, t)).sum(1)
    if sample_weight is not None:
        rows = rows * sample_weight.to(z.dtype)
    counted = torch.ones_like(rows, dtype=torch.bool)
    return _reduced(rows, counted, reduction, counted.sum() * (classes if loss == Loss.BCE else 1))
