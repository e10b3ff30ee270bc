"""The worked examples of docs/adding.md, applied to a copy of the project."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from . import ROOT

BLOCK = re.compile(r'^```\w+ (?P<how>file|add)=(?P<path>\S+)(?: after="(?P<after>(?:[^"\\]|\\.)*)")?\n'
                   r"(?P<text>.*?)^```$", re.M | re.S)
NOT_COPIED = shutil.ignore_patterns("__pycache__", ".venv", ".git", "build", "dist", "runs", "*.egg-info",
                                    "*.png", ".*_cache", ".hypothesis")


def sections(page: str) -> dict[str, str]:
    """Title -> text of the page's second-level sections."""
    _, *parts = re.split(r"^## (.+)$", page, flags=re.M)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def apply(text: str, root: Path) -> list[str]:
    """Writes the files of a section's blocks and adds its lines to files; the paths, in order.

    ValueError for a new file that exists, and for a line to add after that is not in the file exactly once.
    """
    paths = []
    for found in BLOCK.finditer(text):
        path = root / found["path"]
        paths.append(found["path"])
        if found["how"] == "file":
            if path.exists():
                raise ValueError(f"{found['path']} exists already")
            path.write_text(found["text"])
            continue
        after = found["after"].replace('\\"', '"')
        lines = path.read_text().splitlines(keepends=True)
        places = [i for i, line in enumerate(lines) if after in line]
        if len(places) != 1:
            raise ValueError(f"{found['path']} has {len(places)} lines with {after!r}, want one")
        lines.insert(places[0] + 1, found["text"])
        path.write_text("".join(lines))
    return paths


def copy(to: Path) -> Path:
    """A copy of the sources, without what was built or measured."""
    shutil.copytree(ROOT, to, ignore=NOT_COPIED)
    return to
