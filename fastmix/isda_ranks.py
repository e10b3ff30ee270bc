"""`covariance_update_` for a batch that lies on several ranks: moments are exchanged, never features.

Two all-reduces. First the counts and the feature sums of every class, (J (A + 2) + 2) float32: they give the mean of
the whole batch and the classes it holds. Then the second moments around that mean, of those classes alone:

    full      U A^2 float32, U classes present in the whole batch (CIFAR-100, A = 640: 1.6 MB a class)
    diag      J A
    shared    A^2
    identity  none

The matrices of full are counted on the host (on CUDA one sync, the only one); under torch.compile and while a CUDA
graph is captured all J are sent instead.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from .ops.covariance import cov_shape, covariance_update_

_LOW = 4096  # counts travel as two float32, so that sums up to 2^36 are exact


def update_over_ranks(count: Tensor, mean: Tensor, cov: Tensor, features: Tensor, labels: Tensor,
                      ignore_index: int | None, kind: str, group: dist.ProcessGroup | None) -> Tensor:
    """Arguments as `functional.covariance_update_`. Returns the rows left out on all ranks."""
    classes, width = mean.shape
    own_count, own_mean, own_cov, skipped = _own_moments(count, mean, features, labels, ignore_index,
                                                         "identity" if kind == "full" else kind)
    numbers = torch.cat([own_count, skipped.view(1)])
    packed = torch.cat([(numbers // _LOW).to(mean.dtype), (numbers % _LOW).to(mean.dtype),
                        (own_mean * own_count.unsqueeze(1)).flatten()])
    dist.all_reduce(packed, group=group)
    high, low, sums = packed.split([classes + 1, classes + 1, classes * width])
    numbers = high.to(torch.int64) * _LOW + low.to(torch.int64)
    m, skipped = numbers[:-1], numbers[-1]
    sums = sums.view(classes, width)
    batch_mean = sums / m.clamp(min=1).unsqueeze(1)

    if kind == "diag":
        moment = own_count.unsqueeze(1) * (own_cov + (own_mean - batch_mean).square())
        dist.all_reduce(moment, group=group)
        new = _merged(cov, moment, (mean - batch_mean).square(), count.unsqueeze(1), m.unsqueeze(1))
        cov.copy_(torch.where(m.unsqueeze(1) > 0, new, cov))
    elif kind == "shared":
        n_all, m_all, own_all = count.sum(), m.sum(), own_count.sum()
        old_mean, whole_mean, part_mean = (_weighted_mean(s, n) for s, n in (
            (count.to(mean.dtype) @ mean, n_all), (sums.sum(0), m_all), (own_count.to(mean.dtype) @ own_mean, own_all)))
        moment = own_all * (own_cov + _outer(part_mean - whole_mean))
        dist.all_reduce(moment, group=group)
        new = _merged(cov, moment, _outer(old_mean - whole_mean), n_all, m_all)
        cov.copy_(torch.where(m_all > 0, new, cov))
    elif kind == "full":
        ids = _present(m)
        _full(count, mean, cov, features, labels, ignore_index, group, ids, m, batch_mean)
    total = (count + m).clamp(min=1)
    moved = mean + (batch_mean - mean) * (m.to(mean.dtype) / total.to(mean.dtype)).unsqueeze(1)
    mean.copy_(torch.where(m.unsqueeze(1) > 0, moved, mean))
    count.add_(m)
    return skipped


def _full(count: Tensor, mean: Tensor, cov: Tensor, features: Tensor, labels: Tensor, ignore_index: int | None,
          group: dist.ProcessGroup | None, ids: Tensor, m: Tensor, batch_mean: Tensor) -> None:
    slots = torch.full((count.shape[0],), -1, dtype=torch.int64, device=ids.device)
    slots[ids] = torch.arange(ids.shape[0], device=ids.device)
    known = (labels >= 0) & (labels < count.shape[0])
    if ignore_index is not None:
        known &= labels != ignore_index
    local = torch.where(known, slots[torch.where(known, labels, 0)], -1)
    own_count, own_mean, own_cov, _ = _own_moments(count[ids], mean[ids], features, local, -1, "full")
    own_cov += _outer(own_mean - batch_mean[ids])
    own_cov *= own_count.view(-1, 1, 1)
    dist.all_reduce(own_cov, group=group)
    n, m = count[ids].view(-1, 1, 1), m[ids].view(-1, 1, 1)
    old = cov[ids]
    new = _merged(old, own_cov, _outer(mean[ids] - batch_mean[ids]), n, m)
    cov[ids] = torch.where(m > 0, new, old)


def _own_moments(count: Tensor, mean: Tensor, features: Tensor, labels: Tensor, ignore_index: int | None,
                 kind: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """This rank's rows alone: the statistics of a fresh state."""
    cov = mean.new_zeros(cov_shape(kind, *mean.shape))
    state = (torch.zeros_like(count), torch.zeros_like(mean), cov)
    return *state, covariance_update_(*state, features, labels, ignore_index, kind=kind)


def _present(m: Tensor) -> Tensor:
    capturing = m.is_cuda and torch.cuda.is_current_stream_capturing()
    if capturing or torch.compiler.is_compiling():
        return torch.arange(m.shape[0], device=m.device)
    return m.nonzero().squeeze(1)


def _merged(old: Tensor, moment: Tensor, difference: Tensor, n: Tensor, m: Tensor) -> Tensor:
    """Eq. 2 with the batch's second moment (m times its covariance). Every rank computes the same bits."""
    total = (n + m).clamp(min=1).to(old.dtype)
    n, m = n.to(old.dtype), m.to(old.dtype)
    return old * (n / total) + moment / total + difference * (n / total * (m / total))


def _weighted_mean(total: Tensor, number: Tensor) -> Tensor:
    return total / number.clamp(min=1)


def _outer(v: Tensor) -> Tensor:
    return v.unsqueeze(-1) * v.unsqueeze(-2)
