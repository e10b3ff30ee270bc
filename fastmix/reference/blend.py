"""``out[n] = sum_k weight[n, k] * x[index[n, k]]``: Mixup, and K-image mixing Eq. 2 (DMixup)."""

from __future__ import annotations

import torch
from torch import Tensor

from ._common import accumulation_dtype, inside, poison


def blend(x: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """x (N, ...), index (N, K) int64, weight (N, K) -> like x. One image at a time: no (N, K, ...) is built."""
    acc = accumulation_dtype(x.dtype)
    index, valid = inside(index, x.shape[0])
    weight = weight.to(acc)
    out = torch.zeros_like(x, dtype=acc)
    for k in range(index.shape[1]):
        out = out + weight[:, k].view(-1, *[1] * (x.ndim - 1)) * x[index[:, k]].to(acc)
    return poison(out, valid).to(x.dtype)
