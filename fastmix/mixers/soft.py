"""Soft Augmentation: the harder an image was cropped or disturbed, the less sure its label.

    augment = fastmix.SoftCrop(num_classes=100)
    cropped, target = augment(x, y)
    loss = fastmix.functional.soft_target_kl(model(cropped), target)

Every class here is a `Mixer` of single images: it draws a plan on the device, has ``enabled``, ``prob`` and
``generator``, and runs under ``torch.compile(fullgraph=True)`` and in a CUDA graph. ``target.confidence()`` is the
confidence of every image.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from ..ops import checks as check
from ..ops import random
from ..ops.confidence import confidence
from ..ops.plan import plan_crop
from . import sampling
from .base import Mixer
from .plans import CropPlan, NoisePlan, ResizedCropPlan

RANDOM_FILL = 0.01


class SoftAugmentation(Mixer):
    """What the three share: the strength on the device, and the curve from visibility to confidence.

    Attributes:
        sigma: the strength, a number >= 0. It may be set between steps: it lives on the device, where plans read it, so
            a decay over the last epochs (B.1 divides it by 1000) recompiles and rebuilds nothing.

    Args:
        num_classes, sigma, k, chance, prob, generator: as the subclasses say.
    """

    _scale: Tensor

    def __init__(self, num_classes: int, sigma: float, k: float, chance: float | None, *, prob: float,
                 generator: Generator | None) -> None:
        super().__init__(prob=prob, mode="elem", generator=generator)
        self.num_classes = check.at_least(self._name, "num_classes", num_classes, 1)
        self.k = check.positive(self._name, "k", k)
        self.chance = 1 / num_classes if chance is None else check.share(self._name, "chance", chance)
        # float32: a float64 scalar on the CPU is a symbolic number to dynamo (2.13), which then compiles twice.
        with torch.inference_mode(False):
            self.register_buffer("_scale", torch.zeros((), dtype=torch.float32), persistent=False)
        self.sigma = sigma

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SoftAugmentation:
        """``module.half()`` and the like move sigma, and leave it float32."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self._scale.dtype != torch.float32:
            self._scale = torch.full_like(self._scale, self._sigma, dtype=torch.float32)
        return self

    @property
    def sigma(self) -> float:
        return self._sigma

    @sigma.setter
    def sigma(self, sigma: float) -> None:
        # For reading back without a sync; plans read the buffer.
        self._sigma = check.not_negative(self._name, "sigma", sigma)
        self._scale.fill_(self._sigma)

    def _sigma_buffer(self, device: torch.device) -> Tensor:
        """0-d float32."""
        return self._on_device("_scale", "_sigma", device)

    def _sigma_on(self, device: torch.device) -> Tensor:
        """0-d float64."""
        return self._sigma_buffer(device).to(torch.float64)

    def _confidence(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """(confidence, what every other class gets) of visibilities (N,)."""
        p = confidence(v.to(torch.float32), self.k, self.chance)
        return p, (1 - p) / max(self.num_classes - 1, 1)

    def _background(self, x: Tensor, fill: float | str) -> float | Tensor:
        if not isinstance(fill, str):
            return fill
        return RANDOM_FILL * random.normal(x.shape[:2], x.device, self.generator)

    def _fill(self, fill: float | str) -> float | str:
        if isinstance(fill, str):
            check.choice(self._name, "fill", fill, ("random",))
            return fill
        return check.number(self._name, "fill", fill, "a number or 'random'")


class SoftCrop(SoftAugmentation):
    """Moves the window on each image; what leaves it is background, and the label is as sure as the rest is visible.

    The shift of an axis is normal with standard deviation ``sigma * max(H, W)``, redrawn while it would leave the image
    (``|t| >= side``), then truncated towards zero; visibility and confidence: `visibility`, `confidence`.

    Args:
        num_classes: J, >= 1.
        sigma: >= 0, the standard deviation of a shift in longer sides (the released recipe for CIFAR: 12 of 32 pixels,
            0.375). It may be set between steps.
        k: > 0, the power of Eq. 7: the larger, the longer a label stays sure.
        chance: the confidence where nothing is visible, in [0, 1]; None: 1 / J.
        fill: the background in the units of x: a number, or "random": 0.01 times a normal number per image and channel,
            the faint background of the released recipe.
        prob: probability that an image is moved, in [0, 1]; else it stays, and its label is hard.
        generator: torch.Generator on the device of the images; None: torch's own, which torch.compile and CUDA graphs
            want. A DataLoader worker seeds it anew, for itself and the epoch.
    Source: Soft Augmentation Sec. 4.1, Eq. 7, Listing 1.
    """

    def __init__(self, num_classes: int, sigma: float = 0.3, k: float = 2, chance: float | None = None,
                 fill: float | str = 0.0, *, prob: float = 1.0, generator: Generator | None = None) -> None:
        super().__init__(num_classes, sigma, k, chance, prob=prob, generator=generator)
        self.fill = self._fill(fill)

    def _draw(self, x: Tensor, saliency: Tensor | None, active: Tensor) -> CropPlan:
        size, rows = self._images(x), x.shape[0]
        shift, p, base = plan_crop(self._sigma_buffer(x.device), active, rows, size, classes=self.num_classes,
                                   power=self.k, chance=self.chance, prob=self.prob, generator=self.generator)
        return CropPlan(shift, p, base, self._background(x, self.fill))


class SoftResizedCrop(SoftAugmentation):
    """Cuts a window of random size and place out of each image and resizes it.

    Per axis, with side L of the image and least side Lm: ``d = max(0, z)`` with z normal of deviation
    ``sigma (L - Lm)``, redrawn while ``|z| >= L - Lm``, and the window's side is ``l = L - d``. Its centre lies
    t off the image's centre, t normal of deviation ``sigma (L + l)``, redrawn while the window would miss the image
    (``|t| >= (L + l) / 2``). Visibility is the share of the image that the window shows; the paper defines none.

    Args:
        num_classes: J, >= 1.
        size: (height, width) or the side of the output; None: the images' own.
        sigma: >= 0, of the window's size and place as above. It may be set between steps.
        min_size: Lm in pixels, at most the image's sides; None: half of each.
        k: > 0, the power of Eq. 7: the larger, the longer a label stays sure.
        chance: the confidence where nothing is visible, in [0, 1]; None: 1 / J.
        fill: the background in the units of x: a number, or "random": 0.01 times a normal number per image and channel.
        prob: probability that an image is cut, in [0, 1]; else the whole image is resized, and its label is hard.
        generator: torch.Generator on the device of the images; None: torch's own, which torch.compile and CUDA graphs
            want. A DataLoader worker seeds it anew, for itself and the epoch.
    Source: Soft Augmentation B.3; confidence: Eq. 7.
    """

    def __init__(self, num_classes: int, size: int | tuple[int, int] | None = None, sigma: float = 0.3,
                 min_size: int | None = None, k: float = 2, chance: float | None = None, fill: float | str = 0.0, *,
                 prob: float = 1.0, generator: Generator | None = None) -> None:
        super().__init__(num_classes, sigma, k, chance, prob=prob, generator=generator)
        if size is not None and not isinstance(size, (tuple, list)):
            side = check.at_least(self._name, "size", size, 1)
            size = (side, side)
        self.size = None if size is None else check.pair(self._name, "size", size, "(height, width)")
        self.min_size = None if min_size is None else check.at_least(self._name, "min_size", min_size, 1)
        self.fill = self._fill(fill)

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
        return ResizedCropPlan(boxes, *self._confidence(v), self._background(x, self.fill), self.size or size)


class SoftNoise(SoftAugmentation):
    """Adds ``a * noise`` to each image, a ~ N(0, sigma), noise ~ N(0, noise_sigma) per pixel.

    Visibility is ``max(0, 1 - |a| / (3 s))`` with the sigma s the module was built with, so that labels harden when
    sigma decays; the paper defines none.

    Args:
        num_classes: J, >= 1.
        sigma: > 0, the standard deviation of a, in the units of x. It may be set between steps, also to 0.
        k: > 0, the power of Eq. 7: the larger, the longer a label stays sure.
        chance: the confidence where the noise is strongest, in [0, 1]; None: 1 / J.
        noise_sigma: > 0, the standard deviation of a pixel's noise, as Table 6 has it.
        prob: probability that an image is disturbed, in [0, 1]; else it stays, and its label is hard.
        generator: torch.Generator on the device of the images; None: torch's own, which torch.compile and CUDA graphs
            want. A DataLoader worker seeds it anew, for itself and the epoch.
    Source: Soft Augmentation Table 6; confidence: Eq. 7.
    """

    def __init__(self, num_classes: int, sigma: float = 0.1, k: float = 1, chance: float | None = None,
                 noise_sigma: float = 0.1, *, prob: float = 1.0, generator: Generator | None = None) -> None:
        super().__init__(num_classes, sigma, k, chance, prob=prob, generator=generator)
        self.reach = 3 * check.positive(self._name, "sigma", sigma)
        self.noise_sigma = check.positive(self._name, "noise_sigma", noise_sigma)

    def _draw(self, x: Tensor, saliency: Tensor | None, active: Tensor) -> NoisePlan:
        self._images(x)
        sigma = self._sigma_on(x.device).to(torch.float32)
        factor = random.normal(x.shape[:1], x.device, self.generator) * sigma * self._with_prob(x, active)
        noise = random.normal(x.shape, x.device, self.generator)
        v = (1 - factor.abs() / self.reach).clamp_min(0)
        return NoisePlan(noise, factor * self.noise_sigma, *self._confidence(v))
