"""One step and one epoch of training."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

import fastmix.functional as F

from ...targets import SoftTarget
from .. import data
from ..console import CommandError
from ..streams import TrainingStream, seed_everything
from .distributed import Processes
from .setup import ByteBatch, Setup
from .timing import POLICY, StepTimer


@contextmanager
def mixed(setup: Setup, batch: Tensor | ByteBatch, y: Tensor, timer: StepTimer
          ) -> Iterator[tuple[Tensor, SoftTarget | Tensor]]:
    """What the method makes of a batch: images and target, for a forward pass inside this block.

    A mixer without saliency makes it of bytes in one pass; the gradient of one with saliency needs the images first.
    """
    mixing = setup.mixer is not None and not setup.refinement.refining
    if isinstance(batch, ByteBatch) and not (mixing and setup.method.reads_bytes):
        batch = batch.images()
        timer.end("data")
    if setup.mixer is None or not mixing:
        yield batch, y  # type: ignore[misc]
        return
    x, view = batch if isinstance(batch, ByteBatch) else (batch, None)
    saliency = None
    if setup.method.needs_saliency:
        # The bare module: DistributedDataParallel must see one forward and one backward a step.
        with setup.autocast():
            saliency = setup.method.saliency(setup.model, x, y, setup.scheduler.last_epoch)
        timer.end("saliency")
    with setup.mixer.applied(setup.model, x, y, saliency, view) as (images, target):
        timer.end("mix")
        yield images, target


def training_step(setup: Setup, x: Tensor | ByteBatch, y: Tensor, scale: float,
                  timer: StepTimer) -> tuple[Tensor, Tensor, SoftTarget | Tensor]:
    """Mixes a batch and learns from it: see `update`. x: the model's input, or bytes and their view."""
    with mixed(setup, x, y, timer) as (images, target):
        return update(setup, y, images, target, scale, timer)


def update(setup: Setup, y: Tensor, images: Tensor, target: SoftTarget | Tensor, scale: float,
           timer: StepTimer) -> tuple[Tensor, Tensor, SoftTarget | Tensor]:
    """One update. y: the labels as they were drawn; images, target: what `mixed` gave.

    Args: scale: of the loss, for processes with more or fewer images than the others.
    Returns: the loss (0-d, detached), the logits, the target; the last two of the labelled images alone.
    """
    setup.optimizer.zero_grad(set_to_none=True)
    objective = setup.objective
    with objective.observe(setup.model) as observed, setup.autocast():
        logits = setup.parallel(images)
    timer.end("model")
    own_logits, own_target = objective.labelled(logits, target, y)
    if setup.refinement.refining:
        loss = F.soft_cross_entropy(own_logits, own_target)
    else:
        loss = objective.loss(logits, target, y, setup.scheduler.last_epoch, observed())
    timer.end("loss")
    (loss if scale == 1 else loss * scale).backward()
    setup.optimizer.step()
    timer.end("model")
    return loss.detach(), own_logits.detach(), own_target


class LossGuard:
    """Stops a run whose loss is not finite, naming the first such step. A GPU is asked only now and then."""

    EVERY = 50

    def __init__(self, processes: Processes, epoch: int) -> None:
        self._processes, self._epoch = processes, epoch
        self._first_bad = torch.full((), 2**62, dtype=torch.int64, device=processes.device)
        self._rates: list[float] = []
        self._every = 1 if processes.world == 1 and processes.device.type == "cpu" else self.EVERY

    def add(self, loss: Tensor, rate: float) -> None:
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

    everywhere = True


class Epoch:
    """The steps of one epoch, counted from 1: `update` once for every batch of `batches`, then `result`.

    Epochs of the refinement are without mixing, label smoothing, ISDA, policy and schedule.

    advance: called after every step.
    """

    def __init__(self, setup: Setup, epoch: int, timer: StepTimer, advance: Callable[[], None]) -> None:
        options, processes = setup.options, setup.processes
        self._setup, self.timer, self._advance = setup, timer, advance
        self._started = time.perf_counter()
        seed_everything(options.seed, TrainingStream.MIXING, epoch, processes.rank)
        setup.method.begin_epoch(setup.mixer, epoch)
        self._augmentation = setup.augmentation(epoch)
        seed = data.derived_seed(options.seed, TrainingStream.ORDER, epoch)
        self.steps = data.training_steps(len(setup.dataset.train.labels), options.batch, seed, processes.rank,
                                         processes.world)
        if setup.draws is not None:
            seed = data.derived_seed(options.seed, TrainingStream.LABELLED, epoch, processes.rank)
            self.steps = setup.draws.steps(self.steps, seed)
        self.refining = setup.refinement.begin(epoch, setup.mixer, setup.optimizer)
        setup.parallel.train()
        self._guard = LossGuard(processes, epoch)
        self._totals = torch.zeros(3, dtype=torch.float64, device=setup.device)  # loss, score, images
        self._rate = self._scale = 0.0

    def inputs(self, images: Tensor) -> Any:
        return self._setup.byte_batch(images, self._augmentation)

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
        for batch, y in self.batches():
            x = batch.images()
            self.timer.end("data")
            yield x, y

    def update(self, y: Tensor, images: Tensor, target: SoftTarget | Tensor) -> None:
        """One step of training. y: the labels as they were drawn; images, target: what `mixed` gave."""
        loss, logits, target = update(self._setup, y, images, target, self._scale, self.timer)
        hard = target.hard() if isinstance(target, SoftTarget) else target
        self._end(loss, (logits.argmax(1) == hard).sum(), len(logits))

    def _end(self, loss: Tensor, score: Tensor, rows: int) -> None:
        """Ends a step. loss: the mean over rows; score: a sum over them."""
        self._rate = self._setup.optimizer.param_groups[0]["lr"]
        if not self.refining:
            self._setup.scheduler.step()
        self._guard.add(loss, self._rate)
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
            with mixed(setup, x, y, timer) as (images, target):
                epoch.update(y, images, target)
        return epoch.result()
    episode = episode_of(setup, epoch.images(), len(epoch.steps), epoch.update, timer)
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


def episode_of(setup: Setup, batches: Iterator[tuple[Tensor, Tensor]], steps: int,
               learn: Callable[[Tensor, Tensor, SoftTarget], object], timer: StepTimer) -> Any:
    """The `fastmix.app.policy.Episode` of these batches. The bare model gives the saliency, as in `mixed`."""
    from .. import policy as rl

    return rl.Episode(setup.model, setup.mixer, batches, steps, learn, setup.autocast, timer.end)
