"""A run's state on disk. A kill at any moment leaves the file of the last finished epoch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...files import DamagedFile, read_state, write_atomically, write_state
from ..console import CommandError

NAME = "checkpoint.pt"


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


def read(path: Path) -> dict[str, Any] | None:
    """`files.read_state`, its error one of the command."""
    try:
        return read_state(path)
    except DamagedFile as error:
        raise CommandError(str(error)) from None


def save(folder: Path, state: dict[str, Any]) -> None:
    write_state(folder / NAME, state)


def load(folder: Path) -> dict[str, Any] | None:
    """The last state of the run in this folder; None if it finished no epoch."""
    return read(folder / NAME)
