"""Runs to do, one after the other: their folders, their order, one table of all."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..._starting import received
from ...files import make_folder, remove, sweep
from .. import claims, data
from ..console import CommandError, failed, printer, progress_bar
from ..errors import expected
from ..names import printable
from ..tables import wrapped
from . import checkpoint, compare, report
from .distributed import Processes, processes
from .options import Options
from .places import Place, kept
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
    place: Place
    together: bool

    @property
    def folder(self) -> Path:
        return self.place.folder

    @property
    def resume(self) -> bool:
        return self.place.resume

    def settle(self, folder: Path) -> None:
        """All of it in this folder."""
        for job in self.jobs:
            job.folder = folder / job.folder.relative_to(self.folder)
        self.place.folder = folder

    def kept(self) -> str:
        """What an end before the last epoch leaves; "" for nothing."""
        return kept([job.folder for job in self.jobs], "train", self.folder)


def epoch_bar(first: bool) -> Bar:
    """A bar on stderr if a person watches it."""
    return lambda epoch, epochs, steps: progress_bar(f"epoch {epoch}/{epochs}", steps, first)


def _prepare(request: Request) -> None:
    """The folders, with the configurations of all runs, so that a resume needs no other flag."""
    if not request.resume:
        for folder in [request.folder, *(compare.members(request.folder) or [])]:
            clear(folder)
        for name in (compare.NAME, compare.PICTURE):
            remove(request.folder / name)
    for name in (compare.NAME, compare.PICTURE):
        sweep(request.folder / name)
    if request.together and not (request.resume and compare.members(request.folder)):
        compare.begin(request.folder, [job.folder for job in request.jobs])
    for job in request.jobs:
        if not (job.folder / CONFIG).exists():
            make_folder(job.folder)
            checkpoint.write_json(job.folder / CONFIG, job.options.to_json())


def train_all(request: Request, here: Processes) -> None:
    """Trains what is left of the request in folders that it holds; the first process prints and writes one table."""
    def take(stack: contextlib.ExitStack) -> Path:
        return request.place.claim(stack, lambda folder: [folder / job.folder.relative_to(request.folder)
                                                          for job in request.jobs])

    with claims.held(here.share, take) as folder:
        request.settle(folder)
        _train_all(request, here)


def _train_all(request: Request, here: Processes) -> None:
    log = printer(here.first)
    done = [finished(job.folder, job.options.epochs) if request.resume else None for job in request.jobs]
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
    print(wrapped(report.EXPLANATION))
    print(f"written to {printable(request.folder)}", flush=True)


def in_processes(device: str, body: Callable[[Processes], None], left: Callable[[], str]) -> int:
    """The exit status of ``body(processes)``. left: what there is after an early end, and how to go on; or ""."""
    try:
        with processes(device, left) as here:
            body(here)
    except (KeyboardInterrupt, OSError, MemoryError, RuntimeError) as error:
        if isinstance(error, KeyboardInterrupt) or received() is not None:
            return failed(error, left())
        ended = expected(error)
        if ended is None:
            raise
        raise CommandError("; ".join(filter(None, [str(ended), left()])), ended.code) from error
    return 0
