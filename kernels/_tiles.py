"""Tiles of images for the kernels that move pixels: paste, patch_mix, crop and view.

An image is rows: (C*H) of W elements where it is contiguous, H of W*C with channels last (a pixel is then C elements
of a row). A tile is some of its rows by some of a row's elements, so that what depends on the row alone or on the
column alone is computed once for each and not for every pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from ._common import device, image_rows, next_power_of_2, vector

# Reasoned, not measured. Eight warps with 16 elements a thread: two (halves) or four 16-byte loads a source, and
# under 128 registers with several sources in flight. At 32 elements a thread the gradient of paste spilled.
TILE = 4096
ELEMENTS_PER_THREAD = 16
# Left alone, ptxas spills 8 bytes of the gradient of paste to fit one more program.
REGISTERS = 160
# A tile's rows are at least a cache line, so that both ends of DRAM sectors and lines are used.
ROW_BYTES = 128
# Sources whose loop is unrolled, so that their loads do not wait for each other.
UNROLLED = 8


@dataclass(frozen=True)
class Tiles:
    rows: int
    length: int  # elements of a row
    pixel: int  # elements of a pixel of a row
    vec: int
    tile_rows: int
    tile_columns: int
    column_chunks: int
    programs: int
    warps: int

    @classmethod
    def of(cls, x: Tensor, rows_together: int | None = None) -> Tiles:
        """x: packed images. rows_together: tiles hold rows of one group of so many only (default: any rows)."""
        rows, length, pixel = image_rows(x)
        itemsize = x.element_size()
        vec = vector(itemsize, length, x.stride(0))
        # The fewest lanes outside the row, then the longest tile.
        sizes = [size for size in (32, 64, 128, 256, 512, 1024) if size * itemsize >= ROW_BYTES]
        columns = min(sizes, key=lambda size: (triton.cdiv(length, size) * size, -size))
        columns = min(columns, next_power_of_2(length))
        group = rows if rows_together is None else rows_together
        tile_rows = max(1, min(next_power_of_2(group), TILE // columns))
        column_chunks = triton.cdiv(length, columns)
        groups = rows // group if group else 0
        programs = x.shape[0] * groups * triton.cdiv(group, tile_rows) * column_chunks
        warps = max(1, min(8, tile_rows * columns // ELEMENTS_PER_THREAD // 32))
        return cls(rows, length, pixel, vec, tile_rows, columns, column_chunks, programs, warps)


@device
def source_image(index_ptr, batch):
    """(the image at index_ptr, whether it lies in the batch); image 0 where it does not, so nothing else is read."""
    m = tl.load(index_ptr)
    inside = (m >= 0) & (m < batch)
    return tl.where(inside, m, 0), inside


@device
def channel_of(row, column, height, PIXEL: tl.constexpr):
    """The channel of a tile's elements: by its rows (R, 1) where PIXEL is 1, else by its columns (1, L)."""
    if PIXEL == 1:
        channel = row // height
    else:
        channel = column % PIXEL
    return channel


@device
def tile(batch, rows, length, column_chunks, VEC: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """(n, rows (R, 1), columns (1, L), length as a multiple of VEC, inside (R, L)) of this program.

    Images innermost: programs in flight cover the same tile of every image, so a source that several images share
    comes from the L2 cache.
    """
    pid = tl.program_id(0)
    n = (pid % batch).to(tl.int64)
    chunk = pid // batch
    row = (chunk // column_chunks) * ROWS + tl.arange(0, ROWS)[:, None]
    column = (chunk % column_chunks) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    length = length // VEC * VEC
    return n, row, column, length, (row < rows) & (column < length)
