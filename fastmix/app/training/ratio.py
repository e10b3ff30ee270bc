"""What a method adds to a training step."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import statistics
import time

import torch
from torch import Tensor

from . import methods, schedules
from .loop import Mixed, Setup, play, training_step, update
from .samples import some_images
from .timing import StepTimer


def step_ratio(setup: Setup, repeats: int = 15) -> float:
    """Time of this method's step over that of a plain step of the same model, on copies: the median over pairs of
    steps, one after the other, so that a slow moment of the machine meets both; where every other step does without
    saliency, over pairs of two steps. With a policy over pairs of rollouts and as many plain steps, what it learns in
    between included. Draws from the global generators."""
    torch.manual_seed(0)
    model = copy.deepcopy(setup.model).train()
    objective = None if setup.objective is None else setup.objective.alone()
    optimizer = schedules.optimizer(setup.options, model)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)  # counts on, past the end of the training
    scheduler.last_epoch = setup.scheduler.last_epoch
    alone = dataclasses.replace(setup, model=model, parallel=model, optimizer=optimizer, scheduler=scheduler,
                                objective=objective)
    plain = dataclasses.replace(alone, mixer=None, objective=None, policy=None,
                                loss=methods.cross_entropy(setup.options))
    x, y = some_images(setup, setup.dataset.train, setup.options.batch)
    own = (x, y) if setup.draws is None else (torch.cat([x, x]), torch.cat([y, y]))

    def step(variant: Setup) -> float:
        timer = StepTimer(setup.device)
        timer.start()
        training_step(variant, *(own if variant is alone else (x, y)), 1.0, timer)
        taken = timer.collect()["step"]
        if variant is alone:
            scheduler.step()
        return taken

    def rollout() -> float:
        timer, count = StepTimer(setup.device), setup.policy.rollout
        timer.start()

        def learn(y: Tensor, mixed: Mixed) -> None:
            update(alone, y, mixed, 1.0, timer)

        started = time.perf_counter()
        setup.policy.learn(play(alone, itertools.repeat((x, y)), count, learn, timer))
        return 1e3 * (time.perf_counter() - started) / count

    if setup.policy is None:
        together = 2 if setup.options.saliency == "alternate" else 1
        pairs = [[sum(step(variant) for _ in range(together)) for variant in (alone, plain)]
                 for _ in range(repeats + 3)]
        return statistics.median(mixed / unmixed for mixed, unmixed in pairs[3:])
    with setup.policy.alone():
        count = setup.policy.rollout
        pairs = [(rollout(), statistics.fmean(step(plain) for _ in range(count))) for _ in range(repeats // 3 + 1)]
    return statistics.median(mixed / unmixed for mixed, unmixed in pairs[1:])
