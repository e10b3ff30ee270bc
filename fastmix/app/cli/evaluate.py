"""python -m fastmix evaluate: everything about a trained model in one JSON and on one page."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

import fastmix

from .. import data
from ..console import CommandError, Parser, UsageError, progress_bar, require
from ..evaluation import parts
from ..figures import evaluation as plots
from ..training import checkpoint, options, run
from ..training.distributed import processes
from ..training.trained import Trained
from .train import teller

EPILOG = """\
Parts: calibration (accuracy, ECE and a reliability diagram), occlusion (0 to 80 % of the image hidden), attacks (FGSM
and PGD), noise (the loss under Gaussian noise on the weights), surface (the loss along two eigenvectors of the Hessian
and two random directions), cam (localisation by class activation maps, where the data set has boxes).

examples:
  python -m fastmix evaluate --checkpoint runs/none-digits-cnn-seed0
  python -m fastmix evaluate --checkpoint runs/x --only calibration,attacks --limit 1000 --out x.json
  torchrun --nproc-per-node 2 -m fastmix evaluate --checkpoint runs/x      (the results are those of one process)
"""


def names(value: str) -> list[str]:
    chosen = value.split(",")
    for name in chosen:
        if name not in parts.PARTS:
            raise argparse.ArgumentTypeError(f"names {name!r}, want some of {', '.join(parts.PARTS)}")
    return [name for name in parts.PARTS if name in chosen]


def parser() -> Parser:
    p = Parser(prog="python -m fastmix evaluate", description="Judge a trained model on its test images.",
               epilog=EPILOG)
    p.add_argument("--checkpoint", type=Path, required=True, metavar="DIR", help="folder of a run of train")
    p.add_argument("--out", type=Path, metavar="FILE.json", help="(DIR/evaluation.json); the page is FILE.png")
    p.add_argument("--only", type=names, metavar="PART,...", help=f"some of {', '.join(parts.PARTS)} (all)")
    p.add_argument("--limit", type=options.count, metavar="N", help="N test images, as many of every class (all)")
    p.add_argument("--root", metavar="DIR", help="where the files of its data set are")
    p.add_argument("--batch", type=options.count, default=250, metavar="N", help="(250)")
    p.add_argument("--seed", type=options.seed_number, default=0, help="of patches, attacks and directions (0)")
    p.add_argument("--epsilon", type=options.not_negative, default=8.0, metavar="E", help="attacks: E/255 (8)")
    p.add_argument("--pgd-steps", type=options.count, default=10, metavar="N", help="each of epsilon/4 (10)")
    p.add_argument("--surface-images", type=options.count, default=250, metavar="N",
                   help="images of the parts noise and surface (250)")
    p.add_argument("--points", type=options.count, default=11, metavar="N", help="a side of the loss surfaces (11)")
    p.add_argument("--span", type=options.positive, default=0.5, metavar="S",
                   help="loss surfaces reach from -S to S: of a unit eigenvector, of the weights' own size (0.5)")
    p.add_argument("--cam-threshold", type=options.share, default=0.2, metavar="T", help="of the map (0.2)")
    options.add_machine_flags(p)
    return p


def _check(args: argparse.Namespace) -> None:
    if args.epsilon > 255:
        raise UsageError(f"--epsilon is {args.epsilon:g}, want at most 255")
    if args.points < 2:
        raise UsageError(f"--points is {args.points}, want at least 2")
    if args.out is not None:
        if args.out.suffix != ".json":
            raise UsageError(f"--out is {args.out}, want a name ending in .json")
        if not args.out.absolute().parent.is_dir():
            raise UsageError(f"--out: there is no directory {args.out.absolute().parent}")


def _judge(judged: parts.Judged, wanted: list[str], strict: bool,
           say: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """The results of the wanted parts. strict: a part that cannot be judged is an error, not left out."""
    results = {}
    for name in wanted:
        started = time.perf_counter()
        try:
            part = parts.run(name, judged)
        except parts.Skipped as error:
            if strict:
                raise CommandError(f"part {name}: {error}") from None
            say(f"{name}: left out, {error}")
            continue
        results[name] = part | {"seconds": time.perf_counter() - started}
        say(f"{name}: {parts.summary(name, part)} ({results[name]['seconds']:.1f} s)")
    return results


def _write(args: argparse.Namespace, trained: Trained, judged: parts.Judged, results: dict[str, dict[str, Any]]) -> str:
    """The JSON and the page; their names."""
    settings, state = trained.options, checkpoint.load(trained.folder)
    report = {"run": trained.folder.name, "method": settings.method, "data": settings.data, "model": settings.model,
              "train_seed": settings.seed, "epoch": state["epoch"] if state else None, "images": len(judged.index),
              "seed": args.seed, "device": run.device_name(trained.device), "processes": judged.processes.world,
              "torch": torch.__version__, "fastmix": fastmix.__version__, "parts": results}
    out = args.out or trained.folder / run.EVALUATION[0]
    checkpoint.write_json(out, report)
    title = f"{settings.method} on {settings.data}, {settings.model}, {len(judged.index)} test images"
    plots.page(results, judged, title, out.with_suffix(".png"))
    return f"{out} and {out.with_suffix('.png')}"


def main(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    _check(args)
    require("matplotlib", "matplotlib", "the page of plots")
    require("torchmetrics", "torchmetrics", "the calibration error")
    require("scipy", "scipy", "evaluation")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    with processes(args.device or "auto") as here:
        say = teller(here.first)
        trained = Trained.load(args.checkpoint, here.device, root=args.root, workers=args.workers or 0)
        test = trained.dataset.test
        index = torch.arange(len(test.labels))
        if args.limit is not None:
            index = data.balanced_subset(test.labels, args.limit, "--limit")
        judged = parts.Judged(trained, here, test.subset(index).to(here.device), index, args.batch, args.seed,
                              args.epsilon / 255, args.pgd_steps, args.surface_images, args.points, args.span,
                              args.cam_threshold, partial(progress_bar, show=here.first))
        results = _judge(judged, args.only or list(parts.PARTS), args.only is not None, say)
        if here.first:
            say(f"written to {_write(args, trained, judged, results)}")
        here.barrier()
    return 0
