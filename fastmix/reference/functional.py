"""The references under the names that the operators have in `fastmix.functional`."""

from .blend import blend
from .covariance import covariance_update_
from .crop import crop, resized_crop
from .isda import explicit_sda, isda_consistency, isda_covariance_gradient, isda_logits
from .paste import paste, paste_areas
from .patch_mix import patch_mix
from .plan import plan_blend, plan_crop, plan_cutout, plan_paste, plan_patch
from .saliency import percentile_mask, saliency_map, saliency_mask, saliency_peak
from .soft_target import soft_target, soft_target_dense
from .view import view, view_blend, view_paste, view_patch_mix

__all__ = ["blend", "covariance_update_", "crop", "explicit_sda", "isda_consistency", "isda_covariance_gradient",
           "isda_logits", "paste", "paste_areas", "patch_mix", "percentile_mask", "plan_blend", "plan_crop",
           "plan_cutout", "plan_paste", "plan_patch", "resized_crop", "saliency_map", "saliency_mask", "saliency_peak",
           "soft_target", "soft_target_dense", "view", "view_blend", "view_paste", "view_patch_mix"]
