"""paste: nested boxes per image (DCutMix, K = 3), and one box for the whole batch (CutMix, K = 2)."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmix import functional
from fastmix.reference import functional as reference

from .base import Call, Case, Peer, generator, image_case_name, images, numel

GOALS = {((64, 3, 224, 224), 3): {"compile": 1.0, "eager": 2.0, "floor": 1.3}}


def nested(n: int, k: int, size: tuple[int, int], g: torch.Generator) -> Tensor:
    """(N, k, 4) nested boxes, each side 0.5 to 0.95 of the one before, placed uniformly inside it."""
    box = torch.tensor([0, 0, *size]).repeat(n, 1)
    out = []
    for _ in range(k):
        side = (box[:, 2:] * (0.5 + 0.45 * torch.rand(n, 2, generator=g))).round().to(torch.int64)
        corner = box[:, :2] + (torch.rand(n, 2, generator=g) * (box[:, 2:] - side + 1)).to(torch.int64)
        box = torch.cat([corner, side], 1)
        out.append(box)
    return torch.stack(out, 1).to(torch.int32)


def _loop_peer(x: Tensor, index: Tensor, boxes: Tensor) -> Call:
    # Host lists, as code that draws its boxes on the host has them already.
    sources, rows = index[:, 1:].tolist(), boxes.tolist()
    plan = [(n, source, *box) for n in range(len(rows)) for source, box in zip(sources[n], rows[n], strict=True)]

    def run(x: Tensor, index: Tensor, boxes: Tensor) -> Tensor:
        out = x.clone()
        for n, source, top, left, height, width in plan:
            out[n, :, top:top + height, left:left + width] = x[source, :, top:top + height, left:left + width]
        return out
    return run


def _batch_box_peer(x: Tensor, index: Tensor, boxes: Tensor) -> Call:
    top, left, height, width = boxes[0, 0].tolist()
    partner = index[:, 1].contiguous()

    def run(x: Tensor, index: Tensor, boxes: Tensor) -> Tensor:
        out = x.clone()
        out[:, :, top:top + height, left:left + width] = x[partner, :, top:top + height, left:left + width]
        return out
    return run


def case(shape: tuple[int, ...], k: int = 3, dtype: torch.dtype = torch.float32, channels_last: bool = False,
         backward: bool = False, one_box: bool = False, quick: bool = False) -> Case:
    n = shape[0]

    def make(device: torch.device, seed: int) -> tuple[Tensor, ...]:
        g = generator(seed)
        x = images(shape, dtype, channels_last, device, g)
        index = torch.stack([torch.arange(n), *(torch.randperm(n, generator=g) for _ in range(k - 1))], 1)
        boxes = nested(n, k - 1, shape[2:], g)
        if one_box:
            boxes = boxes[:1].repeat(n, 1, 1)
        return x, index.to(device), boxes.to(device)

    # Not backward: autograd through the loop clones the whole gradient once a box, seconds a call.
    peers = () if backward else (Peer("clone + slice per box", _loop_peer),)
    if one_box:
        peers = (Peer("clone + one slice", _batch_box_peer), *peers)
    plain = dtype == torch.float32 and not channels_last and not backward
    return Case(
        op="paste", name=image_case_name(shape, dtype, channels_last, f"K={k}" + (" one box" if one_box else "")),
        make=make, ours=functional.paste, reference=reference.paste,
        moved=(4 if backward else 2) * numel(shape) * dtype.itemsize,
        formula="4 N D s: x and grad read, out and dx written" if backward else "2 N D s: x read, out written",
        operators=("paste",), backward=backward, peers=peers,
        goals={"cpu": GOALS.get((shape, k), {})} if plain else {}, scratch=64 * n * k + 4096, quick=quick)


def cases() -> list[Case]:
    return [
        case((100, 3, 32, 32)),
        case((64, 3, 224, 224), quick=True),
        case((64, 3, 224, 224), channels_last=True),
        case((64, 3, 224, 224), k=2, one_box=True),
        case((100, 64, 32, 32), backward=True),
    ]
