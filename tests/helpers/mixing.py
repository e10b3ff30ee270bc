"""What the tests of the mixers share: every mixer with fixed arguments, a batch, equality of plans."""

import pytest
import torch

from fastmix import Compose, CutMix, Cutout, DCutMix, DMixup, ManifoldMixup, Mixup, RLMix, RMix, SaliencyDCutMix
from fastmix.mixers import boxes

from .support import seeded

MAKERS = {
    "Mixup": lambda **k: Mixup(0.4, **k),
    "Mixup-elem": lambda **k: Mixup(0.4, mode="elem", **k),
    "CutMix": lambda **k: CutMix(1.0, **k),
    "CutMix-elem": lambda **k: CutMix(1.0, mode="elem", **k),
    "DMixup": lambda **k: DMixup(3, 0.5, **k),
    "DMixup-1": lambda **k: DMixup(1, 0.5, **k),
    "DCutMix": lambda **k: DCutMix(4, 0.5, **k),
    "DCutMix-1": lambda **k: DCutMix(1, 0.5, **k),
    "SaliencyDCutMix": lambda **k: SaliencyDCutMix(4, 0.5, **k),
    "SaliencyDCutMix-1": lambda **k: SaliencyDCutMix(1, 0.5, **k),
    "ManifoldMixup": lambda **k: ManifoldMixup(0.4, **k),  # called on images it mixes the input
    "RMix": lambda **k: RMix(**k),
    "RMix-flip": lambda **k: RMix(0.2, patches=(2,), pairing="flip", **k),
    "RLMix": lambda **k: RLMix(patches=4, **k),
    "Cutout": lambda **k: Cutout(5, **k),
    "Cutout-batch": lambda **k: Cutout(5, mode="batch", **k),
    "Compose": lambda **k: Compose(RMix(), Mixup(1.0, mode="elem"), DCutMix(3, 0.5), **k),
}
MIXING = [name for name in MAKERS if not name.startswith("Cutout")]
ELEM = [name for name in MAKERS if name.endswith("-elem") or name == "Cutout"]
SINGLE = ("DMixup-1", "DCutMix-1", "SaliencyDCutMix-1")  # K = 1 changes nothing
every = pytest.mark.parametrize("name", MAKERS)


def batch(n=6, c=3, size=(8, 12), dtype=torch.float32, seed=0):
    """Images, labels that differ, saliency."""
    g = seeded(seed)
    x = torch.randn(n, c, *size, generator=g).to(dtype)
    return x, torch.arange(n), torch.randn(n, c, *size, generator=g).to(dtype)


def same(a, b):
    """Nested tuples of tensors are equal bit for bit."""
    if isinstance(a, tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return a is b is None or torch.equal(a, b)


def given_shares(monkeypatch, phi):
    """CutMix and DCutMix draw everything but the shares, which are phi (N, K)."""
    plan_paste = boxes.plan_paste
    monkeypatch.setattr(boxes, "plan_paste",
                        lambda _, *args, **options: plan_paste(phi, *args, **{**options, "alpha": 0.0}))
