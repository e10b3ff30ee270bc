"""Linear evaluation: what a linear layer reads from frozen features."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from .. import data
from ..streams import TrainingStream, seed_everything
from ..training.evaluate import evaluate
from ..training.setup import Setup

BATCH = 512


class Standardise(nn.Module):
    """(x - mean) / std of features (N, A)."""

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.mean, self.std = mean, std

    def forward(self, x: Tensor) -> Tensor:
        return (x.float() - self.mean) / self.std


@torch.no_grad()
def features(setup: Setup, backbone: nn.Module, split: data.Split) -> tuple[Tensor, Tensor]:
    """Features (n, A) float32 and labels (n,) of whole images."""
    backbone.eval()
    found: list[Tensor] = []
    labels: list[Tensor] = []
    for images, y in split.batches(data.evaluation_batches(len(split.labels), max(setup.options.batch, 250))):
        with setup.autocast():
            found.append(backbone(setup.inputs(images, None)).float())
        labels.append(y)
    return torch.cat(found), torch.cat(labels)


def linear_evaluation(setup: Setup, backbone: nn.Module, epochs: int, lr: float) -> dict[str, float]:
    """Trains a linear layer on the features of the training images, as they are without augmentation.

    Features are brought to mean 0 and deviation 1 over the training images, or else backbones are compared by their
    scale: that of random weights is a hundredth of a trained one's. SGD with momentum 0.9 and no weight decay, batches
    of 512, a tenth of the learning rate after 60 % and after 80 % of the epochs. Every process trains the same layer on
    all features; the evaluation is shared.

    Returns: test_accuracy, test_loss, ece, train_accuracy, features. Source: Soft Augmentation B.4, but for the scale
    and the learning rate that goes with it (there 10).
    """
    x, y = features(setup, backbone, setup.dataset.train)
    scale = Standardise(x.mean(0), x.std(0, correction=0).clamp_min(torch.finfo(torch.float32).tiny))
    x = scale(x)
    seed_everything(setup.options.seed, TrainingStream.LINEAR)
    head = nn.Linear(x.shape[1], len(setup.dataset.classes)).to(setup.device)
    nn.init.zeros_(head.bias)
    nn.init.normal_(head.weight, std=0.01)
    optimizer = torch.optim.SGD(head.parameters(), lr=lr, momentum=0.9)
    milestones = [max(1, round(epochs * share)) for share in (0.6, 0.8)]
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)
    for epoch in range(epochs):
        seed = data.derived_seed(setup.options.seed, TrainingStream.LINEAR, epoch)
        for step in data.training_steps(len(y), BATCH, seed):
            index = step.own.to(setup.device)
            optimizer.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(head(x[index]), y[index]).backward()
            optimizer.step()
        scheduler.step()
    whole = dataclasses.replace(setup, model=nn.Sequential(backbone, scale, head))
    test, train = (evaluate(whole, split) for split in (setup.dataset.test, setup.dataset.train))
    return {"test_accuracy": test["accuracy"], "test_loss": test["loss"], "ece": test["ece"],
            "train_accuracy": train["accuracy"], "features": x.shape[1]}
