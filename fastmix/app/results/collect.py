"""Runs to rows: means over the seeds, and the accuracy under FGSM, which training does not measure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from ...files import DamagedFile, read_json
from .. import data
from ..console import CommandError
from ..evaluation import attacks
from ..names import printable, shortened
from ..training.checkpoint import wrong_entry
from ..training.options import Options
from ..training.trained import Trained
from .runs import Recipe, Run, bench_name, commands, flags

FORMAT = "runs-1"
STEPS = ("step-1", "step-2")  # of bench step; what is read of them is the same
STEP_ENTRIES = {"format": str, "date": str, "machine": dict, "settings": dict, "rows": list}
# In report.json, the last three under "policy"; but for fgsm.
KEYS = ("test_accuracy", "train_accuracy", "ece", "fgsm", "step_ratio", "reward", "random_reward", "q")
BATCH = 250


class Fgsm:
    """Accuracy on what FGSM makes of a run's test images, in pixels; every data set is read once.

    Args:
        images: so many, as many of every class, the same for all runs; or all, if there are fewer.
        epsilon: of the range [0, 1] of pixels. root: where the files of the data set are now.
    """

    def __init__(self, images: int, epsilon: float, device: torch.device, root: str | None = None) -> None:
        self.images, self.epsilon, self._device, self._root = images, epsilon, device, root
        self._sets: dict[tuple[Any, ...], tuple[data.Dataset, data.Split]] = {}

    @property
    def attacked(self) -> int:
        """Test images that were attacked in a run, at most."""
        return max(len(split.labels) for _, split in self._sets.values())

    def _dataset(self, options: Options) -> tuple[data.Dataset, data.Split]:
        key = (options.data, options.root, options.image_size, options.layout)
        if key not in self._sets:
            dataset = data.load(options.data, self._root or options.root, options.image_size,
                                layout=options.layout)
            labels = dataset.test.labels
            count = max(min(self.images, len(labels)), len(labels.unique()))
            chosen = dataset.test.subset(data.balanced_subset(labels, count, "the number of test images"))
            self._sets[key] = dataset, chosen.to(self._device)
        return self._sets[key]

    def __call__(self, one: Run) -> float:
        dataset, split = self._dataset(one.options)
        forward = Trained.load(one.folder, self._device, dataset=dataset).forward_pixels
        correct = 0
        for images, y in split.batches(data.evaluation_batches(len(split.labels), BATCH)):
            attacked = attacks.fgsm(forward, images.float() / 255, y, self.epsilon)
            with torch.no_grad():
                correct += int((forward(attacked).argmax(1) == y).sum())
        return correct / len(split.labels)


def spread(values: list[float]) -> dict[str, float | None]:
    """Mean and sample standard deviation; None for the deviation of one."""
    return {"mean": statistics.fmean(values), "std": statistics.stdev(values) if len(values) > 1 else None}


def read_step(path: Path) -> dict[str, Any]:
    """The JSON of `python -m fastmix bench step`; CommandError for another file."""
    try:
        content = read_json(path)
    except (OSError, DamagedFile) as error:
        raise CommandError(f"{printable(path)} is no result of the step benchmark ({error})") from None
    wrong = wrong_entry(content, STEP_ENTRIES)
    if not wrong and content["format"] not in STEPS:
        wrong = f"its format is {shortened(repr(content['format']), 40)}, want one of {', '.join(STEPS)}"
    wrong = wrong or wrong_entry(content["machine"], {"name": str}) or wrong_entry(
        content["settings"], {"model": str, "batch": int, "size": int})
    for row in [] if wrong else content["rows"]:
        wrong = wrong or wrong_entry(row, {"method": str, "ratio": float})
    if wrong:
        raise CommandError(f"{printable(path)} is no result of the step benchmark ({wrong})")
    return content


def _row(recipe: Recipe, runs: list[Run], fgsm: dict[Path, float], shared: set[str],
         steps: dict[str | None, float]) -> dict[str, Any]:
    entries = []
    for one in runs:
        reported = one.report | one.report.get("policy", {})
        found = {key: reported[key] for key in KEYS if key in reported}
        if one.folder in fgsm:
            found["fgsm"] = fgsm[one.folder]
        extra = {key: one.report[key] for key in ("risk",) if key in one.report}
        entries.append({"seed": one.options.seed, **found, "ms_step": one.report["ms"]["step"], **extra,
                        "torch": one.report["torch"], "fastmix": one.report["fastmix"]})
    own = [text for text in flags(recipe).values() if text not in shared]
    values = {key: spread([entry[key] for entry in entries]) for key in KEYS
              if all(key in entry for entry in entries)}
    if bench_name(recipe) in steps:
        values["bench_step_ratio"] = steps[bench_name(recipe)]  # type: ignore[assignment]
    return {"name": " ".join([recipe.options.method, *own]), "method": recipe.options.method, "flags": own,
            "options": recipe.options.to_json(), "commands": commands(recipe, runs), "seeds": len(runs), **values,
            "runs": entries}


def _title(runs: list[Run], seeds: Iterable[int]) -> str:
    """What all runs have in common, in words."""
    def one_of(values: Iterable[Any], text: str) -> list[str]:
        different = set(values)
        return [text.format(different.pop())] if len(different) == 1 else []

    return ", ".join([*one_of((r.report["data"] for r in runs), "{}"),
                      *one_of((r.report["train_images"] for r in runs), "{} training images"),
                      *one_of((r.report["model"] for r in runs), "{}"),
                      *one_of((r.report["epochs"] for r in runs), "{} epochs"),
                      *one_of(seeds, "{} seeds")])


def collect(groups: dict[Recipe, list[Run]], fgsm: Fgsm | None, found: dict[Path, float],
            machine: str | None, step: dict[str, Any] | None = None) -> dict[str, Any]:
    """The JSON of a report. fgsm: the attack that gave ``found``, accuracy by folder; None without one. step: what
    `read_step` returns."""
    typed = [set(flags(recipe).values()) for recipe in groups]
    shared = set.intersection(*typed)
    runs = [one for members in groups.values() for one in members]
    where = sorted({f"{one.report['device']}, {one.report['threads']} threads" for one in runs})
    steps = {} if step is None else {row["method"]: row["ratio"] for row in step["rows"]}
    timed = {} if step is None else {"step": {"date": step["date"], "machine": step["machine"]["name"],
                                              "settings": step["settings"]}}
    return {
        "format": FORMAT, "title": _title(runs, (len(members) for members in groups.values())),
        "machine": machine or " and ".join(where),
        "fgsm": None if fgsm is None else {"epsilon": fgsm.epsilon, "images": fgsm.attacked}, **timed,
        "rows": [_row(recipe, members, found, shared, steps) for recipe, members in groups.items()]}


