"""Mixers of whole images: weighted sums of two (Mixup) or of k (DMixup)."""

from __future__ import annotations

from torch import Generator, Tensor

from ..ops import checks as check
from ..ops.plan import Draws, plan_blend
from .base import Mixer
from .plans import BlendPlan, Plan

MOST_IMAGES = 1024  # in one; the papers mix 2 to 5


class Mixup(Mixer):
    """Weighted sums of two images: ``lam x + (1 - lam) x[partner]``, lam ~ Beta(alpha, alpha).

    The partner is a random permutation of the batch.

    Args:
        alpha: > 0; small, and most images stay nearly whole; 1, and every lam is as likely.
        prob: probability that a batch (mode "elem": an image) is mixed, in [0, 1]; else its plan is the identity.
        mode: "batch", one lam for the whole batch, or "elem", one per image, as in timm.
        generator: torch.Generator on the device of the images; None: torch's own, which torch.compile and CUDA graphs
            want. A DataLoader worker seeds it anew, for itself and the epoch.
    Source: Mixup (Zhang et al. 2018); refined data augmentation Eq. 1, where alpha is gamma; R-Mix Sec. 2.1.
    """

    def __init__(self, alpha: float = 1.0, *, prob: float = 1.0, mode: str = "batch",
                 generator: Generator | None = None) -> None:
        super().__init__(prob=prob, mode=mode, generator=generator)
        self.alpha = check.positive(self._name, "alpha", alpha)

    def _draw(self, x: Tensor, saliency: Tensor | None, active: Tensor) -> BlendPlan:
        draws = self._rows(x)
        return BlendPlan(*plan_blend((draws, 2), active, x.shape[0], alpha=self.alpha, prob=self.prob, each=self._each,
                                     generator=self.generator))


class DMixup(Mixer):
    """Weighted sums of k images with shares phi ~ Dirichlet(alpha, ..., alpha), drawn per sample.

    Image 0 is the sample itself, image j > 0 comes from a permutation of its own.

    Args:
        k: images mixed into one, 1 to 1024.
        alpha: > 0, of the Dirichlet distribution; the smaller, the more of an image is one of the k. None: 1 / k.
        prob: probability that a batch is mixed, in [0, 1]; else its plan is the identity.
        generator: torch.Generator on the device of the images; None: torch's own, which torch.compile and CUDA graphs
            want. A DataLoader worker seeds it anew, for itself and the epoch.
    Source: K-image mixing Eq. 1-2, the label l_c of Eq. 6; k and alpha: Table 1.
    """

    def __init__(self, k: int = 3, alpha: float | None = None, *, prob: float = 1.0,
                 generator: Generator | None = None) -> None:
        super().__init__(prob=prob, generator=generator)
        self.k = check.at_least(self._name, "k", k, 1)
        if self.k > MOST_IMAGES:
            raise ValueError(f"{self._name}: k is {k}, want at most {MOST_IMAGES}: a batch takes time and "
                             "memory in proportion")
        self.alpha = 1 / self.k if alpha is None else check.positive(self._name, "alpha", alpha)

    def _shares(self, x: Tensor) -> tuple[Tensor | Draws, float]:
        """(shares, alpha) as `fastmix.ops.plan` takes them."""
        return (x.shape[0], self.k), self.alpha

    def _draw(self, x: Tensor, saliency: Tensor | None, active: Tensor) -> Plan:
        rows = x.shape[0]
        shares, alpha = self._shares(x)
        return BlendPlan(*plan_blend(shares, active, rows, alpha=alpha, prob=self.prob, generator=self.generator))
