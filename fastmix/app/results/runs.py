"""The runs under some folders, and the command that repeats them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import names
from ..console import UsageError
from ..methods import is_own
from ..training import compare, run
from ..training.options import FREE_ON_RESUME, Options
from ..training.places import run_folder


@dataclass(frozen=True)
class Recipe:
    """What the seeds of one row share: all options but the seed, where they were computed, and what is not read."""

    options: Options
    processes: int

    @classmethod
    def of(cls, options: Options, processes: int) -> Recipe:
        default = Options()
        reset = {name: getattr(default, name) for name in (*FREE_ON_RESUME, "seed", "preset")}
        return cls(dataclasses.replace(options.reduced(), **reset), processes)


@dataclass(frozen=True)
class Run:
    """A finished run. report: its report.json."""

    folder: Path
    options: Options
    report: dict[str, Any]

    @property
    def recipe(self) -> Recipe:
        return Recipe.of(self.options, self.report["processes"])


def _folders(folder: Path) -> list[Path]:
    """The folder itself if it is a run, else the runs of the comparison, else those right below it."""
    folder = run_folder(folder)
    if (folder / run.CONFIG).exists():
        return [folder]
    members = compare.members(folder) if folder.is_dir() else None
    found = members or sorted(path.parent for path in folder.glob(f"*/{run.CONFIG}"))
    if not found:
        raise UsageError(f"there is no run in {folder}; python -m fastmix train writes one")
    return found


def find(folders: Iterable[Path]) -> tuple[list[Run], list[Path]]:
    """The finished runs and the folders of the others; a folder that is named twice counts once."""
    runs, unfinished = [], []
    for folder in dict.fromkeys(member.resolve() for top in folders for member in _folders(top)):
        options = Options.from_json(folder / run.CONFIG)
        report = run.finished(folder, options.epochs)
        if report is None:
            unfinished.append(folder)
        else:
            runs.append(Run(folder, options, report))
    return runs, unfinished


def grouped(runs: Iterable[Run]) -> tuple[dict[Recipe, list[Run]], list[Run]]:
    """The runs of every recipe by seed, in the order in which the recipes come; and those that repeat a seed."""
    groups: dict[Recipe, dict[int, Run]] = {}
    repeated = []
    for one in runs:
        seeds = groups.setdefault(one.recipe, {})
        if one.options.seed in seeds:
            repeated.append(one)
        seeds.setdefault(one.options.seed, one)
    return {recipe: [seeds[seed] for seed in sorted(seeds)] for recipe, seeds in groups.items()}, repeated


def flags(recipe: Recipe) -> dict[str, str]:
    """The options of train that differ from its defaults, as they are typed: name -> flag with its value."""
    default, typed = Options(), {}
    for name, value in dataclasses.asdict(recipe.options).items():
        if value == getattr(default, name) or name == "method":
            continue
        flag = name.replace("_", "-")
        if name == "channels_last":
            typed[name] = "--no-channels-last"
        else:
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            typed[name] = names.flag(f"--{flag}", text)
    return typed


def bench_name(recipe: Recipe) -> str | None:
    """The row of `bench step` that times this method; None where it is given another setting than those there."""
    own = {name for name in flags(recipe) if is_own(name)}
    if own == {"saliency"}:
        return f"{recipe.options.method}/{recipe.options.saliency}"
    return None if own else recipe.options.method


def _blocks(seeds: list[int]) -> list[tuple[int, int]]:
    """(first, how many) of every row of consecutive numbers in sorted ones."""
    blocks: list[tuple[int, int]] = []
    for seed in seeds:
        if blocks and seed == sum(blocks[-1]):
            blocks[-1] = (blocks[-1][0], blocks[-1][1] + 1)
        else:
            blocks.append((seed, 1))
    return blocks


def commands(recipe: Recipe, runs: list[Run]) -> list[str]:
    """What trains these runs again: one command for every block of consecutive seeds."""
    start = "python -m fastmix train"
    if recipe.processes > 1:
        start = f"torchrun --nproc-per-node {recipe.processes} -m fastmix train"
    words = [start, f"--method {recipe.options.method}", *flags(recipe).values()]
    if any(one.options.root is not None for one in runs):
        words.append("--root DIR")
    threads = {one.options.threads for one in runs}
    if len(threads) == 1 and None not in threads:
        words.append(f"--threads {threads.pop()}")
    return [" ".join([*words, *([f"--seed {first}"] if first else []), *([f"--seeds {count}"] if count > 1 else [])])
            for first, count in _blocks([one.options.seed for one in runs])]
