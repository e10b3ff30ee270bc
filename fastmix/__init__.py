"""fastmix: image mixing and soft-label training (DCutMix, R-Mix, Soft Augmentation, ISDA) on fused kernels.

Mixers, losses and what goes with them are here; `fastmix.functional` holds the operators as functions.
"""

from __future__ import annotations

import warnings

from . import _starting, functional  # noqa: F401 - the first of them before anything imports torch
from .compat import patch, unpatch
from .losses import (
    FocalLoss,
    ISDACovariance,
    ISDALoss,
    SoftBCE,
    SoftCrossEntropy,
    SoftTargetKL,
    isda_strength,
)
from .mixers import (
    Compose,
    CutMix,
    Cutout,
    DCutMix,
    DMixup,
    ManifoldMixup,
    Mixup,
    RandomChoice,
    RLMix,
    RMix,
    SaliencyDCutMix,
    SoftCrop,
    SoftNoise,
    SoftResizedCrop,
)
from .ops.dispatch import backend, set_debug
from .ops.view import View
from .refinement import Refinement, RiskGap, risk_gap
from .saliency import input_saliency
from .subsampling import subsample, uncertainty
from .targets import SoftTarget

__version__ = "0.1.0"
__all__ = ["Compose", "CutMix", "Cutout", "DCutMix", "DMixup", "FocalLoss", "ISDACovariance", "ISDALoss",
           "ManifoldMixup", "Mixup", "RLMix", "RMix", "RandomChoice", "Refinement", "RiskGap", "SaliencyDCutMix",
           "SoftBCE", "SoftCrop", "SoftCrossEntropy", "SoftNoise", "SoftResizedCrop", "SoftTarget", "SoftTargetKL",
           "View", "backend", "functional", "input_saliency", "isda_strength", "patch", "risk_gap", "set_debug",
           "subsample", "uncertainty", "unpatch"]

_MOVED = ("confidence", "pair_iou", "pair_weight", "visibility")


def __getattr__(name: str) -> object:
    """Functions that were top-level names before they moved to `fastmix.functional`."""
    if name in _MOVED:
        warnings.warn(f"fastmix.{name} is fastmix.functional.{name} now", DeprecationWarning, stacklevel=2)
        return getattr(functional, name)
    raise AttributeError(f"module 'fastmix' has no attribute {name!r}")
