"""Selections of training images against each other: the error after training on each (K-image mixing, Fig. 4a)."""

from __future__ import annotations

import dataclasses
import statistics
from pathlib import Path
from typing import Any

from ...files import DamagedFile, read_json, sweep
from .. import claims, data
from ..console import CommandError, UsageError, progress_bar, require
from ..figures import drawing
from ..names import printable
from ..training import checkpoint, report
from ..training.distributed import Processes
from ..training.evaluate import evaluate
from ..training.loop import train_epoch
from ..training.options import Options, check
from ..training.setup import setup
from ..training.timing import StepTimer
from ..training.trained import Trained
from .table import Table, select

NAME, PICTURE = "subsets.json", "subsets.png"
ENTRY = {"how": str, "ratio": float, "seed": int, "images": int, "test_accuracy": float}  # of every result
LABELS = {"top": "largest CV", "interval": "largest CV, interval {}", "std": "largest std",
          "easy": "easy: smallest mean", "hard": "hard: largest mean", "random": "random"}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Which selections are compared, and how.

    compare: names of MEASURES. ratios: shares of the images. seeds: runs of every point. interval: of the selection of
    that name. epochs, batch: of every run, None: those of the scoring run. test_limit: test on so many images.
    """

    compare: list[str]
    ratios: list[float]
    seeds: int
    interval: int
    epochs: int | None = None
    batch: int | None = None
    test_limit: int | None = None


def _train(options: Options, dataset: data.Dataset, here: Processes, what: str) -> dict[str, float]:
    """Test accuracy, loss and ECE after a run without files."""
    made = setup(options, dataset, here)
    timer = StepTimer(here.device)
    with progress_bar(what, options.epochs, here.first) as advance:
        for epoch in range(1, options.epochs + 1):
            train_epoch(made, epoch, timer, lambda: None)
            advance()
    return evaluate(made, made.dataset.test)


def _read(path: Path, settings: dict[str, Any], overwrite: bool) -> list[dict[str, Any]]:
    """The points an earlier call of the same settings has finished."""
    if overwrite or not path.exists():
        return []
    try:
        content = read_json(path)
    except (OSError, DamagedFile) as error:
        raise CommandError(f"{printable(path)} is damaged ({error}); --overwrite replaces it") from None
    wrong = checkpoint.wrong_entry(content, {"settings": dict, "results": list})
    for entry in [] if wrong else content["results"]:
        wrong = wrong or checkpoint.wrong_entry(entry, ENTRY)
    if wrong:
        raise CommandError(f"{printable(path)} is damaged ({wrong}); --overwrite replaces it")
    old, results = content["settings"], content["results"]
    for name, value in settings.items():
        if old.get(name) != value:
            raise UsageError(f"{path} holds a comparison with other settings ({name} is {old.get(name)!r}, not "
                             f"{value!r}); --overwrite replaces it, or take another --out")
    return results


@drawing.picture
def draw(results: list[dict[str, Any]], interval: int, title: str, path: Path) -> None:
    """Test error against the share of images: a line per selection, mean and range over the seeds."""
    figure, ((axis,),) = drawing.new(1, 1, (7, 4.6))
    shares = sorted({entry["ratio"] for entry in results})
    for colour, how in zip(drawing.COLOURS, dict.fromkeys(entry["how"] for entry in results), strict=False):
        errors = [[100 * (1 - entry["test_accuracy"]) for entry in results
                   if entry["how"] == how and entry["ratio"] == share] for share in shares]
        axis.plot(shares, [statistics.fmean(values) for values in errors], color=colour, marker="o", markersize=4,
                  linewidth=1.6, label=LABELS[how].format(interval))
        axis.fill_between(shares, [min(v) for v in errors], [max(v) for v in errors], color=colour, alpha=0.12,
                          linewidth=0)
    axis.set_xscale("log")
    axis.set_xticks(shares, [f"{share:g}" for share in shares])
    axis.minorticks_off()
    axis.legend(fontsize=8, frameon=False)
    drawing.grid(axis, title, "share of the training images", "test error, % (mean and range of the seeds)")
    drawing.save(figure, path)


def _table(results: list[dict[str, Any]], shares: list[float]) -> str:
    rows = []
    for how in dict.fromkeys(entry["how"] for entry in results):
        row = [how]
        for share in shares:
            values = [100 * (1 - e["test_accuracy"]) for e in results if e["how"] == how and e["ratio"] == share]
            row.append(report.spread(values, 2))
        rows.append(row)
    return report.plain("test error, %", ("images chosen by", *(f"{share:g}" for share in shares)), rows)


def run(wanted: Comparison, table: Table, trained: Trained, here: Processes, folder: Path, overwrite: bool) -> None:
    """Every selection at every share with every seed; points that are done already are kept."""
    require("matplotlib", "matplotlib", "the comparison")
    require("torchmetrics", "torchmetrics", "the comparison")
    with claims.held(here.share, lambda stack: stack.enter_context(claims.Claim.of_folder(folder)) and None):
        _run(wanted, table, trained, here, folder, overwrite)


def _run(wanted: Comparison, table: Table, trained: Trained, here: Processes, folder: Path, overwrite: bool) -> None:
    test = trained.dataset.test
    if wanted.test_limit is not None:
        test = test.subset(data.balanced_subset(test.labels, wanted.test_limit, "--test-limit"))
    options = dataclasses.replace(trained.options, epochs=wanted.epochs or trained.options.epochs,
                                  batch=wanted.batch or trained.options.batch)
    check(options)
    settings = {**table.settings, "method": options.method, "model": options.model, "epochs": options.epochs,
                "train_batch": options.batch, "lr": options.lr, "interval": wanted.interval,
                "test_images": len(test.labels)}
    results = _read(folder / NAME, settings, overwrite)
    if here.first:
        for name in (NAME, PICTURE):
            sweep(folder / name)
    here.barrier()
    scores = table.scores(here, overwrite)
    points = [(how, share, seed) for share in wanted.ratios for how in wanted.compare for seed in range(wanted.seeds)]
    done = {(entry["how"], entry["ratio"], entry["seed"]) for entry in results}
    for number, (how, share, seed) in enumerate(points, 1):
        if (how, share, seed) in done:
            continue
        drawn = data.derived_seed(table.settings["seed"], seed)
        rows = select(how, scores, table.labels, share, wanted.interval, drawn)
        dataset = dataclasses.replace(trained.dataset, train=trained.dataset.train.subset(table.index[rows]), test=test)
        what = f"{how}, {len(rows)} images, seed {seed} ({number} of {len(points)})"
        result = _train(dataclasses.replace(options, seed=seed), dataset, here, what)
        results.append({"how": how, "ratio": share, "seed": seed, "images": len(rows),
                        **{f"test_{name}": value for name, value in result.items()}})
        if here.first:
            print(f"{what}: test acc {100 * result['accuracy']:.2f} %", flush=True)
            checkpoint.write_json(folder / NAME, {"settings": settings, "results": results})
    if here.first:
        title = (f"{options.data}, {options.method}, {options.model}, {options.epochs} epochs, chosen from "
                 f"{len(table.index)} images")
        kept = [entry for entry in results if (entry["how"], entry["ratio"], entry["seed"]) in set(points)]
        with drawing.optional(folder / PICTURE):
            draw(kept, wanted.interval, title, folder / PICTURE)
        print(_table(kept, wanted.ratios))
        print(f"written to {printable(folder)}", flush=True)
