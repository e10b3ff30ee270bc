"""covariance_update_ on Triton: class means and covariances, moved on in place by one batch. ISDA Eq. 1-3.

With n rows seen, m new ones of mean b, and d = mean - b:

    mean += -d m/(n+m)        cov = n/(n+m) cov + (sum of (x - b)(x - b)^T) / (n+m) + n m/(n+m)^2 d d^T

Launches: which rows count (every feature finite, label a class), the rows by class, the present classes and their
counts, means (diag: and the variances, in the same programs), and for full and shared the tiles of the matrices.
Shared is the update of a single class that every row belongs to.

full: a tile is read, merged and written once, as many rows deep as the class has in the batch; sums of products go
through tl.dot. Matrices are symmetric, so tiles above the diagonal are not computed: they are the transpose of those
below. bytes: U*A*A*(1/2 read + 1 write) * element size for U present classes, and the rows of a class A/64 times
from L2; flops: N A^2. diag: U*A read + written and the rows twice, the second time from L2.
Features of pixels (N, A, P) are first laid out as rows, one read and write of them: every later gather is then of
whole rows. Not yet run on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._by_source import by_source
from ._classes import classes_with_rows, dot_block, is_class, matmul_precision
from ._common import FLOAT, device, launch, next_power_of_2, to_float

FULL, DIAG, SHARED, IDENTITY = 0, 1, 2, 3


@dataclass(frozen=True)
class Config:
    """Reasoned, not measured."""

    # Elements of a tile that only sums: four warps, 16 elements a thread.
    tile: int = 2048
    rows: int = 16
    # Side of a tile of a matrix, and the rows a product takes at a time.
    side: int = 64
    depth: int = 16


CONFIG = Config()


@triton.jit(do_not_specialize=["ignore_index"])
def _keys_kernel(
    key_ptr, skipped_ptr, x_ptr, labels_ptr,                     # (M), a program each, (M, A), (M)
    rows, width, row_stride, classes, ignore_index,
    IGNORES: tl.constexpr, ACC: tl.constexpr, ROWS: tl.constexpr, FEATURES: tl.constexpr,
):  # fmt: skip
    """The class of every row that counts, J of the others; the rows that only their features keep out."""
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    held = r < rows
    y = tl.load(labels_ptr + r, mask=held, other=-1)
    if IGNORES:
        labelled = is_class(y, held, classes, ignore_index)
    else:
        labelled = held & (y >= 0) & (y < classes)
    bad = tl.zeros((ROWS, FEATURES), tl.int32)
    for start in range(0, width, FEATURES):
        a = start + tl.arange(0, FEATURES)
        x = to_float(tl.load(x_ptr + r.to(tl.int64)[:, None] * row_stride + a[None, :],
                             mask=labelled[:, None] & (a < width)[None, :], other=0.0), ACC)
        bad = bad | (x - x != 0).to(tl.int32)  # NaN and infinite values alone
    finite = tl.sum(bad, 1) == 0
    tl.store(key_ptr + r, tl.where(labelled & finite, y, classes), mask=held)
    tl.store(skipped_ptr + tl.program_id(0), tl.sum((labelled & (finite == 0)).to(tl.int64)))


@device
def _class_rows(offset_ptr, c, step):
    return tl.load(offset_ptr + c * step), tl.load(offset_ptr + (c + 1) * step)


@device
def _shares(seen_ptr, slot, m, ACC: tl.constexpr):
    """(n/(n+m), 1/(n+m), n m/(n+m)^2)."""
    n = tl.load(seen_ptr + slot).to(tl.float64)
    total = n + m
    return (n / total).to(ACC), (1.0 / total).to(ACC), (n / total * (m / total)).to(ACC)


@triton.jit
def _means_kernel(
    mean_ptr, cov_ptr, batch_ptr, delta_ptr,                     # (J, A), (J, A) diag, (slots, A), (slots, A)
    x_ptr, place_ptr, offset_ptr, present_ptr, seen_ptr,         # (M, A), (M), (J + 1), (slots), (slots)
    chunks, width, row_stride, step,
    DIAG: tl.constexpr, KEEP: tl.constexpr, ACC: tl.constexpr, ROWS: tl.constexpr, FEATURES: tl.constexpr,
):  # fmt: skip
    """Moves the mean of a present class, and its variances (DIAG). KEEP: the batch's mean and d are written."""
    slot = (tl.program_id(0) // chunks).to(tl.int64)
    c = tl.load(present_ptr + slot).to(tl.int64)
    if c >= 0:
        a = tl.program_id(0) % chunks * FEATURES + tl.arange(0, FEATURES)
        held = a < width
        first, last = _class_rows(offset_ptr, c, step)
        m = (last - first).to(tl.float64)
        total = tl.zeros((ROWS, FEATURES), ACC)
        for at in range(first, last, ROWS):
            i = at + tl.arange(0, ROWS)
            r = tl.load(place_ptr + i, mask=i < last, other=0).to(tl.int64)
            total += to_float(tl.load(x_ptr + r[:, None] * row_stride + a[None, :],
                                      mask=(i < last)[:, None] & held[None, :], other=0.0), ACC)
        batch = tl.sum(total, 0) / m.to(ACC)
        mean = tl.load(mean_ptr + c * width + a, mask=held, other=0.0)
        delta = mean - batch
        old, inverse, between = _shares(seen_ptr, slot, m, ACC)
        tl.store(mean_ptr + c * width + a, mean - delta * (m.to(ACC) * inverse), mask=held)
        if KEEP:
            tl.store(batch_ptr + slot * width + a, batch, mask=held)
            tl.store(delta_ptr + slot * width + a, delta, mask=held)
        if DIAG:
            squares = tl.zeros((ROWS, FEATURES), ACC)
            for at in range(first, last, ROWS):
                i = at + tl.arange(0, ROWS)
                r = tl.load(place_ptr + i, mask=i < last, other=0).to(tl.int64)
                inside = (i < last)[:, None] & held[None, :]
                x = to_float(tl.load(x_ptr + r[:, None] * row_stride + a[None, :], mask=inside, other=0.0), ACC)
                x = tl.where(inside, x - batch[None, :], 0.0)
                squares += x * x
            cov = tl.load(cov_ptr + c * width + a, mask=held, other=0.0)
            cov = cov * old + tl.sum(squares, 0) * inverse + delta * delta * between
            tl.store(cov_ptr + c * width + a, cov, mask=held)


@device
def _row_and_column(pair):
    """(row, column) of the pair-th tile of a lower triangle, counted by rows."""
    row = ((tl.sqrt(8.0 * pair.to(tl.float32) + 1.0) - 1.0) * 0.5).to(tl.int32)
    row = tl.where(row * (row + 1) // 2 > pair, row - 1, row)
    row = tl.where((row + 1) * (row + 2) // 2 <= pair, row + 1, row)
    return row, pair - row * (row + 1) // 2


@triton.jit
def _tiles_kernel(
    cov_ptr, batch_ptr, delta_ptr, x_ptr, place_ptr, offset_ptr, present_ptr, seen_ptr,
    pairs, width, row_stride, step,
    PRECISION: tl.constexpr, ACC: tl.constexpr, SIDE: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """A tile on or below the diagonal of a present class's matrix, and its mirror image."""
    slot = (tl.program_id(0) // pairs).to(tl.int64)
    c = tl.load(present_ptr + slot).to(tl.int64)
    if c >= 0:
        row, column = _row_and_column(tl.program_id(0) % pairs)
        a = row * SIDE + tl.arange(0, SIDE)
        b = column * SIDE + tl.arange(0, SIDE)
        first, last = _class_rows(offset_ptr, c, step)
        mean_a = tl.load(batch_ptr + slot * width + a, mask=a < width, other=0.0)
        mean_b = tl.load(batch_ptr + slot * width + b, mask=b < width, other=0.0)
        sums = tl.zeros((SIDE, SIDE), ACC)
        for at in range(first, last, DEPTH):
            i = at + tl.arange(0, DEPTH)
            r = tl.load(place_ptr + i, mask=i < last, other=0).to(tl.int64) * row_stride
            in_a = (a < width)[:, None] & (i < last)[None, :]
            in_b = (i < last)[:, None] & (b < width)[None, :]
            xa = to_float(tl.load(x_ptr + r[None, :] + a[:, None], mask=in_a, other=0.0), ACC)
            xb = to_float(tl.load(x_ptr + r[:, None] + b[None, :], mask=in_b, other=0.0), ACC)
            xa = tl.where(in_a, xa - mean_a[:, None], 0.0)
            xb = tl.where(in_b, xb - mean_b[None, :], 0.0)
            sums = tl.dot(xa, xb, sums, input_precision=PRECISION, out_dtype=ACC)
        old, inverse, between = _shares(seen_ptr, slot, (last - first).to(tl.float64), ACC)
        delta_a = tl.load(delta_ptr + slot * width + a, mask=a < width, other=0.0)
        delta_b = tl.load(delta_ptr + slot * width + b, mask=b < width, other=0.0)
        inside = (a < width)[:, None] & (b < width)[None, :] & (a[:, None] >= b[None, :])
        matrix = cov_ptr + c * width * width
        at = a.to(tl.int64)[:, None] * width + b[None, :]
        cov = tl.load(matrix + at, mask=inside, other=0.0)
        cov = cov * old + sums * inverse + delta_a[:, None] * delta_b[None, :] * between
        tl.store(matrix + at, cov, mask=inside)
        mirror = b.to(tl.int64)[:, None] * width + a[None, :]
        above = (b < width)[:, None] & (a < width)[None, :] & (a[None, :] > b[:, None])
        tl.store(matrix + mirror, tl.trans(cov), mask=above)


def _rows(features: Tensor) -> Tensor:
    """(N, A, P) -> (N*P, A) whose rows are packed; a view where the features of a row lie side by side already."""
    rows = features.transpose(1, 2).reshape(-1, features.shape[1])
    return rows if rows.shape[1] <= 1 or rows.stride(1) == 1 else rows.contiguous()


def covariance_update_(count: Tensor, mean: Tensor, cov: Tensor, features: Tensor, labels: Tensor,
                       ignore_index: int | None, kind: int) -> Tensor:
    if not (count.is_contiguous() and mean.is_contiguous() and cov.is_contiguous()):
        raise RuntimeError("covariance_update_: count, mean and cov must be contiguous")
    x, y = _rows(features), labels.reshape(-1)
    (rows, width), classes = x.shape, count.shape[0]
    if rows == 0:
        return torch.zeros((), dtype=torch.int64, device=count.device)
    acc, gpu = FLOAT[mean.dtype], count.device
    features_together = min(next_power_of_2(width), 256)
    rows_together = max(1, min(next_power_of_2(rows), CONFIG.tile // features_together))
    programs = triton.cdiv(rows, rows_together)
    key = torch.empty(rows, dtype=torch.int64, device=gpu)
    skipped = torch.empty(programs, dtype=torch.int64, device=gpu)
    launch(_keys_kernel, programs, gpu, key, skipped, x, y, rows, width, x.stride(0), classes,
           0 if ignore_index is None else ignore_index, IGNORES=ignore_index is not None, ACC=acc, ROWS=rows_together,
           FEATURES=features_together, num_warps=4)
    offset, place = by_source(key.unsqueeze(1), classes)

    overall = None
    if kind == SHARED:  # of all rows so far: one class more, before the classes move on
        n = count.sum()
        overall = n, (count.to(mean.dtype) @ mean / n.clamp(min=1)).unsqueeze(0)
    present, seen = classes_with_rows(offset, count, rows)
    _move_means(mean, cov if kind == DIAG else None, x, place, offset, present, seen, 1, kind == FULL, cov,
                min(rows, classes))
    if overall is not None:
        n, mean_of_all = overall
        one = (offset[classes] == 0).to(torch.int32).neg().view(1)  # slot 0 is class 0, or none where no row counts
        _move_means(mean_of_all, None, x, place, offset, one, n.view(1), classes, True, cov, 1)
    return skipped.sum() if programs > 1 else skipped.view(())


def _move_means(mean: Tensor, variances: Tensor | None, x: Tensor, place: Tensor, offset: Tensor, present: Tensor,
                seen: Tensor, step: int, full: bool, cov: Tensor, slots: int) -> None:
    """Means and variances of the present classes, and with ``full`` their matrices. step: of offset to the next
    class."""
    width, acc = mean.shape[1], FLOAT[mean.dtype]
    features = min(next_power_of_2(width), CONFIG.tile // CONFIG.rows)
    chunks = triton.cdiv(width, features)
    batch = delta = None
    if full:
        batch, delta = (torch.empty((slots, width), dtype=mean.dtype, device=mean.device) for _ in range(2))
    launch(_means_kernel, slots * chunks, mean.device, mean, variances, batch, delta, x, place, offset, present, seen,
           chunks, width, x.stride(0), step, DIAG=variances is not None, KEEP=full, ACC=acc, ROWS=CONFIG.rows,
           FEATURES=features, num_warps=4, maxnreg=128)  # left alone, ptxas spills 8 bytes for sm_80
    if full:
        side = dot_block(width, CONFIG.side)
        across = triton.cdiv(width, side)
        pairs = across * (across + 1) // 2
        launch(_tiles_kernel, slots * pairs, mean.device, cov, batch, delta, x, place, offset, present, seen, pairs,
               width, x.stride(0), step, PRECISION=matmul_precision(acc), ACC=acc, SIDE=side, DEPTH=CONFIG.depth,
               num_warps=8)
