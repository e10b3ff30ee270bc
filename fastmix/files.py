"""Files that are written so that a kill at any moment leaves a whole one, and read as what others may have written."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import stat
from pathlib import Path
from typing import Any

MOST = 2**40  # bytes that are read of a file, where nothing less is known


class DamagedFile(ValueError):
    """A file that cannot be read as what it should be."""


class WriteError(OSError):
    """A file or a folder that cannot be written; the message names it and says why. errno: of the error behind it."""

    def __init__(self, path: Path, error: OSError, what: str = "cannot be written") -> None:
        reason = error.strerror or next(iter(str(error).splitlines()), "") or type(error).__name__
        super().__init__(f"{path} {what}: {reason}")
        self.errno = error.errno


def _partial(path: Path) -> str:
    """How the names of files begin that are to become this one; a long name leaves room for the rest, which has no
    dot."""
    name = path.name
    while len(os.fsencode(name)) > 200:
        name = name[:-1]
    return f".{name}."


def read_bytes(path: Path, most: int = MOST) -> bytes:
    """What a file holds. Neither a device, which has no end, nor a pipe, which waits, is read.

    Raises: FileNotFoundError, DamagedFile for what is no regular file or has more than ``most`` bytes, other OSError.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
                         | getattr(os, "O_BINARY", 0))
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise DamagedFile(f"{path} is no regular file")
        if found.st_size > most:
            raise DamagedFile(f"{path} has {found.st_size} bytes, want at most {most}")
        return file.read(found.st_size + 1)


def read_text(path: Path, most: int = MOST) -> str:
    """The same as text, in UTF-8. Raises: as `read_bytes`."""
    try:
        return read_bytes(path, most).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DamagedFile(f"{path} is no text in UTF-8 (byte {error.start})") from None


def read_json(path: Path) -> Any:
    """The value of a JSON file. Raises: FileNotFoundError, DamagedFile, other OSError."""
    text = read_text(path)
    try:
        return json.loads(text)
    except ValueError as error:  # also a number of thousands of digits
        raise DamagedFile(f"{path} is no JSON ({error})") from None
    except RecursionError:
        raise DamagedFile(f"{path} is no JSON of ours (nested too deeply)") from None


def write_atomically(path: Path, content: bytes) -> None:
    """The path holds the old content or the new, never a part of it, whatever happens meanwhile.

    Raises: WriteError naming the path, as where no room is left.
    """
    try:
        _write(path, content)
    except OSError as error:
        raise WriteError(path, error) from error


def _write(path: Path, content: bytes) -> None:
    name = path.with_name(f"{_partial(path)}{secrets.token_hex(6)}")
    # A new file has the mode that the umask leaves, one that is replaced keeps its own.
    descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(OSError):
            found = os.lstat(path)
            if stat.S_ISREG(found.st_mode):
                os.chmod(name, stat.S_IMODE(found.st_mode) & 0o777)
        os.replace(name, path)
    except BaseException:
        name.unlink(missing_ok=True)
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


def sweep(path: Path) -> None:
    """Removes what a process that was killed while it wrote this file left beside it. For who holds the file alone."""
    left = re.compile(re.escape(_partial(path)) + r"[^.]+", re.DOTALL)
    try:
        with os.scandir(path.parent) as entries:
            found = [entry.path for entry in entries if left.fullmatch(entry.name)]
        for name in found:
            Path(name).unlink(missing_ok=True)
    except FileNotFoundError:
        return
    except OSError as error:
        raise WriteError(path, error, "cannot be removed") from error


def remove(path: Path) -> None:
    """The file, where there is one, and what a process that was killed while it wrote the file left beside it."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise WriteError(path, error, "cannot be removed") from error
    sweep(path)
