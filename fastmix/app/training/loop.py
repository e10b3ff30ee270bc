"""One step, one epoch, one evaluation."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import fastmix
import fastmix.functional as F

from ...mixers import Mixer
from ...refinement import Refinement, evaluating, mixed_loss
from ...targets import SoftTarget
from .. import data
from ..console import CommandError, require
from . import methods
from .augment import Augmentation, policy
from .distributed import Processes
from .objectives import Isda, LabelledDraws
from .options import Options
from .timing import POLICY, StepTimer

# Streams of random numbers, each with a seed of its own: what one method draws never moves another's order or crops.
ORDER, MIXING, CROPPING = 1, 2, 3  # see also run.py
LABELLED, AUGMENTING = 5, 6
RISK = 11
ECE_BINS = 10
# torchmetrics (1.9) gives a confidence of exactly 1 a bin of its own; so it falls into the last.
BELOW_ONE = 1 - 2**-24


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

    loss: of logits, target and confidence, see `methods`. objective: None, or what takes its place. draws: the labelled
    images of semi-supervised training. policy: what chooses for the mixer of rlmix, a `fastmix.app.policy.Policy`.
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
    refinement: Refinement = field(default_factory=lambda: Refinement(1, 0))
    policy: Any = None

    @property
    def device(self) -> torch.device:
        return self.processes.device

    def autocast(self) -> AbstractContextManager[Any]:
        if self.options.amp == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()

    def seen(self, images: Tensor, augmentation: Augmentation | None) -> Seen:
        """Bytes and how the model sees them."""
        crops = pad = None
        if augmentation is not None:
            images, crops, pad = augmentation(images), augmentation.crops, augmentation.pad
        memory_format = torch.channels_last if self.options.channels_last else torch.contiguous_format
        return Seen(images, self.preprocess.view(images, crops, pad, memory_format=memory_format))

    def inputs(self, images: Tensor, augmentation: Augmentation | None) -> Tensor:
        """Bytes to the model's input."""
        return self.seen(images, augmentation).images()

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


def _mixes_bytes(mixer: Any) -> bool:
    """Hidden features are no bytes."""
    return (isinstance(mixer, Mixer) and not mixer.needs_saliency
            and not isinstance(mixer, fastmix.ManifoldMixup))


class Mixed(NamedTuple):
    """The batch that the model learns from, and in what its forward pass runs. confidence: (N,) of a soft augmentation,
    else None."""

    images: Tensor
    target: SoftTarget | Tensor
    confidence: Tensor | None = None
    inside: AbstractContextManager[Any] = nullcontext()


def _saliency(setup: Setup, x: Tensor, y: Tensor) -> Tensor:
    """d loss / d x as ``--saliency`` wants it; see there."""
    how = setup.options.saliency
    if how == "alternate" and setup.scheduler.last_epoch % 2:
        return torch.zeros_like(x)  # every cell is salient: R-Mix is Mixup
    # The bare module: DistributedDataParallel must see one forward and one backward a step.
    with setup.autocast():
        if how != "half":
            return fastmix.input_saliency(setup.model, x, y)
        # Not what the model trains on: its statistics are left alone.
        grad = fastmix.input_saliency(setup.model, nn.functional.avg_pool2d(x, 2), y, update_stats=False)
    return grad.repeat_interleave(2, 2).repeat_interleave(2, 3)


def mix(setup: Setup, batch: Tensor | Seen, y: Tensor, timer: StepTimer) -> Mixed:
    """What the method makes of a batch. A mixer without saliency makes it of bytes in one pass; the gradient of one
    with saliency needs the images first."""
    mixes = setup.mixer is not None and not setup.refinement.refining
    if isinstance(batch, Seen) and not (mixes and _mixes_bytes(setup.mixer)):
        batch = batch.images()
        timer.end("data")
    if not mixes:
        return Mixed(batch, y)
    x, view = batch if isinstance(batch, Seen) else (batch, None)
    if isinstance(setup.mixer, fastmix.ManifoldMixup):
        plan = setup.mixer.plan(x)
        target = plan.target(y)
        timer.end("mix")
        return Mixed(x, target, inside=setup.mixer.inside(setup.model, plan))
    saliency = None
    if setup.mixer.needs_saliency:
        saliency = _saliency(setup, x, y)
        timer.end("saliency")
    mixed = Mixed(*setup.mixer(x, y, saliency, view))
    timer.end("mix")
    return mixed


def training_step(setup: Setup, x: Tensor | Seen, y: Tensor, scale: float,
                  timer: StepTimer) -> tuple[Tensor, Tensor, SoftTarget | Tensor]:
    """Mixes a batch and learns from it: see `update`. x: the model's input, or bytes and their view."""
    return update(setup, y, mix(setup, x, y, timer), scale, timer)


def update(setup: Setup, y: Tensor, mixed: Mixed, scale: float,
           timer: StepTimer) -> tuple[Tensor, Tensor, SoftTarget | Tensor]:
    """One update. scale: of the loss, for processes with more or fewer images than the others.

    Returns: the loss (0-d, detached), the logits, the target; the last two of the labelled images alone.
    """
    images, target, confidence, inside = mixed
    setup.optimizer.zero_grad(set_to_none=True)
    refining = setup.refinement.refining
    objective = None if refining else setup.objective
    if objective is None:
        with inside, setup.autocast():
            logits = setup.parallel(images)
        timer.end("model")
        if setup.objective is not None:  # without its strength, the loss of ISDA is that of the labelled images
            known = setup.objective.labelled(len(y))
            logits, target = logits[:known], y[:known]
        loss = F.soft_cross_entropy(logits, target) if refining else setup.loss(logits, target, confidence)
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

    Epochs of the refinement are without mixing, label smoothing, ISDA, policy and schedule.

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
        self.refining = setup.refinement.begin(epoch, setup.mixer, setup.optimizer)
        setup.parallel.train()
        self._guard = LossGuard(processes, epoch)
        self._totals = torch.zeros(3, dtype=torch.float64, device=setup.device)  # loss, score, images
        self._rate = self._scale = 0.0

    def inputs(self, images: Tensor) -> Any:
        return self._setup.seen(images, self._augmentation)

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

    def images(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The same as floats."""
        for seen, y in self.batches():
            x = seen.images()
            self.timer.end("data")
            yield x, y

    def update(self, y: Tensor, mixed: Mixed) -> None:
        loss, logits, target = update(self._setup, y, mixed, self._scale, self.timer)
        hard = target.hard() if isinstance(target, SoftTarget) else target
        self._end(loss, (logits.argmax(1) == hard).sum(), len(logits))

    def _end(self, loss: Tensor, score: Tensor, rows: int) -> None:
        """Ends a step. loss: the mean over rows; score: a sum over them."""
        self._rate = self._setup.optimizer.param_groups[0]["lr"]
        if not self.refining:
            self._setup.scheduler.step()
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
    """One epoch, with the result of `Epoch`; with a policy also `fastmix.app.policy.Episode.summary` and the time it
    took."""
    epoch = Epoch(setup, number, timer, advance)
    if setup.policy is None or epoch.refining:
        for x, y in epoch.batches():
            epoch.update(y, mix(setup, x, y, timer))
        return epoch.result()
    episode = play(setup, epoch.images(), len(epoch.steps), epoch.update, timer)
    learnt = setup.policy.learn(episode)
    result = epoch.result()
    result["ms"][POLICY] = learnt["ms"]
    result["ms"]["step"] += learnt["ms"]
    names = ("reward", "random_reward", "q")
    sums = torch.tensor([[learnt.get(name, 0.0), name in learnt] for name in names], device=setup.device)
    means = {name: total / ranks for name, (total, ranks) in
             zip(names, setup.processes.sum(sums).tolist(), strict=True) if ranks}
    levels = setup.processes.sum(torch.tensor(learnt["levels"], device=setup.device)).tolist()
    return result | means | {"levels": [count / sum(levels) for count in levels]}


def play(setup: Setup, batches: Iterator[tuple[Tensor, Tensor]], steps: int, learn: Callable[[Tensor, Mixed], object],
         timer: StepTimer) -> Any:
    """The `fastmix.app.policy.Episode` of these batches. The bare model gives the saliency, as in `mix`."""
    from .. import policy as rl

    return rl.Episode(setup.model, setup.mixer, batches, steps,
                      lambda y, images, target: learn(y, Mixed(images, target)), setup.autocast, timer.end)


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
    seed_everything(options.seed, RISK, epoch, processes.rank)
    augmentation = setup.augmentation(epoch)
    steps = data.training_steps(len(setup.dataset.train.labels), options.batch,
                                data.derived_seed(options.seed, RISK, epoch), processes.rank, processes.world)
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
