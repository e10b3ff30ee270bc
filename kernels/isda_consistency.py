"""isda_consistency on Triton: the semi-supervised bound of ISDA Eq. 15, and its gradient in the same call.

With the pseudo label c of a sample, q_jk = (w_j - w_k)^T Sigma_c (w_j - w_k) and h = strength/2

    L_n = sum_k p_nk (l_nk - z_nk),    l_nk = log sum_j exp(z_nj + h q_jk)
    dL/dz_nj = sum_k p_nk s_njk - p_nj,   s_njk = exp(z_nj + h q_jk - l_nk),   dL/d(h q_jk) = p_nk s_njk

p is a constant. q comes from G = W Sigma_c W^T, W without its mean: q_jk = G_jj + G_kk - 2 G_jk and exactly 0 at j = k.
The products are torch's batched GEMMs, over as many present classes at a time as `Config.elements` allows: a fixed
number for a shape, so a CUDA graph serves every batch. Four kernels do the rest, the N J J exponentials, which are
taken again wherever they are needed and never stored:

    rows      pseudo label, maximum and log-sum-exp of a row
    bounds    l (N, J) and the loss, a program for a sample and a block of k
    logits    d z, a program for a sample and a block of j
    pulls     R_jk = sum of g_n p_nk s_njk over the samples of a class, from which dW = strength * (diag(S 1) - S) P
              with S = R + R^T and P = W Sigma_c: a GEMM again, added up over the classes in order

flops: 2 U J A (A + J) forward (diag: 2 U J J A; shared and identity: one class), the same backward for W, and N J J
exponentials, three times as many with a gradient; bytes: U A^2, N J a few times. Not yet run on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmix.ops.enums import CovarianceKind, Reduction

from ._classes import present_classes
from ._common import device, launch, next_power_of_2, packed_rows, to_float, to_storage
from ._isda_table import strength_value
from ._loss import weighted


@dataclass(frozen=True)
class Config:
    """Reasoned, not measured."""

    # Elements of the tables of the classes that are handled together: 64 MB of float32.
    elements: int = 1 << 24
    # Sides of a tile of exponentials; with 64 four warps spill.
    side: int = 32


CONFIG = Config()


@device
def _logits(z_ptr, n, j, classes, row_stride, ACC: tl.constexpr):
    """z[n, j], -inf beyond the classes."""
    return to_float(tl.load(z_ptr + n * row_stride + j, mask=j < classes, other=-float("inf")), ACC)


@triton.jit
def _rows_kernel(label_ptr, lse_ptr, z_ptr, classes, row_stride, BLOCK: tl.constexpr):
    """The class of the largest logit, the first on ties, NaN the largest; log sum exp z."""
    ACC: tl.constexpr = lse_ptr.dtype.element_ty
    n = tl.program_id(0).to(tl.int64)
    largest = tl.full((BLOCK,), -float("inf"), ACC)
    broken = tl.full((BLOCK,), classes, tl.int32)  # the first NaN
    for start in range(0, classes, BLOCK):
        j = start + tl.arange(0, BLOCK)
        z = _logits(z_ptr, n, j, classes, row_stride, ACC)
        broken = tl.minimum(broken, tl.where(z != z, j, classes))
        largest = tl.where(z > largest, z, largest)
    most = tl.max(largest)
    found = tl.full((BLOCK,), classes, tl.int32)
    total = tl.zeros((BLOCK,), ACC)
    for start in range(0, classes, BLOCK):
        j = start + tl.arange(0, BLOCK)
        z = _logits(z_ptr, n, j, classes, row_stride, ACC)
        found = tl.minimum(found, tl.where((z == most) & (j < classes), j, classes))
        total += tl.where(j < classes, tl.exp(z - most), 0.0)
    first = tl.min(broken)
    tl.store(label_ptr + n, tl.where(first < classes, first, tl.min(found)).to(tl.int64))
    tl.store(lse_ptr + n, most + tl.log(tl.sum(total)))


@device
def _exponents(table, j, k, half, classes):
    """h q[j, k] of a table G of one class, for columns j (J, 1) and k (1, K)."""
    inside = (j < classes) & (k < classes)
    g = tl.load(table + j.to(tl.int64) * classes + k, mask=inside, other=0.0)
    own = tl.load(table + j.to(tl.int64) * (classes + 1), mask=j < classes, other=0.0)
    theirs = tl.load(table + k.to(tl.int64) * (classes + 1), mask=k < classes, other=0.0)
    return tl.where(j == k, 0.0, half * (own + theirs - 2.0 * g))


@device
def _own_table(table_ptr, label_ptr, slot_ptr, n, first, count, classes, PER_CLASS: tl.constexpr):
    """(where sample n's table lies, whether it is among the count tables from slot first on)."""
    if PER_CLASS:
        slot = tl.load(slot_ptr + tl.load(label_ptr + n)) - first
        present = (slot >= 0) & (slot < count)
        table = table_ptr + tl.where(present, slot, 0).to(tl.int64) * classes * classes
    else:
        present = n >= 0
        table = table_ptr
    return table, present


@triton.jit(do_not_specialize=["scale", "first", "count"])
def _bounds_kernel(
    bound_ptr, loss_ptr, z_ptr, lse_ptr, label_ptr, slot_ptr, table_ptr, strength_ptr,  # (N, J), (N, blocks), ..
    classes, row_stride, blocks, first, count, scale,
    PER_CLASS: tl.constexpr, SIDE: tl.constexpr,
):  # fmt: skip
    ACC: tl.constexpr = lse_ptr.dtype.element_ty
    n = (tl.program_id(0) // blocks).to(tl.int64)
    block = tl.program_id(0) % blocks
    table, present = _own_table(table_ptr, label_ptr, slot_ptr, n, first, count, classes, PER_CLASS)
    if present:
        k = block * SIDE + tl.arange(0, SIDE)[None, :]
        half = strength_value(strength_ptr, scale * 0.5, ACC)
        most = tl.full((1, SIDE), -float("inf"), ACC)
        total = tl.zeros((1, SIDE), ACC)
        for start in range(0, classes, SIDE):
            j = start + tl.arange(0, SIDE)[:, None]
            z = _logits(z_ptr, n, j, classes, row_stride, ACC)
            x = z + _exponents(table, j, k, half, classes)
            larger = tl.maximum(most, tl.max(x, 0)[None, :])
            shift = tl.where(larger == -float("inf"), 0.0, larger)
            total = total * tl.exp(most - shift) + tl.sum(tl.exp(x - shift), 0)[None, :]
            most = larger
        bound = most + tl.log(total)
        zk = _logits(z_ptr, n, k, classes, row_stride, ACC)
        p = tl.exp(zk - tl.load(lse_ptr + n))
        tl.store(bound_ptr + n * classes + k, bound, mask=k < classes)
        loss = tl.where(k < classes, weighted(p, bound - tl.where(p == 0, 0.0, zk)), 0.0)
        tl.store(loss_ptr + n * blocks + block, tl.sum(loss))


@device
def _terms(z_ptr, bound_ptr, lse_ptr, table, n, j, k, half, classes, row_stride, ACC: tl.constexpr):
    """p_k s_jk of sample n."""
    z = _logits(z_ptr, n, j, classes, row_stride, ACC)
    zk = _logits(z_ptr, n, k, classes, row_stride, ACC)
    p = tl.exp(zk - tl.load(lse_ptr + n))
    bound = tl.load(bound_ptr + n * classes + k, mask=k < classes, other=0.0)
    s = tl.exp(z + _exponents(table, j, k, half, classes) - bound)
    return tl.where((j < classes) & (k < classes), weighted(p, s), 0.0)


@triton.jit(do_not_specialize=["scale", "first", "count", "uniform"])
def _logits_kernel(
    grad_ptr, z_ptr, bound_ptr, lse_ptr, label_ptr, slot_ptr, table_ptr, strength_ptr, row_grad_ptr,
    classes, row_stride, blocks, first, count, scale, uniform,
    PER_CLASS: tl.constexpr, SIDE: tl.constexpr,
):  # fmt: skip
    ACC: tl.constexpr = lse_ptr.dtype.element_ty
    n = (tl.program_id(0) // blocks).to(tl.int64)
    table, present = _own_table(table_ptr, label_ptr, slot_ptr, n, first, count, classes, PER_CLASS)
    if present:
        j = tl.program_id(0) % blocks * SIDE + tl.arange(0, SIDE)[:, None]
        half = strength_value(strength_ptr, scale * 0.5, ACC)
        total = tl.zeros((SIDE, 1), ACC)
        for start in range(0, classes, SIDE):
            k = start + tl.arange(0, SIDE)[None, :]
            total += tl.sum(_terms(z_ptr, bound_ptr, lse_ptr, table, n, j, k, half, classes, row_stride, ACC),
                            1)[:, None]
        z = _logits(z_ptr, n, j, classes, row_stride, ACC)
        g = _row_grad(row_grad_ptr, uniform, n, ACC)
        grad = (total - tl.exp(z - tl.load(lse_ptr + n))) * g
        tl.store(grad_ptr + n * classes + j, to_storage(grad, grad_ptr.dtype.element_ty), mask=j < classes)


@device
def _row_grad(row_grad_ptr, uniform, n, ACC: tl.constexpr):
    if row_grad_ptr is None:
        g = (tl.full((), 1.0, tl.float64) * uniform).to(ACC)
    else:
        g = tl.load(row_grad_ptr + n).to(ACC)
    return g


@triton.jit(do_not_specialize=["scale", "first", "uniform"])
def _pulls_kernel(
    pull_ptr, z_ptr, bound_ptr, lse_ptr, label_ptr, present_ptr, table_ptr, strength_ptr, row_grad_ptr,
    rows, classes, row_stride, blocks, first, scale, uniform,
    PER_CLASS: tl.constexpr, SIDE: tl.constexpr,
):  # fmt: skip
    """R of a class (of all samples where not PER_CLASS); 0 of an empty slot."""
    ACC: tl.constexpr = lse_ptr.dtype.element_ty
    slot = (tl.program_id(0) // (blocks * blocks)).to(tl.int64)
    j = tl.program_id(0) // blocks % blocks * SIDE + tl.arange(0, SIDE)[:, None]
    k = tl.program_id(0) % blocks * SIDE + tl.arange(0, SIDE)[None, :]
    table = table_ptr + slot * classes * classes
    half = strength_value(strength_ptr, scale * 0.5, ACC)
    total = tl.zeros((SIDE, SIDE), ACC)
    c = -1
    if PER_CLASS:
        c = tl.load(present_ptr + first + slot)
    for row in range(0, rows):
        n = tl.full((), 0, tl.int64) + row
        mine = n >= 0
        if PER_CLASS:
            mine = tl.load(label_ptr + n) == c
        if mine:
            total += _row_grad(row_grad_ptr, uniform, n, ACC) * _terms(z_ptr, bound_ptr, lse_ptr, table, n, j, k, half,
                                                                      classes, row_stride, ACC)
    tl.store(pull_ptr + (slot * classes + j) * classes + k, total, mask=(j < classes) & (k < classes))


# ---------------------------------------------------------------- launchers

def _products(centred: Tensor, cov: Tensor, present: Tensor, first: int, count: int, kind: int) -> Tensor:
    """W Sigma_c (count, J, A) of the classes in these slots, or of the one covariance (1, J, A)."""
    if kind == CovarianceKind.IDENTITY:
        return centred.unsqueeze(0)
    if kind == CovarianceKind.SHARED:
        return (centred @ cov).unsqueeze(0)
    sigma = cov[present[first:first + count].clamp(min=0)]
    return centred * sigma.unsqueeze(1) if kind == CovarianceKind.DIAG else centred @ sigma


def isda_consistency(logits: Tensor, weight: Tensor, cov: Tensor, strength: Tensor | None, row_grad: Tensor | None,
                     scale: float, reduction: int, kind: int, need_grad: bool) -> tuple[Tensor, Tensor, Tensor]:
    z = packed_rows(logits)
    (rows, classes), width, gpu, dtype = z.shape, weight.shape[1], z.device, weight.dtype
    grad_logits = torch.empty((rows, classes) if need_grad else (0,), dtype=z.dtype, device=gpu)
    grad_weight = torch.zeros((classes, width) if need_grad else (0,), dtype=dtype, device=gpu)
    if rows == 0:
        loss = torch.zeros((0,) if reduction == Reduction.NONE else (), dtype=dtype, device=gpu)
        return loss, grad_logits, grad_weight
    label = torch.empty(rows, dtype=torch.int64, device=gpu)
    lse = torch.empty(rows, dtype=dtype, device=gpu)
    launch(_rows_kernel, rows, gpu, label, lse, z, classes, z.stride(0), BLOCK=min(1024, next_power_of_2(classes)),
           num_warps=4)
    per_class = kind in (CovarianceKind.FULL, CovarianceKind.DIAG)
    present, slot = present_classes(label, classes, -1)
    slots = present.shape[0] if per_class else 1
    size = classes * (width + 2 * classes) + (width * width if kind == CovarianceKind.FULL else 0)
    together = max(1, min(slots, CONFIG.elements // size))

    centred = weight - weight.mean(0)
    side = min(CONFIG.side, next_power_of_2(classes))
    blocks = triton.cdiv(classes, side)
    uniform = 1.0 / rows if reduction == Reduction.MEAN else 1.0
    options = {"PER_CLASS": per_class, "SIDE": side, "num_warps": 4}
    bound = torch.empty((rows, classes), dtype=dtype, device=gpu)
    loss = torch.empty((rows, blocks), dtype=dtype, device=gpu)
    for first in range(0, slots, together):
        count = min(together, slots - first)
        product = _products(centred, cov, present, first, count, kind)
        table = product @ centred.T
        own = (label, slot, table, strength)
        launch(_bounds_kernel, rows * blocks, gpu, bound, loss, z, lse, *own, classes, z.stride(0), blocks, first,
               count, scale, **options)
        if not need_grad:
            continue
        launch(_logits_kernel, rows * blocks, gpu, grad_logits, z, bound, lse, *own, row_grad, classes, z.stride(0),
               blocks, first, count, scale, uniform, **options)
        pull = torch.empty_like(table)
        launch(_pulls_kernel, table.shape[0] * blocks * blocks, gpu, pull, z, bound, lse, label, present, table,
               strength, row_grad, rows, classes, z.stride(0), blocks, first, scale, uniform, **options)
        _add_weight_gradient(grad_weight, pull, product, present[first:first + count] if per_class else None)
    if need_grad:
        grad_weight *= scale if strength is None else strength * scale
    per_row = loss.sum(1)
    loss = per_row if reduction == Reduction.NONE else per_row.sum() / (rows if reduction == Reduction.MEAN else 1)
    return loss, grad_logits, grad_weight


def _add_weight_gradient(grad: Tensor, pull: Tensor, product: Tensor, present: Tensor | None) -> None:
    pull = pull + pull.mT
    part = pull.sum(2, keepdim=True) * product - pull @ product
    if present is not None:  # an empty slot borrowed the covariance of class 0, which may be anything
        part = torch.where((present >= 0).view(-1, 1, 1), part, 0.0)
    grad += part.sum(0)
