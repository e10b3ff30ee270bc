"""What a method makes of some images, for pictures."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import fastmix

from .. import data
from ..figures import training as pictures
from ..streams import TrainingStream, seed_everything
from .setup import Setup

SHOWN = 8


def some_images(setup: Setup, split: data.Split, count: int) -> tuple[Tensor, Tensor]:
    """Random images, the same for every method."""
    index = torch.randperm(len(split.labels), generator=torch.Generator().manual_seed(setup.options.seed))[:count]
    images, y = next(split.batches([index]))
    return setup.inputs(images, None), y


class Samples(NamedTuple):
    """What a method made of some images: see `pictures.samples`. after: None for a method that leaves them alone."""

    before: Tensor
    after: Tensor | None
    names: list[str]
    lines: list[list[str]]
    attention: pictures.Attention | None


def take_samples(setup: Setup, split: data.Split, count: int = SHOWN) -> Samples:
    """What the method makes of a batch, with the model as it is now. Drawn the same every time.

    Mixed as one batch with others: in a batch of eight an image often meets itself.
    """
    seed_everything(setup.options.seed, TrainingStream.SAMPLES)
    x, y = some_images(setup, split, 8 * count)
    names = [setup.dataset.classes[label] for label in y.tolist()]
    before = setup.preprocess.displayable(x[:count])
    if setup.mixer is None:
        return Samples(before, None, names, [], None)
    grad = None
    setup.model.eval()
    setup.method.begin_epoch(setup.mixer, 1)  # as strong as in training, not as at its end
    if setup.policy is not None:
        grad, q = setup.policy.choose(setup.model, x, y)
        plan = setup.mixer.plan(x, grad, q=q)
    else:
        if setup.method.needs_saliency:
            grad = fastmix.input_saliency(setup.model, x, y)
        plan = setup.mixer.plan(x, grad)
    target = plan.target(y)
    after = setup.preprocess.displayable(plan.apply(x)[:count])
    if setup.method.softens:
        lines = [[f"confidence {value:.2f}"] for value in target.confidence()[:count].tolist()]
    else:
        lines = [pictures.shares(target, setup.dataset.classes, row) for row in range(len(before))]
    attention = None if grad is None else pictures.Attention.of(grad[:count], getattr(plan, "mask", None))
    return Samples(before, after, names[:count], lines, attention)


def draw_samples(setup: Setup, split: data.Split, path: Path, count: int = SHOWN) -> None:
    """A picture of `take_samples`."""
    pictures.samples(*take_samples(setup, split, count), f"{setup.options.method} on {setup.options.data}", path)
