"""soft_target on Triton: loss and gradient of a row of logits in one read of it. Soft Augmentation Eq. 12-15.

With m = max z, S = sum_j exp(z_j - m), T = sum_j t_j and t_j = base + sum_k weight_k [index_k == j]

    loss = T log S - base sum_j (z_j - m) - sum_k weight_k (z[index_k] - m)          (+ sum_j t_j log t_j for KL)
    d loss / d z_j = T exp(z_j - m) / S - t_j

since d(log S + m)/dz_j is softmax_j, whatever m. The gradient row is written with t_j = base; a barrier later the
few named classes are written once more, with the weights of repeated classes added up, so no element of the row
is compared with every index. BCE: softplus(z_j) - t_j z_j with gradient sigmoid(z_j) - t_j.

Kernels: softmax against the classes that a target names (sparse), softmax against a dense target, and BCE (sigmoid)
against either. Launches: one of them (loss of each program's rows added up), then one program that adds the programs'
sums in order: no atomics, the same bits every time. "mean" counts the rows that are not ignored on the device: up to
`Config.count_rows` rows every program does it for itself, above a third launch does it first.

A row up to `Config.one_pass` classes lies in registers. Rows that start off a 16-byte boundary (odd J) are split into
an aligned body, read and written 16 bytes at a time, and an edge of fewer than 2 vectors. A longer row is read
twice, with a running maximum the first time; the second read comes from the L2 cache.

bytes: N*J*(1 read + 1 write if a gradient is wanted) * element size; flops: about 20 N*J. Not yet run on a GPU.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmix.ops.enums import Loss, Reduction

from ._common import FLOAT, launch, next_power_of_2, packed_rows, vector
from ._loss import bce_terms, count_rows, scale_kernel, sigmoid, sum_parts, weighted, xlogx
from ._soft_target_rows import (
    MEAN,
    base_of,
    load_edge,
    load_named,
    load_piece,
    load_target,
    row_layout,
    running_softmax,
    store_gradient,
    store_loss,
    times_sample_weight,
    valid_rows,
)

KL = tl.constexpr(Loss.KL.value)


@dataclass(frozen=True)
class Config:
    """Reasoned, not measured."""

    # A row of this many float32 values fits the registers of one program without spilling (budget_triton.json).
    one_pass: int = 32768
    # A dense target is a second row in registers.
    one_pass_dense: int = 16384
    # Pieces of a row that is read in a loop: of BCE, and of rows that do not fit.
    piece: int = 4096
    piece_double: int = 512
    # Logits of a program with short rows: four warps with 16 logits a thread, 8 where the loop wants registers.
    tile: int = 2048
    tile_loop: int = 1024
    # Counting costs each program a 32-byte sector a row, out of L2: below this less than another launch.
    count_rows: int = 512
    count_programs: int = 128
    # Below this many classes the edge of an odd row would be most of the row: single elements instead.
    split_classes: int = 256
    # Left alone, ptxas spills 8 bytes to fit one more program; these are above what the kernels then take.
    loop_registers: int = 96
    registers: int = 168

    @staticmethod
    def warps(elements: int) -> int:
        return min(16, max(4, elements // 512))


CONFIG = Config()


# ---------------------------------------------------------------- kernels

@triton.jit(do_not_specialize=["ignore_index"])
def _sparse_kernel(
    loss_ptr, grad_ptr, logits_ptr, index_ptr, weight_ptr,      # (programs,) or (N,); (N, J) x2, (N, K) x2
    base_ptr, sample_weight_ptr, counts_ptr,                    # (N,), (N,), (COUNT_BLOCK,); None = absent
    rows, classes, row_stride, columns,                         # columns = K
    ignore_index, smoothing, smoothing_low,                     # label smoothing = smoothing + smoothing_low
    LOSS: tl.constexpr, REDUCTION: tl.constexpr, SMOOTH: tl.constexpr, ACC: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr, VEC: tl.constexpr, EDGES: tl.constexpr, LOOP: tl.constexpr, COLUMNS: tl.constexpr,
    COUNT_BLOCK: tl.constexpr, COUNT_PARTIAL: tl.constexpr,
):  # fmt: skip
    """Softmax against the K classes that each row names, and one base for all others."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    is_row = row < rows
    start, body_start, grad_start, head, body = row_layout(row, classes, row_stride, ROWS, VEC, EDGES)
    lane = tl.arange(0, BLOCK)[None, :]
    if EDGES:
        edge_class, is_edge, edge_z = load_edge(logits_ptr, start, head, body, classes, is_row, VEC, ACC)
    base, keep = base_of(base_ptr, row, is_row, classes, smoothing, smoothing_low, SMOOTH, ROWS, ACC)
    named, is_named, named_weight, named_z, named_total, first_of_class, ignored, in_range = load_named(
        logits_ptr, index_ptr, weight_ptr, start, row, is_row, classes, columns, ignore_index, keep, ROWS, COLUMNS, ACC)
    scale = tl.zeros((ROWS, 1), ACC) + 1.0
    if REDUCTION == MEAN:
        counted = valid_rows(index_ptr, counts_ptr, rows, columns, ignore_index.to(tl.int64), COUNT_BLOCK,
                             COUNT_PARTIAL)
        scale = scale / tl.maximum(counted, 1).to(ACC)
    scale = times_sample_weight(scale, sample_weight_ptr, row, is_row, ACC)

    # The sums over the row. exps: of softmax; spread: of z - maximum.
    maximum = tl.zeros((ROWS, 1), ACC) + float("-inf")
    exps = tl.zeros((ROWS, 1), ACC)
    spread = tl.zeros((ROWS, 1), ACC)
    if EDGES:
        maximum = tl.max(edge_z, 1)[:, None]
    if LOOP:
        for at in range(0, classes, BLOCK):
            inside, z, t = load_piece(logits_ptr, None, body_start, grad_start, at + lane, body, is_row, base, keep,
                                      ACC)
            maximum, exps, moved, shifted = running_softmax(maximum, exps, z, at)
            if SMOOTH or base_ptr is not None:
                spread += at * moved + tl.sum(tl.where(inside, shifted, 0.0), 1)[:, None]
    else:
        inside, z, t = load_piece(logits_ptr, None, body_start, grad_start, lane, body, is_row, base, keep, ACC)
        maximum = tl.maximum(maximum, tl.max(z, 1)[:, None])
        e = tl.exp(z - maximum)
        exps = tl.sum(e, 1)[:, None]
        if SMOOTH or base_ptr is not None:
            spread = tl.sum(tl.where(inside, z - maximum, 0.0), 1)[:, None]
    if EDGES:
        edge_shifted = edge_z - maximum
        exps += tl.sum(tl.exp(edge_shifted), 1)[:, None]
        if SMOOTH or base_ptr is not None:
            spread += tl.sum(tl.where(is_edge, edge_shifted, 0.0), 1)[:, None]

    total = base * classes + tl.sum(named_weight, 1)[:, None]
    dot = weighted(base, spread) + tl.sum(weighted(named_weight, named_z - maximum), 1)[:, None]
    extra = tl.zeros((ROWS, 1), ACC)
    if LOSS == KL:
        named_entropy = tl.where(first_of_class, xlogx(base + named_total), 0.0)
        distinct = tl.sum(first_of_class.to(tl.int32), 1)[:, None]
        extra = tl.sum(named_entropy, 1)[:, None] + (classes - distinct).to(ACC) * xlogx(base)
    loss = tl.where(in_range, total * tl.log(exps) - dot + extra, float("nan")) * scale
    store_loss(loss_ptr, tl.where(is_row & ~ignored, loss, 0.0), row, is_row, REDUCTION)

    if grad_ptr is not None:
        scale = tl.where(in_range, scale, float("nan"))
        factor = scale * total / exps
        if LOOP:
            for at in range(0, classes, BLOCK):
                inside, z, t = load_piece(logits_ptr, None, body_start, grad_start, at + lane, body, is_row, base, keep,
                                          ACC)
                grad = tl.where(ignored, 0.0, tl.exp(z - maximum) * factor - scale * t)
                store_gradient(grad_ptr, grad_start + (at + lane), grad, inside)
        else:
            store_gradient(grad_ptr, grad_start + lane, tl.where(ignored, 0.0, e * factor - scale * t), inside)
        if EDGES:
            edge_grad = tl.where(ignored, 0.0, tl.exp(edge_z - maximum) * factor - scale * base)
            store_gradient(grad_ptr, start + edge_class, edge_grad, is_edge)
        # The named classes were written above by other threads, without their weights.
        tl.debug_barrier()
        named_grad = tl.exp(named_z - maximum) * factor - scale * (base + named_total)
        store_gradient(grad_ptr, row * classes + named, named_grad, is_named & in_range & ~ignored)


@triton.jit
def _dense_kernel(
    loss_ptr, grad_ptr, logits_ptr, target_ptr, sample_weight_ptr,  # (programs,) or (N,); (N, J) x3, (N,)
    rows, classes, row_stride, smoothing, smoothing_low,
    LOSS: tl.constexpr, REDUCTION: tl.constexpr, SMOOTH: tl.constexpr, ACC: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr, VEC: tl.constexpr, EDGES: tl.constexpr, LOOP: tl.constexpr,
):  # fmt: skip
    """Softmax against a target of (N, J)."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    is_row = row < rows
    start, body_start, grad_start, head, body = row_layout(row, classes, row_stride, ROWS, VEC, EDGES)
    lane = tl.arange(0, BLOCK)[None, :]
    if EDGES:
        edge_class, is_edge, edge_z = load_edge(logits_ptr, start, head, body, classes, is_row, VEC, ACC)
    base, keep = base_of(None, row, is_row, classes, smoothing, smoothing_low, SMOOTH, ROWS, ACC)
    scale = tl.zeros((ROWS, 1), ACC) + 1.0
    if REDUCTION == MEAN:
        scale = scale / (tl.zeros((ROWS, 1), ACC) + rows)
    scale = times_sample_weight(scale, sample_weight_ptr, row, is_row, ACC)

    # The sums over the row. exps: of softmax; total, dot, extra: of t, t (z - maximum) and, for KL, t log t.
    maximum = tl.zeros((ROWS, 1), ACC) + float("-inf")
    exps = tl.zeros((ROWS, 1), ACC)
    total = tl.zeros((ROWS, 1), ACC)
    dot = tl.zeros((ROWS, 1), ACC)
    extra = tl.zeros((ROWS, 1), ACC)
    if EDGES:
        edge_t = load_target(target_ptr + start + edge_class, is_edge, base, keep, ACC)
        maximum = tl.max(edge_z, 1)[:, None]
    if LOOP:
        for at in range(0, classes, BLOCK):
            inside, z, t = load_piece(logits_ptr, target_ptr, body_start, grad_start, at + lane, body, is_row, base,
                                      keep, ACC)
            maximum, exps, moved, shifted = running_softmax(maximum, exps, z, at)
            dot += weighted(total, moved) + tl.sum(weighted(t, shifted), 1)[:, None]
            total += tl.sum(t, 1)[:, None]
            if LOSS == KL:
                extra += tl.sum(xlogx(t), 1)[:, None]
    else:
        inside, z, t = load_piece(logits_ptr, target_ptr, body_start, grad_start, lane, body, is_row, base, keep, ACC)
        maximum = tl.maximum(maximum, tl.max(z, 1)[:, None])
        e = tl.exp(z - maximum)
        exps = tl.sum(e, 1)[:, None]
        total = tl.sum(t, 1)[:, None]
        dot = tl.sum(weighted(t, z - maximum), 1)[:, None]
        if LOSS == KL:
            extra = tl.sum(xlogx(t), 1)[:, None]
    if EDGES:
        edge_shifted = edge_z - maximum
        exps += tl.sum(tl.exp(edge_shifted), 1)[:, None]
        total += tl.sum(edge_t, 1)[:, None]
        dot += tl.sum(weighted(edge_t, edge_shifted), 1)[:, None]
        if LOSS == KL:
            extra += tl.sum(xlogx(edge_t), 1)[:, None]

    loss = (total * tl.log(exps) - dot + extra) * scale
    store_loss(loss_ptr, tl.where(is_row, loss, 0.0), row, is_row, REDUCTION)

    if grad_ptr is not None:
        factor = scale * total / exps
        if LOOP:
            for at in range(0, classes, BLOCK):
                inside, z, t = load_piece(logits_ptr, target_ptr, body_start, grad_start, at + lane, body, is_row, base,
                                          keep, ACC)
                store_gradient(grad_ptr, grad_start + (at + lane), tl.exp(z - maximum) * factor - scale * t, inside)
        else:
            store_gradient(grad_ptr, grad_start + lane, e * factor - scale * t, inside)
        if EDGES:
            edge_grad = tl.exp(edge_z - maximum) * factor - scale * edge_t
            store_gradient(grad_ptr, start + edge_class, edge_grad, is_edge)


@triton.jit(do_not_specialize=["ignore_index"])
def _sigmoid_kernel(
    loss_ptr, grad_ptr, logits_ptr, index_ptr, weight_ptr,      # as of `_sparse_kernel`
    base_ptr, target_ptr, sample_weight_ptr,                    # target: (N, J), or None and index (N, K)
    rows, classes, row_stride, columns, ignore_index, smoothing, smoothing_low,
    REDUCTION: tl.constexpr, SMOOTH: tl.constexpr, ACC: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    VEC: tl.constexpr, EDGES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """BCE. Nothing of the row as a whole is needed for the gradient: one loop for both."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    is_row = row < rows
    start, body_start, grad_start, head, body = row_layout(row, classes, row_stride, ROWS, VEC, EDGES)
    lane = tl.arange(0, BLOCK)[None, :]
    if EDGES:
        edge_class, is_edge, edge_z = load_edge(logits_ptr, start, head, body, classes, is_row, VEC, ACC)
    base, keep = base_of(base_ptr, row, is_row, classes, smoothing, smoothing_low, SMOOTH, ROWS, ACC)
    ignored = row < 0
    in_range = row >= 0
    if index_ptr is not None:
        named, is_named, named_weight, named_z, named_total, _, ignored, in_range = load_named(
            logits_ptr, index_ptr, weight_ptr, start, row, is_row, classes, columns, ignore_index, keep, ROWS, COLUMNS,
            ACC)
    scale = tl.zeros((ROWS, 1), ACC) + 1.0
    if REDUCTION == MEAN:
        scale = scale / (tl.zeros((ROWS, 1), ACC) + rows) / (tl.zeros((ROWS, 1), ACC) + classes)
    scale = times_sample_weight(scale, sample_weight_ptr, row, is_row, ACC)

    loss = tl.zeros((ROWS, 1), ACC)
    grad_scale = tl.where(in_range, scale, float("nan"))
    if EDGES:
        edge_t = base
        if target_ptr is not None:
            edge_t = load_target(target_ptr + start + edge_class, is_edge, base, keep, ACC)
        loss = tl.sum(bce_terms(edge_z, edge_t, is_edge, ACC), 1)[:, None]
        if grad_ptr is not None:
            edge_grad = tl.where(ignored, 0.0, grad_scale * (sigmoid(edge_z) - edge_t))
            store_gradient(grad_ptr, start + edge_class, edge_grad, is_edge)
    for at in range(0, classes, BLOCK):
        inside, z, t = load_piece(logits_ptr, target_ptr, body_start, grad_start, at + lane, body, is_row, base, keep,
                                  ACC)
        loss += tl.sum(bce_terms(z, t, inside, ACC), 1)[:, None]
        if grad_ptr is not None:
            grad = tl.where(ignored, 0.0, grad_scale * (sigmoid(z) - t))
            store_gradient(grad_ptr, grad_start + (at + lane), grad, inside)
    if index_ptr is not None:
        loss -= tl.sum(weighted(named_weight, named_z), 1)[:, None]
    loss = tl.where(in_range, loss, float("nan")) * scale
    store_loss(loss_ptr, tl.where(is_row & ~ignored, loss, 0.0), row, is_row, REDUCTION)

    if grad_ptr is not None and index_ptr is not None:
        # The named classes were written above by other threads, without their weights.
        tl.debug_barrier()
        named_grad = grad_scale * (sigmoid(named_z) - base - named_total)
        store_gradient(grad_ptr, row * classes + named, named_grad, is_named & in_range & ~ignored)


# ---------------------------------------------------------------- launchers

def _alignment(logits: Tensor, classes: int) -> tuple[int, bool]:
    """(VEC, EDGES) of the kernels."""
    widest = vector(logits.element_size())
    stride = logits.stride(0) if logits.shape[0] > 1 else classes
    aligned = vector(logits.element_size(), classes, stride)
    # Logits and gradient must start on the same side of a boundary for their bodies to coincide.
    if aligned == widest or classes < CONFIG.split_classes or stride != classes:
        return aligned, False
    return widest, True


def _run(logits: Tensor, index: Tensor | None, weight: Tensor | None, base: Tensor | None, target: Tensor | None,
         sample_weight: Tensor | None, smoothing: float, ignore_index: int, loss: int, reduction: int,
         need_grad: bool) -> tuple[Tensor, Tensor]:
    (rows, classes), device, double = logits.shape, logits.device, logits.dtype == torch.float64
    dtype = torch.float64 if double else torch.float32
    grad = torch.empty(logits.shape if need_grad else (0,), dtype=logits.dtype, device=device)
    out = torch.empty((rows,) if reduction == Reduction.NONE else (), dtype=dtype, device=device)
    if rows == 0 or classes == 0:
        return out.zero_(), grad
    logits = packed_rows(logits)
    index, weight, base, target, sample_weight = (
        t if t is None else t.contiguous() for t in (index, weight, base, target, sample_weight))

    block = next_power_of_2(classes)
    limit = CONFIG.one_pass if target is None else CONFIG.one_pass_dense
    loop = loss == Loss.BCE or block > (CONFIG.piece_double if double else limit)
    if loop:
        block = min(block, CONFIG.piece_double if double else CONFIG.piece)
    rows_here = max(1, (CONFIG.tile_loop if loop or double else CONFIG.tile) // (2 * block if double else block))
    programs = triton.cdiv(rows, rows_here)
    vec, edges = _alignment(logits, classes)
    parts = out
    if reduction != Reduction.NONE and programs > 1:
        parts = torch.empty(programs, dtype=dtype, device=device)
    # Triton takes a float argument as float32; a float64 loss gets the rest of it as well.
    high, = struct.unpack("f", struct.pack("f", smoothing))
    smoothings = (high, smoothing - high if double else 0.0)
    options = {"REDUCTION": reduction, "SMOOTH": smoothing != 0.0, "ACC": FLOAT[logits.dtype], "ROWS": rows_here,
               "BLOCK": block, "VEC": vec, "EDGES": edges, "num_warps": CONFIG.warps(block * rows_here)}
    if loop:
        options["maxnreg"] = CONFIG.loop_registers if target is None and not double else CONFIG.registers
    elif rows_here > 1:
        options["maxnreg"] = CONFIG.registers
    results, sizes = (parts, grad if need_grad else None), (rows, classes, logits.stride(0))
    columns = 1 if index is None else index.shape[1]
    if loss == Loss.BCE:
        launch(_sigmoid_kernel, programs, device, *results, logits, index, weight, base, target, sample_weight, *sizes,
               columns, ignore_index, *smoothings, COLUMNS=next_power_of_2(columns), **options)
    elif index is None:
        launch(_dense_kernel, programs, device, *results, logits, target, sample_weight, *sizes, *smoothings, LOSS=loss,
               LOOP=loop, **options)
    else:
        counts, count_block = None, 1
        if reduction == Reduction.MEAN:
            counts, count_block = _counts(index, ignore_index)
        launch(_sparse_kernel, programs, device, *results, logits, index, weight, base, sample_weight, counts, *sizes,
               columns, ignore_index, *smoothings, LOSS=loss, LOOP=loop, COLUMNS=next_power_of_2(columns),
               COUNT_BLOCK=count_block, COUNT_PARTIAL=counts is not None, **options)
    if parts is not out:
        launch(sum_parts, 1, device, out, parts, programs, BLOCK=1024, num_warps=4)
    return out, grad


def _counts(index: Tensor, ignore_index: int) -> tuple[Tensor | None, int]:
    """(counts of the rows that are not ignored, None where every program counts them itself; COUNT_BLOCK)."""
    rows = index.shape[0]
    if rows <= CONFIG.count_rows:
        return None, next_power_of_2(rows)
    programs = CONFIG.count_programs
    counts = torch.empty(programs, dtype=torch.int64, device=index.device)
    share = triton.cdiv(rows, programs)
    launch(count_rows, programs, index.device, counts, index, rows, index.shape[1], share, ignore_index,
           BLOCK=min(1024, next_power_of_2(share)))
    return counts, programs


def soft_target(logits: Tensor, index: Tensor, weight: Tensor | None, base: Tensor | None,
                sample_weight: Tensor | None, label_smoothing: float, ignore_index: int, loss: int, reduction: int,
                need_grad: bool) -> tuple[Tensor, Tensor]:
    return _run(logits, index, weight, base, None, sample_weight, label_smoothing, ignore_index, loss, reduction,
                need_grad)


def soft_target_dense(logits: Tensor, target: Tensor, sample_weight: Tensor | None, label_smoothing: float, loss: int,
                      reduction: int, need_grad: bool) -> tuple[Tensor, Tensor]:
    return _run(logits, None, None, None, target, sample_weight, label_smoothing, 0, loss, reduction, need_grad)


def scale_gradient_(grad: Tensor, g: Tensor) -> None:
    """grad (contiguous) times g in place. A 0-d g takes one launch that touches nothing where g is 1, without a sync.

    g: 0-d, or (N,) for the rows of grad (N, J).
    """
    if g.ndim == 1:
        grad.mul_(g.unsqueeze(1))
        return
    block = 8192
    launch(scale_kernel, triton.cdiv(grad.numel(), block), grad.device, grad, g, grad.numel(), BLOCK=block,
           num_warps=8)
