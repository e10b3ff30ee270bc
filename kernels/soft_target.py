"""soft_target on Triton: loss and gradient of a row of logits in one read of it. Soft Augmentation Eq. 12-15.

With m = max z, S = sum_j exp(z_j - m), T = sum_j t_j and t_j = base + sum_k weight_k [index_k == j]

    loss = T log S - base sum_j (z_j - m) - sum_k weight_k (z[index_k] - m)          (+ sum_j t_j log t_j for KL)
    d loss / d z_j = T exp(z_j - m) / S - t_j

since d(log S + m)/dz_j is softmax_j, whatever m. The gradient row is written with t_j = base; a barrier later the
few named classes are written once more, with the weights of repeated classes added up, so no element of the row
is compared with every index. BCE: softplus(z_j) - t_j z_j with gradient sigmoid(z_j) - t_j.

Launches: rows (loss of each program's rows added up), then one program that adds the programs' sums in order: no
atomics, the same bits every time. "mean" counts the rows that are not ignored on the device: up to `Config.count_rows`
rows every program does it for itself, above a third launch does it first.

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

from ._common import FLOAT, device, launch, next_power_of_2, to_float, to_storage, vector
from ._loss import bce_terms, count_rows, scale_kernel, sigmoid, sum_parts, weighted, xlogx

CROSS_ENTROPY, KL, BCE = 0, 1, 2
NONE, MEAN, SUM = 0, 1, 2


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


# ---------------------------------------------------------------- rows

@device
def _count(index_ptr, counts_ptr, rows, index_stride, ignore_index, BLOCK: tl.constexpr, PARTIAL: tl.constexpr):
    """The number of rows that are not ignored, from index or from the partial counts of `count_rows`."""
    at = tl.arange(0, BLOCK)
    if PARTIAL:
        counted = tl.load(counts_ptr + at)
    else:
        first = tl.load(index_ptr + at.to(tl.int64) * index_stride, mask=at < rows, other=0)
        counted = ((at < rows) & (first != ignore_index)).to(tl.int64)
    return tl.sum(counted)


@device
def _load(logits_ptr, target_ptr, start, target_start, at, body, is_row, base, keep, ACC: tl.constexpr):
    """(which lanes are classes, logits, targets) of a piece of each row; lanes outside hold -inf and target 0."""
    held = (at < body) & is_row
    z = to_float(tl.load(logits_ptr + start + at, mask=held, other=float("-inf")), ACC)
    t = base
    if target_ptr is not None:
        t = to_float(tl.load(target_ptr + target_start + at, mask=held, other=0.0), ACC)
        t = tl.where(held, t * keep + base, 0.0)
    return held, z, t


@triton.jit(do_not_specialize=["ignore_index"])
def _rows_kernel(
    loss_ptr, grad_ptr,                                         # (programs,) or (N,); (N, J) or None
    logits_ptr, index_ptr, weight_ptr, base_ptr, target_ptr,    # (N, J); (N, K), (N, K), (N,) or (N, J); None = absent
    sample_weight_ptr, counts_ptr,                              # (N,); (COUNT_BLOCK,)
    rows, classes, row_stride, columns,                         # columns = K
    ignore_index, smoothing, smoothing_low,                     # label smoothing = smoothing + smoothing_low
    LOSS: tl.constexpr, REDUCTION: tl.constexpr, SMOOTH: tl.constexpr, ACC: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr,
    VEC: tl.constexpr, EDGES: tl.constexpr, LOOP: tl.constexpr, COUNT_BLOCK: tl.constexpr, COUNT_PARTIAL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    row = row[:, None]
    is_row = row < rows
    eps = tl.zeros((ROWS, 1), ACC) + smoothing + smoothing_low
    keep = 1.0 - eps

    # Where the body, aligned to VEC elements, starts and ends; VEC = 1 or an aligned row has no edge.
    if EDGES:
        start = row * row_stride
        body_start = (start + VEC - 1) // VEC * VEC
        head = tl.minimum(body_start - start, classes)
        body = (classes - head) // VEC * VEC
        grad_start = body_start
    else:
        head = tl.zeros((ROWS, 1), tl.int64)
        start = row * (row_stride // VEC * VEC)
        body_start = start
        body = tl.zeros((ROWS, 1), tl.int64) + classes // VEC * VEC
        grad_start = row * (classes // VEC * VEC)
    lane = tl.arange(0, BLOCK)[None, :]
    if EDGES:
        edge = tl.arange(0, 2 * VEC)[None, :]
        edge_class = tl.where(edge < VEC, edge, head + body + edge - VEC)
        is_edge = tl.where(edge < VEC, edge < head, edge_class < classes) & is_row
        edge_logits = tl.load(logits_ptr + start + edge_class, mask=is_edge, other=float("-inf"))
        edge_z = to_float(edge_logits, ACC)

    # The target of the row: base, and the classes it names.
    base = tl.zeros((ROWS, 1), ACC)
    if base_ptr is not None:
        base = tl.load(base_ptr + row, mask=is_row, other=0.0).to(ACC) * keep
    if SMOOTH:
        base += eps / classes
    ignored = row < 0
    in_range = row >= 0
    named_weight = tl.zeros((ROWS, 1), ACC)
    if index_ptr is not None:
        index_row = index_ptr + row * columns
        k = tl.arange(0, COLUMNS)[None, :]
        is_named = (k < columns) & is_row
        named = tl.load(index_row + k, mask=is_named, other=0)
        ignored = tl.load(index_row, mask=is_row, other=0) == ignore_index.to(tl.int64)
        valid = (named >= 0) & (named < classes)
        in_range = tl.min(tl.where(is_named, valid.to(tl.int32), 1), 1)[:, None] == 1
        named = tl.where(valid, named, 0)
        if weight_ptr is not None:
            named_weight = tl.load(weight_ptr + row * columns + k, mask=is_named, other=0.0).to(ACC) * keep
        else:
            named_weight = tl.where(is_named, keep, 0.0)
        named_z = to_float(tl.load(logits_ptr + start + named, mask=is_named, other=0.0), ACC)
        # Weights of the same class added up, in the order of k.
        named_total = named_weight
        first_of_class = is_named
        if COLUMNS > 1:
            named_total = tl.zeros((ROWS, COLUMNS), ACC)
            for other in range(0, columns):
                same = tl.load(index_row + other, mask=is_row, other=0) == named
                other_weight = tl.zeros((ROWS, 1), ACC) + keep
                if weight_ptr is not None:
                    other_weight = tl.load(weight_ptr + row * columns + other, mask=is_row, other=0.0).to(ACC) * keep
                named_total += tl.where(same, other_weight, 0.0)
                first_of_class = first_of_class & ((other >= k) | ~same)

    scale = tl.zeros((ROWS, 1), ACC) + 1.0
    if REDUCTION == 1:
        if LOSS == 2:
            scale = scale / (tl.zeros((ROWS, 1), ACC) + rows) / (tl.zeros((ROWS, 1), ACC) + classes)
        else:
            if index_ptr is not None:
                counted = _count(index_ptr, counts_ptr, rows, columns, ignore_index.to(tl.int64), COUNT_BLOCK,
                                 COUNT_PARTIAL)
                scale = scale / tl.maximum(counted, 1).to(ACC)
            else:
                scale = scale / (tl.zeros((ROWS, 1), ACC) + rows)
    if sample_weight_ptr is not None:
        scale = scale * tl.load(sample_weight_ptr + row, mask=is_row, other=0.0).to(ACC)

    # The sums over the row. maximum, exps: of softmax; total, dot: of the target, dot = sum t (z - maximum).
    maximum = tl.zeros((ROWS, 1), ACC) + float("-inf")
    exps = tl.zeros((ROWS, 1), ACC)
    total = tl.zeros((ROWS, 1), ACC)
    dot = tl.zeros((ROWS, 1), ACC)
    extra = tl.zeros((ROWS, 1), ACC)  # of BCE the terms, of KL with a dense target t log t
    spread = tl.zeros((ROWS, 1), ACC)  # sum of (z - maximum)
    if EDGES:
        edge_t = base
        if target_ptr is not None:
            edge_t = tl.load(target_ptr + start + edge_class, mask=is_edge, other=0.0)
            edge_t = tl.where(is_edge, to_float(edge_t, ACC) * keep + base, 0.0)
        if LOSS != 2:
            maximum = tl.max(edge_z, 1)[:, None]
    if LOSS == 2:
        # Nothing of the row as a whole is needed for the gradient: one loop for both.
        grad_scale = tl.where(in_range, scale, float("nan"))
        if EDGES:
            extra = tl.sum(bce_terms(edge_z, edge_t, is_edge, ACC), 1)[:, None]
            if grad_ptr is not None:
                edge_grad = tl.where(ignored, 0.0, grad_scale * (sigmoid(edge_z) - edge_t))
                tl.store(grad_ptr + start + edge_class, to_storage(edge_grad, grad_ptr.dtype.element_ty), mask=is_edge)
        for at in range(0, classes, BLOCK):
            held, z, t = _load(logits_ptr, target_ptr, body_start, grad_start, at + lane, body, is_row, base, keep, ACC)
            extra += tl.sum(bce_terms(z, t, held, ACC), 1)[:, None]
            if grad_ptr is not None:
                grad = tl.where(ignored, 0.0, grad_scale * (sigmoid(z) - t))
                tl.store(grad_ptr + grad_start + (at + lane), to_storage(grad, grad_ptr.dtype.element_ty), mask=held)
    else:
        if LOOP:
            for at in range(0, classes, BLOCK):
                held, z, t = _load(logits_ptr, target_ptr, body_start, grad_start, at + lane, body, is_row, base, keep,
                                   ACC)
                before = maximum
                maximum = tl.maximum(before, tl.max(z, 1)[:, None])
                # At first nothing is summed; where all so far is -inf, -inf - -inf would be NaN.
                moved = tl.where((at == 0) | (before == maximum), 0.0, before - maximum)
                shifted = z - tl.where(maximum == float("-inf"), 0.0, maximum)
                exps = exps * tl.exp(moved) + tl.sum(tl.exp(shifted), 1)[:, None]
                if target_ptr is not None:
                    dot += weighted(total, moved) + tl.sum(weighted(t, shifted), 1)[:, None]
                    total += tl.sum(t, 1)[:, None]
                    if LOSS == 1:
                        extra += tl.sum(xlogx(t), 1)[:, None]
                elif SMOOTH or base_ptr is not None:
                    spread += at * moved + tl.sum(tl.where(held, shifted, 0.0), 1)[:, None]
        else:
            held, z, t = _load(logits_ptr, target_ptr, body_start, grad_start, lane, body, is_row, base, keep, ACC)
            maximum = tl.maximum(maximum, tl.max(z, 1)[:, None])
            e = tl.exp(z - maximum)
            exps = tl.sum(e, 1)[:, None]
            if target_ptr is not None:
                total = tl.sum(t, 1)[:, None]
                dot = tl.sum(weighted(t, z - maximum), 1)[:, None]
                if LOSS == 1:
                    extra = tl.sum(xlogx(t), 1)[:, None]
            elif SMOOTH or base_ptr is not None:
                spread = tl.sum(tl.where(held, z - maximum, 0.0), 1)[:, None]
    if EDGES and LOSS != 2:
        edge_shifted = edge_z - maximum
        exps += tl.sum(tl.exp(edge_shifted), 1)[:, None]
        if target_ptr is not None:
            total += tl.sum(edge_t, 1)[:, None]
            dot += tl.sum(weighted(edge_t, edge_shifted), 1)[:, None]
            if LOSS == 1:
                extra += tl.sum(xlogx(edge_t), 1)[:, None]
        elif SMOOTH or base_ptr is not None:
            spread += tl.sum(tl.where(is_edge, edge_shifted, 0.0), 1)[:, None]

    if LOSS == 2:
        loss = extra
        if index_ptr is not None:
            loss -= tl.sum(weighted(named_weight, named_z), 1)[:, None]
    else:
        if index_ptr is not None:
            total = base * classes + tl.sum(named_weight, 1)[:, None]
            dot = weighted(base, spread) + tl.sum(weighted(named_weight, named_z - maximum), 1)[:, None]
            if LOSS == 1:
                named_entropy = tl.where(first_of_class, xlogx(base + named_total), 0.0)
                distinct = tl.sum(first_of_class.to(tl.int32), 1)[:, None]
                extra = tl.sum(named_entropy, 1)[:, None] + (classes - distinct).to(ACC) * xlogx(base)
        loss = total * tl.log(exps) - dot + extra
    loss = tl.where(in_range, loss, float("nan")) * scale
    loss = tl.where(is_row & ~ignored, loss, 0.0)
    if REDUCTION == 0:
        tl.store(loss_ptr + row, loss, mask=is_row)
    else:
        tl.store(loss_ptr + tl.program_id(0), tl.sum(tl.sum(loss, 1), 0))

    if grad_ptr is not None:
        scale = tl.where(in_range, scale, float("nan"))
        if LOSS != 2:
            factor = scale * total / exps
            if LOOP:
                for at in range(0, classes, BLOCK):
                    held, z, t = _load(logits_ptr, target_ptr, body_start, grad_start, at + lane, body, is_row, base,
                                       keep, ACC)
                    grad = tl.where(ignored, 0.0, tl.exp(z - maximum) * factor - scale * t)
                    tl.store(grad_ptr + grad_start + (at + lane), to_storage(grad, grad_ptr.dtype.element_ty),
                             mask=held)
            else:
                grad = tl.where(ignored, 0.0, e * factor - scale * t)
                tl.store(grad_ptr + grad_start + lane, to_storage(grad, grad_ptr.dtype.element_ty), mask=held)
            if EDGES:
                edge_grad = tl.where(ignored, 0.0, tl.exp(edge_z - maximum) * factor - scale * edge_t)
                tl.store(grad_ptr + start + edge_class, to_storage(edge_grad, grad_ptr.dtype.element_ty), mask=is_edge)
        if index_ptr is not None:
            # The named classes were written above by other threads, without their weights.
            tl.debug_barrier()
            if LOSS == 2:
                named_grad = scale * (sigmoid(named_z) - base - named_total)
            else:
                named_grad = tl.exp(named_z - maximum) * factor - scale * (base + named_total)
            named_grad = to_storage(named_grad, grad_ptr.dtype.element_ty)
            tl.store(grad_ptr + row * classes + named, named_grad, mask=is_named & in_range & ~ignored)


# ---------------------------------------------------------------- launchers

def _alignment(logits: Tensor, classes: int) -> tuple[int, bool]:
    """(VEC, EDGES) of `_rows_kernel`."""
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
    rows, classes = logits.shape
    device = logits.device
    double = logits.dtype == torch.float64
    dtype = torch.float64 if double else torch.float32
    grad = torch.empty(logits.shape if need_grad else (0,), dtype=logits.dtype, device=device)
    out = torch.empty((rows,) if reduction == NONE else (), dtype=dtype, device=device)
    if rows == 0 or classes == 0:
        return out.zero_(), grad
    if logits.stride(1) != 1 and classes > 1:
        logits = logits.contiguous()

    block = next_power_of_2(classes)
    limit = CONFIG.one_pass if target is None else CONFIG.one_pass_dense
    loop = loss == BCE or block > (CONFIG.piece_double if double else limit)
    if loop:
        block = min(block, CONFIG.piece_double if double else CONFIG.piece)
    rows_here = max(1, (CONFIG.tile_loop if loop or double else CONFIG.tile) // (2 * block if double else block))
    programs = triton.cdiv(rows, rows_here)
    vec, edges = _alignment(logits, classes)

    counts, count_block = None, 1
    if reduction == MEAN and index is not None and loss != BCE:
        count_block = next_power_of_2(rows)
        if rows > CONFIG.count_rows:
            count_block = CONFIG.count_programs
            counts = torch.empty(count_block, dtype=torch.int64, device=device)
            share = triton.cdiv(rows, count_block)
            launch(count_rows, count_block, device, counts, index, rows, index.shape[1], share, ignore_index,
                   BLOCK=min(1024, next_power_of_2(share)))
    parts = out
    if reduction != NONE and programs > 1:
        parts = torch.empty(programs, dtype=dtype, device=device)
    # Triton takes a float argument as float32; a float64 loss gets the rest of it as well.
    high, = struct.unpack("f", struct.pack("f", smoothing))
    columns = 1 if index is None else index.shape[1]
    registers = {}
    if loop:
        registers["maxnreg"] = CONFIG.loop_registers if target is None and not double else CONFIG.registers
    elif rows_here > 1:
        registers["maxnreg"] = CONFIG.registers
    launch(_rows_kernel, programs, device, parts, grad if need_grad else None, logits, index, weight, base, target,
           sample_weight, counts, rows, classes, logits.stride(0), columns, ignore_index, high,
           smoothing - high if double else 0.0,
           LOSS=loss, REDUCTION=reduction, SMOOTH=smoothing != 0.0, ACC=FLOAT[logits.dtype], ROWS=rows_here,
           BLOCK=block, COLUMNS=next_power_of_2(columns), VEC=vec, EDGES=edges, LOOP=loop, COUNT_BLOCK=count_block,
           COUNT_PARTIAL=counts is not None, num_warps=CONFIG.warps(block * rows_here), **registers)
    if parts is not out:
        launch(sum_parts, 1, device, out, parts, programs, BLOCK=1024, num_warps=4)
    return out, grad


def _dense(t: Tensor | None) -> Tensor | None:
    return t if t is None else t.contiguous()


def soft_target(logits: Tensor, index: Tensor, weight: Tensor | None, base: Tensor | None,
                sample_weight: Tensor | None, label_smoothing: float, ignore_index: int, loss: int, reduction: int,
                need_grad: bool) -> tuple[Tensor, Tensor]:
    return _run(logits, index.contiguous(), _dense(weight), _dense(base), None, _dense(sample_weight),
                label_smoothing, ignore_index, loss, reduction, need_grad)


def soft_target_dense(logits: Tensor, target: Tensor, sample_weight: Tensor | None, label_smoothing: float, loss: int,
                      reduction: int, need_grad: bool) -> tuple[Tensor, Tensor]:
    return _run(logits, None, None, None, target.contiguous(), _dense(sample_weight), label_smoothing, 0, loss,
                reduction, need_grad)


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
