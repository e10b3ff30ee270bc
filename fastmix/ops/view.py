"""From the loader's bytes to a mixed, normalised batch in one pass: `View`, what `blend`, `paste` and `patch_mix` read
each source through.

An image m of bytes b is seen as

    v[m, c, i, j] = (crop(flip(b))[m, c, i, j] / 255 - mean[c]) / std[c]

and kernels compute it as ``scale[c] * byte + offset[c]``, scale = 1 / (255 std), offset = -mean / std, on the mixed
byte: the mixture is linear, so it is normalised once and not per source.
"""

# bytes: N*C*H*W read (once a source) + N*C*H*W*s written; flops: 2 an element, and 2 a source where several are summed

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from ..reference import functional as reference
from ..reference._common import is_channels_last
from . import checks as check
from . import random
from .dispatch import select
from .enums import FLOAT_TYPES
from .operator import Operator
from .planes import OUTSIDE, check_mask, gathered, is_clip, mask_fill, on_frames

FORMATS = (torch.preserve_format, torch.contiguous_format, torch.channels_last)


class View(NamedTuple):
    """How each image of a uint8 batch is read: flipped, then cropped, then normalised.

        v[m, c, i, j] = (byte / 255 - mean[c]) / std[c]

    where byte is pixel (i + shift[m, 0], j + shift[m, 1]) of channel c of image m, mirrored left to right first where
    flip[m]; outside the image it is byte 0, so padding is ``-mean / std``. Flip and shift belong to the source image
    m, so an image looks the same in every mixture of the batch that shows it.

    Fields:
        mean, std: (C,) float32, of images scaled to [0, 1].
        flip: (N,) bool; None flips none.
        shift: (N, 2) int64 or int32, rows and columns, of any size; None shifts none.
        out_dtype: float32, bfloat16, float16 or float64: of the images that come out. Arithmetic is float32 (float64
            for float64), rounded once.
        memory_format: of the images that come out: torch.contiguous_format, torch.channels_last, or
            torch.preserve_format for the batch's own (channels_last bytes stay so, all others become contiguous).

    Tensors lie on the device of the images. Bytes have no gradient, and none flows to mean or std.

        view = fastmix.View.draw(x, mean, std, pad=4)                   # x (N, C, H, W) uint8
        mixed, target = fastmix.CutMix()(x, y, view=view)               # one pass
        images = view.apply(x)                                          # the view alone

    A mixer that needs saliency takes the gradient at ``view.apply(x)``; with the same view it then mixes the bytes.
    """

    mean: Tensor
    std: Tensor
    flip: Tensor | None = None
    shift: Tensor | None = None
    out_dtype: torch.dtype = torch.float32
    memory_format: torch.memory_format = torch.preserve_format

    @classmethod
    def draw(cls, x: Tensor, mean: Tensor, std: Tensor, *, flip: float = 0.5, pad: int = 0,
             out_dtype: torch.dtype = torch.float32, memory_format: torch.memory_format = torch.preserve_format,
             generator: Generator | None = None) -> View:
        """A random flip and a random crop of every image, drawn on its device.

        Args:
            x: the batch; gives N and the device.
            mean, std, out_dtype, memory_format: as the fields.
            flip: probability of the mirror image; 0 draws none.
            pad: pixels on every side that a crop of the original size may reach into: shifts are uniform over
                [-pad, pad] per axis; 0 draws none.
            generator: on x's device; None is torch's own (torch.compile needs None). See `fastmix.ops.random`.
        """
        check.tensor("View.draw", "x", x)
        if x.ndim == 0:
            raise ValueError("View.draw: x has shape (), want (N, C, H, W)")
        check.generator("View.draw", "generator", generator)
        pad, flip = check.at_least("View.draw", "pad", pad, 0), check.share("View.draw", "flip", flip)
        n, device = x.shape[0], x.device
        shift = random.integers(-pad, pad + 1, (n, 2), device, generator) if pad else None
        flips = random.uniform((n,), device, generator) < flip if flip else None
        return cls(mean, std, flips, shift, out_dtype, memory_format)

    def apply(self, x: Tensor) -> Tensor:
        """The view alone: x (N, C, H, W) uint8 -> images of out_dtype. Of clips (N, C, T, H, W) every frame alike.

        Raises: ValueError for shapes and devices, TypeError for dtypes.
        """
        if is_clip(x):
            return on_frames(view_of_frames("View.apply", self, x).apply, x)
        check_view("View.apply", x, self)
        backend = select("view", x)
        return read_through(backend, "view", x, (), self)

    def apply_mask(self, x: Tensor, fill: int | None = None) -> Tensor:
        """A label map or mask flipped and cropped as the images are.

        Args:
            x: (N, ..., H, W) int64, int32, uint8 or bool.
            fill: what lies outside; None: -100, the ignored label, or 0 for uint8 and bool.
        Raises: ValueError for shapes and devices, TypeError for dtypes.
        """
        op = "View.apply_mask"
        check.tensor(op, "x", x)
        check_mask(op, x)
        n, (height, width) = x.shape[0], x.shape[-2:]
        _check_moves(op, x, self)
        check.same_device(op, x=x, **{"view.flip": self.flip, "view.shift": self.shift})
        rows = torch.arange(height, device=x.device).expand(n, -1)
        columns = torch.arange(width, device=x.device).expand(n, -1)
        if self.shift is not None:
            shift = self.shift.to(torch.int64)
            rows, columns = rows + shift[:, :1], columns + shift[:, 1:]
        if self.flip is not None:
            columns = torch.where(self.flip.unsqueeze(1), width - 1 - columns, columns)
        return gathered(x, rows, columns, OUTSIDE[x.dtype] if fill is None else mask_fill(op, "fill", fill, x))

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> View:
        """The same view on another device."""
        return View(*(field.to(device, non_blocking=non_blocking) if isinstance(field, Tensor) else field
                      for field in self))


def check_view(op: str, x: Tensor, view: View) -> None:
    """x is a batch of bytes that view fits."""
    if not isinstance(view, View):
        raise TypeError(f"{op}: view is {check.shown(view)}, want a fastmix.View")
    check.ndim(op, "x", x, 4)
    _check_fields(op, x, view)


def _check_fields(op: str, x: Tensor, view: View) -> None:
    """x: images or clips."""
    check.dtype(op, "x", x, torch.uint8)
    for name, value in (("view.mean", view.mean), ("view.std", view.std)):
        check.shape(op, name, value, (x.shape[1],), "(C,)")
        check.dtype(op, name, value, torch.float32)
        check.no_grad_needed(op, name, value)
    _check_moves(op, x, view)
    if not isinstance(view.out_dtype, torch.dtype) or view.out_dtype not in FLOAT_TYPES:
        raise TypeError(f"{op}: view.out_dtype is {check.shown(view.out_dtype)}, want float32, bfloat16, float16 or "
                        "float64")
    if not isinstance(view.memory_format, torch.memory_format) or view.memory_format not in FORMATS:
        raise ValueError(f"{op}: view.memory_format is {check.shown(view.memory_format)}, want one of "
                         f"{', '.join(map(str, FORMATS))}")
    check.same_device(op, x=x, **{"view.mean": view.mean, "view.std": view.std, "view.flip": view.flip,
                                  "view.shift": view.shift})


def _check_moves(op: str, x: Tensor, view: View) -> None:
    n = x.shape[0]
    if view.flip is not None:
        check.shape(op, "view.flip", view.flip, (n,), "(N,)")
        check.dtype(op, "view.flip", view.flip, torch.bool)
    if view.shift is not None:
        check.shape(op, "view.shift", view.shift, (n, 2), "(N, 2)")
        check.dtype(op, "view.shift", view.shift, torch.int64, torch.int32)


def view_of_frames(op: str, view: View | None, x: Tensor) -> Any:
    """The view of a clip's planes (N, C * T, H, W) for that of the clip (N, C, T, H, W)."""
    if not isinstance(view, View):
        return view
    _check_fields(op, x, view)
    if view.memory_format == torch.channels_last:
        raise ValueError(f"{op}: view.memory_format is torch.channels_last, want contiguous_format or preserve_format "
                         "for clips (N, C, T, H, W)")
    frames = x.shape[2]
    return view._replace(mean=view.mean.repeat_interleave(frames), std=view.std.repeat_interleave(frames),
                         memory_format=torch.contiguous_format)


def _fake(x: Tensor, *args: Any) -> Tensor:
    torch._check(x.ndim == 4 and x.dtype == torch.uint8)
    dtype, channels_last = args[-2:]
    return torch.empty(x.shape, dtype=FLOAT_TYPES[dtype], device=x.device,
                       memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _fake_patch_mix(x: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    return _fake(x, *args), x.new_empty((x.shape[0], 2), dtype=torch.float32)


OPERATORS = {name: Operator(name, fake) for name, fake in (
    ("view", _fake), ("view_blend", _fake), ("view_paste", _fake), ("view_patch_mix", _fake_patch_mix))}


def read_through(backend: str, name: str, x: Tensor, args: tuple[Tensor, ...], view: View) -> Any:
    """The operator ``name`` of `OPERATORS` on x read through the view; arguments are checked already."""
    channels_last = view.memory_format == torch.channels_last or (
        view.memory_format == torch.preserve_format and is_channels_last(x))
    args = (*args, view.mean, view.std, view.flip)
    if backend == "reference":
        return getattr(reference, name)(x, *args, view.shift, view.out_dtype, channels_last)
    shift = None if view.shift is None else view.shift.to(torch.int64)
    return OPERATORS[name](backend, x, *args, shift, FLOAT_TYPES.index(view.out_dtype), channels_last)
