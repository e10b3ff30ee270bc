"""The same bits: of two runs of a command with as many threads, and of a training loop with any number of them.

A run of the program with another number of threads differs in the last bits. That is torch's: its convolutions add up
the gradients of their weights in another order, and so do products of matrices. A loop whose model has neither shows
that nothing of ours does.
"""

import pytest
import torch
from helpers.support import same_bits
from helpers.training import assert_same_training, call

import fastmix
import fastmix.functional as F


def test_a_training_run_with_the_same_number_of_threads(tmp_path, capsys):
    pytest.importorskip("sklearn")
    pytest.importorskip("torchmetrics")
    for folder, strict in (("one", False), ("two", True)):
        torch.use_deterministic_algorithms(strict)  # an operator that is not deterministic would raise
        status, _, errors = call(capsys, "train", "--data", "digits", "--limit", "64", "--epochs", "2", "--device",
                                 "cpu", "--threads", "3", "--method", "rmix", "--out", tmp_path / folder)
        assert status == 0, errors
        assert torch.get_num_threads() == 3
    assert_same_training(tmp_path / "one", tmp_path / "two")


class Products(torch.nn.Module):
    """A linear layer, product by product: torch sums them one by one, whatever the number of threads."""

    def __init__(self, features, classes):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(classes, features) / features**0.5)

    def forward(self, x):
        return (x.flatten(1).unsqueeze(1) * self.weight).sum(-1)


def step_by_step(x, y):
    """A model's weights after a few steps with every kind of mixing, and the covariances of ISDA."""
    torch.manual_seed(0)
    model, classes, features = Products(x[0].numel(), 10), 10, x[0].numel()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    state = torch.zeros(classes, dtype=torch.int64), torch.zeros(classes, features), torch.zeros(classes, features)
    for mixer in (fastmix.Mixup(0.2), fastmix.DCutMix(), fastmix.SoftCrop(num_classes=classes), fastmix.RMix()):
        optimizer.zero_grad()
        more = (fastmix.input_saliency(model, x, y),) if isinstance(mixer, fastmix.RMix) else ()
        images, target = mixer(x, y, *more)
        loss = F.soft_cross_entropy(model(images), target)
        F.covariance_update_(*state, x.flatten(1), y, kind="diag")
        widened = F.isda_logits(model(x), model.weight, state[2], y, 0.5, kind="diag")
        (loss + F.soft_cross_entropy(widened, y)).backward()
        optimizer.step()
    return [model.weight, *state]


def test_a_training_loop_for_any_number_of_threads(threads):
    x, y = torch.randn(48, 3, 32, 32), torch.randint(10, (48,))
    torch.use_deterministic_algorithms(True)
    found = {}
    for count in (1, 2, 3, 8):
        threads(count)
        found[count] = step_by_step(x, y)
        assert all(map(same_bits, found[count], found[1])), f"{count} threads"
