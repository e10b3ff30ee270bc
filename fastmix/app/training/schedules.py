"""The optimizer, its learning rate by step, and the refinement that follows the schedule."""

from __future__ import annotations

import math
import warnings

import torch
from torch import nn
from torch.optim import lr_scheduler

from ...refinement import Refinement
from .options import RunOptions

# Of the largest learning rate, for a refinement after a schedule that ends near 0: where the paper's schedules in steps
# end (0.1 to 0.001 on CIFAR). The paper itself only asks for a reasonably small value there.
SMALL = 0.01


def optimizer(options: RunOptions, model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=options.lr, momentum=options.momentum,
                           weight_decay=options.weight_decay, nesterov=options.momentum > 0)


def refinement(options: RunOptions) -> Refinement:
    """The refinement of a run; after a schedule in steps its rate is that of the last stage."""
    lr = options.refine_lr
    if lr is None and options.schedule != "multistep":
        lr = SMALL * options.lr
    return Refinement(options.epochs, options.refine_epochs, lr)


def scheduler(options: RunOptions, optimizer: torch.optim.Optimizer, steps: int) -> lr_scheduler.LRScheduler:
    """Stepped after every update before the refinement. steps: of an epoch.

    onecycle with the rates of R-Mix Sec. 4: from lr / 100 to lr to lr / 10,000.
    """
    epochs = options.epochs - options.refine_epochs
    total = epochs * steps
    if options.schedule == "onecycle":
        total = max(total, 3)  # torch divides by zero in a cycle of less than three steps, or whose rise has none
        return lr_scheduler.OneCycleLR(optimizer, options.lr, total_steps=total, cycle_momentum=False,
                                       pct_start=max(0.3, 2 / total), div_factor=100, final_div_factor=100)
    if options.schedule == "cosine":
        rise = options.warmup * steps

        def factor(step: int) -> float:
            """Linear up to 1 over the warm-up, then half a cosine to 0."""
            if step < rise:
                return (step + 1) / rise
            return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(total - rise, 1)))
        return lr_scheduler.LambdaLR(optimizer, factor)
    if options.milestones is None:
        milestones = [math.ceil(total * share) for share in (0.5, 0.75)]
    else:
        milestones = [epoch * steps for epoch in options.milestones]
    return lr_scheduler.MultiStepLR(optimizer, milestones, gamma=options.gamma)


def move(scheduler: lr_scheduler.LRScheduler, optimizer: torch.optim.Optimizer, step: int) -> float:
    """Puts a schedule that was just made where it stands after so many steps, and its optimizer's rates with it,
    whatever a checkpoint said of them. Returns the rate of the next step."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the optimizer has made no step before
        while scheduler.last_epoch < step:
            scheduler.step()
    return optimizer.param_groups[0]["lr"]
