"""What the mixers make of random numbers, in one launch: partners, shares, boxes, label weights.

A plan of torch's own operators is 20 to 60 of them on a few hundred numbers: on a GPU as many launches, on a CPU more
time than mixing a batch of small images. Here torch draws one number, the seed, and one operator does the rest, the
random numbers of the seed included (`fastmix.reference.counter`).

Every function takes ``active``, a 0-d bool: where it is False, or where ``prob`` decides so (per image with ``each``,
else for the batch), the plan is the identity. ``rows`` is N. It draws by ``generator``; with ``bits``, an int64 tensor,
the result depends on nothing but the arguments. ``shares`` are a tensor (R, K), or (R, K) alone, R = 1 for the batch or
N: then they are drawn too, and bits is the seed, (1,). With a tensor, bits are the numbers that `plan_stream` lists.
Source: K-image mixing Eq. 2-5, R-Mix Sec. 3, Soft Augmentation Sec. 4.1 and Eq. 7.
"""

# bytes: 8 a random number and a few a result, kilobytes: the floor is the launch. No flops to speak of

from __future__ import annotations

import torch
from torch import Generator, Tensor

from ..reference import functional as reference
from . import checks as check
from . import plan_stream
from .dispatch import select
from .operator import Operator
from .plan_stream import Stream
from .random import random_bits

Draws = tuple[int, int]  # (R, K)


def _numbers(op: str, stream: Stream | None, device: torch.device, generator: Generator | None,
             bits: Tensor | None) -> Tensor:
    """The numbers of a stream, or None: its seed; drawn, or those that the caller has."""
    size = 1 if stream is None else stream.size
    if bits is None:
        return random_bits(size, device, generator)
    check.shape(op, "bits", bits, (size,), "the seed of what is drawn" if stream is None else
                f"the sizes of {', '.join(stream.pieces)} together")
    check.dtype(op, "bits", bits, torch.int64)
    return bits


def _fake_blend(bits: Tensor, shares: Tensor | None, active: Tensor, rows: int, draws: int, k: int, alpha: float,
                prob: float, each: bool) -> tuple[Tensor, Tensor]:
    return bits.new_empty((rows, k)), bits.new_empty((rows, k), dtype=torch.float32)


def _fake_paste(bits: Tensor, shares: Tensor | None, active: Tensor, peaks: Tensor | None, rows: int, draws: int,
                k: int, height: int, width: int, alpha: float, prob: float, each: bool, centred: bool
                ) -> tuple[Tensor, Tensor, Tensor]:
    return (bits.new_empty((rows, k)), bits.new_empty((rows, k - 1, 4), dtype=torch.int32),
            bits.new_empty((rows, k), dtype=torch.float32))


def _fake_cutout(bits: Tensor, active: Tensor, rows: int, draws: int, height: int, width: int, length: int,
                 prob: float, each: bool) -> Tensor:
    return bits.new_empty((rows, 1, 4), dtype=torch.int32)


def _fake_patch(bits: Tensor, shares: Tensor | None, active: Tensor, rows: int, levels: int, grids: int, alpha: float,
                prob: float, flip: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (bits.new_empty((rows, 2)), bits.new_empty((rows,), dtype=torch.float64),
            bits.new_empty((), dtype=torch.float32), bits.new_empty(()))


def _fake_crop(bits: Tensor, sigma: Tensor, active: Tensor, rows: int, height: int, width: int, classes: int,
               power: float, chance: float, prob: float) -> tuple[Tensor, Tensor, Tensor]:
    confidence = bits.new_empty((rows,), dtype=torch.float32)
    return bits.new_empty((rows, 2)), confidence, torch.empty_like(confidence)


_plan_blend = Operator("plan_blend", _fake_blend)
_plan_paste = Operator("plan_paste", _fake_paste)
_plan_cutout = Operator("plan_cutout", _fake_cutout)
_plan_patch = Operator("plan_patch", _fake_patch)
_plan_crop = Operator("plan_crop", _fake_crop)


def plan_blend(shares: Tensor | Draws, active: Tensor, rows: int, *, alpha: float, prob: float = 1.0,
               each: bool = False, generator: Generator | None = None, bits: Tensor | None = None
               ) -> tuple[Tensor, Tensor]:
    """Partners and weights of `BlendPlan`.

    Args:
        shares: (R, K) to draw; or float32 (R, K), gamma variates of alpha + 1, or with alpha 0 the shares themselves,
            in any unit.
        alpha: of the Dirichlet distribution.
    Returns: index (N, K) int64, column 0 the image, the others permutations; weight (N, K) float32.
    Source: K-image mixing Eq. 2.
    """
    given = None if isinstance(shares, tuple) else shares
    draws, k = shares if isinstance(shares, tuple) else shares.shape
    stream = None if given is None else plan_stream.blend(rows, k, draws, alpha, prob, each)
    bits = _numbers("plan_blend", stream, active.device, generator, bits)
    backend = select("plan", bits)
    if backend == "reference":
        return reference.plan_blend(bits, given, active, rows, draws, k, alpha, prob, each)
    return _plan_blend(backend, bits, given, active, rows, draws, k, alpha, prob, each)


def plan_paste(shares: Tensor | Draws, active: Tensor, rows: int, size: tuple[int, int], *, alpha: float,
               prob: float = 1.0, each: bool = False, peaks: Tensor | None = None, centred: bool = False,
               generator: Generator | None = None, bits: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Partners, boxes and visible shares of `PastePlan`.

    Args:
        shares, alpha: as in `plan_blend`; R = N unless centred, K = 2 if centred.
        size: (H, W) of the images.
        peaks: (N, 2) int64: box k is centred on the peak of the image seen through it, as far as it stays inside box
            k - 1. None: at a uniform position inside it.
        centred: one box of side ``int(side * sqrt(1 - lam))``, centred on a uniform pixel, clipped at the border.
    Returns: index as in `plan_blend`; boxes (N, K-1, 4) int32 (top, left, height, width); weight (N, K) float32, rows
        sum to exactly 1.
    Source: K-image mixing Eq. 3-5 (sides rounded as in Algorithm 1 of its supplement); CutMix (Yun et al. 2019) for
        centred boxes.
    """
    given = None if isinstance(shares, tuple) else shares
    draws, k = shares if isinstance(shares, tuple) else shares.shape
    stream = None if given is None else plan_stream.paste(rows, k, draws, alpha, prob, each, peaks is not None, centred)
    bits = _numbers("plan_paste", stream, active.device, generator, bits)
    backend = select("plan", bits)
    if backend == "reference":
        return reference.plan_paste(bits, given, active, peaks, rows, draws, k, *size, alpha, prob, each, centred)
    return _plan_paste(backend, bits, given, active, peaks, rows, draws, k, *size, alpha, prob, each, centred)


def plan_cutout(active: Tensor, rows: int, draws: int, size: tuple[int, int], length: int, *, prob: float = 1.0,
                each: bool = False, generator: Generator | None = None, bits: Tensor | None = None) -> Tensor:
    """Boxes of `CutoutPlan`, (N, 1, 4) int32: squares centred on uniform pixels, clipped at the border.

    Args: draws: positions, 1 for the batch or N. size: (H, W) of the images. length: of a side.
    Source: Cutout (DeVries and Taylor 2017).
    """
    bits = _numbers("plan_cutout", plan_stream.cutout(rows, draws, prob, each), active.device, generator, bits)
    backend = select("plan", bits)
    if backend == "reference":
        return reference.plan_cutout(bits, active, rows, draws, *size, length, prob, each)
    return _plan_cutout(backend, bits, active, rows, draws, *size, length, prob, each)


def plan_patch(shares: Tensor | None, active: Tensor, rows: int, *, levels: int, grids: int, alpha: float,
               prob: float = 1.0, flip: bool = False, generator: Generator | None = None, bits: Tensor | None = None
               ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All that `RMix` draws.

    Args:
        shares: (1, 2) float32 as in `plan_blend`; None: drawn, bits is the seed.
        levels: q is one of so many percentiles, ``linspace(0, 0.99, levels)``. grids: to choose from.
        flip: partners are the batch reversed, no permutation.
    Returns: index (N, 2) int64, q (N,) float64, lam () float32, 1 where not active, and grid () int64.
    Source: R-Mix Sec. 3: grid at Eq. 3, q at Eq. 4, lam at Eq. 6, partner after Eq. 7.
    """
    stream = None if shares is None else plan_stream.patch(rows, alpha, prob, flip)
    bits = _numbers("plan_patch", stream, active.device, generator, bits)
    backend = select("plan", bits)
    if backend == "reference":
        return reference.plan_patch(bits, shares, active, rows, levels, grids, alpha, prob, flip)
    return _plan_patch(backend, bits, shares, active, rows, levels, grids, alpha, prob, flip)


def plan_crop(sigma: Tensor, active: Tensor, rows: int, size: tuple[int, int], *, classes: int, power: float,
              chance: float, prob: float = 1.0, generator: Generator | None = None, bits: Tensor | None = None
              ) -> tuple[Tensor, Tensor, Tensor]:
    """Shifts and confidences of `CropPlan`.

    Args:
        sigma: 0-d float32; the shift of an axis is normal of deviation sigma * max(H, W), redrawn while it would leave
            the image, truncated towards zero.
        classes: J. power, chance: ``1 - (1 - chance) (1 - v)^power`` is the confidence at visibility v.
        prob: drawn per image.
    Returns: shift (N, 2) int64; confidence (N,) float32; base (N,) float32, what every other class gets.
    Source: Soft Augmentation Sec. 4.1, Eq. 7, Listing 1.
    """
    bits = _numbers("plan_crop", plan_stream.crop(rows, prob), sigma.device, generator, bits)
    backend = select("plan", bits)
    if backend == "reference":
        return reference.plan_crop(bits, sigma, active, rows, *size, classes, power, chance, prob)
    return _plan_crop(backend, bits, sigma, active, rows, *size, classes, power, chance, prob)
