"""What a mixer makes of random numbers: partners, shares, boxes and their weights, in plain PyTorch.

``bits`` are random int64 in [0, 2^63); `fastmix.ops.plan_stream` says which of them are for what. Where ``shares`` are
None, bits is one number, the seed of the stream and of the gamma variates (`counter`). Arithmetic is float64.
Source: K-image mixing Eq. 2-5, R-Mix Sec. 3, Soft Augmentation Sec. 4.1 and Eq. 7.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..ops import plan_stream
from ..ops.enums import LAST_PERCENTILE
from . import counter
from .paste import paste_areas


def uniform(bits: Tensor) -> Tensor:
    """float64 in [0, 1): 53 of the bits, so that 1 - u is exact and above 0."""
    return (bits >> 10).to(torch.float64) * 2.0**-53


def permutations(keys: Tensor) -> Tensor:
    """keys (K-1, N) int64 -> (N, K-1) int64: the place of each key among its row's, ties in order.

    The inverse of ``argsort``: as uniform a permutation, and each entry depends on its own key alone.
    """
    return keys.argsort(dim=1, stable=True).argsort(1).T


def weights(gamma: Tensor, bits: Tensor, alpha: float) -> Tensor:
    """(R, K) float64 in the proportions of Dirichlet(alpha, ..., alpha), the largest not below gamma's least.

    Gamma(a) is Gamma(a + 1) U^(1/a). The powers are taken relative to the largest, in log space, so small alphas
    neither underflow nor give 0 / 0, as they do where gamma variates are divided by their sum.

    Args: gamma: (R, K) of Gamma(alpha + 1). bits: (K, R).
    """
    power = (1 - uniform(bits)).log().T / alpha
    return gamma.to(torch.float64) * (power - power.amax(1, keepdim=True)).exp()


def stick_fractions(phi: Tensor) -> Tensor:
    """``1 - v_k`` of the stick breaking ``v_k = phi_k / prod_{j<k} (1 - v_j)``: (N, K) -> (N, K-1) float64.

    It is the ratio of what is left after and before piece k, both summed from the far end, so no difference of close
    numbers is taken, and phi need not sum to 1. Where nothing is left the fraction is 0, not 0 / 0.
    Source: K-image mixing Eq. 3.
    """
    left = phi.to(torch.float64).flip(1).cumsum(1).flip(1)
    before, after = left[:, :-1], left[:, 1:]
    return torch.where(before > 0, after / before, 0.0)


def nested_sides(phi: Tensor, size: tuple[int, int]) -> Tensor:
    """(height, width) of the canvas and of boxes 1 .. K-1: (N, K, 2) float64, whole numbers.

    Box k has side ``round(previous side * sqrt(1 - v_k))``, half to even, relative to the rounded box before it.
    Source: K-image mixing Eq. 4; rounding: Algorithm 1 of its supplement, line 16.
    """
    rows = phi.shape[0]
    side = torch.stack([torch.full((rows,), float(s), dtype=torch.float64, device=phi.device) for s in size], 1)
    sides = [side]
    for scale in stick_fractions(phi).sqrt().unbind(1):
        side = (side * scale.unsqueeze(1)).round()
        sides.append(side)
    return torch.stack(sides, 1)


def nested_boxes(phi: Tensor, size: tuple[int, int], position: Tensor) -> Tensor:
    """Boxes of `nested_sides`, each placed uniformly over all positions inside the one before.

    Args:
        phi: (N, K) float, shares in any unit.
        size: (H, W) of the images.
        position: (N, K-1, 2) float64, uniform in [0, 1).
    Returns: (N, K-1, 4) int32 (top, left, height, width); a box may be empty.
    Source: K-image mixing Eq. 4-5.
    """
    sides = nested_sides(phi, size)
    room = sides[:, :-1] - sides[:, 1:]
    # position < 1 in float64 keeps the floor at most at room; offsets are relative to the box before.
    corner = (position * (room + 1)).floor().cumsum(1)
    return torch.cat([corner, sides[:, 1:]], 2).to(torch.int32)


def peak_boxes(phi: Tensor, size: tuple[int, int], peaks: Tensor) -> Tensor:
    """Boxes of `nested_sides`, each centred on a pixel and moved, as little as needed, inside the one before.

    A box of side s starts s // 2 before its centre, as in `centred_boxes`. Nothing is drawn.

    Args:
        phi: (N, K) float, shares in any unit.
        size: (H, W) of the images.
        peaks: (N, K-1, 2) int64 (row, column) of every box's centre.
    Returns: (N, K-1, 4) int32 (top, left, height, width); a box may be empty.
    Source: K-image mixing Eq. 3-4 and its supplement, Saliency-DCutMix.
    """
    sides = nested_sides(phi, size).to(torch.int64)
    wanted = peaks - sides[:, 1:] // 2
    low = torch.zeros_like(sides[:, 0])
    corners = []
    for k in range(wanted.shape[1]):
        # inside the box before: from its corner to the last corner at which this one still fits
        low = wanted[:, k].clamp(low, low + sides[:, k] - sides[:, k + 1])
        corners.append(low)
    corner = torch.stack(corners, 1) if corners else wanted
    return torch.cat([corner, sides[:, 1:]], 2).to(torch.int32)


def centred_boxes(sides: Sequence[Tensor | int], size: tuple[int, int], position: Tensor) -> Tensor:
    """Boxes whose centre is uniform over the pixels, clipped at the border (CutMix, Cutout).

    Args:
        sides: height and width before clipping, (R,) int64 or a number each.
        size: (H, W) of the images.
        position: (2, R) float64, uniform in [0, 1).
    Returns: (R, 4) int32 (top, left, height, width), inside the image.
    """
    starts, extents = [], []
    for side, length, where in zip(sides, size, position, strict=True):
        start = (where * length).floor().to(torch.int64) - side // 2
        end = (start + side).clamp(0, length)
        starts.append(start.clamp(0, length))
        extents.append(end - starts[-1])
    return torch.stack([*starts, *extents], 1).to(torch.int32)


def truncated_normal(uniform: Tensor, sigma: Tensor, limit: Tensor | float) -> Tensor:
    """The size of normal numbers of mean 0, redrawn while ``|t| >= limit``: the law itself, by its inverse.

    ``|t| = sigma sqrt(2) erfinv(u erf(limit / (sigma sqrt(2))))``: no loop that would wait for the device.

    Args: uniform: float64 in [0, 1). sigma, limit: float64, >= 0, that broadcast; where either is 0 so is t.
    Returns: float64; t may round to the limit itself.
    """
    spread = sigma * math.sqrt(2)
    if isinstance(limit, float):
        limit = torch.full((), limit, dtype=torch.float64, device=uniform.device)
    size = spread * torch.erfinv(uniform * torch.erf(limit / spread))
    # Nothing to draw from: limit / 0 is infinite or no number.
    return torch.where((spread > 0) & (limit > 0), torch.minimum(size, limit), 0.0)


# ---------------------------------------------------------------- the operators

def _active(chance: Tensor, active: Tensor, prob: float, each: bool) -> Tensor:
    """() or (N,) bool. chance: (1, 0), (1, 1) or (1, N)."""
    if prob >= 1:
        return active
    drawn = uniform(chance[0]) < prob
    return active & (drawn if each else drawn[0])


def _partners(keys: Tensor, active: Tensor) -> Tensor:
    """(N, K) int64: the image itself, then the permutations; only itself where not active."""
    own = torch.arange(keys.shape[1], device=keys.device).unsqueeze(1)
    return torch.cat([own, torch.where(active.unsqueeze(-1), permutations(keys), own)], 1)


def _weights(exponents: Tensor, shares: Tensor, alpha: float) -> Tensor:
    return shares.to(torch.float64) if alpha == 0 else weights(shares, exponents, alpha)


def _drawn(stream: plan_stream.Stream, bits: Tensor, shares: Tensor | None, draws: int, k: int,
           alpha: float) -> tuple[dict[str, Tensor], Tensor]:
    """The pieces of the stream, and the shares (R, K): those given, or both from the seed."""
    if shares is not None:
        return stream.split(bits), shares
    return stream.split(counter.bits(bits, stream.size)), counter.gamma(bits, draws, k, alpha)


def plan_blend(bits: Tensor, shares: Tensor | None, active: Tensor, rows: int, draws: int, k: int, alpha: float,
               prob: float, each: bool) -> tuple[Tensor, Tensor]:
    """(index (N, K) int64, weight (N, K) float32); see `fastmix.ops.plan.plan_blend`."""
    drawn, shares = _drawn(plan_stream.blend(rows, k, draws, alpha, prob, each), bits, shares, draws, k, alpha)
    on = _active(drawn["chance"], active, prob, each)
    phi = _weights(drawn["exponents"], shares, alpha)
    phi = (phi / phi.sum(1, keepdim=True)).to(torch.float32)
    own = (torch.arange(k, device=phi.device) == 0).to(torch.float32)
    return _partners(drawn["keys"], on), torch.where(on.unsqueeze(-1), phi, own).expand(rows, -1).contiguous()


def plan_paste(bits: Tensor, shares: Tensor | None, active: Tensor, peaks: Tensor | None, rows: int, draws: int, k: int,
               height: int, width: int, alpha: float, prob: float, each: bool, centred: bool
               ) -> tuple[Tensor, Tensor, Tensor]:
    """(index (N, K) int64, boxes (N, K-1, 4) int32, weight (N, K) float32); see `fastmix.ops.plan.plan_paste`."""
    size, stream = (height, width), plan_stream.paste(rows, k, draws, alpha, prob, each, peaks is not None, centred)
    drawn, shares = _drawn(stream, bits, shares, draws, k, alpha)
    on = _active(drawn["chance"], active, prob, each)
    index = _partners(drawn["keys"], on)
    phi = _weights(drawn["exponents"], shares, alpha)
    position = uniform(drawn["position"])
    if centred:
        scale = stick_fractions(phi).squeeze(1).sqrt()
        sides = [(scale * side).to(torch.int64) for side in size]
        boxes = centred_boxes(sides, size, position).unsqueeze(1).expand(rows, -1, -1)
    elif peaks is not None:
        boxes = peak_boxes(phi, size, peaks[index[:, 1:]])
    else:
        boxes = nested_boxes(phi, size, position.view(k - 1, 2, rows).permute(2, 0, 1))
    boxes = boxes * on.view(-1, 1, 1)
    return index, boxes, paste_areas(boxes, size)


def plan_cutout(bits: Tensor, active: Tensor, rows: int, draws: int, height: int, width: int, length: int, prob: float,
                each: bool) -> Tensor:
    """boxes (N, 1, 4) int32; see `fastmix.ops.plan.plan_cutout`."""
    drawn = plan_stream.cutout(rows, draws, prob, each).split(bits)
    on = _active(drawn["chance"], active, prob, each)
    boxes = centred_boxes((length, length), (height, width), uniform(drawn["position"]))
    return boxes.expand(rows, -1).unsqueeze(1) * on.view(-1, 1, 1)


def plan_patch(bits: Tensor, shares: Tensor | None, active: Tensor, rows: int, levels: int, grids: int, alpha: float,
               prob: float, flip: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(index (N, 2) int64, q (N,) float64, lam () float32, grid () int64); see `fastmix.ops.plan.plan_patch`."""
    drawn, shares = _drawn(plan_stream.patch(rows, alpha, prob, flip), bits, shares, 1, 2, alpha)
    keys = torch.arange(rows, device=bits.device).flip(0).unsqueeze(0) if flip else drawn["keys"]
    on = _active(drawn["chance"], active, prob, False)
    phi = _weights(drawn["exponents"], shares, alpha)[0]
    level = (uniform(drawn["level"][0]) * levels).floor()
    lam = torch.where(on, (phi[0] / phi.sum()).to(torch.float32), 1.0)
    grid = (uniform(drawn["grid"][0, 0]) * grids).floor().to(torch.int64)
    return _partners(keys, on), level * (LAST_PERCENTILE / max(levels - 1, 1)), lam, grid


def plan_crop(bits: Tensor, sigma: Tensor, active: Tensor, rows: int, height: int, width: int, classes: int,
              power: float, chance: float, prob: float) -> tuple[Tensor, Tensor, Tensor]:
    """(shift (N, 2) int64, confidence (N,) float32, base (N,) float32); see `fastmix.ops.plan.plan_crop`."""
    drawn = plan_stream.crop(rows, prob).split(bits)
    on = _active(drawn["chance"], active, prob, True)
    strength = sigma.to(torch.float64) * max(height, width)
    shifts, shown = [], 1.0
    for side, position in zip((height, width), drawn["position"], strict=True):
        size = truncated_normal(uniform(position), strength, float(side)).floor().clamp_max(max(side - 1, 0)) * on
        shifts.append(torch.where(position % 2 == 0, size, -size).to(torch.int64))
        shown = shown * ((side - size) / max(side, 1))
    p = 1 - (1 - chance) * (1 - shown) ** power
    return torch.stack(shifts, 1), p.to(torch.float32), ((1 - p) / max(classes - 1, 1)).to(torch.float32)
