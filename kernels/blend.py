"""blend on Triton: ``out[n] = sum_k weight[n, k] x[index[n, k]]``, and its gradient. K-image mixing
Eq. 2.

d out[n] / d x[m] = sum over k with index[n, k] = m of weight[n, k], so

    dx[m] = sum over (n, k) with index[n, k] = m of weight[n, k] g[n]

gathered by each m in the order of (n, k): no atomics. The places that read m come from `_by_source.by_source`.

Programs run with the images innermost: those in flight cover the same few pieces of every image, so that a source
that K images share is read from memory once and from the L2 cache K - 1 times.

bytes: N*D read + N*D written (K N*D read from L2); flops: 2 N*D*K. Not yet run on a GPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from ._by_source import by_source
from ._common import FLOAT, device, finish, launch, next_power_of_2, rows_like, to_float, to_storage, vector
from ._tiles import REGISTERS, UNROLLED, source_image


@dataclass(frozen=True)
class Config:
    """Reasoned, not measured."""

    # Four warps, 16 bytes x 8 loads a thread and source: 16 KB a source. Before the first is used 8 are issued in
    # float32 and 6 of halves (sm_90, budget_triton.json).
    piece_bytes: int = 16384


CONFIG = Config()


@device
def weighted_source(index_ptr, weight_ptr, entry, batch, ACC: tl.constexpr):
    """(image, whether there is one of this index, its weight); image 0 where there is none."""
    m, inside = source_image(index_ptr + entry, batch)
    return m, inside, tl.load(weight_ptr + entry).to(ACC)


@device
def _piece(rows, elements, VEC: tl.constexpr, BLOCK: tl.constexpr):
    """(image, its elements as a multiple of VEC, those of this program, which of them there are)."""
    pid = tl.program_id(0)
    n = (pid % rows).to(tl.int64)
    length = elements // VEC * VEC
    at = (pid // rows).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return n, length, at, at < length


@device
def _add_source(total, valid, x_ptr, at, mask, index_ptr, weight_ptr, entry, batch, row_stride, ACC: tl.constexpr,
                VEC: tl.constexpr):
    m, inside, w = weighted_source(index_ptr, weight_ptr, entry, batch, ACC)
    valid = valid & inside
    total += w * to_float(tl.load(x_ptr + m * (row_stride // VEC * VEC) + at, mask=mask), ACC)
    return total, valid


@triton.jit
def _blend_kernel(
    out_ptr, x_ptr, index_ptr, weight_ptr,                      # (N, D), (N, D), (N, K), (N, K)
    rows, elements, row_stride, columns,                        # elements = D, columns = K
    K: tl.constexpr, ACC: tl.constexpr, VEC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """K: columns where they are unrolled, else 0."""
    n, length, at, mask = _piece(rows, elements, VEC, BLOCK)
    total = tl.zeros((BLOCK,), ACC)
    valid = n >= 0
    if K > 0:
        for k in tl.static_range(K):
            total, valid = _add_source(total, valid, x_ptr, at, mask, index_ptr, weight_ptr, n * columns + k, rows,
                                       row_stride, ACC, VEC)
    else:
        for k in range(0, columns):
            total, valid = _add_source(total, valid, x_ptr, at, mask, index_ptr, weight_ptr, n * columns + k, rows,
                                       row_stride, ACC, VEC)
    total = tl.where(valid, total, float("nan"))
    tl.store(out_ptr + n * length + at, to_storage(total, out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _blend_backward_kernel(
    out_ptr, grad_ptr, offset_ptr, place_ptr, weight_ptr,       # (N, D), (N, D), (N + 1), (N*K), (N, K)
    rows, elements, row_stride, columns,
    ACC: tl.constexpr, VEC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    m, length, at, mask = _piece(rows, elements, VEC, BLOCK)
    total = tl.zeros((BLOCK,), ACC)
    for i in range(tl.load(offset_ptr + m), tl.load(offset_ptr + m + 1)):
        place = tl.load(place_ptr + i).to(tl.int64)
        g = tl.load(grad_ptr + place // columns * (row_stride // VEC * VEC) + at, mask=mask)
        total += tl.load(weight_ptr + place).to(ACC) * to_float(g, ACC)
    tl.store(out_ptr + m * length + at, to_storage(total, out_ptr.dtype.element_ty), mask=mask)


def _shape(x: Tensor) -> tuple[int, int, int, int]:
    """(elements of a row, vector, block, programs) of x, packed rows."""
    elements = math.prod(x.shape[1:])
    vec = vector(x.element_size(), elements, x.stride(0))
    block = min(next_power_of_2(elements), CONFIG.piece_bytes // x.element_size())
    return elements, vec, block, x.shape[0] * triton.cdiv(elements, block)


def blend(x: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    source, written, result = rows_like(x, images=False)
    elements, vec, block, programs = _shape(source)
    columns = index.shape[1]
    # maxnreg: left alone, ptxas of Triton 3.6 spills 16 bytes of the loop for sm_100
    options = {} if columns <= UNROLLED else {"maxnreg": REGISTERS}
    launch(_blend_kernel, programs, x.device, written, source, index.contiguous(), weight.contiguous(), x.shape[0],
           elements, source.stride(0), columns, K=columns if columns <= UNROLLED else 0, ACC=FLOAT[x.dtype],
           VEC=vec, BLOCK=block, num_warps=4, **options)
    return finish(written, result)


def blend_backward(grad: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    source, written, result = rows_like(grad, images=False)
    elements, vec, block, programs = _shape(source)
    if programs:
        index = index.contiguous()
        offset, place = by_source(index)
        launch(_blend_backward_kernel, programs, grad.device, written, source, offset, place, weight.contiguous(),
               grad.shape[0], elements, source.stride(0), index.shape[1], ACC=FLOAT[grad.dtype], VEC=vec, BLOCK=block,
               num_warps=4)
    return finish(written, result)
