"""python -m fastmix.bench.device.goals: every goal for a GPU, measured: met or MISSED.

Shares of bandwidth are of a clone of the case's own batch in the same run, caches cold; device times are those of a
CUDA graph, calls what the host takes to enqueue one. The cases run in a process of their own (`harness.worker`).
`--device cpu` runs small shapes: it shows that the cases run, and no figure of it means anything.
"""

from __future__ import annotations

import sys
from argparse import SUPPRESS
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastmix
from fastmix import functional
from fastmix.app import claims
from fastmix.app.console import Parser, run
from fastmix.reference import functional as reference

from ..cases.base import Case, generator, image_case_name, images, numel
from ..cases.blend import case as blend_case
from ..cases.mixers import case as mixer_case
from ..cases.paste import case as paste_case
from ..cases.patch_mix import GRID
from ..cases.patch_mix import case as mask_and_mix_case
from ..cases.soft_target import case as soft_target_case
from ..cases.view import case as view_case
from ..harness import machine, worker
from ..harness.entries import Entry
from ..harness.report import aligned
from ..harness.runner import run_case
from . import times

MODULE = "fastmix.bench.device.goals"
BACKENDS = ("cuda", "triton", "cpu")  # in the order of preference


@dataclass(frozen=True)
class Goal:
    """what: a key of MEASURES, or the goal of a step."""

    what: str
    limit: float

    @property
    def at_least(self) -> bool:
        return self.what in ("share of copy", "x eager", "x compile")

    def met(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        return f"{self.what} {'>=' if self.at_least else '<='} {self.limit:g}"


def _median(entry: Entry, provider: str) -> float:
    return entry["providers"][provider]["median_us"]


# What is compared with a goal, from an entry of `run_case` and a backend. KeyError where it was not measured.
MEASURES: dict[str, Callable[[Entry, str], float]] = {
    "share of copy": lambda entry, name: entry["floor_us"] / _median(entry, name),
    "x floor": lambda entry, name: _median(entry, name) / entry["floor_us"],
    "x copy": lambda entry, name: _median(entry, name) / _median(entry, "clone"),
    "x eager": lambda entry, name: _median(entry, "eager") / _median(entry, name),
    "x compile": lambda entry, name: _median(entry, "compile") / _median(entry, name),
    "us in a graph": lambda entry, name: _median(entry, name),
    "us a call": lambda entry, name: entry["providers"][name]["host_us"],
}


def patch_mix_case(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, channels_last: bool = False) -> Case:
    """patch_mix alone, its masks given."""
    def make(device: torch.device, seed: int) -> tuple[Tensor, ...]:
        g = generator(seed)
        x = images(shape, dtype, channels_last, device, g)
        mask = torch.rand(shape[0], *GRID, generator=g) < 0.5
        return x, torch.randperm(shape[0], generator=g).to(device), mask.to(device), torch.tensor(0.7, device=device)

    return Case(op="patch_mix", name=image_case_name(shape, dtype, channels_last), make=make,
                ours=functional.patch_mix, reference=reference.patch_mix, moved=2 * numel(shape) * dtype.itemsize,
                formula="2 N D s: x read, mixed written", operators=("patch_mix",), scratch=4096)


def cases(cpu: bool) -> Iterator[tuple[Case, tuple[Goal, ...]]]:
    large = (8, 3, 32, 32) if cpu else (256, 3, 224, 224)
    share = (Goal("share of copy", 0.85),)
    for make in (blend_case, paste_case, patch_mix_case):
        for dtype, last in ((torch.float32, False), (torch.bfloat16, False), (torch.float32, True)):
            yield make(large, dtype=dtype, channels_last=last), share
    yield mask_and_mix_case(large), (Goal("x floor", 1.25), Goal("x eager", 8), Goal("x compile", 2))
    yield mask_and_mix_case((10, 3, 16, 16) if cpu else (100, 3, 32, 32)), (
        Goal("us in a graph", 12), Goal("us a call", 40), Goal("x eager", 6))
    for n, j, dtype in ((1024, 1000, torch.float32), (4096, 21841, torch.bfloat16)):
        n, j = (16, 100) if cpu else (n, j)
        yield soft_target_case(n, j, dtype, backward=True, quick=False), (
            Goal("share of copy", 0.80), Goal("x compile", 1.3))
    yield mixer_case(fastmix.DCutMix(5, 1 / 3), large), (Goal("x copy", 1.3),)
    for op in ("view", "blend", "paste", "patch_mix"):
        yield view_case(op, large, torch.bfloat16, True), (Goal("share of copy", 0.80),)


def measure_case(case: Case, goals: tuple[Goal, ...], device: torch.device, seconds: float) -> Entry:
    wanted = [*BACKENDS, *(goal.what[2:] for goal in goals if goal.what in ("x eager", "x compile"))]
    entry = run_case(replace(case, peers=(), goals={}), device, seconds, wanted)
    rows = []
    for goal in goals:
        values = {}
        for name in BACKENDS:
            if "median_us" not in entry["providers"].get(name, {}):
                continue
            try:
                values[name] = MEASURES[goal.what](entry, name)
            except KeyError:
                continue
        rows.append(verdict(goal, values))
    errors = {name: p["error"] for name, p in entry["providers"].items() if "error" in p}
    return {"goals": rows, "errors": errors, "measured": entry}


def measure_step(make: Callable[[], Any], precision: str, goal: float | None, device: torch.device) -> Entry:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        found = times.measure(make(), device.type)
    except RuntimeError as error:
        if "cannot be had" not in str(error):
            raise
        return {"goals": [], "errors": {}, "skipped": str(error).splitlines()[0]}
    finally:
        torch.set_float32_matmul_precision(before)
    time = found["eager_us"] if found["graph_us"] is None else found["graph_us"]
    return {"goals": [verdict(Goal("us in a graph", goal), {"default": time})], "errors": {}, "measured": found}


def verdict(goal: Goal, values: dict[str, float]) -> Entry:
    """met: by the first backend, the one that serves by default; None where nothing was measured."""
    first = next(iter(values.values()), None)
    return {"goal": str(goal), "values": values, "met": None if first is None else goal.met(first)}


def all_cases(device: torch.device, seconds: float) -> Iterator[tuple[str, Callable[[], Entry]]]:
    for case, goals in cases(device.type == "cpu"):
        yield (f"{case.op} {case.name}" + (" +grad" if case.backward else ""),
               lambda case=case, goals=goals: measure_case(case, goals, device, seconds))
    for name, precision, goal, make in times.steps(device.type):
        yield name, lambda make=make, precision=precision, goal=goal: measure_step(make, precision, goal, device)


WORDS = {True: "met", False: "MISSED", None: "not measured"}


def rows_of(name: str, entry: Entry) -> list[tuple[str, ...]]:
    """(case, goal, measured, verdict) of every goal, and a row for what went wrong."""
    if "error" in entry:
        return [(name, "", entry["error"][:70], "FAILED")]
    if "skipped" in entry:
        return [(name, "", entry["skipped"][:70], "skipped")]
    rows = [(name, row["goal"], ", ".join(f"{backend} {value:.3g}" for backend, value in row["values"].items()) or "-",
             WORDS[row["met"]]) for row in entry["goals"]]
    return rows + [(name, "", f"{backend}: {error}"[:70], "FAILED") for backend, error in entry["errors"].items()]


def table(entries: dict[str, Entry]) -> list[str]:
    """The goals table of a result, and a line that counts."""
    rows = [row for name, entry in entries.items() for row in rows_of(name, entry)]
    if not rows:
        return ["no goal was measured"]
    counts = {word: sum(row[3] == word for row in rows) for word in ("met", "MISSED", "not measured", "FAILED")}
    copies = [2 * 4 * numel((256, 3, 224, 224)) / entry["measured"]["providers"]["clone"]["median_us"] / 1e6
              for name, entry in entries.items() if name.startswith("blend 256x3x224x224 K=2")
              and not name.endswith(("bf16", "channels_last")) and "measured" in entry]
    lines = [f"copy bandwidth, a clone of 256x3x224x224 fp32: {copies[0]:.2f} TB/s"] if copies else []
    return [*lines, *aligned([("case", "goal", "measured", ""), *rows]),
            "goals: " + ", ".join(f"{count} {word}" for word, count in counts.items())]


def parser() -> Parser:
    p = Parser(prog=f"python -m {MODULE}", description=(__doc__ or "").partition("\n")[0])
    p.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    p.add_argument("--json", type=Path, default=Path("goals.json"), help="where the figures go (default %(default)s)")
    p.add_argument("--seconds", type=float, default=0.5, help="timing per case (default %(default)s)")
    p.add_argument("--budget", type=float, default=300.0, help="seconds after which no worker is started anew")
    p.add_argument("--show", type=Path, metavar="JSON", help="only print the table of an earlier run")
    p.add_argument("--worker", action="store_true", help=SUPPRESS)
    return p


def main(argv: list[str]) -> int:
    options = parser().parse_args(argv)
    if options.show:
        print("\n".join(table(worker.load(options.show))))
        return 0
    if not options.worker:
        command = ["-m", MODULE, "--worker", "--device", options.device, "--json", str(options.json), "--seconds",
                   str(options.seconds)]
        with claims.Claim.of_file(options.json, "--json"):
            found = worker.supervise(command, options.json, options.budget)
        print("\n".join(table(found)))
        return any(row[3] == "FAILED" for name, entry in found.items() for row in rows_of(name, entry))
    device = torch.device(options.device, 0) if options.device == "cuda" else torch.device("cpu")

    def check() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()

    def show(name: str, entry: Entry) -> str:
        return "\n".join("  ".join(row) for row in rows_of(name, entry))

    torch.manual_seed(0)
    return worker.run_cases(options.json, all_cases(device, options.seconds), {"machine": machine.describe(device)},
                            show, check)


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
