"""The methods by name: what builds the mixer, and which flags it reads.

A new method is an entry here. `build(options, shape)` returns a callable ``mixer(x, y, saliency) -> (x, SoftTarget)``
with ``needs_saliency``, or None for plain training; shape is (C, H, W).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

import fastmix

from .._cli import UsageError

if TYPE_CHECKING:
    from .options import Options

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Method:
    """flags: the options that it reads, beside those of every run. Defaults are the papers' for CIFAR.

    isda: the loss is `objectives.Isda`, the mixer at most Cutout. policy: the mixer is an RLMix with a `rl.Policy`.
    """

    build: Callable[[Options, Shape], Any]
    flags: tuple[str, ...] = ()
    about: str = ""
    isda: bool = False
    policy: bool = False


def _k(options: Options, default: int) -> int:
    return default if options.k is None else options.k


def _alpha(options: Options, default: float) -> float:
    return default if options.alpha is None else options.alpha


def _cutout(options: Options, shape: Shape) -> Any:
    return fastmix.Cutout(shape[1] // 2 if options.length is None else options.length, prob=options.prob)


def _isda(options: Options, shape: Shape) -> Any:
    return None if options.length is None else _cutout(options, shape)


ISDA_FLAGS = ("isda_kind", "isda_schedule", "strength", "length")

METHODS: dict[str, Method] = {
    "none": Method(lambda o, _: None, (), "no mixing"),
    "mixup": Method(lambda o, _: fastmix.Mixup(_alpha(o, 1.0), prob=o.prob), ("alpha", "prob"),
                    "weighted sum of two images"),
    "cutmix": Method(lambda o, _: fastmix.CutMix(_alpha(o, 1.0), prob=o.prob), ("alpha", "prob"),
                     "a box of another image"),
    "dmixup": Method(lambda o, _: fastmix.DMixup(_k(o, 3), _alpha(o, 1 / _k(o, 3)), prob=o.prob),
                     ("k", "alpha", "prob"), "weighted sum of k images (alpha 1/k)"),
    "dcutmix": Method(lambda o, _: fastmix.DCutMix(_k(o, 3), _alpha(o, 1 / _k(o, 3)), prob=o.prob),
                      ("k", "alpha", "prob"), "nested boxes of k images (alpha 1/k)"),
    "rmix": Method(lambda o, _: fastmix.RMix(_alpha(o, 1.0), o.patches, o.levels, prob=o.prob),
                   ("alpha", "patches", "levels", "prob"), "patches by saliency"),
    "rlmix": Method(lambda o, _: fastmix.RLMix(_alpha(o, 1.0), o.grid, o.levels, prob=o.prob),
                    ("alpha", "grid", "levels", "gamma", "prob"),
                    "patches by saliency, how many is learnt by PPO (extra rl)",
                    policy=True),
    "cutout": Method(_cutout, ("length", "prob"), "a square of zeros (half the side)"),
    "isda": Method(_isda, ISDA_FLAGS, "features widened by their class's covariance", isda=True),
    "isda-semi": Method(_isda, (*ISDA_FLAGS, "labelled", "consistency"),
                        "isda on the labelled images, its consistency loss on all others", isda=True),
}
METHOD_FLAGS = ("alpha", "k", "patches", "grid", "levels", "gamma", "length", "prob", "isda_kind", "isda_schedule",
                "strength", "labelled", "consistency")


def check_flags(methods: list[str], given: set[str]) -> None:
    """UsageError for a method's flag that no chosen method reads."""
    for flag in METHOD_FLAGS:
        if flag in given and not any(flag in METHODS[name].flags for name in methods):
            readers = ", ".join(name for name, method in METHODS.items() if flag in method.flags)
            raise UsageError(f"--{flag.replace('_', '-')} means nothing to {', '.join(methods)}; it is for {readers}")


def needs_saliency(options: Options, shape: Shape = (3, 32, 32)) -> bool:
    """Whether the method of these options looks at an input gradient, which takes labels."""
    mixer = METHODS[options.method].build(options, shape)
    return mixer is not None and mixer.needs_saliency


def build(options: Options, shape: Shape, device: torch.device) -> Any:
    """The mixer of options.method, tried on two blank images so that a wrong value is found before training."""
    method = METHODS[options.method]
    try:
        mixer = method.build(options, shape)
        if mixer is not None:
            mixer = mixer.to(device)
            blank = torch.zeros(2, *shape, device=device)
            mixer(blank, torch.zeros(2, dtype=torch.int64, device=device), blank if mixer.needs_saliency else None)
    except (ValueError, TypeError) as error:
        hint = f"; choose another --grid than {options.grid}" if method.policy and "divisible" in str(error) else ""
        raise UsageError(f"method {options.method}: {error}{hint}") from None
    return mixer
