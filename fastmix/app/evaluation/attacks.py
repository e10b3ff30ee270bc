"""Adversarial images: the fast gradient sign method and projected gradient descent, l-infinity, in pixels of [0, 1].

Our own, not captum.robust (0.9.0): that leaves pixels with a gradient below 1e-6 alone unless told otherwise, as all
are of an image the model is sure of, which makes overconfident models look robust; its random start takes no generator.

Sources: Goodfellow et al. 2014; Madry et al. 2017; 8/255 as in K-image mixing Table 4 and R-Mix Table 6.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from ...ops import checks as check

EPSILON = 8 / 255
Forward = Callable[[Tensor], Tensor]


def _ascent(forward: Forward, x: Tensor, y: Tensor) -> Tensor:
    """The sign of the gradient of every image's own cross-entropy.

    Taken from ``log(exp(cross-entropy) - 1)``, the log-sum-exp of the other logits minus the right one: it rises with
    the cross-entropy, so the sign is the same, but its gradient does not underflow where 1 - p of the right class does.
    """
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        logits = forward(x)
        if logits.shape[1] < 2:
            return torch.zeros_like(x)  # the loss of a single class is always 0
        right = F.one_hot(y, logits.shape[1]).bool()
        margin = logits.masked_fill(right, -torch.inf).logsumexp(1) - logits[right]
        grad, = torch.autograd.grad(margin.sum(), x)
    return grad.sign()


def _check(op: str, x: Tensor, y: Tensor, epsilon: float) -> None:
    check.images(op, "x", x)
    check.shape(op, "y", y, x.shape[:1], "(N,) like x")
    check.dtype(op, "y", y, torch.int64)
    if not 0.0 <= epsilon <= 1.0:
        raise ValueError(f"{op}: epsilon is {epsilon}, want a part of the range [0, 1] of pixels")


def fgsm(forward: Forward, x: Tensor, y: Tensor, epsilon: float = EPSILON) -> Tensor:
    """One step of epsilon up the loss: ``clamp(x + epsilon sign(d loss / d x), 0, 1)``.

    Args:
        forward: (N, C, H, W) pixels in [0, 1] to (N, J) logits; normalisation belongs inside.
        x: pixels in [0, 1]. y: (N,) int64 labels.
        epsilon: largest change of a pixel.
    Returns: images like x, within epsilon of it and in [0, 1].
    Source: Goodfellow et al. 2014; K-image mixing Table 4, R-Mix Sec. 4.4 and Table 6.
    """
    _check("fgsm", x, y, epsilon)
    return (x + epsilon * _ascent(forward, x, y)).clamp(0, 1).detach()


def pgd(forward: Forward, x: Tensor, y: Tensor, epsilon: float = EPSILON, *, step: float = 2 / 255, steps: int = 10,
        random_start: bool = True, generator: Generator | None = None) -> Tensor:
    """Steps of `fgsm`, each followed by the projection into the epsilon ball around x and into [0, 1].

    Args: as `fgsm`. step: of one iteration. steps: their number, >= 1. random_start: uniform in the ball.
    Source: Madry et al. 2017; K-image mixing Table 4 (there on another model's attacks).
    """
    _check("pgd", x, y, epsilon)
    check.at_least("pgd", "steps", steps, 1)
    low, high = (x - epsilon).clamp(0, 1), (x + epsilon).clamp(0, 1)
    found = x
    if random_start:
        uniform = torch.rand(x.shape, dtype=x.dtype, device=x.device, generator=generator)
        found = (x + epsilon * (2 * uniform - 1)).clamp(0, 1)
    for _ in range(steps):
        found = torch.clamp(found + step * _ascent(forward, found, y), low, high)
    return found.detach()
