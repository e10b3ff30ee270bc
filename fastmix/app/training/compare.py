"""Several runs, by method and seed, in folders of their own under one; one table and one plot of them all."""

from __future__ import annotations

import json
import os
import statistics
from pathlib import Path
from typing import Any

from ...files import DamagedFile, read_json
from ..console import CommandError
from ..figures import training as pictures
from ..figures.drawing import optional
from ..names import printable, shortened
from . import checkpoint
from .run import METRICS

KEYS = ("test_accuracy", "best_accuracy", "train_accuracy", "ece", "step_ratio")
NAME, PICTURE = "compare.json", "compare.png"


def summary(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Means and sample standard deviations over the seeds (0 for one)."""
    values = {key: [report[key] for report in reports] for key in KEYS}
    values["ms_step"] = [report["ms"]["step"] for report in reports]
    return {"seeds": len(reports)} | {
        key: {"mean": statistics.fmean(v), "std": statistics.stdev(v) if len(v) > 1 else 0.0}
        for key, v in values.items()}


def begin(folder: Path, folders: list[Path]) -> None:
    """Notes which runs belong together, for a resume that comes before the first of them has ended."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.write_json(folder / NAME, {"folders": [path.name for path in folders]})


def members(folder: Path) -> list[Path] | None:
    """The folders of the runs that were compared in this one, in order; None if none were.

    Raises: CommandError for a file that is damaged, and for one that names anything but folders in this one: what is in
    them may be replaced.
    """
    file = printable(folder / NAME)
    try:
        content = read_json(folder / NAME)
    except FileNotFoundError:
        return None
    except (OSError, DamagedFile) as error:
        raise CommandError(f"{file} is damaged ({error}); remove it") from None
    names = content.get("folders") if isinstance(content, dict) else None
    if not isinstance(names, list) or not names or any(not isinstance(name, str) for name in names):
        raise CommandError(f"{file} is damaged (it names no folders); remove it")
    for name in names:
        if name in ("", ".", "..") or any(c in name for c in "/\\\0") or (os.name == "nt" and ":" in name):
            raise CommandError(f"{file} names {shortened(printable(repr(name)), 60)}, want the name of a folder beside "
                               "it; remove it")
        if (folder / name).is_symlink():
            raise CommandError(f"{printable(folder / name)} is a link; the runs of a comparison are folders in its own")
    return [folder / name for name in dict.fromkeys(names)]


def write(folder: Path, groups: dict[str, list[dict[str, Any]]], folders: dict[str, list[Path]], title: str) -> None:
    """compare.json and compare.png. groups: method -> reports, one a seed; folders: where those runs are."""
    checkpoint.write_json(folder / NAME, {
        "title": title, "folders": [path.name for paths in folders.values() for path in paths],
        "summary": {name: summary(reports) for name, reports in groups.items()},
        "runs": [report for reports in groups.values() for report in reports]})
    with optional(folder / PICTURE):
        histories = {name: [[json.loads(line) for line in (path / METRICS).read_text().splitlines()] for path in paths]
                     for name, paths in folders.items()}
        pictures.compare(groups, histories, title, folder / PICTURE)
