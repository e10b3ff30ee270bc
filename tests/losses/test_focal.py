"""The focal loss, a baseline of Soft Augmentation's Table 1."""

import pytest
import torch

from fastmix import FocalLoss


@pytest.mark.parametrize("gamma", [0, 0.5, 1, 2, 5])
def test_focal_loss_is_its_equation(gamma):
    z = (4 * torch.randn(20, 5, dtype=torch.float64)).requires_grad_()
    y = torch.randint(0, 5, (20,))
    p = z.softmax(1)[range(20), y]
    want = -((1 - p) ** gamma) * p.log()
    torch.testing.assert_close(FocalLoss(gamma, reduction="none")(z, y), want)
    torch.testing.assert_close(FocalLoss(gamma)(z, y), want.mean())
    torch.testing.assert_close(FocalLoss(gamma, reduction="sum")(z.to(torch.bfloat16), y).double(), want.sum(),
                               rtol=0.05, atol=0.05)
    torch.autograd.gradcheck(lambda v: FocalLoss(gamma)(v, y), z)
    if gamma == 0:
        torch.testing.assert_close(FocalLoss(0)(z, y), torch.nn.functional.cross_entropy(z, y))


@pytest.mark.parametrize("gamma", [0, 0.5, 1, 2])
def test_focal_loss_of_a_certain_answer_is_finite(gamma):
    z = torch.tensor([[200.0, 0, 0], [0, 200.0, 0]], requires_grad=True)
    loss = FocalLoss(gamma)(z, torch.tensor([0, 0]))
    loss.backward()
    assert loss.item() == pytest.approx(100) and z.grad.isfinite().all()


def test_focal_loss_of_no_rows_is_zero():
    z = torch.zeros(0, 3, requires_grad=True)
    loss = FocalLoss()(z, torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0 and z.grad.shape == (0, 3)


@pytest.mark.parametrize("call,error,text", [
    (lambda: FocalLoss(-1), ValueError, "FocalLoss: gamma is -1, want a finite number >= 0"),
    (lambda: FocalLoss()(torch.zeros(2, 3), torch.tensor([0, 3])), IndexError,
     r"FocalLoss: label of row 1 is 3, want a value in \[0, 3\)"),
    (lambda: FocalLoss()(torch.zeros(2, 3).long(), torch.zeros(2).long()), TypeError, "logits has dtype int64"),
    (lambda: FocalLoss()(torch.zeros(2, 3), torch.zeros(2, device="meta").long()), ValueError, "label is on meta"),
    (lambda: FocalLoss()(torch.zeros(2, 3), torch.zeros(3).long()), ValueError, r"FocalLoss: label has shape \(3,\)"),
])
def test_errors(call, error, text):
    with pytest.raises(error, match=text):
        call()
