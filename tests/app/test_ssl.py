"""SimSiam and its views: the loss by hand, the stop-gradient, pair weights, crops, colours."""

import math

import pytest
import torch
from helpers.support import seeded
from torch import nn

import fastmix.functional as F
from fastmix.app.selfsupervised import SimSiam, pair_of_views, random_boxes, simsiam_loss
from fastmix.app.selfsupervised.simsiam import spread
from fastmix.app.selfsupervised.views import colour_jitter
from fastmix.functional import pair_iou, pair_weight

pytestmark = pytest.mark.usefixtures("one_thread")


def outputs(n=5, d=7, dtype=torch.float64):
    return [torch.randn(n, d, generator=seeded(i), dtype=dtype).requires_grad_() for i in range(4)]


def by_hand(p1, p2, z1, z2, weight):
    total = 0.0
    for n in range(len(p1)):
        for p, z in ((p1[n], z2[n]), (p2[n], z1[n])):
            dot = sum(a * b for a, b in zip(p.tolist(), z.tolist(), strict=True))
            norms = math.sqrt(sum(a * a for a in p.tolist())) * math.sqrt(sum(b * b for b in z.tolist()))
            total -= 0.5 * weight[n] * dot / norms
    return total / len(p1)


def test_the_loss_is_symmetrised_and_weighted():
    values = outputs()
    weight = torch.tensor([0.0, 0.5, 1.0, 2.0, 1.5])
    assert simsiam_loss(*values).item() == pytest.approx(by_hand(*values, [1.0] * 5))
    assert simsiam_loss(*values, weight).item() == pytest.approx(by_hand(*values, weight.tolist()))
    p1, p2, z1, z2 = values
    assert simsiam_loss(p2, p1, z2, z1, weight).item() == pytest.approx(simsiam_loss(*values, weight).item())
    assert simsiam_loss(p1, p2, p2, 3 * p1).item() == pytest.approx(-1 / 2 * 2 * nn.functional.cosine_similarity(
        p1, p1).mean().item())
    half = [value.detach().bfloat16() for value in values]
    assert simsiam_loss(*half).dtype == torch.float32
    with pytest.raises(ValueError, match=r"simsiam_loss: weight has shape \(4,\), want \(5,\)"):
        simsiam_loss(*values, weight[:4])
    with pytest.raises(ValueError, match="simsiam_loss: z2 has shape"):
        simsiam_loss(p1, p2, z1, z2[:3])


def test_no_gradient_flows_through_the_targets():
    p1, p2, z1, z2 = outputs()
    weight = torch.tensor([0.0, 1.0, 1.0, 1.0, 2.0])
    simsiam_loss(p1, p2, z1, z2, weight).backward()
    assert z1.grad is None and z2.grad is None
    assert (p1.grad[0] == 0).all() and p1.grad[1:].abs().sum() > 0 and p2.grad[1:].abs().sum() > 0

    def at(p):
        return simsiam_loss(p, p2.detach(), z1, z2, weight)

    assert torch.autograd.gradcheck(at, (p1.detach().requires_grad_(),))


def test_the_encoder_learns_through_the_predictor_alone():
    """With a predictor that passes no gradient back the encoder must get none at all."""
    torch.manual_seed(0)
    model = SimSiam(nn.Sequential(nn.Flatten(), nn.Linear(64, 6)), 6)
    assert model.projector[-1].num_features == 24 and model.predictor[0].out_features == 6
    views = torch.randn(2, 8, 1, 8, 8, generator=seeded())
    simsiam_loss(*model(*views)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    model.zero_grad()
    model.predictor.register_forward_pre_hook(lambda _, inputs: (inputs[0].detach(),))
    simsiam_loss(*model(*views)).backward()
    assert all(p.grad is None for p in [*model.backbone.parameters(), *model.projector.parameters()])


def test_spread_tells_a_collapse():
    z = torch.randn(4000, 16, generator=seeded())
    assert spread(z).item() == pytest.approx(1, abs=0.05)
    assert spread(torch.ones(10, 16) * torch.rand(10, 1, generator=seeded())).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("size", [(32, 32), (20, 48), (9, 3)])
@pytest.mark.parametrize(("scale", "ratio"), [((0.2, 1.0), (3 / 4, 4 / 3)), ((0.05, 0.1), (1.0, 1.0))])
def test_boxes_have_the_areas_and_ratios_asked_for(size, scale, ratio):
    boxes = random_boxes(4000, size, scale, ratio, generator=seeded()).double()
    top, left, height, width = boxes.unbind(1)
    whole = (height == size[0]) & (width == size[1])  # nothing fitted
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + height <= size[0] + 1e-4).all() and (left + width <= size[1] + 1e-4).all()
    drawn = ~whole
    share, aspect = (height * width / (size[0] * size[1]))[drawn], (width / height)[drawn]
    if drawn.any():
        assert share.min() >= scale[0] - 1e-5 and share.max() <= scale[1] + 1e-5
        assert aspect.min() >= ratio[0] - 1e-5 and aspect.max() <= ratio[1] + 1e-5
    if scale == (0.05, 0.1) and size != (9, 3):  # every draw fits: a plain uniform share
        assert not whole.any() and share.mean().item() == pytest.approx(0.075, abs=0.001)
        assert (top / (size[0] - height)).mean().item() == pytest.approx(0.5, abs=0.02)
    if size == (32, 32) and scale[1] == 1:
        assert whole.double().mean() < 0.001


def test_boxes_are_checked():
    for arguments, name in (({"scale": (0.0, 1.0)}, "scale"), ({"scale": (0.5, 1.5)}, "scale"),
                            ({"ratio": (0.0, 1.0)}, "ratio"), ({"ratio": (2.0, 1.0)}, "ratio")):
        with pytest.raises(ValueError, match=f"random_boxes: {name} is"):
            random_boxes(2, (8, 8), **arguments)


def test_views_are_the_crops_of_their_boxes():
    images = torch.randint(256, (6, 3, 12, 10), dtype=torch.uint8, generator=seeded())
    pair = pair_of_views(images, jitter=0.0, flip=False, generator=seeded(1))
    for view, box in zip((pair.first, pair.second), pair.boxes.unbind(1), strict=True):
        assert torch.equal(view, F.resized_crop(images.float(), box, (12, 10)))
    assert torch.equal(pair.iou, pair_iou(*pair.boxes.unbind(1)))
    assert pair.iou.min() >= 0 and pair.iou.max() <= 1 and pair.iou.std() > 0
    again = pair_of_views(images, jitter=0.0, flip=False, generator=seeded(1))
    assert all(torch.equal(a, b) for a, b in zip(pair, again, strict=True))
    whole = pair_of_views(images, scale=(1.0, 1.0), jitter=0.0, flip=True, generator=seeded(2))
    turned = [torch.equal(view, image.flip(2)) for view, image in zip(whole.first, images.float(), strict=True)]
    kept = [torch.equal(view, image) for view, image in zip(whole.first, images.float(), strict=True)]
    assert any(turned) and any(kept) and all(a != b for a, b in zip(turned, kept, strict=True))
    assert (whole.iou == 1).all()


def test_colour_jitter_keeps_some_images_and_greys_some():
    x = 255 * torch.rand(2000, 3, 4, 4, generator=seeded())
    out = colour_jitter(x, 0.4, seeded(1))
    assert out.min() >= 0 and out.max() <= 255
    grey = (out[:, :1] - out).abs().amax((1, 2, 3)) < 1e-3
    kept = (out == x).flatten(1).all(1)
    assert grey.double().mean().item() == pytest.approx(0.2, abs=0.03)
    assert kept.double().mean().item() == pytest.approx(0.2 * 0.8, abs=0.03)
    one = x[:, :1]
    brighter = colour_jitter(one, 0.4, seeded(1))
    assert (brighter == one).flatten(1).all(1).double().mean().item() == pytest.approx(0.2, abs=0.03)
    assert torch.equal(colour_jitter(x, 0.0, seeded(2))[0].isfinite(), torch.ones(3, 4, 4, dtype=torch.bool))


def test_pair_weights_enter_with_mean_one():
    """The weights that training uses: the curve of Eq. 9 and 10 over this batch's pairs."""
    from fastmix.app.selfsupervised.options import SslOptions
    from fastmix.app.selfsupervised.run import weights

    iou = torch.linspace(0.1, 0.9, 9)
    for kind, base in (("SA1", 1 - iou), ("SA2", iou)):
        raw = 1 - (1 - 0.2) * base.double()**3
        got = weights(SslOptions(pair_weight=kind, pair_k=3.0, pair_chance=0.2), iou)
        torch.testing.assert_close(got.double(), raw / raw.mean(), rtol=1e-5, atol=0)
        assert torch.equal(got, pair_weight(iou, 3.0, 0.2, kind))
    assert weights(SslOptions(), iou) is None
