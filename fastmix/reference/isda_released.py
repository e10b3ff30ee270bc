"""ISDA as the released algorithm computes it, N x J x A and J x A x A tensors and all: for the bench alone.

Every sample's differences ``w_j - w_y`` and its own copy of its covariance are built, the quadratic form is the
diagonal of a J x J product, and the update forms the batch covariance of all J classes at once.
"""

from __future__ import annotations

import torch
from torch import Tensor


def isda_logits(logits: Tensor, weight: Tensor, cov: Tensor, labels: Tensor, strength: float) -> Tensor:
    """logits (N, J), cov (J, A, A) or (J, A). Differentiable in logits and weight."""
    n, j = logits.shape
    own = weight[labels].unsqueeze(1)
    difference = weight.unsqueeze(0).expand(n, j, weight.shape[1]) - own
    sigma = cov[labels]
    if cov.ndim == 3:
        square = torch.bmm(torch.bmm(difference, sigma), difference.transpose(1, 2))
        form = (square * torch.eye(j, dtype=square.dtype, device=square.device)).sum(2)
    else:
        form = (difference.square() * sigma.unsqueeze(1)).sum(2)
    return logits + 0.5 * strength * form


def isda_logits_pixels(logits: Tensor, weight: Tensor, cov: Tensor, labels: Tensor, strength: float) -> Tensor:
    """logits (N, J, h, w), labels (N, h, w), cov (J, A); ignored pixels are not handled. M x J x A with M pixels."""
    n, j, h, w = logits.shape
    flat = isda_logits(logits.permute(0, 2, 3, 1).reshape(-1, j), weight, cov, labels.reshape(-1), strength)
    return flat.view(n, h, w, j).permute(0, 3, 1, 2)


def covariance_update_(count: Tensor, mean: Tensor, cov: Tensor, features: Tensor, labels: Tensor) -> None:
    """count (J), mean (J, A), cov (J, A, A), features (N, A)."""
    n, a = features.shape
    j = count.shape[0]
    onehot = torch.zeros(n, j, dtype=features.dtype, device=features.device).scatter_(1, labels.unsqueeze(1), 1)
    spread = onehot.unsqueeze(2).expand(n, j, a)
    masked = features.unsqueeze(1).expand(n, j, a) * spread
    amount = spread.sum(0).clamp(min=1)
    batch_mean = masked.sum(0) / amount
    centred = (masked - batch_mean * spread).permute(1, 2, 0)
    batch_cov = torch.bmm(centred, centred.transpose(1, 2)) / amount.unsqueeze(2).expand(j, a, a)
    m = onehot.sum(0)
    share = (m / (m + count)).nan_to_num(0.0)
    by_matrix = share.view(j, 1, 1).expand(j, a, a)
    delta = (mean - batch_mean).unsqueeze(2)
    shift = by_matrix * (1 - by_matrix) * torch.bmm(delta, delta.transpose(1, 2))
    cov.copy_(cov * (1 - by_matrix) + batch_cov * by_matrix + shift)
    mean.copy_(mean * (1 - share.unsqueeze(1)) + batch_mean * share.unsqueeze(1))
    count.add_(m.to(count.dtype))


def isda_consistency(logits: Tensor, weight: Tensor, cov: Tensor, strength: float) -> Tensor:
    """Eq. 15 with its N x J x J exponents written out; cov (J, A, A). Mean over the batch."""
    p = torch.softmax(logits.detach(), 1)
    pseudo = logits.detach().argmax(1)
    gram = torch.bmm(torch.bmm(weight.expand(len(pseudo), *weight.shape), cov[pseudo]),
                     weight.T.expand(len(pseudo), *weight.T.shape))
    norm = gram.diagonal(dim1=1, dim2=2)
    q = norm.unsqueeze(2) + norm.unsqueeze(1) - 2 * gram
    lse = torch.logsumexp(logits.unsqueeze(2) + 0.5 * strength * q, 1)
    return (p * (lse - logits)).sum(1).mean()
