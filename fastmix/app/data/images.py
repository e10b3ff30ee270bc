"""Image files as tensors: whatever a file holds becomes 8-bit RGB, or an error that names the file.

- Whole numbers of more than 8 bits and floats are grey values of their type: the largest number of the type, or 1.0, is
  white. Floats outside of [0, 1] and negative numbers are refused.
- Pixels that are transparent are laid over white, `BACKGROUND`.
- The picture is turned as its EXIF orientation says. Of several pictures in a file the first is read.
"""

from __future__ import annotations

import functools
import os
import warnings
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..console import CommandError, first_line, require
from ..names import printable

BACKGROUND = (255, 255, 255)
# What turns a picture upright, by its EXIF orientation.
_UPRIGHT = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270",
            7: "TRANSVERSE", 8: "ROTATE_90"}
_WIDE = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
_ROUNDING = 1e-6  # by which floats may leave [0, 1]
# TIFF tags
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT, _ORIENTATION = 258, 262, 339, 274
_SIGNED, _WHITE_IS_ZERO = 2, 0


class Refused(Exception):
    """What an image holds cannot be read in one way alone; the message follows the file's name."""


# By Pillow's names. Others that it knows are no photographs, and some run programs: of PostScript it calls Ghostscript.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")


@functools.cache  # looking for a module takes longer than opening an image
def _pillow() -> ModuleType:
    image = require("PIL.Image", "pillow", "--data folder")
    image.init()
    return image


@functools.cache
def _known(formats: tuple[str, ...]) -> tuple[str, ...]:
    """Those that this Pillow was built with."""
    return tuple(each for each in formats if each in _pillow().OPEN)


def opened(path: str | os.PathLike[str], formats: tuple[str, ...] = FORMATS) -> Any:
    """An image file whose header has been read, as a context, whatever its name says it is."""
    return pillow().open(path, formats=_known(formats))


def pillow() -> ModuleType:
    """The module PIL.Image. Its warnings (palettes, damaged EXIF, large images) are not the user's concern."""
    warnings.filterwarnings("ignore", module=r"PIL\.")
    return _pillow()


def centre_square(size: tuple[int, int]) -> tuple[int, int, int]:
    """Left, top and side of the square in the middle of a picture of (width, height)."""
    w, h = size
    side = min(w, h)
    return (w - side) // 2, (h - side) // 2, side


def _orientation(file: Any) -> int:
    try:
        return int(file.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF data are no reason to lose the picture
        return 1


def upright_size(file: Any) -> tuple[int, int]:
    """(width, height) of an opened image as it is read, from its header."""
    width, height = file.size
    # Pillow reads TIFF files upright, and has turned their size already.
    turned = file.format != "TIFF" and _orientation(file) in (5, 6, 7, 8)
    return (height, width) if turned else (width, height)


def _signed(file: Any) -> bool:
    return file.format == "TIFF" and file.tag_v2.get(_SAMPLE_FORMAT, (1,))[0] == _SIGNED


def _largest(file: Any) -> tuple[int, int]:
    """The largest value that the file's type holds, and its bits."""
    if file.format != "TIFF":  # PNG and PGM, of 16 bits
        return 2**16 - 1, 16
    bits = file.tag_v2.get(_BITS, (16,))[0]
    return 2 ** (bits - _signed(file)) - 1, bits


def by_range(file: Any) -> bool:
    """Whether the values of an opened image are scaled by the range of their type: all but unsigned bytes."""
    return file.mode in _WIDE or (file.mode == "L" and _signed(file))


def _grey(file: Any) -> np.ndarray:
    """(H, W) uint8 of an image `by_range`. Refused if its values are not in the range of their type."""
    values = np.asarray(file)
    inverted = file.format == "TIFF" and file.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    if file.mode == "F":
        low, high = float(values.min()), float(values.max())
        if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):  # also NaN
            raise Refused(f"holds floats from {low:g} to {high:g}, want 0 to 1; scale them, or store 8 or 16 bits")
        share = values.astype(np.float64)
    else:
        largest, bits = _largest(file)
        if largest == 2**32 - 1 or bits == 8:  # Pillow has none of these: the same bits, the sign another
            values = values.view(np.uint32 if bits == 32 else np.int8)
        low, high = int(values.min()), int(values.max())
        if low < 0:
            raise Refused(f"holds whole numbers from {low} to {high} with a sign, want 0 to {largest}; shift and scale "
                          "them, or store 8 or 16 bits")
        if bits == 32 and 0 < high < largest / 510:  # no pixel would be other than black
            raise Refused(f"holds 32-bit numbers up to {high}, want up to {largest}; scale them, or store 8 or 16 bits")
        share = values / largest
    grey = np.rint(255 * share.clip(0, 1)).astype(np.uint8)
    return 255 - grey if inverted else grey


def transparent(file: Any) -> bool:
    """Whether an opened image may have transparent pixels."""
    return (file.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in file.info
            or (file.mode == "P" and file.palette is not None and file.palette.mode.endswith("A")))


def rgb(file: Any) -> Any:
    """The whole picture of an opened image, upright, in mode RGB. Refused for values that have no one reading."""
    image = _pillow()
    file.load()
    turn = _UPRIGHT.get(_orientation(file))  # after load(), which turns a TIFF
    if by_range(file):
        picture = image.fromarray(_grey(file))
        if isinstance(file.info.get("transparency"), int):
            picture.putalpha(image.fromarray(255 * (np.asarray(file) != file.info["transparency"]).astype(np.uint8)))
    elif file.mode in ("La", "RGBa"):
        picture = file.convert("LA" if file.mode == "La" else "RGBA")
    else:
        picture = file
    if transparent(picture):
        picture = picture.convert("RGBA")
        picture = image.alpha_composite(image.new("RGBA", picture.size, (*BACKGROUND, 255)), picture)
    picture = picture.convert("RGB")
    return picture if turn is None else picture.transpose(getattr(image.Transpose, turn))


def unreadable(path: str | os.PathLike[str], error: Exception) -> CommandError:
    """What a failure to read an image comes to, on one line with the file's name."""
    image, name = pillow(), printable(path)
    if isinstance(error, CommandError):
        return error
    if isinstance(error, Refused):
        return CommandError(f"{name} {error}")
    if isinstance(error, image.DecompressionBombError):
        reason = "more pixels than Pillow reads, store it smaller"
    elif isinstance(error, image.UnidentifiedImageError):
        empty = os.path.getsize(path) == 0
        reason = "the file is empty" if empty else "of no kind that Pillow knows"
    elif isinstance(error, MemoryError):
        reason = "not enough memory"
    elif isinstance(error, OSError) and error.strerror:
        reason = error.strerror
    else:
        reason = printable(first_line(error))
    return CommandError(f"{name} cannot be read as an image ({reason})")


def read_image(path: str | os.PathLike[str], size: int) -> Tensor:
    """(3, size, size) uint8: the shorter side resized (bilinear), the centre cut out. CommandError naming the file."""
    image = pillow()
    try:
        with opened(path) as file:
            picture = rgb(file)
        left, top, side = centre_square(picture.size)
        # Not resize(box=...): its filter would take in pixels outside the box.
        picture = picture.crop((left, top, left + side, top + side)).resize((size, size), image.Resampling.BILINEAR)
    except Exception as error:  # damaged files make Pillow raise almost anything
        raise unreadable(path, error) from None
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()
