"""Labels as mixers take them, and what becomes of them: see `fastmix.mixers.plans`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from .. import functional
from ..ops import checks as check
from ..targets import SoftTarget

# What a mixer takes: labels (N,) int64, a dense float matrix (N, J), or a SoftTarget; of pixels (N, ..., H, W),
# (N, J, H, W).
Labels: TypeAlias = Tensor | SoftTarget
# What it gives: a SoftTarget, or a dense matrix for a dense matrix.
Target: TypeAlias = Tensor | SoftTarget


def is_dense(y: Labels) -> bool:
    return isinstance(y, Tensor) and y.is_floating_point()


def is_map(y: Labels) -> bool:
    """Whether y is of pixels rather than of images."""
    return y.ndim > 2 if isinstance(y, Tensor) else y.index.ndim > 2


def per_row(values: Tensor, ndim: int) -> Tensor:
    """values (N,) as (N, 1, ..., 1) of ndim dimensions."""
    return values.view(-1, *[1] * (ndim - 1))


def as_target(op: str, y: Labels, rows: int) -> Target:
    """y as a SoftTarget, or itself where it is dense, of ``rows`` rows; ValueError or TypeError naming ``op`` else."""
    if isinstance(y, SoftTarget):
        if y.index.ndim < 2:
            raise ValueError(f"{op}: y.index has shape {tuple(y.index.shape)}, want (N, K) or (N, ..., K)")
        check.shape(op, "y.weight", y.weight, y.index.shape, "(N, K) like y.index")
    else:
        check.tensor(op, "y", y)
        if not (y.ndim == 1 or y.ndim > 2) and not (y.ndim == 2 and y.is_floating_point()):
            dense = f" of dtype {y.dtype}" if y.ndim == 2 else ""
            raise ValueError(f"{op}: y has shape {tuple(y.shape)}{dense}, want labels (N,) int64, a SoftTarget, or a "
                             "dense float matrix (N, J), one-hot or multi-hot: y.float()")
        if y.is_floating_point() and y.ndim > 1:
            check.dtype(op, "y", y, *check.FLOATS)
        else:
            check.dtype(op, "y", y, torch.int64)
    count = len(y)
    if count != rows:
        raise ValueError(f"{op}: y has {count} rows, want {rows} like the plan")
    return y if isinstance(y, SoftTarget) or is_dense(y) else SoftTarget.from_labels(y)


def mix_targets(op: str, index: Tensor, weight: Tensor, y: Labels) -> Target:
    """``t[n] = sum_k weight[n, k] t_y[index[n, k]]``: a mixture of mixtures has K * K' entries a row, dense labels stay
    dense. What an ignored label says of the other classes (base) is not mixed in.

    Args: index: (N, K) int64. weight: (N, K) float32, or of pixels (N, ..., K). y: N rows.
    Source: K-image mixing, the label l_c of Eq. 6; R-Mix Eq. 7.
    """
    if isinstance(y, Tensor) and y.ndim == 1 and y.shape[0] == index.shape[0] and y.dtype == torch.int64:
        check.same_device(op, plan=index, y=y)
        return SoftTarget(y.take(index), weight)
    y = as_target(op, y, index.shape[0])
    if isinstance(y, Tensor):
        check.same_device(op, plan=index, y=y)
        return functional.blend(y, index, weight)
    check.same_device(op, plan=index, y=y.index)
    # (N, K, ..., K'): the targets of every source; pixels go between.
    classes, shares = y.index[index].movedim(1, -2), y.weight[index].movedim(1, -2)
    if weight.ndim < classes.ndim - 1:
        weight = weight.view(weight.shape[0], *[1] * (classes.ndim - 3), weight.shape[1])
    base = None
    if y.base is not None:
        counted = torch.where(y.counted_share() == 0, 0.0, y.base)
        base = (weight * counted[index].movedim(1, -1)).sum(-1)
    return SoftTarget(classes.flatten(-2), (weight.unsqueeze(-1) * shares).flatten(-2), base)


def moved_target(op: str, move: Callable[[Tensor], Tensor], y: Labels) -> Target:
    """Labels of pixels after `move`, which copies pixels of a map (N, ..., H, W), or of a SoftTarget's fields."""
    if isinstance(y, Tensor):
        if y.is_floating_point():
            return move(y)
        check.dtype(op, "y", y, torch.int64)
        return SoftTarget.from_labels(move(y))
    index = move(y.index.movedim(-1, 1)).movedim(1, -1)
    weight = move(y.weight.movedim(-1, 1)).movedim(1, -1)
    return SoftTarget(index, weight, None if y.base is None else move(y.base.unsqueeze(1)).squeeze(1))
