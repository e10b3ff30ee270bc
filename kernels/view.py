"""View on Triton: bytes to mixed, normalised images in one pass.

An element of the output is pixel (i + down, first + step j) of channel c of its source, step -1 where mirrored, else
byte 0; see `fastmix.View`. The mixed byte is normalised once, ``scale[c] * byte + offset[c] * (sum of weights)``: exact
where one source shows alone. Tiles are those of the output (`_tiles`), in its layout; what depends on the row or on the
column alone is computed once for each. Loads are single bytes: where a window begins is known on the device alone.

bytes: N*C*H*W read a source that shows them, N*C*H*W*s written; flops: 2 an element and 2 a source. Not yet run on a
GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmix.ops.enums import FLOAT_TYPES

from ._common import FLOAT, device, launch, packed_images, to_storage
from ._tiles import UNROLLED, Tiles, channel_of, tile
from .blend import weighted_source
from .paste import box
from .patch_mix import arguments, cell_tile, cells_together, partner_share, write_weight

# Left alone, ptxas spills 16 bytes of paste at 64 registers to fit one more program of 512 threads, and 24 of patch_mix
# on sm_100; its float64 needs more than 128.
REGISTERS = 96
PATCH_REGISTERS = 160
# Channels of a pixel up to which each is normalised by numbers of its own, and not each column.
FEW_CHANNELS = tl.constexpr(4)


@device
def _window(flip_ptr, shift_ptr, m, height, width, HAS_FLIP: tl.constexpr, HAS_SHIFT: tl.constexpr):
    """(down, first, step) of image m. A shift beyond the sides is clamped: everything is outside either way."""
    down = 0
    first = 0
    step = 1
    if HAS_SHIFT:
        down = tl.minimum(tl.maximum(tl.load(shift_ptr + m * 2), -height), height).to(tl.int32)
        first = tl.minimum(tl.maximum(tl.load(shift_ptr + m * 2 + 1), -width), width).to(tl.int32)
    if HAS_FLIP:
        flipped = tl.load(flip_ptr + m) != 0
        first = tl.where(flipped, width - 1 - first, first)
        step = tl.where(flipped, -1, 1)
    return down, first, step


@device
def _bytes(x_ptr, flip_ptr, shift_ptr, m, row, column, wanted, height, width, image_stride, channel_stride, row_stride,
           pixel_stride, PIXEL: tl.constexpr, HAS_FLIP: tl.constexpr, HAS_SHIFT: tl.constexpr):
    """What image m shows at rows (R, 1) and columns (1, L) of the output, where wanted."""
    down, first, step = _window(flip_ptr, shift_ptr, m, height, width, HAS_FLIP, HAS_SHIFT)
    i = row % height + down
    j = first + step * (column // PIXEL)
    shown = wanted & ((i >= 0) & (i < height)) & ((j >= 0) & (j < width))
    at = i.to(tl.int64) * row_stride + (row // height).to(tl.int64) * channel_stride + j * pixel_stride
    if PIXEL > 1:
        at += column % PIXEL * channel_stride
    return tl.load(x_ptr + m * image_stride + at, mask=shown, other=0)


@device
def _write(out_ptr, mixed, total, valid, mean_ptr, std_ptr, n, row, column, mask, height, rows, length,
           ACC: tl.constexpr, PIXEL: tl.constexpr):
    """A tile of ``scale * mixed + offset * total``, by the channel of a row or, with channels last, of a column; NaN
    where not valid."""
    one = tl.full((1, 1), 1.0, ACC)
    channel = channel_of(row, column, height, PIXEL)
    if PIXEL > 1 and PIXEL <= FEW_CHANNELS:
        # Divisions for each channel, not for each column.
        scale = tl.zeros((1, 1), ACC)
        offset = tl.zeros((1, 1), ACC)
        for c in tl.static_range(PIXEL):
            mean = tl.load(mean_ptr + c).to(ACC)
            std = tl.load(std_ptr + c).to(ACC)
            scale = tl.where(channel == c, one / (std * 255.0), scale)
            offset = tl.where(channel == c, (0.0 - mean) / std, offset)
    else:
        has_channel = row < rows if PIXEL == 1 else column < length
        mean = tl.load(mean_ptr + channel, mask=has_channel, other=0.0).to(ACC)
        std = tl.load(std_ptr + channel, mask=has_channel, other=1.0).to(ACC)
        scale = one / (std * 255.0)
        offset = (0.0 - mean) / std
    value = scale * mixed + offset * total
    value = to_storage(tl.where(valid, value, float("nan")), out_ptr.dtype.element_ty)
    tl.store(out_ptr + n * rows * length + row.to(tl.int64) * length + column, value, mask=mask)


@device
def _add_source(mixed, total, valid, index_ptr, weight_ptr, entry, batch, x_ptr, flip_ptr, shift_ptr, row, column, mask,
                height, width, image_stride, channel_stride, row_stride, pixel_stride, ACC: tl.constexpr,
                PIXEL: tl.constexpr, HAS_FLIP: tl.constexpr, HAS_SHIFT: tl.constexpr):
    m, inside, w = weighted_source(index_ptr, weight_ptr, entry, batch, ACC)
    valid = valid & inside
    byte = _bytes(x_ptr, flip_ptr, shift_ptr, m, row, column, mask, height, width, image_stride, channel_stride,
                  row_stride, pixel_stride, PIXEL, HAS_FLIP, HAS_SHIFT)
    total += w
    mixed += w * byte.to(ACC)
    return mixed, total, valid


@triton.jit
def _view_blend_kernel(
    out_ptr, x_ptr, index_ptr, weight_ptr, mean_ptr, std_ptr, flip_ptr, shift_ptr,  # (N, rows, length), (N, C, H, W),
    batch, rows, length, height, column_chunks, columns,                            # (N, K) x2, (C) x2, (N), (N, 2)
    width, image_stride, channel_stride, row_stride, pixel_stride,
    K: tl.constexpr, ACC: tl.constexpr, PIXEL: tl.constexpr, HAS_FLIP: tl.constexpr, HAS_SHIFT: tl.constexpr,
    VEC: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """K: columns where they are unrolled, else 0."""
    n, row, column, length, mask = tile(batch, rows, length, column_chunks, VEC, ROWS, COLUMNS)
    mixed = tl.zeros((ROWS, COLUMNS), ACC)
    total = tl.zeros((1, 1), ACC)
    valid = n >= 0
    if K > 0:
        for k in tl.static_range(K):
            mixed, total, valid = _add_source(
                mixed, total, valid, index_ptr, weight_ptr, n * columns + k, batch, x_ptr, flip_ptr, shift_ptr, row,
                column, mask, height, width, image_stride, channel_stride, row_stride, pixel_stride, ACC, PIXEL,
                HAS_FLIP, HAS_SHIFT)
    else:
        for k in range(0, columns):
            mixed, total, valid = _add_source(
                mixed, total, valid, index_ptr, weight_ptr, n * columns + k, batch, x_ptr, flip_ptr, shift_ptr, row,
                column, mask, height, width, image_stride, channel_stride, row_stride, pixel_stride, ACC, PIXEL,
                HAS_FLIP, HAS_SHIFT)
    _write(out_ptr, mixed, total, valid, mean_ptr, std_ptr, n, row, column, mask, height, rows, length, ACC, PIXEL)


@triton.jit
def _view_paste_kernel(
    out_ptr, x_ptr, index_ptr, boxes_ptr, mean_ptr, std_ptr, flip_ptr, shift_ptr,
    batch, rows, length, height, column_chunks, columns,
    width, image_stride, channel_stride, row_stride, pixel_stride,
    HAS_INDEX: tl.constexpr, ACC: tl.constexpr, PIXEL: tl.constexpr, HAS_FLIP: tl.constexpr, HAS_SHIFT: tl.constexpr,
    VEC: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    n, row, column, length, mask = tile(batch, rows, length, column_chunks, VEC, ROWS, COLUMNS)
    todo = mask  # elements that no box has claimed yet, from the last box to the first
    byte = tl.zeros((ROWS, COLUMNS), tl.uint8)
    valid = n >= 0
    canvas = n
    if HAS_INDEX:
        # Not by `_tiles.source_image`: in its order of operations this kernel takes up to 16 registers more.
        for back in range(0, columns - 1):
            k = columns - 1 - back
            m = tl.load(index_ptr + n * columns + k)
            inside = (m >= 0) & (m < batch)
            valid = valid & inside
            boxed, _, _ = box(boxes_ptr + (n * (columns - 1) + (k - 1)) * 4, row % height, column, height, length, 1,
                              PIXEL)
            byte |= _bytes(x_ptr, flip_ptr, shift_ptr, tl.where(inside, m, 0), row, column, todo & boxed, height, width,
                           image_stride, channel_stride, row_stride, pixel_stride, PIXEL, HAS_FLIP, HAS_SHIFT)
            todo = todo & ~boxed
        canvas = tl.load(index_ptr + n * columns)
        inside = (canvas >= 0) & (canvas < batch)
        valid = valid & inside
        canvas = tl.where(inside, canvas, 0)
    byte |= _bytes(x_ptr, flip_ptr, shift_ptr, canvas, row, column, todo, height, width, image_stride, channel_stride,
                   row_stride, pixel_stride, PIXEL, HAS_FLIP, HAS_SHIFT)
    _write(out_ptr, byte.to(ACC), 1.0, valid, mean_ptr, std_ptr, n, row, column, mask, height, rows, length, ACC, PIXEL)


@triton.jit
def _view_patch_mix_kernel(
    out_ptr, shares_ptr, x_ptr, partner_ptr, mask_ptr, lam_ptr, mean_ptr, std_ptr, flip_ptr, shift_ptr,
    width, image_stride, channel_stride, row_stride, pixel_stride,
    batch, rows, length, height, group, row_chunks, column_chunks, _out_stride, cell_height, cell_length, cells,
    cells_across, lam_stride,
    PIXEL: tl.constexpr, HAS_FLIP: tl.constexpr, HAS_SHIFT: tl.constexpr, ACC: tl.constexpr, VEC: tl.constexpr,
    CELL_VEC: tl.constexpr, SKIP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CELLS: tl.constexpr,
):  # fmt: skip
    length = length // VEC * VEC
    n, cell_row, row, column, mask = cell_tile(batch, group, height, length, row_chunks, column_chunks, cell_height,
                                               ROWS, COLUMNS)
    m, valid, _, a = partner_share(partner_ptr, mask_ptr, lam_ptr, n, batch, cell_row, column, length, cell_length,
                                   cells, cells_across, lam_stride, ACC, CELL_VEC)
    own = _bytes(x_ptr, flip_ptr, shift_ptr, n, row, column, mask & (a != 0), height, width, image_stride,
                 channel_stride, row_stride, pixel_stride, PIXEL, HAS_FLIP, HAS_SHIFT).to(ACC)
    theirs = _bytes(x_ptr, flip_ptr, shift_ptr, m, row, column, mask & (a != 1), height, width, image_stride,
                    channel_stride, row_stride, pixel_stride, PIXEL, HAS_FLIP, HAS_SHIFT).to(ACC)
    mixed = theirs + a * (own - theirs)  # exact where a is 1 or 0: bytes are finite
    _write(out_ptr, mixed, 1.0, valid, mean_ptr, std_ptr, n, row, column, mask, height, rows, length, ACC, PIXEL)
    if tl.program_id(0) < batch:  # the first tile of each image
        write_weight(shares_ptr, mask_ptr, lam_ptr, n, m, valid, cells, lam_stride, CELLS)


def _warps(tiles: Tiles, out: Tensor, sources: int, boxed: bool = False) -> int:
    """The more elements a thread has, the more of them share what a row or a column needs: of one source 32, or 64
    where columns are channels too, of two 32 (instructions a byte, sm_90, bfloat16: 24 -> 20, 35 -> 18, 45 -> 35, 56 ->
    42).
    16 of more sources, for the registers, and of wider types, which are bound by their memory and need the loads of
    more threads. 8 where sources are boxed one after the other, whose masks and addresses
    of single bytes took up to 181 registers."""
    if boxed:
        return min(16, 2 * tiles.warps)
    if out.element_size() > 2 or sources > 2:
        return tiles.warps
    return max(1, tiles.warps // (4 if sources == 1 and tiles.pixel > 1 else 2))


def _output(x: Tensor, dtype: int, channels_last: bool) -> Tensor:
    return torch.empty(x.shape, dtype=FLOAT_TYPES[dtype], device=x.device,
                       memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _source(x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """(packed images, their width and the strides of image, channel, row and pixel)."""
    x = packed_images(x)
    if x.is_contiguous():
        _, channels, height, width = x.shape
        return x, (width, channels * height * width, height * width, width, 1)
    return x, (x.shape[3], *x.stride())


def _windows(x: Tensor, flip: Tensor | None, shift: Tensor | None) -> tuple[tuple[Tensor, Tensor], dict[str, bool]]:
    """(flip, shift) as kernels take them, x where there is none."""
    flips = x if flip is None else flip.contiguous().view(torch.uint8)
    shifts = x if shift is None else shift.contiguous()
    return (flips, shifts), {"HAS_FLIP": flip is not None, "HAS_SHIFT": shift is not None}


def _launch(kernel, x: Tensor, index: Tensor, argument: Tensor, mean: Tensor, std: Tensor, flip: Tensor | None,
            shift: Tensor | None, dtype: int, channels_last: bool, columns: int, **options) -> Tensor:
    out = _output(x, dtype, channels_last)
    source, strides = _source(x)
    windows, has = _windows(source, flip, shift)
    tiles = Tiles.of(out)
    launch(kernel, tiles.programs, x.device, out, source, index.contiguous(), argument.contiguous(), mean.contiguous(),
           std.contiguous(), *windows, x.shape[0], tiles.rows, tiles.length, x.shape[2], tiles.column_chunks, columns,
           *strides, ACC=FLOAT[out.dtype], PIXEL=tiles.pixel, VEC=tiles.vec, ROWS=tiles.tile_rows,
           COLUMNS=tiles.tile_columns, num_warps=_warps(tiles, out, columns, options.get("HAS_INDEX", False)), **has,
           **options)
    return out


def view(x: Tensor, mean: Tensor, std: Tensor, flip: Tensor | None, shift: Tensor | None, dtype: int,
         channels_last: bool) -> Tensor:
    return _launch(_view_paste_kernel, x, mean, mean, mean, std, flip, shift, dtype, channels_last, 1, HAS_INDEX=False)


def view_blend(x: Tensor, index: Tensor, weight: Tensor, mean: Tensor, std: Tensor, flip: Tensor | None,
               shift: Tensor | None, dtype: int, channels_last: bool) -> Tensor:
    columns = index.shape[1]
    return _launch(_view_blend_kernel, x, index, weight, mean, std, flip, shift, dtype, channels_last, columns,
                   K=columns if columns <= UNROLLED else 0)


def view_paste(x: Tensor, index: Tensor, boxes: Tensor, mean: Tensor, std: Tensor, flip: Tensor | None,
               shift: Tensor | None, dtype: int, channels_last: bool) -> Tensor:
    return _launch(_view_paste_kernel, x, index, boxes, mean, std, flip, shift, dtype, channels_last, index.shape[1],
                   HAS_INDEX=True, maxnreg=REGISTERS)


def view_patch_mix(x: Tensor, partner: Tensor, mask: Tensor, lam: Tensor, mean: Tensor, std: Tensor,
                   flip: Tensor | None, shift: Tensor | None, dtype: int,
                   channels_last: bool) -> tuple[Tensor, Tensor]:
    out = _output(x, dtype, channels_last)
    weight = torch.empty((x.shape[0], 2), dtype=torch.float32, device=x.device)
    source, strides = _source(x)
    windows, has = _windows(source, flip, shift)
    tiles, args, options = arguments(out, mask, lam)
    launch(_view_patch_mix_kernel, tiles.programs, x.device, out, weight, source, partner.contiguous(),
           mask.contiguous().view(torch.uint8), lam, mean.contiguous(), std.contiguous(), *windows, *strides, *args,
           PIXEL=tiles.pixel, CELLS=cells_together(mask), maxnreg=PATCH_REGISTERS, **has,
           **{**options, "num_warps": tiles.warps})
    return out, weight
