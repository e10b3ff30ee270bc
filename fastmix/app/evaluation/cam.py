"""Class activation maps and the boxes they find: weakly supervised localisation (Zhou et al. 2016; R-Mix Sec. 4.2)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...ops import checks as check
from ..console import require


class NoMaps(Exception):
    """The model does not end in the mean of feature maps and one linear layer."""


@contextmanager
def _recorded(model: nn.Module) -> Iterator[list[tuple[nn.Module, tuple, Tensor]]]:
    """Every module's inputs and output of the forward passes inside, in order."""
    calls: list[tuple[nn.Module, tuple, Tensor]] = []
    handles = [module.register_forward_hook(lambda module, inputs, output: calls.append((module, inputs, output)))
               for module in model.modules()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def class_activation_maps(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """For every class the map ``sum_a W[class, a] maps[a]`` whose mean, plus the bias, is the class's logit.

    The maps are those whose mean over pixels enters the last linear layer. They are searched among the outputs of
    the model's modules, with and without a ReLU after them, and taken only if the means agree: exact for any model.

    Args: model: in evaluation mode. x: (N, C, H, W), N >= 1.
    Returns: (logits (N, J), maps (N, J, h, w) float32).
    Raises: NoMaps if no output's mean is what the last linear layer takes.
    Source: Zhou et al. 2016; R-Mix Sec. 4.2.
    """
    check.images("class_activation_maps", "x", x)
    with _recorded(model) as calls:
        logits = model(x)
    heads = [(module, inputs[0]) for module, inputs, output in calls if isinstance(module, nn.Linear)]
    if not heads or heads[-1][1].ndim != 2:
        raise NoMaps("the model has no linear layer at its end")
    head, features = heads[-1]
    for _, _, output in reversed(calls):
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[1] == head.in_features:
            if output.shape[2] * output.shape[3] < 2:
                continue  # already pooled
            for maps in (output, output.relu()):
                if torch.allclose(maps.float().mean((2, 3)), features.float(), rtol=1e-3, atol=1e-5):
                    return logits, torch.einsum("ja,nahw->njhw", head.weight.float(), maps.float())
    raise NoMaps("the last linear layer does not take the mean of feature maps")


def normalised(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, h, w) maps enlarged to (N, H, W) by bilinear interpolation, the smallest value 0 and the largest 1."""
    maps = F.interpolate(maps.unsqueeze(1), size, mode="bilinear", align_corners=False).squeeze(1)
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low).clamp_min(torch.finfo(maps.dtype).tiny)


def largest_box(heat: Tensor, threshold: float) -> tuple[int, int, int, int]:
    """(top, left, height, width) around the largest connected region of heat (H, W) at or above a threshold.

    All zeros if there is none; the first of equal regions in row-major order.
    """
    ndimage = require("scipy.ndimage", "scipy", "localisation")
    regions, count = ndimage.label((heat >= threshold).cpu().numpy())
    if count == 0:
        return 0, 0, 0, 0
    sizes = torch.bincount(torch.from_numpy(regions.reshape(-1)).long())[1:]
    rows, columns = ndimage.find_objects(regions)[int(sizes.argmax())]
    return rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start


def iou(box: tuple[float, ...], boxes: Tensor) -> float:
    """Largest intersection over union of a box with boxes (m, 4), all (top, left, height, width); 0 if m is 0."""
    best = 0.0
    for other in boxes.tolist():
        shared = 1.0
        for axis in (0, 1):
            end = min(box[axis] + box[axis + 2], other[axis] + other[axis + 2])
            shared *= max(0.0, end - max(box[axis], other[axis]))
        union = box[2] * box[3] + other[2] * other[3] - shared
        best = max(best, shared / union if union > 0 else 0.0)
    return best
