"""python -m fastmix bench pages: writes the generated tables of the README and of docs/ from the committed results.

A page's blocks stand between `<!-- NAME:begin -->` and `<!-- NAME:end -->`. Everything measured in them comes from the
JSON files that they link to: the newest whole run of the operators, the newest step result of every model, size and
batch, the newest sweeps, the newest goals of every GPU. --check takes the files that a page links to and writes
nothing.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

from fastmix.app.console import USAGE, CommandError, Parser, UsageError
from fastmix.files import write_atomically
from fastmix.ops.checkout import CHECKOUT

from .device.subjects import subjects
from .harness import (
    benchmark_tables,
    growth,
    host_table,
    measured,
    operator_table,
    predicted,
    predicted_products,
    report,
    result_tables,
    steps,
)
from .harness.blocks import rewritten
from .harness.command_line import RESULTS
from .harness.entries import Entry

PAGES = ("README.md", "docs/benchmarks.md", "docs/compat.md", "docs/gpu.md", "docs/operators.md", "docs/results.md")
BENCHMARKS = "docs/benchmarks.md"
KINDS = {report.FORMAT: "operators", steps.FORMAT: "steps", growth.FORMAT: "scale", host_table.FORMAT: "host",
         measured.FORMAT: "goals"}
Files = dict[str, list[Path]]  # kind of result -> its files
# Block -> its text, made of results by kind. The README's own is the first.
MEASURED: dict[str, Callable[[dict[str, benchmark_tables.Found]], str]] = {
    "bench": lambda found: benchmark_tables.headline(found["operators"], found["steps"], BENCHMARKS),
    "speed": lambda found: benchmark_tables.speed(found["operators"]),
    "step": lambda found: benchmark_tables.steps(found["steps"]),
    "scale": lambda found: benchmark_tables.scale(found["scale"]),
    "host": lambda found: benchmark_tables.host(found["host"]),
    "compat": lambda found: benchmark_tables.compat(found.get("compat", [])),
}


def wanted_goals() -> list[tuple[str, str, str]]:
    """Name, shape and goal of all that the device check measures."""
    return [(subject.name, subject.shape, str(goal)) for subject in subjects() for goal in subject.goals]


def parser() -> Parser:
    p = Parser(prog="python -m fastmix bench pages", description="Writes the generated tables of the README and of "
               "docs/ from the committed\nresults: the newest whole run of the operators, the newest step result of "
               "every\nmodel, size and batch, the newest sweeps and host times, the newest goals of "
               "every\nGPU. --check takes the files that a page links to.")
    p.add_argument("pages", type=Path, nargs="*", metavar="PAGE", help=f"(default: {', '.join(PAGES)})")
    p.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="where results are (bench/results)")
    p.add_argument("--check", action="store_true", help="write nothing, exit 1 if a page is not what its files say")
    return p


def _whole(result: Entry) -> bool:
    """A run of everything."""
    settings = result["settings"]
    return not settings["quick"] and settings.get("ops") is None and settings.get("providers") is None


def _kind(result: Entry) -> str:
    """A run of the drop-ins alone is a kind of its own."""
    kind = KINDS[result["format"]]
    return "compat" if kind == "operators" and result["settings"].get("ops") == ["compat"] else kind


def newest(results: Path) -> Files:
    """The files that the pages are made of, under a folder of results; steps in the order of their dates."""
    runs: dict[str, list[tuple[str, Path, Entry]]] = {kind: [] for kind in KINDS.values()}
    for path in sorted(results.glob("*/*.json")):
        try:
            result = report.load(path, KINDS)
        except ValueError:
            continue  # an older format
        kind = _kind(result)
        if kind != "operators" or _whole(result):
            runs.setdefault(kind, []).append((result["date"], path, result))
    for found in runs.values():
        found.sort(key=lambda run: run[0])
    last = {kind: [found[-1][1]] if found else [] for kind, found in runs.items()}
    by_shape = {tuple(result["settings"][key] for key in ("model", "size", "batch")): path
                for _, path, result in runs["steps"]}
    by_card = {result["machine"]["name"]: path for _, path, result in runs["goals"]
               if result["machine"]["device"] == "cuda"}
    return last | {"steps": [path for _, path, _ in runs["steps"] if path in by_shape.values()],
                   "goals": sorted(by_card.values())}


def linked(text: str, folder: Path) -> Files:
    """The results that a block links to, in order. folder: of its page."""
    found: Files = {kind: [] for kind in KINDS.values()}
    for link in dict.fromkeys(re.findall(r"\]\(([^)]+\.json)\)", text)):
        path = (folder / link).resolve()
        found.setdefault(_kind(report.load(path, KINDS)), []).append(path)
    return found


def page(text: str, folder: Path, files: Files | None = None, root: Path | None = CHECKOUT) -> str:
    """A page with all of its blocks made anew. folder: the page's. files: None for those that it links to already.

    ValueError for a page without blocks, an unknown block, or a file that is not there.
    """
    folder = folder.resolve()

    def render(name: str, present: str) -> str:
        if name in MEASURED:
            paths = linked(present, folder) if files is None else files
            return MEASURED[name]({kind: [(Path(os.path.relpath(path, folder)).as_posix(), report.load(path, KINDS))
                                          for path in paths[kind]] for kind in paths})
        if name == "operators" and root is not None:
            return operator_table.operators(root, folder)
        if name in ("predicted", "goals") and root is not None:
            paths = (linked(present, folder) if files is None else files).get("goals", [])
            found = [(Path(os.path.relpath(path, folder)).as_posix(), measured.load(path)) for path in paths]
            return predicted.table(root, found) if name == "predicted" else measured.goals(wanted_goals(), found)
        if name == "products" and root is not None:
            return predicted_products.table(root)
        if result_tables.is_block(name):
            return result_tables.block(name, folder)
        raise ValueError(f"there is no block {name}")
    return rewritten(text, render)


def main(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    if not args.pages and CHECKOUT is None:
        raise UsageError("the pages are in a checkout, and this fastmix is installed: give a PAGE")
    files = None if args.check else newest(args.results)
    old = []
    for path in args.pages or [CHECKOUT / name for name in PAGES]:
        try:
            text = path.read_text()
            wanted = page(text, path.parent, files)
        except (ValueError, OSError, KeyError, CommandError) as error:
            raise CommandError(f"{path}: {error}", USAGE) from None
        if text == wanted:
            continue
        if args.check:
            old.append(path)
            continue
        write_atomically(path, wanted.encode())
        print(f"wrote {path}")
    for path in old:
        print(f"{path} is not what its files say; run python -m fastmix bench pages", file=sys.stderr)
    return int(bool(old))
