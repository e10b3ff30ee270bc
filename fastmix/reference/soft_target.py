"""Losses against soft targets: cross-entropy, KL divergence, binary cross-entropy.

K-image mixing Eq. 8, Soft Augmentation Eq. 12-15, 17 and 18, R-Mix's multi-label BCE (Sec. 3).
The (N, J) target is not built.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..targets import SoftTarget
from ._common import accumulation_dtype, inside, poison


def _weighted(weight: Tensor, value: Tensor) -> Tensor:
    # A weight of 0 means the class does not count, even where its log probability is -inf.
    return torch.where(weight == 0, 0.0, weight * value)


def _reduce(rows: Tensor, counted: Tensor, sample_weight: Tensor | None, reduction: str) -> Tensor:
    rows = rows if sample_weight is None else rows * sample_weight.to(rows.dtype)
    rows = torch.where(counted, rows, 0.0)
    if reduction == "none":
        return rows
    if reduction == "sum":
        return rows.sum()
    return rows.sum() / counted.sum().clamp(min=1)


def _entropy(target: SoftTarget, classes: int) -> Tensor:
    """``sum_j t_j log t_j`` of every row, repeated classes added up first."""
    index, weight, base = target
    same = index.unsqueeze(2) == index.unsqueeze(1)
    total = (same * weight.unsqueeze(1)).sum(2) + base.unsqueeze(1)
    first = ~torch.tril(same, -1).any(2)
    named = torch.where(first, torch.xlogy(total, total), 0.0).sum(1)
    return named + (classes - first.sum(1)) * torch.xlogy(base, base)


def soft_cross_entropy(logits: Tensor, target: SoftTarget | Tensor, *, sample_weight: Tensor | None = None,
                       label_smoothing: float = 0.0, ignore_index: int = -100, reduction: str = "mean",
                       kl: bool = False) -> Tensor:
    """Cross-entropy, or with ``kl`` the divergence: arguments as `functional.soft_cross_entropy`."""
    acc = accumulation_dtype(logits.dtype)
    classes = logits.shape[1]
    log_prob = torch.log_softmax(logits.to(acc), 1)
    if isinstance(target, Tensor):
        t = target.to(acc) * (1 - label_smoothing) + label_smoothing / classes
        rows = -_weighted(t, log_prob).sum(1)
        if kl:
            rows = rows + torch.xlogy(t, t).sum(1)
        return _reduce(rows, torch.ones_like(rows, dtype=torch.bool), sample_weight, reduction)
    counted = target.index[:, 0] != ignore_index
    base = torch.zeros_like(log_prob[:, 0]) if target.base is None else target.base.to(acc)
    base = base * (1 - label_smoothing) + label_smoothing / classes
    weight = target.weight.to(acc) * (1 - label_smoothing)
    index, valid = inside(target.index, classes)
    rows = -_weighted(base.unsqueeze(1), log_prob).sum(1) - _weighted(weight, log_prob.gather(1, index)).sum(1)
    if kl:
        rows = rows + _entropy(SoftTarget(index, weight, base), classes)
    return _reduce(poison(rows, valid), counted, sample_weight, reduction)


def soft_bce(logits: Tensor, target: SoftTarget | Tensor, *, reduction: str = "mean") -> Tensor:
    """``-t log sigmoid(z) - (1 - t) log sigmoid(-z)``, summed over classes; "mean" over N * J."""
    acc = accumulation_dtype(logits.dtype)
    z = logits.to(acc)
    rows = torch.nn.functional.softplus(z).sum(1)
    if isinstance(target, Tensor):
        rows = rows - _weighted(target.to(acc), z).sum(1)
    else:
        index, valid = inside(target.index, logits.shape[1])
        rows = rows - _weighted(target.weight.to(acc), z.gather(1, index)).sum(1)
        if target.base is not None:
            rows = rows - _weighted(target.base.to(acc).unsqueeze(1), z).sum(1)
        rows = poison(rows, valid)
    if reduction == "none":
        return rows
    return rows.sum() if reduction == "sum" else rows.sum() / max(logits.numel(), 1)
