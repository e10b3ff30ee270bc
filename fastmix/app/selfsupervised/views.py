"""Two random views of every image of a batch, made on its device."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from ... import functional
from ...functional import pair_iou

TRIES = 10
GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in torchvision


class Pair(NamedTuple):
    """Two views of each image.

    Fields:
        first, second: (N, C, H, W) float32 in [0, 255].
        boxes: (N, 2, 4) float32 (top, left, height, width) in pixels of the image.
        iou: (N,) float32, of the two boxes.
    Source: Soft Augmentation Sec. 4.4, IoU of Eq. 9.
    """

    first: Tensor
    second: Tensor
    boxes: Tensor
    iou: Tensor


def random_boxes(rows: int, size: tuple[int, int], scale: tuple[float, float] = (0.2, 1.0),
                 ratio: tuple[float, float] = (3 / 4, 4 / 3), device: torch.device | str | None = None,
                 generator: Generator | None = None) -> Tensor:
    """The windows of random resized crops, drawn for a batch at once.

    A share of the image's area uniform in ``scale`` and a width over height log-uniform in ``ratio`` are drawn up to
    ten times until the window fits; the image itself if none does. The position is uniform. Sides and corners are not
    rounded to pixels. No draw waits for the device.

    Args: rows: N. size: (H, W). scale: within (0, 1]. ratio: above 0. generator: on the device.
    Returns: (N, 4) float32 (top, left, height, width), inside the image.
    Source: Soft Augmentation B.3 (the standard crop); scale and ratio: B.4.
    """
    if not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(f"random_boxes: scale is {scale}, want 0 < low <= high <= 1")
    if not 0 < ratio[0] <= ratio[1]:
        raise ValueError(f"random_boxes: ratio is {ratio}, want 0 < low <= high")
    height, width = size
    draws = torch.rand(2, rows, TRIES, device=device, generator=generator)
    area = (scale[0] + (scale[1] - scale[0]) * draws[0]) * (height * width)
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = (low + (high - low) * draws[1]).exp()
    heights, widths = (area / aspect).sqrt(), (area * aspect).sqrt()
    fits = (heights <= height) & (widths <= width)
    first, any_fits = fits.to(torch.uint8).argmax(1, keepdim=True), fits.any(1)
    h, w = (torch.where(any_fits, drawn.gather(1, first).squeeze(1), side)
            for drawn, side in ((heights, float(height)), (widths, float(width))))
    top, left = torch.rand(2, rows, device=device, generator=generator)
    return torch.stack([top * (height - h), left * (width - w), h, w], 1)


def _factors(rows: int, strength: float, device: torch.device, generator: Generator | None) -> Tensor:
    return 1 + strength * (2 * torch.rand(rows, 1, 1, 1, device=device, generator=generator) - 1)


def _grey(x: Tensor) -> Tensor:
    """(N, C, H, W) to (N, 1, H, W)."""
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    red, green, blue = (weight * x[:, i:i + 1] for i, weight in enumerate(GREY))
    return red + green + blue


def colour_jitter(x: Tensor, strength: float, generator: Generator | None = None) -> Tensor:
    """Brightness, contrast and saturation by factors uniform in 1 +- strength, for 4 of 5 images; 1 of 5 colour images
    becomes grey. SimSiam's recipe in this fixed order and without its small turn of the hue.

    Args: x: (N, C, H, W) float32 in [0, 255]; saturation and grey only for C = 3. Returns: like x, in [0, 255].
    """
    rows, device = x.shape[0], x.device
    changed = (x * _factors(rows, strength, device, generator)).clamp(0, 255)
    mean = _grey(changed).mean((1, 2, 3), keepdim=True)
    changed = (mean + (changed - mean) * _factors(rows, strength, device, generator)).clamp(0, 255)
    if x.shape[1] == 3:
        grey = _grey(changed)
        changed = (grey + (changed - grey) * _factors(rows, strength, device, generator)).clamp(0, 255)
    x = torch.where(torch.rand(rows, 1, 1, 1, device=device, generator=generator) < 0.8, changed, x)
    if x.shape[1] == 3:
        x = torch.where(torch.rand(rows, 1, 1, 1, device=device, generator=generator) < 0.2, _grey(x), x)
    return x


def pair_of_views(images: Tensor, scale: tuple[float, float] = (0.2, 1.0), jitter: float = 0.4, flip: bool = True,
                  generator: Generator | None = None) -> Pair:
    """Random resized crop back to H x W, flip and colour jitter, drawn twice for every image.

    Args:
        images: (N, C, H, W) uint8.
        scale: share of the area, see `random_boxes`.
        jitter: strength of `colour_jitter`; 0 leaves colours alone.
        flip: mirror half of the views.
        generator: on the images' device; None is torch's own.
    Source: SimSiam Appendix A and D; crops: Soft Augmentation B.4.
    """
    n, _, height, width = images.shape
    x = images.to(torch.float32)
    views, boxes = [], []
    for _ in range(2):
        box = random_boxes(n, (height, width), scale, device=images.device, generator=generator)
        view = functional.resized_crop(x, box, (height, width))
        if flip:
            turned = torch.rand(n, 1, 1, 1, device=images.device, generator=generator) < 0.5
            view = torch.where(turned, view.flip(3), view)
        if jitter > 0:
            view = colour_jitter(view, jitter, generator)
        views.append(view)
        boxes.append(box)
    return Pair(views[0], views[1], torch.stack(boxes, 1), pair_iou(*boxes))
