"""paste on Triton: every pixel copied from the one image that shows there, and the gradient. K-image mixing
Eq. 4-5.

Images are rows: (C*H) rows of W elements, or with channels last H rows of W*C. A box is a range of rows and a range
of elements of a row (its columns times the elements of a pixel), so neither layout needs a division by pixel.
Source k is loaded where its box overlaps a 16-byte vector that no later box covers whole: the masks are constant
along a vector, so loads stay 16 bytes wide, and only vectors on an edge are read from two sources. Which boxes hold a
row, a column or a vector are bits of one integer each; the highest bit that a row and a column share is what shows.

Gradient: pixel (i, j) of out[n] is pixel (i, j) of x[index[n, k]] for the one k that shows, so
``dx[m] = sum over (n, k) with index[n, k] = m of g[n] where k shows``, gathered by m (`_by_source.by_source`).

Values are moved as integers: every bit arrives, NaN payloads too. A row whose index leaves the batch is NaN.

bytes: N*C*H*W read + written, whatever K; flops: none. Not yet run on a GPU.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ._by_source import by_source
from ._common import FLOAT, NAN, WORD, device, finish, launch, rows_like, to_float, to_storage
from ._tiles import REGISTERS, UNROLLED, Tiles, source_image, tile


@device
def box(box_ptr, i, column, height, length, VEC: tl.constexpr, PIXEL: tl.constexpr):
    """(boxed, touched, filled) of a tile: elements inside the box, their vectors that overlap it, that lie inside.

    i: rows of the image (R, 1); column: elements of a row (1, L).
    """
    top, bottom, left, right = _sides(box_ptr, height, length, PIXEL)
    first = column // VEC * VEC
    rows = (i >= top) & (i < bottom)
    boxed = rows & ((column >= left) & (column < right))
    touched = rows & ((first < right) & (first + VEC > left) & (left < right))
    filled = rows & ((first >= left) & (first + VEC <= right))
    return boxed, touched, filled


@device
def _sides(box_ptr, height, length, PIXEL: tl.constexpr):
    """(top, bottom, left, right) of a box clipped to the image, columns in elements of a row."""
    # Clipped in int64, where no int32 box can wrap.
    top = tl.load(box_ptr).to(tl.int64)
    left = tl.load(box_ptr + 1).to(tl.int64)
    bottom = top + tl.load(box_ptr + 2)
    right = left + tl.load(box_ptr + 3)
    width = length // PIXEL
    top = tl.minimum(tl.maximum(top, 0), height).to(tl.int32)
    bottom = tl.minimum(tl.maximum(bottom, 0), height).to(tl.int32)
    left = tl.minimum(tl.maximum(left, 0), width).to(tl.int32) * PIXEL
    right = tl.minimum(tl.maximum(right, 0), width).to(tl.int32) * PIXEL
    return top, bottom, left, right


@device
def _source(x_ptr, index_ptr, valid, batch, image_stride, VEC: tl.constexpr):
    """(where the image at index_ptr lies, valid if it is in the batch)."""
    m, inside = source_image(index_ptr, batch)
    return x_ptr + m * (image_stride // VEC * VEC), valid & inside


@device
def _paste_box(value, todo, needed, valid, x_ptr, at, index_ptr, box_ptr, i, column, batch, height, length,
               image_stride, VEC: tl.constexpr, PIXEL: tl.constexpr):
    """(value, todo, needed, valid) once the box of a source is in place where no later one lies over it."""
    source, valid = _source(x_ptr, index_ptr, valid, batch, image_stride, VEC)
    boxed, touched, filled = box(box_ptr, i, column, height, length, VEC, PIXEL)
    value = tl.where(todo & boxed, tl.load(source + at, mask=needed & touched, other=0), value)
    todo = todo & ~boxed
    needed = needed & ~filled
    return value, todo, needed, valid


@triton.jit
def _paste_kernel(
    out_ptr, x_ptr, index_ptr, boxes_ptr,                       # words (N, rows, length) x2, (N, K), (N, K - 1, 4)
    batch, rows, length, height, column_chunks, image_stride, columns,
    K: tl.constexpr, PIXEL: tl.constexpr, NAN_BITS: tl.constexpr, VEC: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """K: columns where they are unrolled, else 0."""
    n, row, column, length, inside = tile(batch, rows, length, column_chunks, VEC, ROWS, COLUMNS)
    i = row % height
    at = row.to(tl.int64) * length + column
    valid = n >= 0
    if K > 0:
        # Bit k of a row, of a column, of a vector of columns: whether it lies in box k, overlaps it, lies in it whole.
        # Their common bits are those of an element, the highest of which is what shows.
        first = column // VEC * VEC
        rows_in = i * 0 + 1
        columns_in = column * 0 + 1
        touched = column * 0 + 1
        filled = column * 0
        for k in tl.static_range(1, K):
            top, bottom, left, right = _sides(boxes_ptr + (n * (columns - 1) + (k - 1)) * 4, height, length, PIXEL)
            rows_in += tl.where((i >= top) & (i < bottom), 1 << k, 0)
            columns_in += tl.where((column >= left) & (column < right), 1 << k, 0)
            touched += tl.where((first < right) & (first + VEC > left) & (left < right), 1 << k, 0)
            filled += tl.where((first >= left) & (first + VEC <= right), 1 << k, 0)
        shown = rows_in & columns_in
        touched = rows_in & touched
        filled = rows_in & filled
        value = tl.zeros((ROWS, COLUMNS), out_ptr.dtype.element_ty)
        for k in tl.static_range(K):
            source, valid = _source(x_ptr, index_ptr + n * columns + k, valid, batch, image_stride, VEC)
            needed = inside & ((touched >> k & 1) != 0) & (filled < 2 << k)
            value = tl.where(shown >= 1 << k, tl.load(source + at, mask=needed, other=0), value)
    else:
        todo = inside  # elements that no box has claimed yet, from the last box to the first
        needed = inside  # the same of vectors: False once they are complete
        value = tl.zeros((ROWS, COLUMNS), out_ptr.dtype.element_ty)
        for back in range(0, columns - 1):
            k = columns - 1 - back
            value, todo, needed, valid = _paste_box(
                value, todo, needed, valid, x_ptr, at, index_ptr + n * columns + k,
                boxes_ptr + (n * (columns - 1) + (k - 1)) * 4, i, column, batch, height, length, image_stride, VEC,
                PIXEL)
        source, valid = _source(x_ptr, index_ptr + n * columns, valid, batch, image_stride, VEC)
        value = tl.where(todo, tl.load(source + at, mask=needed, other=0), value)
    value = tl.where(valid, value, tl.full((ROWS, COLUMNS), NAN_BITS, out_ptr.dtype.element_ty))
    tl.store(out_ptr + n * rows * length + at, value, mask=inside)


@triton.jit
def _paste_backward_kernel(
    out_ptr, grad_ptr, offset_ptr, place_ptr, boxes_ptr,        # (N, rows, length) x2, (N + 1), (N*K), (N, K - 1, 4)
    batch, rows, length, height, column_chunks, image_stride, columns,
    PIXEL: tl.constexpr, ACC: tl.constexpr, VEC: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    m, row, column, length, inside = tile(batch, rows, length, column_chunks, VEC, ROWS, COLUMNS)
    i = row % height
    at = row.to(tl.int64) * length + column
    total = tl.zeros((ROWS, COLUMNS), ACC)
    for entry in range(tl.load(offset_ptr + m), tl.load(offset_ptr + m + 1)):
        place = tl.load(place_ptr + entry).to(tl.int64)
        n = place // columns
        own = (place % columns).to(tl.int32)
        shows = inside
        needed = inside
        for k in range(tl.maximum(own, 1), columns):
            boxed, touched, filled = box(boxes_ptr + (n * (columns - 1) + (k - 1)) * 4, i, column, height, length, VEC,
                                         PIXEL)
            is_own = k == own
            shows = shows & ((boxed & is_own) | (~boxed & (k != own)))
            needed = needed & ((touched & is_own) | (~filled & (k != own)))
        g = tl.load(grad_ptr + n * (image_stride // VEC * VEC) + at, mask=needed, other=0.0)
        total += tl.where(shows, to_float(g, ACC), 0.0)
    tl.store(out_ptr + m * rows * length + at, to_storage(total, out_ptr.dtype.element_ty), mask=inside)


def paste(x: Tensor, index: Tensor, boxes: Tensor) -> Tensor:
    source, written, result = rows_like(x, images=True)
    tiles = Tiles.of(source)
    columns = index.shape[1]
    word = WORD[x.element_size()]
    launch(_paste_kernel, tiles.programs, x.device, written.view(word), source.view(word), index.contiguous(),
           boxes.contiguous(), x.shape[0], tiles.rows, tiles.length, x.shape[2], tiles.column_chunks, source.stride(0),
           columns, K=columns if columns <= UNROLLED else 0, PIXEL=tiles.pixel, NAN_BITS=NAN[x.dtype],
           VEC=tiles.vec, ROWS=tiles.tile_rows, COLUMNS=tiles.tile_columns, num_warps=tiles.warps)
    return finish(written, result)


def paste_backward(grad: Tensor, index: Tensor, boxes: Tensor) -> Tensor:
    source, written, result = rows_like(grad, images=True)
    tiles = Tiles.of(source)
    if tiles.programs:
        index = index.contiguous()
        offset, place = by_source(index)
        launch(_paste_backward_kernel, tiles.programs, grad.device, written, source, offset, place, boxes.contiguous(),
               grad.shape[0], tiles.rows, tiles.length, grad.shape[2], tiles.column_chunks,
               source.stride(0), index.shape[1], PIXEL=tiles.pixel, ACC=FLOAT[grad.dtype], VEC=tiles.vec,
               ROWS=tiles.tile_rows, COLUMNS=tiles.tile_columns, num_warps=tiles.warps,
               maxnreg=REGISTERS)
    return finish(written, result)
