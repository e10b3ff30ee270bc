"""Class-conditional mean and covariance of features, updated batch by batch: ISDA Eq. 1-3."""

from __future__ import annotations

import torch
from torch import Tensor


def rows_of(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Features (N, A) or (N, A, ...) with labels (N) or (N, ...) -> (M, A), (M)."""
    return features.movedim(1, -1).flatten(0, -2), labels.reshape(-1)


def usable_rows(x: Tensor, y: Tensor, classes: int, ignore_index: int | None) -> tuple[Tensor, Tensor]:
    """(rows that enter the statistics, rows left out because a feature is not finite), both (M) bool."""
    labelled = (y >= 0) & (y < classes)
    if ignore_index is not None:
        labelled &= y != ignore_index
    finite = x.isfinite().all(1)
    return labelled & finite, labelled & ~finite


def present_classes(y: Tensor, valid: Tensor, classes: int, slots: int) -> Tensor:
    """Class ids (slots), those of valid rows first and ascending. No shape depends on a value."""
    present = torch.zeros(classes, dtype=torch.int64, device=y.device)
    present = present.scatter_add(0, torch.where(valid, y, 0), valid.to(torch.int64))  # not in place: vmap
    return torch.argsort((present == 0).to(torch.int8), stable=True)[:slots]


def _merge(old: Tensor, batch: Tensor, difference: Tensor, n: Tensor, m: Tensor) -> Tensor:
    """Eq. 2. difference: outer product (or square) of the difference of the means."""
    total = (n + m).clamp(min=1)
    return (n * old + m * batch) / total + (n * m / total ** 2) * difference


def covariance_update_(count: Tensor, mean: Tensor, cov: Tensor, features: Tensor, labels: Tensor, kind: str,
                       ignore_index: int | None) -> Tensor:
    """Arguments as `functional.covariance_update_`; one class at a time. Returns the rows left out, 0-d int64."""
    dtype, classes = mean.dtype, count.shape[0]
    x, y = rows_of(features.detach(), labels)
    x = x.to(dtype)
    valid, not_finite = usable_rows(x, y, classes, ignore_index)
    x = torch.where(valid.unsqueeze(1), x, 0.0)
    y = torch.where(valid, y, -1)
    n_all = count.sum().to(dtype)
    mean_all = (count.to(dtype) @ mean) / n_all.clamp(min=1)
    # One-element indices: a 0-d one would be read back to the host.
    for c in present_classes(y, valid, classes, min(x.shape[0], classes)).unsqueeze(1).unbind():
        mine = (y == c).to(dtype)
        m, n = mine.sum(), count[c].to(dtype)
        batch_mean = (mine @ x) / m.clamp(min=1)
        delta = mean[c] - batch_mean
        centred = (x - batch_mean) * mine.unsqueeze(1)
        if kind == "full":
            new = _merge(cov[c], centred.T @ centred / m.clamp(min=1), delta.mT * delta, n, m)
            cov[c] = torch.where(m > 0, new, cov[c])
        elif kind == "diag":
            new = _merge(cov[c], centred.square().sum(0) / m.clamp(min=1), delta.square(), n, m)
            cov[c] = torch.where(m > 0, new, cov[c])
        mean[c] = torch.where(m > 0, mean[c] - delta * (m / (n + m).clamp(min=1)), mean[c])
        count[c] += m.to(torch.int64)
    if kind == "shared":
        m = valid.sum().to(dtype)
        batch_mean = x.sum(0) / m.clamp(min=1)
        centred = (x - batch_mean) * valid.unsqueeze(1)
        delta = mean_all - batch_mean
        new = _merge(cov, centred.T @ centred / m.clamp(min=1), torch.outer(delta, delta), n_all, m)
        cov.copy_(torch.where(m > 0, new, cov))
    return not_finite.sum()
