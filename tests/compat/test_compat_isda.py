"""fastmix.compat.isda against the released algorithm, written out in fastmix.reference.isda_released."""

import pytest
import torch
from torch import nn

from fastmix.compat.isda import EstimatorCV, ISDALoss
from fastmix.reference import isda_released as released

A, J = 6, 4


class Body(nn.Module):
    """The CIFAR form's model gives features, ImageNet's logits and features."""

    def __init__(self):
        super().__init__()
        self.body, self.fc = nn.Linear(3, A), nn.Linear(A, J)

    def forward(self, x, isda=False):
        features = self.body(x)
        return (self.fc(features), features) if isda else features


class Wrapped(nn.Module):
    """As DataParallel: what it wraps is `module`, and it has no attributes of its own."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)


def state(kind):
    return torch.zeros(J), torch.zeros(J, A), torch.zeros(J, A, A) if kind == "full" else torch.zeros(J, A)


def update(kind, state, features, labels):
    """The released update; of diagonals, that of full ones."""
    count, mean, cov = state
    full = torch.diag_embed(cov) if kind == "diag" else cov
    released.covariance_update_(count, mean, full, features, labels)
    if kind == "diag":
        cov.copy_(full.diagonal(dim1=1, dim2=2))


@pytest.mark.parametrize("form", ["cifar", "cifar, wrapped", "imagenet", "imagenet, wrapped"])
def test_classification(form):
    kind = "full" if "cifar" in form else "diag"
    model, criterion, wanted = Body(), ISDALoss(A, J), state(kind)
    outer = Wrapped(model) if "wrapped" in form else model
    fc = Wrapped(model.fc) if "wrapped" in form else model.fc
    for step in range(3):
        x, y = torch.randn(9, 3), torch.randint(J, (9,))
        if "cifar" in form:
            loss, logits = criterion(outer, fc, x, y, 0.5 * step)
        else:
            loss, logits = criterion(outer, x, y, 0.5 * step)
        found = torch.autograd.grad(loss, list(model.parameters()))
        features = model(x)
        update(kind, wanted, features.detach(), y)
        plain = model.fc(features)
        augmented = released.isda_logits(plain, model.fc.weight, wanted[2], y, 0.5 * step)
        expected = nn.functional.cross_entropy(augmented, y)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(logits, plain)
        for a, b in zip(found, torch.autograd.grad(expected, list(model.parameters())), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(criterion.estimator.CoVariance, wanted[2], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(criterion.estimator.Ave, wanted[1], rtol=1e-4, atol=1e-6)
        assert torch.equal(criterion.estimator.Amount, wanted[0])


def test_pixels():
    conv, criterion = nn.Conv2d(A, J, 1), ISDALoss(A, J, "cpu")
    features, labels = torch.randn(2, A, 3, 4), torch.randint(J, (2, 6, 8))
    labels[0, :4] = 255
    y = conv(features)
    found = criterion(features, conv, y, labels, 0.7)
    small = labels[:, ::2, ::2]
    counts, wanted = small != 255, state("diag")
    flat = features.permute(0, 2, 3, 1)
    update("diag", wanted, flat[counts].detach(), small[counts])
    torch.testing.assert_close(criterion.estimator.CoVariance, wanted[2], rtol=1e-4, atol=1e-6)
    weight = conv.weight.flatten(1)
    expected = y.permute(0, 2, 3, 1).clone()
    expected[counts] = released.isda_logits(expected[counts], weight, wanted[2], small[counts], 0.7)
    torch.testing.assert_close(found, expected.permute(0, 3, 1, 2), rtol=1e-4, atol=1e-5)


def test_label_255_is_a_class_of_imagenet():
    criterion, features = ISDALoss(A, 300), torch.randn(4, A)
    fc = nn.Linear(A, 300)
    criterion(nn.Identity(), fc, features, torch.tensor([255, 255, 0, 1]), 0.5)
    assert criterion.estimator.Amount[255] == 2


def test_the_state_moves_and_is_stored():
    first = ISDALoss(A, J, kind="diag")
    first.estimator.update_CV(torch.randn(5, A), torch.tensor([0, 1, 1, 2, 3]))
    second = ISDALoss(A, J, kind="diag")
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.estimator.CoVariance, first.estimator.CoVariance)
    assert EstimatorCV(A, J).CoVariance.shape == (J, A, A)


def test_other_calls_are_an_error():
    with pytest.raises(TypeError, match=r"ISDALoss: called with \(Tensor, Linear\), want \(model, fc, x, target, "):
        ISDALoss(A, J)(torch.randn(2, A), nn.Linear(A, J))
