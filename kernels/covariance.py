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
Rows of a class with more of them than Config.share (segmentation's background) are divided among programs, share rows
each: a launch before the means gives every share its own mean (and squares), a launch before the tiles its own sum of
products, and the class's programs add these up in order. P <= 2 rows/share shares; 2 P A and P A^2/2 elements for them.
Features of pixels (N, A, P) are first laid out as rows, one read and write of them: every later gather is then of
whole rows. Products as in isda.py: TF32, or float32 by three of them. Not yet run on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmix.ops.enums import CovarianceKind

from ._by_source import by_source
from ._classes import classes_with_rows, dot, dot_block, is_class, matmul_precision
from ._common import FLOAT, device, launch, next_power_of_2, packed_rows, to_float


@dataclass(frozen=True)
class Config:
    """Reasoned, not measured."""

    # Elements of a tile that only sums: four warps, 16 elements a thread.
    tile: int = 2048
    rows: int = 16
    # Side of a tile of a matrix, and the rows a product takes at a time.
    side: int = 64
    depth: int = 16
    # Rows of a class that one program takes: 128 steps of a loop.
    share: int = 2048


CONFIG = Config()


@triton.jit(do_not_specialize=["ignore_index"])
def _keys_kernel(
    key_ptr, skipped_ptr, x_ptr, labels_ptr,                     # (M), a program each, (M, A), (M)
    rows, width, row_stride, classes, ignore_index,
    IGNORES: tl.constexpr, ACC: tl.constexpr, ROWS: tl.constexpr, FEATURES: tl.constexpr,
):  # fmt: skip
    """The class of every row that counts, J of the others; the rows that only their features keep out."""
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = r < rows
    y = tl.load(labels_ptr + r, mask=inside, other=-1)
    if IGNORES:
        labelled = is_class(y, inside, classes, ignore_index)
    else:
        labelled = inside & (y >= 0) & (y < classes)
    bad = tl.zeros((ROWS, FEATURES), tl.int32)
    for start in range(0, width, FEATURES):
        a = start + tl.arange(0, FEATURES)
        x = to_float(tl.load(x_ptr + r.to(tl.int64)[:, None] * row_stride + a[None, :],
                             mask=labelled[:, None] & (a < width)[None, :], other=0.0), ACC)
        bad = bad | (x - x != 0).to(tl.int32)  # NaN and infinite values alone
    finite = tl.sum(bad, 1) == 0
    tl.store(key_ptr + r, tl.where(labelled & finite, y, classes), mask=inside)
    tl.store(skipped_ptr + tl.program_id(0), tl.sum((labelled & (finite == 0)).to(tl.int64)))


@device
def _class_rows(offset_ptr, c, step):
    return tl.load(offset_ptr + c * step), tl.load(offset_ptr + (c + 1) * step)


@device
def _merge_factors(seen_ptr, slot, m, ACC: tl.constexpr):
    """(n/(n+m), 1/(n+m), n m/(n+m)^2)."""
    n = tl.load(seen_ptr + slot).to(tl.float64)
    total = n + m
    return (n / total).to(ACC), (1.0 / total).to(ACC), (n / total * (m / total)).to(ACC)


@device
def _load_rows(x_ptr, place_ptr, at, last, a, in_width, row_stride, ACC: tl.constexpr, ROWS: tl.constexpr):
    """(features a of the rows place[at:at + ROWS], which of them come before last and lie in a row)."""
    i = at + tl.arange(0, ROWS)
    r = tl.load(place_ptr + i, mask=i < last, other=0).to(tl.int64)
    inside = (i < last)[:, None] & in_width[None, :]
    return to_float(tl.load(x_ptr + r[:, None] * row_stride + a[None, :], mask=inside, other=0.0), ACC), inside


@device
def _moments(x_ptr, place_ptr, first, last, a, in_width, row_stride,
             SQUARES: tl.constexpr, ACC: tl.constexpr, ROWS: tl.constexpr, FEATURES: tl.constexpr):
    """(mean, sum of squares around it) of the rows place[first:last]. Summed from the first row on: features far from
    0 would leave a sum of theirs few digits for the mean."""
    origin = to_float(tl.load(x_ptr + tl.load(place_ptr + first).to(tl.int64) * row_stride + a, mask=in_width,
                              other=0.0), ACC)
    total = tl.zeros((ROWS, FEATURES), ACC)
    for at in range(first, last, ROWS):
        x, inside = _load_rows(x_ptr, place_ptr, at, last, a, in_width, row_stride, ACC, ROWS)
        total += tl.where(inside, x - origin[None, :], 0.0)
    mean = origin + tl.sum(total, 0) / (last - first).to(ACC)
    squares = tl.zeros((ROWS, FEATURES), ACC)
    if SQUARES:
        for at in range(first, last, ROWS):
            x, inside = _load_rows(x_ptr, place_ptr, at, last, a, in_width, row_stride, ACC, ROWS)
            x = tl.where(inside, x - mean[None, :], 0.0)
            squares += x * x
    return mean, tl.sum(squares, 0)


@device
def _share_rows(slot_ptr, first_ptr, present_ptr, offset_ptr, share, rows, step):
    """Slot, first and last row of a share; slot -1 where there are not so many shares."""
    slot = tl.load(slot_ptr + share).to(tl.int64)
    readable = tl.maximum(slot, 0)
    c = tl.maximum(tl.load(present_ptr + readable), 0).to(tl.int64)
    first, last = _class_rows(offset_ptr, c, step)
    first += (share - tl.load(first_ptr + readable)).to(first.dtype) * rows
    return slot, first, tl.minimum(first + rows, last)


@triton.jit
def _share_means_kernel(
    mean_ptr, squares_ptr,                                       # (P, A), (P, A) or None
    x_ptr, place_ptr, offset_ptr, present_ptr, slot_ptr, first_ptr,
    chunks, width, row_stride, step, share_rows,
    ACC: tl.constexpr, ROWS: tl.constexpr, FEATURES: tl.constexpr,
):  # fmt: skip
    share = (tl.program_id(0) // chunks).to(tl.int64)
    slot, first, last = _share_rows(slot_ptr, first_ptr, present_ptr, offset_ptr, share, share_rows, step)
    if slot >= 0:
        a = tl.program_id(0) % chunks * FEATURES + tl.arange(0, FEATURES)
        mean, squares = _moments(x_ptr, place_ptr, first, last, a, a < width, row_stride, squares_ptr is not None, ACC,
                                 ROWS, FEATURES)
        tl.store(mean_ptr + share * width + a, mean, mask=a < width)
        if squares_ptr is not None:
            tl.store(squares_ptr + share * width + a, squares, mask=a < width)


@triton.jit
def _means_kernel(
    mean_ptr, cov_ptr, batch_ptr, delta_ptr,                     # (J, A), (J, A) diag, (slots, A), (slots, A)
    x_ptr, place_ptr, offset_ptr, present_ptr, seen_ptr,         # (M, A), (M), (J + 1), (slots), (slots)
    share_mean_ptr, share_squares_ptr, first_ptr,                # of classes with many rows, or None
    chunks, width, row_stride, step, share_rows,
    DIAG: tl.constexpr, KEEP: tl.constexpr, ACC: tl.constexpr, ROWS: tl.constexpr, FEATURES: tl.constexpr,
):  # fmt: skip
    """Moves the mean of a present class, and its variances (DIAG). KEEP: the batch's mean and d are written."""
    slot = (tl.program_id(0) // chunks).to(tl.int64)
    c = tl.load(present_ptr + slot).to(tl.int64)
    if c >= 0:
        a = tl.program_id(0) % chunks * FEATURES + tl.arange(0, FEATURES)
        in_width = a < width
        first, last = _class_rows(offset_ptr, c, step)
        m = (last - first).to(tl.float64)
        end = last
        if first_ptr is not None:
            end = tl.where(last - first > share_rows, first, last)
        if end > first:
            batch, squares = _moments(x_ptr, place_ptr, first, last, a, in_width, row_stride, DIAG, ACC, ROWS, FEATURES)
        else:
            batch, squares = tl.zeros((FEATURES,), ACC), tl.zeros((FEATURES,), ACC)
        if first_ptr is not None:
            share = tl.load(first_ptr + slot).to(tl.int64)
            for start in range(end, last, share_rows):
                rows = tl.minimum(last - start, share_rows)
                part = rows.to(ACC) / (start - first + rows).to(ACC)
                apart = tl.load(share_mean_ptr + share * width + a, mask=in_width, other=0.0) - batch
                if DIAG:
                    squares += tl.load(share_squares_ptr + share * width + a, mask=in_width, other=0.0)
                    squares += apart * apart * (part * (start - first).to(ACC))
                batch += apart * part
                share += 1
        mean = tl.load(mean_ptr + c * width + a, mask=in_width, other=0.0)
        delta = mean - batch
        old, inverse, between = _merge_factors(seen_ptr, slot, m, ACC)
        tl.store(mean_ptr + c * width + a, mean - delta * (m.to(ACC) * inverse), mask=in_width)
        if KEEP:
            tl.store(batch_ptr + slot * width + a, batch, mask=in_width)
            tl.store(delta_ptr + slot * width + a, delta, mask=in_width)
        if DIAG:
            cov = tl.load(cov_ptr + c * width + a, mask=in_width, other=0.0)
            cov = cov * old + squares * inverse + delta * delta * between
            tl.store(cov_ptr + c * width + a, cov, mask=in_width)


@device
def _row_and_column(pair):
    """(row, column) of the pair-th tile of a lower triangle, counted by rows."""
    row = ((tl.sqrt(8.0 * pair.to(tl.float32) + 1.0) - 1.0) * 0.5).to(tl.int32)
    row = tl.where(row * (row + 1) // 2 > pair, row - 1, row)
    row = tl.where((row + 1) * (row + 2) // 2 <= pair, row + 1, row)
    return row, pair - row * (row + 1) // 2


@device
def _products(sums, batch_ptr, x_ptr, place_ptr, slot, first, last, a, b, width, row_stride,
              PRECISION: tl.constexpr, ACC: tl.constexpr, DEPTH: tl.constexpr):
    """sums + the products of the features a and b of rows place[first:last], around the mean of the batch."""
    mean_a = tl.load(batch_ptr + slot * width + a, mask=a < width, other=0.0)
    mean_b = tl.load(batch_ptr + slot * width + b, mask=b < width, other=0.0)
    for at in range(first, last, DEPTH):
        i = at + tl.arange(0, DEPTH)
        r = tl.load(place_ptr + i, mask=i < last, other=0).to(tl.int64) * row_stride
        in_a = (i < last)[:, None] & (a < width)[None, :]
        in_b = (i < last)[:, None] & (b < width)[None, :]
        xa = to_float(tl.load(x_ptr + r[:, None] + a[None, :], mask=in_a, other=0.0), ACC)
        xb = to_float(tl.load(x_ptr + r[:, None] + b[None, :], mask=in_b, other=0.0), ACC)
        xa = tl.where(in_a, xa - mean_a[None, :], 0.0)
        xb = tl.where(in_b, xb - mean_b[None, :], 0.0)
        sums = dot(tl.trans(xa), xb, sums, PRECISION)
    return sums


@device
def _share_tile(share, pairs, pair, SIDE: tl.constexpr):
    """Places of a share's sums in (P, pairs, SIDE, SIDE)."""
    i = tl.arange(0, SIDE)
    return (share * pairs + pair) * (SIDE * SIDE) + i[:, None] * SIDE + i[None, :]


@triton.jit
def _share_tiles_kernel(
    part_ptr, batch_ptr, x_ptr, place_ptr, offset_ptr, present_ptr, slot_ptr, first_ptr,
    pairs, width, row_stride, step, share_rows,
    PRECISION: tl.constexpr, ACC: tl.constexpr, SIDE: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    share, pair = (tl.program_id(0) // pairs).to(tl.int64), tl.program_id(0) % pairs
    slot, first, last = _share_rows(slot_ptr, first_ptr, present_ptr, offset_ptr, share, share_rows, step)
    if slot >= 0:
        row, column = _row_and_column(pair)
        a = row * SIDE + tl.arange(0, SIDE)
        b = column * SIDE + tl.arange(0, SIDE)
        sums = _products(tl.zeros((SIDE, SIDE), ACC), batch_ptr, x_ptr, place_ptr, slot, first, last, a, b, width,
                         row_stride, PRECISION, ACC, DEPTH)
        tl.store(part_ptr + _share_tile(share, pairs, pair, SIDE), sums)


@triton.jit
def _tiles_kernel(
    cov_ptr, batch_ptr, delta_ptr, x_ptr, place_ptr, offset_ptr, present_ptr, seen_ptr,
    part_ptr, first_ptr,                                         # of classes with many rows, or None
    pairs, width, row_stride, step, share_rows,
    PRECISION: tl.constexpr, ACC: tl.constexpr, SIDE: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """A tile on or below the diagonal of a present class's matrix, and its mirror image."""
    slot = (tl.program_id(0) // pairs).to(tl.int64)
    c = tl.load(present_ptr + slot).to(tl.int64)
    if c >= 0:
        pair = tl.program_id(0) % pairs
        row, column = _row_and_column(pair)
        a = row * SIDE + tl.arange(0, SIDE)
        b = column * SIDE + tl.arange(0, SIDE)
        first, last = _class_rows(offset_ptr, c, step)
        end = last
        if first_ptr is not None:
            end = tl.where(last - first > share_rows, first, last)
        sums = _products(tl.zeros((SIDE, SIDE), ACC), batch_ptr, x_ptr, place_ptr, slot, first, end, a, b, width,
                         row_stride, PRECISION, ACC, DEPTH)
        if first_ptr is not None:
            share = tl.load(first_ptr + slot).to(tl.int64)
            for _ in range(end, last, share_rows):
                sums += tl.load(part_ptr + _share_tile(share, pairs, pair, SIDE))
                share += 1
        old, inverse, between = _merge_factors(seen_ptr, slot, (last - first).to(tl.float64), ACC)
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


def covariance_update_(count: Tensor, mean: Tensor, cov: Tensor, features: Tensor, labels: Tensor,
                       ignore_index: int | None, kind: int) -> Tensor:
    if not (count.is_contiguous() and mean.is_contiguous() and cov.is_contiguous()):
        raise RuntimeError("covariance_update_: count, mean and cov must be contiguous")
    # (N, A, P) -> (N*P, A), a view where the features of a row lie side by side already.
    x, y = packed_rows(features.transpose(1, 2).flatten(0, 1)), labels.reshape(-1).contiguous()
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
    if kind == CovarianceKind.SHARED:  # of all rows so far: one class more, before the classes move on
        n = count.sum()
        overall = n, (count.to(mean.dtype) @ mean / n.clamp(min=1)).unsqueeze(0)
    present, seen = classes_with_rows(offset, count, rows)
    _move_means(mean, cov if kind == CovarianceKind.DIAG else None, x, place, offset, present, seen, 1,
                kind == CovarianceKind.FULL, cov, min(rows, classes))
    if overall is not None:
        n, mean_of_all = overall
        one = (offset[classes] == 0).to(torch.int32).neg().view(1)  # slot 0 is class 0, or none where no row counts
        _move_means(mean_of_all, None, x, place, offset, one, n.view(1), classes, True, cov, 1)
    return skipped.sum() if programs > 1 else skipped.view(())


def _shares_of(x: Tensor, offset: Tensor, present: Tensor, step: int) -> tuple[Tensor, Tensor, int] | None:
    """Of the classes with more than Config.share rows: (slot of every share (P), a slot's first share (slots), P), on
    the device; None where no class can have so many."""
    size = CONFIG.share
    if x.shape[0] <= size:
        return None
    most = 2 * x.shape[0] // size
    c = present.clamp(min=0).to(torch.int64) * step
    rows = torch.where(present >= 0, offset[c + step] - offset[c], 0)
    shares = torch.where(rows > size, (rows + size - 1) // size, 0)
    ends = shares.cumsum(0)
    slot = torch.searchsorted(ends, torch.arange(most, device=x.device), right=True)
    return torch.where(slot < len(ends), slot, -1), ends - shares, most


def _move_means(mean: Tensor, variances: Tensor | None, x: Tensor, place: Tensor, offset: Tensor, present: Tensor,
                seen: Tensor, step: int, full: bool, cov: Tensor, slots: int) -> None:
    """Means and variances of the present classes, and with ``full`` their matrices. step: of offset to the next
    class."""
    width, acc, gpu = mean.shape[1], FLOAT[mean.dtype], mean.device
    features = min(next_power_of_2(width), CONFIG.tile // CONFIG.rows)
    chunks = triton.cdiv(width, features)
    rows, share = (x, place, offset, present), CONFIG.share

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=mean.dtype, device=gpu)

    batch, delta = (empty(slots, width), empty(slots, width)) if full else (None, None)
    shares = _shares_of(x, offset, present, step)
    of_share, first = shares[:2] if shares is not None else (None, None)
    share_mean = share_squares = None
    # maxnreg: left alone, ptxas spills 8 bytes for sm_80
    options = {"ACC": acc, "ROWS": CONFIG.rows, "FEATURES": features, "num_warps": 4, "maxnreg": 128}
    if shares is not None:
        share_mean = empty(shares[2], width)
        share_squares = empty(shares[2], width) if variances is not None else None
        launch(_share_means_kernel, shares[2] * chunks, gpu, share_mean, share_squares, *rows, of_share, first, chunks,
               width, x.stride(0), step, share, **options)
    launch(_means_kernel, slots * chunks, gpu, mean, variances, batch, delta, *rows, seen, share_mean, share_squares,
           first, chunks, width, x.stride(0), step, share, DIAG=variances is not None, KEEP=full, **options)
    if full:
        side = dot_block(width, CONFIG.side)
        across = triton.cdiv(width, side)
        pairs = across * (across + 1) // 2
        options = {"PRECISION": matmul_precision(acc), "ACC": acc, "SIDE": side, "DEPTH": CONFIG.depth, "num_warps": 8}
        part = None
        if shares is not None:
            part = empty(shares[2], pairs, side, side)
            launch(_share_tiles_kernel, shares[2] * pairs, gpu, part, batch, *rows, of_share, first, pairs, width,
                   x.stride(0), step, share, **options)
        launch(_tiles_kernel, slots * pairs, gpu, cov, batch, delta, *rows, seen, part, first, pairs, width,
               x.stride(0), step, share, **options)
