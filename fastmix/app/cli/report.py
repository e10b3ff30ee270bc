"""python -m fastmix report: finished runs of several comparisons as one table and one JSON."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..arguments import count, count_or_zero
from ..console import CommandError, Parser, UsageError, progress_bar, require
from ..evaluation.attacks import EPSILON
from ..figures import report as picture
from ..figures.drawing import optional
from ..names import listed, printable
from ..results import render
from ..results.collect import Fgsm, collect, read_step
from ..results.runs import find, grouped
from ..training import checkpoint
from ..training.distributed import processes
from .flags import check_output

EPILOG = """\
A row of the table is a method with its settings, the mean over its seeds. A folder is a run, a comparison, or one with
runs right below it; runs that have not ended are left out. The JSON also holds the commands that train each row again.

examples:
  python -m fastmix report runs/compare-none-rmix-digits-cnn
  python -m fastmix report runs/a runs/b --out results.json
  python -m fastmix report runs/a runs/b --fgsm-images 0 --markdown
"""


def parser() -> Parser:
    p = Parser(prog="python -m fastmix report", description="Collect finished runs into one table.", epilog=EPILOG)
    p.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="folder of a run or of a comparison")
    p.add_argument("--out", type=Path, metavar="FILE.json", help="write everything there, and a picture to FILE.png")
    p.add_argument("--markdown", action="store_true", help="print the table in Markdown")
    p.add_argument("--fgsm-images", type=count_or_zero, default=1000, metavar="N",
                   help="attack N test images, as many of every class; 0: none (1000)")
    p.add_argument("--machine", metavar="NAME", help="what to call the machine of the runs in the JSON")
    p.add_argument("--step", type=Path, metavar="FILE.json",
                   help="take the times of steps from a result of bench step, where it has the method")
    p.add_argument("--root", metavar="DIR", help="where the files of the data set are")
    p.add_argument("--device", help="of the attack: auto (default), cpu, cuda")
    p.add_argument("--threads", type=count, metavar="N", help="CPU threads")
    return p


def _note(line: str) -> None:
    print(f"fastmix: {line}", file=sys.stderr, flush=True)


def _some(folders: list[Path]) -> str:
    return listed(folders, 3)


def _check(args: argparse.Namespace) -> None:
    if args.out is None:
        return
    check_output(args.out, ".json")
    require("matplotlib", "matplotlib", "the picture")


def main(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    _check(args)
    if args.threads is not None:
        import torch

        torch.set_num_threads(args.threads)
    step = None if args.step is None else read_step(args.step)
    runs, unfinished = find(args.folders)
    if unfinished:
        _note(f"left out, not ended: {_some(unfinished)}")
    if not runs:
        raise CommandError("no run has ended")
    groups, repeated = grouped(runs)
    if repeated:
        _note(f"left out, same settings and seed as another run: {_some([one.folder for one in repeated])}")
    kept = [one for members in groups.values() for one in members]
    fgsm, found = None, {}
    if args.fgsm_images:
        with processes(args.device or "auto") as here, progress_bar("FGSM", len(kept)) as advance:
            if here.world > 1:
                raise UsageError("report runs in one process, not under torchrun")
            fgsm = Fgsm(args.fgsm_images, EPSILON, here.device, args.root)
            for one in kept:
                found[one.folder] = fgsm(one)
                advance()
    results = collect(groups, fgsm, found, args.machine, step)
    lines = render.table(results)
    print(render.markdown(lines, named=True) if args.markdown else render.plain(results["title"], lines))
    risks = render.risks(results)
    if risks:
        heading = "cross-entropy of the training images x 1000, before and after the refinement"
        shown = f"{heading}\n\n{render.markdown(risks, named=True)}" if args.markdown else render.plain(heading, risks)
        print(f"\n{shown}")
    if args.out is not None:
        checkpoint.write_json(args.out, results)
        with optional(args.out.with_suffix(".png")):
            picture.draw(results, args.out.with_suffix(".png"))
        _note(f"written to {printable(args.out)} and {printable(args.out.with_suffix('.png'))}")
    return 0
