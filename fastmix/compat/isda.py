"""ISDA's released loss on fastmix's kernels: change the import of ``ISDA``, ``ISDA_imagenet`` or ``train_isda``.

Source: ISDA Eq. 1-3, 7 and 15, and the code that its authors released for CIFAR, ImageNet and Cityscapes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .. import functional
from ..losses import ISDACovariance
from ..targets import IGNORED

__all__ = ["EstimatorCV", "ISDALoss"]

VOID = 255  # the label that counts nothing in the code for Cityscapes; of classes 255 is one


class EstimatorCV(ISDACovariance):
    """Running covariances by the released names: ``CoVariance``, ``Ave``, ``Amount`` and ``update_CV``.

    Args:
        feature_num, class_num: A and J. kind: "full", (J, A, A), or "diag", (J, A).
        ignore_index: the label that counts nothing.
    Source: ISDA Eq. 1-3; the released EstimatorCV.
    """

    def __init__(self, feature_num: int, class_num: int, kind: str = "full",
                 device: torch.device | str | None = None, *, ignore_index: int = IGNORED) -> None:
        super().__init__(class_num, feature_num, kind, device=device)
        self.ignore_index = ignore_index

    def update_CV(self, features: Tensor, labels: Tensor) -> None:
        """Enter features (N, A) or (N, A, h, w) with labels (N,) or (N, h, w)."""
        self.update(features, labels, self.ignore_index)

    @property
    def CoVariance(self) -> Tensor:
        """(J, A, A), diag: (J, A)."""
        return self.cov

    @property
    def Ave(self) -> Tensor:
        """(J, A)"""
        return self.mean

    @property
    def Amount(self) -> Tensor:
        """(J,) float32"""
        return self.count.to(torch.float32)


class ISDALoss(nn.Module):
    """The released loss, called as each of its three programs calls it:

        loss, y = criterion(model, fc, x, target, ratio)     # CIFAR: features = model(x), y = fc(features)
        loss, y = criterion(model, x, target, ratio)         # ImageNet: y, features = model(x, isda=True), model.fc
        augmented = criterion(features, final_conv, y, target, ratio)  # Cityscapes: of pixels, labels 255 ignored

    Args:
        feature_num, class_num: A and J; device: of the covariances, None: that of the first features.
        kind: "full" or "diag"; None: as released, full in the first form and diag in the others.

    ``estimator`` is an `EstimatorCV`, there from the first call on (with a kind, from the beginning); it moves with the
    module and is in its state_dict, which the released one is not. fc may be wrapped (DataParallel): its first
    parameter is the weight. Of pixels, labels (N, H, W) are resized to the features' by nearest neighbours, and the
    result is (N, J, h, w), for the loss of the program.
    Source: ISDA Eq. 7, Algorithm 1, Sec. 6.4; the released ISDALoss.
    """

    estimator: EstimatorCV | None

    def __init__(self, feature_num: int, class_num: int, device: torch.device | str | None = None, *,
                 kind: str | None = None) -> None:
        super().__init__()
        self.feature_num, self.class_num, self.device = feature_num, class_num, device
        self.estimator = None if kind is None else EstimatorCV(feature_num, class_num, kind, device)

    def forward(self, *args: Any) -> tuple[Tensor, Tensor] | Tensor:
        if len(args) == 4 and callable(args[0]):
            model, x, target, ratio = args
            y, features = model(x, isda=True)
            fc = getattr(model, "module", model).fc
            return self._loss("diag", features, fc, y, target, ratio)
        if len(args) == 5 and isinstance(args[0], Tensor):
            return self._pixels(*args)
        if len(args) == 5 and callable(args[0]):
            model, fc, x, target, ratio = args
            features = model(x)
            return self._loss("full", features, fc, fc(features), target, ratio)
        kinds = ", ".join(type(each).__name__ for each in args)
        raise TypeError(f"ISDALoss: called with ({kinds}), want (model, fc, x, target, ratio), (model, x, target, "
                        "ratio), or of pixels (features, final_conv, y, target, ratio)")

    def _covariances(self, kind: str, features: Tensor, ignore_index: int = IGNORED) -> EstimatorCV:
        if self.estimator is None:
            device = features.device if self.device is None else self.device
            self.estimator = EstimatorCV(self.feature_num, self.class_num, kind, device)
        self.estimator.ignore_index = ignore_index
        return self.estimator

    def _loss(self, kind: str, features: Tensor, fc: nn.Module, y: Tensor, target: Tensor,
              ratio: float) -> tuple[Tensor, Tensor]:
        estimator = self._covariances(kind, features)
        estimator.update_CV(features.detach(), target)
        augmented = functional.isda_logits(y, _weight(fc), estimator.cov, target, ratio, kind=estimator.kind)
        return functional.soft_cross_entropy(augmented, target), y

    def _pixels(self, features: Tensor, final_conv: nn.Module, y: Tensor, target: Tensor, ratio: float) -> Tensor:
        resized = nn.functional.interpolate(target.unsqueeze(1).float(), size=features.shape[2:], mode="nearest")
        labels = resized.squeeze(1).long()
        estimator = self._covariances("diag", features, VOID)
        estimator.update_CV(features.detach(), labels)
        return functional.isda_logits(y, _weight(final_conv), estimator.cov, labels, ratio, kind=estimator.kind,
                                      ignore_index=VOID)


def _weight(fc: nn.Module) -> Tensor:
    """(J, A): the first parameter of a linear layer or of a convolution of one pixel, wrapped or not."""
    return next(fc.parameters()).flatten(1)
