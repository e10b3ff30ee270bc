"""What drop-ins share: batches mixed with one partner each, by numbers that were drawn on the host."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from .. import functional
from ..ops import checks as check
from ..targets import SoftTarget


@lru_cache(maxsize=64)
def partners(rows: int, pairing: str, device: torch.device) -> Tensor:
    """(N, 2) int64: every image and its partner, "flip" N - 1 - n or "roll" n - 1. Not to be written into."""
    with torch.inference_mode(False), torch.no_grad():
        own = torch.arange(rows, device=device)
        return torch.stack([own, own.flip(0) if pairing == "flip" else own.roll(1)], 1)


def is_mixed_here(x: Tensor, *ndims: int) -> bool:
    """Whether the kernels mix such images: floats."""
    return x.dtype in check.FLOATS and x.ndim in ndims and type(x).__torch_dispatch__ is Tensor.__torch_dispatch__


def shares(own: float | Tensor, rows: int, device: torch.device, total: float = 1.0) -> Tensor:
    """(N, 2) float32 of sum `total`: the own share and the partner's. own: of every row, or (N,)."""
    out = torch.empty(rows, 2, dtype=torch.float32, device=device)
    if isinstance(own, Tensor):
        torch.stack([own * total, (1 - own) * total], 1, out=out)
    else:
        out[:, 0].fill_(own * total)
        out[:, 1].fill_((1 - own) * total)
    return out


def blended(x: Tensor, pairing: str, own: float) -> Tensor:
    """``own x + (1 - own) x[partner]``."""
    return functional.blend(x, partners(len(x), pairing, x.device), shares(own, len(x), x.device))


def pasted(x: Tensor, pairing: str, box: tuple[int, int, int, int]) -> Tensor:
    """x with a box (top, left, height, width) of each partner."""
    boxes = torch.tensor(box, dtype=torch.int32).to(x.device).expand(len(x), 1, 4)
    return functional.paste(x, partners(len(x), pairing, x.device), boxes)


def mixed_labels(y: Tensor, pairing: str, own: float | Tensor, smoothing: float, num_classes: int,
                 sparse: bool) -> Tensor | SoftTarget:
    """Labels (N,) mixed with their partners', smoothed: ``eps / J`` for every class and ``1 - eps`` for the mixture.

    own: of every row, or (N,) float32. Returns: a SoftTarget, or (N, J) float32. Raises: RuntimeError for a label
    outside [0, J) of a dense target, as one that torch scatters.
    """
    rows, device = len(y), y.device
    named = y.long().take(partners(rows, pairing, device))
    weight = shares(own.to(device) if isinstance(own, Tensor) else own, rows, device, 1 - smoothing)
    rest = smoothing / num_classes
    if sparse:
        return SoftTarget(named, weight, torch.full((rows,), rest, device=device) if smoothing else None)
    out = torch.full((rows, num_classes), rest, dtype=torch.float32, device=device)
    return out.scatter_add_(1, named, weight)
