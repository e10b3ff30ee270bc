"""What the Triton kernels share: conversions, tiles that lie like torch.empty_like's output, and the launch.

Every kernel here has been run in Triton's interpreter and compiled ahead of time for sm_80, sm_90 and sm_100. None
has been run on a GPU yet: the heuristics are reasoned from bytes in flight and registers, not measured.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# Kernels read this as a compile-time constant. In the interpreter float32 -> bfloat16 truncates and bfloat16 ->
# float32 goes through slow scalar code that is wrong for denormals; there both are done on the bits.
INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))

# Decorates what kernels call. The interpreter patches the whole language anew at each call of a jitted function,
# 1.6 ms; called by a kernel that it runs, a plain Python function does the same.
device = (lambda fn: fn) if INTERPRETED else triton.jit

# By the type of a tensor: that of sums over it, its own in a kernel, the bits of its NaN. By the size of its elements:
# the integers that hold any of them.
FLOAT = {torch.float32: tl.float32, torch.bfloat16: tl.float32, torch.float16: tl.float32, torch.float64: tl.float64}
STORAGE = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16,
           torch.float64: tl.float64}
NAN = {torch.float32: 0x7FC00000, torch.bfloat16: 0x7FC0, torch.float16: 0x7E00, torch.float64: 0x7FF8000000000000}
WORD = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


# ---------------------------------------------------------------- conversions

@device
def to_float(value, ACC: tl.constexpr):
    """A loaded value in the type that sums are kept in. Arithmetic on bfloat16 itself is never done."""
    if INTERPRETED:
        if value.dtype == tl.bfloat16:
            bits = value.to(tl.int16, bitcast=True).to(tl.int32) << 16
            result = bits.to(tl.float32, bitcast=True)
        else:
            result = value.to(ACC)
    else:
        result = value.to(ACC)
    return result


@device
def to_storage(value, DTYPE: tl.constexpr):
    """An accumulated value in the type of the output, rounded to nearest even."""
    if INTERPRETED:
        if tl.bfloat16 == DTYPE:
            bits = value.to(tl.int32, bitcast=True)
            rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
            rounded = tl.where(value == value, rounded, 0x7FC0)
            result = rounded.to(tl.int16).to(tl.bfloat16, bitcast=True)
        else:
            result = value.to(DTYPE)
    else:
        result = value.to(DTYPE)
    return result


# ---------------------------------------------------------------- host side

def launch(kernel: Any, programs: int, device: torch.device, *args: Any, **meta: Any) -> None:
    """``kernel[(programs,)](*args, **meta)`` on the tensors' device and its current stream; an empty grid is none."""
    if programs == 0:
        return
    if torch.version.hip is not None:
        meta.pop("maxnreg", None)  # an option of NVIDIA's compiler alone
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            kernel[(programs,)](*args, **meta)
    else:
        kernel[(programs,)](*args, **meta)


def next_power_of_2(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def vector(itemsize: int, *lengths: int) -> int:
    """Elements in the widest access, 16 bytes at most, that divides every length."""
    return math.gcd(16 // itemsize, *lengths)


def _packed(sizes: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether these dimensions fill memory without gaps, in any order."""
    expected = 1
    for stride, size in sorted((b, a) for a, b in zip(sizes, strides, strict=True) if a != 1):
        if stride != expected:
            return False
        expected *= size
    return True


def _image_order(sizes: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...] | None:
    """The order of (C, H, W) in memory that image kernels know: row-major, channels last, or None."""
    for order in ((2, 1, 0), (0, 2, 1)):
        expected = 1
        for d in order:
            if sizes[d] != 1 and strides[d] != expected:
                break
            expected *= sizes[d]
        else:
            return order
    return None


def _readable(x: Tensor, images: bool) -> bool:
    if x.is_contiguous():
        return True
    if images:
        return _image_order(x.shape[1:], x.stride()[1:]) is not None
    return _packed(x.shape[1:], x.stride()[1:])


def rows_like(x: Tensor, images: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(source, written, result) for a kernel that writes rows x[n] in the order in which it reads them.

    source: x itself where its rows are packed (in any order; with ``images`` NCHW or NHWC), else a copy on the
    device. written: rows packed and one after the other. result: strided as torch.empty_like(x); the same tensor as
    written unless x's layout is none that kernels write (`finish` then copies).
    """
    result = torch.empty_like(x)
    if x.is_contiguous():
        return x, result, result
    elements = math.prod(x.shape[1:])
    if _readable(result, images) and (x.shape[0] <= 1 or elements <= 1 or result.stride(0) == elements):
        same = all(size == 1 or a == b for size, a, b in
                   zip(x.shape[1:], x.stride()[1:], result.stride()[1:], strict=True))
        return (x if same else torch.empty_like(result).copy_(x)), result, result
    source = x.contiguous()
    return source, torch.empty_like(source), result


def finish(written: Tensor, result: Tensor) -> Tensor:
    return result if written is result else result.copy_(written)


def packed_rows(x: Tensor) -> Tensor:
    """x (N, J) itself where the elements of a row lie side by side, else contiguous on the device."""
    return x if x.shape[1] <= 1 or x.stride(1) == 1 else x.contiguous()


def packed_images(x: Tensor) -> Tensor:
    """x (N, C, H, W) itself where its images are packed NCHW or NHWC, else contiguous on the device."""
    return x if _readable(x, True) else x.contiguous()


def image_rows(x: Tensor) -> tuple[int, int, int]:
    """(rows, row length, elements a pixel of a row) of an image of x, packed: (C*H, W, 1) or (H, W*C, C)."""
    _, channels, height, width = x.shape
    if _image_order(x.shape[1:], x.stride()[1:]) == (0, 2, 1) and channels > 1 and height * width > 1:
        return height, width * channels, channels
    return channels * height, width, 1
