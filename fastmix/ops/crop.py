"""Windows of images, moved by whole pixels or resized: SoftCrop and SoftResizedCrop.

Both are linear in the image, so the gradient of the first is the crop by the opposite shift, and the gradient of the
second the transposed interpolation, gathered pixel by pixel. Source: Soft Augmentation Sec. 4.1 and B.3.
"""

# bytes: crop: N*C*H*W read once + written once; resized_crop: the window read once, the output written once
# flops: crop none; resized_crop 6 per output element

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..reference import functional as reference
from ..reference._common import is_channels_last
from . import checks as check
from . import memory
from .dispatch import select
from .operator import Operator
from .planes import check_mask, gathered, is_clip, is_mask, mask_fill, on_frames


def _fake_crop(x: Tensor, shift: Tensor, fill: Tensor | None, value: float) -> Tensor:
    torch._check(x.ndim == 4 and shift.shape == (x.shape[0], 2))
    return torch.empty_like(x)


def _setup_crop(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _backward_crop(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    shift, = ctx.saved_tensors
    return _crop(ctx.backend, grad, -shift, None, 0.0), None, None, None


def _resized_like(x: Tensor, height: int, width: int) -> Tensor:
    """Empty (N, C, height, width) in the memory format of x."""
    return torch.empty((*x.shape[:2], height, width), dtype=x.dtype, device=x.device,
                       memory_format=torch.channels_last if is_channels_last(x) else torch.contiguous_format)


def _fake_resized(x: Tensor, box: Tensor, height: int, width: int, fill: Tensor | None, value: float) -> Tensor:
    torch._check(x.ndim == 4 and box.shape == (x.shape[0], 4))
    return _resized_like(x, height, width)


def _fake_resized_backward(grad: Tensor, box: Tensor, height: int, width: int) -> Tensor:
    torch._check(grad.ndim == 4 and box.shape == (grad.shape[0], 4))
    return _resized_like(grad, height, width)


def _setup_resized(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, box = inputs[:2]
    ctx.save_for_backward(box)
    ctx.size = tuple(x.shape[2:])


def _backward_resized(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return _resized_crop_backward(ctx.backend, grad, *ctx.saved_tensors, *ctx.size), None, None, None, None, None


def _backward_resized_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return _resized_crop(ctx.backend, grad, *ctx.saved_tensors, *ctx.size, None, 0.0), None, None, None


_crop = Operator("crop", _fake_crop, setup=_setup_crop, backward=_backward_crop)
_resized_crop = Operator("resized_crop", _fake_resized, setup=_setup_resized, backward=_backward_resized)
_resized_crop_backward = Operator("resized_crop_backward", _fake_resized_backward, setup=_setup_resized,
                                  backward=_backward_resized_backward)


def _check_fill(op: str, fill: float | Tensor, x: Tensor) -> tuple[Tensor | None, float]:
    """(fill (N, C) in the dtype of x, or None; the number that fills where it is None)."""
    if not isinstance(fill, Tensor):
        value = check.number(op, "fill", fill, "a number or a tensor (N, C)")
        if x.dtype != torch.float64 and abs(value) > check.FLOAT32_MAX:
            value = math.copysign(math.inf, value)
        return None, value
    check.shape(op, "fill", fill, tuple(x.shape[:2]), "(N, C) like x")
    check.dtype(op, "fill", fill, *check.FLOATS)
    check.no_grad_needed(op, "fill", fill)
    check.same_device(op, x=x, fill=fill)
    return fill.to(x.dtype), 0.0


def crop(x: Tensor, shift: Tensor, *, fill: float | Tensor = 0.0) -> Tensor:
    """Move the window on each image by whole pixels: ``out[n, :, i, j] = x[n, :, i + shift[n, 0], j + shift[n, 1]]``.

    Args:
        x: images (N, C, H, W), any float dtype and memory format. Clips (N, C, T, H, W): every frame gets the same
            window. Label maps and masks (N, ..., H, W) int64, int32, uint8 or bool, with a whole number as fill.
        shift: (N, 2) int64 or int32 (down, right) in pixels, of any size.
        fill: what lies outside the image: a number, or (N, C) float, a colour per image (rounded to x's dtype, in which
            a large one is infinite).
    Returns: images like x, every pixel bit for bit its source's. Differentiable in x, any order.
    Raises: ValueError for shapes, devices and a fill that requires grad; TypeError for dtypes.
    Source: Soft Augmentation Sec. 4.1, Listing 1.
    """
    if is_clip(x):
        return on_frames(lambda frames: crop(frames, shift, fill=fill_of_frames("crop", fill, x)), x)
    if is_mask(x):
        return _crop_mask(x, shift, fill)
    check.images("crop", "x", x)
    check.shape("crop", "shift", shift, (x.shape[0], 2), "(N, 2)")
    check.dtype("crop", "shift", shift, torch.int64, torch.int32)
    check.same_device("crop", x=x, shift=shift)
    colour, value = _check_fill("crop", fill, x)
    backend = select("crop", x)
    if backend == "reference":
        return reference.crop(x, shift, value if colour is None else colour)
    return _crop(backend, x, shift.to(torch.int64), colour, value)


def _crop_mask(x: Tensor, shift: Tensor, fill: float | Tensor) -> Tensor:
    check_mask("crop", x)
    check.shape("crop", "shift", shift, (x.shape[0], 2), "(N, 2)")
    check.dtype("crop", "shift", shift, torch.int64, torch.int32)
    check.same_device("crop", x=x, shift=shift)
    height, width = x.shape[-2:]
    rows = torch.arange(height, device=x.device) + shift[:, :1].to(torch.int64)
    columns = torch.arange(width, device=x.device) + shift[:, 1:].to(torch.int64)
    return gathered(x, rows, columns, mask_fill("crop", "fill", fill, x))


def fill_of_frames(op: str, fill: float | Tensor, x: Tensor) -> float | Tensor:
    """(N, C) for all frames of a clip (N, C, T, H, W)."""
    if isinstance(fill, Tensor):
        check.shape(op, "fill", fill, tuple(x.shape[:2]), "(N, C) like x")
        return fill.repeat_interleave(x.shape[2], 1)
    return fill


def resized_crop(x: Tensor, box: Tensor, size: tuple[int, int], *, fill: float | Tensor = 0.0) -> Tensor:
    """Cut a window out of each image and resize it, bilinear, without antialiasing.

    Output pixel i of an axis lies at ``top + clamp((i + 0.5) * height / size - 0.5, 0, height - 1)``, between two
    pixels of the image or of the background around it. For a box of whole pixels that is
    ``torch.nn.functional.interpolate(window, size, mode="bilinear", align_corners=False)``, as in torchvision's
    ``resized_crop(antialias=False)``. A pixel of weight 0 is not looked at, so the whole image as a box is the image.

    Args:
        x: images (N, C, H, W), any float dtype and memory format; clips, label maps and masks as for `crop`. Of a mask
            the nearest pixel is taken.
        box: (N, 4) float32 or float64 (top, left, height, width) in pixels; may leave the image. A side below 1 is
            the one line at its start. Data: no gradient flows to it.
        size: (height, width) of the output, each >= 1.
        fill: as for `crop`.
    Returns: (N, C, *size) in the dtype and memory format of x; positions are computed in float64, sums in float32
        (float64 for float64). The image of a box that is not finite is NaN. Differentiable in x, any order.
    Raises: ValueError for shapes, devices and a box or fill that requires grad; TypeError for dtypes.
    Source: Soft Augmentation B.3.
    """
    op = "resized_crop"
    if is_clip(x):
        return on_frames(lambda frames: resized_crop(frames, box, size, fill=fill_of_frames(op, fill, x)), x)
    mask = is_mask(x)
    if mask:
        check_mask(op, x)
    else:
        check.images(op, "x", x)
    check.shape(op, "box", box, (x.shape[0], 4), "(N, 4)")
    check.dtype(op, "box", box, torch.float32, torch.float64)
    check.no_grad_needed(op, "box", box)
    check.same_device(op, x=x, box=box)
    size = height, width = check.pair(op, "size", size, "(height, width)")
    planes = max(1, math.prod(x.shape[:-2]))  # strides of an empty batch have to be numbers too
    memory.check_size(op, "size", size, planes * height * width * x.element_size(), "images", x.device)
    if mask:
        lines = [_nearest(*box.to(torch.float64)[:, axis::2].unbind(1), side) for axis, side in enumerate(size)]
        return gathered(x, *lines, mask_fill(op, "fill", fill, x))
    colour, value = _check_fill(op, fill, x)
    backend = select("crop", x)
    if backend == "reference" or 0 in x.shape[2:]:  # kernels read pixels, and there are none
        return reference.resized_crop(x, box, (height, width), value if colour is None else colour)
    return _resized_crop(backend, x, box.to(torch.float64), height, width, colour, value)


def _nearest(start: Tensor, length: Tensor, size: int) -> Tensor:
    """(N, size) int64: the line of the image nearest to where each line of the output lies; -1 for none."""
    at = (torch.arange(size, dtype=torch.float64, device=start.device) + 0.5) * (length / size).unsqueeze(1) - 0.5
    last = (length - 1).clamp_min(0).unsqueeze(1)
    line = (start.unsqueeze(1) + torch.minimum(at.clamp_min(0), last) + 0.5).floor()
    return torch.where(line.abs() < 2**62, line, -1).to(torch.int64)
