"""Boxes cut out of other images of the batch and pasted: CutMix, DCutMix, Saliency-DCutMix.

Every pixel has exactly one source, so a row of an image is at most 2 K - 1 spans copied whole.
Source: K-image mixing, Eq. 4-5.
"""

# bytes: N*C*H*W read once + written once, whatever K; no flops

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..reference import functional as reference
from . import checks as check
from .blend import check_index
from .dispatch import must_check_values, select
from .operator import Operator
from .planes import check_mask, is_clip, is_mask, on_bits, on_frames
from .view import View, check_view, read_through, view_of_frames


def _fake(x: Tensor, index: Tensor, boxes: Tensor) -> Tensor:
    torch._check(x.ndim == 4 and index.shape[0] == x.shape[0])
    torch._check(boxes.ndim == 3 and boxes.shape[1] == index.shape[1] - 1)
    return torch.empty_like(x)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return _paste_backward(ctx.backend, grad, *ctx.saved_tensors), None, None


def _backward_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return _paste(ctx.backend, grad, *ctx.saved_tensors), None, None


_paste = Operator("paste", _fake, setup=_setup, backward=_backward)
_paste_backward = Operator("paste_backward", _fake, setup=_setup, backward=_backward_backward)


def paste(x: Tensor, index: Tensor, boxes: Tensor, *, view: View | None = None) -> Tensor:
    """Cut boxes out of other images of the batch and paste them.

    Pixel (i, j) of ``out[n]`` comes from ``x[index[n, k]]`` with the last k whose box holds it, else from
    ``x[index[n, 0]]``; every source is the untouched batch.

    Args:
        x: images (N, C, H, W), any float dtype and memory format; with a view uint8. Clips (N, C, T, H, W): every
            frame gets the same boxes. Label maps and masks (N, ..., H, W) int64, int32, uint8 or bool.
        index: (N, K) int64; column 0 is the canvas, column k the image seen through box k.
        boxes: (N, K-1, 4) int32 (top, left, height, width) in pixels; may be empty or leave the image.
        view: reads every source as a normalised image, in the same pass. See `fastmix.View`.
    Returns: images like x, every pixel bit for bit its source's (with a view: that of ``view.apply(x)``).
        Differentiable in x, any order.
    Raises: ValueError for shapes and devices, TypeError for dtypes, IndexError for an index outside the batch
        (CPU; on a GPU the image is NaN).
    Source: K-image mixing Eq. 4-5; refined data augmentation Eq. 2 (CutMix).
    """
    if view is None and not is_clip(x) and not is_mask(x):
        found = _paste.checked(x, index, boxes)
        if found is not None:
            return found
    if is_clip(x):
        return on_frames(lambda frames: paste(frames, index, boxes, view=view_of_frames("paste", view, x)), x)
    if is_mask(x) and view is None:
        check_mask("paste", x)
        check.ndim("paste", "boxes", boxes, 3)
        return on_bits(lambda bits: paste(bits, index, boxes), x)
    if view is not None:
        check_view("paste", x, view)
    else:
        check.images("paste", "x", x)
    check_index("paste", index, x)
    check.shape("paste", "boxes", boxes, (index.shape[0], index.shape[1] - 1, 4), "(N, K-1, 4)")
    check.dtype("paste", "boxes", boxes, torch.int32)
    check.same_device("paste", x=x, index=index, boxes=boxes)
    backend = select("paste" if view is None else "view", x)
    if must_check_values(backend, x):
        check.rows_in_range("paste", "index", index, 0, x.shape[0])
    if view is not None:
        return read_through(backend, "view_paste", x, (index, boxes), view)
    if backend == "reference":
        return reference.paste(x, index, boxes)
    return _paste(backend, x, index, boxes)


def paste_areas(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """The visible share of every image of a paste with nested boxes (each inside the one before).

    Args:
        boxes: (N, K-1, 4) int32 (top, left, height, width).
        size: (H, W) of the images.
    Returns: (N, K) float32 label weights, differences of areas over H * W; rows sum to exactly 1.
    Source: K-image mixing, Algorithm 1 of the supplement, lines 19 and 25.
    """
    check.ndim("paste_areas", "boxes", boxes, 3)
    check.shape("paste_areas", "boxes", boxes, (*boxes.shape[:2], 4), "(N, K-1, 4)")
    check.dtype("paste_areas", "boxes", boxes, torch.int32)
    return reference.paste_areas(boxes, check.pair("paste_areas", "size", size, "(height, width)"))
