"""Mixers that cut boxes: CutMix, DCutMix and its form by saliency, Cutout."""

from __future__ import annotations

from torch import Generator, Tensor

from ..ops import checks as check
from ..ops.plan import plan_cutout, plan_paste
from ..ops.saliency import saliency_peak
from .base import Mixer
from .pairs import DMixup
from .plans import CutoutPlan, PastePlan


class CutMix(Mixer):
    """A box of another image pasted onto each image; the label counts the pixels.

    lam ~ Beta(alpha, alpha); the box has side ``int(side * sqrt(1 - lam))`` per axis, is centred uniformly and clipped
    at the border. The partner is a random permutation of the batch.

    Args:
        alpha: > 0; small, and boxes are mostly nothing or nearly all; 1, and every lam is as likely.
        prob: probability that a batch (mode "elem": an image) is mixed, in [0, 1]; else its plan is the identity.
        mode: "batch", one lam and box for the whole batch, or "elem", one per image, as in timm.
        generator: torch.Generator on the device of the images; None: torch's own, which torch.compile and CUDA graphs
            want. A DataLoader worker seeds it anew, for itself and the epoch.
    Source: CutMix (Yun et al. 2019); refined data augmentation Eq. 2.
    """

    def __init__(self, alpha: float = 1.0, *, prob: float = 1.0, mode: str = "batch",
                 generator: Generator | None = None) -> None:
        super().__init__(prob=prob, mode=mode, generator=generator)
        self.alpha = check.positive(self._name, "alpha", alpha)

    def _draw(self, x: Tensor, saliency: Tensor | None, active: Tensor) -> PastePlan:
        size, draws = self._images(x), self._rows(x)
        return PastePlan(*plan_paste((draws, 2), active, x.shape[0], size, alpha=self.alpha, prob=self.prob,
                                     each=self._each, centred=True, generator=self.generator))


class DCutMix(DMixup):
    """k images in nested boxes whose areas follow phi ~ Dirichlet(alpha, ..., alpha), by stick breaking.

    Box j lies inside box j - 1, with side ``round(previous side * sqrt(1 - v_j))`` per axis, at a uniform position.
    Every source is the untouched batch, the label counts the visible pixels.

    Args:
        k: images mixed into one, 1 to 1024.
        alpha: > 0, of the Dirichlet distribution; the smaller, the more of an image is one of the k. None: 1 / k.
        prob: probability that a batch is mixed, in [0, 1]; else its plan is the identity.
        generator: torch.Generator on the device of the images; None: torch's own, which torch.compile and CUDA graphs
            want. A DataLoader worker seeds it anew, for itself and the epoch.
    Source: K-image mixing Eq. 1, 3-5, and its supplement's Algorithm 1 as the released code has it: the printed one
        cuts boxes out of images that are mixed already, and loses the last label at k = 2.
    """

    def _draw(self, x: Tensor, saliency: Tensor | None, active: Tensor) -> PastePlan:
        size, rows = self._images(x), x.shape[0]
        shares, alpha = self._shares(x)
        return PastePlan(*plan_paste(shares, active, rows, size, alpha=alpha, prob=self.prob,
                                     peaks=self._peaks(saliency), generator=self.generator))

    def _peaks(self, saliency: Tensor | None) -> Tensor | None:
        """(N, 2) int64, the centres of the boxes cut from each image; None: anywhere."""
        return None


class SaliencyDCutMix(DCutMix):
    """`DCutMix` whose boxes show what matters of the image they are cut from.

    Box j is centred on the peak of the saliency of the image pasted there (`functional.saliency_peak`) and then moved,
    as little as needed, to lie inside box j - 1. The sides are those of `DCutMix`; the label counts the visible pixels.
    Only the peak of the saliency matters, not its scale.

    Args:
        k: images mixed into one, 1 to 1024.
        alpha: > 0, of the Dirichlet distribution; the smaller, the more of an image is one of the k. None: 1 / k.
        prob: probability that a batch is mixed, in [0, 1]; else its plan is the identity.
        generator: torch.Generator on the device of the images; None: torch's own, which torch.compile and CUDA graphs
            want. A DataLoader worker seeds it anew, for itself and the epoch.
    Source: K-image mixing Eq. 3-4 and its supplement, Saliency-DCutMix (the centre, after SaliencyMix); Table 3. Moving
        a box into the one before is our choice, the paper does not say; so is the map, R-Mix Eq. 2 instead of that of
        SaliencyMix.
    """

    needs_saliency = True

    def _peaks(self, saliency: Tensor | None) -> Tensor | None:
        assert saliency is not None  # _checked raises otherwise
        return saliency_peak(saliency)


class Cutout(Mixer):
    """A square of zeros at a uniform position, clipped at the border; labels unchanged.

    Args:
        length: side of the square in pixels, >= 0; None: half the images' height.
        prob: probability that an image (mode "batch": a batch) gets a square, in [0, 1].
        mode: "elem", a position per image, or "batch", one for all.
        generator: torch.Generator on the device of the images; None: torch's own, which torch.compile and CUDA graphs
            want. A DataLoader worker seeds it anew, for itself and the epoch.
    Source: Cutout (DeVries and Taylor 2017); a baseline of K-image mixing Table 1 and of Soft Augmentation Tables 1
        and 5 (there length 8).
    """

    def __init__(self, length: int | None = None, *, prob: float = 1.0, mode: str = "elem",
                 generator: Generator | None = None) -> None:
        super().__init__(prob=prob, mode=mode, generator=generator)
        self.length = None if length is None else check.at_least(self._name, "length", length, 0)

    def _draw(self, x: Tensor, saliency: Tensor | None, active: Tensor) -> CutoutPlan:
        size, draws = self._images(x), self._rows(x)
        length = size[0] // 2 if self.length is None else self.length
        return CutoutPlan(plan_cutout(active, x.shape[0], draws, size, length, prob=self.prob, each=self._each,
                                      generator=self.generator))
