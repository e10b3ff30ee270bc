"""What a mixer has drawn, before it touches an image: NamedTuples of device tensors.

Drawing is split from applying. A plan goes through ``torch.compile`` and CUDA graphs (a NamedTuple is a pytree), can be
pickled, and gives the same images as often as it is applied. Every plan has

    ``apply(x) -> mixed``       the images, like x; with ``view=`` x is uint8 and read through a `fastmix.View`. Clips
                                (N, C, T, H, W), every frame alike. A label map or mask of whole numbers (N, ..., H, W)
                                is moved as the images are, where that has a meaning;
    ``target(y) -> Target``     the labels;
    ``mix(x, y)``               both;
    ``to(device)``              the same plan elsewhere.

Labels y are (N,) int64, the `SoftTarget` of an earlier mixture, or dense: a float matrix (N, J), one-hot, multi-hot or
soft. Dense labels stay dense, all others give a SoftTarget. Of pixels: label maps (N, ..., H, W) int64 of the images'
size give a SoftTarget per pixel, dense maps (N, J, H, W) stay dense.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from .. import functional
from ..ops import checks as check
from ..ops.planes import OUTSIDE, is_mask, mask_fill
from ..ops.view import View
from .labels import Labels, Target, as_target, is_map, mix_targets, moved_target, per_row, rows_of, softened

P = TypeVar("P", bound=tuple[object, ...])  # a plan


def _moved(plan: P, device: torch.device | str | int, non_blocking: bool) -> P:
    """The same plan with its tensors on another device."""
    fields = (field.to(device, non_blocking=non_blocking) if isinstance(field, Tensor) else field for field in plan)
    return type(plan)(*fields)  # type: ignore[arg-type]  # a NamedTuple takes its fields


def _seen(op: str, x: Tensor, view: View | None) -> Tensor:
    """The images: x, or what a view makes of its bytes."""
    if view is not None and not isinstance(view, View):
        raise TypeError(f"{op}: view is {check.shown(view)}, want a fastmix.View")
    return x if view is None else view.apply(x)


class BlendPlan(NamedTuple):
    """Weighted sums of images (Mixup, DMixup).

    Fields:
        index: (N, K) int64 rows of the batch; column 0 is the image itself.
        weight: (N, K) float32 shares in pixels and label; rows sum to 1.
    Source: K-image mixing Eq. 2.
    """

    index: Tensor  # type: ignore[assignment]  # hides tuple.index
    weight: Tensor

    def apply(self, x: Tensor, view: View | None = None) -> Tensor:
        """x (N, ...) -> like x. See `functional.blend`."""
        return functional.blend(x, self.index, self.weight, view=view)

    def target(self, y: Labels) -> Target:
        return mix_targets("BlendPlan.target", self.index, self.weight, y)

    def mix(self, x: Tensor, y: Labels, view: View | None = None) -> tuple[Tensor, Target]:
        """``(apply(x, view), target(y))``."""
        return self.apply(x, view), self.target(y)

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> BlendPlan:
        """The same plan on another device."""
        return _moved(self, device, non_blocking)


class PastePlan(NamedTuple):
    """Nested boxes of other images pasted onto each image (CutMix, DCutMix).

    Fields:
        index: (N, K) int64 rows of the batch; column 0 is the image itself.
        boxes: (N, K-1, 4) int32 (top, left, height, width), each inside the one before, inside the image.
        weight: (N, K) float32 visible shares; rows sum to exactly 1.
    Source: K-image mixing Eq. 4-5.
    """

    index: Tensor  # type: ignore[assignment]  # hides tuple.index
    boxes: Tensor
    weight: Tensor

    def apply(self, x: Tensor, view: View | None = None) -> Tensor:
        """x (N, C, H, W) -> like x. See `functional.paste`."""
        return functional.paste(x, self.index, self.boxes, view=view)

    def target(self, y: Labels) -> Target:
        if is_map("PastePlan.target", y):
            return moved_target("PastePlan.target", self.apply, y)
        return mix_targets("PastePlan.target", self.index, self.weight, y)

    def mix(self, x: Tensor, y: Labels, view: View | None = None) -> tuple[Tensor, Target]:
        """``(apply(x, view), target(y))``."""
        return self.apply(x, view), self.target(y)

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> PastePlan:
        """The same plan on another device."""
        return _moved(self, device, non_blocking)


class PatchPlan(NamedTuple):
    """Two images mixed cell by cell after their saliency masks (R-Mix).

    Fields:
        index: (N, 2) int64, the image itself and its partner.
        mask: (N, h, w) bool, True where the image is salient.
        lam: 0-d float32, the own share where both masks agree.
    Source: R-Mix Eq. 5-7.
    """

    index: Tensor  # type: ignore[assignment]  # hides tuple.index
    mask: Tensor
    lam: Tensor

    @property
    def weight(self) -> Tensor:
        """(N, 2) float32: the shares of the realised cells."""
        # One pixel a cell, so that the label comes from the operator that mixes the images.
        check.ndim("PatchPlan.weight", "plan.mask", self.mask, 3)
        return self._patch_mix(self.mask.unsqueeze(1).to(torch.float32))[1]

    def apply(self, x: Tensor, view: View | None = None) -> Tensor:
        """x (N, C, H, W) -> like x; h divides H and w divides W. See `functional.patch_mix`."""
        return self._patch_mix(x, view)[0]

    def target(self, y: Labels) -> Target:
        if is_map("PatchPlan.target", y):
            if isinstance(y, Tensor) and y.is_floating_point():
                return self.apply(y)
            size = y.shape[-2:] if isinstance(y, Tensor) else y.index.shape[-3:-1]
            return mix_targets("PatchPlan.target", self.index, self._shares(*size), y)
        return mix_targets("PatchPlan.target", self.index, self.weight, y)

    def _shares(self, height: int, width: int) -> Tensor:
        """(N, H, W, 2) float32: the shares of every pixel."""
        op = "PatchPlan.target"
        check.ndim(op, "plan.mask", self.mask, 3)
        n, h, w = self.mask.shape
        check.shape(op, "plan.index", self.index, (n, 2), "(N, 2)")
        check.dtype(op, "plan.index", self.index, torch.int64)
        check.dtype(op, "plan.mask", self.mask, torch.bool)
        check.tensor(op, "plan.lam", self.lam)
        if self.lam.ndim:
            check.shape(op, "plan.lam", self.lam, (n,), "(N,) or 0-d")
        check.same_device(op, **{"plan.index": self.index, "plan.mask": self.mask, "plan.lam": self.lam})
        if h < 1 or w < 1 or height % h or width % w:
            raise ValueError(f"{op}: plan.mask has shape {(n, h, w)}, want (N, h, w) where h divides {height} and w "
                             f"divides {width} of y")
        own, other = self.mask, rows_of(op, self.mask.__getitem__, self.index[:, 1])
        lam = self.lam.expand(own.shape[0]).view(-1, 1, 1)
        share = torch.where(own == other, lam, own.to(torch.float32))
        share = share.repeat_interleave(height // share.shape[1], 1).repeat_interleave(width // share.shape[2], 2)
        return torch.stack([share, 1 - share], -1)

    def mix(self, x: Tensor, y: Labels, view: View | None = None) -> tuple[Tensor, Target]:
        """``(apply(x, view), target(y))`` in one call of the operator."""
        if is_map("PatchPlan.mix", y):
            return self.apply(x, view), self.target(y)
        mixed, weight = self._patch_mix(x, view)
        return mixed, mix_targets("PatchPlan.mix", self.index, weight, y)

    def _patch_mix(self, x: Tensor, view: View | None = None) -> tuple[Tensor, Tensor]:
        check.ndim("PatchPlan", "plan.index", self.index, 2)
        check.shape("PatchPlan", "plan.index", self.index, (self.index.shape[0], 2), "(N, 2)")
        return functional.patch_mix(x, self.index[:, 1], self.mask, self.lam, view=view)

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> PatchPlan:
        """The same plan on another device."""
        return _moved(self, device, non_blocking)


class CutoutPlan(NamedTuple):
    """Boxes filled with zeros (Cutout).

    Fields:
        boxes: (N, 1, 4) int32 (top, left, height, width), inside the image.
    Source: Cutout (DeVries and Taylor 2017); a baseline of K-image mixing Table 1.
    """

    boxes: Tensor

    def apply(self, x: Tensor, view: View | None = None) -> Tensor:
        """x (N, C, H, W) -> like x, pixels outside the boxes bit for bit; of a mask, what is covered is ignored (-100;
        0 for uint8 and bool). A view is a pass of its own here."""
        op = "CutoutPlan.apply"
        x = _seen(op, x, view)
        if is_mask(x):
            value = OUTSIDE[x.dtype]
        else:
            check.tensor(op, "x", x)
            check.dtype(op, "x", x, *check.FLOATS)
            value = 0
        if x.ndim < 3:
            raise ValueError(f"{op}: x has shape {tuple(x.shape)}, want images (N, C, H, W) or masks (N, ..., H, W)")
        check.shape(op, "plan.boxes", self.boxes, (x.shape[0], 1, 4), "(N, 1, 4)")
        check.dtype(op, "plan.boxes", self.boxes, torch.int32)
        check.same_device(op, x=x, boxes=self.boxes)
        top, left, height, width = self.boxes.view(-1, 4, 1, 1).unbind(1)
        rows = torch.arange(x.shape[-2], device=x.device).view(-1, 1)
        columns = torch.arange(x.shape[-1], device=x.device)
        covered = ((rows >= top) & (rows < top + height)) & ((columns >= left) & (columns < left + width))
        covered = covered.view(covered.shape[0], *[1] * (x.ndim - 3), *covered.shape[-2:])
        return torch.where(covered, torch.full((), value, dtype=x.dtype, device=x.device), x)

    def target(self, y: Labels) -> Target:
        """The labels unchanged; of label maps, what is covered is ignored."""
        if is_map("CutoutPlan.target", y):
            return moved_target("CutoutPlan.target", self.apply, y)
        check.ndim("CutoutPlan.target", "plan.boxes", self.boxes, 3)
        return as_target("CutoutPlan.target", y, self.boxes.shape[0])

    def mix(self, x: Tensor, y: Labels, view: View | None = None) -> tuple[Tensor, Target]:
        """``(apply(x, view), target(y))``."""
        return self.apply(x, view), self.target(y)

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> CutoutPlan:
        """The same plan on another device."""
        return _moved(self, device, non_blocking)


def _fill_of(op: str, x: Tensor, fill: float | Tensor, outside: int | None) -> float | Tensor:
    """fill of images; of masks what was asked for, or the ignored label (0 where it has no sign)."""
    if not is_mask(x):
        return fill
    return OUTSIDE[x.dtype] if outside is None else mask_fill(op, "outside", outside, x)


def _ignored(maps: Tensor) -> float:
    """What lies outside of label maps; of dense ones nothing."""
    return OUTSIDE[maps.dtype] if is_mask(maps) else 0.0


class CropPlan(NamedTuple):
    """Windows of images moved by whole pixels (SoftCrop).

    Fields:
        shift: (N, 2) int64 (down, right) in pixels.
        confidence: (N,) float32, what the label's class gets.
        base: (N,) float32, what every other class gets.
        fill: the background: a number, or (N, C) float32.
    Source: Soft Augmentation Sec. 4.1.
    """

    shift: Tensor
    confidence: Tensor
    base: Tensor
    fill: float | Tensor

    def apply(self, x: Tensor, view: View | None = None, outside: int | None = None) -> Tensor:
        """x (N, C, H, W) -> like x. See `functional.crop`. A view is a pass of its own here.

        outside: of masks, what lies outside the image; None: -100, the ignored label (0 for uint8 and bool).
        """
        x = _seen("CropPlan.apply", x, view)
        return functional.crop(x, self.shift, fill=_fill_of("CropPlan.apply", x, self.fill, outside))

    def target(self, y: Labels) -> Target:
        """Labels, or an earlier mixture, softened to the confidence; label maps are cropped first."""
        if is_map("CropPlan.target", y):
            y = moved_target("CropPlan.target", lambda maps: functional.crop(maps, self.shift, fill=_ignored(maps)), y)
        return softened("CropPlan.target", self.confidence, self.base, y)

    def mix(self, x: Tensor, y: Labels, view: View | None = None) -> tuple[Tensor, Target]:
        """``(apply(x, view), target(y))``."""
        return self.apply(x, view), self.target(y)

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> CropPlan:
        """The same plan on another device."""
        return _moved(self, device, non_blocking)


class ResizedCropPlan(NamedTuple):
    """Windows of images, resized (SoftResizedCrop).

    Fields:
        boxes: (N, 4) float32 (top, left, height, width) in pixels; may leave the image.
        confidence: (N,) float32, what the label's class gets.
        base: (N,) float32, what every other class gets.
        fill: the background: a number, or (N, C) float32.
        size: (height, width) of the output.
    Source: Soft Augmentation B.3.
    """

    boxes: Tensor
    confidence: Tensor
    base: Tensor
    fill: float | Tensor
    size: tuple[int, int]

    def apply(self, x: Tensor, view: View | None = None, outside: int | None = None) -> Tensor:
        """x (N, C, H, W) -> (N, C, *size). See `functional.resized_crop`; outside: as in `CropPlan.apply`. A view is a
        pass of its own here."""
        x = _seen("ResizedCropPlan.apply", x, view)
        check.tensor("ResizedCropPlan.apply", "plan.boxes", self.boxes)
        fill = _fill_of("ResizedCropPlan.apply", x, self.fill, outside)
        return functional.resized_crop(x, self.boxes, self.size, fill=fill)

    def target(self, y: Labels) -> Target:
        """Labels, or an earlier mixture, softened to the confidence; label maps are cropped first."""
        if is_map("ResizedCropPlan.target", y):
            y = moved_target("ResizedCropPlan.target", lambda maps: functional.resized_crop(
                maps, self.boxes, self.size, fill=_ignored(maps)), y)
        return softened("ResizedCropPlan.target", self.confidence, self.base, y)

    def mix(self, x: Tensor, y: Labels, view: View | None = None) -> tuple[Tensor, Target]:
        """``(apply(x, view), target(y))``."""
        return self.apply(x, view), self.target(y)

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> ResizedCropPlan:
        """The same plan on another device."""
        return _moved(self, device, non_blocking)


class NoisePlan(NamedTuple):
    """Images with noise added (SoftNoise).

    Fields:
        noise: (N, C, H, W) float32, a standard pattern per image.
        amount: (N,) float32, its factor.
        confidence: (N,) float32, what the label's class gets.
        base: (N,) float32, what every other class gets.
    Source: Soft Augmentation Table 6.
    """

    noise: Tensor
    amount: Tensor
    confidence: Tensor
    base: Tensor

    def apply(self, x: Tensor, view: View | None = None) -> Tensor:
        """x (N, C, H, W) -> like x; a mask stays as it is. A view is a pass of its own here."""
        x = _seen("NoisePlan.apply", x, view)
        if is_mask(x):
            return x
        check.tensor("NoisePlan.apply", "x", x)
        check.dtype("NoisePlan.apply", "x", x, *check.FLOATS)
        check.shape("NoisePlan.apply", "plan.noise", self.noise, x.shape, "like x")
        check.dtype("NoisePlan.apply", "plan.noise", self.noise, *check.FLOATS)
        check.shape("NoisePlan.apply", "plan.amount", self.amount, x.shape[:1], "(N,)")
        check.dtype("NoisePlan.apply", "plan.amount", self.amount, *check.FLOATS)
        check.same_device("NoisePlan.apply", x=x, noise=self.noise, amount=self.amount)
        return torch.addcmul(x, self.noise.to(x.dtype), per_row(self.amount.to(x.dtype), x.ndim))

    def target(self, y: Labels) -> Target:
        """Labels, or an earlier mixture, softened to the confidence."""
        return softened("NoisePlan.target", self.confidence, self.base, y)

    def mix(self, x: Tensor, y: Labels, view: View | None = None) -> tuple[Tensor, Target]:
        """``(apply(x, view), target(y))``."""
        return self.apply(x, view), self.target(y)

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> NoisePlan:
        """The same plan on another device."""
        return _moved(self, device, non_blocking)


class ComposePlan(NamedTuple):
    """Plans applied one after the other.

    Fields:
        plans: their tuple, in order.
    """

    plans: tuple[Plan, ...]

    def apply(self, x: Tensor, view: View | None = None) -> Tensor:
        """The first plan reads x through the view, the others what it made."""
        first, *others = self.plans
        mixed = first.apply(x, view)
        for plan in others:
            mixed = plan.apply(mixed)
        return mixed

    def target(self, y: Labels) -> Target:
        target: Labels
        first, *others = self.plans
        target = first.target(y)
        for plan in others:
            target = plan.target(target)
        return target

    def mix(self, x: Tensor, y: Labels, view: View | None = None) -> tuple[Tensor, Target]:
        """``(apply(x, view), target(y))``."""
        first, *others = self.plans
        mixed, target = first.mix(x, y, view)
        for plan in others:
            mixed, target = plan.mix(mixed, target)
        return mixed, target

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> ComposePlan:
        """The same plan on another device."""
        return ComposePlan(tuple(plan.to(device, non_blocking) for plan in self.plans))


Plan = BlendPlan | PastePlan | PatchPlan | CutoutPlan | CropPlan | ResizedCropPlan | NoisePlan | ComposePlan
