"""python -m fastmix.bench.device.goals: every goal for a GPU, predicted beside measured: met or MISSED.

The subjects (`bench.device.subjects`) run in a process of their own (`harness.worker`). The file is at every moment a
result that can be committed under bench/results: --write puts it there. `--device cpu` runs small shapes: it shows that
they run, and no figure of it means anything.
"""

from __future__ import annotations

import sys
from argparse import SUPPRESS
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fastmix.app import claims
from fastmix.app.console import Parser, UsageError, run
from fastmix.ops import dispatch
from fastmix.ops.checkout import CHECKOUT

from ..cases.base import Case
from ..harness import measured, predicted, report, worker
from ..harness.command_line import new_result, result_path
from ..harness.entries import Entry
from ..harness.report import aligned
from ..harness.runner import run_case
from . import sequences
from .subjects import GROUPS, Goal, Subject, subjects

MODULE = "fastmix.bench.device.goals"
BACKENDS = ("cuda", "triton", "cpu")


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


def row(subject: Subject, goal: Goal, backend: str, time: Entry, floor: float | None, value: float,
        expected: float | None) -> Entry:
    """One line of a result: times in microseconds."""
    return {"name": subject.name, "shape": subject.shape, "dtype": subject.dtype, "backend": backend,
            "measured_us": time["median"], "spread_us": [time["q1"], time["q3"]], "floor_us": floor,
            "predicted_us": expected, "goal": str(goal), "value": value, "met": goal.met(value)}


def measure(subject: Subject, device: torch.device, seconds: float, expected: dict[str, float]) -> Entry:
    """rows: of every goal and backend; errors: by provider. expected: predicted microseconds by backend."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(subject.precision)
    try:
        made = subject.make(device)
        if isinstance(made, Case):
            return _measure_case(subject, made, device, seconds, expected)
        found = sequences.measure(made, device.type)
    except RuntimeError as error:
        if "cannot be had" not in str(error):
            raise
        return {"rows": [], "errors": {}, "skipped": str(error).splitlines()[0]}
    finally:
        torch.set_float32_matmul_precision(before)
    times = {"us in a graph": found["graph"], "us a call": found["host"]}
    rows = []
    for goal in subject.goals:
        time = times[goal.what]
        rows.append(row(subject, goal, "default", time, None, time["median"], expected.get("default")))
    return {"rows": rows, "errors": {}, "measured": found}


def _measure_case(subject: Subject, case: Case, device: torch.device, seconds: float,
                  expected: dict[str, float]) -> Entry:
    providers = [*BACKENDS, *(goal.what[2:] for goal in subject.goals if goal.what in ("x eager", "x compile"))]
    entry = run_case(replace(case, peers=(), goals={}), device, seconds, providers,
                     "inductor" if device.type == "cuda" else "eager")  # Inductor would take a CPU a minute
    rows = []
    for goal in subject.goals:
        for name in BACKENDS:
            found = entry["providers"].get(name, {})
            if "median_us" not in found:
                continue
            try:
                value = MEASURES[goal.what](entry, name)
            except KeyError:
                continue
            time = {key: found[f"{key}_us"] for key in ("median", "q1", "q3")}
            wanted = expected.get(name, expected.get("default"))
            rows.append(row(subject, goal, name, time, entry["floor_us"], value, wanted))
    rows = by_default(rows, case, device)
    errors = {name: p["error"] for name, p in entry["providers"].items() if "error" in p}
    return {"rows": rows, "errors": errors, "measured": entry}


def by_default(rows: list[Entry], case: Case, device: torch.device) -> list[Entry]:
    """The rows, those of the backend that serves by default first: the goal is judged by it."""
    operator = case.operators[-1]
    first = dispatch.AUTO[operator].get(device.type, "reference")
    if not isinstance(first, str):  # it depends on the batch, which takes a while to make
        first = dispatch.select(operator, case.make(device, 0)[0])
    return sorted(rows, key=lambda row: row["backend"] != first)


def expectations(root: Path | None, gpu: str | None) -> dict[str, dict[str, float]]:
    """Name -> backend -> predicted microseconds on this GPU (a name that begins with one of `predicted.GPUS`')."""
    if root is None or gpu is None or not (root / predicted.BUDGETS).exists():
        return {}
    card = next((card for card in predicted.GPUS if card.name in gpu), None)
    found: dict[str, dict[str, float]] = {}
    for p in predicted.predictions(root) if card is not None else ():
        for backend in p.backend.split(", "):
            found.setdefault(p.name, {})[backend] = p.seconds(card) * 1e6
    for by_backend in found.values():
        by_backend["default"] = min(by_backend.values())
    return found


def all_cases(device: torch.device, seconds: float, groups: list[str],
              expected: dict[str, dict[str, float]]) -> Iterator[tuple[str, Callable[[], Entry]]]:
    for group in groups:
        for subject in (each for each in subjects(device.type == "cpu") if each.group == group):
            wanted = expected.get(subject.predicted or subject.name, {})
            yield subject.name, lambda subject=subject, wanted=wanted: measure(subject, device, seconds, wanted)


def lines_of(name: str, entry: Entry) -> list[tuple[str, ...]]:
    """(subject, goal, measured, predicted, verdict) of every goal and backend, and what went wrong."""
    if "error" in entry:
        return [(name, "", entry["error"][:70], "", "FAILED")]
    if "skipped" in entry:
        return [(name, "", entry["skipped"][:70], "", "skipped")]
    found = []
    for row in entry["rows"]:
        time = f"{row['backend']} {report.duration(row['measured_us'])}"
        value = "" if row["goal"].startswith("us ") else f", {row['value']:.3g}"
        expected = "-" if row["predicted_us"] is None else report.duration(row["predicted_us"])
        found.append((name, row["goal"], time + value, expected, "met" if row["met"] else "MISSED"))
    if not found and not entry["errors"]:
        found = [(name, "", "-", "", "not measured")]
    failed = [f"{provider}: {error}"[:70] for provider, error in entry["errors"].items()]
    return found + [(name, "", text, "", "FAILED") for text in failed]


def judged(entries: dict[str, Entry]) -> list[Entry]:
    """The rows that goals are judged by: of every subject and goal the first."""
    first: dict[tuple[str, str], Entry] = {}
    for entry in entries.values():
        for row in entry.get("rows", ()):
            first.setdefault((row["name"], row["goal"]), row)
    return list(first.values())


def table(entries: dict[str, Entry]) -> list[str]:
    """The goals of a result, and a line that counts."""
    rows = [line for name, entry in entries.items() for line in lines_of(name, entry)]
    if not rows:
        return ["no goal was measured"]
    goals = judged(entries)
    met = sum(row["met"] for row in goals)
    failed = sum(line[-1] == "FAILED" for line in rows)
    return [*aligned([("subject", "goal", "measured", "predicted", ""), *rows]),
            f"goals: {met} met, {len(goals) - met} MISSED, {failed} FAILED"]


def write(paths: list[Path]) -> Path:
    """Puts results of one card, of this command or in files of the device check, under bench/results as one."""
    if CHECKOUT is None:
        raise UsageError("--write: results are committed in a checkout, and this fastmix is installed")
    found, *others = map(measured.load, paths)
    for path, other in zip(paths[1:], others, strict=True):
        if other["machine"]["name"] != found["machine"]["name"]:
            raise UsageError(f"--write: {path} is of another card, {other['machine']['name']}")
        found["cases"].update(other["cases"])
    target = result_path(found, "-goals")
    report.save(found, target)
    return target


def parser() -> Parser:
    p = Parser(prog=f"python -m {MODULE}", description=(__doc__ or "").partition("\n")[0])
    p.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    p.add_argument("--json", type=Path, default=Path("goals.json"), help="where the figures go (default %(default)s)")
    p.add_argument("--groups", default=",".join(GROUPS), metavar="A,B", help="which (default %(default)s)")
    p.add_argument("--seconds", type=float, default=0.5, help="timing per case (default %(default)s)")
    p.add_argument("--budget", type=float, default=300.0, help="seconds after which no worker is started anew")
    p.add_argument("--root", type=Path, default=CHECKOUT, help="folder with tests/backends/*.json, for the predictions")
    p.add_argument("--show", type=Path, metavar="JSON", help="only print the table of an earlier run")
    p.add_argument("--write", type=Path, nargs="+", metavar="JSON", help="only put earlier runs under bench/results")
    p.add_argument("--worker", action="store_true", help=SUPPRESS)
    return p


def main(argv: list[str]) -> int:
    options = parser().parse_args(argv)
    if options.show:
        print("\n".join(table(worker.load(options.show))))
        return 0
    if options.write:
        try:
            print(f"wrote {write(options.write)}; now python -m fastmix bench pages docs/gpu.md")
        except ValueError as error:
            raise UsageError(str(error)) from None
        return 0
    groups = options.groups.split(",")
    if unknown := [group for group in groups if group not in GROUPS]:
        raise UsageError(f"--groups: {unknown[0]!r} unknown, want some of {', '.join(GROUPS)}")
    if not options.worker:
        with claims.Claim.of_file(options.json, "--json"):
            found = worker.supervise(["-m", MODULE, "--worker", *argv], options.json, options.budget)
        print("\n".join(table(found)))
        return any(line[-1] == "FAILED" for name, entry in found.items() for line in lines_of(name, entry))
    return _work(options, groups)


def _work(options: Any, groups: list[str]) -> int:
    device = torch.device(options.device, 0) if options.device == "cuda" else torch.device("cpu")

    def check() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()

    def show(name: str, entry: Entry) -> str:
        return "\n".join("  ".join(line) for line in lines_of(name, entry))

    torch.manual_seed(0)
    about = new_result(measured.FORMAT, device, None, {"seconds": options.seconds, "groups": groups})
    gpu = about["machine"]["gpu"] or predicted.GPUS[0].name
    return worker.run_cases(options.json, all_cases(device, options.seconds, groups, expectations(options.root, gpu)),
                            about, show, check, summary=table, limit=60.0)


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
