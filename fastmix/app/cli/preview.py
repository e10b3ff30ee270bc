"""python -m fastmix preview: images before and after a method, with the shares of the label under them."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

import torch

from .. import data
from ..console import CommandError, Parser, UsageError, require
from ..data import folder
from ..figures import training as pictures
from ..training import methods, options, run
from ..training.distributed import processes
from ..training.loop import Setup, training_step
from ..training.options import Options
from ..training.samples import SHOWN, draw_samples, take_samples
from ..training.timing import StepTimer

EPILOG = """\
A method that looks at saliency needs a model that has learnt something: that of a finished run (--run DIR), or, without
--run, a small CNN trained for --steps steps on the spot.

examples:
  python -m fastmix preview --method dcutmix --k 3 --out grid.png
  python -m fastmix preview --method mixup,cutmix,dmixup,dcutmix,rmix,cutout --data mnist5k --out methods.png
  python -m fastmix preview --method rmix --data mnist5k --run runs/rmix-mnist5k-cnn-seed0 --out grid.png
"""
MODEL_FLAGS = ("data", "root", "image_size")


def parser() -> Parser:
    p = Parser(prog="python -m fastmix preview", description="Draw images before and after a mixing method.",
               epilog=EPILOG)
    p.add_argument("--method", type=options.methods, required=True, metavar="METHOD[,METHOD]",
                   help=f"one, or several for a picture with a row each: {', '.join(methods.METHODS)}")
    p.add_argument("--out", type=Path, required=True, metavar="FILE.png")
    p.add_argument("--count", type=options.count, metavar="N", help="images (8)")
    p.add_argument("--seed", type=options.seed_number, help="of the images and the mixing (0)")
    p.add_argument("--run", type=Path, metavar="DIR", help="folder of a run whose model gives the saliency")
    p.add_argument("--steps", type=options.count, metavar="N", help="steps of the small CNN without --run (150)")
    options.add_data_flags(p)
    options.add_method_flags(p)
    options.add_machine_flags(p)
    for action in p._actions:
        if action.dest != "help":
            action.default = argparse.SUPPRESS
    return p


def _unlabelled(root: Path, image_size: int | None) -> data.Dataset:
    """A directory of images without class directories: enough for every method that needs no saliency."""
    images = folder.load_unlabelled(root, image_size)
    count, size = len(images.labels), images.image_size
    named = data.FolderSplit(images.paths, torch.arange(count), size)
    return data.Dataset("folder", named, named, [path.stem[:14] for path in images.paths], (3, size, size),
                        (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def _load(chosen: Options, needs_saliency: bool) -> data.Dataset:
    if chosen.data == "folder" and chosen.root is not None:
        root = Path(chosen.root)
        if root.is_dir() and not any(p.is_dir() for p in root.iterdir()):
            if needs_saliency:
                raise CommandError(f"method {chosen.method} needs saliency, and saliency needs labels: {root} has no "
                                   f"class directories; {folder.LAYOUT}")
            return _unlabelled(root, chosen.image_size)
    return run.load_data(chosen)


def _learn(setup: Setup, steps: int) -> None:
    """A few plain steps, so that the gradient shows what the images are about."""
    print(f"training a small CNN for {steps} steps for the saliency (--run DIR takes a trained one)", file=sys.stderr)
    plain = dataclasses.replace(setup, mixer=None, objective=None, policy=None,
                                loss=methods.cross_entropy(setup.options))
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


def _gallery(setup: Setup, several: list[Options], out: Path, count: int) -> None:
    """A row for every method, all with the model of setup."""
    rows = {}
    for chosen in several:
        mixer = methods.build(chosen, setup.dataset.shape, setup.device, len(setup.dataset.classes))
        policy = setup.policy if chosen.method == setup.options.method else None
        taken = take_samples(dataclasses.replace(setup, options=chosen, mixer=mixer, policy=policy),
                             setup.dataset.test, count)
        if taken.after is not None:
            rows[chosen.method] = (taken.after, taken.lines)
        before, names = taken.before, taken.names[:count]
    pictures.gallery(before, names, rows, f"{', '.join(rows)} on {setup.options.data}", out)


def main(argv: list[str]) -> int:
    given: dict[str, Any] = vars(parser().parse_args(argv))
    out, count, folder_of_run = given.pop("out"), given.pop("count", SHOWN), given.pop("run", None)
    steps = given.pop("steps", None)
    names = given.pop("method")
    methods.check_flags(names, set(given))
    if out.suffix.lower() != ".png":
        raise UsageError(f"--out is {out}, want a name ending in .png")
    if not out.absolute().parent.is_dir():
        raise UsageError(f"--out: there is no directory {out.absolute().parent}")
    if folder_of_run is not None:
        if steps is not None:
            raise UsageError("--steps is for the model that is trained without --run")
        trained = Options.from_json(folder_of_run / run.CONFIG)
        model_of = {name: getattr(trained, name) for name in (*MODEL_FLAGS, "model")}
        given = model_of | given
    several = [Options(**{**given, "method": name}) for name in names]
    chosen = next((o for o in several if methods.needs_saliency(o)), several[0])
    require("matplotlib", "matplotlib", "preview")
    if chosen.threads is not None:
        torch.set_num_threads(chosen.threads)
    with processes(chosen.device) as here:
        needs_saliency = methods.needs_saliency(chosen)
        dataset = _load(chosen, needs_saliency)
        setup = run.setup(chosen, dataset, here)
        if needs_saliency:
            if folder_of_run is None:
                _learn(setup, steps or 150)
            else:
                run.load_weights(setup.model, folder_of_run, setup.policy)
        if len(several) == 1:
            draw_samples(setup, setup.dataset.test, out, count)
        else:
            _gallery(setup, several, out, count)
    print(f"written to {out}")
    return 0
