"""Random numbers by their place, as fastmix/reference/counter.py defines them: nothing is read but a seed.

Philox4x32-10 (Salmon et al. 2011) is 20 wide products a block; gamma variates by Marsaglia and Tsang (2000), one
candidate in twenty at most is refused. float64, and a sine by its series: that of libdevice has a stack for arguments
that do not occur here.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import device, launch

ATTEMPTS = tl.constexpr(8)
PI = tl.constexpr(3.141592653589793)
UNIT = tl.constexpr(2.0**-32)


@device
def _unit(word):
    """float64 of a word in (0, 1)."""
    return (word.to(tl.int64).to(tl.float64) + 0.5) * UNIT


@device
def _philox(seed, counter, stream):
    """Four uint32 like counter, an int64. Not tl.philox, a jitted function of its own: the interpreter would patch the
    language for each call."""
    low = (seed & 0xFFFFFFFF).to(tl.uint32)
    high = ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
    a = (counter & 0xFFFFFFFF).to(tl.uint32)
    b = ((counter >> 32) & 0xFFFFFFFF).to(tl.uint32)
    c = (counter * 0 + stream).to(tl.uint32)
    d = c * 0
    for _ in tl.static_range(10):
        left_high = tl.umulhi(a, 0xD2511F53)
        left = a * 0xD2511F53
        a = tl.umulhi(c, 0xCD9E8D57) ^ b ^ low
        b = c * 0xCD9E8D57
        c = left_high ^ d ^ high
        d = left
        low += 0x9E3779B9
        high += 0xBB67AE85
    return a, b, c, d


@device
def random_bits(seed, place):
    """int64 in [0, 2^63): the numbers at these places of a seed's stream. A block makes two: half of it is dropped."""
    a, b, c, d = _philox(seed, place >> 1, 0)
    odd = (place & 1) != 0
    low = tl.where(odd, c, a).to(tl.int64)
    high = tl.where(odd, d, b).to(tl.int64)
    return (high << 31) | (low >> 1)


@device
def _sine(a):
    """sin(a) for |a| <= pi / 2, off by less than 2^-51."""
    square = a * a
    total = 1.0 - square * (1.0 / 420.0)
    total = 1.0 - square * (1.0 / 342.0) * total
    total = 1.0 - square * (1.0 / 272.0) * total
    total = 1.0 - square * (1.0 / 210.0) * total
    total = 1.0 - square * (1.0 / 156.0) * total
    total = 1.0 - square * (1.0 / 110.0) * total
    total = 1.0 - square * (1.0 / 72.0) * total
    total = 1.0 - square * (1.0 / 42.0) * total
    total = 1.0 - square * (1.0 / 20.0) * total
    total = 1.0 - square * (1.0 / 6.0) * total
    return a * total


@device
def random_gamma(seed, entry, wanted, alpha):
    """float64 variates of Gamma(alpha + 1), by their places among those of the seed. alpha: broadcasts to entry."""
    d = alpha + 2.0 / 3.0
    slope = 1.0 / tl.sqrt(9.0 * d)
    found = d + entry.to(tl.float64) * 0.0
    pending = wanted
    attempt = 0
    while (attempt < ATTEMPTS) & (tl.sum(tl.sum(pending.to(tl.int32), 1), 0) > 0):
        attempt += 1
        first, second, third, _ = _philox(seed, entry, attempt)
        radius = tl.sqrt(-2.0 * tl.log(_unit(first)))
        x = radius * _sine(PI * (_unit(second) - 0.5 * UNIT - 0.5))
        v = 1.0 + slope * x
        v = v * v * v
        limit = 0.5 * x * x + d - d * v + d * tl.log(tl.where(v > 0, v, 1.0))
        taken = pending & (v > 0) & (tl.log(_unit(third)) < limit)
        found = tl.where(taken, d * v, found)
        pending = pending & (taken == 0)
    return found


@triton.jit
def _write_bits_kernel(out_ptr, seed_ptr, size, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + place, random_bits(tl.load(seed_ptr), place), mask=place < size)


def write_bits(seed: Tensor, size: int) -> Tensor:
    """(size,) int64: a seed's numbers, where they are to be sorted."""
    out = torch.empty(size, dtype=torch.int64, device=seed.device)
    launch(_write_bits_kernel, triton.cdiv(size, 1024), seed.device, out, seed, size, BLOCK=1024, num_warps=4)
    return out
