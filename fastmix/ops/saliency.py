"""Saliency of an input gradient: channel norm, cell average, percentile mask, peak. R-Mix, Eq. 2-4.

None of these carries a gradient: a mask is a decision, a map feeds one.
"""

# bytes: N*C*H*W read once; h*w cells an image stay on chip

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..reference import functional as reference
from ..reference.saliency import chosen_grid
from . import checks as check
from .dispatch import select
from .operator import Operator
from .planes import is_clip


def _fake_map(grad: Tensor, h: int, w: int) -> Tensor:
    dtype = torch.float64 if grad.dtype == torch.float64 else torch.float32
    return grad.new_empty((grad.shape[0], h, w), dtype=dtype)


def _fake_mask(grad: Tensor, h: int, w: int, q: Tensor) -> Tensor:
    return grad.new_empty((grad.shape[0], h, w), dtype=torch.bool)


def _fake_mask_of_grid(grad: Tensor, patches: list[int], grid: Tensor, q: Tensor) -> Tensor:
    side = math.lcm(*patches)
    return grad.new_empty((grad.shape[0], side, side), dtype=torch.bool)


def _fake_peak(grad: Tensor) -> Tensor:
    return grad.new_empty((grad.shape[0], 2), dtype=torch.int64)


def _fake_percentile(map: Tensor, q: Tensor) -> Tensor:
    return map.new_empty(map.shape, dtype=torch.bool)


_saliency_map = Operator("saliency_map", _fake_map)
_saliency_mask = Operator("saliency_mask", _fake_mask)
_saliency_mask_of_grid = Operator("saliency_mask_of_grid", _fake_mask_of_grid)
_saliency_peak = Operator("saliency_peak", _fake_peak)
_percentile_mask = Operator("percentile_mask", _fake_percentile)


def _images(op: str, grad: Tensor) -> Tensor:
    """The gradient of images, or of a clip (N, C, T, H, W), whose frames together have one saliency."""
    if is_clip(grad):
        grad = grad.flatten(1, 2)
    check.images(op, "grad", grad)
    return grad.detach()


def _backend(grad: Tensor) -> str:
    """Of images without channels, or of none, there is nothing for a kernel to read."""
    backend = select("saliency", grad)
    return backend if grad.numel() else "reference"


def _check_grid(op: str, grad: Tensor, grid: tuple[int, int]) -> tuple[int, int]:
    h, w = check.pair(op, "grid", grid, "(h, w)")
    height, width = grad.shape[2:]
    if height % h or width % w:
        raise ValueError(f"{op}: grid is {tuple(grid)}, want (h, w) where h divides {height} and w divides {width}")
    if height < 1 or width < 1:
        raise ValueError(f"{op}: grad has shape {tuple(grad.shape)}, want at least one pixel")
    return h, w


def _check_q(op: str, q: Tensor, rows: int, like: Tensor) -> None:
    check.tensor(op, "q", q)
    if q.ndim:
        check.shape(op, "q", q, (rows,), "(N,) or 0-d")
    check.dtype(op, "q", q, torch.float32, torch.float64)
    check.same_device(op, grad=like, q=q)


def saliency_map(grad: Tensor, grid: tuple[int, int]) -> Tensor:
    """The saliency of an image on a grid of cells.

    Args:
        grad: (N, C, H, W) gradient of the loss with respect to the images, any float dtype and strides; of clips
            (N, C, T, H, W), whose frames count as channels.
        grid: (h, w) cells; h divides H and w divides W.
    Returns: (N, h, w) float32 (float64 for float64): ``s = sqrt(mean_c grad^2)`` divided by its sum over the
        image's pixels, averaged over each cell. An all-zero gradient gives the uniform map 1 / (H W).
    Source: R-Mix, Eq. 2-3.
    """
    grad = _images("saliency_map", grad)
    h, w = _check_grid("saliency_map", grad, grid)
    backend = _backend(grad)
    return reference.saliency_map(grad, (h, w)) if backend == "reference" else _saliency_map(backend, grad, h, w)


def saliency_mask(grad: Tensor, grid: tuple[int, int], q: Tensor) -> Tensor:
    """The cells at or above the q-th percentile of the saliency map.

    Args:
        grad: (N, C, H, W) as in `saliency_map`.
        grid: (h, w) cells.
        q: (N,) or 0-d float32 or float64, in [0, 1): the share of the cells below the threshold. Its values are not
            read back: below 0 and NaN count as 0, all True; 1 and above as 1, the largest cell and its ties alone.
    Returns: (N, h, w) bool, ``v >= sorted(v)[ceil(q * (h*w - 1))]`` (rank in float64): ties are in, q = 0 is all
        True, an all-zero gradient is all True, NaN counts as largest.
    Source: R-Mix, Eq. 2-4 (a linearly interpolated percentile, without its rounding).
    """
    grad = _images("saliency_mask", grad)
    h, w = _check_grid("saliency_mask", grad, grid)
    _check_q("saliency_mask", q, grad.shape[0], grad)
    backend = _backend(grad)
    if backend == "reference":
        return reference.saliency_mask(grad, (h, w), q)
    return _saliency_mask(backend, grad, h, w, q)


# What the GPU kernels of `saliency_mask_of_grid` have room for.
MOST_GRIDS, MOST_PATCHES = 4, 32


def saliency_mask_of_grid(grad: Tensor, patches: tuple[int, ...], grid: Tensor, q: Tensor) -> Tensor:
    """`saliency_mask` on one of several square grids, chosen on the device, written on the least common grid.

    Args:
        grad: (N, C, H, W) as in `saliency_map`.
        patches: cells a side of each grid; their least common multiple divides H and W.
        grid: 0-d int64, which of them.
        q: as in `saliency_mask`.
    Returns: (N, side, side) bool, side the least common multiple: bit for bit the mask of `saliency_mask` on the chosen
        grid, every cell repeated. The gradient is read once, and no more than that grid is summed.
    Source: R-Mix Eq. 2-4.
    """
    op = "saliency_mask_of_grid"
    grad = _images(op, grad)
    side = math.lcm(*patches)
    _check_grid(op, grad, (side, side))
    _check_q(op, q, grad.shape[0], grad)
    check.shape(op, "grid", grid, (), "0-d")
    check.dtype(op, "grid", grid, torch.int64)
    check.same_device(op, grad=grad, grid=grid)
    backend = _backend(grad)
    if backend == "reference":
        return chosen_grid([reference.saliency_mask(grad, (p, p), q) for p in patches], grid)
    if len(patches) <= MOST_GRIDS and max(patches) <= MOST_PATCHES:
        return _saliency_mask_of_grid(backend, grad, list(patches), grid, q)
    return chosen_grid([_saliency_mask(backend, grad, p, p, q) for p in patches], grid)


def percentile_mask(map: Tensor, q: Tensor) -> Tensor:
    """`saliency_mask` from a map that exists already.

    Args: map: (N, h, w) float32 or float64. q: as in `saliency_mask`, also where it is NaN or outside [0, 1).
    Returns: (N, h, w) bool.
    Source: R-Mix, Eq. 4.
    """
    check.ndim("percentile_mask", "map", map, 3)
    check.dtype("percentile_mask", "map", map, torch.float32, torch.float64)
    if map.shape[1] < 1 or map.shape[2] < 1:
        raise ValueError(f"percentile_mask: map has shape {tuple(map.shape)}, want at least one cell")
    _check_q("percentile_mask", q, map.shape[0], map)
    backend = select("saliency", map)
    map = map.detach()
    return reference.percentile_mask(map, q) if backend == "reference" else _percentile_mask(backend, map, q)


def saliency_peak(grad: Tensor) -> Tensor:
    """Where the saliency is largest.

    Args: grad: (N, C, H, W) as in `saliency_map`.
    Returns: (N, 2) int64 (row, column) of the largest ``mean_c grad^2``, first in row-major order; NaN counts as
        largest.
    Source: K-image mixing, supplement, Saliency-DCutMix (there on SaliencyMix's map, here on that of R-Mix Eq. 2).
    """
    grad = _images("saliency_peak", grad)
    if grad.shape[2] < 1 or grad.shape[3] < 1:
        raise ValueError(f"saliency_peak: grad has shape {tuple(grad.shape)}, want at least one pixel")
    backend = _backend(grad)
    return reference.saliency_peak(grad) if backend == "reference" else _saliency_peak(backend, grad)
