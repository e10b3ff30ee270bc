"""Implicit semantic data augmentation: augmented logits (ISDA Eq. 7) and the consistency bound (Eq. 15)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops import random
from ._common import accumulation_dtype
from .covariance import present_classes


def quadratic_form(v: Tensor, cov: Tensor, kind: str, c: Tensor) -> Tensor:
    """``v^T Sigma_c v`` for the rows of v (..., A); c holds one class (1): a 0-d index would be read back."""
    if kind == "identity":
        return v.square().sum(-1)
    if kind == "diag":
        return (v.square() * cov[c]).sum(-1)
    return ((v @ (cov if kind == "shared" else cov[c][0])) * v).sum(-1)


def _accumulation(logits: Tensor, weight: Tensor, cov: Tensor) -> tuple[torch.dtype, Tensor, Tensor]:
    dtype = accumulation_dtype(logits.dtype)
    return dtype, weight.to(dtype), cov.to(dtype)


def isda_logits(logits: Tensor, weight: Tensor, cov: Tensor, labels: Tensor, strength: Tensor | float, kind: str,
                ignore_index: int = -100) -> Tensor:
    """logits (N, J) or (N, J, P), labels (N) or (N, P) -> like logits. One row of the table at a time."""
    dtype, weight, cov = _accumulation(logits, weight, cov)
    classes = weight.shape[0]
    y = labels.reshape(-1)
    ignored = y == ignore_index
    valid = (y >= 0) & (y < classes) & ~ignored
    slots = min(y.numel(), classes)
    ids = present_classes(y, valid, classes, slots)
    table = [quadratic_form(weight - weight[c], cov, kind, c) for c in ids.unsqueeze(1).unbind()]
    table = torch.stack(table) if table else weight[:0] @ weight.T
    slot = torch.zeros(classes, dtype=torch.int64, device=y.device).scatter(0, ids, torch.arange(
        slots, device=y.device))
    half = 0.5 * (strength.to(dtype) if isinstance(strength, Tensor) else strength)
    added = half * table[slot[torch.where(valid, y, 0)]]
    own = torch.arange(classes, device=y.device) == y.unsqueeze(1)
    keep = ignored.unsqueeze(1) | own
    added = torch.where((valid | ignored).unsqueeze(1), added, float("nan"))
    if logits.ndim == 3:
        added, keep = (t.view(*labels.shape, classes).transpose(1, 2) for t in (added, keep))
    return torch.where(keep, logits, (logits.to(dtype) + added).to(logits.dtype))


def isda_covariance_gradient(grad: Tensor, weight: Tensor, cov: Tensor, labels: Tensor, strength: Tensor | float,
                             kind: str, ignore_index: int) -> Tensor:
    """The gradient of `isda_logits` with respect to cov, from that of its result: nothing larger than cov is built."""
    classes = weight.shape[0]
    y = labels.reshape(-1)
    rows = grad.movedim(1, -1).reshape(-1, classes).to(cov.dtype)
    valid = (y >= 0) & (y < classes) & (y != ignore_index)
    half = 0.5 * (strength.to(cov.dtype) if isinstance(strength, Tensor) else strength)
    out = torch.zeros_like(cov)
    if kind == "identity":
        return out
    for c in present_classes(y, valid, classes, min(y.numel(), classes)).unsqueeze(1).unbind():
        v = (weight - weight[c]).to(cov.dtype)
        d = half * ((y == c) & valid).to(cov.dtype) @ rows
        if kind == "diag":
            out[c] = d @ v.square()
        elif kind == "full":
            out[c] = v.T @ (d.unsqueeze(1) * v)
        else:
            out += v.T @ (d.unsqueeze(1) * v)
    return out


def isda_consistency(logits: Tensor, weight: Tensor, cov: Tensor, strength: Tensor | float, kind: str,
                     reduction: str = "mean") -> Tensor:
    """logits (N, J) -> 0-d, or (N) for "none". One sample's J x J table at a time."""
    dtype, weight, cov = _accumulation(logits, weight, cov)
    z = logits.to(dtype)
    p = torch.softmax(z.detach(), 1)
    half = 0.5 * (strength.to(dtype) if isinstance(strength, Tensor) else strength)
    rows = []
    for n, c in enumerate(z.detach().argmax(1).unsqueeze(1).unbind()):
        product = weight if kind == "identity" else weight * cov[c] if kind == "diag" else (
            weight @ (cov if kind == "shared" else cov[c][0]))
        gram = product @ weight.T
        norm = gram.diagonal()
        # Both triangles, so that the gradient with respect to a covariance is symmetric like it.
        q = norm.unsqueeze(1) + norm.unsqueeze(0) - gram - gram.mT
        q = q.masked_fill(torch.eye(weight.shape[0], dtype=torch.bool, device=q.device), 0.0)
        rows.append((p[n] * (torch.logsumexp(z[n].unsqueeze(1) + half * q, 0) - z[n])).sum())
    loss = torch.stack(rows) if rows else z.sum(1) + weight[:0].sum(1)
    if reduction == "none":
        return loss
    return loss.sum() if reduction == "sum" else loss.sum() / max(loss.shape[0], 1)


def explicit_sda(features: Tensor, weight: Tensor, bias: Tensor | None, cov: Tensor, labels: Tensor,
                 strength: Tensor | float, samples: int, kind: str, generator: torch.Generator | None) -> Tensor:
    """Eq. 5: the mean cross-entropy of ``samples`` augmented copies of every row."""
    n, a = features.shape
    dtype = accumulation_dtype(features.dtype)
    x, weight, cov = features.to(dtype), weight.to(dtype), cov.to(dtype)
    scale = (strength.to(dtype) if isinstance(strength, Tensor) else torch.tensor(strength, dtype=dtype)).sqrt()
    root = _root(cov, kind)
    total = x.new_zeros(())
    chunk = max(1, 2 ** 22 // max(n * max(a, weight.shape[0]), 1))
    for start in range(0, samples, chunk):
        size = min(chunk, samples - start)
        noise = random.normal((size, n, a), x.device, generator, dtype)
        for row, c in enumerate(labels.unsqueeze(1).unbind() if kind == "full" else ()):
            noise[:, row] = noise[:, row] @ root[c][0]
        if kind == "shared":
            noise = noise @ root
        elif kind == "diag":
            noise = noise * root[labels]
        logits = torch.nn.functional.linear(x + scale * noise, weight, None if bias is None else bias.to(dtype))
        own = logits.gather(2, labels.view(1, n, 1).expand(size, n, 1)).squeeze(2)
        total = total + (torch.logsumexp(logits, 2) - own).sum()
    return total / max(samples * n, 1)


def _root(cov: Tensor, kind: str) -> Tensor:
    """R with ``R^T R = Sigma``; an estimated covariance is often singular, so not Cholesky's."""
    if kind == "identity":
        return cov
    if kind == "diag":
        return cov.clamp(min=0).sqrt()
    values, vectors = torch.linalg.eigh(cov)
    return values.clamp(min=0).sqrt().unsqueeze(-1) * vectors.mT
