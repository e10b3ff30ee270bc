"""`python -m bench.readme [RESULT.json] [README.md]`: writes the README's figures, or with --check tells old from new.

Three sections stand between marker lines of their own: the speed of the operators, what a method adds to a training
step, and what to expect at sizes that were not measured. Everything in them comes from the JSON files that they link
to: the newest under bench/results, or RESULT.json for the first. --check takes the files that the README names, writes
nothing and exits 1 if it says something else than they do.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import scale, step
from .readme_text import render_scale, render_speed, render_steps
from .report import FORMAT, RESULTS

Result = dict[str, Any]
Found = list[tuple[str, Result]]
# Section -> what renders it of (the link to a file, its content) of each file.
SECTIONS: dict[str, Callable[[Found], str]] = {"bench": render_speed, "step": render_steps, "scale": render_scale}


def markers(section: str) -> tuple[str, str]:
    return f"<!-- {section}:begin -->", f"<!-- {section}:end -->"


def split(readme: str, section: str) -> tuple[str, str, str]:
    """What stands before, between and after the section's markers. ValueError unless both are there once, in order."""
    begin, end = markers(section)
    if readme.count(begin) != 1 or readme.count(end) != 1 or readme.index(begin) > readme.index(end):
        raise ValueError(f"readme: want one {begin} and one {end} after it")
    head, rest = readme.split(begin)
    return head, *rest.split(end)


def insert(readme: str, section: str, text: str) -> str:
    head, _, tail = split(readme, section)
    begin, end = markers(section)
    return f"{head}{begin}\n{text}\n{end}{tail}"


def read(path: Path) -> Result:
    try:
        found = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"readme: {error}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"readme: {path} is not JSON: {error}") from None
    if not isinstance(found, dict) or found.get("format") not in (FORMAT, step.FORMAT, scale.FORMAT):
        raise ValueError(f"readme: {path} is not a result of this bench, or of an older one")
    return found


def _whole(result: Result) -> bool:
    """A run of everything."""
    settings = result["settings"]
    return not settings["quick"] and settings.get("ops") is None and settings.get("providers") is None


def newest(root: Path) -> dict[str, list[Path]]:
    """Section -> its files under root: the newest whole run, the newest step result of every model, size and batch in
    the order of their dates, the newest sweeps."""
    runs: dict[str, list[tuple[str, Path, Result]]] = {section: [] for section in SECTIONS}
    for path in sorted(root.glob("*/*.json")):
        try:
            result = read(path)
        except ValueError:
            continue  # an older format
        kind = {FORMAT: "bench", step.FORMAT: "step", scale.FORMAT: "scale"}[result["format"]]
        if kind != "bench" or _whole(result):
            runs[kind].append((result["date"], path, result))
    for found in runs.values():
        found.sort(key=lambda run: run[0])
    by_shape = {tuple(result["settings"][key] for key in ("model", "size", "batch")): path
                for _, path, result in runs["step"]}
    last = {section: [found[-1][1]] if found else [] for section, found in runs.items()}
    steps = [path for _, path, _ in runs["step"] if path in by_shape.values()]
    return {"bench": last["bench"], "step": steps, "scale": last["scale"]}


def named(readme: str, section: str) -> list[Path]:
    """The files that a section links to, in order."""
    return [Path(link) for link in dict.fromkeys(re.findall(r"\]\(([^)]+\.json)\)", split(readme, section)[1]))]


def written(readme: str, files: dict[str, list[Path]], root: Path) -> str:
    """The README as it should be with these files (relative to root, where it stands)."""
    for section, render in SECTIONS.items():
        found = [(path.as_posix(), read(root / path)) for path in files[section]]
        readme = insert(readme, section, render(found))
    return readme


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.readme", description=__doc__)
    parser.add_argument("result", type=Path, nargs="?", help="of `python -m bench` (default: the newest whole run)")
    parser.add_argument("readme", type=Path, nargs="?", default=RESULTS.parent.parent / "README.md")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args(argv)
    root = args.readme.resolve().parent
    try:
        text = args.readme.read_text()
        if args.check:
            files = {section: named(text, section) for section in SECTIONS}
        else:
            files = {section: [path.resolve().relative_to(root) for path in paths]
                     for section, paths in newest(root / "bench" / "results").items()}
        if args.result is not None:
            files["bench"] = [args.result.resolve().relative_to(root)]
        wanted = written(text, files, root)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    if args.check:
        if text != wanted:
            print(f"readme: {args.readme} is not what its files say; run python -m bench.readme", file=sys.stderr)
        return int(text != wanted)
    args.readme.write_text(wanted)
    print(f"wrote {args.readme} from {', '.join(str(path) for paths in files.values() for path in paths)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
