"""SimSiam (Chen and He 2021, Exploring Simple Siamese Representation Learning)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...ops import checks as check


def _projector(inputs: int, dim: int, layers: int) -> nn.Sequential:
    parts: list[nn.Module] = []
    for layer in range(layers):
        # No bias before normalisation, no ReLU and no learnt scale after the last layer.
        parts += [nn.Linear(inputs if layer == 0 else dim, dim, bias=False),
                  nn.BatchNorm1d(dim, affine=layer < layers - 1)]
        if layer < layers - 1:
            parts.append(nn.ReLU(inplace=True))
    return nn.Sequential(*parts)


class SimSiam(nn.Module):
    """An encoder (backbone and projector) and a predictor, shared by both views.

    Args:
        backbone: (N, C, H, W) images to (N, features).
        features: what the backbone gives.
        dim: of the projections; None: 4 * features, which is SimSiam's 2048 for ResNet-18. The predictor's hidden layer
            has a quarter of it, as there.
        layers: of the projector; SimSiam has 2 for CIFAR and 3 for ImageNet.
    Source: SimSiam (Chen and He 2021), as Soft Augmentation Sec. 4.4 and B.4 train it.
    """

    def __init__(self, backbone: nn.Module, features: int, dim: int | None = None, layers: int = 2) -> None:
        super().__init__()
        dim = 4 * features if dim is None else dim
        check.at_least("SimSiam", "dim", dim, 4)
        check.at_least("SimSiam", "layers", layers, 1)
        self.backbone = backbone
        self.projector = _projector(features, dim, layers)
        self.predictor = nn.Sequential(nn.Linear(dim, dim // 4, bias=False), nn.BatchNorm1d(dim // 4),
                                       nn.ReLU(inplace=True), nn.Linear(dim // 4, dim))

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Two views (N, C, H, W) to their predictions and projections: p1, p2, z1, z2, each (N, dim)."""
        z1, z2 = (self.projector(self.backbone(view)) for view in (first, second))
        return self.predictor(z1), self.predictor(z2), z1, z2


def simsiam_loss(p1: Tensor, p2: Tensor, z1: Tensor, z2: Tensor, weight: Tensor | None = None) -> Tensor:
    """Negative cosine similarity of predictions and projections, both ways, no gradient through the projections.

        l_n = -1/2 [cos(p1_n, stop(z2_n)) + cos(p2_n, stop(z1_n))],  loss = mean_n weight_n l_n

    Args:
        p1, p2, z1, z2: (N, D) float, as `SimSiam` returns them.
        weight: (N,) float, see `fastmix.functional.pair_weight`; None: 1. The mean divides by N, not by the
            sum of weights.
    Returns: 0-d float32 (float64 for float64), in [-1, 1] for weights of mean 1. Minimum -1.
    Raises: ValueError for shapes.
    Source: SimSiam Eq. 1-4; weights: Soft Augmentation Sec. 4.4, Eq. 9-10.
    """
    check.ndim("simsiam_loss", "p1", p1, 2)
    for name, value in (("p2", p2), ("z1", z1), ("z2", z2)):
        check.shape("simsiam_loss", name, value, tuple(p1.shape), "like p1")
    wide = torch.float64 if p1.dtype == torch.float64 else torch.float32
    p1, p2, z1, z2 = (value.to(wide) for value in (p1, p2, z1.detach(), z2.detach()))
    cosine = nn.functional.cosine_similarity
    loss = -0.5 * (cosine(p1, z2, dim=1) + cosine(p2, z1, dim=1))
    if weight is not None:
        check.shape("simsiam_loss", "weight", weight, (p1.shape[0],), "(N,)")
        loss = loss * weight.to(wide)
    return loss.mean()


@torch.no_grad()
def spread(z: Tensor) -> Tensor:
    """Standard deviation of z / |z| per channel, times sqrt(D): 1 for directions all around, 0 for a collapse.

    Args: z: (N, D). Returns: 0-d float32. Source: SimSiam Sec. 4.1.
    """
    z = nn.functional.normalize(z.float(), dim=1)
    return z.std(0, correction=0).mean() * z.shape[1]**0.5
