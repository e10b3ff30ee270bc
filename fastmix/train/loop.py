"""One step, one epoch, one evaluation."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import fastmix

from .. import data
from .._cli import CommandError, require
from ..mixers import Mixer
from ..plans import through
from ..targets import SoftTarget
from .distributed import Processes
from .objectives import Isda, LabelledDraws
from .options import Options
from .timing import StepTimer

# Streams of random numbers, each with a seed of its own: what one method draws never moves another's order or crops.
ORDER, MIXING, CROPPING = 1, 2, 3  # see also run.py
LABELLED = 5
ECE_BINS = 10


class Seen(NamedTuple):
    """A batch of bytes that a mixer reads through its view, in one pass."""

    bytes: Tensor
    view: fastmix.View

    def images(self) -> Tensor:
        """The view alone: floats."""
        return self.view.apply(self.bytes)


@dataclass
class Setup:
    """What training works on. parallel: the model under DistributedDataParallel, or the model itself.

    objective: None for the cross-entropy of the mixed images. draws: the labelled images of semi-supervised training.
    """

    options: Options
    processes: Processes
    dataset: data.Dataset
    preprocess: data.Preprocess
    model: nn.Module
    parallel: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    mixer: Any
    objective: Isda | None = None
    draws: LabelledDraws | None = None

    @property
    def device(self) -> torch.device:
        return self.processes.device

    def autocast(self) -> AbstractContextManager[Any]:
        if self.options.amp == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()

    def seen(self, images: Tensor, crops: torch.Generator | None) -> Seen:
        """Bytes and how the model sees them; crops: cropped and flipped at random."""
        memory_format = torch.channels_last if self.options.channels_last else torch.contiguous_format
        return Seen(images, self.preprocess.view(images, crops, memory_format=memory_format))

    def inputs(self, images: Tensor, crops: torch.Generator | None) -> Tensor:
        """Bytes to the model's input."""
        return self.seen(images, crops).images()

    def crops(self, epoch: int) -> torch.Generator | None:
        """The generator of an epoch's crops; None if there are none."""
        if not (self.options.augment == "crop-flip" or (self.options.augment == "auto" and self.dataset.flips)):
            return None
        generator = torch.Generator(self.device)
        generator.manual_seed(data.derived_seed(self.options.seed, CROPPING, epoch, self.processes.rank))
        return generator


def seed_everything(*parts: int) -> None:
    """Every generator a model or a mixer may draw from. Called before each epoch, so that a checkpoint needs no state
    of theirs, and a resumed run draws what an uninterrupted one does."""
    seed = data.derived_seed(*parts)
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def _mixes_bytes(mixer: Any) -> bool:
    """One that overrides forward need not know views."""
    return isinstance(mixer, Mixer) and type(mixer).forward is Mixer.forward and not mixer.needs_saliency


def mix(setup: Setup, batch: Tensor | Seen, y: Tensor, timer: StepTimer) -> tuple[Tensor, SoftTarget | Tensor]:
    """The batch that the model learns from. A mixer without saliency makes it of bytes in one pass; the gradient of one
    with saliency needs the images first."""
    if isinstance(batch, Seen) and not _mixes_bytes(setup.mixer):
        batch = batch.images()
        timer.end("data")
    if setup.mixer is None:
        return batch, y
    x, view = batch if isinstance(batch, Seen) else (batch, None)
    saliency = None
    if setup.mixer.needs_saliency:
        # The bare module: DistributedDataParallel must see one forward and one backward a step.
        with setup.autocast():
            saliency = fastmix.input_saliency(setup.model, x, y)
        timer.end("saliency")
    mixed, target = setup.mixer(x, y, saliency, **through(view))
    timer.end("mix")
    return mixed, target


def training_step(setup: Setup, x: Tensor | Seen, y: Tensor, scale: float,
                  timer: StepTimer) -> tuple[Tensor, Tensor, SoftTarget | Tensor]:
    """One update.

    x: the model's input, or bytes and their view. scale: of the loss, for processes with more or fewer images than the
    others.

    Returns: the loss (0-d, detached), the logits, the target; the last two of the labelled images alone.
    """
    mixed, target = mix(setup, x, y, timer)
    setup.optimizer.zero_grad(set_to_none=True)
    objective = setup.objective
    if objective is None:
        with setup.autocast():
            logits = setup.parallel(mixed)
        timer.end("model")
        loss = fastmix.functional.soft_cross_entropy(logits, target, label_smoothing=setup.options.label_smoothing)
    else:
        with objective.features(setup.model) as features, setup.autocast():
            logits = setup.parallel(mixed)
        timer.end("model")
        weight = objective.head(setup.model).weight
        loss = objective.loss(logits, features[-1], weight, y, setup.scheduler.last_epoch)
        known = objective.labelled(len(y))
        logits, target = logits[:known], y[:known]
    timer.end("loss")
    (loss if scale == 1 else loss * scale).backward()
    setup.optimizer.step()
    timer.end("model")
    return loss.detach(), logits.detach(), target


class LossGuard:
    """Stops a run whose loss is no number, naming the first such step. A GPU is asked only now and then."""

    EVERY = 50

    def __init__(self, processes: Processes, epoch: int) -> None:
        self._processes, self._epoch = processes, epoch
        self._first_bad = torch.full((), 2**62, dtype=torch.int64, device=processes.device)
        self._rates: list[float] = []
        self._every = 1 if processes.world == 1 and processes.device.type == "cpu" else self.EVERY

    def see(self, loss: Tensor, rate: float) -> None:
        step = len(self._rates)
        self._rates.append(rate)
        bad = torch.where(loss.isfinite(), 2**62, step)
        self._first_bad = torch.minimum(self._first_bad, bad)
        if len(self._rates) % self._every == 0:
            self.stop_if_bad()

    def stop_if_bad(self) -> None:
        step = int(self._processes.smallest(self._first_bad))
        if step < len(self._rates):
            raise NotFinite(f"the loss is not a finite number at epoch {self._epoch}, step {step + 1} of the epoch, "
                            f"learning rate {self._rates[step]:.4g}")


class NotFinite(CommandError):
    """Training diverged."""


def train_epoch(setup: Setup, epoch: int, timer: StepTimer, advance: Callable[[], None]) -> dict[str, Any]:
    """One epoch, counted from 1. advance: called after every step.

    Returns: train_loss, train_accuracy (of the images as the model saw them, against the label of largest share), lr
    (the last), seconds, ms (see `StepTimer.collect`).
    """
    options, processes = setup.options, setup.processes
    started = time.perf_counter()
    seed_everything(options.seed, MIXING, epoch, processes.rank)
    crops = setup.crops(epoch)
    steps = data.training_steps(len(setup.dataset.train.labels), options.batch,
                                data.derived_seed(options.seed, ORDER, epoch), processes.rank, processes.world)
    if setup.draws is not None:
        steps = setup.draws.steps(steps, data.derived_seed(options.seed, LABELLED, epoch, processes.rank))
    setup.parallel.train()
    guard = LossGuard(processes, epoch)
    totals = torch.zeros(3, dtype=torch.float64, device=setup.device)  # loss, correct, images
    batches = setup.dataset.train.batches([step.own for step in steps])
    rate = 0.0
    for step in steps:
        timer.start()
        images, y = next(batches)
        x = setup.seen(images, crops)
        timer.end("data")
        rate = setup.scheduler.get_last_lr()[0]
        loss, logits, target = training_step(setup, x, y, len(y) * processes.world / step.total, timer)
        setup.scheduler.step()
        guard.see(loss, rate)
        hard = target.hard() if isinstance(target, SoftTarget) else target
        totals[0] += loss.double() * len(logits)
        totals[1] += (logits.argmax(1) == hard).sum()
        totals[2] += len(logits)
        advance()
    guard.stop_if_bad()
    loss_sum, correct, count = processes.sum(totals).tolist()
    return {"train_loss": loss_sum / count, "train_accuracy": correct / count, "lr": rate,
            "seconds": time.perf_counter() - started, "ms": timer.collect()}


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
        calibration.update(logits.softmax(1), y)
    loss, correct, count = processes.sum(totals).tolist()
    return {"loss": loss / count, "accuracy": correct / count, "ece": float(calibration.compute())}
