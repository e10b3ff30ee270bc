"""What a mixer has drawn, before it touches an image: NamedTuples of device tensors.

Drawing is split from applying. A plan goes through ``torch.compile`` and CUDA graphs (a NamedTuple is a pytree), can be
pickled, and gives the same images as often as it is applied. Every plan has

    ``apply(x) -> mixed``       the images, like x; with ``view=`` x is uint8 and read through a `fastmix.View`;
    ``target(y) -> SoftTarget`` the labels; y is (N,) int64 or the SoftTarget of an earlier mixture;
    ``mix(x, y)``               both;
    ``to(device)``              the same plan elsewhere.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from .. import functional
from ..ops import checks as check
from ..ops.view import View
from ..targets import SoftTarget

P = TypeVar("P", bound=tuple[object, ...])  # a plan


def as_target(op: str, y: Tensor | SoftTarget, rows: int) -> SoftTarget:
    """y as a SoftTarget of ``rows`` rows; ValueError or TypeError naming ``op`` otherwise."""
    if isinstance(y, SoftTarget):
        check.ndim(op, "y.index", y.index, 2)
        check.shape(op, "y.weight", y.weight, y.index.shape, "(N, K) like y.index")
        count = y.index.shape[0]
    else:
        check.tensor(op, "y", y)
        if y.ndim != 1:
            raise ValueError(f"{op}: y has shape {tuple(y.shape)}, want labels (N,) or a SoftTarget")
        check.dtype(op, "y", y, torch.int64)
        count = y.shape[0]
    if count != rows:
        raise ValueError(f"{op}: y has {count} rows, want {rows} like the plan")
    return y if isinstance(y, SoftTarget) else SoftTarget.from_labels(y)


def mix_targets(op: str, index: Tensor, weight: Tensor, y: Tensor | SoftTarget) -> SoftTarget:
    """``t[n] = sum_k weight[n, k] t_y[index[n, k]]``, still sparse: a mixture of mixtures has K * K' entries a row.

    Args: index, weight: (N, K) int64 and float32. y: (N,) int64 or a SoftTarget of N rows.
    Source: K-image mixing, the label l_c of Eq. 6; R-Mix Eq. 7.
    """
    if isinstance(y, Tensor) and y.ndim == 1 and y.shape[0] == index.shape[0] and y.dtype == torch.int64:
        check.same_device(op, plan=index, y=y)
        return SoftTarget(y[index], weight)
    y = as_target(op, y, index.shape[0])
    check.same_device(op, plan=index, y=y.index)
    base = None if y.base is None else (weight * y.base[index]).sum(1)
    return SoftTarget(y.index[index].flatten(1), (weight.unsqueeze(2) * y.weight[index]).flatten(1), base)


def _moved(plan: P, device: torch.device | str | int, non_blocking: bool) -> P:
    """The same plan with its tensors on another device."""
    fields = (field.to(device, non_blocking=non_blocking) if isinstance(field, Tensor) else field for field in plan)
    return type(plan)(*fields)  # type: ignore[arg-type]  # a NamedTuple takes its fields


def _seen(x: Tensor, view: View | None) -> Tensor:
    """The images: x, or what a view makes of its bytes."""
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

    def target(self, y: Tensor | SoftTarget) -> SoftTarget:
        return mix_targets("BlendPlan.target", self.index, self.weight, y)

    def mix(self, x: Tensor, y: Tensor | SoftTarget, view: View | None = None) -> tuple[Tensor, SoftTarget]:
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

    def target(self, y: Tensor | SoftTarget) -> SoftTarget:
        return mix_targets("PastePlan.target", self.index, self.weight, y)

    def mix(self, x: Tensor, y: Tensor | SoftTarget, view: View | None = None) -> tuple[Tensor, SoftTarget]:
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
        return self._patch_mix(self.mask.unsqueeze(1).to(torch.float32))[1]

    def apply(self, x: Tensor, view: View | None = None) -> Tensor:
        """x (N, C, H, W) -> like x; h divides H and w divides W. See `functional.patch_mix`."""
        return self._patch_mix(x, view)[0]

    def target(self, y: Tensor | SoftTarget) -> SoftTarget:
        return mix_targets("PatchPlan.target", self.index, self.weight, y)

    def mix(self, x: Tensor, y: Tensor | SoftTarget, view: View | None = None) -> tuple[Tensor, SoftTarget]:
        """``(apply(x, view), target(y))`` in one call of the operator."""
        mixed, weight = self._patch_mix(x, view)
        return mixed, mix_targets("PatchPlan.mix", self.index, weight, y)

    def _patch_mix(self, x: Tensor, view: View | None = None) -> tuple[Tensor, Tensor]:
        return functional.patch_mix(x, self.index[:, 1], self.mask, self.lam, view=view)

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> PatchPlan:
        """The same plan on another device."""
        return _moved(self, device, non_blocking)


class CutoutPlan(NamedTuple):
    """Boxes filled with zeros (Cutout).

    Fields:
        boxes: (N, 1, 4) int32 (top, left, height, width), inside the image.
    """

    boxes: Tensor

    def apply(self, x: Tensor, view: View | None = None) -> Tensor:
        """x (N, C, H, W) -> like x, pixels outside the boxes bit for bit. A view is a pass of its own here."""
        op = "CutoutPlan.apply"
        x = _seen(x, view)
        check.images(op, "x", x)
        check.shape(op, "plan.boxes", self.boxes, (x.shape[0], 1, 4), "(N, 1, 4)")
        check.same_device(op, x=x, boxes=self.boxes)
        top, left, height, width = self.boxes.view(-1, 4, 1, 1, 1).unbind(1)
        rows = torch.arange(x.shape[2], device=x.device).view(-1, 1)
        columns = torch.arange(x.shape[3], device=x.device)
        covered = ((rows >= top) & (rows < top + height)) & ((columns >= left) & (columns < left + width))
        return torch.where(covered, 0.0, x)

    def target(self, y: Tensor | SoftTarget) -> SoftTarget:
        """The labels unchanged."""
        return as_target("CutoutPlan.target", y, self.boxes.shape[0])

    def mix(self, x: Tensor, y: Tensor | SoftTarget, view: View | None = None) -> tuple[Tensor, SoftTarget]:
        """``(apply(x, view), target(y))``."""
        return self.apply(x, view), self.target(y)

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> CutoutPlan:
        """The same plan on another device."""
        return _moved(self, device, non_blocking)


def _softened(op: str, confidence: Tensor, base: Tensor, y: Tensor | SoftTarget) -> SoftTarget:
    """Class y gets ``confidence``, every other class ``base``; an earlier mixture is softened class by class.

    With rows t that sum to 1, ``(p - base) t + base``: for labels that is `SoftTarget.from_confidence`. Source: Soft
    Augmentation Eq. 4.
    """
    y = as_target(op, y, confidence.shape[0])
    check.same_device(op, plan=confidence, y=y.index)
    kept = confidence - base
    return SoftTarget(y.index, kept.unsqueeze(1) * y.weight, base if y.base is None else kept * y.base + base)


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

    def apply(self, x: Tensor, view: View | None = None) -> Tensor:
        """x (N, C, H, W) -> like x. See `functional.crop`. A view is a pass of its own here."""
        return functional.crop(_seen(x, view), self.shift, fill=self.fill)

    def target(self, y: Tensor | SoftTarget) -> SoftTarget:
        """Labels, or an earlier mixture, softened to the confidence."""
        return _softened("CropPlan.target", self.confidence, self.base, y)

    def mix(self, x: Tensor, y: Tensor | SoftTarget, view: View | None = None) -> tuple[Tensor, SoftTarget]:
        """``(apply(x, view), target(y))``."""
        return self.apply(x, view), self.target(y)

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> CropPlan:
        """The same plan on another device."""
        return _moved(self, device, non_blocking)


class ResizedCropPlan(NamedTuple):
    """Windows of images, resized (SoftResizedCrop).

    Fields:
        boxes: (N, 4) float32 (top, left, height, width) in pixels; may leave the image.
        confidence, base, fill: as in `CropPlan`.
        size: (height, width) of the output.
    Source: Soft Augmentation B.3.
    """

    boxes: Tensor
    confidence: Tensor
    base: Tensor
    fill: float | Tensor
    size: tuple[int, int]

    def apply(self, x: Tensor, view: View | None = None) -> Tensor:
        """x (N, C, H, W) -> (N, C, *size). See `functional.resized_crop`. A view is a pass of its own here."""
        return functional.resized_crop(_seen(x, view), self.boxes, self.size, fill=self.fill)

    def target(self, y: Tensor | SoftTarget) -> SoftTarget:
        """Labels, or an earlier mixture, softened to the confidence."""
        return _softened("ResizedCropPlan.target", self.confidence, self.base, y)

    def mix(self, x: Tensor, y: Tensor | SoftTarget, view: View | None = None) -> tuple[Tensor, SoftTarget]:
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
        confidence, base: as in `CropPlan`.
    Source: Soft Augmentation Table 6.
    """

    noise: Tensor
    amount: Tensor
    confidence: Tensor
    base: Tensor

    def apply(self, x: Tensor, view: View | None = None) -> Tensor:
        """x (N, C, H, W) -> like x. A view is a pass of its own here."""
        x = _seen(x, view)
        check.images("NoisePlan.apply", "x", x)
        check.shape("NoisePlan.apply", "plan.noise", self.noise, x.shape, "like x")
        check.same_device("NoisePlan.apply", x=x, noise=self.noise)
        return torch.addcmul(x, self.noise.to(x.dtype), self.amount.to(x.dtype).view(-1, 1, 1, 1))

    def target(self, y: Tensor | SoftTarget) -> SoftTarget:
        """Labels, or an earlier mixture, softened to the confidence."""
        return _softened("NoisePlan.target", self.confidence, self.base, y)

    def mix(self, x: Tensor, y: Tensor | SoftTarget, view: View | None = None) -> tuple[Tensor, SoftTarget]:
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

    def target(self, y: Tensor | SoftTarget) -> SoftTarget:
        first, *others = self.plans
        target = first.target(y)
        for plan in others:
            target = plan.target(target)
        return target

    def mix(self, x: Tensor, y: Tensor | SoftTarget, view: View | None = None) -> tuple[Tensor, SoftTarget]:
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
