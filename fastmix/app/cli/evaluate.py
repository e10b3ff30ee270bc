"""python -m fastmix evaluate: everything about a trained model in one JSON and on one page."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch

from .. import claims, data
from ..arguments import count, not_negative, positive, seed_number, share, some_of
from ..console import Parser, UsageError, printer, progress_bar, require
from ..evaluation import parts, report
from ..training.distributed import Processes, processes
from ..training.places import run_folder
from ..training.run import EVALUATION
from ..training.trained import Trained
from .flags import add_device_flag, add_machine_flags, check_output

EPILOG = """\
Parts: calibration (accuracy, ECE and a reliability diagram), occlusion (0 to 80 % of the image hidden), attacks (FGSM
and PGD), noise (the loss under Gaussian noise on the weights), surface (the loss along two eigenvectors of the Hessian
and two random directions), cam (localisation by class activation maps, where the data set has boxes).

examples:
  python -m fastmix evaluate --checkpoint runs/none-digits-cnn-seed0
  python -m fastmix evaluate --checkpoint runs/x --only attacks --out x.json
  torchrun --nproc-per-node 2 -m fastmix evaluate --checkpoint runs/x
      (the results are those of one process)
"""


def parser() -> Parser:
    p = Parser(prog="python -m fastmix evaluate", description="Evaluate a trained model on its test images.",
               epilog=EPILOG)
    p.add_argument("--checkpoint", type=Path, required=True, metavar="DIR", help="folder of a run of train")
    p.add_argument("--out", type=Path, metavar="FILE.json", help="(DIR/evaluation.json); the page is FILE.png")
    p.add_argument("--only", type=some_of(parts.PARTS), metavar="PART,...",
                   help=f"some of {', '.join(parts.PARTS)} (all)")
    p.add_argument("--limit", type=count, metavar="N", help="N test images, as many of every class (all)")
    p.add_argument("--root", metavar="DIR", help="where the files of its data set are")
    p.add_argument("--batch", type=count, default=250, metavar="N", help="(%(default)s)")
    p.add_argument("--seed", type=seed_number, default=0, help="of patches, attacks and directions (%(default)s)")
    p.add_argument("--epsilon", type=not_negative, default=8.0, metavar="E", help="attacks: E/255 (8)")
    p.add_argument("--pgd-steps", type=count, default=10, metavar="N", help="each of epsilon/4 (%(default)s)")
    p.add_argument("--surface-images", type=count, default=250, metavar="N",
                   help="images of the parts noise and surface (%(default)s)")
    p.add_argument("--points", type=count, default=11, metavar="N", help="a side of the loss surfaces (%(default)s)")
    p.add_argument("--span", type=positive, default=0.5, metavar="S",
                   help="loss surfaces reach from -S to S: of a unit eigenvector, of the weights' own size "
                        "(%(default)s)")
    p.add_argument("--cam-threshold", type=share, default=0.2, metavar="T", help="of the map (%(default)s)")
    machine = p.add_argument_group("the machine")
    add_device_flag(machine)
    add_machine_flags(machine)
    return p


def _check(args: argparse.Namespace) -> None:
    if args.epsilon > 255:
        raise UsageError(f"--epsilon is {args.epsilon:g}, want at most 255")
    if args.points < 2:
        raise UsageError(f"--points is {args.points}, want at least 2")
    if args.out is not None:
        check_output(args.out, ".json")


def main(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    _check(args)
    require("matplotlib", "matplotlib", "the page of plots")
    require("torchmetrics", "torchmetrics", "the calibration error")
    require("scipy", "scipy", "evaluation")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    folder = run_folder(args.checkpoint)
    out = args.out or folder / EVALUATION[0]
    if args.out is None and folder.is_dir():
        check_output(out, ".json")

    def take(stack: ExitStack) -> None:
        stack.enter_context(claims.Claim.of_file(out))

    with processes(args.device or "auto") as here:
        log = printer(here.first)
        trained = Trained.load(folder, here.device, root=args.root, workers=args.workers or 0,
                               first=here.first)
        trained.dataset.say(log)
        with claims.held(here.share, take):
            _evaluate(args, trained, here, out, log)
    return 0


def _evaluate(args: argparse.Namespace, trained: Trained, here: Processes, out: Path,
              log: Callable[[str], None]) -> None:
    test = trained.dataset.test
    index = torch.arange(len(test.labels))
    if args.limit is not None:
        index = data.balanced_subset(test.labels, args.limit, "--limit")
    evaluation = parts.Evaluation(trained, here, test.subset(index).to(here.device), index, args.batch, args.seed,
                                  args.epsilon / 255, args.pgd_steps, args.surface_images, args.points, args.span,
                                  args.cam_threshold, partial(progress_bar, show=here.first))
    wanted = [name for name in parts.PARTS if args.only is None or name in args.only]
    results = report.evaluate_parts(evaluation, wanted, args.only is not None, log)
    if here.first:
        log(f"written to {report.write(evaluation, results, out)}")
    here.barrier()
