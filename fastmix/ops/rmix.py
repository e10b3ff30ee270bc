"""Saliency mask and patch mix of a batch of small images in one launch: R-Mix, Eq. 2-7."""

# bytes: the gradient and x read once + mixed written once; the second reads of both, as a partner's, come from cache

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import checks as check
from .dispatch import must_check_values, select, why_not
from .operator import Operator
from .patch_mix import _patch_mix_backward, patch_mix
from .saliency import saliency_mask


def _fake(x: Tensor, grad: Tensor, partner: Tensor, q: Tensor, lam: Tensor, h: int,
          w: int) -> tuple[Tensor, Tensor, Tensor]:
    n = x.shape[0]
    return (torch.empty_like(x), x.new_empty((n, 2), dtype=torch.float32), x.new_empty((n, h, w), dtype=torch.bool))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs[2], output[2], inputs[4])
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, g: Tensor, *_: Any) -> tuple[Any, ...]:
    return _patch_mix_backward(ctx.backend, g, *ctx.saved_tensors), *[None] * 6


_rmix = Operator("rmix", _fake, setup=_setup, backward=_backward)

# What a block takes (csrc/cuda/saliency.cuh): bytes of an image's gradient, and cells.
WHOLE_BYTES, WHOLE_CELLS = 64 * 1024, 1024


def rmix(x: Tensor, grad: Tensor, grid: tuple[int, int], q: Tensor, partner: Tensor, lam: Tensor, *,
         one_launch: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """``mask = saliency_mask(grad, grid, q)`` and ``patch_mix(x, partner, mask, lam)`` together.

    Args:
        x: images (N, C, H, W), any float dtype and memory format.
        grad: their input gradient, as in `saliency_mask`.
        grid: (h, w) cells. q: (N,) or 0-d float. partner: (N,) int64. lam: (N,) or 0-d float32.
        one_launch: one kernel does both, on the "cuda" backend, for images whose gradient is in x's dtype and takes
            up to 64 KB, on up to 1024 cells; each block then computes its partner's mask as well. Not the default:
            whether it is faster than two launches has not been measured yet.
    Returns: (mixed like x, weight (N, 2) float32, mask (N, h, w) bool), the same bits either way. mixed is
        differentiable in x.
    Raises: as the two functions; RuntimeError for one_launch where it cannot be done.
    Source: R-Mix, Eq. 2-7.
    """
    op = "rmix"
    if not one_launch:
        mask = saliency_mask(grad, grid, q)
        return *patch_mix(x, partner, mask, lam), mask
    check.images(op, "x", x)
    check.shape(op, "grad", grad, tuple(x.shape), "like x")
    check.dtype(op, "grad", grad, x.dtype)
    n, channels, height, width = x.shape
    h, w = grid
    if h < 1 or w < 1 or height % h or width % w:
        raise ValueError(f"{op}: grid is {(h, w)}, want h that divides {height} and w that divides {width}")
    check.shape(op, "partner", partner, (n,), "(N,)")
    check.dtype(op, "partner", partner, torch.int64)
    for name, value in (("q", q), ("lam", lam)):
        check.tensor(op, name, value)
        if value.ndim:
            check.shape(op, name, value, (n,), "(N,) or 0-d")
    check.dtype(op, "q", q, torch.float32, torch.float64)
    check.dtype(op, "lam", lam, torch.float32)
    check.no_grad_needed(op, "lam", lam)
    check.same_device(op, x=x, grad=grad, partner=partner, q=q, lam=lam)
    backend = select("patch_mix", x)
    if backend in ("reference", "cpu", "triton"):
        reason = why_not("patch_mix", "cuda", x.device.type) or f"backend {backend!r} has none"
        raise RuntimeError(f"{op}: one launch was asked for and cannot be had: {reason}")
    if channels * height * width * x.element_size() > WHOLE_BYTES or h * w > WHOLE_CELLS:
        raise RuntimeError(f"{op}: one launch takes images of up to {WHOLE_BYTES} bytes and {WHOLE_CELLS} cells, these "
                           f"are {channels} x {height} x {width} {x.dtype} with {h * w} cells")
    if must_check_values(backend, x):
        check.rows_in_range(op, "partner", partner, 0, n)
    return _rmix(backend, x, grad.detach(), partner, q, lam, h, w)
