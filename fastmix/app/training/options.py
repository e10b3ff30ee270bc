"""The settings of one run: flags, defaults, checks."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...losses.isda import SCHEDULES
from ...ops.covariance import NAMES
from ...ops.soft_target import WEIGHTINGS
from .. import data
from ..console import CommandError, Parser, UsageError
from .methods import METHODS

# May differ between a run and its continuation: they change where and how fast, not what is computed.
FREE_ON_RESUME = ("device", "threads", "workers", "root")


@dataclass(frozen=True)
class Options:
    """One run. None means a default that depends on other settings."""

    method: str = "none"
    preset: str | None = None
    data: str = "digits"
    root: str | None = None
    image_size: int | None = None
    limit: int | None = None
    subset: str | None = None
    augment: str = "auto"
    model: str = "cnn"
    epochs: int = 30
    test_every: int = 1
    batch: int = 100
    schedule: str = "onecycle"
    milestones: tuple[int, ...] | None = None
    gamma: float = 0.1
    warmup: int = 0
    lr: float = 0.3
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    refine_epochs: int = 0
    refine_lr: float | None = None
    alpha: float | None = None
    k: int | None = None
    patches: tuple[int, ...] = (2, 4)
    saliency: str = "full"
    grid: int = 8
    levels: int = 10
    discount: float = 0.0
    length: int | None = None
    layers: tuple[str, ...] | None = None
    prob: float = 1.0
    isda_kind: str = "full"
    isda_schedule: str = "linear"
    strength: float = 0.5
    labelled: int = 1000
    consistency: float = 1.0
    sigma: float | None = None
    sigma_decay: int = 0
    weighting: str = "sample"
    fill: float | str = 0.0
    focal_gamma: float = 2.0
    seed: int = 0
    amp: str = "none"
    channels_last: bool = True
    device: str = "auto"
    threads: int | None = None
    workers: int = 0

    def label(self) -> str:
        """Short name of the run's folder."""
        return f"{self.method}-{self.data}-{self.model.replace(':', '-')}-seed{self.seed}"

    def to_json(self) -> dict[str, Any]:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_json(cls, path: Path) -> Options:
        """Reads config.json of a run's folder."""
        try:
            values = json.loads(path.read_text())
            return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise CommandError(f"{path} is missing or no configuration of a run ({error})") from None


def _number(kind: Callable[[str], Any], low: float, high: float, above: bool, text: str) -> Callable[[str], Any]:
    def parse(value: str) -> Any:
        try:
            number = kind(value)
        except ValueError:
            raise argparse.ArgumentTypeError(f"is {value!r}, want {text}") from None
        if not math.isfinite(number) or number < low or number > high or (above and number == low):
            raise argparse.ArgumentTypeError(f"is {value}, want {text}")
        return number
    return parse


count = _number(int, 1, 2**31, False, "a whole number >= 1")
count0 = _number(int, 0, 2**31, False, "a whole number >= 0")
seed_number = _number(int, 0, 2**63 - 1, False, "a whole number >= 0")
positive = _number(float, 0, math.inf, True, "a number above 0")
not_negative = _number(float, 0, math.inf, False, "a number >= 0")
share = _number(float, 0, 1, False, "a number from 0 to 1")


def fill(value: str) -> float | str:
    return value if value == "random" else _number(float, -math.inf, math.inf, False, "a number or random")(value)


def numbers(value: str) -> tuple[int, ...]:
    return tuple(count(part) for part in value.split(","))


def names(value: str) -> tuple[str, ...]:
    found = tuple(value.split(","))
    if not all(found):
        raise argparse.ArgumentTypeError(f"is {value!r}, want names with commas between them")
    return found


def methods(value: str) -> list[str]:
    names = value.split(",")
    for name in names:
        if name not in METHODS:
            raise argparse.ArgumentTypeError(f"names {name!r}, want some of {', '.join(METHODS)}")
    if len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"names a method twice: {value}")
    return names


def add_data_flags(parser: Parser) -> None:
    """The flags that choose images; shared with `preview`. All flags default to absent."""
    group = parser.add_argument_group("data")
    group.add_argument("--data", choices=tuple(data.SOURCES), help="(digits)")
    group.add_argument("--root", metavar="DIR", help="where its files are")
    group.add_argument("--image-size", type=count, metavar="PIXELS", help="side for --data folder (64)")
    group.add_argument("--limit", type=count, metavar="N", help="keep N training images, as many of every class")


def add_method_flags(parser: Parser) -> None:
    group = parser.add_argument_group("method")
    group.add_argument("--alpha", type=positive, help="of the Beta or Dirichlet distribution (1; dmixup, dcutmix 1/k)")
    group.add_argument("--k", type=count, help="images mixed into one: dmixup, dcutmix (3); power of the softening "
                                               "curve: soft-crop, soft-resized-crop (2), soft-noise (1)")
    group.add_argument("--patches", type=numbers, metavar="P,P", help="patches a side to choose from: rmix (2,4)")
    group.add_argument("--saliency", choices=("full", "half", "alternate"),
                       help="of rmix: of the images (full), of their 2x2 means at a quarter of the pass's cost (half), "
                            "or in every other step, with plain mixup between (alternate)")
    group.add_argument("--layers", type=names, metavar="NAME,NAME",
                       help="what manifold-mixup draws from: modules of the model, input (input and two of its parts)")
    group.add_argument("--grid", type=count, metavar="P", help="patches a side: rlmix (8); must divide the images")
    group.add_argument("--levels", type=count, help="percentiles to choose from: rmix, rlmix (10)")
    group.add_argument("--discount", type=share,
                       help="discount of later rewards: rlmix (0: only an image's own counts)")
    group.add_argument("--length", type=count0, metavar="PIXELS", help="side of the square: cutout (half the image)")
    group.add_argument("--isda-kind", choices=NAMES, help="covariances of isda (full)")
    group.add_argument("--isda-schedule", choices=SCHEDULES, help="of isda's strength over the steps (linear, from 0)")
    group.add_argument("--strength", type=not_negative, help="of isda at the end (0.5)")
    group.add_argument("--labelled", type=count, metavar="N", help="images whose labels isda-semi knows (1000)")
    group.add_argument("--consistency", type=not_negative, metavar="W", help="weight of isda-semi's second loss (1)")
    group.add_argument("--sigma", type=positive, help="strength: soft-crop, soft-resized-crop (0.3), soft-noise (0.1)")
    group.add_argument("--sigma-decay", type=count0, metavar="EPOCHS",
                       help="divide sigma by 1000 for so many epochs at the end (0; 20 in the paper, for CIFAR-100)")
    group.add_argument("--weighting", choices=WEIGHTINGS,
                       help="loss of the soft methods: sample: p KL (default); none: KL; weight: p CE of the hard "
                            "label; batch_mean: mean p times mean KL, as the paper's listing computes")
    group.add_argument("--fill", type=fill, metavar="X",
                       help="background of soft-crop, soft-resized-crop, in normalised units, or random (0)")
    group.add_argument("--focal-gamma", type=not_negative, help="of the focal loss (2)")
    group.add_argument("--prob", type=share, help="probability that a batch is mixed (1)")


def add_training_flags(parser: Parser) -> None:
    group = parser.add_argument_group("training")
    group.add_argument("--subset", metavar="FILE.npy",
                       help="train on these images alone: indices, as python -m fastmix subsample writes them")
    group.add_argument("--model", help="cnn (default), preact-resnet18, resnet18, wrn28-10, pyramidnet110-64, "
                       "timm:NAME, torchvision:NAME, ...")
    group.add_argument("--epochs", type=count, help="(30)")
    group.add_argument("--test-every", type=count, metavar="EPOCHS",
                       help="test after every EPOCHS epochs, and after the last (1)")
    group.add_argument("--batch", type=count, metavar="N", help="most images in a step of one process (100)")
    group.add_argument("--schedule", choices=("onecycle", "multistep", "cosine"),
                       help="onecycle: lr/100 up to lr over 30 %% of the steps, down to lr/10000 (default); "
                            "multistep: lr, a tenth of it after 1/2 and after 3/4 of the epochs; cosine: lr down to 0")
    group.add_argument("--milestones", type=numbers, metavar="EPOCH,EPOCH",
                       help="after which multistep lowers the rate")
    group.add_argument("--gamma", type=positive, help="by which multistep multiplies the rate (0.1)")
    group.add_argument("--warmup", type=count0, metavar="EPOCHS", help="over which cosine first rises to lr (0)")
    group.add_argument("--lr", type=positive, help="largest learning rate (0.3)")
    group.add_argument("--momentum", type=share, help="of SGD with Nesterov (0.9)")
    group.add_argument("--weight-decay", type=not_negative, metavar="W", help="(0.0005)")
    group.add_argument("--label-smoothing", type=share, metavar="EPS", help="(0)")
    group.add_argument("--refine-epochs", type=count0, metavar="M",
                       help="the last M of the epochs without mixing and label smoothing, crops and flips kept (0)")
    group.add_argument("--refine-lr", type=positive, metavar="LR", help="constant rate of these epochs (multistep: its "
                       "last; otherwise lr/100)")
    group.add_argument("--augment", choices=("auto", "none", "crop-flip", "rand", "trivial"),
                       help="auto: random crop (padded by an eighth) and flip for colour images (default); rand, "
                            "trivial: torchvision's RandAugment or TrivialAugmentWide, then auto. soft-crop and "
                            "soft-resized-crop replace the crop, not the flip")
    group.add_argument("--seed", type=seed_number, help="of weights, order and mixing (0)")
    group.add_argument("--amp", choices=("none", "bf16"), help="automatic mixed precision (none)")
    group.add_argument("--no-channels-last", dest="channels_last", action="store_false",
                       help="keep NCHW memory order")


def add_output_flags(parser: Parser, resume: str) -> None:
    """The last flags of a command that trains. resume: what --resume does.

    Flags that are not given are left out of what is parsed: a resumed run takes them from its folder.
    """
    group = parser.add_argument_group("output")
    group.add_argument("--out", type=Path, metavar="DIR", help="folder of the run (runs/NAME, numbered if it exists)")
    group.add_argument("--resume", action="store_true", help=resume)
    group.add_argument("--overwrite", action="store_true", help="replace the run in the folder")
    for action in parser._actions:
        if action.dest != "help":
            action.default = argparse.SUPPRESS


def add_machine_flags(parser: Parser) -> None:
    group = parser.add_argument_group("machine")
    group.add_argument("--device", help="auto (default: cuda if there is one), cpu, cuda, cuda:1")
    group.add_argument("--threads", type=count, metavar="N", help="CPU threads of one process")
    group.add_argument("--workers", type=count0, metavar="N", help="processes that decode a folder's images (0)")


def check(options: Options) -> None:
    """Combinations that no single flag's check can see."""
    if options.subset is not None and options.limit is not None:
        raise UsageError("--subset and --limit exclude each other: the file names the images")
    if options.momentum >= 1:
        raise UsageError(f"--momentum is {options.momentum}, want a number below 1")
    if options.batch < 2:
        raise UsageError("--batch is 1, want at least 2: batch normalisation needs more than one image")
    if options.refine_epochs >= options.epochs:
        raise UsageError(f"--refine-epochs is {options.refine_epochs}, want less than --epochs, {options.epochs}")
    if options.refine_lr is not None and not options.refine_epochs:
        raise UsageError("--refine-lr is for the epochs of --refine-epochs, which is 0")
    if options.milestones is not None and list(options.milestones) != sorted(set(options.milestones)):
        raise UsageError(f"--milestones is {','.join(map(str, options.milestones))}, want rising epochs")
    if options.image_size is not None and options.image_size < 8:
        raise UsageError(f"--image-size is {options.image_size}, want at least 8")


SCHEDULE_FLAGS = {"milestones": "multistep", "gamma": "multistep", "warmup": "cosine"}


def check_schedule(options: Options, given: set[str]) -> None:
    """UsageError for a schedule's flag that was given and is not read."""
    for flag, schedule in SCHEDULE_FLAGS.items():
        if flag in given and options.schedule != schedule:
            raise UsageError(f"--{flag} means nothing to --schedule {options.schedule}; it is for {schedule}")
