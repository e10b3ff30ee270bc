"""patch_mix on Triton: two images mixed cell by cell, the realised weights, and the gradient. R-Mix Eq. 5-7.

With a the own share of a cell (lam where both masks agree, 1 where only the own is set, 0 where only the other is)

    mixed[n] = a_n x[n] + (1 - a_n) x[partner[n]]
    dx[m] = a_m g[m] + sum over n with partner[n] = m of (1 - a_n) g[n]

where a share of 0 contributes nothing, not even times infinity. The sum is gathered by m (`_by_source.by_source`).

A tile lies in one row of cells, so the shares depend on its columns alone: two mask bytes a column, not a pixel. Where
cells are whole 16-byte vectors, a source whose share is 0 is not read. Words that come from one source alone are
moved as integers. One program of each image writes its weights, from counts of cells: exact but for one rounding.

bytes: N*C*H*W read + written (the partner's read comes from L2); flops: 3 a mixed element. Not yet run on a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._by_source import by_source
from ._common import (
    FLOAT,
    NAN,
    STORAGE,
    WORD,
    device,
    finish,
    launch,
    next_power_of_2,
    rows_like,
    to_float,
    to_storage,
)
from ._tiles import Tiles, source_image


@device
def cell_tile(batch, group, height, length, row_chunks, column_chunks, cell_height, ROWS: tl.constexpr,
              COLUMNS: tl.constexpr):
    """(n, row of cells, rows (R, 1), columns (1, L), inside): a piece of the rows of one row of cells, see _tiles."""
    pid = tl.program_id(0)
    n = (pid % batch).to(tl.int64)
    chunk = pid // batch
    column = (chunk % column_chunks) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    chunk = chunk // column_chunks
    local = (chunk % row_chunks) * ROWS + tl.arange(0, ROWS)[:, None]
    cell_row = chunk // row_chunks
    row = local // cell_height * height + cell_row * cell_height + local % cell_height
    return n, cell_row, row, column, (local < group) & (column < length)


@device
def _own_share(mask_ptr, lam_ptr, n, m, cell, inside, cells, lam_stride, ACC: tl.constexpr):
    """The own share of cells of image n with partner m, (1, L)."""
    own = tl.load(mask_ptr + n * cells + cell, mask=inside, other=0)
    theirs = tl.load(mask_ptr + m * cells + cell, mask=inside, other=0)
    lam = tl.load(lam_ptr + n * lam_stride).to(ACC)
    return tl.where(own == theirs, lam, tl.where(own != 0, 1.0, 0.0))


@device
def partner_share(partner_ptr, mask_ptr, lam_ptr, n, batch, cell_row, column, length, cell_length, cells, cells_across,
                  lam_stride, ACC: tl.constexpr, CELL_VEC: tl.constexpr):
    """(partner of image n, whether there is one, cells (1, L) of the columns, n's own share of them); partner 0 where
    there is none."""
    m, valid = source_image(partner_ptr + n, batch)
    cell = cell_row * cells_across + column // (cell_length // CELL_VEC * CELL_VEC)
    return m, valid, cell, _own_share(mask_ptr, lam_ptr, n, m, cell, column < length, cells, lam_stride, ACC)


@device
def _needed(inside, used, VEC: tl.constexpr, SKIP: tl.constexpr):
    """What to read of a source. SKIP: cells are whole vectors, so a vector is used whole or not at all."""
    if SKIP:
        needed = tl.max_constancy(inside & used, [1, VEC])
    else:
        needed = inside
    return needed


@device
def write_weight(weight_ptr, mask_ptr, lam_ptr, n, m, valid, cells, lam_stride, CELLS: tl.constexpr):
    """The realised shares of image n with partner m, CELLS of them at a time."""
    whole = tl.zeros((CELLS,), tl.int32)
    shared = tl.zeros((CELLS,), tl.int32)
    for start in range(0, cells, CELLS):
        i = start + tl.arange(0, CELLS)
        own_cell = tl.load(mask_ptr + n * cells + i, mask=i < cells, other=0)
        their_cell = tl.load(mask_ptr + m * cells + i, mask=i < cells, other=1)
        shared += ((own_cell == their_cell) & (i < cells)).to(tl.int32)
        whole += ((own_cell != their_cell) & (own_cell != 0)).to(tl.int32)
    mixed_cells = tl.sum(shared)
    lam = tl.load(lam_ptr + n * lam_stride)
    first = (tl.sum(whole).to(tl.float32) + tl.where(mixed_cells == 0, 0.0, lam * mixed_cells)) / cells
    first = tl.where(valid, first, float("nan"))
    tl.store(weight_ptr + n * 2, first)
    tl.store(weight_ptr + n * 2 + 1, 1.0 - first)


@triton.jit
def _patch_mix_kernel(
    out_ptr, weight_ptr, x_ptr, partner_ptr, mask_ptr, lam_ptr,  # words; (N, 2); words; (N,), (N, h*w) bytes, (N,)
    batch, rows, length, height, group, row_chunks, column_chunks, image_stride, cell_height, cell_length, cells,
    cells_across, lam_stride,
    DTYPE: tl.constexpr, ACC: tl.constexpr, NAN_BITS: tl.constexpr, VEC: tl.constexpr, CELL_VEC: tl.constexpr,
    SKIP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CELLS: tl.constexpr,
):  # fmt: skip
    length = length // VEC * VEC
    n, cell_row, row, column, inside = cell_tile(batch, group, height, length, row_chunks, column_chunks, cell_height,
                                                 ROWS, COLUMNS)
    m, valid, _, a = partner_share(partner_ptr, mask_ptr, lam_ptr, n, batch, cell_row, column, length, cell_length,
                                   cells, cells_across, lam_stride, ACC, CELL_VEC)
    at = row.to(tl.int64) * length + column
    stride = image_stride // VEC * VEC
    own = tl.load(x_ptr + n * stride + at, mask=_needed(inside, a != 0, VEC, SKIP), other=0)
    theirs = tl.load(x_ptr + m * stride + at, mask=_needed(inside, a != 1, VEC, SKIP), other=0)
    mixed = a * to_float(own.to(DTYPE, bitcast=True), ACC) + (1.0 - a) * to_float(theirs.to(DTYPE, bitcast=True), ACC)
    mixed = to_storage(mixed, DTYPE).to(out_ptr.dtype.element_ty, bitcast=True)
    mixed = tl.where(a == 1, own, tl.where(a == 0, theirs, mixed))
    mixed = tl.where(valid, mixed, tl.full((ROWS, COLUMNS), NAN_BITS, out_ptr.dtype.element_ty))
    tl.store(out_ptr + n * rows * length + at, mixed, mask=inside)

    if tl.program_id(0) < batch:  # the first tile of each image
        write_weight(weight_ptr, mask_ptr, lam_ptr, n, m, valid, cells, lam_stride, CELLS)


@triton.jit
def _patch_mix_backward_kernel(
    out_ptr, grad_ptr, partner_ptr, mask_ptr, lam_ptr, offset_ptr, place_ptr,
    batch, rows, length, height, group, row_chunks, column_chunks, image_stride, cell_height, cell_length, cells,
    cells_across, lam_stride,
    ACC: tl.constexpr, VEC: tl.constexpr, CELL_VEC: tl.constexpr, SKIP: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    length = length // VEC * VEC
    m, cell_row, row, column, inside = cell_tile(batch, group, height, length, row_chunks, column_chunks, cell_height,
                                                  ROWS, COLUMNS)
    _, valid, cell, a = partner_share(partner_ptr, mask_ptr, lam_ptr, m, batch, cell_row, column, length, cell_length,
                                      cells, cells_across, lam_stride, ACC, CELL_VEC)
    at = row.to(tl.int64) * length + column
    stride = image_stride // VEC * VEC
    used = inside & (a != 0) & valid
    g = tl.load(grad_ptr + m * stride + at, mask=_needed(inside, used, VEC, SKIP), other=0.0)
    total = tl.where(used, a * to_float(g, ACC), 0.0)
    for entry in range(tl.load(offset_ptr + m), tl.load(offset_ptr + m + 1)):
        n = tl.load(place_ptr + entry).to(tl.int64)
        a = _own_share(mask_ptr, lam_ptr, n, m, cell, column < length, cells, lam_stride, ACC)
        used = inside & (a != 1)
        g = tl.load(grad_ptr + n * stride + at, mask=_needed(inside, used, VEC, SKIP), other=0.0)
        total += tl.where(used, (1.0 - a) * to_float(g, ACC), 0.0)
    tl.store(out_ptr + m * rows * length + at, to_storage(total, out_ptr.dtype.element_ty), mask=inside)


def arguments(source: Tensor, mask: Tensor, lam: Tensor) -> tuple[Tiles, tuple, dict]:
    """(tiles, positional arguments from batch on, options) that both kernels take."""
    n, _, height, width = source.shape
    h, w = mask.shape[1:]
    cell_height, cell_width = height // h, width // w
    rows = Tiles.of(source)
    group = rows.rows // h
    tiles = Tiles.of(source, group)
    cell_length = cell_width * tiles.pixel
    skip = cell_length % tiles.vec == 0
    cell_vec = tiles.vec if skip else 1
    args = (n, tiles.rows, tiles.length, height, group, triton.cdiv(group, tiles.tile_rows), tiles.column_chunks,
            source.stride(0), cell_height, cell_length, h * w, w, lam.stride(0) if lam.ndim else 0)
    options = {"ACC": FLOAT[source.dtype], "VEC": tiles.vec, "CELL_VEC": cell_vec, "SKIP": skip,
               "ROWS": tiles.tile_rows, "COLUMNS": tiles.tile_columns, "num_warps": tiles.warps}
    return tiles, args, options


def cells_together(mask: Tensor) -> int:
    return min(1024, next_power_of_2(mask.shape[1] * mask.shape[2]))


def patch_mix(x: Tensor, partner: Tensor, mask: Tensor, lam: Tensor) -> tuple[Tensor, Tensor]:
    source, written, result = rows_like(x, images=True)
    weight = torch.empty((x.shape[0], 2), dtype=torch.float32, device=x.device)
    tiles, args, options = arguments(source, mask, lam)
    word = WORD[x.element_size()]
    launch(_patch_mix_kernel, tiles.programs, x.device, written.view(word), weight, source.view(word),
           partner.contiguous(), mask.contiguous().view(torch.uint8), lam, *args, DTYPE=STORAGE[x.dtype],
           NAN_BITS=NAN[x.dtype], CELLS=cells_together(mask), **options)
    return finish(written, result), weight


def patch_mix_backward(grad: Tensor, partner: Tensor, mask: Tensor, lam: Tensor) -> Tensor:
    source, written, result = rows_like(grad, images=True)
    tiles, args, options = arguments(source, mask, lam)
    if tiles.programs:
        partner = partner.contiguous()
        offset, place = by_source(partner.unsqueeze(1))
        launch(_patch_mix_backward_kernel, tiles.programs, grad.device, written, source, partner,
               mask.contiguous().view(torch.uint8), lam, offset, place, *args, **options)
    return finish(written, result)
