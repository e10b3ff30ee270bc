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
    BlendPlan,
    Compose,
    ComposePlan,
    CropPlan,
    CutMix,
    Cutout,
    CutoutPlan,
    DCutMix,
    DMixup,
    Labels,
    ManifoldMixup,
    Mixer,
    Mixup,
    NoisePlan,
    PastePlan,
    PatchPlan,
    Plan,
    RandomChoice,
    ResizedCropPlan,
    RLMix,
    RMix,
    SaliencyDCutMix,
    SoftCrop,
    SoftNoise,
    SoftResizedCrop,
    Target,
)
from .ops.dispatch import backend, set_debug
from .ops.view import View
from .refinement import Refinement, RiskGap, risk_gap
from .saliency import input_saliency
from .subsampling import subsample, uncertainty
from .targets import SoftTarget

__version__ = "0.1.0"
__all__ = ["BlendPlan", "Compose", "ComposePlan", "CropPlan", "CutMix", "Cutout", "CutoutPlan", "DCutMix", "DMixup",
           "FocalLoss", "ISDACovariance", "ISDALoss", "Labels", "ManifoldMixup", "Mixer", "Mixup", "NoisePlan",
           "PastePlan", "PatchPlan", "Plan", "RLMix", "RMix", "RandomChoice", "Refinement", "ResizedCropPlan",
           "RiskGap", "SaliencyDCutMix", "SoftBCE", "SoftCrop", "SoftCrossEntropy", "SoftNoise", "SoftResizedCrop",
           "SoftTarget", "SoftTargetKL", "Target", "View", "backend", "functional", "input_saliency", "isda_strength",
           "patch", "risk_gap", "set_debug", "subsample", "uncertainty", "unpatch"]

_MOVED = ("confidence", "pair_iou", "pair_weight", "visibility")


def __getattr__(name: str) -> object:
    """Functions that were top-level names before they moved to `fastmix.functional`."""
    if name in _MOVED:
        warnings.warn(f"fastmix.{name} is fastmix.functional.{name} now", DeprecationWarning, stacklevel=2)
        return getattr(functional, name)
    raise AttributeError(f"module 'fastmix' has no attribute {name!r}")
