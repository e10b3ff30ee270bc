"""The settings of one run: their defaults, how they are stored, and checks of several together."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...files import DamagedFile, read_json
from .. import data, methods
from ..arguments import count, count_or_zero, counts, not_negative, positive, seed_number, share
from ..console import CommandError, UsageError, first_line
from ..names import file_name, printable, shortened
from . import checkpoint

# May differ between a run and its continuation: they change where and how fast, not what is computed.
FREE_ON_RESUME = ("device", "threads", "workers", "root", "check_data")
# The schedule that reads an option.
SCHEDULE_FLAGS = {"milestones": "multistep", "gamma": "multistep", "warmup": "cosine"}
# What an option may be: one of some names, or what its flag's text is parsed by.
Rule = tuple[str, ...] | Callable[[str], Any]
RULES: dict[str, Rule] = {
    "method": str, "preset": str, "data": tuple(data.SOURCES), "root": str, "image_size": count,
    "layout": data.LAYOUTS, "check_data": data.LEVELS, "limit": count, "subset": str,
    "augment": ("auto", "none", "crop-flip", "rand", "trivial"), "model": str, "epochs": count, "test_every": count,
    "batch": count, "schedule": ("onecycle", "multistep", "cosine"), "milestones": counts, "gamma": positive,
    "warmup": count_or_zero, "lr": positive, "momentum": share, "weight_decay": not_negative,
    "refine_epochs": count_or_zero, "refine_lr": positive, "seed": seed_number, "amp": ("none", "bf16"),
    "channels_last": bool, "device": str, "threads": count, "workers": count_or_zero}
NEEDED = ("method", "data", "model", "epochs", "seed")  # of a stored configuration


@dataclass(frozen=True)
class RunOptions:
    """What every run has, whatever its method. None means a default that depends on other settings."""

    method: str = methods.PLAIN
    preset: str | None = None
    data: str = "digits"
    root: str | None = None
    image_size: int | None = None
    layout: str = "auto"
    check_data: str = "headers"
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
    refine_epochs: int = 0
    refine_lr: float | None = None
    seed: int = 0
    amp: str = "none"
    channels_last: bool = True
    device: str = "auto"
    threads: int | None = None
    workers: int = 0

    def label(self) -> str:
        """Short name of the run's folder."""
        return f"{self.method}-{self.data}-{file_name(self.model)}-seed{self.seed}"

    def to_json(self) -> dict[str, Any]:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}


# A field for every option that a method declares; None: it was left out.
MethodOptions = dataclasses.make_dataclass("MethodOptions", [(name, Any, None) for name in methods.OPTIONS],
                                           frozen=True)


@dataclass(frozen=True)
class Options(MethodOptions, RunOptions):  # type: ignore[misc, valid-type]
    """One run. An option of a method that is None has the default of the class that takes it."""

    def resolved(self) -> Options:
        """With the defaults in the place of the method's options that were left out."""
        method = methods.of(self)
        return dataclasses.replace(self, **{option.name: method.value(option.name) for option in method.options})

    def reduced(self) -> Options:
        """Without what the run does not read, and without what is the method's default anyway."""
        method = methods.of(self)
        unread = [name for name in methods.OPTIONS
                  if method.option(name) is None or method.value(name) == method.default(name)]
        unread += [name for name, schedule in SCHEDULE_FLAGS.items() if schedule != self.schedule]
        return dataclasses.replace(self, **{name: getattr(Options, name) for name in unread})

    def to_json(self) -> dict[str, Any]:
        """What is in effect, so that a later version's defaults change no run that is continued."""
        return RunOptions.to_json(self.resolved())

    @classmethod
    def from_json(cls, path: Path) -> Options:
        """Reads config.json of a run's folder. CommandError for values that no flag gives."""
        rules: dict[str, Rule] = RULES | {"method": tuple(methods.METHODS)} | {
            name: option.choices or option.parse for name, (option, *_) in methods.OPTIONS.items()}
        defaults = {field.name: [field.default] for field in dataclasses.fields(cls)}
        for name in methods.OPTIONS:
            defaults[name] += [method.default(name) for method in methods.METHODS.values() if method.option(name)]
        return cls(**stored(path, "a run", rules, defaults))


def stored(path: Path, what: str, rules: dict[str, Rule], defaults: dict[str, list[Any]]) -> dict[str, Any]:
    """The options in a config.json, each a default or what its flag gives. what: whose they are. defaults: of all
    options, by name.

    Raises: CommandError naming the file and the first option that is unknown, missing or nothing that a flag gives.
    """
    try:
        values = read_json(path)
    except (OSError, DamagedFile) as error:
        raise CommandError(f"{printable(path)} is missing or no configuration of {what} ({first_line(error)})"
                           ) from None
    wrong = None if isinstance(values, dict) else "it holds no names and values"
    for name in NEEDED if wrong is None else ():
        wrong = wrong or (None if name in values else f"{name} is missing")
    found = {}
    for name, value in values.items() if wrong is None else ():
        if name not in defaults:
            wrong = f"{shortened(printable(name), 40)} is no option of this version of fastmix"
            break
        found[name] = tuple(value) if isinstance(value, list) else value
        default = any(type(found[name]) is type(one) and found[name] == one for one in defaults[name])
        if not default and not _allowed(found[name], rules[name]):
            rule = rules[name]
            want = f", want one of {', '.join(rule)}" if isinstance(rule, tuple) else ""
            wrong = f"{name} is {shortened(printable(repr(value)), 40)}{want}"
            break
    if wrong is not None:
        raise CommandError(f"{printable(path)} is no configuration of {what} ({wrong})")
    return found


def _allowed(value: Any, rule: Rule) -> bool:
    """Whether a flag gives this value."""
    if isinstance(rule, tuple):
        return isinstance(value, str) and value in rule
    if rule is bool or rule is str:
        return type(value) is rule and "\0" not in str(value)
    text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    try:
        return bool(rule(text) == value)
    except (ValueError, argparse.ArgumentTypeError):
        return False


def check(options: RunOptions) -> None:
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


def check_schedule(options: RunOptions, given: Collection[str]) -> None:
    """UsageError for a schedule's flag that was given and is not read."""
    for flag, schedule in SCHEDULE_FLAGS.items():
        if flag in given and options.schedule != schedule:
            raise UsageError(f"--{flag} means nothing to --schedule {options.schedule}; it is for {schedule}")


def continued(stored: RunOptions, given: dict[str, Any], folder: Path) -> Any:
    """A resumed run's options: its own, the flags that only say where to compute, and another number of epochs."""
    given = dict(given)
    epochs = given.pop("epochs", stored.epochs)
    for name, value in given.items():
        if name not in FREE_ON_RESUME and getattr(stored, name) != value:
            raise UsageError(f"--resume: {folder} was trained with {name} = {getattr(stored, name)!r}, not {value!r}; "
                             "leave the flag out, or start a run of its own with another --out")
    if epochs != stored.epochs:
        done = (checkpoint.load(folder) or {"epoch": 0})["epoch"]
        if epochs < done:
            raise UsageError(f"--resume: {folder} has {done} finished epochs, want --epochs {done} or more, not "
                             f"{epochs}")
    options = dataclasses.replace(stored, epochs=epochs, **{k: v for k, v in given.items() if k in FREE_ON_RESUME})
    check(options)
    return options
