"""python -m fastmix subsample: scores all training images, writes the indices of those to train on."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torch

from .. import data
from ..arguments import count, part, positive, seed_number, share, some_of
from ..console import Parser, printer
from ..names import printable
from ..subsets import compare
from ..subsets.table import MEASURES, Scoring, Table, select, write_index
from ..training.distributed import Processes
from ..training.jobs import in_processes
from ..training.trained import Trained
from .flags import add_device_flag, add_machine_flags, check_output

EPILOG = """\
Every training image is mixed with others --samples times, keeping its share; the loss of the trained model on these
mixtures has a mean, a standard deviation and a coefficient of variation, cv = std / mean (K-image mixing, after Eq. 8).
--how: top, the largest cv of every class; interval, every --interval-th in that order; std, the largest standard
deviation; easy and hard, the smallest and the largest mean; random.

OUT.npy gets the indices, OUT.table.npz the statistics of all images (index, label, mean, std, cv): another --how or
--ratio is then a matter of a second. A killed command goes on where it was if it is called again.

examples:
  python -m fastmix train --method dcutmix --data fashion-mnist \\
      --limit 5000 --out runs/scorer
  python -m fastmix subsample --checkpoint runs/scorer --ratio 0.1 --how top \\
      --out idx.npy
  python -m fastmix train --method dcutmix --data fashion-mnist --subset idx.npy
  torchrun --nproc-per-node 2 -m fastmix subsample --checkpoint runs/scorer \\
      --out idx.npy
  python -m fastmix subsample --checkpoint runs/scorer --seeds 3 \\
      --compare top,interval,random,easy,hard --out runs/subsets
"""
def parser() -> Parser:
    p = Parser(prog="python -m fastmix subsample", description="Choose the most informative training images.",
               epilog=EPILOG)
    p.add_argument("--checkpoint", type=Path, required=True, metavar="DIR", help="folder of the run that scores")
    p.add_argument("--out", type=Path, required=True, metavar="FILE.npy", help="the indices (with --compare a folder)")
    p.add_argument("--overwrite", action="store_true", help="replace statistics of other settings")
    group = p.add_argument_group("data")
    group.add_argument("--data", choices=tuple(data.SOURCES), metavar="NAME", help="must be the run's (its own)")
    group.add_argument("--root", metavar="DIR", help="where its files are")
    group.add_argument("--limit", type=count, metavar="N", help="score N images, as many of every class")
    group = p.add_argument_group("statistics")
    group.add_argument("--samples", type=count, default=Scoring.samples, metavar="M",
                       help="mixtures of every image (%(default)s)")
    group.add_argument("--anchor", type=share, default=Scoring.anchor,
                       help="the image's share in its mixtures (%(default)s)")
    group.add_argument("--others", type=count, default=Scoring.others, metavar="N",
                       help="other images in a mixture (%(default)s)")
    group.add_argument("--alpha", type=positive, default=Scoring.alpha, help="of their Dirichlet distribution (2/9)")
    group.add_argument("--batch", type=count, default=Scoring.batch, metavar="N",
                       help="images of a batch (%(default)s)")
    group.add_argument("--seed", type=seed_number, default=Scoring.seed, help="of the mixtures (%(default)s)")
    group.add_argument("--table", type=Path, metavar="FILE.npz", help="where the statistics are (OUT.table.npz)")
    group = p.add_argument_group("selection")
    group.add_argument("--how", choices=MEASURES, default="top", help="(%(default)s)")
    group.add_argument("--ratio", type=part, default=0.1, help="share of every class to keep (%(default)s)")
    group.add_argument("--interval", type=count, default=2, metavar="I", help="of --how interval (%(default)s)")
    group = p.add_argument_group("comparison")
    group.add_argument("--compare", type=some_of(MEASURES), metavar="HOW,HOW,...",
                       help="train on the images of each selection, as the run was, and draw the errors")
    group.add_argument("--ratios", type=_ratios, default=[0.05, 0.1, 0.2], metavar="R,R,...", help="(0.05,0.1,0.2)")
    group.add_argument("--seeds", type=count, default=1, metavar="N", help="runs of every point (%(default)s)")
    group.add_argument("--epochs", type=count, metavar="N", help="of every run (those of the scoring run)")
    group.add_argument("--train-batch", type=count, metavar="N", help="images in a step (the scoring run's)")
    group.add_argument("--test-limit", type=count, metavar="N", help="test on N images (all)")
    machine = p.add_argument_group("the machine")
    add_device_flag(machine)
    add_machine_flags(machine)
    return p


def _ratios(value: str) -> list[float]:
    return sorted({part(ratio) for ratio in value.split(",")})


def _scoring(args: argparse.Namespace) -> Scoring:
    return Scoring(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Scoring)})


def _check(args: argparse.Namespace) -> None:
    _scoring(args).check()
    check_output(args.out, ".npy" if args.compare is None else None)


def main(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    _check(args)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    return in_processes(args.device or "auto", lambda here: _subsample(args, here),
                        lambda: "called again, the command goes on where it was")


def _subsample(args: argparse.Namespace, here: Processes) -> None:
    trained = Trained.load(args.checkpoint, here.device, args.data, args.root, args.workers or 0,
                           first=here.first)
    trained.dataset.say(printer(here.first))
    if args.compare is not None:
        table = Table(args.table or args.out / "table.npz", trained, _scoring(args))
        wanted = compare.Comparison(args.compare, args.ratios, args.seeds, args.interval, args.epochs,
                                    args.train_batch, args.test_limit)
        compare.run(wanted, table, trained, here, args.out, args.overwrite)
        return
    table = Table(args.table or args.out.with_suffix(".table.npz"), trained, _scoring(args))
    scores = table.scores(here, args.overwrite) if args.how != "random" else None
    rows = select(args.how, scores, table.labels, args.ratio, args.interval, args.seed)
    if here.first:
        write_index(args.out, table.index[rows])
        print(f"{args.how}: {len(rows)} of {len(table.index)} images")
        if scores is not None:
            print(f"cv {scores.cv[rows].mean():.3f} (all images {scores.cv.mean():.3f}), mean loss "
                  f"{scores.mean[rows].mean():.3f} (all images {scores.mean.mean():.3f})")
            print(f"statistics in {printable(table.path)}")
        print(f"written to {printable(args.out)}", flush=True)
