"""The operators as functions: every random quantity is an argument."""

from .ops.blend import blend
from .ops.confidence import confidence, pair_iou, pair_weight, visibility
from .ops.covariance import covariance_update_
from .ops.crop import crop, resized_crop
from .ops.isda import explicit_sda, isda_consistency, isda_logits
from .ops.paste import paste, paste_areas
from .ops.patch_mix import patch_mix, rmix
from .ops.saliency import percentile_mask, saliency_map, saliency_mask, saliency_peak
from .ops.soft_target import soft_bce, soft_cross_entropy, soft_kl, soft_target_kl
from .saliency import input_saliency

__all__ = ["blend", "confidence", "covariance_update_", "crop", "explicit_sda", "input_saliency", "isda_consistency",
           "isda_logits", "pair_iou", "pair_weight", "paste", "paste_areas", "patch_mix", "percentile_mask",
           "resized_crop", "rmix", "saliency_map", "saliency_mask", "saliency_peak", "soft_bce", "soft_cross_entropy",
           "soft_kl", "soft_target_kl", "visibility"]
