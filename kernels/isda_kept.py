"""isda_logits with full covariances on Triton, its products kept for backward: ISDA Eq. 7.

With V Sigma_c (U, J, A) kept a program of the table takes its panel whole, 2 U J A^2 flops, and backward reads the
products once, 4 U J A flops: 2 U J A^2 a step where isda.py takes 3. At J = 1000, A = 2048 and 226 classes that is 1.9
TFLOP instead of 2.8, for 3.7 GB written and read, 1.1 ms at 3.35 TB/s. `fastmix.ops.isda.keeps_products` decides.

    dw_j = sum_c e[c, j] P[c, j] - [j present] sum_i e[j, i] P[j, i],     P[c, j] = Sigma_c (w_j - w_c)

cuBLAS's batched GEMM with a fused dot of rows would do the same flops, and gather Sigma (U A^2 written and read, 3.8 GB
each) and V first: no faster. Not yet run on a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmix.ops.enums import CovarianceKind

from ._classes import present_classes
from ._common import launch, next_power_of_2
from ._isda_table import CONFIG, full_table, matrix_tile
from .isda import added, class_sums


@triton.jit
def _kept_gradient_kernel(
    part_ptr, pull_ptr, product_ptr, sums_ptr, present_ptr,      # (splits, J, A), (row blocks, slots, A), (slots, J, A)
    slots, classes, width, panels, splits,
    ROWS: tl.constexpr, PANEL: tl.constexpr,
):  # fmt: skip
    """Of products kept, read once: their sums over classes, and over a block of rows, weighed by e."""
    split = tl.program_id(0) % splits
    block = tl.program_id(0) // splits
    a = block % panels * PANEL + tl.arange(0, PANEL)
    row_block = (block // panels).to(tl.int64)
    j = block // panels * ROWS + tl.arange(0, ROWS)
    in_j, in_a = j < classes, a < width
    acc = tl.zeros((ROWS, PANEL), part_ptr.dtype.element_ty)
    for slot in range(split, slots, splits):
        if tl.load(present_ptr + slot) >= 0:
            u = tl.full((), 0, tl.int64) + slot
            e = tl.load(sums_ptr + u * classes + j, mask=in_j, other=0.0)
            product = matrix_tile(product_ptr + u * classes * width, j, in_j, a, in_a, width) * e[:, None]
            acc += product
            tl.store(pull_ptr + (row_block * slots + u) * width + a, tl.sum(product, 0), mask=in_a)
    at = (split * classes + j).to(tl.int64)[:, None] * width + a[None, :]
    tl.store(part_ptr + at, acc, mask=in_j[:, None] & in_a[None, :])


@triton.jit
def _join_kernel(
    out_ptr, part_ptr, pull_ptr, slot_ptr,                       # (J, A), (splits, J, A), (row blocks, slots, A), (J)
    slots, classes, width, panels, splits, row_blocks,
    ROWS: tl.constexpr, PANEL: tl.constexpr,
):  # fmt: skip
    """The parts of a gradient added up in order, less what pulls at w_j itself."""
    a = tl.program_id(0) % panels * PANEL + tl.arange(0, PANEL)
    j = tl.program_id(0) // panels * ROWS + tl.arange(0, ROWS)
    in_j, in_a = j < classes, a < width
    own = tl.load(slot_ptr + j, mask=in_j, other=-1)
    total = tl.zeros((ROWS, PANEL), out_ptr.dtype.element_ty)
    for split in range(0, splits):
        total += matrix_tile(part_ptr, split * classes + j, in_j, a, in_a, width)
    for row_block in range(0, row_blocks):
        total -= matrix_tile(pull_ptr, row_block * slots + own, own >= 0, a, in_a, width)
    tl.store(out_ptr + j.to(tl.int64)[:, None] * width + a[None, :], total, mask=in_j[:, None] & in_a[None, :])


# ---------------------------------------------------------------- launchers

def isda_logits_kept(logits: Tensor, weight: Tensor, cov: Tensor, labels: Tensor, strength: Tensor | None, scale: float,
                     ignore_index: int, kind: int) -> tuple[Tensor, Tensor]:
    """`isda_logits` with full covariances, and V Sigma (slots, J, A) of the present classes."""
    if kind != CovarianceKind.FULL:
        raise RuntimeError("isda_logits_kept: only full covariances have products to keep")
    weight, cov, y = weight.contiguous(), cov.contiguous(), labels.contiguous().view(-1)
    product = torch.empty((min(y.shape[0], weight.shape[0]), *weight.shape), dtype=weight.dtype, device=weight.device)
    if logits.numel() == 0:
        return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device), product
    present, slot = present_classes(y, weight.shape[0], ignore_index)
    table = full_table(weight, cov, present, product)
    return added(logits, y, slot, table, strength, scale, ignore_index), product


# Sides of a tile of products kept: 32 elements a thread under way.
KEPT_ROWS, KEPT_PANEL = 64, 128


def isda_logits_kept_backward(grad: Tensor, product: Tensor, labels: Tensor, strength: Tensor | None, scale: float,
                              ignore_index: int) -> Tensor:
    """The weight's gradient from the products that `isda_logits_kept` returned."""
    (slots, classes, width), y, gpu, dtype = product.shape, labels.contiguous().view(-1), product.device, product.dtype
    if grad.numel() == 0 or width == 0:
        return torch.zeros((classes, width), dtype=dtype, device=gpu)
    present, slot = present_classes(y, classes, ignore_index)
    sums = class_sums(grad, y, present, strength, scale, dtype)
    rows, panel = min(KEPT_ROWS, next_power_of_2(classes)), min(KEPT_PANEL, next_power_of_2(width))
    row_blocks, panels = triton.cdiv(classes, rows), triton.cdiv(width, panel)
    splits = max(1, min(slots, CONFIG.programs // (row_blocks * panels)))
    part = torch.empty((splits, classes, width), dtype=dtype, device=gpu)
    pull = torch.empty((row_blocks, slots, width), dtype=dtype, device=gpu)
    launch(_kept_gradient_kernel, row_blocks * panels * splits, gpu, part, pull, product, sums, present, slots, classes,
           width, panels, splits, ROWS=rows, PANEL=panel, num_warps=8)
    out = torch.empty((classes, width), dtype=dtype, device=gpu)
    rows = min(16, rows)
    launch(_join_kernel, triton.cdiv(classes, rows) * panels, gpu, out, part, pull, slot, slots, classes, width, panels,
           splits, row_blocks, ROWS=rows, PANEL=panel, num_warps=4)
    return out
