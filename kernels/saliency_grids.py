"""saliency_mask_of_grid on Triton: the mask of one of several grids, chosen on the device. R-Mix, Eq. 2-4.

A program looks up which grid was drawn and sums that grid's cells alone, as saliency.py does: the gradient is read
once, whatever the number of grids, in one launch (small images) or two.

bytes: N*C*H*W read once, N side^2 written. Not yet run on a GPU.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import FLOAT, device, launch, next_power_of_2, packed_images, vector
from .saliency import CONFIG, at_least, cell_means, key_options, order_key, percentile_rank, strides, tile_of


@device
def _store_repeated(out_ptr, mask, cell, P: tl.constexpr, SIDE: tl.constexpr, COPIES: tl.constexpr):
    """The mask of P x P cells on a grid of SIDE x SIDE, every cell repeated."""
    TIMES: tl.constexpr = SIDE // P
    copy = tl.arange(0, COPIES)
    row = (cell // P * TIMES)[:, None] + (copy // TIMES)[None, :]
    column = (cell % P * TIMES)[:, None] + (copy % TIMES)[None, :]
    inside = (cell < P * P)[:, None] & (copy < TIMES * TIMES)[None, :]
    tl.store(out_ptr + row * SIDE + column, tl.broadcast_to(mask.to(tl.uint8)[:, None], inside.shape), mask=inside)


@device
def _percentile_repeated(out_ptr, means, cell, q_ptr, P: tl.constexpr, SIDE: tl.constexpr, COPIES: tl.constexpr,
                         KEY: tl.constexpr, BITS: tl.constexpr, COMPARED: tl.constexpr):
    rank = percentile_rank(q_ptr, P * P)
    mask = at_least(order_key(means, KEY, BITS), cell < P * P, rank, KEY, BITS, P * P <= COMPARED)
    _store_repeated(out_ptr, mask, cell, P, SIDE, COPIES)


@device
def _grid_cells(out_ptr, cells_ptr, first, image_ptr, q_ptr, chunk, height, width, channels, pixel_stride,
                channel_stride, P: tl.constexpr, CELLS: tl.constexpr, PIXELS: tl.constexpr, COPIES: tl.constexpr,
                SIDE: tl.constexpr, C: tl.constexpr, ACC: tl.constexpr, VEC: tl.constexpr, KEY: tl.constexpr,
                BITS: tl.constexpr, COMPARED: tl.constexpr):
    """The mask of an image on P x P cells, or the averages of a chunk of them, to cells_ptr + first on."""
    cell = chunk * CELLS + tl.arange(0, CELLS)
    if chunk * CELLS < P * P:
        means = cell_means(image_ptr, cell, cell < P * P, P, height // P, width // P, width, channels, pixel_stride,
                           channel_stride, CELLS, PIXELS, C, ACC, VEC)
        if cells_ptr is None:
            _percentile_repeated(out_ptr, means, cell, q_ptr, P, SIDE, COPIES, KEY, BITS, COMPARED)
        else:
            tl.store(cells_ptr + first + cell, means, mask=cell < P * P)


@triton.jit
def _grid_kernel(
    out_ptr, cells_ptr, grad_ptr, grid_ptr, q_ptr,   # (N, SIDE, SIDE) bytes, (N, MOST) or None, (N, C, H, W), (), (N)
    programs, height, width, channels, image_stride, pixel_stride, channel_stride, q_stride,
    PATCHES: tl.constexpr, CELLS: tl.constexpr, PIXELS: tl.constexpr, COPIES: tl.constexpr, SIDE: tl.constexpr,
    MOST: tl.constexpr, C: tl.constexpr, ACC: tl.constexpr, VEC: tl.constexpr, KEY: tl.constexpr, BITS: tl.constexpr,
    COMPARED: tl.constexpr,
):  # fmt: skip
    """The mask of an image on the grid that was drawn, by one program; or the averages of some of its cells.

    PATCHES, CELLS, PIXELS, COPIES: a number for each grid."""
    n = (tl.program_id(0) // programs).to(tl.int64)
    chunk = tl.program_id(0) % programs
    drawn = tl.load(grid_ptr)
    image_ptr = grad_ptr + n * (image_stride // VEC * VEC)
    for i in tl.static_range(len(PATCHES)):
        if drawn == i:
            _grid_cells(out_ptr + n * (SIDE * SIDE), cells_ptr, n * MOST, image_ptr, q_ptr + n * q_stride, chunk,
                        height, width, channels, pixel_stride, channel_stride, PATCHES[i], CELLS[i], PIXELS[i],
                        COPIES[i], SIDE, C, ACC, VEC, KEY, BITS, COMPARED)


@triton.jit
def _grid_percentile_kernel(
    out_ptr, cells_ptr, grid_ptr, q_ptr, q_stride,
    PATCHES: tl.constexpr, CELLS: tl.constexpr, COPIES: tl.constexpr, SIDE: tl.constexpr, MOST: tl.constexpr,
    KEY: tl.constexpr, BITS: tl.constexpr, COMPARED: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64)
    drawn = tl.load(grid_ptr)
    for i in tl.static_range(len(PATCHES)):
        if drawn == i:
            cell = tl.arange(0, CELLS[i])
            means = tl.load(cells_ptr + n * MOST + cell, mask=cell < PATCHES[i] * PATCHES[i], other=0.0)
            _percentile_repeated(out_ptr + n * (SIDE * SIDE), means, cell, q_ptr + n * q_stride, PATCHES[i], SIDE,
                                 COPIES[i], KEY, BITS, COMPARED)


def saliency_mask_of_grid(grad: Tensor, patches: list[int], grid: Tensor, q: Tensor) -> Tensor:
    grad = packed_images(grad)
    n, channels, height, width = grad.shape
    acc, side, whole = FLOAT[grad.dtype], math.lcm(*patches), height * width <= CONFIG.whole_image
    image, pixel, channel = strides(grad)
    # In common: the narrowest vectors of all grids.
    vec = min(vector(grad.element_size(), width // p, width, image, channel) if pixel == 1 else 1 for p in patches)
    tiles = [tile_of(p * p, (height // p) * (width // p), whole) for p in patches]
    most = max(patches) ** 2
    programs = 1 if whole else max(triton.cdiv(p * p, tile[0]) for p, tile in zip(patches, tiles, strict=True))
    out = torch.empty((n, side, side), dtype=torch.bool, device=grad.device)
    cells = None if whole else torch.empty((n, most), dtype=torch.float64 if acc == tl.float64 else torch.float32,
                                           device=grad.device)
    q_stride = q.stride(0) if q.ndim else 0
    options = {"PATCHES": tuple(patches), "COPIES": tuple(next_power_of_2((side // p) ** 2) for p in patches),
               "SIDE": side, "MOST": most, "COMPARED": CONFIG.compared, **key_options(acc)}
    launch(_grid_kernel, n * programs, grad.device, out.view(torch.uint8), cells, grad, grid, q, programs, height,
           width, channels, image, pixel, channel, q_stride, CELLS=tuple(c for c, _ in tiles),
           PIXELS=tuple(p for _, p in tiles), C=channels if channels <= CONFIG.channels else 0, ACC=acc, VEC=vec,
           num_warps=CONFIG.warps(max(c * p for c, p in tiles)), **options)
    if cells is not None:
        blocks = tuple(next_power_of_2(p * p) for p in patches)
        launch(_grid_percentile_kernel, n, grad.device, out.view(torch.uint8), cells, grid, q, q_stride, CELLS=blocks,
               num_warps=CONFIG.warps(max(blocks)), **options)
    return out
