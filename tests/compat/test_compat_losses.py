"""fastmix.compat.losses against torch.nn."""

import pytest
import torch
from helpers.support import loss_and_gradient
from torch import nn

from fastmix import SoftTarget
from fastmix.compat.losses import CrossEntropyLoss


@pytest.mark.parametrize("shape", [(6, 5), (4, 5, 3), (2, 5, 3, 4)])
@pytest.mark.parametrize("options", [
    {}, {"reduction": "sum"}, {"reduction": "none"}, {"label_smoothing": 0.2}, {"ignore_index": 1},
    {"weight": torch.rand(5) + 0.5}, {"weight": torch.rand(5) + 0.5, "label_smoothing": 0.1, "ignore_index": 2}],
    ids=lambda options: "-".join(options) or "plain")
@pytest.mark.parametrize("kind", ["labels", "probabilities"])
def test_values_and_loss_and_gradient(shape, options, kind):
    logits = torch.randn(shape)
    target = torch.randint(5, (shape[0], *shape[2:]))
    if kind == "probabilities":
        target = torch.randn(shape).softmax(1)
        options = {name: value for name, value in options.items() if name != "ignore_index"}  # torch refuses both
    wanted = loss_and_gradient(nn.CrossEntropyLoss(**options), logits, target)
    found = loss_and_gradient(CrossEntropyLoss(**options), logits, target)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_soft_target_is_its_dense_matrix():
    logits, index = torch.randn(6, 5), torch.randint(5, (6, 2))
    target = SoftTarget(index, torch.tensor([[0.6, 0.4]]).expand(6, 2).contiguous())
    torch.testing.assert_close(CrossEntropyLoss(label_smoothing=0.1)(logits, target),
                               nn.CrossEntropyLoss(label_smoothing=0.1)(logits, target.dense(5)))


def test_what_is_left_to_torch():
    logits = torch.randn(5, requires_grad=True)
    assert torch.equal(CrossEntropyLoss()(logits, torch.tensor(2)), nn.CrossEntropyLoss()(logits, torch.tensor(2)))
    weighted = {"weight": torch.rand(5)}
    rows, target = torch.randn(3, 5), torch.randn(3, 5).softmax(1).requires_grad_()
    assert torch.equal(CrossEntropyLoss(**weighted)(rows, target.detach()),
                       nn.CrossEntropyLoss(**weighted)(rows, target.detach()))
    CrossEntropyLoss()(rows, target).backward()
    assert target.grad is not None


def test_labels_outside_the_classes_are_an_error():
    for criterion in (nn.CrossEntropyLoss(), CrossEntropyLoss()):
        with pytest.raises(IndexError):
            criterion(torch.randn(2, 5), torch.tensor([0, 5]))
