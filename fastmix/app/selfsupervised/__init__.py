"""Self-supervised learning with SimSiam and the pair weights of Soft Augmentation (Sec. 4.4, Eq. 9-10)."""

from .simsiam import SimSiam, simsiam_loss
from .views import Pair, pair_of_views, random_boxes

__all__ = ["Pair", "SimSiam", "pair_of_views", "random_boxes", "simsiam_loss"]
