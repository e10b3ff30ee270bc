"""`covariance_update_` for a batch that lies on several ranks: moments are exchanged, never features.

One all-reduce for diag, shared and identity: counts, sums and squares of every class around its running mean, which
every rank holds already. They travel as float64: around a mean that is still 0 the squares of features of mean 1000
and deviation 1 lose six digits, of 16 (of float32's 7 the variance would keep one).

Two for full. Which classes the whole batch holds has to be known before their matrices can be sent, and sending all J
would cost J/U times the bytes: so first counts and sums as above, which give the mean of the whole batch too, then the
second moments around that mean, in the dtype of the state, of the U present classes alone:

    full      8 J (A + 1) + U A^2 itemsize bytes (CIFAR-100, A = 640: 0.5 MB + 1.6 MB a class)
    diag      8 J (2 A + 1)
    shared    8 (J (A + 1) + A^2)
    identity  8 J (A + 1)

The matrices of full are counted on the host (on CUDA one sync, the only one); under torch.compile and while a CUDA
graph is captured all J are sent instead.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from ..ops.covariance import cov_shape, covariance_update_


def update_over_ranks(count: Tensor, mean: Tensor, cov: Tensor, features: Tensor, labels: Tensor,
                      ignore_index: int | None, kind: str, group: dist.ProcessGroup | None) -> Tensor:
    """Arguments as `functional.covariance_update_`. Returns the rows left out on all ranks."""
    # Means in float64: an error of theirs is one of the covariance, times the distance between the ranks' means.
    own_count, own_mean, own_cov, skipped = _own_moments(mean.double(), features, labels, ignore_index,
                                                         "diag" if kind == "diag" else "identity")
    rows, seen = own_count.double().unsqueeze(1), count.double().unsqueeze(1)
    shift = own_mean - mean
    overall = None
    if kind == "diag":
        squares = rows * (own_cov + shift.square())
    elif kind == "shared":  # around the running mean of all rows
        overall = _mean_of(seen * mean, seen)
        own_cov = _own_moments(mean, features, labels, ignore_index, kind)[2]
        squares = rows.sum() * (own_cov + _outer(_mean_of(rows * own_mean, rows) - overall))
    else:
        squares = shift.new_zeros(0)
    parts = (rows, skipped.double(), rows * shift, squares)
    packed = torch.cat([part.flatten() for part in parts])
    dist.all_reduce(packed, group=group)
    totals: list[Tensor] = list(packed.split([part.numel() for part in parts]))
    m, skipped, sums, squares = (total.view(part.shape) for total, part in zip(totals, parts, strict=True))
    shift = sums / m.clamp(min=1)  # from the running mean of a class to the mean of the batch

    if kind == "diag":
        moment = (squares - m * shift.square()).clamp(min=0)
        cov.copy_(torch.where(m > 0, _merged(cov, moment, shift.square(), seen, m), cov))
    elif kind == "shared":
        all_rows, all_seen = m.sum(), seen.sum()
        assert overall is not None
        move = _mean_of(m * (mean + shift), m) - overall
        moment = squares - all_rows * _outer(move)
        cov.copy_(torch.where(all_rows > 0, _merged(cov, moment, _outer(move), all_seen, all_rows), cov))
    elif kind == "full":
        _full(count, mean, cov, features, labels, ignore_index, group, m, shift, own_mean - (mean + shift))
    mean.copy_(torch.where(m > 0, mean + shift * (m / (seen + m).clamp(min=1)), mean))
    count.add_(m.squeeze(1).to(torch.int64))
    return skipped.to(torch.int64)


def _full(count: Tensor, mean: Tensor, cov: Tensor, features: Tensor, labels: Tensor, ignore_index: int | None,
          group: dist.ProcessGroup | None, m: Tensor, shift: Tensor, own: Tensor) -> None:
    """shift: to the mean of the batch. own: from there to the mean of this rank's rows."""
    ids = _present(m.squeeze(1))
    slots = torch.full((count.shape[0],), -1, dtype=torch.int64, device=ids.device)
    slots[ids] = torch.arange(ids.shape[0], device=ids.device)
    known = (labels >= 0) & (labels < count.shape[0])
    if ignore_index is not None:
        known &= labels != ignore_index
    local = torch.where(known, slots[torch.where(known, labels, 0)], -1)
    own_count, _, moment, _ = _own_moments(mean[ids], features, local, -1, "full")
    moment += _outer(own[ids].to(cov.dtype))
    moment *= own_count.view(-1, 1, 1)
    dist.all_reduce(moment, group=group)
    n, m = count[ids].view(-1, 1, 1), m[ids].unsqueeze(2)
    old = cov[ids]
    new = _merged(old, moment, _outer(shift[ids].to(cov.dtype)), n.to(cov.dtype), m.to(cov.dtype))
    cov[ids] = torch.where(m > 0, new, old)


def _own_moments(mean: Tensor, features: Tensor, labels: Tensor, ignore_index: int | None,
                 kind: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """This rank's rows alone: the statistics of a new state of mean's shape and dtype."""
    count = torch.zeros(mean.shape[0], dtype=torch.int64, device=mean.device)
    state = (count, torch.zeros_like(mean), mean.new_zeros(cov_shape(kind, *mean.shape)))
    return *state, covariance_update_(*state, features, labels, ignore_index, kind=kind)


def _present(m: Tensor) -> Tensor:
    capturing = m.is_cuda and torch.cuda.is_current_stream_capturing()
    if capturing or torch.compiler.is_compiling():
        return torch.arange(m.shape[0], device=m.device)
    return m.nonzero().squeeze(1)


def _merged(old: Tensor, moment: Tensor, difference: Tensor, n: Tensor, m: Tensor) -> Tensor:
    """ISDA Eq. 2 with the batch's second moment (m times its covariance). Every rank computes the same bits."""
    total = (n + m).clamp(min=1)
    return old * (n / total) + moment / total + difference * (n / total * (m / total))


def _mean_of(sums: Tensor, numbers: Tensor) -> Tensor:
    return sums.sum(0) / numbers.sum().clamp(min=1)


def _outer(v: Tensor) -> Tensor:
    return v.unsqueeze(-1) * v.unsqueeze(-2)
