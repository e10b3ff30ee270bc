"""Patch-wise mixing of two images by their saliency masks: R-Mix, Eq. 5-7, and with the masks Eq. 2-7."""

# bytes: x read once + mixed written once (each image is read as itself and as a partner; the second read comes
# from cache where the batch fits one); flops: 3 per mixed element

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..reference import functional as reference
from . import checks as check
from .dispatch import must_check_values, select
from .operator import Operator
from .planes import is_clip, not_a_mask, on_frames
from .saliency import saliency_mask
from .view import View, check_view, read_through, view_of_frames


def _fake(x: Tensor, partner: Tensor, mask: Tensor, lam: Tensor) -> tuple[Tensor, Tensor]:
    torch._check(x.ndim == 4 and mask.ndim == 3 and partner.ndim == 1)
    return torch.empty_like(x), x.new_empty((x.shape[0], 2), dtype=torch.float32)


def _fake_backward(grad: Tensor, partner: Tensor, mask: Tensor, lam: Tensor) -> Tensor:
    return torch.empty_like(grad)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[1:])


def _backward(ctx: Any, grad: Tensor, grad_weight: Tensor) -> tuple[Any, ...]:
    return _patch_mix_backward(ctx.backend, grad, *ctx.saved_tensors), None, None, None


def _backward_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return _patch_mix(ctx.backend, grad, *ctx.saved_tensors)[0], None, None, None


_patch_mix = Operator("patch_mix", _fake, setup=_setup, backward=_backward, data=(1,))
_patch_mix_backward = Operator("patch_mix_backward", _fake_backward, setup=_setup, backward=_backward_backward)


def patch_mix(x: Tensor, partner: Tensor, mask: Tensor, lam: Tensor, *,
              view: View | None = None) -> tuple[Tensor, Tensor]:
    """Mix each image with its partner, cell by cell.

    With ``m = mask[n]`` and ``m' = mask[partner[n]]``, upsampled by repetition, the own share of a cell is
    ``a = lam[n]`` where ``m == m'``, 1 where only m is set, 0 where only m' is;
    ``mixed = a x[n] + (1 - a) x[partner]``. Where a is 1 or 0 the pixel is its source's bit for bit.

    Args:
        x: images (N, C, H, W), any float dtype and memory format; with a view uint8. Clips (N, C, T, H, W): every
            frame gets the same cells.
        partner: (N,) int64 rows of x.
        mask: (N, h, w) bool, True where salient; h divides H and w divides W.
        lam: (N,) or 0-d float32, the weight of the own image.
        view: reads both sources as normalised images, in the same pass. See `fastmix.View`; a pixel of one source is
            then that of ``view.apply(x)``.
    Returns: (mixed like x, weight (N, 2) float32 = (mean(a), 1 - mean(a)) over the cells). mixed is differentiable
        in x, any order; weight is data.
    Raises: ValueError for shapes and devices, TypeError for dtypes, IndexError for a partner outside the batch (CPU;
        on a GPU the row is NaN).
    Source: R-Mix, Eq. 5-7.
    """
    op = "patch_mix"
    if view is None and isinstance(x, Tensor) and x.ndim == 4 and x.numel():
        found = _patch_mix.checked(x, partner, mask, lam)
        if found is not None:
            return found
    if is_clip(x):
        weight = x  # of the one call below

        def mix(frames: Tensor) -> Tensor:
            nonlocal weight
            mixed, weight = patch_mix(frames, partner, mask, lam, view=view_of_frames(op, view, x))
            return mixed
        return on_frames(mix, x), weight
    if view is not None:
        check_view(op, x, view)
    else:
        not_a_mask(op, x)
        check.images(op, "x", x)
    n, _, height, width = x.shape
    check.shape(op, "partner", partner, (n,), "(N,)")
    check.dtype(op, "partner", partner, torch.int64)
    check.ndim(op, "mask", mask, 3)
    check.dtype(op, "mask", mask, torch.bool)
    h, w = mask.shape[1:]
    if mask.shape[0] != n or h < 1 or w < 1 or height % h or width % w:
        raise ValueError(f"{op}: mask has shape {tuple(mask.shape)}, want ({n}, h, w) where h divides {height} "
                         f"and w divides {width}")
    check.tensor(op, "lam", lam)
    if lam.ndim:
        check.shape(op, "lam", lam, (n,), "(N,) or 0-d")
    check.dtype(op, "lam", lam, torch.float32)
    check.no_grad_needed(op, "lam", lam)
    check.same_device(op, x=x, partner=partner, mask=mask, lam=lam)
    backend = select("patch_mix" if view is None else "view", x)
    if x.numel() == 0:  # without pixels there are weights still, but no work for a kernel
        backend = "reference"
    if must_check_values(backend, x):
        check.rows_in_range(op, "partner", partner, 0, n)
    if view is not None:
        return read_through(backend, "view_patch_mix", x, (partner, mask, lam), view)
    if backend == "reference":
        return reference.patch_mix(x, partner, mask, lam)
    return _patch_mix(backend, x, partner, mask, lam)


def rmix(x: Tensor, grad: Tensor, grid: tuple[int, int], q: Tensor, partner: Tensor,
         lam: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``mask = saliency_mask(grad, grid, q)`` and ``patch_mix(x, partner, mask, lam)``, one after the other.

    Args:
        x: images (N, C, H, W), any float dtype and memory format.
        grad: their input gradient, as in `saliency_mask`.
        grid: (h, w) cells. q: as in `saliency_mask`. partner: (N,) int64. lam: (N,) or 0-d float32.
    Returns: (mixed like x, weight (N, 2) float32, mask (N, h, w) bool). mixed is differentiable in x.
    Raises: as the two functions.
    Source: R-Mix, Eq. 2-7.
    """
    mask = saliency_mask(grad, grid, q)
    return *patch_mix(x, partner, mask, lam), mask
