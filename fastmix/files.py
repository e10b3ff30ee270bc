"""State files: tensors and plain values, written so that a kill at any moment leaves a whole file."""

from __future__ import annotations

import contextlib
import glob
import io
import os
import pickle
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch

FORMAT = 1


class DamagedFile(ValueError):
    """A file that cannot be read as what it should be."""


class WriteError(OSError):
    """A file or a folder that cannot be written; the message names it and says why. errno: of the error behind it."""

    def __init__(self, path: Path, error: OSError, what: str = "cannot be written") -> None:
        reason = error.strerror or next(iter(str(error).splitlines()), "") or type(error).__name__
        super().__init__(f"{path} {what}: {reason}")
        self.errno = error.errno


def _partial(path: Path) -> str:
    """How the names of files begin that are to become this one; a long name leaves room for the rest."""
    name = path.name
    while len(os.fsencode(name)) > 200:
        name = name[:-1]
    return f".{name}."


def write_atomically(path: Path, content: bytes) -> None:
    """The path holds the old content or the new, never a part of it, whatever happens meanwhile.

    Raises: WriteError naming the path, as where no room is left.
    """
    try:
        _write(path, content)
    except OSError as error:
        raise WriteError(path, error) from error


def _write(path: Path, content: bytes) -> None:
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=_partial(path))
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


def append(path: Path, text: str) -> None:
    """Text at the end of a file. Raises: WriteError naming the path."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise WriteError(path, error) from error


def make_folder(path: Path) -> list[Path]:
    """The folder and those above it, where they are missing; returns those that were made, the outermost first.

    Raises: WriteError naming the path, as where a file is in the way.
    """
    above = [folder for folder in (path, *path.parents) if not os.path.isdir(folder)]
    made = []
    try:
        for folder in reversed(above):
            try:
                folder.mkdir()
            except FileExistsError:
                if not os.path.isdir(folder):  # a file; a folder was made by another process meanwhile
                    raise
            else:
                made.append(folder)
    except OSError as error:
        for folder in reversed(made):
            with contextlib.suppress(OSError):
                folder.rmdir()
        in_the_way = next((each for each in (path, *path.parents) if os.path.exists(each) and not os.path.isdir(each)),
                          None)
        if in_the_way is not None:
            raise WriteError(path, NotADirectoryError(f"{in_the_way} is a file"), "cannot be made") from error
        raise WriteError(path, error, "cannot be made") from error
    return made


def remove(path: Path) -> None:
    """The file, where there is one, and what a process that was killed while it wrote the file left beside it."""
    try:
        for found in [path, *path.parent.glob(f"{glob.escape(_partial(path))}*")]:
            found.unlink(missing_ok=True)
    except OSError as error:
        raise WriteError(path, error, "cannot be removed") from error


def write_state(path: Path, state: dict[str, Any]) -> None:
    """A state of tensors and plain values, atomically."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    write_atomically(path, buffer.getvalue())


def read_state(path: Path) -> dict[str, Any] | None:
    """What `write_state` has written, on the CPU; None if there is no such file. DamagedFile if it is not readable."""
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise DamagedFile(f"{path} is damaged or no checkpoint ({reason})") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise DamagedFile(f"{path} is no checkpoint of this version of fastmix")
    return state
