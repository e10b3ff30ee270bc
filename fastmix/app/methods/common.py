"""The options that several methods share."""

from __future__ import annotations

import fastmix.functional as F

from .. import arguments
from .option import Option

ALPHA = Option("alpha", arguments.positive, "parameter of the Beta or Dirichlet distribution of the shares",
               "K-image mixing Eq. 1; R-Mix Sec. 2.1", none="1/k")
PROB = Option("prob", arguments.share, "probability that a batch is mixed", "refined data augmentation Table 4")
LABEL_SMOOTHING = Option(
    "label_smoothing", arguments.share, "share of every label that is spread over all classes",
    "Soft Augmentation Table 1", metavar="EPS", target=F.soft_cross_entropy, training=True,
    unread="whose loss is another than cross-entropy")
IMAGES = Option("k", arguments.count, "images mixed into one", "K-image mixing Eq. 1")
LEVELS = Option("levels", arguments.count, "percentiles of the saliency to choose from", "R-Mix Sec. 4")
LENGTH = Option("length", arguments.count_or_zero, "side of the square of zeros", "Soft Augmentation Table 5",
                metavar="PIXELS", none="half the image's height")
