"""fastmix: image mixing and soft-label training (DCutMix, R-Mix, Soft Augmentation) on fused kernels.

Public names and their sources are in the README; `fastmix.functional` holds the operators.
"""

from . import _library

_library.load()

from . import functional  # noqa: E402 - the operators must be declared first
from .backend import backend, configure_from_environment, select_auto, set_debug  # noqa: E402
from .functional import input_saliency  # noqa: E402 - the function, over the module of its name
from .isda import ISDACovariance, ISDALoss, isda_strength  # noqa: E402
from .losses import FocalLoss, SoftBCE, SoftCrossEntropy, SoftTargetKL  # noqa: E402
from .manifold import ManifoldMixup  # noqa: E402
from .mixer_groups import Compose, RandomChoice  # noqa: E402
from .mixers import CutMix, Cutout, DCutMix, DMixup, Mixup, SaliencyDCutMix  # noqa: E402
from .ops.view import View  # noqa: E402
from .refinement import Refinement, RiskGap, risk_gap  # noqa: E402
from .rmix import RLMix, RMix  # noqa: E402
from .soft_augmentation import (  # noqa: E402
    SoftCrop,
    SoftNoise,
    SoftResizedCrop,
    confidence,
    pair_iou,
    pair_weight,
    visibility,
)
from .subsampling import subsample, uncertainty  # noqa: E402
from .targets import SoftTarget  # noqa: E402

select_auto()
configure_from_environment()

__version__ = "0.1.0"
__all__ = ["Compose", "CutMix", "Cutout", "DCutMix", "DMixup", "FocalLoss", "ISDACovariance", "ISDALoss",
           "ManifoldMixup", "Mixup", "RLMix", "RMix", "RandomChoice", "Refinement", "RiskGap", "SaliencyDCutMix",
           "SoftBCE", "SoftCrop", "SoftCrossEntropy", "SoftNoise", "SoftResizedCrop", "SoftTarget", "SoftTargetKL",
           "View", "backend", "confidence", "functional", "input_saliency", "isda_strength", "pair_iou", "pair_weight",
           "risk_gap", "set_debug", "subsample", "uncertainty", "visibility"]
