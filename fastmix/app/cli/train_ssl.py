"""python -m fastmix train-ssl: flags and the run they ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..arguments import count, not_negative, positive, seed_number, share
from ..console import Parser, UsageError
from ..names import flag
from ..selfsupervised.options import PAIR_WEIGHTS, SslOptions, check
from ..selfsupervised.run import train_one
from ..training.jobs import check_free, in_processes, new_folder
from ..training.options import continued
from ..training.run import CONFIG, check_extras
from .flags import add_data_flags, add_machine_flags, add_output_flags, without_defaults

EPILOG = """\
examples:
  python -m fastmix train-ssl --pair-weight SA1
  python -m fastmix train-ssl --data cifar10 --root DIR --model preact-resnet18 --epochs 500 --pair-weight SA1
  python -m fastmix train-ssl --resume --out runs/simsiam-SA1-digits-cnn-seed0

Labels are used by the linear evaluation alone. The folder of a run gets config.json, metrics.jsonl (a line an
epoch), report.json, curves.png, pairs.png and checkpoint.pt, the state after the last finished epoch. Exit status: 0,
1 failed, 2 wrong usage, 130 interrupted.
"""


def parser() -> Parser:
    p = Parser(prog="python -m fastmix train-ssl",
               description="Train a backbone without labels (SimSiam), with the pair weights of Soft Augmentation.",
               epilog=EPILOG)
    add_data_flags(p)
    _add_ssl_flags(p)
    add_machine_flags(p)
    add_output_flags(p, "continue what is in the folder")
    return without_defaults(p)


def _add_ssl_flags(parser: Parser) -> None:
    group = parser.add_argument_group("training")
    group.add_argument("--model", help="backbone: as for train, without its classifier (cnn)")
    group.add_argument("--epochs", type=count, help="(100; the paper 500)")
    group.add_argument("--batch", type=count, metavar="N", help="most images in a step of one process (512)")
    group.add_argument("--lr", type=positive,
                       help="at the start, falling to 0 by a cosine (0.2 for 512 images a step, else in proportion)")
    group.add_argument("--momentum", type=share, help="of SGD (0.9)")
    group.add_argument("--weight-decay", type=not_negative, metavar="W", help="(0.0005)")
    group.add_argument("--dim", type=count, help="of the projections (4 times the backbone's features)")
    group.add_argument("--pair-weight", choices=PAIR_WEIGHTS,
                       help="SA1: pairs that share little count less; SA2: pairs that share much; none (default)")
    group.add_argument("--pair-k", type=positive, metavar="K", help="softening power of the weights (4)")
    group.add_argument("--pair-chance", type=share, metavar="P", help="least weight before they are "
                       "normalised to mean 1 (0)")
    group.add_argument("--scale-min", type=share, metavar="S", help="least share of the image in a crop (0.2)")
    group.add_argument("--jitter", type=share, help="of brightness, contrast and saturation (0.4)")
    group.add_argument("--seed", type=seed_number, help="of weights, order and crops (0)")
    group.add_argument("--amp", choices=("none", "bf16"), help="automatic mixed precision (none)")
    group.add_argument("--no-channels-last", dest="channels_last", action="store_false",
                       help="keep NCHW memory order")
    group = parser.add_argument_group("linear evaluation")
    group.add_argument("--linear-epochs", type=count, metavar="N", help="(100)")
    group.add_argument("--linear-lr", type=positive, metavar="LR",
                       help="a tenth of it after 60 %% and after 80 %% of the epochs (1)")


def request(argv: list[str]) -> tuple[SslOptions, Path, bool]:
    """Options, folder and whether to resume. UsageError if the flags make no sense."""
    given: dict[str, Any] = vars(parser().parse_args(argv))
    out, resume, overwrite = given.pop("out", None), given.pop("resume", False), given.pop("overwrite", False)
    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other")
    options = SslOptions(**given)
    check(options)
    folder = out or new_folder(options.label(), resume)
    if resume:
        if not (folder / CONFIG).exists():
            raise UsageError(f"--resume: there is no run in {folder}")
        return continued(SslOptions.from_json(folder / CONFIG), given, folder), folder, True
    if not overwrite:
        check_free(folder)
    return options, folder, False


def main(argv: list[str]) -> int:
    options, folder, resume = request(argv)
    check_extras()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    return in_processes(options.device, lambda here: train_one(options, folder, resume, here),
                        f"python -m fastmix train-ssl --resume {flag('--out', folder)}")
