"""How good a trained classifier is beyond its accuracy: ``python -m fastmix evaluate``, and the pieces as functions.

torchmetrics gives the calibration error, scipy the eigenvectors (ARPACK) and the connected components of a map. The
attacks are our own few lines, for the reasons in `attacks`.
"""

from .attacks import fgsm, pgd
from .calibration import reliability
from .cam import class_activation_maps, iou, largest_box
from .occlusion import occlude
from .surface import WeightLoss, filter_normalised, grid, noise, top_eigenvectors

__all__ = ["WeightLoss", "class_activation_maps", "fgsm", "filter_normalised", "grid", "iou", "largest_box", "noise",
           "occlude", "pgd", "reliability", "top_eigenvectors"]
