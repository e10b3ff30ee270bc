"""The operators as functions: every random quantity is an argument."""

from .input_saliency import input_saliency
from .ops.blend import blend
from .ops.covariance import covariance_update_
from .ops.crop import crop, resized_crop
from .ops.isda import explicit_sda, isda_consistency, isda_logits
from .ops.paste import paste, paste_areas
from .ops.patch_mix import patch_mix, rmix
from .ops.saliency import percentile_mask, saliency_map, saliency_mask, saliency_peak
from .ops.soft_target import soft_bce, soft_cross_entropy, soft_kl, soft_target_kl

__all__ = ["blend", "covariance_update_", "crop", "explicit_sda", "input_saliency", "isda_consistency", "isda_logits",
           "paste", "paste_areas", "patch_mix", "percentile_mask", "resized_crop", "rmix", "saliency_map",
           "saliency_mask", "saliency_peak", "soft_bce", "soft_cross_entropy", "soft_kl", "soft_target_kl"]
