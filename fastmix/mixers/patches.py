"""R-Mix and its form for a policy: two images mixed patch by patch after their saliency."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from ..ops import checks as check
from ..ops import memory
from ..ops.enums import LAST_PERCENTILE
from ..ops.plan import plan_patch
from ..ops.saliency import saliency_mask, saliency_mask_of_grid
from ..ops.view import View
from .base import Mixer
from .labels import Labels, Target
from .plans import PatchPlan, Plan


class RMix(Mixer):
    """Two images mixed patch by patch: where only one is salient its patch is taken, elsewhere both are blended.

    A mask holds the patches of an image whose saliency is at or above the q-th percentile: q per image from
    ``linspace(0, 0.99, levels)``, the grid p x p per batch from ``patches``, lam ~ Beta(alpha, alpha) per batch. The
    mask lies on the least common grid of all patches, which must divide the image's sides.

    Args:
        alpha: > 0, of lam; 1.0 for CIFAR, 0.2 for ImageNet.
        patches: the patches per side to choose from.
        levels: number of percentiles, >= 1.
        pairing: "random", a permutation, or "flip", the batch reversed.
        prob: probability that a batch is mixed, in [0, 1]; else its plan is the identity.
        generator: torch.Generator on the device of the images; None: torch's own, which torch.compile and CUDA graphs
            want. A DataLoader worker seeds it anew, for itself and the epoch.
    Source: R-Mix Eq. 2-7; alpha, patches and levels: Sec. 4, Tables 7 and 8.
    """

    needs_saliency = True

    def __init__(self, alpha: float = 1.0, patches: tuple[int, ...] = (2, 4), levels: int = 10, *,
                 pairing: str = "random", prob: float = 1.0, generator: Generator | None = None) -> None:
        super().__init__(prob=prob, generator=generator)
        check.choice(self._name, "pairing", pairing, ("random", "flip"))
        want = "one or more patches per side, each >= 1"
        if not isinstance(patches, (tuple, list)):
            raise TypeError(f"{self._name}: patches is {check.shown(patches)}, want {want}")
        sides = tuple(check.integer(self._name, "patches", p, want) for p in patches)
        if not sides or min(sides) < 1:
            raise ValueError(f"{self._name}: patches is {patches}, want {want}")
        self.alpha, self.levels = (check.positive(self._name, "alpha", alpha),
                                   check.at_least(self._name, "levels", levels, 1))
        self.patches, self.pairing = sides, pairing

    def _draw(self, x: Tensor, saliency: Tensor | None, active: Tensor) -> PatchPlan:
        return self._patches(x, saliency, active, None)

    def _patches(self, x: Tensor, saliency: Tensor | None, active: Tensor, q: Tensor | None) -> PatchPlan:
        """q: (N,) or 0-d float, the percentiles; None: those that are drawn."""
        size = self._images(x)
        assert saliency is not None  # _checked raises otherwise
        side = math.lcm(*self.patches)
        if any(length % side for length in size):
            raise ValueError(f"{self._name}: x has images of {size[0]} x {size[1]}, want sides divisible by {side}, "
                             f"the least common multiple of patches {self.patches}")
        index, drawn, lam, grid = plan_patch(None, active, x.shape[0], levels=self.levels, grids=len(self.patches),
                                             alpha=self.alpha, prob=self.prob, flip=self.pairing == "flip",
                                             generator=self.generator)
        q = drawn if q is None else q
        # The grid is drawn on the device, so no shape may depend on it.
        mask = (saliency_mask(saliency, (side, side), q) if len(self.patches) == 1 else
                saliency_mask_of_grid(saliency, self.patches, grid, q))
        return PatchPlan(index, mask, lam)

    def percentiles(self, device: torch.device | None = None) -> Tensor:
        """(levels,) float64: the values that q is chosen from. ValueError where half of the memory is not enough."""
        memory.check(self._name, "levels", self.levels, 8, "percentiles", check.device(self._name, "device", device))
        return torch.linspace(0, LAST_PERCENTILE, self.levels, dtype=torch.float64, device=device)


class RLMix(RMix):
    """R-Mix on one fixed grid, whose percentiles a policy chooses: ``mixer(x, y, saliency, q=q)``.

    Without q they are drawn as in R-Mix. `fastmix.app.policy` (extra ``rl``) holds the environment and the policy.

    Args:
        alpha: > 0, of lam; 1.0 for CIFAR, 0.2 for ImageNet.
        patches: patches per side, one number, since a policy's input has a fixed size; divides the image's sides.
        levels: number of percentiles, >= 1.
        pairing: "random", a permutation, or "flip", the batch reversed.
        prob: probability that a batch is mixed, in [0, 1]; else its plan is the identity.
        generator: torch.Generator on the device of the images; None: torch's own, which torch.compile and CUDA graphs
            want. A DataLoader worker seeds it anew, for itself and the epoch.
    Source: R-Mix Sec. 5.2 (p = 8), Table 9.
    """

    def __init__(self, alpha: float = 1.0, patches: int = 8, levels: int = 10, *, pairing: str = "random",
                 prob: float = 1.0, generator: Generator | None = None) -> None:
        super().__init__(alpha, (patches,), levels, pairing=pairing, prob=prob, generator=generator)

    def plan(self, x: Tensor, saliency: Tensor | None = None, q: Tensor | None = None) -> Plan:
        """As `Mixer.plan`, with q: (N,) or 0-d float in [0, 1), the percentile of every image; None draws. q that is
        NaN or outside counts as in `functional.saliency_mask`."""
        return self._patches(x, self._checked(x, saliency), self._flag_on(x.device), q)

    def forward(self, x: Tensor, y: Labels, saliency: Tensor | None = None, view: View | None = None, *,
                q: Tensor | None = None) -> tuple[Tensor, Target]:
        """As `Mixer.forward`; q as in `plan`."""
        return self.plan(x, saliency, q=q).mix(x, y, view)

    if TYPE_CHECKING:  # torch types the call of a module as (...) -> Any
        def __call__(self, x: Tensor, y: Labels, saliency: Tensor | None = None, view: View | None = None, *,
                     q: Tensor | None = None) -> tuple[Tensor, Target]: ...
