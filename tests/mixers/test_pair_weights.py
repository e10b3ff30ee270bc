"""Pair weights of Soft Augmentation in self-supervised learning: the overlap of two crops, Eq. 9 and 10."""

import pytest
import torch
from helpers.support import seeded

from fastmix import pair_iou, pair_weight


def test_iou_of_boxes_counts_pixels():
    a = torch.randint(0, 12, (300, 4), generator=seeded(0))
    b = torch.randint(0, 12, (300, 4), generator=seeded(1))

    def inside(boxes):
        i, j = torch.arange(30).view(1, -1, 1), torch.arange(30).view(1, 1, -1)
        top, left, tall, wide = boxes.view(-1, 4, 1, 1).unbind(1)
        return (i >= top) & (i < top + tall) & (j >= left) & (j < left + wide)

    both, either = (inside(a) & inside(b)).sum((1, 2)), (inside(a) | inside(b)).sum((1, 2))
    torch.testing.assert_close(pair_iou(a, b), both / either.clamp_min(1))
    torch.testing.assert_close(pair_iou(a.double(), a.double()), (a[:, 2:].prod(1) > 0).double())
    assert pair_iou(torch.tensor([[0.0, 0, -3, 4]]), torch.tensor([[0.0, 0, 3, 4]])).item() == 0


@pytest.mark.parametrize("k", [1, 4])
def test_pair_weights_are_equations_9_and_10(k):
    iou = torch.rand(50, generator=seeded(0))
    for chance in (0.0, 0.1):
        one = torch.tensor([1 - (1 - chance) * (1 - v) ** k for v in iou.tolist()])
        two = torch.tensor([1 - (1 - chance) * v**k for v in iou.tolist()])
        torch.testing.assert_close(pair_weight(iou, k, chance, "SA1", normalise=False), one)
        torch.testing.assert_close(pair_weight(iou, k, chance, "SA2", normalise=False), two)
        for variant, weight in (("SA1", one), ("SA2", two)):
            got = pair_weight(iou, k, chance, variant)
            torch.testing.assert_close(got, weight / weight.mean())
            assert got.mean().item() == pytest.approx(1)
    assert (pair_weight(torch.zeros(3)) == 0).all() and pair_weight(torch.zeros(0)).shape == (0,)


@pytest.mark.parametrize("call,error,text", [
    (lambda: pair_iou(torch.zeros(3, 4), torch.zeros(2, 4)), ValueError, r"pair_iou: box_b has shape \(2, 4\), want"),
    (lambda: pair_iou(torch.zeros(4), torch.zeros(4)), ValueError, r"pair_iou: box_a has shape \(4,\), want 2 dim"),
    (lambda: pair_weight(torch.zeros(3), variant="SA3"), ValueError, "pair_weight: variant is 'SA3', want one of"),
])
def test_errors(call, error, text):
    with pytest.raises(error, match=text):
        call()
