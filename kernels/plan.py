"""plan_blend, plan_paste, plan_cutout, plan_patch and plan_crop on Triton: a whole plan in one launch.
K-image mixing Eq. 2-5, R-Mix Sec. 3, Soft Augmentation Sec. 4.1 and Eq. 7.

Where shares are drawn the bits are one number, the seed, and a kernel makes every random number where it needs it
(`_counter.py`): so a plan is two launches, the draw of the seed and this one.

A program holds a block of images. The partner of image n is how many keys of its column come before key n, ties by row:
counted against all N keys, N^2 comparisons that take a few microseconds at N = 1024 and need no second launch, where a
sort takes several. Above `Config.counted` images the keys are ranked by torch's sort first. What is drawn once for the
batch is formed anew by every program: it is a few operations on numbers that all of them read.

Arithmetic is float64 in the order of `fastmix.reference.plan`, without fused multiply-adds, so that boxes are the same
pixels on every backend.

bytes: 8 a random number, a few a result; a launch is the floor. Not yet run on a GPU.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmix.ops.enums import LAST_PERCENTILE

from ._common import device, launch, next_power_of_2
from ._counter import random_bits, random_gamma, write_bits


@dataclass(frozen=True)
class Config:
    """Reasoned, not measured."""

    # 4096^2 comparisons for each permutation, spread over N / block programs.
    counted: int = 4096
    # Images of a program, and the keys they are compared with at a time: small batches spread over several SMs.
    block: int = 16
    entries: int = 128
    # Left alone, ptxas spills 8 bytes on sm_100 to fit more programs than there are.
    registers: int = 160


CONFIG = Config()
OPTIONS = {"num_warps": 4, "maxnreg": CONFIG.registers, "enable_fp_fusion": False}
NESTED, PEAKS, CENTRED = (tl.constexpr(code) for code in range(3))
# What `prob` decides on: nothing, since it is 1; the batch, by one number; every image, by a number each.
ALWAYS, PER_BATCH, PER_IMAGE = (tl.constexpr(code) for code in range(3))
TO_UNIT = tl.constexpr(2.0**-53)
UNITS = tl.constexpr(2.0**24)
# Added and taken away again it rounds float64 numbers below 2^51 to whole ones, half to even.
ROUNDER = tl.constexpr(1.5 * 2.0**52)
SQRT_2 = tl.constexpr(2.0**0.5)


# ---------------------------------------------------------------- what the kernels share

@device
def _uniform(bits):
    """float64 in [0, 1)."""
    return (bits >> 10).to(tl.float64) * TO_UNIT


@device
def _one_of(bits, count):
    """int64 in [0, count); count an int64 tensor."""
    return tl.floor(_uniform(bits) * count.to(tl.float64)).to(tl.int64)


@device
def _double(word):
    """The float64 whose bits a kernel got as an integer: a Python float would arrive as float32."""
    return tl.full((1,), 0, tl.int64) + word


@device
def _bits(bits_ptr, at, valid, SEEDED: tl.constexpr):
    """The numbers of the stream at these places."""
    if SEEDED:
        bits = random_bits(tl.load(bits_ptr), at)
    else:
        bits = tl.load(bits_ptr + at, mask=valid, other=0)
    return bits


@device
def _active(active_ptr, bits_ptr, at, n, valid, prob, DECIDES: tl.constexpr, SEEDED: tl.constexpr):
    """Which images are mixed. at: where the stream says so. valid: the images of the block that are in the batch."""
    on = valid & (tl.load(active_ptr) != 0)
    if DECIDES != ALWAYS:
        if DECIDES == PER_BATCH:
            n = n * 0
        bits = _bits(bits_ptr, at + n, valid | (n == 0), SEEDED)
        on = on & (_uniform(bits) < _double(prob).to(tl.float64, bitcast=True))
    return on


@device
def _partner(keys_ptr, at, n, valid, rows, RANKED: tl.constexpr, SEEDED: tl.constexpr, BLOCK: tl.constexpr,
             ENTRIES: tl.constexpr):
    """int64: how many of the keys from `at` on come before key n. RANKED: the keys are these numbers already."""
    if RANKED:
        rank = tl.load(keys_ptr + at + n, mask=valid, other=0)
    else:
        key = _bits(keys_ptr, at + n, valid, SEEDED)
        before = tl.zeros((BLOCK,), tl.int32)
        for start in range(0, rows, ENTRIES):
            m = start + tl.arange(0, ENTRIES).to(tl.int64)
            other = _bits(keys_ptr, at + m, m < rows, SEEDED)
            first = (other[None, :] < key[:, None]) | ((other[None, :] == key[:, None]) & (m[None, :] < n[:, None]))
            before += tl.sum((first & (m < rows)[None, :]).to(tl.int32), 1)
        rank = before.to(tl.int64)
    return rank


@device
def _weights(gamma_ptr, bits_ptr, at, draw, column, valid, draws, columns, alpha, DRAWN: tl.constexpr,
             SEEDED: tl.constexpr):
    """(BLOCK, KP) float64 in the proportions of the shares, 0 beyond the columns. at: where the exponents are."""
    used = valid[:, None] & (column < columns)
    entry = draw[:, None] * columns + column
    if SEEDED:
        weight = random_gamma(tl.load(bits_ptr), entry, used, _double(alpha).to(tl.float64, bitcast=True)[:, None])
        weight = tl.where(used, weight, 0.0)
    else:
        weight = tl.load(gamma_ptr + entry, mask=used, other=0.0).to(tl.float64)
    if DRAWN:
        bits = _bits(bits_ptr, at + column * draws + draw[:, None], used, SEEDED)
        power = tl.log(1.0 - _uniform(bits)) / _double(alpha).to(tl.float64, bitcast=True)[:, None]
        power = tl.where(column < columns, power, float("-inf"))
        weight = weight * tl.exp(power - tl.max(power, 1)[:, None])
    return weight


@device
def _round(x):
    return (x + ROUNDER) - ROUNDER


@device
def _clamp(x, low, high):
    return tl.minimum(tl.maximum(x, low), high)


@device
def _centred(side, length, bits):
    """(start, extent) of a side centred on a uniform pixel of [0, length), clipped."""
    start = _one_of(bits, length) - side // 2
    low = _clamp(start, length * 0, length)
    return low, _clamp(start + side, length * 0, length) - low


@device
def _store_box(box_ptr, valid, on, top, left, tall, wide):
    tl.store(box_ptr, tl.where(on, top, 0).to(tl.int32), mask=valid)
    tl.store(box_ptr + 1, tl.where(on, left, 0).to(tl.int32), mask=valid)
    tl.store(box_ptr + 2, tl.where(on, tall, 0).to(tl.int32), mask=valid)
    tl.store(box_ptr + 3, tl.where(on, wide, 0).to(tl.int32), mask=valid)


# ---------------------------------------------------------------- kernels

@triton.jit
def _plan_blend_kernel(
    index_ptr, weight_ptr, bits_ptr, keys_ptr, gamma_ptr, active_ptr,   # (N, K) x2, bits, (K-1, N), (R, K), 0-d
    rows, draws, columns, chances, alpha, prob,
    DRAWN: tl.constexpr, DECIDES: tl.constexpr, RANKED: tl.constexpr, SEEDED: tl.constexpr, KP: tl.constexpr,
    BLOCK: tl.constexpr, ENTRIES: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = n < rows
    column = tl.arange(0, KP)[None, :]
    at = tl.cast(columns - 1, tl.int64) * rows
    on = _active(active_ptr, bits_ptr, at, n, valid, prob, DECIDES, SEEDED)
    draw = tl.where(draws == 1, 0, n)
    weight = _weights(gamma_ptr, bits_ptr, at + chances, draw, column, valid, draws, columns, alpha, DRAWN, SEEDED)
    share = (weight / tl.sum(weight, 1)[:, None]).to(tl.float32)
    share = tl.where(on[:, None], share, tl.where(column == 0, 1.0, 0.0))
    tl.store(weight_ptr + n[:, None] * columns + column, share, mask=valid[:, None] & (column < columns))
    tl.store(index_ptr + n * columns, n, mask=valid)
    for k in range(1, columns):
        partner = _partner(keys_ptr, tl.cast(k - 1, tl.int64) * rows, n, valid, rows, RANKED, SEEDED, BLOCK, ENTRIES)
        tl.store(index_ptr + n * columns + k, tl.where(on, partner, n), mask=valid)


@triton.jit
def _plan_paste_kernel(
    index_ptr, boxes_ptr, weight_ptr,                                   # (N, K), (N, K-1, 4), (N, K)
    bits_ptr, keys_ptr, gamma_ptr, active_ptr, peaks_ptr,               # bits, (K-1, N), (R, K), 0-d, (N, 2)
    rows, draws, columns, chances, height, width, alpha, prob,
    KIND: tl.constexpr, DRAWN: tl.constexpr, DECIDES: tl.constexpr, RANKED: tl.constexpr, SEEDED: tl.constexpr,
    KP: tl.constexpr, BLOCK: tl.constexpr, ENTRIES: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = n < rows
    column = tl.arange(0, KP)[None, :]
    at = tl.cast(columns - 1, tl.int64) * rows
    on = _active(active_ptr, bits_ptr, at, n, valid, prob, DECIDES, SEEDED)
    at += chances
    draw = tl.where(draws == 1, 0, n)
    weight = _weights(gamma_ptr, bits_ptr, at, draw, column, valid, draws, columns, alpha, DRAWN, SEEDED)
    if DRAWN:
        at += tl.cast(columns, tl.int64) * draws
    tl.store(index_ptr + n * columns, n, mask=valid)
    top = tl.zeros((BLOCK,), tl.int64)
    left = tl.zeros((BLOCK,), tl.int64)
    tall = top + height
    wide = left + width
    unit = UNITS / tl.maximum(tall * wide, 1).to(tl.float64)
    outer = tl.full((BLOCK,), UNITS, tl.float32)
    before = tl.sum(weight, 1)
    for k in range(1, columns):
        after = tl.sum(tl.where(column >= k, weight, 0.0), 1)
        scale = tl.sqrt(tl.where(before > 0, after / before, 0.0))
        before = after
        partner = _partner(keys_ptr, tl.cast(k - 1, tl.int64) * rows, n, valid, rows, RANKED, SEEDED, BLOCK, ENTRIES)
        new_tall = tall.to(tl.float64) * scale
        new_wide = wide.to(tl.float64) * scale
        if KIND == CENTRED:
            top, tall = _centred(new_tall.to(tl.int64), tall, _bits(bits_ptr, at + draw, valid, SEEDED))
            left, wide = _centred(new_wide.to(tl.int64), wide, _bits(bits_ptr, at + draws + draw, valid, SEEDED))
        else:
            new_tall = _round(new_tall).to(tl.int64)
            new_wide = _round(new_wide).to(tl.int64)
            if KIND == PEAKS:
                row = tl.load(peaks_ptr + partner * 2, mask=valid, other=0)
                across = tl.load(peaks_ptr + partner * 2 + 1, mask=valid, other=0)
                top = _clamp(row - new_tall // 2, top, top + tall - new_tall)
                left = _clamp(across - new_wide // 2, left, left + wide - new_wide)
            else:
                place = at + tl.cast(k - 1, tl.int64) * 2 * rows + n
                top += _one_of(_bits(bits_ptr, place, valid, SEEDED), tall - new_tall + 1)
                left += _one_of(_bits(bits_ptr, place + rows, valid, SEEDED), wide - new_wide + 1)
            tall = new_tall
            wide = new_wide
        inner = tl.where(on, _round((tall * wide).to(tl.float64) * unit), 0.0).to(tl.float32)
        tl.store(weight_ptr + n * columns + k - 1, (outer - inner) / UNITS, mask=valid)
        outer = inner
        _store_box(boxes_ptr + (n * (columns - 1) + k - 1) * 4, valid, on, top, left, tall, wide)
        tl.store(index_ptr + n * columns + k, tl.where(on, partner, n), mask=valid)
    tl.store(weight_ptr + n * columns + columns - 1, outer / UNITS, mask=valid)


@triton.jit
def _plan_cutout_kernel(boxes_ptr, bits_ptr, active_ptr, rows, draws, chances, height, width, side, prob,
                        DECIDES: tl.constexpr, BLOCK: tl.constexpr):
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = n < rows
    on = _active(active_ptr, bits_ptr, 0, n, valid, prob, DECIDES, False)
    at = bits_ptr + chances + tl.where(draws == 1, 0, n)
    zero = tl.zeros((BLOCK,), tl.int64)
    top, tall = _centred(zero + side, zero + height, tl.load(at, mask=valid, other=0))
    left, wide = _centred(zero + side, zero + width, tl.load(at + draws, mask=valid, other=0))
    _store_box(boxes_ptr + n * 4, valid, on, top, left, tall, wide)


@triton.jit
def _plan_patch_kernel(
    index_ptr, q_ptr, lam_ptr, grid_ptr,                                # (N, 2), (N), 0-d, 0-d
    bits_ptr, keys_ptr, gamma_ptr, active_ptr,                          # bits, (1, N), (1, 2), 0-d
    rows, chances, levels, grids, alpha, prob, step,
    DRAWN: tl.constexpr, DECIDES: tl.constexpr, FLIP: tl.constexpr, RANKED: tl.constexpr, SEEDED: tl.constexpr,
    BLOCK: tl.constexpr, ENTRIES: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = n < rows
    at = tl.zeros((1,), tl.int64)
    if not FLIP:
        at += rows
    on = _active(active_ptr, bits_ptr, at, n, valid, prob, DECIDES, SEEDED)
    one = tl.arange(0, 2).to(tl.int64)
    here = one >= 0
    any_on = _active(active_ptr, bits_ptr, at, one * 0, here, prob, DECIDES, SEEDED)
    at += chances
    weight = _weights(gamma_ptr, bits_ptr, at, one * 0, one[None, :], here, 1, 2, alpha, DRAWN, SEEDED)
    lam = tl.where(any_on, tl.sum(tl.where(one[None, :] == 0, weight, 0.0), 1) / tl.sum(weight, 1), 1.0)
    if DRAWN:
        at += 2
    first = (one == 0) & (tl.program_id(0) == 0)
    tl.store(lam_ptr + one * 0, lam.to(tl.float32), mask=first)
    grid = _one_of(_bits(bits_ptr, at + rows + one * 0, here, SEEDED), tl.full((2,), 0, tl.int64) + grids)
    tl.store(grid_ptr + one * 0, grid, mask=first)
    level = _one_of(_bits(bits_ptr, at + n, valid, SEEDED), tl.zeros((BLOCK,), tl.int64) + levels)
    tl.store(q_ptr + n, level.to(tl.float64) * _double(step).to(tl.float64, bitcast=True), mask=valid)
    if FLIP:
        partner = rows - 1 - n
    else:
        partner = _partner(keys_ptr, 0, n, valid, rows, RANKED, SEEDED, BLOCK, ENTRIES)
    tl.store(index_ptr + n * 2, n, mask=valid)
    tl.store(index_ptr + n * 2 + 1, tl.where(on, partner, n), mask=valid)


@device
def _truncated(bits, spread, side, steps):
    """int64 below side: the largest j with erf(j / spread) <= u erf(side / spread). See csrc/core/plan.h."""
    target = _uniform(bits) * tl.erf(side.to(tl.float64) / spread)
    low = side * 0
    high = tl.maximum(side, 1)
    for _ in range(0, steps):
        middle = low + (high - low) // 2
        below = tl.erf(middle.to(tl.float64) / spread) <= target
        low = tl.where(below, middle, low)
        high = tl.where(below, high, middle)
    return tl.where(spread > 0, low, 0)


@triton.jit
def _plan_crop_kernel(shift_ptr, confidence_ptr, base_ptr, bits_ptr, sigma_ptr, active_ptr, rows, chances, height,
                      width, longer, steps, classes, power, chance, prob, DECIDES: tl.constexpr, BLOCK: tl.constexpr):
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = n < rows
    on = _active(active_ptr, bits_ptr, 0, n, valid, prob, DECIDES, False)
    bits_ptr += chances
    zero = tl.zeros((BLOCK,), tl.int64)
    spread = zero.to(tl.float64) + tl.load(sigma_ptr).to(tl.float64) * longer * SQRT_2
    shown = zero.to(tl.float64) + 1.0
    for axis in range(0, 2):
        side = zero + tl.where(axis == 0, height, width)
        bits = tl.load(bits_ptr + axis * rows + n, mask=valid, other=0)
        size = tl.where(on, _truncated(bits, spread, side, steps), 0)
        tl.store(shift_ptr + n * 2 + axis, tl.where((bits & 1) == 0, size, -size), mask=valid)
        shown = shown * ((side - size).to(tl.float64) / tl.maximum(side, 1).to(tl.float64))
    hidden = tl.exp(tl.log(1.0 - shown) * _double(power).to(tl.float64, bitcast=True))
    hidden = hidden * (1.0 - _double(chance).to(tl.float64, bitcast=True))
    tl.store(confidence_ptr + n, (1.0 - hidden).to(tl.float32), mask=valid)
    others = tl.maximum(zero + classes - 1, 1).to(tl.float64)
    tl.store(base_ptr + n, (hidden / others).to(tl.float32), mask=valid)


# ---------------------------------------------------------------- launches

def _word(value: float) -> int:
    """The bits of a float64: Triton passes a float as float32, an integer whole."""
    return struct.unpack("q", struct.pack("d", value))[0]


def _chances(rows: int, prob: float, each: bool) -> tuple[int, int]:
    """(bits that prob takes, DECIDES)"""
    return (0, ALWAYS) if prob >= 1 else (rows, PER_IMAGE) if each else (1, PER_BATCH)


def _keys(bits: Tensor, k: int, rows: int, seeded: bool) -> tuple[Tensor, bool]:
    """What has the keys, or where they are too many to be counted, their ranks (K-1, N)."""
    if rows <= CONFIG.counted or k == 1:
        return bits, False
    number = (k - 1) * rows
    keys = write_bits(bits, number) if seeded else bits[:number]
    return keys.view(k - 1, rows).argsort(dim=1, stable=True).argsort(1), True


def _given(shares: Tensor | None, other: Tensor) -> Tensor:
    """The shares, or a pointer that is not read."""
    return other if shares is None else shares.contiguous()


def _programs(rows: int) -> int:
    return triton.cdiv(rows, CONFIG.block)


def plan_blend(bits: Tensor, shares: Tensor | None, active: Tensor, rows: int, draws: int, k: int, alpha: float,
               prob: float, each: bool) -> tuple[Tensor, Tensor]:
    bits, seeded = bits.contiguous(), shares is None
    index, weight = bits.new_empty((rows, k)), bits.new_empty((rows, k), dtype=torch.float32)
    chances, decides = _chances(rows, prob, each)
    keys, ranked = _keys(bits, k, rows, seeded)
    launch(_plan_blend_kernel, _programs(rows), bits.device, index, weight, bits, keys, _given(shares, weight),
           active.view(torch.uint8), rows, draws, k, chances, _word(alpha), _word(prob), DRAWN=alpha != 0,
           DECIDES=decides, RANKED=ranked, SEEDED=seeded, KP=next_power_of_2(k), BLOCK=CONFIG.block,
           ENTRIES=CONFIG.entries, **OPTIONS)
    return index, weight


def plan_paste(bits: Tensor, shares: Tensor | None, active: Tensor, peaks: Tensor | None, rows: int, draws: int, k: int,
               height: int, width: int, alpha: float, prob: float, each: bool, centred: bool
               ) -> tuple[Tensor, Tensor, Tensor]:
    bits, seeded = bits.contiguous(), shares is None
    index, weight = bits.new_empty((rows, k)), bits.new_empty((rows, k), dtype=torch.float32)
    boxes = bits.new_empty((rows, k - 1, 4), dtype=torch.int32)
    chances, decides = _chances(rows, prob, each)
    keys, ranked = _keys(bits, k, rows, seeded)
    kind = CENTRED if centred else NESTED if peaks is None else PEAKS
    launch(_plan_paste_kernel, _programs(rows), bits.device, index, boxes, weight, bits, keys, _given(shares, weight),
           active.view(torch.uint8), bits if peaks is None else peaks.contiguous(), rows, draws, k, chances, height,
           width, _word(alpha), _word(prob), KIND=kind, DRAWN=alpha != 0, DECIDES=decides, RANKED=ranked, SEEDED=seeded,
           KP=next_power_of_2(k), BLOCK=CONFIG.block, ENTRIES=CONFIG.entries, **OPTIONS)
    return index, boxes, weight


def plan_cutout(bits: Tensor, active: Tensor, rows: int, draws: int, height: int, width: int, length: int, prob: float,
                each: bool) -> Tensor:
    boxes = bits.new_empty((rows, 1, 4), dtype=torch.int32)
    chances, decides = _chances(rows, prob, each)
    launch(_plan_cutout_kernel, _programs(rows), bits.device, boxes, bits.contiguous(), active.view(torch.uint8), rows,
           draws, chances, height, width, length, _word(prob), DECIDES=decides, BLOCK=CONFIG.block, num_warps=1,
           enable_fp_fusion=False)
    return boxes


def plan_patch(bits: Tensor, shares: Tensor | None, active: Tensor, rows: int, levels: int, grids: int, alpha: float,
               prob: float, flip: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    bits, seeded = bits.contiguous(), shares is None
    index, q = bits.new_empty((rows, 2)), bits.new_empty((rows,), dtype=torch.float64)
    lam, grid = bits.new_empty((), dtype=torch.float32), bits.new_empty(())
    chances, decides = _chances(rows, prob, False)
    keys, ranked = _keys(bits, 1 if flip else 2, rows, seeded)
    launch(_plan_patch_kernel, max(_programs(rows), 1), bits.device, index, q, lam, grid, bits, keys,
           _given(shares, lam), active.view(torch.uint8), rows, chances, levels, grids, _word(alpha), _word(prob),
           _word(LAST_PERCENTILE / max(levels - 1, 1)), DRAWN=alpha != 0, DECIDES=decides, FLIP=flip, RANKED=ranked,
           SEEDED=seeded, BLOCK=CONFIG.block, ENTRIES=CONFIG.entries,
           **OPTIONS)
    return index, q, lam, grid


def plan_crop(bits: Tensor, sigma: Tensor, active: Tensor, rows: int, height: int, width: int, classes: int,
              power: float, chance: float, prob: float) -> tuple[Tensor, Tensor, Tensor]:
    shift, confidence = bits.new_empty((rows, 2)), bits.new_empty((rows,), dtype=torch.float32)
    base = torch.empty_like(confidence)
    chances, decides = _chances(rows, prob, True)
    longer = max(height, width)
    launch(_plan_crop_kernel, _programs(rows), bits.device, shift, confidence, base, bits.contiguous(), sigma,
           active.view(torch.uint8), rows, chances, height, width, longer, longer.bit_length(), classes, _word(power),
           _word(chance), _word(prob), DECIDES=decides, BLOCK=CONFIG.block, num_warps=1, enable_fp_fusion=False)
    return shift, confidence, base
