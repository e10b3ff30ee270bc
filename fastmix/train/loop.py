"""One step, one epoch, one evaluation."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import fastmix

from .. import _torchvision, data
from .._cli import CommandError, require
from ..targets import SoftTarget
from . import methods
from .augment import Augmentation, policy
from .distributed import Processes
from .objectives import Isda, LabelledDraws
from .options import Options
from .timing import POLICY, StepTimer

# Streams of random numbers, each with a seed of its own: what one method draws never moves another's order or crops.
ORDER, MIXING, CROPPING = 1, 2, 3  # see also run.py
LABELLED, AUGMENTING = 5, 6
ECE_BINS = 10


@dataclass
class Setup:
    """What training works on. parallel: the model under DistributedDataParallel, or the model itself.

    loss: of logits, target and confidence, see `methods`. objective: None, or what takes its place. draws: the labelled
    images of semi-supervised training. policy: what chooses for the mixer of rlmix, a `fastmix.rl.Policy`.
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
    loss: methods.Loss
    objective: Isda | None = None
    draws: LabelledDraws | None = None
    policy: Any = None

    @property
    def device(self) -> torch.device:
        return self.processes.device

    def autocast(self) -> AbstractContextManager[Any]:
        if self.options.amp == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()

    def inputs(self, images: Tensor, augmentation: Augmentation | None) -> Tensor:
        """Bytes to the model's input."""
        if augmentation is not None:
            images = augmentation(images)
        x = self.preprocess(images)
        return x.contiguous(memory_format=torch.channels_last) if self.options.channels_last else x

    def augmentation(self, epoch: int) -> Augmentation | None:
        """What an epoch does to its images before the method; None for nothing."""
        options = self.options
        chosen, crops = policy(options), None
        if options.augment == "crop-flip" or (options.augment != "none" and self.dataset.flips):
            crops = torch.Generator(self.device)
            crops.manual_seed(data.derived_seed(options.seed, CROPPING, epoch, self.processes.rank))
        if crops is None and chosen is None:
            return None
        pad = 0 if methods.METHODS[options.method].crops else self.dataset.shape[-1] // 8
        seed = data.derived_seed(options.seed, AUGMENTING, epoch, self.processes.rank)
        return Augmentation(crops, pad, chosen, seed)


def seed_everything(*parts: int) -> None:
    """Every generator a model or a mixer may draw from. Called before each epoch, so that a checkpoint needs no state
    of theirs, and a resumed run draws what an uninterrupted one does."""
    seed = data.derived_seed(*parts)
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


class Mixed(NamedTuple):
    """The batch that the model learns from. confidence: (N,) of a soft augmentation, else None."""

    images: Tensor
    target: SoftTarget | Tensor
    confidence: Tensor | None = None


def mix(setup: Setup, x: Tensor, y: Tensor, timer: StepTimer) -> Mixed:
    """What the method makes of a batch."""
    if setup.mixer is None:
        return Mixed(x, y)
    saliency = None
    if setup.mixer.needs_saliency:
        # The bare module: DistributedDataParallel must see one forward and one backward a step.
        with setup.autocast():
            saliency = fastmix.input_saliency(setup.model, x, y)
        timer.end("saliency")
    mixed = Mixed(*setup.mixer(x, y, saliency))
    timer.end("mix")
    return mixed


def training_step(setup: Setup, x: Tensor, y: Tensor, scale: float,
                  timer: StepTimer) -> tuple[Tensor, Tensor, SoftTarget | Tensor]:
    """Mixes a batch and learns from it: see `update`."""
    return update(setup, y, mix(setup, x, y, timer), scale, timer)


def update(setup: Setup, y: Tensor, mixed: Mixed, scale: float,
           timer: StepTimer) -> tuple[Tensor, Tensor, SoftTarget | Tensor]:
    """One update. scale: of the loss, for processes with more or fewer images than the others.

    Returns: the loss (0-d, detached), the logits, the target; the last two of the labelled images alone.
    """
    images, target, confidence = mixed
    setup.optimizer.zero_grad(set_to_none=True)
    objective = setup.objective
    if objective is None:
        with setup.autocast():
            logits = setup.parallel(images)
        timer.end("model")
        loss = setup.loss(logits, target, confidence)
    else:
        with objective.features(setup.model) as features, setup.autocast():
            logits = setup.parallel(images)
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


class Epoch:
    """The steps of one epoch, counted from 1: `update` once for every batch of `batches`, then `result`.

    advance: called after every step.
    """

    def __init__(self, setup: Setup, epoch: int, timer: StepTimer, advance: Callable[[], None]) -> None:
        options, processes = setup.options, setup.processes
        self._setup, self.timer, self._advance = setup, timer, advance
        self._started = time.perf_counter()
        seed_everything(options.seed, MIXING, epoch, processes.rank)
        methods.begin_epoch(setup.mixer, options, epoch)
        self._augmentation = setup.augmentation(epoch)
        self.steps = data.training_steps(len(setup.dataset.train.labels), options.batch,
                                         data.derived_seed(options.seed, ORDER, epoch), processes.rank, processes.world)
        if setup.draws is not None:
            self.steps = setup.draws.steps(self.steps, data.derived_seed(options.seed, LABELLED, epoch, processes.rank))
        setup.parallel.train()
        self._guard = LossGuard(processes, epoch)
        self._totals = torch.zeros(3, dtype=torch.float64, device=setup.device)  # loss, score, images
        self._rate = self._scale = 0.0

    def inputs(self, images: Tensor) -> Any:
        return self._setup.inputs(images, self._augmentation)

    def batches(self) -> Iterator[tuple[Any, Tensor]]:
        """`inputs` of the images and y (N,) of every step."""
        setup = self._setup
        batches = setup.dataset.train.batches([step.own for step in self.steps])
        for step in self.steps:
            self.timer.start()
            images, y = next(batches)
            x = self.inputs(images)
            self._scale = len(y) * setup.processes.world / step.total
            self.timer.end("data")
            yield x, y

    def update(self, y: Tensor, mixed: Mixed) -> None:
        loss, logits, target = update(self._setup, y, mixed, self._scale, self.timer)
        hard = target.hard() if isinstance(target, SoftTarget) else target
        self._end(loss, (logits.argmax(1) == hard).sum(), len(logits))

    def _end(self, loss: Tensor, score: Tensor, rows: int) -> None:
        """Ends a step. loss: the mean over rows; score: a sum over them."""
        scheduler = self._setup.scheduler
        self._rate = scheduler.get_last_lr()[0]
        scheduler.step()
        self._guard.see(loss, self._rate)
        self._totals += torch.stack([loss.double() * rows, score.double(), torch.full_like(self._totals[2], rows)])
        self._advance()

    def result(self) -> dict[str, Any]:
        """train_loss, train_accuracy (of the images as the model saw them, against the label of largest share), lr (the
        last), seconds, ms (see `StepTimer.collect`)."""
        self._guard.stop_if_bad()
        loss_sum, correct, count = self._setup.processes.sum(self._totals).tolist()
        return {"train_loss": loss_sum / count, "train_accuracy": correct / count, "lr": self._rate,
                "seconds": time.perf_counter() - self._started, "ms": self.timer.collect()}


def train_epoch(setup: Setup, number: int, timer: StepTimer, advance: Callable[[], None]) -> dict[str, Any]:
    """One epoch, with the result of `Epoch`; with a policy also its reward, q and the time it took."""
    epoch = Epoch(setup, number, timer, advance)
    if setup.policy is None:
        for x, y in epoch.batches():
            epoch.update(y, mix(setup, x, y, timer))
        return epoch.result()
    episode = play(setup, epoch.batches(), len(epoch.steps), epoch.update, timer)
    learnt = setup.policy.learn(episode)
    result = epoch.result()
    result["ms"][POLICY] = learnt["ms"]
    result["ms"]["step"] += learnt["ms"]
    world = setup.processes.world
    reward, q = setup.processes.sum(torch.tensor([learnt["reward"], learnt["q"]], device=setup.device)).tolist()
    return result | {"reward": reward / world, "q": q / world}


def play(setup: Setup, batches: Iterator[tuple[Tensor, Tensor]], steps: int, learn: Callable[[Tensor, Mixed], object],
         timer: StepTimer) -> Any:
    """The `fastmix.rl.Episode` of these batches. The bare model gives the saliency, as in `mix`."""
    from .. import rl

    return rl.Episode(setup.model, setup.mixer, batches, steps,
                      lambda y, images, target: learn(y, Mixed(images, target)), setup.autocast, timer.end)


@torch.no_grad()
def evaluate(setup: Setup, split: data.Split) -> dict[str, float]:
    """loss, accuracy and ECE (10 bins of equal width) of the model on whole images of a split."""
    _torchvision.make_importable()
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
