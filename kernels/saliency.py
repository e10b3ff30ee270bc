"""saliency on Triton: channel norm, cell average, percentile mask, peak. R-Mix, Eq. 2-4.

Small images (`Config.whole_image` pixels) are one program each: the norms are read, averaged, normalised or ranked
in registers, one launch. Of larger ones the cells are averaged by many programs first, and a second launch takes
one program an image over the h*w averages.

The q-th percentile needs no sort: floats become integers of the same order (NaN the largest, -0 like 0), and cell i
is at or above the r-th smallest if more than r cells are at or below it. Up to `Config.compared` cells every cell is
compared with every other; above, the r-th smallest key is found bit by bit from the top, counting the keys below a
candidate: 32 block-wide sums (64 in float64). Up to `Config.in_registers` cells the keys stay in registers; above, the
map is read again for every bit, from the L2 cache (a map of 224x224 cells is 200 KB): slower, and still no sort.

bytes: N*C*H*W read once (+ 4 N*h*w written and read between two launches). Not yet run on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import FLOAT, device, image_rows, launch, next_power_of_2, packed_images, to_float, vector


@dataclass(frozen=True)
class Config:
    """Reasoned, not measured."""

    # 64 KB of float32 a channel: one multiprocessor reads that in about the time of a second launch.
    whole_image: int = 16384
    compared: int = 64
    in_registers: int = 16384
    # Pixels of a tile: four warps, eight pixels a thread, all channels in flight.
    tile: int = 1024
    tile_whole: int = 4096
    # Channels whose loop is unrolled.
    channels: int = 4

    @staticmethod
    def warps(elements: int) -> int:
        return min(16, max(1, elements // 256))


CONFIG = Config()
KEY = {tl.float32: tl.int32, tl.float64: tl.int64}


# ---------------------------------------------------------------- norms and cells

@device
def _norm(image_ptr, at, inside, channels, channel_stride, C: tl.constexpr, ACC: tl.constexpr, VEC: tl.constexpr):
    """sqrt(mean over channels of g^2) of the pixels at ``at``. C: channels where they are unrolled, else 0."""
    stride = tl.full((), 0, tl.int64) + channel_stride // VEC * VEC
    if C > 0:
        g = to_float(tl.load(image_ptr + at, mask=inside, other=0.0), ACC)
        total = g * g
        for c in tl.static_range(1, C):
            g = to_float(tl.load(image_ptr + c * stride + at, mask=inside, other=0.0), ACC)
            total += g * g
    else:
        total = at.to(ACC) * 0.0
        for c in range(0, channels):
            g = to_float(tl.load(image_ptr + c * stride + at, mask=inside, other=0.0), ACC)
            total += g * g
    if ACC == tl.float32:
        norm = tl.sqrt_rn(total / channels)
    else:
        norm = tl.sqrt(total / channels)
    return norm


@device
def cell_means(image_ptr, cell, is_cell, cells_across, cell_height, cell_width, width, channels, pixel_stride,
                channel_stride, CELLS: tl.constexpr, PIXELS: tl.constexpr, C: tl.constexpr, ACC: tl.constexpr,
                VEC: tl.constexpr):
    """Mean norm of the cells, (CELLS,)."""
    cell_width = cell_width // VEC * VEC
    width = width // VEC * VEC
    first = (cell // cells_across * cell_height).to(tl.int64) * width + cell % cells_across * cell_width
    pixels = cell_height * cell_width
    total = tl.zeros((CELLS,), ACC)
    for start in range(0, pixels, PIXELS):
        p = start + tl.arange(0, PIXELS)
        offset = (p // cell_width).to(tl.int64) * width + p % cell_width
        inside = is_cell[:, None] & (p < pixels)[None, :]
        at = (first[:, None] + offset[None, :]) * pixel_stride
        norm = _norm(image_ptr, at, inside, channels, channel_stride, C, ACC, VEC)
        total += tl.sum(tl.where(inside, norm, 0.0), 1)
    return total / pixels


@triton.jit
def _cells_kernel(
    out_ptr, grad_ptr,                                          # (N, cells), (N, C, H, W)
    cells, cell_chunks, cells_across, cell_height, cell_width, width, channels, image_stride, pixel_stride,
    channel_stride,
    CELLS: tl.constexpr, PIXELS: tl.constexpr, C: tl.constexpr, ACC: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    n = (pid // cell_chunks).to(tl.int64)
    cell = pid % cell_chunks * CELLS + tl.arange(0, CELLS)
    means = cell_means(grad_ptr + n * (image_stride // VEC * VEC), cell, cell < cells, cells_across, cell_height,
                        cell_width, width, channels, pixel_stride, channel_stride, CELLS, PIXELS, C, ACC, VEC)
    tl.store(out_ptr + n * cells + cell, means, mask=cell < cells)


# ---------------------------------------------------------------- normalised, ranked

@device
def _normalised(means, total, cell_pixels, pixels):
    total = total * cell_pixels
    return tl.where(total == 0, 1.0 / pixels, means / total)


@device
def order_key(value, KEY: tl.constexpr, BITS: tl.constexpr):
    """An integer that orders like the float: -0 like 0, NaN above infinity."""
    bits = tl.where(value == 0, 0.0, value).to(KEY, bitcast=True)
    largest = tl.full((1,), -1, KEY) ^ (tl.full((1,), 1, KEY) << (BITS - 1))
    return tl.where(value == value, bits ^ ((bits >> (BITS - 1)) & largest), largest)


@device
def percentile_rank(q_ptr, cells):
    """ceil(q (cells - 1)), in float64. Below 0 and NaN: 0. Cut as a float: an integer of infinity is any number."""
    rank = tl.ceil(tl.load(q_ptr).to(tl.float64) * (cells - 1))
    return tl.where(rank > 0, tl.minimum(rank, cells - 1), 0.0).to(tl.int64)


@device
def _signed(found, KEY: tl.constexpr, BITS: tl.constexpr):
    """The key whose order among signed integers is that of found among unsigned ones."""
    return found ^ (tl.full((1,), 1, KEY) << (BITS - 1))


@device
def _candidate(found, bit, KEY: tl.constexpr, BITS: tl.constexpr):
    """(found with this bit set, the same as a signed key)."""
    tried = found | (tl.full((1,), 1, KEY) << (BITS - 1 - bit))
    return tried, _signed(tried, KEY, BITS)


@device
def _load_keys(map_ptr, i, inside, KEY: tl.constexpr, BITS: tl.constexpr):
    return order_key(tl.load(map_ptr + i, mask=inside, other=0.0), KEY, BITS)


@device
def at_least(key, inside, rank, KEY: tl.constexpr, BITS: tl.constexpr, COMPARE: tl.constexpr):
    """Which keys are at or above the rank-th smallest (from 0) of those inside."""
    if COMPARE:
        at_most = (key[None, :] <= key[:, None]) & inside[None, :]
        result = tl.sum(at_most.to(tl.int32), 1) > rank
    else:
        found = tl.zeros((1,), KEY)
        for bit in range(0, BITS):
            tried, candidate = _candidate(found, bit, KEY, BITS)
            below = tl.sum(((key < candidate) & inside).to(tl.int32))
            found = tl.where(below <= rank, tried, found)
        result = key >= _signed(found, KEY, BITS)
    return result


@triton.jit
def _whole_kernel(
    out_ptr, grad_ptr, q_ptr,                                   # (N, cells) map or mask bytes, (N, C, H, W), (N,)
    cells, cells_across, cell_height, cell_width, width, channels, image_stride, pixel_stride, channel_stride, pixels,
    q_stride,
    CELLS: tl.constexpr, PIXELS: tl.constexpr, C: tl.constexpr, ACC: tl.constexpr, VEC: tl.constexpr,
    KEY: tl.constexpr, BITS: tl.constexpr, COMPARE: tl.constexpr,
):  # fmt: skip
    """Map (q is None) or mask of one image."""
    n = tl.program_id(0).to(tl.int64)
    cell = tl.arange(0, CELLS)
    means = cell_means(grad_ptr + n * (image_stride // VEC * VEC), cell, cell < cells, cells_across, cell_height,
                        cell_width, width, channels, pixel_stride, channel_stride, CELLS, PIXELS, C, ACC, VEC)
    if q_ptr is None:
        total = tl.sum(tl.where(cell < cells, means, 0.0))
        tl.store(out_ptr + n * cells + cell, _normalised(means, total, cell_height * cell_width, pixels),
                 mask=cell < cells)
    else:
        key = order_key(means, KEY, BITS)
        mask = at_least(key, cell < cells, percentile_rank(q_ptr + n * q_stride, cells), KEY, BITS, COMPARE)
        tl.store(out_ptr + n * cells + cell, mask.to(tl.uint8), mask=cell < cells)


@triton.jit
def _normalise_kernel(map_ptr, cells, cell_pixels, pixels, ACC: tl.constexpr, BLOCK: tl.constexpr):
    """Averages (N, cells) divided by their image's sum, in place."""
    row_ptr = map_ptr + tl.program_id(0).to(tl.int64) * cells
    total = tl.zeros((BLOCK,), ACC)
    for start in range(0, cells, BLOCK):
        i = start + tl.arange(0, BLOCK)
        total += tl.load(row_ptr + i, mask=i < cells, other=0.0)
    sum_of_cells = tl.sum(total)
    for start in range(0, cells, BLOCK):
        i = start + tl.arange(0, BLOCK)
        means = tl.load(row_ptr + i, mask=i < cells)
        tl.store(row_ptr + i, _normalised(means, sum_of_cells, cell_pixels, pixels), mask=i < cells)


@triton.jit
def _percentile_kernel(
    mask_ptr, map_ptr, q_ptr, cells, q_stride,                  # (N, cells) bytes, (N, cells), (N,)
    KEY: tl.constexpr, BITS: tl.constexpr, COMPARE: tl.constexpr, LOOP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    rank = percentile_rank(q_ptr + n * q_stride, cells)
    if LOOP:
        found = tl.zeros((1,), KEY)
        for bit in range(0, BITS):
            tried, candidate = _candidate(found, bit, KEY, BITS)
            below = tl.zeros((BLOCK,), tl.int32)
            for start in range(0, cells, BLOCK):
                inside = start + i < cells
                key = _load_keys(map_ptr + n * cells, start + i, inside, KEY, BITS)
                below += ((key < candidate) & inside).to(tl.int32)
            found = tl.where(tl.sum(below) <= rank, tried, found)
        threshold = _signed(found, KEY, BITS)
        for start in range(0, cells, BLOCK):
            inside = start + i < cells
            key = _load_keys(map_ptr + n * cells, start + i, inside, KEY, BITS)
            tl.store(mask_ptr + n * cells + (start + i), (key >= threshold).to(tl.uint8), mask=inside)
    else:
        key = _load_keys(map_ptr + n * cells, i, i < cells, KEY, BITS)
        mask = at_least(key, i < cells, rank, KEY, BITS, COMPARE)
        tl.store(mask_ptr + n * cells + i, mask.to(tl.uint8), mask=i < cells)


@triton.jit
def _peak_kernel(
    peak_ptr, grad_ptr,                                         # (N, 2), (N, C, H, W)
    pixels, width, channels, image_stride, pixel_stride, channel_stride,
    C: tl.constexpr, ACC: tl.constexpr, VEC: tl.constexpr, KEY: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Every lane keeps its largest norm and where it first saw it; the smallest place of the largest wins."""
    n = tl.program_id(0).to(tl.int64)
    best = tl.full((BLOCK,), -1, KEY)
    place = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, pixels, BLOCK):
        p = start + tl.arange(0, BLOCK)
        inside = p < pixels // VEC * VEC
        norm = _norm(grad_ptr + n * (image_stride // VEC * VEC), p.to(tl.int64) * pixel_stride, inside, channels,
                     channel_stride, C, ACC, VEC)
        key = tl.where(inside, order_key(norm, KEY, BITS), -1)
        place = tl.where(key > best, p, place)
        best = tl.maximum(best, key)
    first = tl.min(tl.where(best == tl.max(best), place, pixels))
    tl.store(peak_ptr + n * 2, (first // width).to(tl.int64))
    tl.store(peak_ptr + n * 2 + 1, (first % width).to(tl.int64))


# ---------------------------------------------------------------- launchers

def strides(grad: Tensor) -> tuple[int, int, int]:
    """(image, pixel, channel) strides of packed images."""
    height, width = grad.shape[2:]
    pixel = image_rows(grad)[2]
    return grad.stride(0), pixel, 1 if pixel > 1 else height * width


def key_options(acc: tl.dtype) -> dict:
    return {"KEY": KEY[acc], "BITS": 32 if acc == tl.float32 else 64}


def tile_of(cells: int, cell_pixels: int, whole: bool) -> tuple[int, int]:
    """(cells, pixels of each) of a tile."""
    block_cells, block_pixels = next_power_of_2(cells), next_power_of_2(cell_pixels)
    if whole:
        return block_cells, max(1, min(block_pixels, CONFIG.tile_whole // block_cells))
    block_pixels = min(block_pixels, CONFIG.tile)
    return min(block_cells, CONFIG.tile // block_pixels), block_pixels


def _cells(grad: Tensor, h: int, w: int, q: Tensor | None) -> tuple[Tensor, bool]:
    """((N, h, w) averages, or map or mask at once for small images, whether it is at once)."""
    n, channels, height, width = grad.shape
    acc = FLOAT[grad.dtype]
    cell_height, cell_width, cells = height // h, width // w, h * w
    image, pixel, channel = strides(grad)
    vec = vector(grad.element_size(), cell_width, width, image, channel) if pixel == 1 else 1
    whole = height * width <= CONFIG.whole_image
    dtype = torch.float64 if grad.dtype == torch.float64 else torch.float32
    if whole and q is not None:
        dtype = torch.bool
    out = torch.empty((n, h, w), dtype=dtype, device=grad.device)
    block_cells, block_pixels = tile_of(cells, cell_height * cell_width, whole)
    unrolled = channels if channels <= CONFIG.channels else 0
    options = {"CELLS": block_cells, "PIXELS": block_pixels, "C": unrolled, "ACC": acc, "VEC": vec,
               "num_warps": CONFIG.warps(block_cells * block_pixels)}
    if whole:
        launch(_whole_kernel, n, grad.device, out if q is None else out.view(torch.uint8), grad, q, cells, w,
               cell_height, cell_width, width, channels, image, pixel, channel, height * width,
               q.stride(0) if q is not None and q.ndim else 0, COMPARE=cells <= CONFIG.compared, **options,
               **key_options(acc))
    else:
        chunks = triton.cdiv(cells, block_cells)
        launch(_cells_kernel, n * chunks, grad.device, out, grad, cells, chunks, w, cell_height, cell_width, width,
               channels, image, pixel, channel, **options)
    return out, whole


def saliency_map(grad: Tensor, h: int, w: int) -> Tensor:
    grad = packed_images(grad)
    out, done = _cells(grad, h, w, None)
    if not done:
        cells, pixels = h * w, grad.shape[2] * grad.shape[3]
        block = min(1024, next_power_of_2(cells))
        launch(_normalise_kernel, grad.shape[0], grad.device, out, cells, pixels // cells, pixels,
               ACC=FLOAT[grad.dtype], BLOCK=block, num_warps=CONFIG.warps(block))
    return out


def saliency_mask(grad: Tensor, h: int, w: int, q: Tensor) -> Tensor:
    out, done = _cells(packed_images(grad), h, w, q)
    return out if done else percentile_mask(out, q)


def percentile_mask(map: Tensor, q: Tensor) -> Tensor:
    map = map.contiguous()
    n, cells = map.shape[0], map.shape[1] * map.shape[2]
    mask = torch.empty(map.shape, dtype=torch.bool, device=map.device)
    loop = cells > CONFIG.in_registers
    block = 4096 if loop else next_power_of_2(cells)
    launch(_percentile_kernel, n, map.device, mask.view(torch.uint8), map, q, cells, q.stride(0) if q.ndim else 0,
           COMPARE=cells <= CONFIG.compared, LOOP=loop, BLOCK=block, num_warps=CONFIG.warps(block),
           **key_options(FLOAT[map.dtype]))
    return mask


def saliency_peak(grad: Tensor) -> Tensor:
    grad = packed_images(grad)
    n, channels, height, width = grad.shape
    acc = FLOAT[grad.dtype]
    image, pixel, channel = strides(grad)
    pixels = height * width
    vec = vector(grad.element_size(), pixels, image, channel) if pixel == 1 else 1
    peak = torch.empty((n, 2), dtype=torch.int64, device=grad.device)
    block = min(CONFIG.tile_whole, next_power_of_2(pixels))
    launch(_peak_kernel, n, grad.device, peak, grad, pixels, width, channels, image, pixel, channel,
           C=channels if channels <= CONFIG.channels else 0, ACC=acc, VEC=vec, BLOCK=block,
           num_warps=CONFIG.warps(block), **key_options(acc))
    return peak
