"""ISDA in whole-tensor operations, for torch.compile.

`fastmix.reference` goes through the classes (or samples) one by one, which Dynamo unrolls: minutes of compilation for a
hundred copies of one body, which nobody would compile. These are the same functions over a table of present classes, as
one would write them for speed; their results are compared with the reference like every provider's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastmix.reference.covariance import present_classes


def isda_logits(logits: Tensor, weight: Tensor, cov: Tensor, labels: Tensor, strength: float) -> Tensor:
    """logits (N, J) or (N, J, P), labels (N) or (N, P), cov (J, A, A) or (J, A)."""
    classes = weight.shape[0]
    y = labels.reshape(-1)
    slots = min(y.numel(), classes)
    ids = present_classes(y, torch.ones_like(y, dtype=torch.bool), classes, slots)
    v = weight.unsqueeze(0) - weight[ids].unsqueeze(1)
    sigma = cov[ids]
    table = (torch.bmm(v, sigma) * v).sum(2) if cov.ndim == 3 else (v.square() * sigma.unsqueeze(1)).sum(2)
    slot = torch.zeros(classes, dtype=torch.int64, device=y.device)
    slot = slot.scatter(0, ids, torch.arange(slots, device=y.device))
    added = 0.5 * strength * table[slot[y]]
    if logits.ndim == 3:
        added = added.view(*labels.shape, classes).transpose(1, 2)
    return logits + added


def covariance_update_(count: Tensor, mean: Tensor, cov: Tensor, features: Tensor, labels: Tensor,
                       ignore_index: int) -> None:
    """Diagonal: count (J), mean and cov (J, A), features (N, A, ...), labels (N, ...)."""
    x, y = features.movedim(1, -1).reshape(-1, features.shape[1]), labels.reshape(-1)
    member = (y.unsqueeze(0) == torch.arange(len(count), device=y.device).unsqueeze(1)) & (y != ignore_index)
    member = member.to(x.dtype)
    m, n = member.sum(1, keepdim=True), count.unsqueeze(1).to(x.dtype)
    batch_mean = member @ x / m.clamp(min=1)
    batch_cov = member @ (x - batch_mean[y.clamp(0, len(count) - 1)]).square() / m.clamp(min=1)
    share = m / (n + m).clamp(min=1)
    delta = mean - batch_mean
    cov.copy_((1 - share) * cov + share * batch_cov + share * (1 - share) * delta.square())
    mean.copy_(mean - share * delta)
    count.add_(m.squeeze(1).to(count.dtype))
