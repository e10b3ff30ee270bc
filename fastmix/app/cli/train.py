"""python -m fastmix train: flags, the runs they ask for, their order."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .. import data
from ..console import INTERRUPTED, CommandError, Parser, UsageError, first_line, progress_bar
from ..training import checkpoint, compare, methods, options, report
from ..training.distributed import Processes, processes
from ..training.options import FREE_ON_RESUME, Options
from ..training.run import CONFIG, Bar, Run, check_extras, clear, finished, load_data, setup
from . import presets

EPILOG = """\
examples:
  python -m fastmix train --method rmix
  python -m fastmix train --compare none,mixup,rmix --data mnist5k --out runs/mnist5k
  python -m fastmix train --compare none,rmix --data fashion-mnist --limit 5000 --seeds 3
  python -m fastmix train --preset paper/dcutmix-pn110-c100 --root DIR
  python -m fastmix train --method mixup --data mnist5k --epochs 20 --refine-epochs 5
  python -m fastmix train --resume --out runs/rmix-digits-cnn-seed0
  torchrun --nproc-per-node 2 -m fastmix train --method cutmix --data cifar10 --root DIR --model preact-resnet18

The folder of a run gets config.json, metrics.jsonl (a line an epoch), report.json, curves.png, samples.png and
checkpoint.pt, the state after the last finished epoch. Exit status: 0, 1 failed, 2 wrong usage, 130 interrupted.
"""


def parser() -> Parser:
    p = Parser(prog="python -m fastmix train", description="Train an image classifier with a mixing method.",
               epilog=EPILOG)
    choice = p.add_mutually_exclusive_group()
    about = "; ".join(f"{name}: {method.about}" for name, method in methods.METHODS.items())
    choice.add_argument("--method", choices=tuple(methods.METHODS), help=about)
    choice.add_argument("--compare", type=options.methods, metavar="M,M,...",
                        help="train each of these methods with the same seeds and print one table")
    p.add_argument("--preset", metavar="NAME",
                   help="take what is not given from a paper's table; python -m fastmix presets lists them")
    p.add_argument("--seeds", type=options.count, metavar="N", help="train N times, with seeds SEED, SEED + 1, ...")
    options.add_data_flags(p)
    options.add_training_flags(p)
    options.add_method_flags(p)
    options.add_machine_flags(p)
    options.add_output_flags(p, "continue what is in the folder; finished runs are kept")
    return p


@dataclasses.dataclass
class Job:
    """One run to do: its options and its folder."""

    options: Options
    folder: Path


@dataclasses.dataclass
class Request:
    """What the command line asks for. together: several runs, with a table and a plot of all."""

    jobs: list[Job]
    folder: Path
    together: bool
    resume: bool


def fresh(name: str, resume: bool) -> Path:
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


def _occupied(folder: Path) -> bool:
    return any((folder / name).exists() for name in (CONFIG, compare.NAME))


def merge(stored: Options, given: dict[str, Any], folder: Path) -> Options:
    """A resumed run's options: its own, and the flags that only say where to compute."""
    for name, value in given.items():
        if name not in FREE_ON_RESUME and getattr(stored, name) != value:
            raise UsageError(f"--resume: {folder} was trained with {name} = {getattr(stored, name)!r}, not {value!r}; "
                             "leave the flag out, or start a run of its own with another --out")
    return dataclasses.replace(stored, **{k: v for k, v in given.items() if k in FREE_ON_RESUME})


def request(argv: list[str]) -> Request:
    """The runs that these flags ask for. UsageError if they make no sense."""
    given = vars(parser().parse_args(argv))
    out, resume = given.pop("out", None), given.pop("resume", False)
    overwrite = given.pop("overwrite", False)
    names, seeds = given.pop("compare", None), given.pop("seeds", None)
    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other")
    single = names is None and seeds is None
    members = compare.members(out) if resume and out is not None and single else None
    if out is not None and members is not None:
        jobs = [Job(merge(Options.from_json(path / CONFIG), given, path), path) for path in members]
        return Request(jobs, out, True, True)
    if resume and out is not None and not _occupied(out):
        raise UsageError(f"--resume: there is no run in {out}")
    if single and resume and out is not None:
        return Request([Job(merge(Options.from_json(out / CONFIG), given, out), out)], out, False, True)

    each = [Options(**presets.fill(given, name)) for name in names or [None]]
    first, names = each[0], [own.method for own in each]
    methods.check_flags(names, set(given))
    for own in each:
        options.check(own)
        options.check_schedule(own, set(given))
    variants = [dataclasses.replace(own, seed=own.seed + i) for own in each for i in range(seeds or 1)]
    if single:
        folder = out or fresh(first.label(), resume)
        jobs = [Job(first, folder)]
    else:
        folder = out or fresh(f"compare-{'-'.join(names)}-{first.data}-{first.model.replace(':', '-')}", resume)
        jobs = [Job(variant, folder / f"{variant.method}-seed{variant.seed}") for variant in variants]
    if not resume and not overwrite and _occupied(folder):
        raise UsageError(f"{folder} already holds a run: --resume continues it, --overwrite replaces it, or take "
                         "another --out")
    if resume:
        for job in jobs:
            if (job.folder / CONFIG).exists():
                job.options = merge(Options.from_json(job.folder / CONFIG), given, job.folder)
    return Request(jobs, folder, not single, resume)


def progress(first: bool) -> Bar:
    """A bar on stderr if a person watches it."""
    return lambda epoch, epochs, steps: progress_bar(f"epoch {epoch}/{epochs}", steps, first)


def teller(first: bool) -> Callable[[str], None]:
    return (lambda line: print(line, flush=True)) if first else (lambda line: None)


def _prepare(wanted: Request) -> None:
    """The folders, with the configurations of all runs, so that a resume needs no other flag."""
    if not wanted.resume:
        for folder in [wanted.folder, *(compare.members(wanted.folder) or [])]:
            clear(folder)
        for name in (compare.NAME, compare.PICTURE):
            (wanted.folder / name).unlink(missing_ok=True)
    if wanted.together and not (wanted.resume and compare.members(wanted.folder)):
        compare.begin(wanted.folder, [job.folder for job in wanted.jobs])
    for job in wanted.jobs:
        if not (job.folder / CONFIG).exists():
            job.folder.mkdir(parents=True, exist_ok=True)
            checkpoint.write_json(job.folder / CONFIG, job.options.to_json())


def _do(wanted: Request, here: Processes) -> None:
    say = teller(here.first)
    done = [finished(job.folder) if wanted.resume else None for job in wanted.jobs]
    dataset: data.Dataset | None = None
    if None in done:
        dataset = load_data(wanted.jobs[0].options)
        for job in {job.options.method: job for job in wanted.jobs}.values():
            setup(job.options, dataset, dataclasses.replace(here, world=1))  # what is wrong, before any file is touched
    here.barrier()  # all have looked before the first process writes
    if here.first:
        _prepare(wanted)
    here.barrier()
    results: dict[str, list[dict[str, Any]]] = {}
    folders: dict[str, list[Path]] = {}
    for number, (job, result) in enumerate(zip(wanted.jobs, done, strict=True), 1):
        if result is None and dataset is not None:
            say(f"{job.options.method}, seed {job.options.seed}" +
                (f" ({number} of {len(wanted.jobs)})" if wanted.together else "") + f": {job.folder}")
            run = Run(job.options, dataset, here, job.folder, say, progress(here.first))
            run.start(wanted.resume)
            run.train()
            result = run.report()
        results.setdefault(job.options.method, []).append(result)
        folders.setdefault(job.options.method, []).append(job.folder)
    if not here.first:
        return
    used = wanted.jobs[0].options
    sample, seeds = next(iter(results.values()))[0], max(len(reports) for reports in results.values())
    title = (f"{used.data}, {sample['train_images']} training images, {used.model}, {used.epochs} epochs"
             + (f", {seeds} seeds" if seeds > 1 else f", seed {used.seed}"))
    if wanted.together:
        compare.write(wanted.folder, results, folders, title)
    report.show(title, results)
    print(report.EXPLANATION)
    print(f"written to {wanted.folder}", flush=True)


def main(argv: list[str]) -> int:
    wanted = request(argv)
    check_extras()
    first = wanted.jobs[0].options
    if first.threads is not None:
        torch.set_num_threads(first.threads)
    return train(first.device, lambda here: _do(wanted, here),
                 f"python -m fastmix train --resume --out {wanted.folder}")


def train(device: str, body: Callable[[Processes], None], resume: str) -> int:
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
