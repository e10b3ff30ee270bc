"""Saliency-DCutMix: its boxes against a loop over images and boxes, its labels, its centres."""

import math

import pytest
import torch
from helpers.mixing import batch, given_shares
from helpers.support import seeded
from hypothesis import given
from hypothesis import strategies as st

import fastmix
from fastmix import DCutMix, SaliencyDCutMix
from fastmix.functional import saliency_peak

pytestmark = pytest.mark.usefixtures("one_thread")


def slow_peak(grad):
    """(row, column) of the largest channel norm of one image (C, H, W), the first of several."""
    norms = grad.double().square().sum(0).tolist()
    return max(((i, j) for i in range(len(norms)) for j in range(len(norms[0]))), key=lambda p: norms[p[0]][p[1]])


def slow_boxes(phi, size, peaks):
    """One image's nested boxes: stick breaking in Python floats, then each axis placed by hand."""
    box, left, boxes = (0, 0, *size), 1.0, []
    for share, peak in zip(phi[:-1], peaks, strict=True):
        v = share / left if left > 0 else 1.0
        left -= share
        scale = math.sqrt(max(0.0, 1 - v))
        corner, sides = [], []
        for axis in (0, 1):
            side = round(box[2 + axis] * scale)
            start = peak[axis] - side // 2
            if start < box[axis]:
                start = box[axis]
            if start + side > box[axis] + box[2 + axis]:
                start = box[axis] + box[2 + axis] - side
            corner.append(start)
            sides.append(side)
        box = (*corner, *sides)
        boxes.append(box)
    return boxes


@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [(8, 12), (17, 9), (1, 1)])
def test_boxes_against_a_loop(k, size, monkeypatch):
    n = 40
    g = seeded(k)
    # Sixteenths: the reference's float arithmetic is exact, so rounding to whole pixels cannot differ.
    phi = torch.distributions.Multinomial(16, torch.ones(k)).sample((n,)) / 16
    given_shares(monkeypatch, phi)
    grad = torch.randn(n, 3, *size, generator=g)
    plan = SaliencyDCutMix(k, 0.5, generator=g).plan(grad, grad)
    peaks = [slow_peak(image) for image in grad]
    for row in range(n):
        want = slow_boxes(phi[row].tolist(), size, [peaks[source] for source in plan.index[row, 1:].tolist()])
        assert plan.boxes[row].tolist() == [list(box) for box in want]


@given(k=st.integers(2, 6), height=st.integers(1, 20), width=st.integers(1, 20), seed=st.integers(0, 2**31))
def test_boxes_are_nested_and_as_near_to_the_peak_as_can_be(k, height, width, seed):
    torch.manual_seed(seed)
    grad = torch.randn(5, 2, height, width)
    plan = SaliencyDCutMix(k, 0.4).plan(grad, grad)
    peaks = saliency_peak(grad)[plan.index[:, 1:]]
    outer = torch.tensor([0, 0, height, width]).expand(5, 4)
    for box, peak in zip(plan.boxes.unbind(1), peaks.unbind(1), strict=True):
        start, side = box[:, :2].long(), box[:, 2:].long()
        assert (side >= 0).all() and (start >= outer[:, :2]).all()
        assert (start + side <= outer[:, :2] + outer[:, 2:]).all()
        wanted = peak - side // 2
        moved = start != wanted
        touches = (start == outer[:, :2]) | (start + side == outer[:, :2] + outer[:, 2:])
        assert (touches | ~moved).all()  # centred, or stopped by the edge of the box before
        assert (side[~moved] == 0).logical_or((peak >= start)[~moved] & (peak < start + side)[~moved]).all()
        outer = box.long()


def test_sides_are_those_of_dcutmix():
    x, _, saliency = batch(50, 1, (32, 24))
    torch.manual_seed(3)
    with_saliency = SaliencyDCutMix(4, 0.5).plan(x, saliency)
    torch.manual_seed(3)
    uniform = DCutMix(4, 0.5).plan(x)
    assert torch.equal(with_saliency.boxes[..., 2:], uniform.boxes[..., 2:])
    assert torch.equal(with_saliency.weight, uniform.weight)
    assert not torch.equal(with_saliency.boxes, uniform.boxes)


def test_the_pasted_image_gives_the_centre_and_only_its_peak_matters():
    """Every image has one bright pixel: the first box of image n is centred on that of the image pasted there."""
    n, side = 6, 33
    grad = torch.zeros(n, 1, side, side)
    for row in range(n):
        grad[row, 0, 14 + row, 18 - row] = 1e-12 if row % 2 else 1e12
    plan = SaliencyDCutMix(2, 5.0, generator=seeded()).plan(grad, grad)
    start, size = plan.boxes[:, 0, :2], plan.boxes[:, 0, 2:]
    source = plan.index[:, 1]
    want = torch.stack([14 + source, 18 - source], 1)
    free = (want - size // 2 >= 0) & (want - size // 2 + size <= side)
    assert free.sum() >= 6 and torch.equal((start + size // 2)[free].long(), want[free])
    scaled = SaliencyDCutMix(2, 5.0, generator=seeded()).plan(grad, 7 * grad)
    assert torch.equal(scaled.boxes, plan.boxes)


def test_label_is_the_share_of_the_pixels_and_the_pixels_are_the_peaks():
    x, y, saliency = batch(30, 3, (16, 16))
    plan = SaliencyDCutMix(3, 0.5, generator=seeded()).plan(x, saliency)
    owner = torch.zeros(30, 16, 16, dtype=torch.int64)
    for row in range(30):
        for k, (top, left, tall, wide) in enumerate(plan.boxes[row].tolist(), start=1):
            owner[row, top:top + tall, left:left + wide] = k
    share = torch.stack([(owner == k).float().mean((1, 2)) for k in range(3)], 1)
    torch.testing.assert_close(plan.weight, share, rtol=0, atol=1e-7)
    mixed, target = plan.mix(x, y)
    for row in range(30):
        want = torch.stack([x[source] for source in plan.index[row]])
        assert torch.equal(mixed[row], want.gather(0, owner[row].expand(1, 3, -1, -1))[0])
    assert torch.equal(target.index, y[plan.index])


def test_the_model_gives_the_saliency():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 4))
    x, y = torch.randn(6, 3, 8, 8), torch.arange(6) % 4
    mixer = SaliencyDCutMix(3, 1 / 3)
    assert mixer.needs_saliency
    with pytest.raises(ValueError, match="SaliencyDCutMix: saliency is None"):
        mixer(x, y)
    mixed, target = mixer(x, y, fastmix.input_saliency(model, x, y))
    fastmix.functional.soft_cross_entropy(model(mixed), target).backward()
    assert model[1].weight.grad.isfinite().all()
    mixer.enabled = False
    assert torch.equal(mixer(x, y)[0], x)
