"""The settings of a self-supervised run."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..console import CommandError, Parser, UsageError
from ..training import options
from ..training.methods import METHOD_FLAGS
from ..training.options import Options

PAIR_WEIGHTS = ("none", "SA1", "SA2")
UNUSED = {*METHOD_FLAGS, "label_smoothing", "augment"}


@dataclass(frozen=True)
class SslOptions(Options):
    """Defaults are those of Soft Augmentation B.4 (batch, crops, the linear layer's epochs), Table 8 (learning rate)
    and Table 9 (k), except the epochs, there 500, and linear_lr, there 10 (see `linear.linear_evaluation`).

    lr: None is 0.2 for 512 images a step of all processes, in proportion for others.
    """

    method: str = "simsiam"
    augment: str = "none"
    epochs: int = 100
    batch: int = 512
    schedule: str = "cosine"
    lr: float | None = None  # type: ignore[assignment]
    dim: int | None = None
    pair_weight: str = "none"
    pair_k: float = 4.0
    pair_chance: float = 0.0
    scale_min: float = 0.2
    jitter: float = 0.4
    linear_epochs: int = 100
    linear_lr: float = 1.0

    def label(self) -> str:
        return f"simsiam-{self.pair_weight}-{self.data}-{self.model.replace(':', '-')}-seed{self.seed}"

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in dataclasses.asdict(self).items() if key not in UNUSED}

    @classmethod
    def from_json(cls, path: Path) -> SslOptions:
        try:
            values = json.loads(path.read_text())
            if values["method"] != "simsiam":
                raise ValueError(f"method {values['method']!r}")
            return cls(**values)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise CommandError(f"{path} is missing or no configuration of a run of train-ssl ({error})") from None

    def rate(self, world: int) -> float:
        return 0.2 * self.batch * world / 512 if self.lr is None else self.lr


def add_ssl_flags(parser: Parser) -> None:
    group = parser.add_argument_group("training")
    group.add_argument("--model", help="backbone: as for train, without its classifier (cnn)")
    group.add_argument("--epochs", type=options.count, help="(100; the paper 500)")
    group.add_argument("--batch", type=options.count, metavar="N", help="most images in a step of one process (512)")
    group.add_argument("--lr", type=options.positive,
                       help="at the start, falling to 0 by a cosine (0.2 for 512 images a step, else in proportion)")
    group.add_argument("--momentum", type=options.share, help="of SGD (0.9)")
    group.add_argument("--weight-decay", type=options.not_negative, metavar="W", help="(0.0005)")
    group.add_argument("--dim", type=options.count, help="of the projections (4 times the backbone's features)")
    group.add_argument("--pair-weight", choices=PAIR_WEIGHTS,
                       help="SA1: pairs that share little count less; SA2: pairs that share much; none (default)")
    group.add_argument("--pair-k", type=options.positive, metavar="K", help="softening power of the weights (4)")
    group.add_argument("--pair-chance", type=options.share, metavar="P", help="least weight before they are "
                       "normalised to mean 1 (0)")
    group.add_argument("--scale-min", type=options.share, metavar="S", help="least share of the image in a crop (0.2)")
    group.add_argument("--jitter", type=options.share, help="of brightness, contrast and saturation (0.4)")
    group.add_argument("--seed", type=options.seed_number, help="of weights, order and crops (0)")
    group.add_argument("--amp", choices=("none", "bf16"), help="automatic mixed precision (none)")
    group.add_argument("--no-channels-last", dest="channels_last", action="store_false",
                       help="keep NCHW memory order")
    group = parser.add_argument_group("linear evaluation")
    group.add_argument("--linear-epochs", type=options.count, metavar="N", help="(100)")
    group.add_argument("--linear-lr", type=options.positive, metavar="LR",
                       help="a tenth of it after 60 %% and after 80 %% of the epochs (1)")


def check(chosen: SslOptions) -> None:
    options.check(chosen)
    if chosen.scale_min == 0:
        raise UsageError("--scale-min is 0, want a share above 0")
    if chosen.dim is not None and chosen.dim < 4:
        raise UsageError(f"--dim is {chosen.dim}, want at least 4")
