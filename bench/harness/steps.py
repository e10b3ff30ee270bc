"""One training step of a method, timed, and what it adds to a plain one.

Steps are those of the training command, on random bytes. A step's backward is one call through loss and model. The
loss's part, ISDA's matrix products above all, is therefore timed by itself as well: "back" is the backward of the loss
alone down to logits and classifier, inside the phase model.
"""

from __future__ import annotations

import copy
import statistics

import torch

import fastmix
from fastmix.app import data
from fastmix.app.methods.objective import Classifier
from fastmix.app.training.loop import training_step
from fastmix.app.training.setup import Setup
from fastmix.app.training.timing import PHASES, StepTimer

from .entries import Entry

FORMAT = "step-2"
# The largest step over a plain one, and the largest added share of a plain step in percent. Papers: K-image mixing 1 to
# 14 % (Table 2), ISDA 1 to 12 % (Tables 1 and 3), R-Mix 1.6x (Sec. 4.5) to 2x (Table 3).
ADDED = dict.fromkeys(("mixup", "cutmix", "dmixup", "dcutmix", "soft-crop"), 1.0) | {"isda": 2.0, "isda/diag": 2.0}
RATIO = {"rmix": 1.7, "rmix/half": 1.35, "rmix/alternate": 1.35}


def random_dataset(batch: int, side: int, classes: int) -> data.Dataset:
    """Random bytes: two batches to train on, one to test."""
    g = torch.Generator().manual_seed(0)

    def split(count: int) -> data.MemorySplit:
        images = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=g)
        return data.MemorySplit(images, torch.arange(count) % classes)
    return data.Dataset("random", split(2 * batch), split(batch), [str(i) for i in range(classes)], (3, side, side),
                        (0.5,) * 3, (0.25,) * 3, flips=True)


def two_steps(setup: Setup) -> dict[str, float]:
    """Milliseconds of a step and of its phases, the mean of two: every other one may be without saliency."""
    collected = []
    for _ in range(2):
        timer, index = StepTimer(setup.device), torch.arange(setup.options.batch)
        timer.start()
        images, y = next(setup.dataset.train.batches([index]))
        x = setup.byte_batch(images, setup.augmentation(1))
        timer.end("data")
        training_step(setup, x, y, 1.0, timer)
        setup.scheduler.step()
        collected.append(timer.collect())
    return {phase: statistics.mean(step[phase] for step in collected) for phase in collected[0]}


def plan_ms(setup: Setup, repeats: int = 20) -> float:
    """Drawing alone, out of the mixing phase."""
    mixer = setup.mixer
    if mixer is None:
        return 0.0
    x = torch.rand(setup.options.batch, *setup.dataset.shape, device=setup.device)
    args = (x, torch.randn_like(x)) if mixer.needs_saliency else (x,)
    times = []
    for _ in range(repeats + 3):
        timer = StepTimer(setup.device)
        timer.start()
        mixer.plan(*args)
        timer.end("mix")
        times.append(timer.collect()["mix"])
    return statistics.median(times[3:])


def loss_backward_ms(setup: Setup, repeats: int = 9) -> float:
    """The backward of the loss alone, to the logits and, of ISDA, to the classifier's weight."""
    options, device = setup.options, setup.device
    y = torch.arange(options.batch, device=device) % len(setup.dataset.classes)
    logits = torch.randn(options.batch, len(setup.dataset.classes), device=device, requires_grad=True)
    target = y if setup.mixer is None else fastmix.SoftTarget.from_labels(y)
    if setup.method.softens:
        half = torch.full((options.batch,), 0.5, device=device)
        target = fastmix.SoftTarget.from_confidence(y, half, len(setup.dataset.classes))
    observed, layer = None, copy.deepcopy(setup.objective.classifier(setup.model))
    if layer is not None:
        observed = Classifier(layer, torch.randn(options.batch, layer.in_features, device=device))
    times = []
    for _ in range(repeats + 2):
        logits.grad = None
        if layer is not None:
            layer.zero_grad(set_to_none=True)
        loss = setup.objective.loss(logits, target, y, setup.scheduler.last_epoch, observed)
        timer = StepTimer(device)
        timer.start()
        loss.backward()
        timer.end("loss")
        times.append(timer.collect()["loss"])
    return statistics.median(times[2:])


def row(name: str, steps: list[dict[str, float]], plain: list[dict[str, float]], plan: float = 0.0,
        back: float = 0.0, plain_back: float = 0.0) -> Entry:
    """One method's figures: medians over its steps, ratios to the plain step of the same round.

    plan, back: milliseconds of drawing, and of the loss's backward; plain_back: of a plain loss's.
    """
    ms = {phase: statistics.median(step[phase] for step in steps) for phase in ("step", *PHASES)}
    base = {phase: statistics.median(step[phase] for step in plain) for phase in ("step", *PHASES)}
    ratios = [step["step"] / reference["step"] for step, reference in zip(steps, plain, strict=True)]
    # The bytes are read in the data phase of a plain step, while they are mixed in another's.
    own, other = (sum(times[phase] for phase in PHASES if phase != "model") for times in (ms, base))
    added = own + back - other - plain_back
    return {"method": name, "ms": ms, "plan_ms": plan, "loss_backward_ms": back, "ratio": statistics.median(ratios),
            "steps": 2 * len(steps), "added_percent": 100 * added / base["step"]}


def judged(found: Entry) -> list[tuple[str, float, float, str, bool]]:
    """(what, measured, goal, unit, met) of every goal that a row has."""
    name = found["method"]
    goals = (("added", found["added_percent"], ADDED.get(name), " %"), ("step", found["ratio"], RATIO.get(name), "x"))
    return [(what, value, goal, unit, value <= goal) for what, value, goal, unit in goals if goal is not None]


def verdicts(rows: list[Entry]) -> list[str]:
    """A line for every goal."""
    return [f"{found['method']}: {what} {value:.2f}{unit}, goal <= {goal:g}{unit}, {'met' if met else 'MISSED'}"
            for found in rows for what, value, goal, unit, met in judged(found)]
