"""python -m fastmix train: flags and the runs they ask for."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from .. import methods
from ..arguments import count
from ..console import Parser
from ..names import file_name
from ..training import compare, presets
from ..training.jobs import Job, Request, in_processes, train_all
from ..training.options import Options, check, check_schedule, continued
from ..training.places import Place
from ..training.run import CONFIG, check_extras
from . import flags

EPILOG = """\
examples:
  python -m fastmix train --method rmix
  python -m fastmix train --compare none,mixup,rmix --data mnist5k --seeds 3
  python -m fastmix train --data folder --root DIR --model resnet18
  python -m fastmix train --preset paper/dcutmix-pn110-c100 --root DIR
  python -m fastmix train --resume --out runs/rmix-digits-cnn-seed0
  torchrun --nproc-per-node 2 -m fastmix train --method cutmix

The folder of a run gets config.json, metrics.jsonl (a line an epoch), report.json, curves.png, samples.png and
checkpoint.pt, the state after the last finished epoch. While it lives, a run holds its folder. Exit status: 0, 1
failed, 2 wrong usage, 130 interrupted, 143 terminated; FASTMIX_DEBUG=1 shows the traceback of an error.
"""


def parser() -> Parser:
    p = Parser(prog="python -m fastmix train", description="Train an image classifier with a mixing method.",
               epilog=EPILOG)
    common = p.add_argument_group("common")
    choice = common.add_mutually_exclusive_group()
    choice.add_argument("--method", choices=tuple(methods.METHODS), metavar="NAME",
                        help=f"{', '.join(methods.METHODS)} {flags.default('method')}")
    choice.add_argument("--compare", type=flags.several_methods, metavar="M,M,...",
                        help="train each of these methods with the same seeds and print one table")
    common.add_argument("--preset", metavar="NAME",
                        help="take what is not given from a paper's table; python -m fastmix presets lists them")
    about = "\n".join(f"  {name}: {method.about}" + (f" (extra {method.extra})" if method.extra else "")
                      for name, method in methods.METHODS.items())
    flags.add_method_flags(p, about)
    rare = p.rare_group("training")
    flags.add_data_flags(common, rare)
    flags.add_training_flags(common)
    common.add_argument("--seeds", type=count, metavar="N", help="train N times, with seeds SEED, SEED + 1, ...")
    flags.add_device_flag(common)
    flags.add_output_flags(p.add_argument_group("output"), "continue what is in the folder; finished runs are kept, "
                           "with more --epochs extended")
    flags.add_rare_training_flags(rare)
    flags.add_machine_flags(p.rare_group("the machine"))
    return flags.without_defaults(p)


def request(argv: list[str]) -> Request:
    """The runs that these flags ask for. UsageError if they make no sense."""
    given: dict[str, Any] = vars(parser().parse_args(argv))
    out, resume = given.pop("out", None), given.pop("resume", False)
    overwrite = given.pop("overwrite", False)
    names, seeds = given.pop("compare", None), given.pop("seeds", None)
    single = names is None and seeds is None
    if out is not None and resume and single:
        place = Place.of(out, "", resume, overwrite)
        found = compare.members(place.folder)
        folders = [place.folder] if found is None else found
        jobs = [Job(continued(Options.from_json(folder / CONFIG), given, folder), folder) for folder in folders]
        return Request(jobs, place, found is not None)

    each = [Options(**presets.fill(given, name)) for name in names or [None]]
    first, names = each[0], [own.method for own in each]
    methods.check_flags(names, set(given))
    for own in each:
        check(own)
        check_schedule(own, set(given))
    variants = [dataclasses.replace(own, seed=own.seed + i) for own in each for i in range(seeds or 1)]
    name = first.label() if single else f"compare-{'-'.join(names)}-{first.data}-{file_name(first.model)}"
    place = Place.of(out, name, resume, overwrite)
    folder = place.folder
    jobs = [Job(first, folder)] if single else [
        Job(variant, folder / f"{variant.method}-seed{variant.seed}") for variant in variants]
    if resume:
        for job in jobs:
            if (job.folder / CONFIG).exists():
                job.options = continued(Options.from_json(job.folder / CONFIG), given, job.folder)
    return Request(jobs, place, not single)


def main(argv: list[str]) -> int:
    wanted = request(argv)
    check_extras()
    first = wanted.jobs[0].options
    if first.threads is not None:
        torch.set_num_threads(first.threads)
    return in_processes(first.device, lambda here: train_all(wanted, here), wanted.kept)
