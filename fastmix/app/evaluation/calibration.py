"""Whether a confidence is the share of right answers: the reliability diagram."""

from __future__ import annotations

import torch
from torch import Tensor

from ...ops import checks as check


def reliability(probabilities: Tensor, labels: Tensor, bins: int = 10) -> list[dict[str, float]]:
    """Predictions sorted by confidence into bins of equal width, [0, 1 / bins) and so on; the last one holds 1.

    Args: probabilities: (n, J) float. labels: (n,) int64.
    Returns: a dict per bin: low, high, count, and accuracy and confidence (means, 0 where the bin is empty). The
        calibration error is ``sum count / n |accuracy - confidence|``.
    Source: Soft Augmentation Eq. 8 (Guo et al. 2017).
    """
    op = "reliability"
    check.ndim(op, "probabilities", probabilities, 2)
    check.shape(op, "labels", labels, probabilities.shape[:1], "(n,) like probabilities")
    check.at_least(op, "bins", bins, 1)
    confidence, predicted = probabilities.double().max(1)
    return diagram(confidence, predicted == labels, bins)


def diagram(confidence: Tensor, correct: Tensor, bins: int) -> list[dict[str, float]]:
    """`reliability` of confidences (n,) float64 and of whether each was right (n,). Source: Soft Augmentation Eq. 8."""
    # Edges in float32, as those of torchmetrics' calibration error: both sort a confidence into the same bin.
    edges = torch.linspace(0, 1, bins + 1, device=confidence.device)
    place = torch.bucketize(confidence.float(), edges[1:-1], right=True)
    count = torch.bincount(place, minlength=bins).double()
    sums = [torch.bincount(place, weights=value.double(), minlength=bins) for value in
            (correct, confidence)]
    accuracy, mean = ((total / count.clamp(min=1)).tolist() for total in sums)
    return [{"low": b / bins, "high": (b + 1) / bins, "count": int(count[b]), "accuracy": accuracy[b],
             "confidence": mean[b]} for b in range(bins)]
