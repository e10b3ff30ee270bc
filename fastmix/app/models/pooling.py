"""The last pooling of a classifier."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def mean_over_pixels(x: Tensor) -> Tensor:
    """(N, C, H, W) to (N, C).

    As average pooling over everything: the gradient of x.mean((2, 3)), and of adaptive_avg_pool2d(x, 1), is an expanded
    view, on which the backward pass of ReLU took 3.1 ms instead of 1.1 (100x128x7x7, channels_last, one CPU core).
    """
    return F.avg_pool2d(x, x.shape[2:]).flatten(1)
