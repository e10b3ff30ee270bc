"""Image files as tensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..console import CommandError, require


def centre_square(size: tuple[int, int]) -> tuple[int, int, int]:
    """Left, top and side of the square in the middle of a picture of (width, height)."""
    w, h = size
    side = min(w, h)
    return (w - side) // 2, (h - side) // 2, side


def read_image(path: Path, size: int) -> Tensor:
    """(3, size, size) uint8: the shorter side resized (bilinear), the centre cut out."""
    image = require("PIL.Image", "pillow", "--data folder")
    try:
        with image.open(path) as file:
            picture = file.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise CommandError(f"{path} cannot be read as an image ({error})") from None
    left, top, side = centre_square(picture.size)
    # Not resize(box=...): its filter would take in pixels outside the box.
    picture = picture.crop((left, top, left + side, top + side)).resize((size, size), image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()
