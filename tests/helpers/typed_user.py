"""A program of a user's, as `mypy --strict` and pyright read it: what fastmix takes and gives has types.

Never imported: tests/house/test_types.py has mypy check it. A comment ``type: ignore`` stands where an error is wanted;
one that is not needed is an error.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from typing_extensions import assert_type

import fastmix
from fastmix import Labels, Mixer, Plan, SoftTarget, Target

MIXERS: list[Mixer] = [
    fastmix.Mixup(0.2), fastmix.CutMix(1.0, mode="elem"), fastmix.DMixup(3), fastmix.DCutMix(k=3, alpha=0.2),
    fastmix.SaliencyDCutMix(), fastmix.RMix(patches=(2, 4)), fastmix.RLMix(), fastmix.ManifoldMixup(2.0),
    fastmix.Cutout(8), fastmix.SoftCrop(10), fastmix.SoftResizedCrop(10, size=(8, 8)), fastmix.SoftNoise(10),
    fastmix.RandomChoice([fastmix.Mixup(), fastmix.CutMix()]), fastmix.Compose(fastmix.Mixup(), fastmix.Cutout())]
LOSSES = fastmix.SoftCrossEntropy(), fastmix.SoftTargetKL(), fastmix.SoftBCE()


def train(model: nn.Module, loader: Iterable[tuple[Tensor, Tensor]], mixer: Mixer) -> Tensor:
    criterion = fastmix.SoftCrossEntropy(label_smoothing=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    total = torch.zeros(())
    for x, y in loader:
        with mixer.applied(model, x, y) as (images, target):
            assert_type(images, Tensor)
            loss = criterion(model(images), target)
        assert_type(loss, Tensor)
        optimizer.step()
        total += loss.detach()
    return total


def mixers(x: Tensor, y: Labels, mixer: Mixer) -> Target:
    assert_type(mixer(x, y), tuple[Tensor, Target])
    assert_type(fastmix.DCutMix()(x, y, view=fastmix.View(x, x)), tuple[Tensor, Target])
    assert_type(fastmix.RLMix()(x, y, x, q=torch.tensor(0.5)), tuple[Tensor, Target])
    plan = mixer.plan(x)
    assert_type(plan, Plan)
    if isinstance(plan, fastmix.PastePlan):
        assert_type(plan.boxes, Tensor)
    assert_type(plan.apply(x), Tensor)
    assert_type(plan.to("cuda").mix(x, y), tuple[Tensor, Target])
    target = plan.target(y)
    if isinstance(target, SoftTarget):
        assert_type(target.confidence(), Tensor)
    return target


def losses(logits: Tensor, target: Target) -> None:
    cross_entropy, kl, bce = LOSSES
    assert_type(cross_entropy(logits, target, sample_weight=torch.ones(4)), Tensor)
    assert_type(kl(logits, target, torch.ones(4)), Tensor)
    assert_type(bce(logits, target), Tensor)
    assert_type(fastmix.FocalLoss()(logits, torch.arange(4)), Tensor)
    isda = fastmix.ISDALoss(num_features=64, num_classes=10)
    loss, given = isda(logits, nn.Linear(64, 10), torch.arange(4), 0.5, update=False)
    assert_type(loss, Tensor)
    assert_type(given, Tensor)
    fastmix.ISDACovariance(10, 64)(logits, torch.arange(4))
    assert_type(fastmix.functional.soft_cross_entropy(logits, target), Tensor)


def wrong(x: Tensor, y: Tensor, fc: nn.Linear) -> None:
    fastmix.DCutMix()(x)  # type: ignore[call-arg]
    fastmix.DCutMix()(x, "labels")  # type: ignore[arg-type]
    fastmix.Mixup()(x, y, q=x)  # type: ignore[call-arg]
    fastmix.SoftCrossEntropy()(x)  # type: ignore[call-arg]
    fastmix.SoftTargetKL()(x, y, 0.5)  # type: ignore[arg-type]
    fastmix.ISDALoss(64, 10)(x, fc, y)  # type: ignore[call-arg]
    print(fastmix.Mixup().plan(x).boxes)  # type: ignore[union-attr]
