"""Goals as they were measured on GPUs, for docs/gpu.md: results of `bench.device.goals` under bench/results."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from fastmix.app.results.render import markdown

from .entries import Entry
from .report import duration

FORMAT = "goals-1"
Found = tuple[str, Entry]  # the link to a result, and the result


def load(path: Path) -> Entry:
    """A result, also where the device check has it in a step's file. ValueError for another file, or a CPU's."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"bench: {path}: {error}") from None
    if isinstance(found, dict) and isinstance(found.get("result"), dict):
        found = found["result"]
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(f"bench: {path} is not a result of the device check's goals (format {FORMAT})")
    if found["machine"]["device"] != "cuda":
        raise ValueError(f"bench: {path} was measured on a CPU, and no figure of it means anything")
    return found


def rows(result: Entry) -> Iterator[Entry]:
    """Every goal's rows, those of the backend that serves by default first."""
    for entry in result["cases"].values():
        yield from entry.get("rows", ())


def cell(rows: Iterable[Entry]) -> str:
    """What is said of a goal: each backend's time, what is compared with the goal, and whether it is met."""
    said = []
    for row in rows:
        share, time = (row["goal"].startswith(what) for what in ("share", "us "))
        value = "" if time else f" ({row['value']:.0%})" if share else f" ({row['value']:.3g}x)"
        backend = "" if row["backend"] == "default" else f"{row['backend']} "
        said.append(f"{backend}{duration(row['measured_us'])}{value}" + ("" if row["met"] else ", MISSED"))
    return "; ".join(said) or "-"


def sources(results: Sequence[Found]) -> list[str]:
    """A line that links what was measured; none where nothing was."""
    links = [f"{result['machine']['name']}, {result['date'][:10]} ([{Path(link).name}]({link}))"
             for link, result in results]
    return [f"Measured: {'; '.join(links)}."] if links else []


def goals(wanted: Sequence[tuple[str, str, str]], results: Sequence[Found]) -> str:
    """Every goal, and what each card made of it. wanted: name, shape and goal, in order."""
    cards = {result["machine"]["name"]: list(rows(result)) for _, result in results} or {"measured": []}
    lines = [[name, shape, goal.replace("share of copy", "of a copy"),
              *(cell(row for row in found if (row["name"], row["goal"]) == (name, goal)) if found else "not measured"
                for found in cards.values())] for name, shape, goal in wanted]
    return "\n\n".join([markdown([["what", "shape", "goal", *cards], *lines]), *sources(results)])
