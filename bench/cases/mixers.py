"""Whole mixers, plan, images and labels, against the libraries that mix batches and the papers' released algorithms.

What is drawn differs from call to call and from library to library, so only shapes are compared with the reference. The
peers leave labels dense, (N, J), fastmix as K entries a row. kornia has no Beta(1, 1) argument for Mixup and draws per
image; timm mixes in place, on a copy of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fastmix
from fastmix.app import import_torchvision

from .base import Call, Case, Peer, generator, images, numel

CLASSES = 100
CIFAR, IMAGENET = (128, 3, 32, 32), (64, 3, 224, 224)


def _torchvision_peer(name: str) -> Callable[..., Any]:
    def build(x: Tensor, y: Tensor) -> Call:
        import_torchvision.prepare()
        from torchvision.transforms import v2

        mix = getattr(v2, name)(alpha=1.0, num_classes=CLASSES)
        return lambda x, y: mix(x, y)
    return build


def _timm_peer(**alphas: float) -> Callable[..., Any]:
    def build(x: Tensor, y: Tensor) -> Call:
        import_torchvision.prepare()
        from timm.data import Mixup

        mix, own = Mixup(**alphas, label_smoothing=0.0, num_classes=CLASSES), x.detach().clone()
        return lambda x, y: mix(own, y)
    return build


def _kornia_peer(name: str) -> Callable[..., Any]:
    def build(x: Tensor, y: Tensor) -> Call:
        import_torchvision.prepare()
        import kornia.augmentation

        mix = getattr(kornia.augmentation, name)(p=1.0, data_keys=["input", "class"])
        return lambda x, y: mix(x, y)
    return build


def _beta_on_the_host(x: Tensor, y: Tensor) -> Call:
    """The loop that most training scripts carry: one lambda from numpy, a permutation, two labels."""
    def run(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        lam = float(np.random.beta(1.0, 1.0))
        partner = torch.randperm(len(x), device=x.device)
        return lam * x + (1 - lam) * x[partner], y, y[partner]
    return run


def _dirichlet_on_the_host(x: Tensor, y: Tensor) -> Call:
    """DMixup as released: shares from numpy, K shuffled copies of the batch weighted and added."""
    def run(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        phi = torch.from_numpy(np.random.dirichlet([1 / 3] * 3, len(x))).to(x)
        order = [torch.arange(len(x)), *(torch.randperm(len(x)) for _ in range(2))]
        shape = (-1, *[1] * (x.ndim - 1))
        return sum(phi[:, k].view(shape) * x[index] for k, index in enumerate(order)), *(y[index] for index in order)
    return run


def _boxes_on_the_host(x: Tensor, y: Tensor) -> Call:
    """DCutMix as released: sides and corners drawn image by image in Python, slices copied one by one."""
    def run(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        order = [np.arange(len(x)), *(np.random.permutation(len(x)) for _ in range(2))]
        out, areas = x.clone(), np.empty((len(x), 3))
        for n, phi in enumerate(np.random.dirichlet([1 / 3] * 3, len(x))):
            top, left, (height, width), left_over = 0, 0, x.shape[2:], 1.0
            for k in range(2):
                remains = max(left_over - phi[k], 0.0)
                scale = (remains / left_over) ** 0.5 if left_over > 0 else 0.0
                tall, wide = round(height * scale), round(width * scale)
                areas[n, k] = height * width - tall * wide
                top += np.random.randint(height - tall + 1)
                left += np.random.randint(width - wide + 1)
                height, width, left_over = tall, wide, remains
                box = slice(top, top + height), slice(left, left + width)
                out[n, :, box[0], box[1]] = x[order[k + 1][n], :, box[0], box[1]]
            areas[n, 2] = height * width
        return out, torch.from_numpy(areas), *(y[index] for index in order)
    return run


def _quantile_masks(x: Tensor, y: Tensor, saliency: Tensor) -> Call:
    """R-Mix after its saliency pass, by pooling, torch.quantile and a full-size mask."""
    def run(x: Tensor, y: Tensor, saliency: Tensor) -> tuple[Tensor, ...]:
        n, _, height, width = x.shape
        p = int(np.random.choice([2, 4]))
        lam = float(np.random.beta(1.0, 1.0))
        pooled = nn.functional.avg_pool2d(saliency.square().mean(1, keepdim=True).sqrt(), (height // p, width // p))
        flat = pooled.flatten(1)
        flat = flat / flat.sum(1, keepdim=True)
        q = torch.from_numpy(np.random.choice(np.linspace(0, 0.99, 10), n)).to(flat)
        threshold = torch.stack([torch.quantile(row, share) for row, share in zip(flat, q, strict=True)])
        mask = (flat >= threshold[:, None]).float().view(n, 1, p, p)
        mask = nn.functional.interpolate(mask, (height, width), mode="nearest")
        partner = torch.randperm(n)
        other = mask[partner]
        share = lam * (mask == other) + (mask > other).float()
        return share * x + (1 - share) * x[partner], share.mean((1, 2, 3)), y, y[partner]
    return run


HOST = Peer("host lambda + index", _beta_on_the_host, same=False)
PEERS = {
    "Mixup": (HOST, Peer("torchvision MixUp", _torchvision_peer("MixUp"), requires="torchvision", same=False),
              Peer("timm Mixup", _timm_peer(mixup_alpha=1.0), requires="timm", same=False),
              Peer("kornia RandomMixUpV2", _kornia_peer("RandomMixUpV2"), requires="kornia", same=False)),
    "CutMix": (Peer("torchvision CutMix", _torchvision_peer("CutMix"), requires="torchvision", same=False),
               Peer("timm CutMix", _timm_peer(mixup_alpha=0.0, cutmix_alpha=1.0), requires="timm", same=False),
               Peer("kornia RandomCutMixV2", _kornia_peer("RandomCutMixV2"), requires="kornia", same=False)),
    "DMixup": (Peer("released algorithm", _dirichlet_on_the_host, same=False),),
    "DCutMix": (Peer("released algorithm", _boxes_on_the_host, same=False),),
    "RMix": (Peer("released algorithm", _quantile_masks, same=False),),
}
OPERATORS = {"Mixup": ("plan", "blend"), "DMixup": ("plan", "blend"), "CutMix": ("plan", "paste"),
             "DCutMix": ("plan", "paste"), "RMix": ("plan", "saliency", "patch_mix")}
# Libraries whose mixers do what ours do.
AT_LEAST = 1.5


def case(mixer: Any, shape: tuple[int, ...], quick: bool = False) -> Case:
    name = type(mixer).__name__

    def make(device: torch.device, seed: int) -> tuple[Tensor, ...]:
        g = generator(seed)
        labels = torch.randint(CLASSES, shape[:1], generator=g).to(device)
        args = [images(shape, torch.float32, False, device, g), labels]
        if mixer.needs_saliency:
            args.append(images(shape, torch.float32, False, device, g))
        return tuple(args)

    reads = 2 if mixer.needs_saliency else 1
    return Case(
        op="mixers", name=f"{name} {'x'.join(map(str, shape))}", make=make, ours=mixer, reference=mixer,
        moved=(1 + reads) * numel(shape) * 4,
        formula="3 N D s: x and saliency read, mixed written" if reads == 2 else "2 N D s: x read, mixed written",
        operators=OPERATORS[name], peers=PEERS[name],
        goals={"cpu": {peer.name: AT_LEAST for peer in PEERS[name] if peer.requires}},
        scratch=4096 * shape[0], quick=quick, random=True)


def cases() -> list[Case]:
    mixers = (fastmix.Mixup(1.0), fastmix.CutMix(1.0), fastmix.DMixup(3, 1 / 3), fastmix.DCutMix(3, 1 / 3),
              fastmix.RMix())
    return [case(mixer, shape, quick=shape is CIFAR and index < 2)
            for shape in (CIFAR, IMAGENET) for index, mixer in enumerate(mixers)]
