"""crop: shifts of SoftCrop at sigma 0.3, and resized_crop: whole windows and halves, as SoftResizedCrop draws them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmix import functional
from fastmix.reference import functional as reference

from .base import Call, Case, Peer, generator, image_case_name, images, numel

SIGMA = 0.3
GOALS = {"crop": {"compile": 1.0, "eager": 2.0, "floor": 1.5}, "resized_crop": {"compile": 1.0, "eager": 2.0,
                                                                             "floor": 1.5}}


def _ours(x: Tensor, place: Tensor) -> Tensor:
    return functional.crop(x, place)


def _ours_resized(x: Tensor, place: Tensor) -> Tensor:
    return functional.resized_crop(x, place, (x.shape[2], x.shape[3]))


def _reference_resized(x: Tensor, place: Tensor) -> Tensor:
    return reference.resized_crop(x, place, (x.shape[2], x.shape[3]))


def _loop_peer(x: Tensor, shift: Tensor) -> Call:
    height, width = x.shape[2:]
    # Host lists, as code that draws its shifts on the host has them already.
    rows = shift.tolist()

    def run(x: Tensor, shift: Tensor) -> Tensor:
        padded = F.pad(x, (width, width, height, height))
        return torch.stack([image[:, height + down:2 * height + down, width + right:2 * width + right]
                            for image, (down, right) in zip(padded, rows, strict=True)])
    return run


def _grid_sample_peer(x: Tensor, box: Tensor) -> Call:
    size = torch.tensor(x.shape[2:], device=x.device)

    def run(x: Tensor, box: Tensor) -> Tensor:
        scale = box[:, 2:] / size
        offset = (2 * box[:, :2] + box[:, 2:]) / size - 1
        zero = torch.zeros_like(scale[:, 0])
        theta = torch.stack([torch.stack([scale[:, 1], zero, offset[:, 1]], 1),
                             torch.stack([zero, scale[:, 0], offset[:, 0]], 1)], 1).to(x.dtype)
        return F.grid_sample(x, F.affine_grid(theta, x.shape, align_corners=False), align_corners=False)
    return run


def case(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, channels_last: bool = False,
         backward: bool = False, resized: bool = False, quick: bool = False) -> Case:
    n, sides = shape[0], torch.tensor(shape[2:])

    def make(device: torch.device, seed: int) -> tuple[Tensor, ...]:
        g = generator(seed)
        x = images(shape, dtype, channels_last, device, g)
        if not resized:
            shift = (SIGMA * max(shape[2:]) * torch.randn(n, 2, generator=g)).trunc().long()
            return x, torch.minimum(torch.maximum(shift, 1 - sides), sides - 1).to(device)
        side = sides - (SIGMA * sides / 2 * torch.randn(n, 2, generator=g)).clamp_min(0)
        corner = (sides - side) / 2 + 0.1 * sides * torch.randn(n, 2, generator=g)
        return x, torch.cat([corner, side], 1).to(device)

    name = "resized_crop" if resized else "crop"
    # grid_sample takes what lies next to a window's edge from outside the window, where resized_crop repeats the edge.
    peers = (Peer("F.grid_sample", _grid_sample_peer, same=False),) if resized else (Peer("pad + slice + stack",
                                                                                          _loop_peer),)
    plain = dtype == torch.float32 and not channels_last and not backward
    window = "the window read (counted as x)" if resized else "x read"
    return Case(
        op="crop", name=image_case_name(shape, dtype, channels_last, name), make=make,
        ours=_ours_resized if resized else _ours, reference=_reference_resized if resized else reference.crop,
        moved=(4 if backward else 2) * numel(shape) * dtype.itemsize,
        formula=f"4 N D s: {window} and grad read, out and dx written" if backward else
        f"2 N D s: {window}, out written",
        operators=("crop",), backward=backward, peers=() if backward else peers,
        goals={"cpu": GOALS[name]} if plain else {}, scratch=64 * n + 1_000_000 * resized + 4096, quick=quick)


def cases() -> list[Case]:
    both = (False, True)
    return [
        *(case((100, 3, 32, 32), resized=resized) for resized in both),
        *(case((64, 3, 224, 224), resized=resized, quick=not resized) for resized in both),
        *(case((64, 3, 224, 224), channels_last=True, resized=resized) for resized in both),
        *(case((64, 3, 224, 224), torch.bfloat16, resized=resized) for resized in both),
        *(case((100, 64, 32, 32), backward=True, resized=resized) for resized in both),
    ]
