"""python -m fastmix subsample: scores all training images, writes the indices of those to train on."""

from __future__ import annotations

import argparse
import io
import json
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...files import write_atomically
from ...subsampling import AnchoredDCutMix, OtherSettings, Uncertainty, subsample, uncertainty, weights_digest
from .. import data
from ..console import CommandError, Parser, UsageError, progress_bar
from ..training import options
from ..training.distributed import Processes, processes
from ..training.trained import Inputs, Trained

EPILOG = """\
Every training image is mixed with others --samples times, keeping its share; the loss of the trained model on these
mixtures has a mean, a standard deviation and a coefficient of variation, cv = std / mean (K-image mixing, after Eq. 8).
--how: top, the largest cv of every class; interval, every --interval-th in that order; std, the largest standard
deviation; easy and hard, the smallest and the largest mean; random.

OUT.npy gets the indices, OUT.table.npz the statistics of all images (index, label, mean, std, cv): another --how or
--ratio is then a matter of a second. A killed command goes on where it was if it is called again.

examples:
  python -m fastmix train --method dcutmix --data fashion-mnist --limit 5000 --out runs/scorer
  python -m fastmix subsample --data fashion-mnist --checkpoint runs/scorer --ratio 0.1 --how top --out idx.npy
  python -m fastmix train --method dcutmix --data fashion-mnist --subset idx.npy
  torchrun --nproc-per-node 2 -m fastmix subsample --checkpoint runs/scorer --out idx.npy
  python -m fastmix subsample --checkpoint runs/scorer --compare top,interval,random,easy,hard \\
      --ratios 0.05,0.1,0.2 --seeds 3 --out runs/subsets
"""
RANDOM = 2  # a stream of random numbers, see subsampling.py
MEASURES = ("top", "interval", "std", "easy", "hard", "random")


def hows(value: str) -> list[str]:
    names = value.split(",")
    for name in names:
        if name not in MEASURES:
            raise argparse.ArgumentTypeError(f"names {name!r}, want some of {', '.join(MEASURES)}")
    return list(dict.fromkeys(names))


def ratio(value: str) -> float:
    number = options.positive(value)
    if number > 1:
        raise argparse.ArgumentTypeError(f"is {value}, want a share above 0, at most 1")
    return number


def ratios(value: str) -> list[float]:
    return sorted({ratio(part) for part in value.split(",")})


def parser() -> Parser:
    p = Parser(prog="python -m fastmix subsample", description="Choose the training images that say most.",
               epilog=EPILOG)
    p.add_argument("--checkpoint", type=Path, required=True, metavar="DIR", help="folder of the run that scores")
    p.add_argument("--out", type=Path, required=True, metavar="FILE.npy", help="the indices (with --compare a folder)")
    p.add_argument("--overwrite", action="store_true", help="replace statistics of other settings")
    group = p.add_argument_group("data")
    group.add_argument("--data", choices=tuple(data.SOURCES), help="must be the run's (its own)")
    group.add_argument("--root", metavar="DIR", help="where its files are")
    group.add_argument("--limit", type=options.count, metavar="N", help="score N images, as many of every class")
    group = p.add_argument_group("statistics")
    group.add_argument("--samples", type=options.count, default=10, metavar="M", help="mixtures of every image (10)")
    group.add_argument("--anchor", type=options.share, default=0.5, help="the image's share in its mixtures (0.5)")
    group.add_argument("--others", type=options.count, default=2, metavar="N", help="other images in a mixture (2)")
    group.add_argument("--alpha", type=options.positive, default=2 / 9, help="of their Dirichlet distribution (2/9)")
    group.add_argument("--batch", type=options.count, default=100, metavar="N", help="images of a batch (100)")
    group.add_argument("--seed", type=options.seed_number, default=0, help="of the mixtures (0)")
    group.add_argument("--table", type=Path, metavar="FILE.npz", help="where the statistics are (OUT.table.npz)")
    group = p.add_argument_group("selection")
    group.add_argument("--how", choices=MEASURES, default="top", help="(top)")
    group.add_argument("--ratio", type=ratio, default=0.1, help="share of every class to keep (0.1)")
    group.add_argument("--interval", type=options.count, default=2, metavar="I", help="of --how interval (2)")
    group = p.add_argument_group("comparison")
    group.add_argument("--compare", type=hows, metavar="HOW,HOW,...",
                       help="train on the images of each selection, as the run was, and draw the errors")
    group.add_argument("--ratios", type=ratios, default=[0.05, 0.1, 0.2], metavar="R,R,...", help="(0.05,0.1,0.2)")
    group.add_argument("--seeds", type=options.count, default=1, metavar="N", help="runs of every point (1)")
    group.add_argument("--epochs", type=options.count, metavar="N", help="of every run (those of the scoring run)")
    group.add_argument("--train-batch", type=options.count, metavar="N", help="images in a step (the scoring run's)")
    group.add_argument("--test-limit", type=options.count, metavar="N", help="test on N images (all)")
    options.add_machine_flags(p)
    return p


def select(how: str, scores: Uncertainty | None, labels: Tensor, share: float, interval: int, seed: int) -> Tensor:
    """Rows of the table that a selection keeps; random ones need no scores. UsageError for an interval too long."""
    if how != "random" and scores is not None:
        measure = {"top": scores.cv, "interval": scores.cv, "std": scores.std, "easy": -scores.mean,
                   "hard": scores.mean}[how]
    else:
        generator = torch.Generator().manual_seed(data.derived_seed(seed, RANDOM))
        measure = torch.rand(len(labels), dtype=torch.float64, generator=generator)
    try:
        return subsample(measure, labels, share, interval if how == "interval" else 1)
    except ValueError as error:
        raise UsageError(str(error)) from None


class Table:
    """The statistics of all images, kept in a file beside what was asked for.

    index: (n,) int64 in the whole training set. labels: (n,) int64.
    """

    def __init__(self, path: Path, trained: Trained, args: argparse.Namespace) -> None:
        train = trained.dataset.train
        everything = torch.arange(len(train.labels))
        self.index = everything if args.limit is None else data.balanced_subset(train.labels, args.limit, "--limit")
        self.labels = train.labels[self.index]
        self.path, self.partial = path, path.with_name(f"{path.name}.partial")
        self._images = Inputs(trained, train.subset(self.index))
        self._model = trained.model
        self._args = args
        self.settings = {"data": trained.options.data, "images": len(self.index), "samples": args.samples,
                         "anchor": args.anchor, "others": args.others, "alpha": args.alpha, "batch": args.batch,
                         "seed": args.seed, "weights": weights_digest(trained.model)}

    def scores(self, here: Processes) -> Uncertainty:
        """From the file, or computed and written by the first process."""
        args = self._args
        here.barrier()
        if args.overwrite and here.first:
            for path in (self.path, self.partial):
                path.unlink(missing_ok=True)
        here.barrier()
        found = self._read()
        if found is not None:
            if here.first:
                print(f"statistics of {len(self.index)} images from {self.path}", flush=True)
            return found
        with progress_bar(f"{args.samples} mixtures of {len(self.index)} images", args.samples, here.first) as bar:
            scores = self._compute(here, bar)
        if here.first:
            buffer = io.BytesIO()
            arrays = {name: value.numpy() for name, value in
                      {"index": self.index, "label": self.labels, **scores._asdict()}.items()}
            np.savez(buffer, settings=np.array(json.dumps(self.settings)), **arrays)
            write_atomically(self.path, buffer.getvalue())
            self.partial.unlink(missing_ok=True)
        here.barrier()
        return scores

    def _compute(self, here: Processes, advance: Callable[[float], None]) -> Uncertainty:
        args, before = self._args, 0.0

        def progress(number: int, done: int, batches: int) -> None:
            nonlocal before
            now = number + done / batches
            advance(now - before)
            before = now
            if here.first and done == batches:
                print(f"mixture {number + 1}/{args.samples} of {len(self.index)} images", flush=True)

        if here.first and self.partial.exists():
            print(f"continuing {self.partial}", flush=True)
        try:
            return uncertainty(self._model, self._images, args.anchor, args.others, args.alpha, args.samples,
                               batch_size=args.batch, seed=args.seed, state=self.partial, progress=progress)
        except OtherSettings as error:
            raise UsageError(f"{error}; --overwrite starts anew") from None
        except ValueError as error:
            raise CommandError(str(error)) from None

    def _read(self) -> Uncertainty | None:
        if not self.path.exists():
            return None
        try:
            with np.load(self.path, allow_pickle=False) as file:
                settings = json.loads(str(file["settings"]))
                columns = [torch.from_numpy(file[name]) for name in Uncertainty._fields]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise UsageError(f"{self.path} is damaged or no table of statistics ({error}); --overwrite replaces it"
                             ) from None
        for name, value in self.settings.items():
            if settings.get(name) != value:
                raise UsageError(f"{self.path} holds statistics of other settings ({name} is {settings.get(name)!r}, "
                                 f"not {value!r}); --overwrite replaces them, --table takes another file")
        return Uncertainty(*columns)


def _write_index(path: Path, index: Tensor) -> None:
    buffer = io.BytesIO()
    np.save(buffer, index.numpy())
    write_atomically(path, buffer.getvalue())


def _check(args: argparse.Namespace) -> None:
    if args.samples < 2:
        raise UsageError("--samples is 1, want at least 2: one loss has no spread")
    if args.batch < 2:
        raise UsageError("--batch is 1, want at least 2: an image's partners are the others of its batch")
    try:
        AnchoredDCutMix(args.anchor, args.others, args.alpha)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if args.compare is None and args.out.suffix != ".npy":
        raise UsageError(f"--out is {args.out}, want a name ending in .npy")
    if not args.out.absolute().parent.is_dir():
        raise UsageError(f"--out: there is no directory {args.out.absolute().parent}")


def main(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    _check(args)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    with processes(args.device or "auto") as here:
        trained = Trained.load(args.checkpoint, here.device, args.data, args.root, args.workers or 0)
        if args.compare is not None:
            from ..training import subset_compare

            return subset_compare.main(args, trained, here)
        table = Table(args.table or args.out.with_suffix(".table.npz"), trained, args)
        scores = table.scores(here) if args.how != "random" else None
        rows = select(args.how, scores, table.labels, args.ratio, args.interval, args.seed)
        if here.first:
            _write_index(args.out, table.index[rows])
            print(f"{args.how}: {len(rows)} of {len(table.index)} images")
            if scores is not None:
                print(f"cv {scores.cv[rows].mean():.3f} (all images {scores.cv.mean():.3f}), mean loss "
                      f"{scores.mean[rows].mean():.3f} (all images {scores.mean.mean():.3f})")
                print(f"statistics in {table.path}")
            print(f"written to {args.out}", flush=True)
    return 0
