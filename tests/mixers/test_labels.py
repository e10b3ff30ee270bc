"""Labels of every kind through every mixer: ignored, dense and multi-hot ones, label maps; clips and masks."""

import pytest
import torch
from helpers.mixing import MAKERS, batch, every
from torch.nn.functional import one_hot

import fastmix.functional as F
from fastmix import (
    Compose,
    CutMix,
    Cutout,
    DCutMix,
    Mixup,
    Refinement,
    RMix,
    SoftCrop,
    SoftNoise,
    SoftResizedCrop,
    SoftTarget,
    View,
)

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.operator("blend", "paste", "patch_mix", "plan")]
SOFT = {"SoftCrop": lambda: SoftCrop(6), "SoftResizedCrop": lambda: SoftResizedCrop(6),
        "SoftNoise": lambda: SoftNoise(6)}
ALL = {**MAKERS, **SOFT}


def drawn(name):
    """A plan, the images and labels it is for."""
    x, y, saliency = batch()
    return ALL[name]().plan(x, saliency), x, y


# ---------------------------------------------------------------- ignored labels

@pytest.mark.parametrize("name", ALL)
def test_an_ignored_label_counts_nothing_wherever_it_is_mixed_in(name):
    """The loss is the mixture of the labels' losses, that of an ignored one being 0."""
    plan, _, y = drawn(name)
    some = y.clone()
    some[[1, 4]] = -100
    z = torch.randn(6, 6)
    got = F.soft_cross_entropy(z, plan.target(some), reduction="none")
    # The same mixture of distributions whose ignored rows are empty.
    dense = torch.where((some >= 0).unsqueeze(1), one_hot(y, 6).float(), 0.0)
    softened = plan.target(y).dense(6)
    if name in SOFT:
        softened[some < 0] = 0
    else:
        softened = plan.target(dense)
    torch.testing.assert_close(got, -(softened * z.log_softmax(1)).sum(1), atol=1e-5, rtol=1e-5)


def test_an_ignored_label_after_soft_augmentation_and_mixing():
    x, y, _ = batch()
    y[2] = -100
    plan, mixing = SoftCrop(6).plan(x), Mixup(1.0).plan(x)
    soft = plan.target(y)
    z = torch.randn(6, 6)
    rows = F.soft_cross_entropy(z, soft, reduction="none")
    assert rows[2] == 0 and (rows[[0, 1, 3]] > 0).all()
    empty = torch.where((y >= 0).unsqueeze(1), soft.dense(6), 0.0)
    want = -(mixing.target(empty) * z.log_softmax(1)).sum(1)
    torch.testing.assert_close(F.soft_cross_entropy(z, mixing.target(soft), reduction="none"), want)
    both = SoftCrop(6).plan(x).target(mixing.target(y))
    assert (F.soft_cross_entropy(z, both, reduction="none") >= 0).all()


# ---------------------------------------------------------------- dense labels

@pytest.mark.parametrize("name", ALL)
def test_dense_labels_stay_dense(name):
    plan, x, y = drawn(name)
    dense = one_hot(y, 6).float()
    mixed, target = plan.mix(x, dense)
    assert isinstance(target, torch.Tensor) and target.dtype == torch.float32
    torch.testing.assert_close(target, plan.target(y).dense(6))
    torch.testing.assert_close(mixed, plan.apply(x), equal_nan=True)
    half = plan.target(dense.bfloat16())
    assert half.dtype == torch.bfloat16


@every
def test_multi_hot_labels_are_blended(name):
    plan, _, _ = drawn(name)
    y = (torch.rand(6, 4) < 0.5).float()
    target = plan.target(y)
    if name == "Compose":
        first, second, third = plan.plans
        torch.testing.assert_close(target, third.target(second.target(first.target(y))))
    elif "Cutout" in name:
        assert torch.equal(target, y)
    else:
        torch.testing.assert_close(target, (plan.weight.unsqueeze(2) * y[plan.index]).sum(1))
    assert torch.isfinite(F.soft_bce(torch.randn(6, 4), target))


def test_dense_labels_backwards_and_in_the_refinement():
    x, y, _ = batch()
    dense = one_hot(y, 6).float()
    refinement = Refinement(4, 2)
    torch.testing.assert_close(refinement.smooth(dense, 0.1, 6), refinement.smooth(y, 0.1, 6).dense(6))
    refinement.begin(3)
    assert torch.equal(refinement.smooth(dense, 0.1, 6), dense)
    with pytest.raises(ValueError, match=r"y has shape \(6, 6\) of dtype torch.int64, want .*y.float\(\)"):
        Mixup()(x, dense.long())
    with pytest.raises(ValueError, match="y has 5 rows, want 6"):
        Mixup()(x, dense[:5])


# ---------------------------------------------------------------- clips

@pytest.mark.parametrize("name", ALL)
def test_clips_every_frame_alike(name):
    x = torch.randn(6, 3, 4, 8, 12)
    y, saliency = torch.arange(6), torch.randn(x.shape)
    torch.manual_seed(1)
    plan = ALL[name]().plan(x, saliency)
    mixed, target = plan.mix(x, y)
    assert mixed.shape == x.shape and len(target) == 6
    if name == "SoftNoise":
        return  # every frame has noise of its own
    for frame in range(4):
        torch.testing.assert_close(mixed[:, :, frame], plan.apply(x[:, :, frame].contiguous()))
    last = x.contiguous(memory_format=torch.channels_last_3d)
    assert plan.apply(last).is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(plan.apply(last), mixed)


@pytest.mark.parametrize("name", ["Mixup", "CutMix", "RMix", "Cutout", "SoftCrop"])
def test_clips_through_a_view(name):
    x = torch.randint(256, (6, 3, 4, 8, 12), dtype=torch.uint8)
    view = View.draw(x, torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.4, 0.5, 0.6]), pad=2)
    seen = view.apply(x)
    for frame in range(4):
        torch.testing.assert_close(seen[:, :, frame], view.apply(x[:, :, frame].contiguous()))
    plan = ALL[name]().plan(x, torch.randn(x.shape))
    torch.testing.assert_close(plan.apply(x, view), plan.apply(seen), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="channels_last"):
        view._replace(memory_format=torch.channels_last).apply(x)


def test_gradients_through_a_clip():
    x = torch.randn(4, 2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    for mixer in (DCutMix(3), Mixup(), RMix(), SoftCrop(6), SoftResizedCrop(6)):
        plan = mixer.plan(x.detach(), torch.randn(x.shape))
        torch.autograd.gradcheck(plan.apply, x, fast_mode=True)


# ---------------------------------------------------------------- masks and label maps

PASTING = ("CutMix", "CutMix-elem", "DCutMix", "SaliencyDCutMix")


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool])
@pytest.mark.parametrize("name", PASTING)
def test_masks_are_pasted_as_the_images(variant, name, dtype):
    x, _, saliency = batch()
    plan = ALL[name]().plan(x, saliency)
    mask = torch.randint(-9 if dtype.is_signed else 0, 200, (6, 8, 12)).to(dtype)
    want = plan.apply(mask.double().unsqueeze(1)).squeeze(1).to(dtype)
    assert torch.equal(plan.apply(mask), want) and plan.apply(mask).dtype == dtype
    assert torch.equal(plan.apply(mask.unsqueeze(1)), want.unsqueeze(1))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool])
def test_masks_are_cropped_and_flipped_as_the_images(dtype):
    x, _, _ = batch()
    outside = -100 if dtype.is_signed else 0
    mask = torch.randint(1, 2 if dtype == torch.bool else 100, (6, 8, 12)).to(dtype)
    plan = SoftCrop(6, sigma=0.5).plan(x)
    want = F.crop(mask.double().unsqueeze(1), plan.shift, fill=outside).squeeze(1).to(dtype)
    assert torch.equal(plan.apply(mask), want)
    whole = SoftResizedCrop(6, size=(16, 24))
    whole.enabled = False
    assert torch.equal(whole.plan(x).apply(mask), mask.repeat_interleave(2, 1).repeat_interleave(2, 2))
    view = View.draw(torch.zeros(6, 1, 8, 12, dtype=torch.uint8), torch.zeros(1), torch.ones(1), pad=3)
    if dtype == torch.uint8:
        seen = view.apply(mask.unsqueeze(1)).squeeze(1)
        assert torch.equal((seen * 255).round().to(dtype), view.apply_mask(mask))
    assert (view.apply_mask(mask, fill=1) != 0).all()
    cut = Cutout(5).plan(x)
    assert torch.equal(cut.apply(mask) == outside, cut.apply(torch.ones(6, 1, 8, 12)).squeeze(1) == 0)
    assert torch.equal(SoftNoise(6).plan(x).apply(mask), mask)


def test_a_blend_of_masks_has_no_meaning():
    x, _, saliency = batch()
    mask = torch.randint(5, (6, 8, 12))
    for mixer in (Mixup(), RMix()):
        with pytest.raises(TypeError, match=r"whole numbers cannot be blended; plan.target\(x\)"):
            mixer.plan(x, saliency).apply(mask if isinstance(mixer, Mixup) else mask.unsqueeze(1))


@pytest.mark.parametrize("name", ["Mixup", "DMixup", "CutMix", "DCutMix", "RMix", "Cutout", "Compose", "SoftCrop",
                                  "SoftResizedCrop"])
def test_label_maps_give_a_target_for_every_pixel(name):
    """As images of one plane a class would: blended where images are, pasted where they are."""
    plan, x, _ = drawn(name)
    y = torch.randint(5, (6, 8, 12))
    target = plan.target(y)
    assert isinstance(target, SoftTarget) and target.index.shape[:3] == (6, *plan.apply(x).shape[2:])
    planes = one_hot(y, 5).movedim(-1, 1).float()
    if name == "SoftResizedCrop":
        planes = one_hot(plan.apply(y).clamp(min=0), 5).movedim(-1, 1).float() * (plan.apply(y) >= 0).unsqueeze(1)
        want = planes
    else:
        want = plan.apply(planes)
    if name.startswith("Soft"):
        kept = (want.sum(1, keepdim=True) > 0)
        want = torch.where(kept, (plan.confidence - plan.base).view(-1, 1, 1, 1) * want + plan.base.view(-1, 1, 1, 1),
                           plan.base.view(-1, 1, 1, 1))
    torch.testing.assert_close(target.dense(5), want)
    again = plan.target(target) if name in ("Mixup", "CutMix", "RMix", "Cutout") else None
    if again is not None:
        torch.testing.assert_close(again.dense(5), plan.apply(target.dense(5)))
    z = torch.randn(6, 5, *target.index.shape[1:3])
    assert torch.isfinite(F.soft_cross_entropy(z, target))
    if not name.startswith("Soft"):
        torch.testing.assert_close(plan.target(planes), want)


def test_a_segmentation_step():
    """Images and label maps through one mixer, with an ignored label in the maps."""
    x, _, _ = batch()
    y = torch.randint(5, (6, 8, 12))
    y[:, 0] = -100
    mixer = Compose(CutMix(), Mixup())
    mixed, target = mixer(x, y)
    z = torch.randn(6, 5, 8, 12, requires_grad=True)
    F.soft_cross_entropy(z, target).backward()
    assert mixed.shape == x.shape and (z.grad[:, :, 0] == 0).any() and torch.isfinite(z.grad).all()
