"""What the commands that measure share: options, the head of a result, and where it goes."""

from __future__ import annotations

import datetime
import itertools
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from fastmix.app import claims
from fastmix.app.console import Parser, UsageError
from fastmix.files import make_folder
from fastmix.ops.checkout import CHECKOUT

from . import machine, memory
from .entries import Entry

# An installed package has no place for results of its own.
RESULTS = Path("bench-results") if CHECKOUT is None else CHECKOUT / "bench" / "results"
SHOWN = "bench-results" if CHECKOUT is None else "bench/results"


def add_options(p: Parser, file: str) -> None:
    """file: the name of a result, as --help shows it."""
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: cuda if there is one")
    p.add_argument("--threads", type=int, help="torch's CPU threads (default: torch's own)")
    p.add_argument("--machine", metavar="NAME", help="what to call this machine in the result")
    p.add_argument("--json", type=Path, metavar="PATH",
                   help=f"where the result goes (default: {SHOWN}/<machine>/{file})")


def prepare(args: Namespace) -> torch.device:
    """The device of --device; sets the threads. UsageError where there is no such device."""
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch sees no GPU")
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(args.device)


def new_result(format: int | str, device: torch.device, name: str | None, settings: Entry) -> Entry:
    """What every result begins with. name: of the machine, None for its own."""
    now = datetime.datetime.now(datetime.timezone.utc)
    return {"format": format, "date": now.isoformat(timespec="seconds"), "machine": machine.describe(device, name),
            "settings": settings | {"keeps_memory": memory.keeps_memory()}}


@contextmanager
def result_file(given: Path | None, result: Entry, suffix: str = "") -> Iterator[Path]:
    """Where a result goes, held meanwhile: before anything is measured it is known that it can be written.

    given: by --json; None: `result_path`, numbered if another result has that name. Raises: claims.Held, WriteError.
    """
    if given is not None:
        make_folder(given.parent)
        with claims.Claim.of_file(given, "--json"):
            yield given
        return
    first = result_path(result, suffix)
    make_folder(first.parent)
    for number in itertools.count(1):
        path = first if number == 1 else first.with_stem(f"{first.stem}-{number}")
        if path.exists():
            continue
        try:
            claim = claims.Claim.of_file(path)
        except claims.Held:
            continue
        with claim:
            yield path
        return


def result_path(result: Entry, suffix: str = "") -> Path:
    """Where a result goes by default."""
    date = datetime.datetime.fromisoformat(result["date"])
    return RESULTS / machine.slug(result["machine"]["name"]) / f"{date:%Y-%m-%d-%H%M}{suffix}.json"
