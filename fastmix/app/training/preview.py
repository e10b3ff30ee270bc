"""Pictures of what methods do to images, without a run of their own."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from .. import data, methods
from ..console import CommandError
from ..data import folder
from ..figures import training as pictures
from ..names import printable
from .loop import training_step
from .options import Options
from .samples import take_samples
from .setup import Setup, load_data
from .timing import StepTimer


def load_images(chosen: Options, needs_saliency: bool) -> data.Dataset:
    """The data set of the options; images without labels will do for a method that needs no saliency."""
    if chosen.data == "folder" and chosen.root is not None:
        root = Path(chosen.root)
        if root.is_dir() and not folder.labelled(root):
            if needs_saliency:
                raise CommandError(f"method {chosen.method} needs saliency, and saliency needs labels: {root} has no "
                                   f"class directories; {folder.LAYOUT}")
            dataset = folder.load_unlabelled(root, chosen.image_size)
            data.check(dataset, chosen.check_data)
            dataset.account = f"folder {printable(root)}: {len(dataset.classes)} images without labels"
            return dataset
    return load_data(chosen)


def train_briefly(setup: Setup, steps: int) -> None:
    """A few plain steps, so that the gradient shows what the images are about."""
    print(f"training a small CNN for {steps} steps for the saliency (--run DIR takes a trained one)", file=sys.stderr)
    plain = setup.plain()
    plain.model.train()
    augmentation, timer, done = setup.augmentation(0), StepTimer(setup.device), 0
    for group in plain.optimizer.param_groups:
        group["lr"] = 0.05
    while done < steps:
        order = data.training_steps(len(setup.dataset.train.labels), setup.options.batch, setup.options.seed + done)
        for images, y in setup.dataset.train.batches([step.own for step in order[:steps - done]]):
            timer.start()
            training_step(plain, setup.inputs(images, augmentation), y, 1.0, timer)
            done += 1
        timer.collect()


def draw_gallery(setup: Setup, several: list[Options], out: Path, count: int) -> None:
    """A row for every method, all with the model of setup."""
    rows = {}
    for chosen in several:
        method = methods.of(chosen)
        mixer = method.build_mixer(setup.dataset.shape, setup.classes, setup.device)
        policy = setup.policy if chosen.method == setup.options.method else None
        own = dataclasses.replace(setup, options=chosen, method=method, mixer=mixer, policy=policy)
        taken = take_samples(own, setup.dataset.test, count)
        if taken.after is not None:
            rows[chosen.method] = (taken.after, taken.lines)
        before, names = taken.before, taken.names[:count]
    pictures.gallery(before, names, rows, f"{', '.join(rows)} on {setup.options.data}", out)
