"""Labels as mixers take them, and what becomes of them: see `fastmix.mixers.plans`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from .. import functional
from ..ops import checks as check
from ..targets import SoftTarget, check_target

# What a mixer takes: labels (N,) int64, a dense float matrix (N, J), or a SoftTarget; of pixels (N, ..., H, W),
# (N, J, H, W).
Labels: TypeAlias = Tensor | SoftTarget
# What it gives: a SoftTarget, or a dense matrix for a dense matrix.
Target: TypeAlias = Tensor | SoftTarget


def is_dense(y: Labels) -> bool:
    return isinstance(y, Tensor) and y.is_floating_point()


def is_map(op: str, y: Labels) -> bool:
    """Whether y is of pixels rather than of images. TypeError for what are no labels."""
    if isinstance(y, Tensor):
        if y.ndim == 1:
            return False
        check.tensor(op, "y", y)
        return y.ndim > 2
    if not isinstance(y, SoftTarget):
        raise TypeError(f"{op}: y is {type(y).__name__}, want labels (N,), a SoftTarget or a dense matrix")
    check.tensor(op, "y.index", y.index)
    return y.index.ndim > 2


def per_row(values: Tensor, ndim: int) -> Tensor:
    """values (N,) as (N, 1, ..., 1) of ndim dimensions."""
    return values.view(-1, *[1] * (ndim - 1))


def as_target(op: str, y: Labels, rows: int, name: str = "y") -> Target:
    """y as a SoftTarget, or itself where it is dense, of ``rows`` rows; ValueError or TypeError naming ``op`` else."""
    if isinstance(y, SoftTarget):
        check_target(op, y, f"{name}.")
    else:
        check.tensor(op, name, y)
        if not (y.ndim == 1 or y.ndim > 2) and not (y.ndim == 2 and y.is_floating_point()):
            dense = f" of dtype {y.dtype}" if y.ndim == 2 else ""
            raise ValueError(f"{op}: {name} has shape {tuple(y.shape)}{dense}, want labels (N,) int64, a SoftTarget, "
                             "or a dense float matrix (N, J), one-hot or multi-hot: y.float()")
        if y.is_floating_point() and y.ndim > 1:
            check.dtype(op, name, y, *check.FLOATS)
        else:
            check.dtype(op, name, y, torch.int64)
    count = len(y)
    if count != rows:
        raise ValueError(f"{op}: {name} has {count} rows, want {rows} like the plan")
    return y if isinstance(y, SoftTarget) or is_dense(y) else SoftTarget.from_labels(y)


def rows_of(op: str, take: Callable[[Tensor], Tensor], index: Tensor) -> Tensor:
    """take(index); an IndexError names the row."""
    try:
        return take(index)
    except IndexError:
        check.rows_in_range(op, "plan.index", index, 0, index.shape[0])
        raise


def mix_targets(op: str, index: Tensor, weight: Tensor, y: Labels) -> Target:
    """``t[n] = sum_k weight[n, k] t_y[index[n, k]]``: a mixture of mixtures has K * K' entries a row, dense labels stay
    dense. What an ignored label says of the other classes (base) is not mixed in.

    Args: index: (N, K) int64. weight: (N, K) float32, or of pixels (N, ..., K). y: N rows.
    Source: K-image mixing, the label l_c of Eq. 6; R-Mix Eq. 7.
    """
    if _are_plain(index, weight, y):
        return SoftTarget(rows_of(op, y.take, index), weight)  # type: ignore[union-attr]
    check.ndim(op, "plan.index", index, 2)
    check.dtype(op, "plan.index", index, torch.int64)
    check.tensor(op, "plan.weight", weight)
    if weight.ndim < 2 or (weight.shape[0], weight.shape[-1]) != index.shape:
        raise ValueError(f"{op}: plan.weight has shape {tuple(weight.shape)}, want {tuple(index.shape)}, (N, K) like "
                         "plan.index")
    check.same_device(op, **{"plan.index": index, "plan.weight": weight})
    y = as_target(op, y, index.shape[0])
    if isinstance(y, Tensor):
        check.same_device(op, plan=index, y=y)
        return functional.blend(y, index, weight)
    check.same_device(op, plan=index, y=y.index)
    # (N, K, ..., K'): the targets of every source; pixels go between.
    classes, shares = rows_of(op, y.index.__getitem__, index).movedim(1, -2), y.weight[index].movedim(1, -2)
    if weight.ndim < classes.ndim - 1:
        weight = weight.view(weight.shape[0], *[1] * (classes.ndim - 3), weight.shape[1])
    base = None
    if y.base is not None:
        counted = torch.where(y.counted_share() == 0, 0.0, y.base)
        base = (weight * counted[index].movedim(1, -1)).sum(-1)
    return SoftTarget(classes.flatten(-2), (weight.unsqueeze(-1) * shares).flatten(-2), base)


def _are_plain(index: Tensor, weight: Tensor, y: Labels) -> bool:
    """Whether these are labels and a plan as a mixer makes it, which need no other check: 2 us less a call."""
    if not isinstance(y, Tensor) or not (y.__class__ is index.__class__ is weight.__class__ is Tensor):
        return False
    if y.is_nested or index.is_nested or weight.is_nested:  # which have no shape
        return False
    shape = index.shape
    return (len(shape) == 2 and weight.shape == shape and y.shape == shape[:1]
            and y.dtype is index.dtype is torch.int64 and y.layout is index.layout is weight.layout is torch.strided
            and y.device == index.device == weight.device)


def moved_target(op: str, move: Callable[[Tensor], Tensor], y: Labels) -> Target:
    """Labels of pixels after `move`, which copies pixels of a map (N, ..., H, W), or of a SoftTarget's fields."""
    if isinstance(y, Tensor):
        if y.is_floating_point():
            return move(y)
        check.dtype(op, "y", y, torch.int64)
        return SoftTarget.from_labels(move(y))
    check_target(op, y, "y.")
    index = move(y.index.movedim(-1, 1)).movedim(1, -1)
    weight = move(y.weight.movedim(-1, 1)).movedim(1, -1)
    return SoftTarget(index, weight, None if y.base is None else move(y.base.unsqueeze(1)).squeeze(1))


def softened(op: str, confidence: Tensor, base: Tensor, y: Labels) -> Target:
    """Class y gets ``confidence``, every other class ``base``; an earlier mixture is softened class by class.

    With rows t that sum to 1, ``(p - base) t + base``: for labels that is `SoftTarget.from_confidence`. Where slots are
    ignored base counts in the share of the others. Source: Soft Augmentation Eq. 4.
    """
    check.ndim(op, "plan.confidence", confidence, 1)
    check.shape(op, "plan.base", base, confidence.shape, "(N,) like plan.confidence")
    for name, value in (("plan.confidence", confidence), ("plan.base", base)):
        check.dtype(op, name, value, *check.FLOATS)
    check.same_device(op, **{"plan.confidence": confidence, "plan.base": base})
    y = as_target(op, y, confidence.shape[0])
    if isinstance(y, Tensor):
        check.same_device(op, plan=confidence, y=y)
        p, b = per_row(confidence, y.ndim), per_row(base, y.ndim)
        return ((p - b) * y + b).to(y.dtype)
    check.same_device(op, plan=confidence, y=y.index)
    base = per_row(base, y.index.ndim - 1).expand(y.index.shape[:-1])
    kept = per_row(confidence, y.index.ndim - 1) - base
    if y.index.shape[-1] > 1:
        base = base * y.counted_share()
    return SoftTarget(y.index, kept.unsqueeze(-1) * y.weight, base if y.base is None else kept * y.base + base)
