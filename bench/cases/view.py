"""View: uint8 to mixed, normalised images in one pass, against the chain to(float), div, sub, div, flip, crop, mix.

Half of the images are flipped, all are shifted by up to an eighth of their width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastmix import View, functional
from fastmix.reference import functional as reference

from .base import Case, generator, image_case_name, numel
from .paste import nested

GOALS = {"compile": 1.5, "eager": 3.0}
FORMATS = {False: torch.contiguous_format, True: torch.channels_last}


def _calls(op: str, dtype: torch.dtype, channels_last: bool) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """(ours, the reference) of x, what the mixer drew, and mean, std, flip, shift."""
    apply, chain = getattr(functional, op, None), getattr(reference, "view" if op == "view" else f"view_{op}")

    def ours(x: Tensor, *args: Tensor) -> Any:
        view = View(*args[-4:], out_dtype=dtype, memory_format=FORMATS[channels_last])
        return view.apply(x) if apply is None else apply(x, *args[:-4], view=view)

    return ours, lambda *args: chain(*args, dtype, channels_last)


def case(op: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32, channels_last: bool = False,
         quick: bool = False) -> Case:
    n, channels, height, width = shape

    def make(device: torch.device, seed: int) -> tuple[Tensor, ...]:
        g = generator(seed)
        x = torch.randint(0, 256, shape, dtype=torch.uint8, generator=g)
        index = torch.stack([torch.arange(n), torch.randperm(n, generator=g)], 1)
        weight = torch.tensor([[0.7, 0.3]]).repeat(n, 1)
        drawn = {"view": (), "blend": (index, weight), "paste": (index, nested(n, 1, (height, width), g)),
                 "patch_mix": (index[:, 1].contiguous(), torch.rand(n, 4, 4, generator=g) < 0.5, torch.tensor(0.7))}
        view = View.draw(x, torch.full((channels,), 0.45), torch.full((channels,), 0.225), pad=width // 8,
                         generator=g)
        x = x.to(device).contiguous(memory_format=FORMATS[channels_last])
        return x, *(t.to(device) for t in (*drawn[op], *view[:4]))

    ours, chain = _calls(op, dtype, channels_last)
    return Case(
        op="view", name=image_case_name(shape, dtype, channels_last, "alone" if op == "view" else op), make=make,
        ours=ours, reference=chain, moved=(1 + dtype.itemsize) * numel(shape),
        formula="N D (1 + s): bytes read, images written (at the rate of a clone of the bytes)", operators=("view",),
        goals={"cpu": GOALS}, scratch=64 * n + 4096, quick=quick)


def cases() -> list[Case]:
    small, large = (128, 3, 64, 64), (64, 3, 224, 224)
    mixes = ("blend", "paste", "patch_mix")
    return [
        *(case(op, shape, quick=op == "blend") for shape in (small, large) for op in mixes),
        case("view", large),
        *(case(op, large, torch.bfloat16, True) for op in mixes),
    ]
