"""Soft Augmentation: the harder an image was cropped or disturbed, the less sure its label.

    augment = fastmix.SoftCrop(num_classes=100)
    x, target, confidence = augment(x, y)
    loss = fastmix.functional.soft_target_kl(model(x), y, confidence)

Every class here is a `Mixer` of single images: it draws a plan on the device, has ``enabled``, ``prob`` and
``generator``, and runs under ``torch.compile(fullgraph=True)`` and in a CUDA graph.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from .. import functional
from ..ops import checks as check
from ..ops.confidence import confidence
from ..ops.plan import plan_crop
from ..targets import SoftTarget
from . import sampling
from .base import Mixer
from .plans import _mix, as_target

RANDOM_FILL = 0.01


# ---------------------------------------------------------------- plans

def _to(self: Any, device: torch.device | str | int, non_blocking: bool = False) -> Any:
    """The same plan on another device."""
    return type(self)(*(f.to(device, non_blocking=non_blocking) if isinstance(f, Tensor) else f for f in self))


def _soften(self: Any, y: Tensor | SoftTarget) -> SoftTarget:
    """Class y gets ``confidence``, every other class ``rest``; an earlier mixture is softened class by class.

    With rows t that sum to 1, ``(p - rest) t + rest``: for labels that is `SoftTarget.from_confidence`. Source: Soft
    Augmentation Eq. 4.
    """
    op = f"{type(self).__name__}.target"
    y = as_target(op, y, self.confidence.shape[0])
    check.same_device(op, plan=self.confidence, y=y.index)
    kept = self.confidence - self.rest
    base = self.rest if y.base is None else kept * y.base + self.rest
    return SoftTarget(y.index, kept.unsqueeze(1) * y.weight, base)


class CropPlan(NamedTuple):
    """Windows of images moved by whole pixels (SoftCrop).

    Fields:
        shift: (N, 2) int64 (down, right) in pixels.
        confidence: (N,) float32, what the label's class gets.
        rest: (N,) float32, what every other class gets.
        fill: the background: a number, or (N, C) float32.
    Source: Soft Augmentation Sec. 4.1.
    """

    shift: Tensor
    confidence: Tensor
    rest: Tensor
    fill: float | Tensor

    def apply(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) -> like x. See `functional.crop`."""
        return functional.crop(x, self.shift, fill=self.fill)

    target = _soften
    mix = _mix
    to = _to


class ResizedCropPlan(NamedTuple):
    """Windows of images, resized (SoftResizedCrop).

    Fields:
        boxes: (N, 4) float32 (top, left, height, width) in pixels; may leave the image.
        confidence, rest, fill: as in `CropPlan`.
        size: (height, width) of the output.
    Source: Soft Augmentation B.3.
    """

    boxes: Tensor
    confidence: Tensor
    rest: Tensor
    fill: float | Tensor
    size: tuple[int, int]

    def apply(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) -> (N, C, *size). See `functional.resized_crop`."""
        return functional.resized_crop(x, self.boxes, self.size, fill=self.fill)

    target = _soften
    mix = _mix
    to = _to


class NoisePlan(NamedTuple):
    """Images with noise added (SoftNoise).

    Fields:
        noise: (N, C, H, W) float32, a standard pattern per image.
        amount: (N,) float32, its factor.
        confidence, rest: as in `CropPlan`.
    Source: Soft Augmentation Table 6.
    """

    noise: Tensor
    amount: Tensor
    confidence: Tensor
    rest: Tensor

    def apply(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) -> like x."""
        check.images("NoisePlan.apply", "x", x)
        check.shape("NoisePlan.apply", "plan.noise", self.noise, x.shape, "like x")
        check.same_device("NoisePlan.apply", x=x, noise=self.noise)
        return torch.addcmul(x, self.noise.to(x.dtype), self.amount.to(x.dtype).view(-1, 1, 1, 1))

    target = _soften
    mix = _mix
    to = _to


# ---------------------------------------------------------------- the augmentations

class SoftAugmentation(Mixer):
    """What the three share: the strength on the device, and the curve from visibility to confidence.

    Attributes:
        sigma: the strength, a number >= 0. It may be set between steps: it lives on the device, where plans read it, so
            a decay over the last epochs (B.1 divides it by 1000) recompiles and rebuilds nothing.

    Args:
        num_classes: J. k: > 0, the power of Eq. 7. chance: the confidence where nothing is visible; None: 1 / J.
        prob: drawn per image. generator: see `Mixer`.
    """

    def __init__(self, num_classes: int, sigma: float, k: float, chance: float | None, *, prob: float,
                 generator: Generator | None) -> None:
        super().__init__(prob=prob, mode="elem", generator=generator)
        check.at_least(self._name, "num_classes", num_classes, 1)
        self._positive(k=k)
        if chance is not None and not 0.0 <= chance <= 1.0:
            raise ValueError(f"{self._name}: chance is {chance}, want a value in [0, 1]")
        self.num_classes, self.k = num_classes, k
        self.chance = 1 / num_classes if chance is None else float(chance)
        # float32: a float64 scalar on the CPU is a symbolic number to dynamo (2.13), which then compiles twice.
        self.register_buffer("_scale", torch.zeros((), dtype=torch.float32), persistent=False)
        self.sigma = sigma

    @property
    def sigma(self) -> float:
        return self._sigma

    @sigma.setter
    def sigma(self, sigma: float) -> None:
        if not 0.0 <= sigma < math.inf:
            raise ValueError(f"{self._name}: sigma is {sigma}, want a finite number >= 0")
        self._sigma = float(sigma)  # for reading back without a sync; plans read the buffer
        self._scale.fill_(self._sigma)

    def forward(self, x: Tensor, y: Tensor | SoftTarget,  # type: ignore[override]
                saliency: Tensor | None = None) -> tuple[Tensor, SoftTarget, Tensor]:
        """Augments a batch.

        Args: x: images (N, C, H, W), any float dtype and memory format. y: (N,) int64 labels, or the SoftTarget of an
            earlier mixture. saliency: ignored.
        Returns: (images, SoftTarget, confidence (N,) float32).
        """
        plan = self.plan(x)
        return (*plan.mix(x, y), plan.confidence)

    def _sigma_buffer(self, device: torch.device) -> Tensor:
        """0-d float32."""
        return self._on_device("_scale", "_sigma", device)

    def _sigma_on(self, device: torch.device) -> Tensor:
        """0-d float64."""
        return self._sigma_buffer(device).to(torch.float64)

    def _confidence(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """(confidence, rest) of visibilities (N,)."""
        p = confidence(v.to(torch.float32), self.k, self.chance)
        return p, (1 - p) / max(self.num_classes - 1, 1)

    def _background(self, x: Tensor, fill: float | str) -> float | Tensor:
        if not isinstance(fill, str):
            return fill
        return RANDOM_FILL * torch.randn(x.shape[:2], device=x.device, generator=self.generator)

    def _fill(self, fill: float | str) -> float | str:
        if isinstance(fill, str):
            check.choice(self._name, "fill", fill, ("random",))
            return fill
        return float(fill)


class SoftCrop(SoftAugmentation):
    """Moves the window on each image; what leaves it is background, and the label is as sure as the rest is visible.

    The shift of an axis is normal with standard deviation ``sigma * max(H, W)``, redrawn while it would leave the image
    (``|t| >= side``), then truncated towards zero; visibility and confidence: `visibility`, `confidence`.

    Args:
        num_classes: J. sigma: 0.3 (the released recipe for CIFAR: 12 of 32 pixels, 0.375). k: 2. chance: None: 1 / J.
        fill: the background in the units of x: a number, or "random": 0.01 times a normal number per image and channel,
            the faint background of the released recipe.
        prob, generator: see `SoftAugmentation`.
    Source: Soft Augmentation Sec. 4.1, Eq. 7, Listing 1.
    """

    def __init__(self, num_classes: int, sigma: float = 0.3, k: float = 2, chance: float | None = None,
                 fill: float | str = 0.0, *, prob: float = 1.0, generator: Generator | None = None) -> None:
        super().__init__(num_classes, sigma, k, chance, prob=prob, generator=generator)
        self.fill = self._fill(fill)

    def _draw(self, x: Tensor, saliency: Tensor | None, active: Tensor) -> CropPlan:
        size, rows = self._images(x), x.shape[0]
        bits = self._bits(x, 1, rows, 2 * rows, 0.0)
        shift, p, rest = plan_crop(bits, self._sigma_buffer(x.device), active, rows, size, self.num_classes, self.k,
                                   self.chance, self.prob)
        return CropPlan(shift, p, rest, self._background(x, self.fill))


class SoftResizedCrop(SoftAugmentation):
    """Cuts a window of random size and place out of each image and resizes it.

    Per axis, with side L of the image and least side Lm: ``d = max(0, z)`` with z normal of deviation
    ``sigma (L - Lm)``, redrawn while ``|z| >= L - Lm``, and the window's side is ``l = L - d``. Its centre lies
    t off the image's centre, t normal of deviation ``sigma (L + l)``, redrawn while the window would miss the image
    (``|t| >= (L + l) / 2``). Visibility is the share of the image that the window shows; the paper defines none.

    Args:
        num_classes: J. size: (height, width) or the side of the output.
        sigma: 0.3. min_size: Lm in pixels, at most the image's sides; None: half of each.
        k, chance, fill, prob, generator: as in `SoftCrop`. Where ``prob`` or ``enabled`` rule it out, the whole image
            is resized.
    Source: Soft Augmentation B.3; confidence: Eq. 7.
    """

    def __init__(self, num_classes: int, size: int | tuple[int, int], sigma: float = 0.3, min_size: int | None = None,
                 k: float = 2, chance: float | None = None, fill: float | str = 0.0, *, prob: float = 1.0,
                 generator: Generator | None = None) -> None:
        super().__init__(num_classes, sigma, k, chance, prob=prob, generator=generator)
        self.size = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        check.at_least(self._name, "size", min(self.size), 1)
        if min_size is not None:
            check.at_least(self._name, "min_size", min_size, 1)
        self.min_size, self.fill = min_size, self._fill(fill)

    def _draw(self, x: Tensor, saliency: Tensor | None, active: Tensor) -> ResizedCropPlan:
        size = self._images(x)
        if self.min_size is not None and self.min_size > min(size):
            raise ValueError(f"{self._name}: min_size is {self.min_size}, want at most {min(size)}, the images' side")
        sigma, rows = self._sigma_on(x.device), x.shape[0]
        sides = sampling.constant(size, x.device)
        room = sides / 2 if self.min_size is None else sides - self.min_size
        inner = sides - sampling.truncated_normal(rows, sigma * room, room, self.generator).clamp_min(0)
        reach = sides + inner
        offset = sampling.truncated_normal(rows, sigma * reach, reach / 2, self.generator)
        on = self._with_prob(x, active).view(-1, 1)
        inner, offset = torch.where(on, inner, sides), torch.where(on, offset, 0.0)
        corner = (sides - inner) / 2 + offset
        seen = (torch.minimum(corner + inner, sides) - corner.clamp_min(0)).clamp_min(0)
        v = (seen / sides).prod(1)
        boxes = torch.cat([corner, inner], 1).to(torch.float32)
        return ResizedCropPlan(boxes, *self._confidence(v), self._background(x, self.fill), self.size)


class SoftNoise(SoftAugmentation):
    """Adds ``a * noise`` to each image, a ~ N(0, sigma), noise ~ N(0, noise_sigma) per pixel.

    Visibility is ``max(0, 1 - |a| / (3 s))`` with the sigma s the module was built with, so that labels harden when
    sigma decays; the paper defines none.

    Args:
        num_classes: J. sigma: of a (0.1), in the units of x. k: 1. chance: None: 1 / J.
        noise_sigma: of a pixel (0.1), as Table 6 has it.
        prob, generator: see `SoftAugmentation`.
    Source: Soft Augmentation Table 6; confidence: Eq. 7.
    """

    def __init__(self, num_classes: int, sigma: float = 0.1, k: float = 1, chance: float | None = None,
                 noise_sigma: float = 0.1, *, prob: float = 1.0, generator: Generator | None = None) -> None:
        super().__init__(num_classes, sigma, k, chance, prob=prob, generator=generator)
        self._positive(sigma=sigma, noise_sigma=noise_sigma)
        self.noise_sigma, self.reach = noise_sigma, 3 * sigma

    def _draw(self, x: Tensor, saliency: Tensor | None, active: Tensor) -> NoisePlan:
        self._images(x)
        sigma = self._sigma_on(x.device).to(torch.float32)
        factor = torch.randn(x.shape[0], device=x.device, generator=self.generator) * sigma * self._with_prob(x, active)
        noise = torch.randn(x.shape, device=x.device, generator=self.generator)
        v = (1 - factor.abs() / self.reach).clamp_min(0)
        return NoisePlan(noise, factor * self.noise_sigma, *self._confidence(v))
