"""python -m fastmix preview: images before and after a method, with the shares of the label under them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from .. import methods
from ..arguments import count, seed_number
from ..console import Parser, UsageError, printer, require
from ..names import printable
from ..training import preview
from ..training.distributed import processes
from ..training.options import Options
from ..training.places import run_folder
from ..training.run import CONFIG
from ..training.samples import SHOWN, draw_samples
from ..training.setup import load_weights, setup
from . import flags

EPILOG = """\
A method that uses saliency needs a trained model: that of a finished run (--run DIR), or, without --run, a small CNN
that is trained for --steps steps first.

examples:
  python -m fastmix preview --method dcutmix --k 3 --out grid.png
  python -m fastmix preview --method mixup,cutmix,dcutmix --out methods.png
  python -m fastmix preview --method rmix --run runs/x --out grid.png
"""
MODEL_FLAGS = ("data", "root", "image_size", "layout")
STEPS = 150


def parser() -> Parser:
    p = Parser(prog="python -m fastmix preview", description="Draw images before and after a mixing method.",
               epilog=EPILOG)
    p.add_argument("--method", type=flags.several_methods, required=True, metavar="M[,M]",
                   help=f"one, or several for a picture with a row each: {', '.join(methods.METHODS)}")
    p.add_argument("--out", type=Path, required=True, metavar="FILE.png")
    p.add_argument("--count", type=count, metavar="N", help=f"images ({SHOWN})")
    p.add_argument("--seed", type=seed_number, help="of the images and the mixing (0)")
    p.add_argument("--run", type=Path, metavar="DIR", help="folder of a run whose model gives the saliency")
    p.add_argument("--steps", type=count, metavar="N", help=f"steps of the small CNN without --run ({STEPS})")
    group = p.add_argument_group("data")
    flags.add_data_flags(group, group)
    flags.add_device_flag(group)
    flags.add_method_flags(p)
    flags.add_machine_flags(p.rare_group("the machine"))
    return flags.without_defaults(p)


def main(argv: list[str]) -> int:
    given: dict[str, Any] = vars(parser().parse_args(argv))
    out, shown, folder_of_run = given.pop("out"), given.pop("count", SHOWN), given.pop("run", None)
    steps = given.pop("steps", None)
    names = given.pop("method")
    methods.check_flags(names, set(given))
    flags.check_output(out, ".png")
    if folder_of_run is not None:
        folder_of_run = run_folder(folder_of_run)
        if steps is not None:
            raise UsageError("--steps is for the model that is trained without --run")
        trained = Options.from_json(folder_of_run / CONFIG)
        model_of = {name: getattr(trained, name) for name in (*MODEL_FLAGS, "model")}
        given = model_of | given
    several = [Options(**{**given, "method": name}) for name in names]
    chosen = next((own for own in several if methods.of(own).needs_saliency), several[0])
    require("matplotlib", "matplotlib", "preview")
    if chosen.threads is not None:
        torch.set_num_threads(chosen.threads)
    with processes(chosen.device) as here:
        needs_saliency = methods.of(chosen).needs_saliency
        made = setup(chosen, preview.load_images(chosen, needs_saliency), here)
        made.dataset.say(printer(here.first))
        if needs_saliency:
            if folder_of_run is None:
                preview.train_briefly(made, steps or STEPS)
            else:
                load_weights(made.model, folder_of_run, made.policy)
        if len(several) == 1:
            draw_samples(made, made.dataset.test, out, shown)
        else:
            preview.draw_gallery(made, several, out, shown)
    print(f"written to {printable(out)}")
    return 0
