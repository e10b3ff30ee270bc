"""Runs to do, one after the other: their folders, their order, one table of all."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .. import data
from ..console import INTERRUPTED, CommandError, UsageError, first_line, printer, progress_bar
from ..names import printable
from . import checkpoint, compare, report
from .distributed import Processes, processes
from .options import Options
from .run import CONFIG, Bar, Run, clear, finished
from .setup import load_data, setup


@dataclasses.dataclass
class Job:
    """One run to do: its options and its folder."""

    options: Options
    folder: Path


@dataclasses.dataclass
class Request:
    """What a command line asks for. together: several runs, with a table and a plot of all."""

    jobs: list[Job]
    folder: Path
    together: bool
    resume: bool


def new_folder(name: str, resume: bool) -> Path:
    """runs/NAME, or runs/NAME-2, ...: the first that does not exist, or to resume the last that does."""
    candidates = (Path("runs") / (name if i == 1 else f"{name}-{i}") for i in itertools.count(1))
    previous = None
    for folder in candidates:
        if not folder.exists():
            if resume and previous is None:
                raise UsageError(f"--resume: there is no {folder}; name the folder with --out")
            return previous if resume and previous is not None else folder
        previous = folder
    raise AssertionError


def holds_run(folder: Path) -> bool:
    """Whether a run or a comparison is in the folder."""
    return any((folder / name).exists() for name in (CONFIG, compare.NAME))


def check_free(folder: Path) -> None:
    """UsageError for a folder whose run would be lost."""
    if holds_run(folder):
        raise UsageError(f"{folder} already holds a run: --resume continues it, --overwrite replaces it, or take "
                         "another --out")


def epoch_bar(first: bool) -> Bar:
    """A bar on stderr if a person watches it."""
    return lambda epoch, epochs, steps: progress_bar(f"epoch {epoch}/{epochs}", steps, first)


def _prepare(request: Request) -> None:
    """The folders, with the configurations of all runs, so that a resume needs no other flag."""
    if not request.resume:
        for folder in [request.folder, *(compare.members(request.folder) or [])]:
            clear(folder)
        for name in (compare.NAME, compare.PICTURE):
            (request.folder / name).unlink(missing_ok=True)
    if request.together and not (request.resume and compare.members(request.folder)):
        compare.begin(request.folder, [job.folder for job in request.jobs])
    for job in request.jobs:
        if not (job.folder / CONFIG).exists():
            job.folder.mkdir(parents=True, exist_ok=True)
            checkpoint.write_json(job.folder / CONFIG, job.options.to_json())


def train_all(request: Request, here: Processes) -> None:
    """Trains what is left of the request; the first process prints and writes one table."""
    log = printer(here.first)
    done = [finished(job.folder) if request.resume else None for job in request.jobs]
    dataset: data.Dataset | None = None
    if None in done:
        dataset = load_data(request.jobs[0].options, here.first)
        for job in {job.options.method: job for job in request.jobs}.values():
            setup(job.options, dataset, dataclasses.replace(here, world=1))  # errors come before any file is touched
        dataset.say(log)
    here.barrier()  # all have read before the first process writes
    if here.first:
        _prepare(request)
    here.barrier()
    results: dict[str, list[dict[str, Any]]] = {}
    folders: dict[str, list[Path]] = {}
    for number, (job, result) in enumerate(zip(request.jobs, done, strict=True), 1):
        if result is None and dataset is not None:
            log(f"{job.options.method}, seed {job.options.seed}" +
                (f" ({number} of {len(request.jobs)})" if request.together else "") + f": {printable(job.folder)}")
            run = Run(job.options, dataset, here, job.folder, log, epoch_bar(here.first))
            run.start(request.resume)
            run.train()
            result = run.report()
        results.setdefault(job.options.method, []).append(result)
        folders.setdefault(job.options.method, []).append(job.folder)
    if not here.first:
        return
    used = request.jobs[0].options
    sample, seeds = next(iter(results.values()))[0], max(len(reports) for reports in results.values())
    title = (f"{used.data}, {sample['train_images']} training images, {used.model}, {used.epochs} epochs"
             + (f", {seeds} seeds" if seeds > 1 else f", seed {used.seed}"))
    if request.together:
        compare.write(request.folder, results, folders, title)
    report.show(title, results)
    print(report.EXPLANATION)
    print(f"written to {printable(request.folder)}", flush=True)


def in_processes(device: str, body: Callable[[Processes], None], resume: str) -> int:
    """The exit status of ``body(processes)``. resume: the command that continues after an interrupt."""
    try:
        with processes(device) as here:
            body(here)
    except KeyboardInterrupt:
        print(f"\nfastmix: interrupted; the last finished epoch is kept, continue with: {resume}", file=sys.stderr)
        return INTERRUPTED
    except torch.OutOfMemoryError as error:
        raise CommandError(f"out of memory ({first_line(error)}); try a smaller --batch") from None
    return 0
