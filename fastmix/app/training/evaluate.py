"""The loss and the accuracy of a model on a split, and on the training images as they are augmented."""

from __future__ import annotations

import torch
from torch import nn

import fastmix.functional as F

from ...refinement import evaluating, mixed_loss
from .. import data
from ..console import require
from ..streams import TrainingStream, seed_everything
from .setup import Setup

ECE_BINS = 10
# torchmetrics (1.9) gives a confidence of exactly 1 a bin of its own; so it falls into the last.
BELOW_ONE = 1 - 2**-24


@torch.no_grad()
def evaluate(setup: Setup, split: data.Split) -> dict[str, float]:
    """loss, accuracy and ECE (10 bins of equal width) of the model on whole images of a split."""
    classification = require("torchmetrics.classification", "torchmetrics", "the calibration error")
    processes = setup.processes
    setup.model.eval()
    totals = torch.zeros(3, dtype=torch.float64, device=setup.device)
    calibration = classification.MulticlassCalibrationError(
        max(2, len(setup.dataset.classes)), n_bins=ECE_BINS, validate_args=False).to(setup.device)
    indices = data.evaluation_batches(len(split.labels), max(setup.options.batch, 250), processes.rank, processes.world)
    for images, y in split.batches(indices):
        with setup.autocast():
            logits = setup.model(setup.inputs(images, None))
        logits = logits.float()
        totals[0] += nn.functional.cross_entropy(logits, y, reduction="sum")
        totals[1] += (logits.argmax(1) == y).sum()
        totals[2] += len(y)
        calibration.update(logits.softmax(1).clamp(max=BELOW_ONE), y)
    loss, correct, count = processes.sum(totals).tolist()
    return {"loss": loss / count, "accuracy": correct / count, "ece": float(calibration.compute())}


@torch.no_grad()
def augmented_risk(setup: Setup, epoch: int) -> float:
    """Mean cross-entropy on the training images as this epoch augments them, by crops, flips and mixing; the model in
    eval mode. Source: refined data augmentation, Table 2."""
    options, processes = setup.options, setup.processes
    seed_everything(options.seed, TrainingStream.RISK, epoch, processes.rank)
    augmentation = setup.augmentation(epoch)
    seed = data.derived_seed(options.seed, TrainingStream.RISK, epoch)
    steps = data.training_steps(len(setup.dataset.train.labels), options.batch, seed, processes.rank, processes.world)
    totals = torch.zeros(2, dtype=torch.float64, device=setup.device)
    with evaluating(setup.model):
        for images, y in setup.dataset.train.batches([step.own for step in steps]):
            x = setup.inputs(images, augmentation)
            with setup.autocast():
                if setup.mixer is None or setup.refinement.refining:
                    totals[0] += F.soft_cross_entropy(setup.model(x), y, reduction="sum")
                else:
                    totals[0] += mixed_loss(setup.model, x, y, setup.mixer)
            totals[1] += len(y)
    loss, count = processes.sum(totals).tolist()
    return loss / count
