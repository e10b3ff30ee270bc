"""A whole training step, from bytes to the optimizer, in one CUDA graph that draws new plans at every replay.

Steps are those of the training command on random bytes: crop, flip and normalise in the view, draw the plan, mix, the
model, the loss, backward, SGD. What a graph keeps from its capture: the learning rate, ISDA's strength, and the layer
that Manifold Mixup chose, all numbers of the host.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor

import fastmix
from fastmix.app import methods
from fastmix.app.training import run
from fastmix.app.training.distributed import Processes
from fastmix.app.training.loop import mixed, update
from fastmix.app.training.options import Options
from fastmix.app.training.setup import ByteBatch, Setup

from ..harness.cuda_graph import captured
from ..harness.steps import random_dataset

# rlmix asks its policy on the host; isda-semi is a step of two batches.
METHODS = tuple(name for name in methods.METHODS if name not in ("rlmix", "isda-semi"))
BATCH, CLASSES, SIDE = 8, 5, 16


class Untimed:
    """In place of a `StepTimer`: an event's time cannot be read out of a graph."""

    def end(self, phase: str) -> None:
        pass


class Result(NamedTuple):
    """loss: 0-d. images: what the model saw. labels: (N, J) what it learnt."""

    loss: Tensor
    images: Tensor
    labels: Tensor


class Step:
    """The step of a method, on a batch that stays where it is."""

    def __init__(self, method: str, device: torch.device, model: str = "cnn", **options: Any) -> None:
        dataset = random_dataset(BATCH, SIDE, CLASSES)
        chosen = Options(model=model, batch=BATCH, device=device.type, epochs=10, method=method)
        self.setup: Setup = run.setup(dataclasses.replace(chosen, **options), dataset, Processes(0, 1, device))
        for _ in range(3):
            self.setup.optimizer.step()  # without gradients: the scheduler wants one before
            self.setup.scheduler.step()  # ISDA's strength begins at 0
        self.pixels = dataset.test.images.to(device)
        self.y = (torch.arange(BATCH) % CLASSES).to(device)

    def __call__(self) -> Result:
        setup, timer = self.setup, Untimed()
        view = fastmix.View.draw(self.pixels, setup.preprocess.mean, setup.preprocess.std, pad=2)
        with mixed(setup, ByteBatch(self.pixels, view), self.y, timer) as (images, target):
            loss, _, _ = update(setup, self.y, images, target, 1.0, timer)
        if isinstance(target, Tensor):
            target = fastmix.SoftTarget.from_labels(target)
        return Result(loss, images, target.dense(CLASSES))


def check_replays(method: str, device: torch.device, replays: int = 3) -> None:
    """AssertionError unless every replay draws anew, learns and stays finite."""
    step = Step(method, device)
    weight = next(iter(step.setup.model.parameters()))
    graph, out = captured(step, device.type)
    seen: list[Tensor] = []
    for _ in range(replays):
        before = weight.detach().clone()
        graph.replay()
        if device.type == "cuda":
            torch.cuda.synchronize()
        assert out.loss.isfinite().item(), f"{method}: the loss is {out.loss.item()}"
        assert out.labels.isfinite().all().item() and out.images.isfinite().all().item(), f"{method}: not finite"
        assert not torch.equal(before, weight), f"{method}: the replay did not learn"
        assert not any(torch.equal(out.images, old) for old in seen), f"{method}: the replay drew the same again"
        seen.append(out.images.clone())


def all_methods(device: torch.device) -> None:
    """`check_replays` of every method."""
    for method in METHODS:
        check_replays(method, device)
