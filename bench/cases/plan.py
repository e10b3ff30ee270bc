"""plan: what a mixer makes of random numbers, without the draws, and whole plans with them, for a batch.

Nothing of size is moved: what is measured is the number of launches and the time to start them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import fastmix
from fastmix.mixers import sampling
from fastmix.ops import plan, plan_stream
from fastmix.ops.plan_stream import Stream
from fastmix.reference import functional as reference

from .base import Case, generator

ALPHA, SIZE = 1 / 3, (32, 32)


def case(name: str, stream: Stream, n: int, k: int, ours: Callable[..., Any], plain: Callable[..., Any],
         draws: int | None = None, quick: bool = False) -> Case:
    draws = n if draws is None else draws

    def make(device: torch.device, seed: int) -> tuple[Tensor, ...]:
        g, cpu = generator(seed), torch.device("cpu")
        bits, shares = plan.random_bits(stream.size, cpu, g), sampling.gamma(draws, k, ALPHA, cpu, g)
        return bits.to(device), shares.to(device), torch.ones((), dtype=torch.bool, device=device)

    written = 12 * n * k + (0 if name == "blend" else 16 * n * (k - 1))
    return Case(op="plan", name=f"{name} {n} k={k}", make=make, ours=ours, reference=plain,
                moved=8 * stream.size + 4 * draws * k + written,
                formula="bits and gammas read, index, boxes and weights written", operators=("plan",),
                scratch=64 * n * k, quick=quick, random=True)  # integers: the tests hold the values


def _blend(n: int, k: int) -> Case:
    return case("blend", plan_stream.blend(n, k, n, ALPHA, 1.0, False), n, k,
                lambda b, s, a: plan.plan_blend(s, a, n, alpha=ALPHA, bits=b),
                lambda b, s, a: reference.plan_blend(b, s, a, n, n, k, ALPHA, 1.0, False))


def _nested(n: int, k: int, quick: bool = False) -> Case:
    return case("nested", plan_stream.paste(n, k, n, ALPHA, 1.0, False, False, False), n, k,
                lambda b, s, a: plan.plan_paste(s, a, n, SIZE, alpha=ALPHA, bits=b),
                lambda b, s, a: reference.plan_paste(b, s, a, None, n, n, k, *SIZE, ALPHA, 1.0, False, False),
                quick=quick)


def _centred(n: int) -> Case:
    return case("centred", plan_stream.paste(n, 2, 1, ALPHA, 1.0, False, False, True), n, 2,
                lambda b, s, a: plan.plan_paste(s, a, n, SIZE, alpha=ALPHA, centred=True, bits=b),
                lambda b, s, a: reference.plan_paste(b, s, a, None, n, 1, 2, *SIZE, ALPHA, 1.0, False, True), draws=1)


def _whole(mixer: Any, n: int, k: int) -> Case:
    """With the draws: torch's of the seed, the operator's of all else."""
    def make(device: torch.device, seed: int) -> tuple[Tensor, ...]:
        return (torch.zeros(n, 3, *SIZE, device=device),)

    return Case(op="plan", name=f"{type(mixer).__name__}.plan {n}", make=make, ours=mixer.plan, reference=mixer.plan,
                moved=28 * n * k, formula="index, boxes and weights written", operators=("plan",),
                scratch=128 * n * k, random=True)


def cases() -> list[Case]:
    return [_blend(100, 2), _centred(100), _nested(100, 3, quick=True), _nested(1024, 5),
            _whole(fastmix.Mixup(1.0), 100, 2), _whole(fastmix.CutMix(1.0), 100, 2),
            _whole(fastmix.DCutMix(3, ALPHA), 100, 3)]
