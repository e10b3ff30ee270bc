"""What a method adds to a training step."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import statistics
import time

import torch
from torch import Tensor

from ...targets import SoftTarget
from . import schedules
from .loop import episode_of, training_step, update
from .samples import some_images
from .setup import Setup
from .timing import StepTimer


def step_ratio(setup: Setup, repeats: int = 15) -> float:
    """Time of this method's step over that of a plain step of the same model, on copies: the median over pairs of
    steps, one after the other, so that a slow moment of the machine meets both; of a method whose steps repeat after
    several, over pairs of so many. With a policy over pairs of rollouts and as many plain steps, what it learns in
    between included. Draws from the global generators."""
    torch.manual_seed(0)
    model = copy.deepcopy(setup.model).train()
    optimizer = schedules.optimizer(setup.options, model)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)  # counts on, past the end of the training
    scheduler.last_epoch = setup.scheduler.last_epoch
    alone = dataclasses.replace(setup, model=model, parallel=model, optimizer=optimizer, scheduler=scheduler,
                                objective=setup.objective.alone())
    plain = alone.plain()
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

        def learn(y: Tensor, images: Tensor, target: SoftTarget) -> None:
            update(alone, y, images, target, 1.0, timer)

        started = time.perf_counter()
        setup.policy.learn(episode_of(alone, itertools.repeat((x, y)), count, learn, timer))
        return 1e3 * (time.perf_counter() - started) / count

    if setup.policy is None:
        pairs = [[sum(step(variant) for _ in range(setup.method.period)) for variant in (alone, plain)]
                 for _ in range(repeats + 3)]
        return statistics.median(mixed / unmixed for mixed, unmixed in pairs[3:])
    with setup.policy.alone():
        count = setup.policy.rollout
        pairs = [(rollout(), statistics.fmean(step(plain) for _ in range(count))) for _ in range(repeats // 3 + 1)]
    return statistics.median(mixed / unmixed for mixed, unmixed in pairs[1:])
