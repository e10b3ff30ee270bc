"""Which classes a batch holds, found on the device: what covariance and isda share.

Class ids of a batch are compacted into slots, ascending: present[u] is the u-th class that occurs, -1 beyond the last.
The number of slots, min(rows, J), is known to the host, that of present classes is not: no grid and no shape depends
on a value, so a CUDA graph serves every batch. A program whose slot is empty ends at once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import device, launch, next_power_of_2

BLOCK = 1024
# Labels that the program which numbers the classes marks itself; above that many programs do, in a launch before.
MARKED_ALONE = 8192


@device
def is_class(y, inside, classes, ignore_index):
    return inside & (y >= 0) & (y < classes) & (y != ignore_index.to(tl.int64))


@device
def _mark(slot_ptr, labels_ptr, start, labels, classes, ignore_index, BLOCK: tl.constexpr):
    r = start + tl.arange(0, BLOCK)
    y = tl.load(labels_ptr + r, mask=r < labels, other=-1).to(tl.int64)
    valid = is_class(y, r < labels, classes, ignore_index)
    tl.store(slot_ptr + tl.where(valid, y, 0), 1, mask=valid)


@triton.jit(do_not_specialize=["ignore_index"])
def _mark_kernel(slot_ptr, labels_ptr, labels, classes, ignore_index, BLOCK: tl.constexpr):
    """slot[c] = 1 for the classes of labels, which only ever writes the same value."""
    _mark(slot_ptr, labels_ptr, tl.program_id(0) * BLOCK, labels, classes, ignore_index, BLOCK)


@triton.jit(do_not_specialize=["ignore_index"])
def _number_kernel(
    present_ptr, slot_ptr, labels_ptr, offset_ptr, count_ptr, seen_ptr,  # (slots), (J), (M) or None, (J + 1) or None ..
    labels, classes, slots, ignore_index,
    MARK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program. Present classes are those marked in slot (MARK: by itself), or with rows in offset; then the rows
    seen of each so far go to seen (slots), and count, if there is one, is moved on."""
    i = tl.arange(0, BLOCK)
    if MARK:
        for start in range(0, classes, BLOCK):
            tl.store(slot_ptr + start + i, 0, mask=start + i < classes)
        tl.debug_barrier()
        for start in range(0, labels, BLOCK):
            _mark(slot_ptr, labels_ptr, start, labels, classes, ignore_index, BLOCK)
        tl.debug_barrier()
    found = 0
    for start in range(0, classes, BLOCK):
        c = start + i
        inside = c < classes
        if offset_ptr is None:
            is_present = tl.load(slot_ptr + c, mask=inside, other=0) > 0
        else:
            first = tl.load(offset_ptr + c, mask=inside, other=0)
            rows = tl.load(offset_ptr + c + 1, mask=inside, other=0) - first
            is_present = rows > 0
        mark = is_present.to(tl.int32)
        u = found + tl.cumsum(mark, 0) - 1
        tl.store(slot_ptr + c, tl.where(is_present, u, -1), mask=inside)
        tl.store(present_ptr + u, c, mask=is_present)
        if offset_ptr is not None:
            count = tl.load(count_ptr + c, mask=is_present, other=0)
            tl.store(seen_ptr + u, count, mask=is_present)
            tl.store(count_ptr + c, count + rows.to(tl.int64), mask=is_present)
        found += tl.sum(mark)
    for start in range(0, slots, BLOCK):
        tl.store(present_ptr + start + i, -1, mask=(start + i >= found) & (start + i < slots))


def present_classes(labels: Tensor, classes: int, ignore_index: int) -> tuple[Tensor, Tensor]:
    """labels (M) contiguous -> (present (slots), slot (J): the class's place in present, or -1), both int32."""
    rows = labels.shape[0]
    slots = min(rows, classes)
    present = torch.empty(slots, dtype=torch.int32, device=labels.device)
    alone = rows <= MARKED_ALONE
    slot = (torch.empty if alone else torch.zeros)(classes, dtype=torch.int32, device=labels.device)
    if not alone:
        launch(_mark_kernel, triton.cdiv(rows, BLOCK), labels.device, slot, labels, rows, classes, ignore_index,
               BLOCK=BLOCK, num_warps=4)
    _number(present, slot, labels, None, None, None, rows, ignore_index, alone)
    return present, slot


def classes_with_rows(offset: Tensor, count: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """offset (J + 1) of `_by_source.by_source` -> (present (slots), seen (slots): count before the batch, which this
    adds to it)."""
    classes = count.shape[0]
    present = torch.empty(min(rows, classes), dtype=torch.int32, device=count.device)
    seen = torch.empty(present.shape, dtype=torch.int64, device=count.device)
    slot = torch.empty(classes, dtype=torch.int32, device=count.device)
    _number(present, slot, None, offset, count, seen, rows, 0, False)
    return present, seen


def _number(present: Tensor, slot: Tensor, labels: Tensor | None, offset: Tensor | None, count: Tensor | None,
            seen: Tensor | None, rows: int, ignore_index: int, mark: bool) -> None:
    classes, slots = slot.shape[0], present.shape[0]
    block = min(BLOCK, max(16, next_power_of_2(max(classes, min(rows, BLOCK) if mark else 1))))
    launch(_number_kernel, 1, present.device, present, slot, labels, offset, count, seen, rows, classes, slots,
           ignore_index, MARK=mark, BLOCK=block, num_warps=4)


def matmul_precision(acc: tl.dtype) -> str:
    """For `dot`: TF32 where torch's own float32 products may use it, else float32 by three TF32 products.

    The setting of set_float32_matmul_precision and allow_tf32 too; torch.get_float32_matmul_precision raises once
    fp32_precision has been set.
    """
    if acc == tl.float64:
        return "ieee"
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "tf32x3"


@device
def _split(v):
    """The nearest TF32 number, and what is left of v, whose last bit tensor cores do not look at."""
    high = ((v.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    return high, v - high


@device
def dot(a, b, acc, PRECISION: tl.constexpr):
    """acc + a b, on tensor cores but in float64.

    "tf32x3": an operand is split into two TF32 numbers, of 11 and 12 bits, and low low is left out, 2^-22 |a b|; the
    product is rounded into acc, since tensor cores cut sums off instead. On an emulator that cuts at 24 bits, 16 deep:
    below 8e-7 of sum |a b| from float64 at any depth, where a chain of float32 multiply-adds reaches 2.6e-6
    (csrc/cuda/lib/tile_products.cuh does the same, tests/backends/test_simt.py). Infinity gives NaN. Triton's own
    "tf32x3" looks for it: two comparisons and selections for every number split, and it cuts towards zero.
    """
    if PRECISION == "tf32x3":
        a_high, a_low = _split(a)
        b_high, b_low = _split(b)
        part = tl.dot(a_low, b_high, input_precision="tf32", out_dtype=acc.dtype)
        part = tl.dot(a_high, b_low, part, input_precision="tf32", out_dtype=acc.dtype)
        # max_num_imprecise_acc keeps Triton from adding all of it up in acc itself.
        out = acc + tl.dot(a_high, b_high, part, input_precision="tf32", out_dtype=acc.dtype)
    else:
        out = tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=acc.dtype)
    return out


def dot_block(length: int, most: int) -> int:
    """A side of a tile of tl.dot, which wants 16 at least."""
    return min(most, max(16, next_power_of_2(length)))
