"""python -m fastmix train-ssl: flags and the run they ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..console import Parser, UsageError
from ..selfsupervised.options import SslOptions, add_ssl_flags, check
from ..selfsupervised.run import FILES, SslRun
from ..training import checkpoint
from ..training.distributed import Processes
from ..training.options import add_data_flags, add_machine_flags, add_output_flags
from ..training.run import CONFIG, check_extras, clear, finished, load_data
from .train import fresh, merge, progress, teller, train

EPILOG = """\
examples:
  python -m fastmix train-ssl --pair-weight SA1
  python -m fastmix train-ssl --data cifar10 --root DIR --model preact-resnet18 --epochs 500 --pair-weight SA1
  python -m fastmix train-ssl --resume --out runs/simsiam-SA1-digits-cnn-seed0

Labels are looked at by the linear evaluation alone. The folder of a run gets config.json, metrics.jsonl (a line an
epoch), report.json, curves.png, pairs.png and checkpoint.pt, the state after the last finished epoch. Exit status: 0,
1 failed, 2 wrong usage, 130 interrupted.
"""


def parser() -> Parser:
    p = Parser(prog="python -m fastmix train-ssl",
               description="Train a backbone without labels (SimSiam), with the pair weights of Soft Augmentation.",
               epilog=EPILOG)
    add_data_flags(p)
    add_ssl_flags(p)
    add_machine_flags(p)
    add_output_flags(p, "continue what is in the folder")
    return p


def request(argv: list[str]) -> tuple[SslOptions, Path, bool]:
    """Options, folder and whether to resume. UsageError if the flags make no sense."""
    given: dict[str, Any] = vars(parser().parse_args(argv))
    out, resume, overwrite = given.pop("out", None), given.pop("resume", False), given.pop("overwrite", False)
    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other")
    options = SslOptions(**given)
    check(options)
    folder = out or fresh(options.label(), resume)
    held = (folder / CONFIG).exists()
    if resume:
        if not held:
            raise UsageError(f"--resume: there is no run in {folder}")
        return merge(SslOptions.from_json(folder / CONFIG), given, folder), folder, True  # type: ignore[return-value]
    if held and not overwrite:
        raise UsageError(f"{folder} already holds a run: --resume continues it, --overwrite replaces it, or take "
                         "another --out")
    return options, folder, False


def _table(result: dict[str, Any]) -> str:
    lines = [f"{'backbone':<10}  {'test acc %':>10}  {'train acc %':>11}  {'ECE %':>6}"]
    for name, key in (("SimSiam", "linear"), ("untrained", "untrained")):
        values = [100 * result[key][entry] for entry in ("test_accuracy", "train_accuracy", "ece")]
        lines.append(f"{name:<10}  {values[0]:>10.2f}  {values[1]:>11.2f}  {values[2]:>6.2f}")
    return "\n".join(lines)


def _do(options: SslOptions, folder: Path, resume: bool, here: Processes) -> None:
    say = teller(here.first)
    result = finished(folder) if resume else None
    if result is None:
        run = SslRun(options, load_data(options), here, folder, say, progress(here.first))
        here.barrier()  # all have looked before the first process writes
        if here.first and not resume:
            clear(folder, FILES)
            folder.mkdir(parents=True, exist_ok=True)
            checkpoint.write_json(folder / CONFIG, options.to_json())
        here.barrier()
        say(f"SimSiam, pair weights {options.pair_weight}, seed {options.seed}: {folder}")
        run.start(resume)
        run.train()
        say(f"linear evaluation, {options.linear_epochs} epochs")
        result = run.report()
    say(_table(result))
    say(f"written to {folder}")


def main(argv: list[str]) -> int:
    options, folder, resume = request(argv)
    check_extras()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    return train(options.device, lambda here: _do(options, folder, resume, here),
                 f"python -m fastmix train-ssl --resume --out {folder}")
