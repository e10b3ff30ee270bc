"""What happens to the bytes of a training batch before the method: policies of torchvision, crops, flips."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .. import import_torchvision
from .options import RunOptions

POLICIES = {"rand": "RandAugment", "trivial": "TrivialAugmentWide"}


def policy(options: RunOptions) -> Callable[[Tensor], Tensor] | None:
    """torchvision's policy of ``--augment``, with its defaults, or None; CommandError where torchvision is missing."""
    if options.augment not in POLICIES:
        return None
    transforms = import_torchvision.load(f"--augment {options.augment}", "torchvision.transforms")
    return getattr(transforms, POLICIES[options.augment])()


class Augmentation:
    """What happens to uint8 batches (N, C, H, W) before the method: a policy here, crops and flips in its view.

    crops: a generator on their device, from which each image is cropped (padded by pad) and flipped, or None. chosen: a
    policy, which draws anew for each image, hence a loop over images, from torch's own CPU generator; that is lent to
    it in a state of its own, so that what the mixers draw does not depend on it.
    """

    def __init__(self, crops: torch.Generator | None, pad: int, chosen: Callable[[Tensor], Tensor] | None,
                 seed: int) -> None:
        self.crops, self.pad, self._policy = crops, pad, chosen
        self._state = torch.Generator().manual_seed(seed).get_state()

    def __call__(self, images: Tensor) -> Tensor:
        """The policy alone."""
        if self._policy is None or len(images) == 0:
            return images
        before = torch.get_rng_state()
        torch.set_rng_state(self._state)
        try:
            return torch.stack([self._policy(image) for image in images])
        finally:
            self._state = torch.get_rng_state()
            torch.set_rng_state(before)
