"""Random numbers by their place: element j of a stream is a function of a seed and of j, in plain PyTorch.

A plan of one seed: on a device nothing but the seed is drawn before the one launch that makes the plan, and every
backend gets the same numbers. Integers are 32 bits wide, held in int64.
Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), Philox4x32-10; Marsaglia and Tsang, "A
simple method for generating gamma variables" (ACM TOMS 2000).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._common import in_vmap

ROUNDS, MASK = 10, 2**32 - 1
# Candidates for a gamma variate. One is refused with a probability below 0.05, so that one in 10^10 variates takes the
# last resort, the mode.
ATTEMPTS = 8


def philox(seed: Tensor, counter: Tensor, stream: int) -> list[Tensor]:
    """Philox4x32-10: four int64 in [0, 2^32) like counter.

    Args:
        seed: (1,) int64, the key.
        counter: int64, the first two words of the block; stream: the third.
    """
    low, high = seed & MASK, seed >> 32 & MASK
    a, b, c, d = counter & MASK, counter >> 32 & MASK, torch.full_like(counter, stream), torch.zeros_like(counter)
    for _ in range(ROUNDS):
        left, right = a * 0xD2511F53, c * 0xCD9E8D57  # 64 bits, the sign among them
        a, b, c, d = (right >> 32 & MASK) ^ b ^ low, right & MASK, (left >> 32 & MASK) ^ d ^ high, left & MASK
        low, high = low + 0x9E3779B9 & MASK, high + 0xBB67AE85 & MASK
    return [a, b, c, d]


def bits(seed: Tensor, size: int) -> Tensor:
    """(size,) int64 in [0, 2^63): numbers 2j and 2j + 1 are the two halves of block j, of stream 0."""
    words = philox(seed, torch.arange((size + 1) // 2, device=seed.device), 0)
    pairs = torch.stack([(words[1] << 32 | words[0]) >> 1, (words[3] << 32 | words[2]) >> 1], 1) & 2**63 - 1
    return pairs.flatten()[:size]


def gamma(seed: Tensor, rows: int, columns: int, alpha: float) -> Tensor:
    """(rows, columns) float64 of Gamma(alpha + 1): attempt t at entry e takes block e of stream 1 + t.

    A candidate is d v with v = (1 + x / sqrt(9 d))^3, d = alpha + 2/3 and x normal (Box and Muller 1958); it is taken
    where log u < x^2 / 2 + d - d v + d log v.
    """
    entry = torch.arange(rows * columns, device=seed.device)
    d = alpha + 2 / 3
    found = torch.full(entry.shape, d, dtype=torch.float64, device=seed.device)
    pending = torch.ones_like(entry, dtype=torch.bool)
    may_wait = seed.device.type == "cpu" and not torch.compiler.is_compiling() and not in_vmap()
    for attempt in range(ATTEMPTS):
        radius, angle, accept, _ = (word.to(torch.float64) for word in philox(seed, entry, 1 + attempt))
        # sin over half a turn is distributed as cos over a whole one.
        x = (-2 * ((radius + 0.5) * 2.0**-32).log()).sqrt() * (math.pi * (angle * 2.0**-32 - 0.5)).sin()
        v = (1 + x / math.sqrt(9 * d)) ** 3
        limit = 0.5 * x * x + d - d * v + d * v.clamp_min(1e-300).log()
        taken = pending & (v > 0) & (((accept + 0.5) * 2.0**-32).log() < limit)
        found = torch.where(taken, d * v, found)
        pending = pending & ~taken
        if may_wait and not pending.any():
            break
    return found.view(rows, columns)
