"""The settings of a self-supervised run."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..arguments import count, positive, share
from ..console import UsageError
from ..names import file_name
from ..training import options
from ..training.options import RunOptions

PAIR_WEIGHTS = ("none", "SA1", "SA2")
RULES: dict[str, options.Rule] = options.RULES | {
    "method": ("simsiam",), "dim": count, "pair_weight": PAIR_WEIGHTS, "pair_k": positive, "pair_chance": share,
    "scale_min": share, "jitter": share, "linear_epochs": count, "linear_lr": positive}


@dataclass(frozen=True)
class SslOptions(RunOptions):
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
        return f"simsiam-{self.pair_weight}-{self.data}-{file_name(self.model)}-seed{self.seed}"

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in super().to_json().items() if key != "augment"}

    @classmethod
    def from_json(cls, path: Path) -> SslOptions:
        return cls(**options.stored(path, "a run of train-ssl", RULES,
                                    {field.name: [field.default] for field in fields(cls)}))

    def rate(self, world: int) -> float:
        return 0.2 * self.batch * world / 512 if self.lr is None else self.lr


def check(chosen: SslOptions) -> None:
    options.check(chosen)
    if chosen.scale_min == 0:
        raise UsageError("--scale-min is 0, want a share above 0")
    if chosen.dim is not None and chosen.dim < 4:
        raise UsageError(f"--dim is {chosen.dim}, want at least 4")
