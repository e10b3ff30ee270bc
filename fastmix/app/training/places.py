"""The folders of runs: which one a command line asks for, and its claim."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from ...files import WriteError, make_folder
from .. import claims
from ..console import UsageError
from ..names import flag
from . import checkpoint, compare
from .run import CONFIG

RUNS = Path("runs")
TAKEN = "{} already holds a run: --resume continues it, --overwrite replaces it, or take another --out"


def _numbered(name: str) -> Iterator[Path]:
    """runs/NAME, runs/NAME-2, ..."""
    return (RUNS / (name if i == 1 else f"{name}-{i}") for i in itertools.count(1))


def _last(name: str) -> Path:
    """The last of them that holds a run."""
    found = [each for each in itertools.takewhile(Path.exists, _numbered(name)) if holds_run(each)]
    if not found:
        raise UsageError(f"--resume: there is no {RUNS / name}; name the folder with --out")
    return found[-1]


def run_folder(path: Path) -> Path:
    """The folder of a run that is named by its checkpoint, too."""
    return path.parent if path.name == checkpoint.NAME and not path.is_dir() else path


def program() -> str:
    """What starts the program again as it was started."""
    world = os.environ.get("WORLD_SIZE", "1")
    return "python -m fastmix" if world == "1" else f"torchrun --nproc-per-node {world} -m fastmix"


def kept(folders: list[Path], command: str, folder: Path) -> str:
    """What runs that end early leave, and the command that goes on."""
    if not any((each / CONFIG).exists() for each in folders):
        return ""
    done = any((each / checkpoint.NAME).exists() for each in folders)
    return (f"{'the last finished epoch is kept' if done else 'no epoch was finished'}, continue with: "
            f"{program()} {command} --resume {flag('--out', folder)}")


def holds_run(folder: Path) -> bool:
    """Whether a run or a comparison is in the folder."""
    return any((folder / name).exists() for name in (CONFIG, compare.NAME))


def check_free(folder: Path) -> None:
    """UsageError for a folder whose run would be lost, claims.Held for one that a living run holds."""
    if holds_run(folder):
        with contextlib.suppress(WriteError):
            claims.Claim.of_folder(folder).release()  # a run that lives is named
        raise UsageError(TAKEN.format(folder))


@dataclasses.dataclass
class Place:
    """Where a command that trains writes.

    folder: the one of --out; of a place with a name the first that was free when the flags were read. name: of a folder
    in runs that is numbered, None with --out. overwrite: what is there may be replaced.
    """

    folder: Path
    name: str | None = None
    resume: bool = False
    overwrite: bool = False

    @classmethod
    def of(cls, out: Path | None, name: str, resume: bool, overwrite: bool) -> Place:
        """Of the flags. UsageError where nothing can be continued, or a run would be lost."""
        if resume and overwrite:
            raise UsageError("--resume and --overwrite exclude each other")
        if out is not None and resume:
            out = run_folder(out)
        if out is None:
            return cls(_last(name) if resume else next(each for each in _numbered(name) if not each.exists()),
                       name, resume)
        if resume and not holds_run(out):
            raise UsageError(f"--resume: there is no run in {out}")
        if not resume and not overwrite:
            check_free(out)
        return cls(out, None, resume, overwrite)

    def claim(self, stack: contextlib.ExitStack, folders: Callable[[Path], list[Path]] = lambda folder: []) -> Path:
        """The folder, which this process then holds, with others: folders(the folder). Raises: claims.Held, UsageError
        where another run was faster."""
        if self.name is not None and not self.resume:
            folder = self._claim_new(self.name, stack)
        else:
            folder = self.folder
            stack.enter_context(claims.Claim.of_folder(folder))
        for each in dict.fromkeys([*folders(folder), *(compare.members(folder) or [])]):
            if each != folder:
                stack.enter_context(claims.Claim.of_folder(each))
        if not self.resume and not self.overwrite and holds_run(folder):
            raise UsageError(TAKEN.format(folder))
        return folder

    @staticmethod
    def _claim_new(name: str, stack: contextlib.ExitStack) -> Path:
        for folder in _numbered(name):
            made = make_folder(folder.parent)
            try:
                folder.mkdir()  # fails where another run has made it a moment ago
                stack.enter_context(claims.Claim(folder / claims.LOCK, folder, [*made, folder]))
            except (FileExistsError, claims.Held):
                continue
            except WriteError:
                raise
            except OSError as error:
                raise WriteError(folder, error, "cannot be made") from error
            return folder
        raise AssertionError
