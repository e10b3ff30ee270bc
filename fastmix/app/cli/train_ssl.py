"""python -m fastmix train-ssl: flags and the run they ask for."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from ..arguments import count, not_negative, positive, seed_number, share
from ..console import Parser
from ..selfsupervised.options import PAIR_WEIGHTS, SslOptions, check
from ..selfsupervised.run import train_one
from ..training.jobs import in_processes
from ..training.options import continued
from ..training.places import Place, kept
from ..training.run import CONFIG, check_extras
from .flags import add_data_flags, add_device_flag, add_machine_flags, add_output_flags, without_defaults

EPILOG = """\
examples:
  python -m fastmix train-ssl --pair-weight SA1
  python -m fastmix train-ssl --data cifar10 --root DIR --epochs 500
  python -m fastmix train-ssl --resume --out runs/simsiam-SA1-digits-cnn-seed0

Labels are used by the linear evaluation alone. The folder of a run gets config.json, metrics.jsonl (a line an
epoch), report.json, curves.png, pairs.png and checkpoint.pt, the state after the last finished epoch. Exit status: 0,
1 failed, 2 wrong usage, 130 interrupted, 143 terminated.
"""


def parser() -> Parser:
    p = Parser(prog="python -m fastmix train-ssl",
               description="Train a backbone without labels (SimSiam), with the pair weights of Soft Augmentation.",
               epilog=EPILOG)
    common = p.add_argument_group("common")
    add_data_flags(common, common)
    common.add_argument("--model", metavar="NAME", help="backbone: as for train, without its classifier (cnn)")
    common.add_argument("--pair-weight", choices=PAIR_WEIGHTS,
                        help="SA1: pairs that share little count less; SA2: pairs that share much; none (default)")
    common.add_argument("--epochs", type=count, metavar="N", help="(100; the paper 500)")
    common.add_argument("--batch", type=count, metavar="N", help="most images in a step of one process (512)")
    common.add_argument("--lr", type=positive,
                        help="at the start, falling to 0 by a cosine (0.2 for 512 images a step, else in proportion)")
    common.add_argument("--seed", type=seed_number, metavar="N", help="of weights, order and crops (0)")
    add_device_flag(common)
    add_output_flags(p.add_argument_group("output"), "continue what is in the folder; with more --epochs extend it")
    _add_rare_flags(p.add_argument_group("training"), p.add_argument_group("linear evaluation"))
    add_machine_flags(p.add_argument_group("the machine"))
    return without_defaults(p)


def _add_rare_flags(group: argparse._ArgumentGroup, linear: argparse._ArgumentGroup) -> None:
    group.add_argument("--momentum", type=share, help="of SGD (0.9)")
    group.add_argument("--weight-decay", type=not_negative, metavar="W", help="(0.0005)")
    group.add_argument("--dim", type=count, help="of the projections (4 times the backbone's features)")
    group.add_argument("--pair-k", type=positive, metavar="K", help="softening power of the weights (4)")
    group.add_argument("--pair-chance", type=share, metavar="P", help="least weight before they are "
                       "normalised to mean 1 (0)")
    group.add_argument("--scale-min", type=share, metavar="S", help="least share of the image in a crop (0.2)")
    group.add_argument("--jitter", type=share, help="of brightness, contrast and saturation (0.4)")
    group.add_argument("--amp", choices=("none", "bf16"), help="automatic mixed precision (none)")
    group.add_argument("--no-channels-last", dest="channels_last", action="store_false",
                       help="keep NCHW memory order")
    linear.add_argument("--linear-epochs", type=count, metavar="N", help="(100)")
    linear.add_argument("--linear-lr", type=positive, metavar="LR",
                        help="a tenth of it after 60 %% and after 80 %% of the epochs (1)")


def request(argv: list[str]) -> tuple[SslOptions, Place]:
    """Options, and where the run goes. UsageError if the flags make no sense."""
    given: dict[str, Any] = vars(parser().parse_args(argv))
    out, resume, overwrite = given.pop("out", None), given.pop("resume", False), given.pop("overwrite", False)
    options = SslOptions(**given)
    check(options)
    place = Place.of(out, options.label(), resume, overwrite)
    if resume:
        options = continued(SslOptions.from_json(place.folder / CONFIG), given, place.folder)
    return options, place


def main(argv: list[str]) -> int:
    options, place = request(argv)
    check_extras()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    return in_processes(options.device, lambda here: train_one(options, place, here),
                        lambda: kept([place.folder], "train-ssl", place.folder))
