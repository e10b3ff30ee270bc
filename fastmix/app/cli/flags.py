"""The flags that several commands have: which they are, not what they do.

Flags that are not given are left out of what is parsed, so that a preset, a stored run or a default can fill them.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from .. import data, methods
from ..arguments import count, count_or_zero, counts, not_negative, positive, seed_number, share, some_of
from ..console import Parser, UsageError
from ..training.options import Options, RunOptions


def several_methods(value: str) -> list[str]:
    """Names of methods, each once."""
    found = some_of(methods.METHODS)(value)
    if len(found) < len(value.split(",")):
        raise argparse.ArgumentTypeError(f"names a method twice: {value}")
    return found


def default(name: str, options: type[RunOptions] = Options) -> str:
    """What a flag that is left out comes to, for its help."""
    value = getattr(options, name)
    return f"({value:g})" if isinstance(value, float) else f"({value})"


def add_data_flags(common: argparse._ArgumentGroup, more: argparse._ArgumentGroup) -> None:
    """The flags that choose images. more: the group of those that few need."""
    common.add_argument("--data", choices=tuple(data.SOURCES), metavar="NAME",
                        help=f"{', '.join(data.SOURCES)} {default('data')}")
    common.add_argument("--root", metavar="DIR", help="where its files are")
    more.add_argument("--image-size", type=count, metavar="PIXELS", help="side for --data folder (64)")
    more.add_argument("--layout", choices=data.LAYOUTS,
                      help="of --data folder. split: train and test are folders of their own; flat: every folder is a "
                           "class, also one named train; auto: as their names and contents say (default)")
    more.add_argument("--check-data", choices=data.LEVELS,
                      help="of --data folder, before training. headers: the beginning and the end of every image "
                           "(default); full: every pixel; none: nothing")
    more.add_argument("--limit", type=count, metavar="N", help="keep N training images, as many of every class")


def _add_options(group: argparse._ArgumentGroup, training: bool) -> None:
    """A flag for every option that a method declares; training: for those of training, or for all others."""
    for name, (option, *_) in methods.OPTIONS.items():
        if option.training == training:
            group.add_argument(option.flag, type=option.parse, choices=option.choices, metavar=option.metavar,
                               help=methods.help_of(name).replace("%", "%%"))


def add_method_flags(parser: Parser, about: str | None = None) -> None:
    """about: what the methods are, a line each."""
    _add_options(parser.rare_group("the methods", about), False)


def add_training_flags(group: argparse._ArgumentGroup) -> None:
    """Those that a run often sets."""
    group.add_argument("--model", metavar="NAME", help="cnn (default), preact-resnet18, resnet18, wrn28-10, "
                       "pyramidnet110-64, timm:NAME, torchvision:NAME, ...")
    group.add_argument("--epochs", type=count, metavar="N", help=default("epochs"))
    group.add_argument("--batch", type=count, metavar="N",
                       help=f"most images in a step of one process {default('batch')}")
    group.add_argument("--lr", type=positive, help=f"largest learning rate {default('lr')}")
    group.add_argument("--seed", type=seed_number, metavar="N", help=f"of weights, order and mixing {default('seed')}")


def add_rare_training_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--subset", metavar="FILE.npy",
                       help="train on these images alone: indices, as python -m fastmix subsample writes them")
    group.add_argument("--test-every", type=count, metavar="EPOCHS",
                       help=f"test after every EPOCHS epochs, and after the last {default('test_every')}")
    group.add_argument("--schedule", choices=("onecycle", "multistep", "cosine"),
                       help="onecycle: lr/100 up to lr over 30 %% of the steps, down to lr/10000 (default); "
                            "multistep: lr, a tenth of it after 1/2 and after 3/4 of the epochs; cosine: lr down to 0")
    group.add_argument("--milestones", type=counts, metavar="EPOCH,EPOCH",
                       help="after which multistep lowers the rate")
    group.add_argument("--gamma", type=positive, help=f"by which multistep multiplies the rate {default('gamma')}")
    group.add_argument("--warmup", type=count_or_zero, metavar="EPOCHS",
                       help=f"over which cosine first rises to lr {default('warmup')}")
    group.add_argument("--momentum", type=share, help=f"of SGD with Nesterov {default('momentum')}")
    group.add_argument("--weight-decay", type=not_negative, metavar="W", help=default("weight_decay"))
    group.add_argument("--refine-epochs", type=count_or_zero, metavar="M",
                       help="the last M of the epochs without mixing and label smoothing, crops and flips kept "
                       f"{default('refine_epochs')}")
    group.add_argument("--refine-lr", type=positive, metavar="LR", help="constant rate of these epochs (multistep: its "
                       "last; otherwise lr/100)")
    group.add_argument("--augment", choices=("auto", "none", "crop-flip", "rand", "trivial"),
                       help="auto: random crop (padded by an eighth) and flip for colour images (default); rand, "
                            "trivial: torchvision's RandAugment or TrivialAugmentWide, then auto. soft-crop and "
                            "soft-resized-crop replace the crop, not the flip")
    group.add_argument("--amp", choices=("none", "bf16"), help=f"automatic mixed precision {default('amp')}")
    group.add_argument("--no-channels-last", dest="channels_last", action="store_false",
                       help="keep NCHW memory order")
    _add_options(group, True)


def add_output_flags(group: argparse._ArgumentGroup, resume: str) -> None:
    """Where a command that trains writes. resume: what --resume does."""
    group.add_argument("--out", type=Path, metavar="DIR", help="folder of the run (runs/NAME, numbered if it exists)")
    group.add_argument("--resume", action="store_true", help=resume)
    group.add_argument("--overwrite", action="store_true", help="replace the run in the folder")


def add_device_flag(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--device", help="auto (default: cuda if there is one), cpu, cuda, cuda:1")


def add_machine_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--threads", type=count, metavar="N", help="CPU threads of one process")
    group.add_argument("--workers", type=count_or_zero, metavar="N",
                       help=f"processes that decode a folder's images {default('workers')}")


def check_output(out: Path, suffix: str | None) -> None:
    """UsageError for a file of another kind, or that cannot be written: before the work. suffix: None for a folder."""
    if suffix is not None and out.suffix.lower() != suffix:
        raise UsageError(f"--out is {out}, want a name ending in {suffix}")
    parent = out.absolute().parent
    if not os.path.isdir(parent):
        raise UsageError(f"--out: there is no directory {parent}")
    if suffix is not None and os.path.isdir(out):
        raise UsageError(f"--out: {out} is a directory, want a file")
    if suffix is None and os.path.exists(out) and not os.path.isdir(out):
        raise UsageError(f"--out: {out} is a file, want a directory")
    if not os.access(parent if suffix is not None or not os.path.exists(out) else out, os.W_OK | os.X_OK):
        raise UsageError(f"--out: {parent} cannot be written to")


def without_defaults(parser: Parser) -> Parser:
    """The parser, which then leaves out what is not given. To be called when it has all its flags."""
    for action in parser._actions:
        if action.dest != "help" and action.dest != argparse.SUPPRESS:
            action.default = argparse.SUPPRESS
    return parser
