"""python -m fastmix train: flags and the runs they ask for."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from .. import methods
from ..arguments import count
from ..console import Parser, UsageError
from ..names import file_name, flag
from ..training import compare, presets
from ..training.jobs import Job, Request, check_free, holds_run, in_processes, new_folder, train_all
from ..training.options import Options, check, check_schedule, continued
from ..training.run import CONFIG, check_extras
from . import flags

EPILOG = """\
examples:
  python -m fastmix train --method rmix
  python -m fastmix train --compare none,mixup,rmix --data mnist5k --out runs/mnist5k
  python -m fastmix train --compare none,rmix --data fashion-mnist --limit 5000 --seeds 3
  python -m fastmix train --preset paper/dcutmix-pn110-c100 --root DIR
  python -m fastmix train --method mixup --data mnist5k --epochs 20 --refine-epochs 5
  python -m fastmix train --resume --out runs/rmix-digits-cnn-seed0
  torchrun --nproc-per-node 2 -m fastmix train --method cutmix --data cifar10 --root DIR --model preact-resnet18

The folder of a run gets config.json, metrics.jsonl (a line an epoch), report.json, curves.png, samples.png and
checkpoint.pt, the state after the last finished epoch. Exit status: 0, 1 failed, 2 wrong usage, 130 interrupted.
"""


def parser() -> Parser:
    p = Parser(prog="python -m fastmix train", description="Train an image classifier with a mixing method.",
               epilog=EPILOG)
    choice = p.add_mutually_exclusive_group()
    about = "; ".join(f"{name}: {method.about}" + (f" (extra {method.extra})" if method.extra else "")
                      for name, method in methods.METHODS.items())
    choice.add_argument("--method", choices=tuple(methods.METHODS), help=about)
    choice.add_argument("--compare", type=flags.several_methods, metavar="M,M,...",
                        help="train each of these methods with the same seeds and print one table")
    p.add_argument("--preset", metavar="NAME",
                   help="take what is not given from a paper's table; python -m fastmix presets lists them")
    p.add_argument("--seeds", type=count, metavar="N", help="train N times, with seeds SEED, SEED + 1, ...")
    flags.add_data_flags(p)
    flags.add_training_flags(p)
    flags.add_method_flags(p)
    flags.add_machine_flags(p)
    flags.add_output_flags(p, "continue what is in the folder; finished runs are kept")
    return flags.without_defaults(p)


def request(argv: list[str]) -> Request:
    """The runs that these flags ask for. UsageError if they make no sense."""
    given: dict[str, Any] = vars(parser().parse_args(argv))
    out, resume = given.pop("out", None), given.pop("resume", False)
    overwrite = given.pop("overwrite", False)
    names, seeds = given.pop("compare", None), given.pop("seeds", None)
    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other")
    single = names is None and seeds is None
    members = compare.members(out) if resume and out is not None and single else None
    if out is not None and members is not None:
        jobs = [Job(continued(Options.from_json(path / CONFIG), given, path), path) for path in members]
        return Request(jobs, out, True, True)
    if resume and out is not None and not holds_run(out):
        raise UsageError(f"--resume: there is no run in {out}")
    if single and resume and out is not None:
        return Request([Job(continued(Options.from_json(out / CONFIG), given, out), out)], out, False, True)

    each = [Options(**presets.fill(given, name)) for name in names or [None]]
    first, names = each[0], [own.method for own in each]
    methods.check_flags(names, set(given))
    for own in each:
        check(own)
        check_schedule(own, set(given))
    variants = [dataclasses.replace(own, seed=own.seed + i) for own in each for i in range(seeds or 1)]
    if single:
        folder = out or new_folder(first.label(), resume)
        jobs = [Job(first, folder)]
    else:
        folder = out or new_folder(f"compare-{'-'.join(names)}-{first.data}-{file_name(first.model)}", resume)
        jobs = [Job(variant, folder / f"{variant.method}-seed{variant.seed}") for variant in variants]
    if not resume and not overwrite:
        check_free(folder)
    if resume:
        for job in jobs:
            if (job.folder / CONFIG).exists():
                job.options = continued(Options.from_json(job.folder / CONFIG), given, job.folder)
    return Request(jobs, folder, not single, resume)


def main(argv: list[str]) -> int:
    wanted = request(argv)
    check_extras()
    first = wanted.jobs[0].options
    if first.threads is not None:
        torch.set_num_threads(first.threads)
    return in_processes(first.device, lambda here: train_all(wanted, here),
                        f"python -m fastmix train --resume {flag('--out', wanted.folder)}")
