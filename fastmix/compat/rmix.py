"""R-Mix's released function on fastmix's kernels: change the import of ``r_mix``.

Source: R-Mix Eq. 2-7, and r_mix.py of the code that its authors released.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from .. import functional
from ..saliency import input_saliency
from ..targets import SoftTarget

__all__ = ["r_mix"]


def r_mix(model: Callable[[Tensor], Tensor], inputs: Tensor, labels: Tensor, num_patches: int, alpha: float = 0.2,
          action_space: np.ndarray | None = None) -> tuple[Tensor, Tensor]:
    """A batch mixed patch by patch after the gradient of its loss.

    Percentiles are drawn by NumPy, lambda and the partners by torch, in the order of the released function. Unlike
    there the gradients of the weights are left alone, and nothing is moved to a GPU.

    Args:
        model: the classifier; a module is put into train mode.
        inputs: (N, C, H, W) float; num_patches divides H and W.
        labels: (N, J), one-hot or soft.
        alpha: of Beta(alpha, alpha); 2.0 for CIFAR, 0.2 else, as released.
        action_space: the percentiles to choose from; None: 0 to 0.99 in 10 steps.
    Returns: (images like inputs, labels (N, J) float32).
    Source: R-Mix Eq. 2-7; the released r_mix.
    """
    levels = np.linspace(0.0, 0.99, num=10) if action_space is None else action_space
    q = torch.from_numpy(np.random.choice(levels, size=inputs.shape[0])).to(inputs.device)
    if isinstance(model, nn.Module):
        model.train()
    dense = labels.to(inputs.dtype)
    saliency = input_saliency(model, inputs, SoftTarget.from_labels(dense.argmax(1)),
                              loss_fn=lambda logits, _: functional.soft_cross_entropy(logits, dense))
    concentration = torch.tensor([alpha], dtype=torch.float32, device=inputs.device)
    lam = torch.distributions.Beta(concentration, concentration).sample().view(())
    partner = torch.randperm(inputs.shape[0]).to(inputs.device)
    mask = functional.saliency_mask(saliency, (num_patches, num_patches), q)
    mixed, weight = functional.patch_mix(inputs, partner, mask, lam)
    own = labels.to(torch.float32)
    return mixed, weight[:, :1] * own + weight[:, 1:] * own[partner]
