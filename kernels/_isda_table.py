"""The table of isda's quadratic forms on Triton, see isda.py: T[c, j] = (w_j - w_c)^T Sigma_c (w_j - w_c)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmix.ops.enums import CovarianceKind

from ._classes import dot, dot_block, matmul_precision
from ._common import FLOAT, device, launch

DIAG, SHARED = tl.constexpr(CovarianceKind.DIAG.value), tl.constexpr(CovarianceKind.SHARED.value)


@dataclass(frozen=True)
class Config:
    """Reasoned, not measured; what spills is known (budget_triton.json)."""

    # Sides of the tiles of the full form, of the others', and the depth of one product: in TF32,
    full: int = 128
    side: int = 64
    depth: int = 32
    # in float32 by three TF32 products, whose operands lie split in registers (deeper, ptxas spills for sm_80),
    full_x3: int = 128
    side_x3: int = 64
    depth_x3: int = 16
    # and in float64.
    full_ieee: int = 64
    side_ieee: int = 32
    depth_ieee: int = 16
    # Features of a part of their tables: enough programs at J = 1000, A = 2048.
    part: int = 512
    # Programs that a launch should have; partial sums are split until it does.
    programs: int = 256
    # Elements of a tile that is only added or summed.
    tile: int = 2048


CONFIG = Config()


@dataclass(frozen=True)
class Products:
    """How tl.dot is used for weights of a type."""

    precision: str
    full: int
    side: int
    depth: int

    @classmethod
    def of(cls, weight: Tensor) -> Products:
        precision = matmul_precision(FLOAT[weight.dtype])
        sizes = {"tf32": (CONFIG.full, CONFIG.side, CONFIG.depth),
                 "tf32x3": (CONFIG.full_x3, CONFIG.side_x3, CONFIG.depth_x3),
                 "ieee": (CONFIG.full_ieee, CONFIG.side_ieee, CONFIG.depth_ieee)}
        return cls(precision, *sizes[precision])


@device
def strength_value(strength_ptr, scale, ACC: tl.constexpr):
    """scale, times the strength where it is a tensor. In float64: scale arrives as a double."""
    strength = tl.full((), 1.0, tl.float64) * scale
    if strength_ptr is not None:
        strength = strength * tl.load(strength_ptr).to(tl.float64)
    return strength.to(ACC)


# ---------------------------------------------------------------- the table

@device
def matrix_tile(ptr, rows, in_rows, columns, in_columns, width):
    """Rows and columns of a matrix of this width; 0 outside."""
    return tl.load(ptr + rows.to(tl.int64)[:, None] * width + columns[None, :],
                   mask=in_rows[:, None] & in_columns[None, :], other=0.0)


@device
def panel_products(acc, weight_ptr, weight_c, matrix_ptr, j, a, first, last, classes, width, factor_ptr, pull_ptr,
                    c, PRECISION: tl.constexpr, DEPTH: tl.constexpr):
    """acc + V[:, first:last] Sigma[first:last, a]. With factor_ptr (J), V's rows are times it, and row c is -pull."""
    in_j = j < classes
    if factor_ptr is not None:
        factor = tl.load(factor_ptr + j, mask=in_j, other=0.0)
    for start in range(first, last, DEPTH):
        k = start + tl.arange(0, DEPTH)
        in_k = k < width
        v = tl.load(weight_ptr + j.to(tl.int64)[:, None] * width + k[None, :], mask=in_j[:, None] & in_k[None, :],
                    other=0.0)
        v = v - tl.load(weight_c + k, mask=in_k, other=0.0)[None, :]
        if factor_ptr is not None:
            pull = tl.load(pull_ptr + k, mask=in_k, other=0.0)
            v = tl.where((j == c)[:, None], -pull[None, :], v * factor[:, None])
        # Symmetric: its rows a, whose k lie side by side as tensor cores want them, instead of its rows k.
        sigma = matrix_tile(matrix_ptr, a, a < width, k, in_k, width)
        acc = dot(v, tl.trans(sigma), acc, PRECISION)
    return acc


@triton.jit
def _full_table_kernel(
    part_ptr, product_ptr, weight_ptr, cov_ptr, present_ptr,     # (parts, slots, J), (slots, J, A) or None, (J, A), ..
    slots, classes, width, row_blocks, parts,
    PRECISION: tl.constexpr, ROWS: tl.constexpr, PANEL: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    slot = (tl.program_id(0) // (row_blocks * parts)).to(tl.int64)
    c = tl.load(present_ptr + slot).to(tl.int64)
    if c >= 0:
        inner = tl.program_id(0) % (row_blocks * parts)
        part = parts - 1 - inner // row_blocks  # the longest first
        j = inner % row_blocks * ROWS + tl.arange(0, ROWS)
        a = part * PANEL + tl.arange(0, PANEL)
        matrix = cov_ptr + c * width * width
        weight_c = weight_ptr + c * width
        acc = tl.zeros((ROWS, PANEL), part_ptr.dtype.element_ty)
        first = 0
        if product_ptr is None:
            acc = panel_products(acc, weight_ptr, weight_c, matrix, j, a, 0, part * PANEL, classes, width, None, None,
                                 c, PRECISION, DEPTH)
            acc = acc * 2.0
            first = part * PANEL
            last = tl.minimum(first + PANEL, width)
        else:
            last = width
        acc = panel_products(acc, weight_ptr, weight_c, matrix, j, a, first, last, classes, width, None, None, c,
                             PRECISION, DEPTH)
        if product_ptr is not None:
            tl.store(product_ptr + (slot * classes + j)[:, None] * width + a[None, :], acc,
                     mask=(j < classes)[:, None] & (a < width)[None, :])
        v = tl.load(weight_ptr + j.to(tl.int64)[:, None] * width + a[None, :],
                    mask=(j < classes)[:, None] & (a < width)[None, :], other=0.0)
        v = v - tl.load(weight_c + a, mask=a < width, other=0.0)[None, :]
        tl.store(part_ptr + (part * slots + slot) * classes + j, tl.sum(acc * v, 1), mask=j < classes)


@device
def mean_row(values, in_rows):
    count = tl.maximum(tl.sum(in_rows.to(tl.int32)), 1)
    return (tl.sum(values, 0) / count.to(values.dtype))[None, :]


@triton.jit
def _pair_table_kernel(
    part_ptr, weight_ptr, cov_ptr, product_ptr, present_ptr,     # (parts, slots, J), (J, A), (J, A) diag, (J, A) shared
    slots, classes, width, row_blocks, parts, part_width,
    KIND: tl.constexpr, PRECISION: tl.constexpr, SLOTS: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    ACC: tl.constexpr = part_ptr.dtype.element_ty
    part = tl.program_id(0) % parts
    block = tl.program_id(0) // parts
    j = block % row_blocks * ROWS + tl.arange(0, ROWS)
    u = block // row_blocks * SLOTS + tl.arange(0, SLOTS)
    c = tl.load(present_ptr + u, mask=u < slots, other=-1)
    in_u, in_j = c >= 0, j < classes
    if tl.max(c) >= 0:
        table = tl.zeros((SLOTS, ROWS), ACC)
        own = tl.zeros((SLOTS,), ACC)
        theirs = tl.zeros((ROWS,), ACC)
        for start in range(part * part_width, tl.minimum((part + 1) * part_width, width), DEPTH):
            a = start + tl.arange(0, DEPTH)
            in_a = a < width
            wj = matrix_tile(weight_ptr, j, in_j, a, in_a, width)
            mean = mean_row(wj, in_j)
            wc = matrix_tile(weight_ptr, c, in_u, a, in_a, width) - mean
            wj = tl.where(in_j[:, None], wj - mean, 0.0)
            wc = tl.where(in_u[:, None], wc, 0.0)
            if KIND == DIAG:
                sigma = matrix_tile(cov_ptr, c, in_u, a, in_a, width)
                table = dot(sigma, tl.trans(wj * wj), table, PRECISION)
                own += tl.sum(sigma * wc * wc, 1)
                wc = sigma * wc
                pj = wj
            else:
                pj, pc = wj, wc
                if KIND == SHARED:  # product = weight Sigma, whose mean is Sigma times the mean
                    pj = matrix_tile(product_ptr, j, in_j, a, in_a, width)
                    mean = mean_row(pj, in_j)
                    pj = tl.where(in_j[:, None], pj - mean, 0.0)
                    pc = tl.where(in_u[:, None], matrix_tile(product_ptr, c, in_u, a, in_a, width) - mean, 0.0)
                own += tl.sum(wc * pc, 1)
                theirs += tl.sum(wj * pj, 1)
            table = dot(wc * -2.0, tl.trans(pj), table, PRECISION)
        table += own[:, None] + theirs[None, :]
        tl.store(part_ptr + (part * slots + u.to(tl.int64)[:, None]) * classes + j[None, :], table,
                 mask=in_u[:, None] & in_j[None, :])


# ---------------------------------------------------------------- launchers

def full_table(weight: Tensor, cov: Tensor, present: Tensor, product: Tensor | None) -> Tensor:
    """(parts, slots, J): their sum is v^T Sigma v. product (slots, J, A): V Sigma goes there, of present classes."""
    (classes, width), slots, gpu, use = weight.shape, present.shape[0], weight.device, Products.of(weight)
    block, panel = dot_block(classes, use.full), dot_block(width, use.full)
    parts, blocks = triton.cdiv(width, panel), triton.cdiv(classes, block)
    table = torch.empty((parts, slots, classes), dtype=weight.dtype, device=gpu)
    launch(_full_table_kernel, slots * parts * blocks, gpu, table, product, weight, cov, present, slots, classes, width,
           blocks, parts, PRECISION=use.precision, ROWS=block, PANEL=panel, DEPTH=min(use.depth, panel), num_warps=8)
    return table


def tables(weight: Tensor, cov: Tensor, present: Tensor, kind: int, rows: int) -> Tensor:
    """(parts, slots, J): their sum is v^T Sigma v. weight and cov are contiguous; rows: that will read the table."""
    (classes, width), slots, gpu, use = weight.shape, present.shape[0], weight.device, Products.of(weight)
    if kind == CovarianceKind.FULL:
        return full_table(weight, cov, present, None)
    product = weight @ cov if kind == CovarianceKind.SHARED else None
    block, together, depth = dot_block(classes, use.side), dot_block(slots, use.side), dot_block(width, use.depth)
    # Pixels read the table far more often than it is written: in one part then.
    part = width if rows > 8 * slots else CONFIG.part
    parts, blocks = max(1, triton.cdiv(width, part)), triton.cdiv(classes, block)
    table = torch.empty((parts, slots, classes), dtype=weight.dtype, device=gpu)
    launch(_pair_table_kernel, triton.cdiv(slots, together) * blocks * parts, gpu, table, weight, cov, product, present,
           slots, classes, width, blocks, parts, part, KIND=kind, PRECISION=use.precision, SLOTS=together,
           ROWS=block, DEPTH=depth, num_warps=8, maxnreg=255)
    return table
