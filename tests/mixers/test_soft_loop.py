"""Soft Augmentation in a loop that does not know it: two values, views, composed with mixtures, its loss."""

import pytest
import torch
from test_soft_augmentation import MAKERS, batch, equal, every

import fastmix
import fastmix.functional as F
from fastmix import Compose, Mixup, SoftCrop, SoftResizedCrop, SoftTarget

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_soft_augmentation_composes_with_a_mixture():
    """The loss of SoftCrop after Mixup: confidence p of the window, the mixture's classes in their proportions."""
    x, y = batch(8)
    torch.manual_seed(1)
    plan = Compose(Mixup(1.0, mode="elem"), SoftCrop(8)).plan(x)
    blend, crop = plan.plans
    target, p = plan.target(y), crop.confidence
    torch.testing.assert_close(target.confidence(), p)
    z = torch.randn(8, 8, dtype=torch.float64)
    t, log_q = target.dense(8).double(), z.log_softmax(1)
    kl = (torch.special.xlogy(t, t) - t * log_q).sum(1)
    mixed = -(blend.target(y).dense(8).double() * log_q).sum(1)
    want = {"sample": (p * kl).mean(), "none": kl.mean(), "weight": (p * mixed).mean(),
            "batch_mean": p.mean() * kl.mean()}
    for weighting, value in want.items():
        torch.testing.assert_close(F.soft_target_kl(z, target, weighting=weighting).double(), value.double(), rtol=1e-5,
                                   atol=1e-6)


@every
def test_bytes_are_read_through_a_view(name):
    x = torch.randint(0, 256, (6, 3, 12, 8), dtype=torch.uint8)
    y, view = torch.arange(6), fastmix.View.draw(x, torch.full((3,), 0.4), torch.full((3,), 0.2), pad=2)
    augment = MAKERS[name]()
    torch.manual_seed(3)
    got = augment(x, y, view=view)
    torch.manual_seed(3)
    assert equal(got, augment(view.apply(x), y))


def test_the_confidence_of_a_target():
    y = torch.tensor([0, 2, 1])
    assert (SoftTarget.from_labels(y).confidence() == 1).all()
    mixed = fastmix.DCutMix()(torch.randn(3, 1, 8, 8), y)[1]
    torch.testing.assert_close(mixed.confidence(), torch.ones(3))
    p = torch.tensor([1.0, 0.4, 0.25])
    torch.testing.assert_close(SoftTarget.from_confidence(y, p, 4).confidence(), p)
    z = torch.randn(3, 4)
    with pytest.raises(TypeError, match="soft_target_kl: confidence is None, want"):
        F.soft_target_kl(z, y)
    with pytest.raises(TypeError, match="soft_target_kl: confidence is given, want None"):
        F.soft_target_kl(z, SoftTarget.from_labels(y), p)


def test_a_resized_crop_keeps_the_images_size():
    x, y = batch(3, 2, (9, 14))
    assert SoftResizedCrop(10)(x, y)[0].shape == x.shape
