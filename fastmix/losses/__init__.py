"""The losses as modules: those of `fastmix.functional`, focal loss, and ISDA with its running covariances."""

from .isda import ISDACovariance, ISDALoss, isda_strength
from .modules import FocalLoss, SoftBCE, SoftCrossEntropy, SoftTargetKL

__all__ = ["FocalLoss", "ISDACovariance", "ISDALoss", "SoftBCE", "SoftCrossEntropy", "SoftTargetKL", "isda_strength"]
