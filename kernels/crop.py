"""crop and resized_crop on Triton, and the transposed interpolation. Soft Augmentation Sec. 4.1 and B.3.

crop moves words: a tile of the output is the same tile of the image, shifted, where that lies inside, else the
background. Shifted rows are not aligned, so loads are one element wide (a warp still reads whole lines); stores are
16 bytes wide. resized_crop reads four neighbours of every output element; positions are computed in float64 once for
each row and column of a tile. Its gradient is two passes of one kernel, first along the columns' axis, then along the
rows': every element sums, in order, the lines of the gradient that touch its own, so nothing is added by atomics.

bytes: crop N*C*H*W read + written; resized_crop the window read (neighbours come from cache) + the output written.
Not yet run on a GPU.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmix.reference._common import is_channels_last

from ._common import FLOAT, WORD, device, finish, image_rows, launch, packed_images, rows_like, to_float, to_storage
from ._tiles import REGISTERS, Tiles, channel_of, tile

# Elements of a program of the gradient, 8 a thread. Reasoned, not measured: its loads are gathers.
BLOCK = 1024


@functools.lru_cache(maxsize=64)
def _bits(value: float, dtype: torch.dtype) -> int:
    """value in the type of the images, as an integer of the same size."""
    return int(torch.tensor(value, dtype=dtype, device="cpu").view(WORD[dtype.itemsize]))


# ---------------------------------------------------------------- crop

@triton.jit
def _crop_kernel(
    out_ptr, x_ptr, shift_ptr, fill_ptr,          # words (N, rows, length) x2, int64 (N, 2), words (N, C)
    batch, rows, length, height, width, column_chunks, image_stride, fill_value,
    CHANNELS: tl.constexpr, PIXEL: tl.constexpr, COLOURED: tl.constexpr, VEC: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    n, row, column, length, inside = tile(batch, rows, length, column_chunks, VEC, ROWS, COLUMNS)
    # Clamped in int64: adding a row's number to any of them could wrap.
    down = tl.minimum(tl.maximum(tl.load(shift_ptr + 2 * n), -height), height).to(tl.int32)
    right = tl.minimum(tl.maximum(tl.load(shift_ptr + 2 * n + 1), -width), width).to(tl.int32) * PIXEL
    i = row % height + down
    j = column + right
    shown = inside & ((i >= 0) & (i < height)) & ((j >= 0) & (j < length))
    at = row.to(tl.int64) * length + column
    if COLOURED:
        channel = channel_of(row, column, height, PIXEL)
        background = tl.load(fill_ptr + n * CHANNELS + channel, mask=inside & ~shown, other=0)
        background += tl.zeros((ROWS, COLUMNS), out_ptr.dtype.element_ty)
    else:
        word = tl.cast(fill_value, out_ptr.dtype.element_ty)  # fill_value is a constant where it is 1
        background = tl.full((ROWS, COLUMNS), 0, out_ptr.dtype.element_ty) + word
    value = tl.load(x_ptr + n * image_stride + at + (down.to(tl.int64) * length + right), mask=shown, other=0)
    tl.store(out_ptr + n * rows * length + at, tl.where(shown, value, background), mask=inside)


def crop(x: Tensor, shift: Tensor, fill: Tensor | None, value: float) -> Tensor:
    source, written, result = rows_like(x, images=True)
    tiles = Tiles.of(source)
    word = WORD[x.element_size()]
    colours = written if fill is None else fill.contiguous()
    launch(_crop_kernel, tiles.programs, x.device, written.view(word), source.view(word), shift.contiguous(),
           colours.view(word), x.shape[0], tiles.rows, tiles.length, x.shape[2], x.shape[3], tiles.column_chunks,
           source.stride(0), _bits(value, x.dtype), CHANNELS=x.shape[1], PIXEL=tiles.pixel,
           COLOURED=fill is not None, VEC=tiles.vec, ROWS=tiles.tile_rows, COLUMNS=tiles.tile_columns,
           num_warps=tiles.warps, maxnreg=REGISTERS)
    return finish(written, result)


# ---------------------------------------------------------------- resized_crop

@device
def _position(start, length, out, size, i):
    """(the pixel before, the weight of the next) of pixel i of an axis, in float64; as csrc/core/resize.h."""
    last = tl.where(length > 1.0, length - 1.0, 0.0)
    at = (i.to(tl.float64) + 0.5) * (length / out) - 0.5
    at = tl.where(at < 0.0, 0.0, tl.where(at > last, last, at)) + start
    at = tl.where(at < -2.0, -2.0, tl.where(at > size + 1, size + 1, at))
    # A conversion rounds towards zero, and -2 is the least: moved to where both are a floor.
    before = (at + 2.0).to(tl.int32) - 2
    return before, at - before.to(tl.float64)


@device
def _box(box_ptr, n):
    """(top, left, height, width, finite); a box that is not is read as zeros."""
    top = tl.load(box_ptr + 4 * n)
    left = tl.load(box_ptr + 4 * n + 1)
    height = tl.load(box_ptr + 4 * n + 2)
    width = tl.load(box_ptr + 4 * n + 3)
    # Any NaN or infinity makes this no number.
    finite = (top - top) + (left - left) + (height - height) + (width - width) == 0.0
    zero = tl.zeros_like(top)
    return (tl.where(finite, top, zero), tl.where(finite, left, zero), tl.where(finite, height, zero),
            tl.where(finite, width, zero), finite)


@device
def _between(a, b, weight):
    return tl.where(weight == 0.0, a, a + weight * (b - a))


@triton.jit
def _resized_crop_kernel(
    out_ptr, x_ptr, box_ptr, fill_ptr,            # (N, rows, length), (N, ...), float64 (N, 4), (N, C)
    batch, rows, length, out_height, out_width, height, width, column_chunks, image_stride,
    row_stride, channel_stride,
    PIXEL: tl.constexpr, ACC: tl.constexpr, VEC: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    FILL_STRIDE: tl.constexpr,
):  # fmt: skip
    """row_stride, channel_stride: elements of x between image rows, and between the channels of a row-major image."""
    n, row, column, length, inside = tile(batch, rows, length, column_chunks, VEC, ROWS, COLUMNS)
    top, left, tall, wide, finite = _box(box_ptr, n)
    channel = channel_of(row, column, out_height, PIXEL)
    y, down = _position(top, tall, out_height, height, row % out_height)
    x, right = _position(left, wide, out_width, width, column // PIXEL)
    down = down.to(ACC)
    right = right.to(ACC)
    background = to_float(tl.load(fill_ptr + n * FILL_STRIDE + channel, mask=inside, other=0.0), ACC)
    if PIXEL == 1:
        plane = x_ptr + n * image_stride + channel.to(tl.int64) * channel_stride
    else:
        plane = x_ptr + n * image_stride + channel
    # A neighbour of weight 0 is not read, and may lie outside.
    first = inside & ((y >= 0) & (y < height))
    second = inside & ((y >= -1) & (y + 1 < height) & (down != 0.0))
    before = (x >= 0) & (x < width)
    after = (x >= -1) & (x + 1 < width) & (right != 0.0)
    corner = plane + y.to(tl.int64) * row_stride + x * PIXEL
    a = to_float(tl.load(corner, mask=first & before, other=0.0), ACC)
    b = to_float(tl.load(corner + PIXEL, mask=first & after, other=0.0), ACC)
    c = to_float(tl.load(corner + row_stride, mask=second & before, other=0.0), ACC)
    d = to_float(tl.load(corner + row_stride + PIXEL, mask=second & after, other=0.0), ACC)
    upper = _between(tl.where(first & before, a, background), tl.where(first & after, b, background), right)
    lower = _between(tl.where(second & before, c, background), tl.where(second & after, d, background), right)
    result = tl.where(finite, _between(upper, lower, down), float("nan"))
    out_at = row.to(tl.int64) * length + column
    tl.store(out_ptr + n * rows * length + out_at, to_storage(result, out_ptr.dtype.element_ty), mask=inside)


def _resized_like(x: Tensor, height: int, width: int, dtype: torch.dtype | None = None) -> Tensor:
    """As the operator's fake."""
    return torch.empty((*x.shape[:2], height, width), dtype=dtype or x.dtype, device=x.device,
                       memory_format=torch.channels_last if is_channels_last(x) else torch.contiguous_format)


def resized_crop(x: Tensor, box: Tensor, height: int, width: int, fill: Tensor | None, value: float) -> Tensor:
    out = _resized_like(x, height, width)
    _, channels, tall, wide = x.shape
    tiles = Tiles.of(out)
    if tiles.programs == 0:
        return out
    # Both in the same order. A pixel of one channel or an image of one pixel is in either.
    source = packed_images(x)
    if tiles.pixel > 1:
        source = source.contiguous(memory_format=torch.channels_last)
        strides = wide * channels, 1
    else:
        source = source if image_rows(source)[2] == 1 else source.contiguous()
        strides = wide, tall * wide
    colours = x.new_full((channels,), value) if fill is None else fill.contiguous()
    # maxnreg: left alone, ptxas of Triton 3.6 spills 8 bytes for sm_100; float64 needs more and has no such limit
    options = {} if x.dtype == torch.float64 else {"maxnreg": REGISTERS}
    launch(_resized_crop_kernel, tiles.programs, x.device, out, source, box.contiguous(), colours, x.shape[0],
           tiles.rows, tiles.length, height, width, tall, wide, tiles.column_chunks, source.stride(0), *strides,
           PIXEL=tiles.pixel, ACC=FLOAT[x.dtype], VEC=tiles.vec, ROWS=tiles.tile_rows, COLUMNS=tiles.tile_columns,
           FILL_STRIDE=0 if fill is None else channels, num_warps=tiles.warps, **options)
    return out


# ---------------------------------------------------------------- its gradient

@triton.jit
def _adjoint_kernel(
    out_ptr, grad_ptr, box_ptr,                   # (N, P, A, B), (N, P, lines, B), float64 (N, 4)
    planes, length, inner, lines, grad_stride, chunks, batch,
    AXIS: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Along one axis of `lines` lines of the gradient and `length` of the image, of `inner` elements each.

    AXIS: 0 for rows, 1 for columns, as in a box.
    """
    pid = tl.program_id(0)
    n = (pid % batch).to(tl.int64)
    element = (pid // batch).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = element < tl.cast(planes, tl.int64) * length * inner
    line = (element // inner % length).to(tl.int32)
    plane = element // inner // length
    top, left, tall, wide, finite = _box(box_ptr, n)
    start = top if AXIS == 0 else left
    extent = tall if AXIS == 0 else wide
    # The lines whose positions lie within one of this line, and one more for rounding on either side. Lines at the
    # window's ends have all that were clamped to them; so has every line where the window has no extent. (Bounds
    # rather than a scalar condition joined to a block's: the interpreter turns a scalar bool into a float.)
    near = tl.where(extent > 1.0, 2.0, float("inf"))
    far = tl.where(extent > 1.0, extent - 3.0, -float("inf"))
    scale = lines / tl.where(extent > 1.0, extent, 1.0)
    offset = line.to(tl.float64) - start
    low = tl.where(offset >= near, (offset - 0.5) * scale - 1.5, 0.0)
    high = tl.where(offset <= far, (offset + 1.5) * scale + 1.5, lines * 1.0)
    low = tl.minimum(tl.maximum(low, 0.0), lines * 1.0).to(tl.int32)
    high = tl.minimum(tl.maximum(high, 0.0), lines * 1.0).to(tl.int32)
    count = tl.where(inside, tl.where(finite, high - low, 0), 0)
    source = grad_ptr + n * grad_stride + plane * lines * inner + element % inner
    total = tl.zeros((BLOCK,), ACC)
    for step in range(0, tl.max(count, 0)):
        i = low + step
        before, weight = _position(start, extent, lines, length, i)
        own = before == line
        share = tl.where(own, 1.0 - weight, weight).to(ACC)
        touches = (step < count) & (own | ((before + 1 == line) & (weight != 0.0)))
        g = tl.load(source + i.to(tl.int64) * inner, mask=touches, other=0.0)
        total += tl.where(touches, share * to_float(g, ACC), 0.0)
    tl.store(out_ptr + n * planes * length * inner + element, to_storage(total, out_ptr.dtype.element_ty), mask=inside)


def _along(out: Tensor, grad: Tensor, box: Tensor, axis: int, planes: int, length: int, inner: int,
           lines: int) -> None:
    batch = out.shape[0]
    chunks = triton.cdiv(planes * length * inner, BLOCK)
    launch(_adjoint_kernel, batch * chunks, out.device, out, grad, box, planes, length, inner, lines, grad.stride(0),
           chunks, batch, AXIS=axis, ACC=FLOAT[out.dtype], BLOCK=BLOCK, num_warps=4, maxnreg=REGISTERS)


def resized_crop_backward(grad: Tensor, box: Tensor, height: int, width: int) -> Tensor:
    out = _resized_like(grad, height, width)
    _, channels, tall, wide = grad.shape
    if out.numel() == 0:
        return out
    box = box.contiguous()
    last = is_channels_last(out)
    source = grad.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    planes, pixel = (1, channels) if last else (channels, 1)
    sums = _resized_like(source, tall, width, torch.float64 if grad.dtype == torch.float64 else torch.float32)
    _along(sums, source, box, 1, planes * tall, width, pixel, wide)
    _along(out, sums, box, 0, planes, height, width * pixel, tall)
    return out
