"""`python -m bench.readme results.json [README.md] [--check]`: writes the README's table of figures.

The table stands between the two marker lines below; everything in it comes from the one JSON file. --check writes
nothing and exits 1 if the README says something else.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from .report import duration, load, median, ours, peers, speedup, times_floor

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
HEADER = ("operator", "case", "fastmix", "vs torch.compile", "vs eager", "vs fastest peer", "times the floor")


def _ratio(value: float | None) -> str:
    if value is None:
        return "-"
    text = f"{value:.2g}x" if value < 100 else f"{value:.0f}x"
    return f"**{text}** (slower)" if value < 0.995 else text


def render(results: dict[str, Any], source: str) -> str:
    """The Markdown between the markers. source: the JSON file's name as the reader finds it."""
    machine = results["machine"]
    packages = machine["packages"]
    commit = (machine["commit"] or "unknown")[:12] + (" with changes" if machine["uncommitted_changes"] else "")
    lines = [
        f"Measured on {machine['name']} ({machine['threads']} threads, torch {packages.get('torch', '?')}, "
        f"{results['date'][:10]}, commit {commit}); medians of interleaved repeats in one process, "
        f"from [{Path(source).name}]({source}). Above 1x fastmix is faster.",
        "",
        "| " + " | ".join(HEADER) + " |",
        "|" + "---|" * len(HEADER),
    ]
    for case in results["cases"]:
        if not ours(case):
            continue
        name = ours(case)[0]
        best = peers(case)[:1]
        against_peer = f"{_ratio(speedup(case, name, best[0]))} `{best[0]}`" if best else "-"
        lines.append("| " + " | ".join([
            f"`{case['op']}`", f"{case['case']}, {case['mode']}", f"{duration(median(case, name))} ({name})",
            _ratio(speedup(case, name, "compile")), _ratio(speedup(case, name, "eager")), against_peer,
            f"{times_floor(case, name):.2g}"]) + " |")
    lines += ["", "The floor is the time that the bytes which must move once take at the rate of a clone of the batch, "
              "measured in the same run" + (", in memory that the process holds already."
                                            if results["settings"].get("keeps_memory") else ".")]
    return "\n".join(lines)


def insert(readme: str, table: str) -> str:
    """The README with ``table`` between its markers. ValueError unless both are there once, in order."""
    if readme.count(BEGIN) != 1 or readme.count(END) != 1 or readme.index(BEGIN) > readme.index(END):
        raise ValueError(f"readme: want one {BEGIN} and one {END} after it")
    head, rest = readme.split(BEGIN)
    tail = rest.split(END)[1]
    return f"{head}{BEGIN}\n{table}\n{END}{tail}"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.readme", description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("readme", type=Path, nargs="?", default=Path("README.md"))
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args(argv)
    try:
        text = args.readme.read_text()
        wanted = insert(text, render(load(args.results), args.results.as_posix()))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    if args.check:
        if text != wanted:
            print(f"readme: {args.readme} does not show {args.results}; run python -m bench.readme {args.results}",
                  file=sys.stderr)
            return 1
        return 0
    args.readme.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
