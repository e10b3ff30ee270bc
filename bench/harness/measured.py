"""Goals as they were measured on GPUs, for docs/gpu.md: results of `bench.device.goals` under bench/results."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from .entries import Entry

FORMAT = "goals-1"


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
