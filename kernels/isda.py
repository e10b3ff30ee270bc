"""isda_logits on Triton: the table of quadratic forms, its addition to the logits, and the gradient of the weight:
ISDA Eq. 7.

    out[n, j] = z[n, j] + strength/2 T[y_n, j]           T[c, j] = v^T Sigma_c v,  v = w_j - w_c

With U present classes the table has U J entries. Its kernels write it in parts, sums over some features, which the
addition adds up in order.

full, U J A^2 flops: a program owns rows j and a panel of features of one class. V = w_j - w_c is formed in registers
from tiles of the weight, multiplied with tiles of Sigma_c by tl.dot, and at the end dotted with V. Sigma is symmetric:
the panel takes twice what lies before its diagonal block, and what lies behind it is the other panels'; half the
flops and half of Sigma is not read. A batched GEMM would do twice the flops, read Sigma whole, gather it (U A^2 written
and read) and keep V Sigma (U J A written and read): at J = 1000, A = 2048 and 226 classes 3.8 GB and 1.9 GB more each.
Programs of one class run side by side, so that its matrix comes from memory once, the weight from L2.

Backward: with e[c, j] = strength * sum of the incoming gradient over the samples of class c (0 for j = c),

    dw_j = sum_c e[c, j] Sigma_c (w_j - w_c) - [j present] Sigma_j s_j,     s_c = sum_j e[c, j] (w_j - w_c)

full, 2 U J A^2 flops: row c of class c's V is zero, so -s_c takes its place and the second term costs nothing.

diag, shared, identity: T[c, j] = sum_a sigma_a (w_ja - w_ca)^2 by products of (classes x features) tiles, 4 U J A flops
(2 for the others); shared weighs by the weight times Sigma, one GEMM of torch. A vector common to all weights cancels
in every difference; each tile takes its own mean off first, and what cancels then is no larger than the differences.

bytes: U A^2/2 read forward, U A^2 backward (diag: U A), N*J read + written forward, read backward. TF32 where torch's
float32 matmul precision allows it (`_classes.matmul_precision`), else float32 by three TF32 products (`_classes.dot`,
with their error). isda_kept.py keeps products for backward. Not yet run on a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmix.ops.enums import CovarianceKind

from . import _isda_table
from ._classes import dot, dot_block, is_class, present_classes
from ._common import (
    FLOAT,
    NAN,
    STORAGE,
    WORD,
    device,
    launch,
    next_power_of_2,
    packed_rows,
    to_float,
    to_storage,
)
from ._isda_table import DIAG, Products, matrix_tile, mean_row, panel_products, strength_value, tables

# ---------------------------------------------------------------- added to the logits

@device
def _augmented(z, added, is_same, is_valid, DTYPE: tl.constexpr, NAN_BITS: tl.constexpr, ACC: tl.constexpr):
    """Words of z + added; z itself where is_same; NaN where the label is no class."""
    word: tl.constexpr = z.dtype
    total = to_storage(to_float(z.to(DTYPE, bitcast=True), ACC) + added, DTYPE).to(word, bitcast=True)
    return tl.where(is_valid, tl.where(is_same, z, total), tl.full((1, 1), NAN_BITS, word))


@triton.jit(do_not_specialize=["ignore_index", "scale"])
def _add_rows_kernel(
    out_ptr, z_ptr, labels_ptr, slot_ptr, part_ptr, strength_ptr,  # (N, J) words twice, (N), (J), (parts, slots, J), ()
    rows, classes, row_stride, column_blocks, slots, parts, scale, ignore_index,
    DTYPE: tl.constexpr, NAN_BITS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    ACC: tl.constexpr = part_ptr.dtype.element_ty
    n = tl.program_id(0) // column_blocks * ROWS + tl.arange(0, ROWS)
    j = tl.program_id(0) % column_blocks * COLUMNS + tl.arange(0, COLUMNS)
    y = tl.load(labels_ptr + n, mask=n < rows, other=0)
    known = is_class(y, n < rows, classes, ignore_index)
    slot = tl.load(slot_ptr + y, mask=known, other=0).to(tl.int64)
    inside = (n < rows)[:, None] & (j < classes)[None, :]
    total = tl.zeros((ROWS, COLUMNS), ACC)
    for part in range(parts):
        total += tl.load(part_ptr + (part * slots + slot)[:, None] * classes + j[None, :],
                         mask=inside & known[:, None], other=0.0)
    z = tl.load(z_ptr + n.to(tl.int64)[:, None] * row_stride + j[None, :], mask=inside, other=0)
    ignored = y == ignore_index.to(tl.int64)
    out = _augmented(z, strength_value(strength_ptr, scale * 0.5, ACC) * total, (j[None, :] == y[:, None]) |
                     ignored[:, None], (known | ignored)[:, None], DTYPE, NAN_BITS, ACC)
    tl.store(out_ptr + n.to(tl.int64)[:, None] * classes + j[None, :], out, mask=inside)


@triton.jit(do_not_specialize=["ignore_index", "scale"])
def _add_pixels_kernel(
    out_ptr, z_ptr, labels_ptr, slot_ptr, part_ptr, strength_ptr,  # (N, J, P) words twice, (N, P), ...
    pixels, classes, image_stride, class_stride, pixel_stride, class_blocks, pixel_blocks, slots, parts, scale,
    ignore_index,
    DTYPE: tl.constexpr, NAN_BITS: tl.constexpr, CLASSES: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    ACC: tl.constexpr = part_ptr.dtype.element_ty
    pid = tl.program_id(0)
    p = pid % pixel_blocks * PIXELS + tl.arange(0, PIXELS)
    j = pid // pixel_blocks % class_blocks * CLASSES + tl.arange(0, CLASSES)
    n = (pid // (pixel_blocks * class_blocks)).to(tl.int64)
    y = tl.load(labels_ptr + n * pixels + p, mask=p < pixels, other=0)
    known = is_class(y, p < pixels, classes, ignore_index)
    slot = tl.load(slot_ptr + y, mask=known, other=0).to(tl.int64)
    inside = (j < classes)[:, None] & (p < pixels)[None, :]
    total = tl.zeros((CLASSES, PIXELS), ACC)
    for part in range(parts):
        total += tl.load(part_ptr + (part * slots + slot)[None, :] * classes + j[:, None],
                         mask=inside & known[None, :], other=0.0)
    at = j.to(tl.int64)[:, None] * class_stride + p.to(tl.int64)[None, :] * pixel_stride
    z = tl.load(z_ptr + n * image_stride + at, mask=inside, other=0)
    ignored = y == ignore_index.to(tl.int64)
    out = _augmented(z, strength_value(strength_ptr, scale * 0.5, ACC) * total, (j[:, None] == y[None, :]) |
                     ignored[None, :], (known | ignored)[None, :], DTYPE, NAN_BITS, ACC)
    tl.store(out_ptr + (n * classes + j[:, None]) * pixels + p[None, :], out, mask=inside)


# ---------------------------------------------------------------- backward

@triton.jit(do_not_specialize=["scale"])
def _sums_kernel(
    part_ptr, grad_ptr, labels_ptr, present_ptr, strength_ptr,   # (splits, slots, J), (N, J, P), (N*P), (slots), ()
    rows, classes, pixels, image_stride, class_stride, pixel_stride, slots, column_blocks, share, scale,
    PIXELS: tl.constexpr, ACC: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """e: the gradients of a class's samples among the rows [split * share, (split + 1) * share), added up."""
    block = tl.program_id(0) // column_blocks
    j = tl.program_id(0) % column_blocks * COLUMNS + tl.arange(0, COLUMNS)
    slot, split = (block % slots).to(tl.int64), block // slots
    c = tl.load(present_ptr + slot)
    total = tl.zeros((COLUMNS,), ACC)
    if c >= 0:
        last = tl.minimum((split + 1) * share, rows)
        for start in range(split * share, last, ROWS):
            r = start + tl.arange(0, ROWS)
            hit = tl.load(labels_ptr + r, mask=r < last, other=-1) == c
            if tl.max(hit.to(tl.int32)) > 0:
                n = (r // pixels).to(tl.int64) * image_stride + (r % pixels).to(tl.int64) * pixel_stride
                if PIXELS:  # a class's plane lies together
                    at = j.to(tl.int64)[:, None] * class_stride + n[None, :]
                    g = tl.load(grad_ptr + at, mask=(j < classes)[:, None] & hit[None, :], other=0.0)
                    total += tl.sum(to_float(g, ACC), 1)
                else:
                    at = n[:, None] + j.to(tl.int64)[None, :] * class_stride
                    g = tl.load(grad_ptr + at, mask=hit[:, None] & (j < classes)[None, :], other=0.0)
                    total += tl.sum(to_float(g, ACC), 0)
    total = tl.where(j == c, 0.0, total * strength_value(strength_ptr, scale, ACC))
    tl.store(part_ptr + (split * slots + slot) * classes + j, total, mask=j < classes)


@triton.jit
def _pull_kernel(
    pull_ptr, sums_ptr, weight_ptr, present_ptr,                 # (slots, A), (slots, J), (J, A), (slots)
    slots, classes, width, column_blocks,
    PRECISION: tl.constexpr, SLOTS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """s_c = sum_j e[c, j] (w_j - w_c)."""
    ACC: tl.constexpr = pull_ptr.dtype.element_ty
    u = tl.program_id(0) // column_blocks * SLOTS + tl.arange(0, SLOTS)
    a = tl.program_id(0) % column_blocks * COLUMNS + tl.arange(0, COLUMNS)
    c = tl.load(present_ptr + u, mask=u < slots, other=-1)
    in_u, in_a = c >= 0, a < width
    wc = matrix_tile(weight_ptr, c, in_u, a, in_a, width)
    pull = tl.zeros((SLOTS, COLUMNS), ACC)
    for start in range(0, classes, DEPTH):
        j = start + tl.arange(0, DEPTH)
        e = matrix_tile(sums_ptr, u, in_u, j, j < classes, classes)
        wj = matrix_tile(weight_ptr, j, j < classes, a, in_a, width)
        mean = mean_row(wj, j < classes)
        pull = dot(e, tl.where((j < classes)[:, None], wj - mean, 0.0), pull, PRECISION)
        pull -= tl.sum(e, 1)[:, None] * (wc - mean)
    tl.store(pull_ptr + u.to(tl.int64)[:, None] * width + a[None, :], pull,
             mask=(u < slots)[:, None] & in_a[None, :])


@triton.jit
def _full_gradient_kernel(
    part_ptr, weight_ptr, cov_ptr, sums_ptr, pull_ptr, present_ptr,  # (splits, J, A), ..
    slots, classes, width, panels, splits,
    PRECISION: tl.constexpr, ROWS: tl.constexpr, PANEL: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    split = tl.program_id(0) % splits
    block = tl.program_id(0) // splits
    a = block % panels * PANEL + tl.arange(0, PANEL)
    j = block // panels * ROWS + tl.arange(0, ROWS)
    acc = tl.zeros((ROWS, PANEL), part_ptr.dtype.element_ty)
    for slot in range(split, slots, splits):  # the empty ones are the last
        c = tl.load(present_ptr + slot).to(tl.int64)
        if c >= 0:
            u = tl.full((), 0, tl.int64) + slot
            acc = panel_products(acc, weight_ptr, weight_ptr + c * width, cov_ptr + c * width * width, j, a, 0, width,
                                  classes, width, sums_ptr + u * classes, pull_ptr + u * width, c, PRECISION, DEPTH)
    at = (split * classes + j).to(tl.int64)[:, None] * width + a[None, :]
    tl.store(part_ptr + at, acc, mask=(j < classes)[:, None] & (a < width)[None, :])


@triton.jit
def _pair_gradient_kernel(
    out_ptr, weight_ptr, cov_ptr, sums_ptr, pull_ptr, present_ptr, slot_ptr,
    slots, classes, width, column_blocks,
    KIND: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """dw of diag and identity, and of shared before its product with Sigma."""
    ACC: tl.constexpr = out_ptr.dtype.element_ty
    a = tl.program_id(0) % column_blocks * COLUMNS + tl.arange(0, COLUMNS)
    j = tl.program_id(0) // column_blocks * ROWS + tl.arange(0, ROWS)
    in_a, in_j = a < width, j < classes
    wj = matrix_tile(weight_ptr, j, in_j, a, in_a, width)
    mean = mean_row(wj, in_j)
    weighed = tl.zeros((ROWS, COLUMNS), ACC)  # sum of e sigma_c, and of e sigma_c w_c
    theirs = tl.zeros((ROWS, COLUMNS), ACC)
    for start in range(0, slots, DEPTH):
        u = start + tl.arange(0, DEPTH)
        c = tl.load(present_ptr + u, mask=u < slots, other=-1)
        in_u = c >= 0
        e = tl.trans(matrix_tile(sums_ptr, u, in_u, j, in_j, classes))
        wc = matrix_tile(weight_ptr, c, in_u, a, in_a, width) - mean
        wc = tl.where(in_u[:, None], wc, 0.0)
        if KIND == DIAG:
            sigma = matrix_tile(cov_ptr, c, in_u, a, in_a, width)
            weighed = dot(e, sigma, weighed, PRECISION)
            wc = wc * sigma
        else:
            weighed += tl.sum(e, 1)[:, None]
        theirs = dot(e, wc, theirs, PRECISION)
    own = tl.load(slot_ptr + j, mask=in_j, other=-1)
    pull = matrix_tile(pull_ptr, own, own >= 0, a, in_a, width)
    if KIND == DIAG:
        pull = pull * matrix_tile(cov_ptr, j, own >= 0, a, in_a, width)
    out = (wj - mean) * weighed - theirs - pull
    tl.store(out_ptr + j.to(tl.int64)[:, None] * width + a[None, :], out, mask=in_j[:, None] & in_a[None, :])


# ---------------------------------------------------------------- launchers

def isda_logits(logits: Tensor, weight: Tensor, cov: Tensor, labels: Tensor, strength: Tensor | None, scale: float,
                ignore_index: int, kind: int) -> Tensor:
    weight, cov, y = weight.contiguous(), cov.contiguous(), labels.contiguous().view(-1)
    if logits.numel() == 0:
        return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    present, slot = present_classes(y, weight.shape[0], ignore_index)
    return added(logits, y, slot, tables(weight, cov, present, kind, y.shape[0]), strength, scale, ignore_index)


def added(logits: Tensor, y: Tensor, slot: Tensor, table: Tensor, strength: Tensor | None, scale: float,
           ignore_index: int) -> Tensor:
    """The table's parts, added up and added to the logits."""
    classes = slot.shape[0]
    out = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    word = WORD[logits.element_size()]
    options = {"DTYPE": STORAGE[logits.dtype], "NAN_BITS": NAN[logits.dtype], "num_warps": 4, "maxnreg": 160}
    tail = (table.shape[1], table.shape[0], scale, ignore_index)
    if logits.ndim == 2:
        z = packed_rows(logits)
        columns = min(next_power_of_2(classes), 1024)
        rows = max(1, min(next_power_of_2(z.shape[0]), _isda_table.CONFIG.tile // columns))
        blocks = triton.cdiv(classes, columns)
        launch(_add_rows_kernel, triton.cdiv(z.shape[0], rows) * blocks, z.device, out.view(word), z.view(word), y,
               slot, table, strength, z.shape[0], classes, z.stride(0), blocks, *tail, ROWS=rows, COLUMNS=columns,
               **options)
    else:
        images, _, pixels = logits.shape
        together = min(next_power_of_2(pixels), 256)
        block = max(1, min(next_power_of_2(classes), _isda_table.CONFIG.tile // together))
        blocks, pixel_blocks = triton.cdiv(classes, block), triton.cdiv(pixels, together)
        launch(_add_pixels_kernel, images * blocks * pixel_blocks, logits.device, out.view(word), logits.view(word), y,
               slot, table, strength, pixels, classes, *logits.stride(), blocks, pixel_blocks, *tail, CLASSES=block,
               PIXELS=together, **options)
    return out


def class_sums(grad: Tensor, labels: Tensor, present: Tensor, strength: Tensor | None, scale: float,
          dtype: torch.dtype) -> Tensor:
    """e (slots, J), 0 in the rows of empty slots."""
    classes = grad.shape[1]
    pixels = grad.shape[2] if grad.ndim == 3 else 1
    slots, rows = present.shape[0], labels.shape[0]
    columns = min(next_power_of_2(classes), 32 if pixels > 1 else 256)
    block = max(16, _isda_table.CONFIG.tile // columns) if pixels > 1 else 16
    blocks = triton.cdiv(classes, columns)
    splits = max(1, min(triton.cdiv(rows, block), _isda_table.CONFIG.programs // max(slots * blocks, 1), 64))
    share = triton.cdiv(triton.cdiv(rows, splits), block) * block
    part = torch.empty((splits, slots, classes), dtype=dtype, device=grad.device)
    launch(_sums_kernel, splits * slots * blocks, grad.device, part, grad, labels, present, strength, rows, classes,
           pixels, grad.stride(0), grad.stride(1), grad.stride(2) if grad.ndim == 3 else 0, slots, blocks, share, scale,
           PIXELS=pixels > 1, ACC=FLOAT[dtype], ROWS=block, COLUMNS=columns, num_warps=4)
    return part.view(slots, classes) if splits == 1 else part.sum(0)


def isda_logits_backward(grad: Tensor, weight: Tensor, cov: Tensor, labels: Tensor, strength: Tensor | None,
                         scale: float, ignore_index: int, kind: int) -> Tensor:
    weight, cov, y = weight.contiguous(), cov.contiguous(), labels.contiguous().view(-1)
    (classes, width), gpu, use = weight.shape, weight.device, Products.of(weight)
    if grad.numel() == 0 or width == 0:
        return torch.zeros_like(weight)
    present, slot = present_classes(y, classes, ignore_index)
    sums = class_sums(grad, y, present, strength, scale, weight.dtype)
    slots = present.shape[0]
    together, columns = dot_block(slots, use.side), dot_block(width, use.side)
    column_blocks = triton.cdiv(width, columns)
    pull = torch.empty((slots, width), dtype=weight.dtype, device=gpu)
    launch(_pull_kernel, triton.cdiv(slots, together) * column_blocks, gpu, pull, sums, weight, present, slots, classes,
           width, column_blocks, PRECISION=use.precision, SLOTS=together, COLUMNS=columns,
           DEPTH=dot_block(classes, use.depth), num_warps=8)
    if kind == CovarianceKind.FULL:
        return _full_gradient(weight, cov, sums, pull, present)
    out = torch.empty_like(weight)
    rows = dot_block(classes, use.side)
    # maxnreg: left alone, ptxas takes fewer and spills
    launch(_pair_gradient_kernel, triton.cdiv(classes, rows) * column_blocks, gpu, out, weight,
           cov if kind == CovarianceKind.DIAG else None, sums, pull, present, slot, slots, classes, width,
           column_blocks, KIND=kind, PRECISION=use.precision, ROWS=rows, COLUMNS=columns,
           DEPTH=dot_block(slots, use.depth), num_warps=8, maxnreg=255)
    return out @ cov if kind == CovarianceKind.SHARED else out


def _full_gradient(weight: Tensor, cov: Tensor, sums: Tensor, pull: Tensor, present: Tensor) -> Tensor:
    (classes, width), slots, use = weight.shape, present.shape[0], Products.of(weight)
    rows, panel = dot_block(classes, use.full), dot_block(width, use.full)
    blocks = triton.cdiv(classes, rows) * triton.cdiv(width, panel)
    splits = max(1, min(slots, _isda_table.CONFIG.programs // blocks))
    part = torch.empty((splits, classes, width), dtype=weight.dtype, device=weight.device)
    launch(_full_gradient_kernel, blocks * splits, weight.device, part, weight, cov, sums, pull, present, slots,
           classes, width, triton.cdiv(width, panel), splits, PRECISION=use.precision, ROWS=rows, PANEL=panel,
           DEPTH=min(use.depth, panel), num_warps=8, maxnreg=255)
    return part.view(classes, width) if splits == 1 else part.sum(0)
