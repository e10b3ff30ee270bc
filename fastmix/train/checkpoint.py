"""A run's state on disk. A kill at any moment leaves the file of the last finished epoch."""

from __future__ import annotations

import io
import json
import os
import pickle
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch

from .._cli import CommandError, first_line

FORMAT = 1
NAME = "checkpoint.pt"


def write_atomically(path: Path, content: bytes) -> None:
    """The path holds the old content or the new, never a part of it, whatever happens meanwhile."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the rename itself must survive a power cut
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


def write(path: Path, state: dict[str, Any]) -> None:
    """A state of tensors and plain values, atomically."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    write_atomically(path, buffer.getvalue())


def read(path: Path) -> dict[str, Any] | None:
    """What `write` has written, on the CPU; None if there is no such file. CommandError if it is damaged."""
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise CommandError(f"{path} is damaged or no checkpoint ({first_line(error)})") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CommandError(f"{path} is no checkpoint of this version of fastmix")
    return state


def save(folder: Path, state: dict[str, Any]) -> None:
    write(folder / NAME, state)


def load(folder: Path) -> dict[str, Any] | None:
    """The last state of the run in this folder; None if it finished no epoch."""
    return read(folder / NAME)
