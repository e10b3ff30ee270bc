"""The inverse of a gather, on the device: for every row of a batch the places that read it, in the order of (n, k).

Backward passes sum over them row by row, so the result depends on no order of atomics. Place p = n * K + k is
ranked by counting: the entries with a smaller index, or the same index and a smaller p, come before it. That takes
(N K)^2 comparisons, a few microseconds for a batch of 1024 at K = 5, in one launch; sorting takes several launches
and is left to batches above `Config.counted` places. Every program of the backward pass searching the index for
itself would read N K entries for each piece of each image.

A row of index with an entry outside the batch is NaN in the forward pass and reads nothing here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import device, launch


@dataclass(frozen=True)
class Config:
    """Reasoned, not measured."""

    # 16384^2 comparisons are 2.7e8: about as long as the launches of a sort.
    counted: int = 16384
    # Places or rows of a program, and the entries they are compared with at a time.
    block: int = 64
    entries: int = 64


CONFIG = Config()


@device
def _key(index_ptr, place, places, rows, columns):
    """The index at a place; rows where its row of index leaves the batch, rows + 1 outside the table."""
    inside = place < places
    key = tl.load(index_ptr + place, mask=inside, other=0)
    valid = inside
    for k in range(0, columns):
        other = tl.load(index_ptr + place // columns * columns + k, mask=inside, other=0)
        valid = valid & (other >= 0) & (other < rows)
    return tl.where(valid, key, tl.where(inside, rows, rows + 1)).to(tl.int32)


@triton.jit
def _by_source_kernel(offset_ptr, place_ptr, index_ptr, places, rows, columns, place_programs, BLOCK: tl.constexpr,
                      ENTRIES: tl.constexpr):
    pid = tl.program_id(0)  # int32 holds every place: there are at most Config.counted
    entry = tl.arange(0, ENTRIES)
    before = tl.zeros((BLOCK,), tl.int32)
    if pid < place_programs:
        place = pid * BLOCK + tl.arange(0, BLOCK)
        key = _key(index_ptr, place, places, rows, columns)
        for at in range(0, places, ENTRIES):
            other = _key(index_ptr, at + entry, places, rows, columns)
            is_before = (other[None, :] < key[:, None]) | \
                ((other[None, :] == key[:, None]) & ((at + entry)[None, :] < place[:, None]))
            before += tl.sum(is_before.to(tl.int32), 1)
        tl.store(place_ptr + before, place, mask=place < places)
    else:
        row = (pid - place_programs) * BLOCK + tl.arange(0, BLOCK)
        for at in range(0, places, ENTRIES):
            other = _key(index_ptr, at + entry, places, rows, columns)
            before += tl.sum((other[None, :] < row[:, None]).to(tl.int32), 1)
        tl.store(offset_ptr + row, before, mask=row <= rows)


def by_source(index: Tensor, sources: int | None = None) -> tuple[Tensor, Tensor]:
    """index (N, K) contiguous -> (offset (sources + 1), place (N*K)): place[offset[m]:offset[m + 1]] read row m.

    sources: rows that are read (default N).
    """
    columns = index.shape[1]
    places = index.numel()
    rows = index.shape[0] if sources is None else sources
    if places > CONFIG.counted:
        valid = ((index >= 0) & (index < rows)).all(1, keepdim=True)
        key = torch.where(valid, index, rows).flatten()
        ordered, place = torch.sort(key, stable=True)
        offset = torch.searchsorted(ordered, torch.arange(rows + 1, device=index.device))
        return offset, place
    offset = torch.empty(rows + 1, dtype=torch.int32, device=index.device)
    place = torch.empty(places, dtype=torch.int32, device=index.device)
    place_programs = triton.cdiv(places, CONFIG.block)
    launch(_by_source_kernel, place_programs + triton.cdiv(rows + 1, CONFIG.block), index.device, offset, place, index,
           places, rows, columns, place_programs, BLOCK=CONFIG.block, ENTRIES=CONFIG.entries, num_warps=4)
    return offset, place
